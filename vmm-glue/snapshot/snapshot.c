// SPDX-License-Identifier: Apache-2.0
// Threads: the VM's (begin, end), the fault thread (frozen.c), the workers, and one that starts the
// workers and brings the file to its end. One lock, one condition; a page's way:
//
//	claimed by the fault thread: copied to a spare of the pool, released, queued; a worker
//	writes it and gives the spare back
//	claimed by a worker: copied with its neighbours, released, written
//
// Only who claimed a page releases it: the other may not have copied it yet.
//
// So the guest never waits for a write of ours unless the pool is full.
#include "vmm-glue/snapshot/snapshot.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "ft/page.h"
#include "ft/snapshot/claims.h"
#include "ft/snapshot/mapped_ram.h"
#include "vmm-glue/snapshot/frame.h"
#include "vmm-glue/snapshot/frozen.h"
#include "vmm-glue/snapshot/out_file.h"
#include "vmm-glue/snapshot/pace.h"
#include "vmm-glue/snapshot/pool.h"
#include "vmm-glue/snapshot/update.h"

#define NS_PER_S    1000000000ull
#define CHUNK_BYTES (CLAIMS_WORD_PAGES * (size_t)VMM_PAGE_BYTES)
#define WORKER_NICE 5

struct snapshot {
	/* set at begin */
	struct snapshot_config config;
	struct mapped_ram layout;
	const struct mapped_ram_block *block;
	struct out_file file;
	struct frozen *frozen;
	struct claims claims;
	_Atomic uint64_t *bitmap; /* pages that are in the file */
	uint8_t *tail;		  /* device state as it stands in the file */
	size_t tail_len;
	uint64_t pause_ns, digest;
	struct pace pace;
	pthread_t thread;
	/* counts */
	_Atomic uint64_t done, written;
	atomic_bool failed; /* err is set: everybody stops */
	/* under lock */
	pthread_mutex_t lock;
	pthread_cond_t change; /* work, a spare page, the end */
	pthread_cond_t ended;  /* all is done, or failed */
	struct pool pool;
	struct ft_err err;
	bool committing;
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* False: the time is over. */
static bool wait_until_locked(struct snapshot *s, uint64_t when_ns)
{
	struct timespec ts = {.tv_sec = (time_t)(when_ns / NS_PER_S),
			      .tv_nsec = (long)(when_ns % NS_PER_S)};

	return pthread_cond_timedwait(&s->change, &s->lock, &ts) != ETIMEDOUT;
}

/* The first error is the snapshot's; none is any more once the file gets its name, but for those of
 * that itself. */
static void give_up_unless(struct snapshot *s, bool too_late, const struct ft_err *err)
{
	pthread_mutex_lock(&s->lock);
	too_late = too_late && s->committing;
	if (!s->failed && !too_late) {
		s->err = *err;
		s->failed = true;
	}
	pthread_cond_broadcast(&s->change);
	pthread_cond_broadcast(&s->ended);
	pthread_mutex_unlock(&s->lock);
	if (s->config.disks && !too_late)
		disks_cancel(s->config.disks, err);
}

static void give_up(struct snapshot *s, const struct ft_err *err)
{
	give_up_unless(s, false, err);
}

static void give_up_for(struct snapshot *s, int code, const char *what)
{
	struct ft_err err = {0};

	ft_err_set(&err, code, "%s: %s", what, strerror(code));
	give_up(s, &err);
}

static void count_done(struct snapshot *s, unsigned pages)
{
	if (atomic_fetch_add(&s->done, pages) + pages != mapped_ram_pages(s->block))
		return;
	pthread_mutex_lock(&s->lock);
	pthread_cond_broadcast(&s->change);
	pthread_cond_broadcast(&s->ended);
	pthread_mutex_unlock(&s->lock);
}

// ---- the fault thread

static uint8_t *wait_for_spare(struct snapshot *s)
{
	uint64_t until = now_ns() + s->config.stall_max_ms * 1000000ull;
	uint8_t *spare;
	bool in_time = true;

	pthread_mutex_lock(&s->lock);
	while (!(spare = pool_take_spare_locked(&s->pool)) && !s->failed && in_time)
		in_time = wait_until_locked(s, until);
	pthread_mutex_unlock(&s->lock);
	if (!spare && !s->failed) {
		struct ft_err err = {0};

		ft_err_set(&err, ETIMEDOUT,
			   "the storage takes longer than %u ms to write what the guest changes: "
			   "given up, so that the guest need not wait",
			   s->config.stall_max_ms);
		give_up(s, &err);
	}
	return spare;
}

/* frozen_ops.fault */
static int on_fault(void *ctx, uint64_t pfn)
{
	struct snapshot *s = ctx;
	uint8_t *spare;
	int rc;

	if (s->failed)
		return 0;
	if (!claims_page(&s->claims, pfn))
		return 1;
	spare = wait_for_spare(s);
	if (!spare)
		return 0;
	rc = frozen_read(s->frozen, pfn, 1, spare);
	if (rc < 0)
		give_up_for(s, -rc, "the guest's RAM cannot be read");
	pthread_mutex_lock(&s->lock);
	if (rc || page_is_zero(spare)) {
		pool_give_back_locked(&s->pool, spare);
	} else {
		pool_put_locked(&s->pool, pfn, spare);
		pthread_cond_broadcast(&s->change);
		pthread_mutex_unlock(&s->lock);
		return 0;
	}
	pthread_mutex_unlock(&s->lock);
	count_done(s, 1);
	return 0;
}

/* frozen_ops.alive: a stopped agent would stop the guest at its next write, so its keeper must see
 * that this one is not. */
static void on_alive(void *ctx)
{
	struct snapshot *s = ctx;

	if (s->config.keeper)
		keeper_serving(s->config.keeper);
}

// ---- workers

static int write_pages(struct snapshot *s, uint64_t pfn, size_t n, const uint8_t *bytes)
{
	int rc = out_file_write(&s->file, bytes, n * VMM_PAGE_BYTES,
				s->block->pages_offset + pfn * VMM_PAGE_BYTES, true);

	if (rc)
		give_up_for(s, -rc, s->file.path);
	else
		s->written += n;
	return rc;
}

static void save_pooled(struct snapshot *s, const struct pool_page *page)
{
	int rc;

	atomic_fetch_or(&s->bitmap[page->pfn / 64], UINT64_C(1) << (page->pfn % 64));
	rc = write_pages(s, page->pfn, 1, page->bytes);
	pthread_mutex_lock(&s->lock);
	pool_give_back_locked(&s->pool, page->bytes);
	pthread_cond_broadcast(&s->change);
	pthread_mutex_unlock(&s->lock);
	pace_pay(&s->pace, VMM_PAGE_BYTES);
	if (!rc)
		count_done(s, 1);
}

static uint64_t not_zero(const uint8_t *pages, uint64_t mine)
{
	uint64_t left = mine;

	for (uint64_t todo = mine; todo; todo &= todo - 1) {
		unsigned i = (unsigned)__builtin_ctzll(todo);

		if (page_is_zero(pages + (size_t)i * VMM_PAGE_BYTES))
			left &= ~(UINT64_C(1) << i);
	}
	return left;
}

/* Neighbours in one write. */
static int write_runs(struct snapshot *s, uint64_t pfn, uint64_t pages, const uint8_t *bytes)
{
	int rc = 0;

	for (unsigned i = 0, n; !rc && (n = claims_run(pages, &i)); i += n)
		rc = write_pages(s, pfn + i, n, bytes + (size_t)i * VMM_PAGE_BYTES);
	return rc;
}

/* Not those between them: the fault thread has claimed them, and perhaps not copied them yet. */
static void release_runs(struct snapshot *s, uint64_t pfn, uint64_t mine)
{
	for (unsigned i = 0, n; (n = claims_run(mine, &i)); i += n)
		(void)frozen_release(s->frozen, pfn + i, n);
}

/* One word of the bitmap. False: there are no more. */
static bool save_chunk(struct snapshot *s, uint8_t *buffer)
{
	uint64_t word, mine, full, pfn, left;
	size_t n;
	int rc = 1;

	if (!claims_next(&s->claims, &word, &mine))
		return false;
	pfn = word * CLAIMS_WORD_PAGES;
	left = mapped_ram_pages(s->block) - pfn;
	n = left < CLAIMS_WORD_PAGES ? (size_t)left : CLAIMS_WORD_PAGES;
	if (mine)
		rc = frozen_read(s->frozen, pfn, n, buffer);
	if (rc >= 0)
		release_runs(s, pfn, mine);
	if (rc < 0) {
		give_up_for(s, -rc, "the guest's RAM cannot be read");
		return true;
	}
	full = rc ? 0 : not_zero(buffer, mine);
	if (!full || !write_runs(s, pfn, full, buffer))
		count_done(s, (unsigned)__builtin_popcountll(mine));
	atomic_fetch_or(&s->bitmap[word], full);
	pace_pay(&s->pace, (uint64_t)__builtin_popcountll(full) * VMM_PAGE_BYTES);
	return true;
}

enum work { WORK_NONE, WORK_POOLED, WORK_CHUNK };

/* Waits for something to do. What the guest waits for comes first. */
static enum work next_work(struct snapshot *s, struct pool_page *page)
{
	enum work work = WORK_NONE;

	pthread_mutex_lock(&s->lock);
	while (!s->failed && s->done < mapped_ram_pages(s->block)) {
		uint64_t next = pace_next_ns(&s->pace), now = next ? now_ns() : 0;
		bool may_scan = claims_left(&s->claims);

		if (pool_get_locked(&s->pool, page))
			work = WORK_POOLED;
		else if (may_scan && now >= next)
			work = WORK_CHUNK;
		if (work != WORK_NONE)
			break;
		if (may_scan)
			wait_until_locked(s, next);
		else
			pthread_cond_wait(&s->change, &s->lock);
	}
	pthread_mutex_unlock(&s->lock);
	return work;
}

static void *worker(void *ctx)
{
	struct snapshot *s = ctx;
	struct pool_page page;
	uint8_t *buffer = aligned_alloc(VMM_PAGE_BYTES, CHUNK_BYTES);
	enum work work;

	/* The guest's CPUs, and the thread that they wait for, come first. */
	(void)setpriority(PRIO_PROCESS, (id_t)gettid(), WORKER_NICE);
	if (!buffer)
		give_up_for(s, ENOMEM, "a worker's buffer");
	while ((work = next_work(s, &page)) != WORK_NONE) {
		if (work == WORK_POOLED)
			save_pooled(s, &page);
		else
			(void)save_chunk(s, buffer);
	}
	free(buffer);
	return NULL;
}

// ---- the end of the file

static bool may_commit(struct snapshot *s)
{
	pthread_mutex_lock(&s->lock);
	s->committing = !s->failed;
	pthread_mutex_unlock(&s->lock);
	return s->committing;
}

static void finish(struct snapshot *s)
{
	struct ft_err err = {0};

	if (frame_write(&s->file, &s->layout, s->bitmap, s->tail, s->tail_len, &err) ||
	    (s->config.verify && frame_verify(&s->file, s->digest, &err)) ||
	    (s->config.disks && disks_finish(s->config.disks, &err)) ||
	    (may_commit(s) && out_file_commit(&s->file, &err)))
		give_up(s, &err);
	else if (s->committing && s->config.disks)
		disks_settle(s->config.disks);
	if (!s->failed)
		update_forget(s->config.path);
}

/* On a thread of a disk's. */
static void on_disk_failed(void *ctx, const struct ft_err *err)
{
	give_up(ctx, err);
}

/* With all signals blocked, which the workers inherit. */
static void *run(void *ctx)
{
	struct snapshot *s = ctx;
	pthread_t workers[SNAPSHOT_JOBS_MAX];
	unsigned n = 0;

	for (; n < s->config.jobs; n++)
		if (pthread_create(&workers[n], NULL, worker, s))
			break;
	if (!n)
		give_up_for(s, EAGAIN, "a worker's thread");
	/* A guest must not wait for a worker that waits for a disk. */
	pthread_mutex_lock(&s->lock);
	while (!s->failed && s->done < mapped_ram_pages(s->block))
		pthread_cond_wait(&s->ended, &s->lock);
	pthread_mutex_unlock(&s->lock);
	frozen_thaw(s->frozen);
	while (n)
		pthread_join(workers[--n], NULL);
	if (!s->failed)
		finish(s);
	if (s->failed)
		out_file_discard(&s->file);
	s->config.done(s->config.ctx);
	return NULL;
}

// ---- the VM's thread

struct moment {
	struct snapshot *s;
	struct vmm *vmm;
};

static int on_held(void *ctx, struct ft_err *err)
{
	struct moment *m = ctx;
	int rc;

	assert(m->s);
	rc = frozen_moment(m->s->frozen, err);

	if (!rc && m->s->config.verify)
		rc = vmm_ram_digest(m->vmm, &m->s->digest, err);
	if (!rc && m->s->config.disks)
		rc = disks_moment(m->s->config.disks, err);
	return rc;
}

static int pack_state(struct snapshot *s, struct vmm *vmm, const uint8_t *state, size_t len,
		      struct ft_err *err)
{
	const char *disks = s->config.disks ? disks_description(s->config.disks) : NULL;
	struct vmm_info info;

	vmm_info(vmm, &info);
	s->tail = malloc(len + MAPPED_RAM_TAIL_MAX + (disks ? strlen(disks) : 0));
	if (!s->tail)
		return ft_err_set(err, ENOMEM, "device state: out of memory");
	s->tail_len = mapped_ram_pack_state(info.kind, state, len, s->tail);
	if (disks)
		s->tail_len = mapped_ram_describe(s->tail, s->tail_len, disks);
	return 0;
}

/* Of a guest that runs. */
static int take_moment(struct snapshot *s, struct vmm *vmm, struct ft_err *err)
{
	struct vmm_capture capture = {.state = malloc(VMM_STATE_BYTES_MAX)};
	struct moment moment = {s, vmm};
	int rc = capture.state ? 0 : ft_err_set(err, ENOMEM, "device state: out of memory");

	if (!rc)
		rc = vmm_save(vmm, &capture, on_held, &moment, err);
	if (!rc)
		rc = pack_state(s, vmm, capture.state, capture.state_len, err);
	s->pause_ns = capture.pause_ns;
	free(capture.state);
	return rc;
}

static void make_layout(struct snapshot *s, const struct vmm_ram *ram)
{
	_Static_assert(VMM_NAME_MAX <= MAPPED_RAM_NAME_MAX, "names fit");
	s->layout.blocks_n = 1;
	memcpy(s->layout.machine, ram->machine, sizeof ram->machine);
	memcpy(s->layout.blocks[0].name, ram->block, sizeof ram->block);
	s->layout.blocks[0].bytes = ram->bytes;
	mapped_ram_plan(&s->layout);
	s->block = &s->layout.blocks[0];
}

static int make_room(struct snapshot *s, struct ft_err *err)
{
	s->bitmap = calloc(mapped_ram_words(s->block), sizeof *s->bitmap);
	if (!s->bitmap || claims_init(&s->claims, mapped_ram_pages(s->block)) ||
	    pool_init(&s->pool, s->config.pool_pages))
		return ft_err_set(err, ENOMEM, "out of memory");
	return 0;
}

static int start(struct snapshot *s, struct ft_err *err)
{
	sigset_t all, before;
	int rc = s->config.disks ? disks_start(s->config.disks, &s->pace, on_disk_failed, s, err)
				 : 0;

	if (rc)
		return rc;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&s->thread, NULL, run, s);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return rc ? ft_err_set(err, rc, "a thread: %s", strerror(rc)) : 0;
}

static void init_lock(struct snapshot *s)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&s->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&s->change, &attr);
	pthread_cond_init(&s->ended, &attr);
	pthread_condattr_destroy(&attr);
}

static void snapshot_free(struct snapshot *s)
{
	if (!s)
		return;
	if (s->config.disks)
		disks_close(s->config.disks);
	frozen_close(s->frozen);
	if (s->config.keeper)
		keeper_serving_end(s->config.keeper);
	out_file_discard(&s->file);
	claims_free(&s->claims);
	pool_free(&s->pool);
	pthread_cond_destroy(&s->change);
	pthread_cond_destroy(&s->ended);
	pthread_mutex_destroy(&s->lock);
	pace_destroy(&s->pace);
	free(s->bitmap);
	free(s->tail);
	free(s);
}

/* Everything but the moment: RAM is protected when this returns 0. *out is to be freed also on
 * error. */
static int prepare(const struct snapshot_config *config, const struct vmm_ram *ram,
		   struct snapshot **out, struct ft_err *err)
{
	struct snapshot *s = *out = calloc(1, sizeof *s);
	struct frozen_ops ops = {.fault = on_fault, .alive = on_alive, .ctx = s};
	int rc;

	assert(config->jobs > 0 && config->jobs <= SNAPSHOT_JOBS_MAX);
	if (!s) {
		disks_close(config->disks);
		return ft_err_set(err, ENOMEM, "out of memory");
	}
	s->config = *config;
	if (!s->config.pool_pages)
		s->config.pool_pages = SNAPSHOT_POOL_PAGES;
	if (!s->config.stall_max_ms)
		s->config.stall_max_ms = SNAPSHOT_STALL_MAX_MS;
	s->file = (struct out_file){.fd = -1, .direct_fd = -1, .dir_fd = -1};
	init_lock(s);
	pace_init(&s->pace, config->bytes_per_s);
	make_layout(s, ram);
	rc = make_room(s, err);
	if (!rc)
		rc = out_file_open(&s->file, config->path, s->layout.state_offset, config->direct,
				   err);
	/* From now on the guest may wait for us. */
	if (!rc && config->keeper)
		keeper_serving(config->keeper);
	return rc ? rc : frozen_open(ram, &ops, &s->frozen, err);
}

static int begun(struct snapshot *s, int rc, struct snapshot **out, struct ft_err *err)
{
	if (!rc)
		rc = start(s, err);
	if (!rc) {
		*out = s;
		return 0;
	}
	snapshot_free(s);
	return ft_err_context(err, "snapshot");
}

int snapshot_begin(const struct snapshot_config *config, struct vmm *vmm, struct snapshot **out,
		   struct ft_err *err)
{
	struct snapshot *s;
	struct vmm_ram ram;
	int rc;

	vmm_ram(vmm, &ram);
	rc = prepare(config, &ram, &s, err);
	if (!rc)
		rc = take_moment(s, vmm, err);
	return begun(s, rc, out, err);
}

int snapshot_begin_image(const struct snapshot_config *config, struct vmm *vmm,
			 const uint8_t *state, size_t len, struct snapshot **out,
			 struct ft_err *err)
{
	struct snapshot *s;
	struct vmm_ram ram;
	int rc;

	vmm_ram(vmm, &ram);
	/* As this process has it mapped, for it is the one that writes. */
	ram.pid = 0;
	ram.pidfd = -1;
	ram.address = (uintptr_t)vmm_image(vmm);
	rc = prepare(config, &ram, &s, err);
	if (!rc)
		rc = on_held(&(struct moment){s, vmm}, err);
	if (!rc)
		rc = pack_state(s, vmm, state, len, err);
	return begun(s, rc, out, err);
}

void snapshot_progress(const struct snapshot *s, struct snapshot_progress *p)
{
	struct frozen_stats stats;

	frozen_stats(s->frozen, &stats);
	*p = (struct snapshot_progress){.pages = mapped_ram_pages(s->block),
					.pages_done = s->done,
					.pages_written = s->written,
					.faults = stats.faults,
					.fault_us_max = stats.fault_ns_max / 1000,
					.pause_us = s->pause_ns / 1000,
					.digest = s->digest};
	if (s->config.disks)
		disks_progress(s->config.disks, &p->disks);
}

void snapshot_cancel(struct snapshot *s, const char *why)
{
	struct ft_err err = {0};

	ft_err_set(&err, ECANCELED, "%s", why);
	give_up_unless(s, true, &err);
}

int snapshot_end(struct snapshot *s, struct snapshot_progress *p, struct ft_err *err)
{
	int rc;

	pthread_join(s->thread, NULL);
	snapshot_progress(s, p);
	rc = -s->err.code;
	if (rc && err) {
		*err = s->err;
		ft_err_context(err, "snapshot");
	}
	snapshot_free(s);
	return rc;
}
