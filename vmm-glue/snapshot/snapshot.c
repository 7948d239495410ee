// SPDX-License-Identifier: Apache-2.0
// Threads: the VM's (begin, end), those that save pages (snapshot_pages.c), and one that starts the
// workers and brings the file to its end.
#include "vmm-glue/snapshot/snapshot_internal.h"

#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "vmm-glue/snapshot/frame.h"
#include "vmm-glue/snapshot/update.h"
#include "vmm-glue/snapshot/urgency.h"

#define JOBS_ENOUGH 4 /* memory is not copied quicker by more */

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

void snapshot_fail(struct snapshot *s, const struct ft_err *err)
{
	give_up_unless(s, false, err);
}

/* frozen_ops.alive: a stopped agent would stop the guest at its next write, so its keeper must see
 * that this one is not. */
static void on_alive(void *ctx)
{
	struct snapshot *s = ctx;

	if (s->config.keeper)
		keeper_serving(s->config.keeper);
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
		snapshot_fail(s, &err);
	else if (s->committing && s->config.disks)
		disks_settle(s->config.disks);
	if (!s->failed)
		update_forget(s->config.path);
}

/* On a thread of a disk's. */
static void on_disk_failed(void *ctx, const struct ft_err *err)
{
	snapshot_fail(ctx, err);
}

/* With all signals blocked, which the workers inherit. */
static void *run(void *ctx)
{
	struct snapshot *s = ctx;
	pthread_t workers[SNAPSHOT_JOBS_MAX];
	struct ft_err err = {0};
	unsigned n = 0;

	for (; n < s->config.jobs; n++)
		if (pthread_create(&workers[n], NULL, snapshot_worker, s))
			break;
	if (!n) {
		ft_err_set(&err, EAGAIN, "no thread for a worker");
		snapshot_fail(s, &err);
	}
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
	s->near = aligned_alloc(VMM_PAGE_BYTES, SNAPSHOT_NEAR_PAGES * (size_t)VMM_PAGE_BYTES);
	if (!s->bitmap || !s->near || claims_init(&s->claims, mapped_ram_pages(s->block)) ||
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

	urgency_lock_init(&s->lock);
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
	free(s->near);
	free(s->tail);
	free(s);
}

/* Everything but the moment: RAM is protected when this returns 0. *out is to be freed also on
 * error. */
static int prepare(const struct snapshot_config *config, const struct vmm_ram *ram,
		   struct snapshot **out, struct ft_err *err)
{
	struct snapshot *s = *out = calloc(1, sizeof *s);
	struct frozen_ops ops = {.fault = snapshot_on_fault, .alive = on_alive, .ctx = s};
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

unsigned snapshot_jobs(unsigned guest_cpus)
{
	unsigned ours = 1;
	cpu_set_t all;

	if (!sched_getaffinity(0, sizeof all, &all) && (unsigned)CPU_COUNT(&all) > guest_cpus)
		ours = (unsigned)CPU_COUNT(&all) - guest_cpus;
	return ours < JOBS_ENOUGH ? ours : JOBS_ENOUGH;
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
