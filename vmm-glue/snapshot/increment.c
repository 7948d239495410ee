// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/snapshot/increment.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "vmm-glue/snapshot/increment_internal.h"
#include "vmm-glue/snapshot/ram_read.h"
#include "vmm-glue/snapshot/update.h"

// ---- the VM's thread

static int on_held(void *ctx, struct ft_err *err)
{
	struct increment *inc = ctx;
	size_t n = 0;
	int rc = since_more(inc->since, &inc->pending, err);

	if (!rc && inc->pending.count > INCREMENT_PAUSE_PAGES)
		rc = ft_err_set(err, EAGAIN,
				"the guest writes faster than the storage: %" PRIu64
				" MiB would have to be copied in its pause: take a whole snapshot",
				inc->pending.count * VMM_PAGE_BYTES >> 20);
	for (uint64_t pfn = ft_bitmap_next(&inc->pending, 0); pfn < inc->pending.bits && !rc;
	     pfn = ft_bitmap_next(&inc->pending, pfn + 1))
		inc->staged[n++] = pfn;
	if (rc)
		return rc;
	rc = ram_gather(&inc->ram, inc->staged, n, inc->staging);
	if (rc)
		ft_err_set(err, -rc, "the guest's RAM cannot be read: %s", strerror(-rc));
	return rc;
}

struct moment {
	struct increment *inc;
	struct vmm *vmm;
};

static int on_held_verify(void *ctx, struct ft_err *err)
{
	struct moment *m = ctx;
	int rc = on_held(m->inc, err);

	if (!rc && m->inc->config.verify)
		rc = vmm_ram_digest(m->vmm, &m->inc->digest, err);
	if (!rc && m->inc->disks)
		rc = disks_moment(m->inc->disks, err);
	return rc;
}

static int pack_state(struct increment *inc, struct vmm *vmm, const uint8_t *state, size_t len,
		      struct ft_err *err)
{
	struct vmm_info info;

	const char *disks = inc->old.description;

	vmm_info(vmm, &info);
	inc->tail = malloc(len + MAPPED_RAM_TAIL_MAX + (disks ? strlen(disks) : 0));
	if (!inc->tail)
		return ft_err_set(err, ENOMEM, "device state: out of memory");
	inc->tail_len = mapped_ram_pack_state(info.kind, state, len, inc->tail);
	if (disks)
		inc->tail_len = mapped_ram_describe(inc->tail, inc->tail_len, disks);
	return 0;
}

static int take_moment(struct increment *inc, struct vmm *vmm, struct ft_err *err)
{
	struct vmm_capture capture = {.state = malloc(VMM_STATE_BYTES_MAX)};
	struct moment moment = {inc, vmm};
	int rc = capture.state ? 0 : ft_err_set(err, ENOMEM, "device state: out of memory");

	if (!rc)
		rc = vmm_save(vmm, &capture, on_held_verify, &moment, err);
	if (!rc)
		rc = pack_state(inc, vmm, capture.state, capture.state_len, err);
	inc->pause_ns = capture.pause_ns;
	free(capture.state);
	return rc;
}

void increment_stamp(struct increment *inc, uint64_t generation, uint64_t epoch, uint64_t time_ms)
{
	inc->journal.head.generation = generation;
	inc->journal.head.epoch = epoch;
	inc->journal.head.time_ms = time_ms;
}

/* disks.h; on a thread of a disk's. */
static void on_disk_failed(void *ctx, const struct ft_err *err)
{
	increment_give_up(ctx, err);
}

void increment_moment(struct increment *inc, struct vmm *vmm, const uint8_t *state, size_t len)
{
	struct ft_err err = {0};
	int rc;

	assert(inc->wants == INCREMENT_MOMENT);
	if (state) {
		rc = on_held_verify(&(struct moment){inc, vmm}, &err);
		if (!rc)
			rc = pack_state(inc, vmm, state, len, &err);
	} else {
		rc = take_moment(inc, vmm, &err);
	}
	if (!rc && inc->disks)
		rc = disks_start(inc->disks, &inc->pace, on_disk_failed, inc, &err);
	if (rc)
		increment_give_up(inc, &err);
	pthread_mutex_lock(&inc->lock);
	/* A disk may have failed already, and the worker be at its end. */
	if (inc->wants == INCREMENT_MOMENT)
		inc->wants = INCREMENT_NOTHING;
	pthread_cond_broadcast(&inc->change);
	pthread_mutex_unlock(&inc->lock);
}

static void init_lock(struct increment *inc)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&inc->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&inc->change, &attr);
	pthread_condattr_destroy(&attr);
}

static void increment_free(struct increment *inc)
{
	disks_close(inc->disks);
	disks_old_close(&inc->old);
	pace_destroy(&inc->pace);
	changes_close(&inc->journal, false);
	source_close(&inc->source);
	if (inc->fd >= 0)
		close(inc->fd);
	ram_drop(&inc->ram);
	ft_bitmap_free(&inc->pending);
	free(inc->staging);
	free(inc->staged);
	free(inc->buffer);
	free(inc->tail);
	pthread_cond_destroy(&inc->change);
	pthread_mutex_destroy(&inc->lock);
	free(inc);
}

/* The file is one that snapshot_begin() could have written of this guest. */
static int check_layout(const struct increment *inc, struct ft_err *err)
{
	const struct mapped_ram *m = &inc->source.layout;
	const struct mapped_ram_block *b = &m->blocks[0], *want;
	struct mapped_ram plan = {.blocks_n = 1};

	memcpy(plan.machine, inc->ram.machine, sizeof inc->ram.machine);
	memcpy(plan.blocks[0].name, inc->ram.block, sizeof inc->ram.block);
	plan.blocks[0].bytes = inc->ram.bytes;
	mapped_ram_plan(&plan);
	want = &plan.blocks[0];
	if (m->blocks_n == 1 && !strcmp(m->machine, plan.machine) && !strcmp(b->name, want->name) &&
	    b->bytes == want->bytes && b->bitmap_offset == want->bitmap_offset &&
	    b->pages_offset == want->pages_offset && m->state_offset == plan.state_offset)
		return 0;
	return ft_err_set(err, EINVAL,
			  "%s: is of another machine, or QEMU wrote it: it cannot be updated; take "
			  "a whole snapshot",
			  inc->path);
}

/* The guest's, and those of the older snapshot, are the same. */
static int open_disks(struct increment *inc, struct ft_err *err)
{
	struct disks_config config;
	unsigned n = inc->config.disks ? inc->config.disks->n : 0;

	if (n != inc->old.n)
		return ft_err_set(err, EINVAL,
				  "%s: has %u disks, and %u are to be saved: take a "
				  "whole snapshot",
				  inc->path, inc->old.n, n);
	if (!n)
		return 0;
	config = *inc->config.disks;
	config.verify = inc->config.verify;
	config.id = inc->journal.head.id;
	for (unsigned i = 0; i < n; i++) {
		config.disks[i].old = disks_old_find(&inc->old, config.disks[i].id);
		if (!config.disks[i].old)
			return ft_err_set(err, EINVAL, "%s: has no disk %s: take a whole snapshot",
					  inc->path, config.disks[i].id);
	}
	return disks_open(&config, &inc->disks, err);
}

static int open_file(struct increment *inc, struct ft_err *err)
{
	int rc;

	inc->fd = update_open(inc->path, err);
	if (inc->fd < 0)
		return inc->fd;
	rc = source_open_fd(inc->fd, inc->path, &inc->source, err);
	return rc ? rc : check_layout(inc, err);
}

static int create_journal(struct increment *inc, struct ft_err *err)
{
	const struct mapped_ram *m = &inc->source.layout;
	struct changes_head head = {.ram_bytes = inc->ram.bytes,
				    .bitmap_offset = inc->source.ram->bitmap_offset,
				    .pages_offset = inc->source.ram->pages_offset,
				    .state_offset = m->state_offset};
	char path[CHANGES_PATH_MAX];

	while (!head.id)
		if (getrandom(&head.id, sizeof head.id, 0) != sizeof head.id)
			return ft_err_set(err, errno, "getrandom: %s", strerror(errno));
	if (!update_journal_path(inc->path, path))
		return ft_err_set(err, ENAMETOOLONG, "%.64s...: path too long", inc->path);
	return changes_create(&inc->journal, path, &head, err);
}

static int open_link(struct increment *inc, const struct increment_link *link, struct ft_err *err)
{
	int rc;

	inc->source = *link->from;
	inc->source.ram = inc->source.layout.blocks + (link->from->ram - link->from->layout.blocks);
	inc->old = *link->old;
	rc = check_layout(inc, err);
	return rc ? rc : changes_create(&inc->journal, link->path, &link->head, err);
}

/* What belongs to the caller still. */
static void give_back(struct increment *inc)
{
	if (!inc->is_link)
		return;
	inc->source.fd = -1;
	inc->source.bitmap = NULL;
	inc->source.layers = NULL;
	inc->old = (struct disks_old){0};
}

static void take_over(const struct increment_link *link)
{
	link->from->fd = -1;
	link->from->bitmap = NULL;
	link->from->layers = NULL;
	*link->old = (struct disks_old){0};
}

static int open_all(struct increment *inc, struct ft_err *err)
{
	int rc;

	if (inc->is_link)
		return open_link(inc, inc->config.link, err);
	rc = open_file(inc, err);
	if (!rc)
		rc = create_journal(inc, err);
	return rc ? rc : disks_old_open(&inc->source, inc->journal.path, true, &inc->old, err);
}

static int make_room(struct increment *inc, struct ft_err *err)
{
	inc->staging =
		aligned_alloc(VMM_PAGE_BYTES, (size_t)INCREMENT_PAUSE_PAGES * VMM_PAGE_BYTES);
	inc->buffer = aligned_alloc(VMM_PAGE_BYTES, (size_t)INCREMENT_RUN_PAGES * VMM_PAGE_BYTES);
	inc->staged = malloc(INCREMENT_PAUSE_PAGES * sizeof *inc->staged);
	if (!inc->staging || !inc->staged || !inc->buffer ||
	    ft_bitmap_init(&inc->pending, inc->ram.bytes / VMM_PAGE_BYTES))
		return ft_err_set(err, ENOMEM, "out of memory");
	return 0;
}

static int watch(struct increment *inc, struct since **since, struct ft_err *err)
{
	bool known;
	int rc = 0;

	if (*since && !since_is_of(*since, &inc->ram)) {
		since_free(*since);
		*since = NULL;
	}
	if (!*since)
		rc = since_new(&inc->ram, since, err);
	inc->since = *since;
	if (!rc)
		rc = since_begin(*since, inc->path, &inc->pending, &known, err);
	inc->left = inc->pending.count;
	return rc;
}

static int start(struct increment *inc, struct ft_err *err)
{
	sigset_t all, before;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&inc->thread, NULL, increment_work, inc);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return rc ? ft_err_set(err, rc, "a thread: %s", strerror(rc)) : 0;
}

static void find_ram(struct increment *inc, struct vmm *vmm)
{
	vmm_ram(vmm, &inc->ram);
	if (!inc->config.is_image)
		return;
	inc->ram.pid = 0;
	inc->ram.pidfd = -1;
	inc->ram.address = (uintptr_t)vmm_image(vmm);
}

int increment_begin(const struct increment_config *config, struct vmm *vmm, struct since **since,
		    struct increment **out, struct ft_err *err)
{
	struct increment *inc = calloc(1, sizeof *inc);
	const char *path;
	int rc;

	if (!inc)
		return ft_err_set(err, ENOMEM, "snapshot: out of memory");
	inc->config = *config;
	inc->is_link = config->link != NULL;
	path = inc->is_link ? config->link->last : config->path;
	assert(strlen(path) < sizeof inc->path);
	memcpy(inc->path, path, strlen(path) + 1);
	if (inc->is_link)
		inc->added = config->link->added;
	inc->fd = inc->source.fd = inc->journal.fd = -1;
	init_lock(inc);
	pace_init(&inc->pace, config->bytes_per_s);
	find_ram(inc, vmm);
	rc = ram_keep(&inc->ram) ? ft_err_set(err, EMFILE, "no descriptors") : 0;
	if (!rc)
		rc = open_all(inc, err);
	if (!rc)
		rc = open_disks(inc, err);
	if (!rc)
		rc = make_room(inc, err);
	if (!rc)
		rc = watch(inc, since, err);
	if (!rc)
		rc = start(inc, err);
	if (rc) {
		/* Those that look at what is given back first. */
		disks_close(inc->disks);
		inc->disks = NULL;
		give_back(inc);
		increment_free(inc);
		return ft_err_context(err, config->link ? "history" : "snapshot");
	}
	if (config->link)
		take_over(config->link);
	*out = inc;
	return 0;
}

enum increment_wants increment_wants(struct increment *inc)
{
	enum increment_wants wants;

	pthread_mutex_lock(&inc->lock);
	/* Who was given up needs no moment. */
	wants = inc->wants == INCREMENT_MOMENT && inc->failed ? INCREMENT_NOTHING : inc->wants;
	pthread_mutex_unlock(&inc->lock);
	return wants;
}

void increment_progress(const struct increment *inc, struct snapshot_progress *p)
{
	uint64_t pages = inc->ram.bytes / VMM_PAGE_BYTES, left = inc->left;

	*p = (struct snapshot_progress){.pages = pages,
					.pages_done = pages - left,
					.pages_written = inc->written,
					.pause_us = inc->pause_ns / 1000,
					.digest = inc->digest};
	if (inc->disks)
		disks_progress(inc->disks, &p->disks);
}

void increment_cancel(struct increment *inc, const char *why)
{
	struct ft_err err = {0};

	ft_err_set(&err, ECANCELED, "%s", why);
	pthread_mutex_lock(&inc->lock);
	if (!inc->applying)
		increment_give_up_locked(inc, &err);
	pthread_mutex_unlock(&inc->lock);
}

int increment_end(struct increment *inc, struct snapshot_progress *p, struct ft_err *err)
{
	int rc;

	pthread_join(inc->thread, NULL);
	increment_progress(inc, p);
	rc = -inc->err.code;
	if (!rc)
		since_saved(inc->since, inc->is_link ? inc->journal.path : inc->path);
	else if (err) {
		*err = inc->err;
		ft_err_context(err, inc->is_link ? "history" : "snapshot");
	}
	increment_free(inc);
	return rc;
}
