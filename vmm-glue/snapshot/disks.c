// SPDX-License-Identifier: Apache-2.0
// Threads: the VM's (open, moment, start, close), one worker for each disk, and the snapshot's own,
// which finishes. A disk's target belongs to its worker until that was joined.
#include "vmm-glue/snapshot/disks.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "eventtap/block/cow.h"
#include "eventtap/block/disk_tap.h"
#include "eventtap/block/marks.h"
#include "vmm-glue/snapshot/companions.h"
#include "vmm-glue/snapshot/disks_folder.h"
#include "vmm-glue/snapshot/disk_target.h"

#define WORKER_NICE 5
#define WAIT_MS	    100

struct disk {
	struct disks *all;
	const char *id;
	struct tap *tap;
	struct store *store;
	struct disk_target target;
	bool joined; /* no worker has it */
	bool watched;
	struct cow *cow;
	uint64_t digest; /* verify: in the pause */
	uint64_t bytes;
	bool unknown;
	pthread_t worker;
};

struct disks {
	/* set at open */
	char path[OUT_FILE_PATH_MAX];
	uint64_t number;
	bool verify, settled;
	struct disks_since *since;
	char *description;
	unsigned n;
	struct disk disks[VMM_DISKS_MAX];
	/* set at start */
	struct pace *pace;
	void (*failed)(void *ctx, const struct ft_err *err);
	void *ctx;
	atomic_flag told;
};

// ---- workers

static int wrote(struct disk *disk, int rc)
{
	struct ft_err err = {0};

	if (rc) {
		ft_err_set(&err, -rc, "%s: %s", disk_target_path(&disk->target), strerror(-rc));
		cow_cancel(disk->cow, &err);
	}
	return rc;
}

/* cow_config.write */
static int write_piece(void *ctx, uint64_t offset, const uint8_t *data, size_t len)
{
	struct disk *disk = ctx;

	return wrote(disk, disk_target_write(&disk->target, offset, data, len));
}

/* cow_config.zeroes */
static int write_zeroes(void *ctx, uint64_t offset, uint64_t len)
{
	struct disk *disk = ctx;

	return wrote(disk, disk_target_zeroes(&disk->target, offset, len));
}

/* Milliseconds until the image's order may go on; 0: now. */
static unsigned wait_ms(struct pace *pace)
{
	uint64_t next = pace_next_ns(pace), now;
	struct timespec ts;

	if (!next)
		return 0;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	now = (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
	if (next <= now)
		return 0;
	return next - now > WAIT_MS * 1000000ull ? WAIT_MS : (unsigned)((next - now) / 1000000) + 1;
}

static void *work(void *ctx)
{
	struct disk *disk = ctx;
	struct disks *d = disk->all;
	struct ft_err err = {0};

	(void)setpriority(PRIO_PROCESS, (id_t)gettid(), WORKER_NICE);
	for (;;) {
		unsigned ms = wait_ms(d->pace);
		uint64_t paid = 0;
		enum cow_step step = cow_step(disk->cow, !ms, &paid);

		if (step == COW_DONE)
			break;
		if (step == COW_WAIT)
			cow_wait(disk->cow, ms ? ms : WAIT_MS);
		pace_pay(d->pace, paid);
	}
	if (cow_error(disk->cow, &err) && !atomic_flag_test_and_set(&d->told)) {
		ft_err_context(&err, "disk %s", disk->id);
		d->failed(d->ctx, &err);
	}
	return NULL;
}

static void join(struct disk *disk)
{
	if (!disk->joined)
		pthread_join(disk->worker, NULL);
	disk->joined = true;
}

int disks_start(struct disks *d, struct pace *pace,
		void (*failed)(void *ctx, const struct ft_err *err), void *ctx, struct ft_err *err)
{
	sigset_t all, before;
	int rc = 0;

	d->pace = pace;
	d->failed = failed;
	d->ctx = ctx;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	for (unsigned i = 0; i < d->n && !rc; i++) {
		rc = pthread_create(&d->disks[i].worker, NULL, work, &d->disks[i]);
		d->disks[i].joined = rc != 0;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return rc ? ft_err_set(err, rc, "a thread: %s", strerror(rc)) : 0;
}

void disks_cancel(struct disks *d, const struct ft_err *why)
{
	for (unsigned i = 0; i < d->n; i++)
		cow_cancel(d->disks[i].cow, why);
}

void disks_progress(struct disks *d, struct disks_progress *p)
{
	*p = (struct disks_progress){.n = d->n};
	for (unsigned i = 0; i < d->n; i++) {
		struct cow_progress one;

		cow_progress(d->disks[i].cow, &one);
		p->bytes += one.bytes;
		p->bytes_done += one.bytes_done;
		p->bytes_written += d->disks[i].target.bytes_written;
		p->copied += one.copied;
		p->unknown += d->disks[i].unknown;
	}
}

// ---- the moment

/* Of an older one, what was written since. */
static int choose(struct disks *d, unsigned i, struct ft_err *err)
{
	struct disk *disk = &d->disks[i];
	const struct disk_old *old = disk->target.old;
	struct ft_bitmap blocks;

	if (ft_bitmap_init(&blocks, marks_blocks(disk->bytes)))
		return ft_err_set(err, ENOMEM, "out of memory");
	disk->unknown = !disks_since_moment(d->since, i, old ? old->known_as : "", &blocks) && old;
	if (old)
		cow_only(disk->cow, &blocks);
	ft_bitmap_free(&blocks);
	return 0;
}

int disks_moment(struct disks *d, struct ft_err *err)
{
	int rc = 0;

	for (unsigned i = 0; i < d->n && !rc; i++) {
		struct disk *disk = &d->disks[i];

		rc = disk->tap ? disk_tap_watch(disk->tap, disk->cow, err)
			       : store_watch(disk->store, disk->cow, err);
		disk->watched = !rc;
		if (!rc && d->since)
			rc = choose(d, i, err);
		if (!rc && d->verify)
			rc = cow_digest(disk->cow, &disk->digest, err);
	}
	return rc;
}

// ---- the end

int disks_finish(struct disks *d, struct ft_err *err)
{
	int rc = 0;

	for (unsigned i = 0; i < d->n && !rc; i++) {
		struct disk *disk = &d->disks[i];

		join(disk);
		rc = cow_error(disk->cow, err);
		if (!rc)
			rc = disk_target_finish(&disk->target, d->verify ? &disk->digest : NULL,
						err);
		if (rc)
			ft_err_context(err, "disk %s", disk->id);
	}
	return rc;
}

void disks_settle(struct disks *d)
{
	d->settled = true;
	if (!d->description)
		return;
	disks_keep(d);
	disks_folder_clean(d->path, d->number);
}

void disks_keep(struct disks *d)
{
	for (unsigned i = 0; i < d->n; i++)
		disk_target_keep(&d->disks[i].target);
}

// ---- open, close

static int check_size(const struct disks_config *config, struct ft_err *err)
{
	uint64_t bytes = 0;
	struct stat st;

	for (unsigned i = 0; i < config->n; i++)
		if (!stat(config->disks[i].image, &st))
			bytes += S_ISREG(st.st_mode) ? (uint64_t)st.st_blocks * 512
						     : config->disks[i].bytes;
	if (!config->verify || bytes <= DISKS_VERIFY_MAX)
		return 0;
	return ft_err_set(err, EFBIG,
			  "verify: the disks have %" PRIu64
			  " MiB: to digest more than %llu would hold the guest for too long",
			  bytes >> 20, DISKS_VERIFY_MAX >> 20);
}

static int open_image(struct disks *d, unsigned i, bool direct, struct companions *c,
		      struct ft_err *err)
{
	struct disk *disk = &d->disks[i];
	struct companion *name = &c->disks[i];
	char path[OUT_FILE_PATH_MAX];
	int rc = disks_folder_name(d->path, disk->id, i, d->number, path, name->file, err);

	if (rc)
		return rc;
	snprintf(name->id, sizeof name->id, "%s", disk->id);
	name->bytes = disk->bytes;
	c->n = d->n;
	return disk_target_open_image(&disk->target, path, disk->bytes, direct, err);
}

static int open_changes(struct disks *d, unsigned i, const struct disk_old *old, uint32_t id,
			struct ft_err *err)
{
	struct disk *disk = &d->disks[i];

	if (old->source->disk_bytes != disk->bytes)
		return ft_err_set(err, EINVAL,
				  "has %" PRIu64 " bytes, and had %" PRIu64
				  " in the snapshot: take a whole one",
				  disk->bytes, old->source->disk_bytes);
	return disk_target_open_changes(&disk->target, old, id, err);
}

static int open_disk(struct disks *d, const struct disks_config *config, struct companions *c,
		     struct ft_err *err)
{
	unsigned i = d->n;
	struct disk *disk = &d->disks[i];
	const struct disk_old *old = config->disks[i].old;
	struct cow_config cow = {.image = config->disks[i].image,
				 .stall_max_ms = config->stall_max_ms,
				 .write = write_piece,
				 .zeroes = old ? write_zeroes : NULL,
				 .ctx = disk};
	struct cow_progress p;
	int rc;

	*disk = (struct disk){.all = d,
			      .id = config->disks[i].id,
			      .tap = config->disks[i].tap,
			      .store = config->disks[i].store,
			      .joined = true};
	disk_target_init(&disk->target);
	rc = cow_new(&cow, &disk->cow, err);
	if (rc)
		return rc;
	d->n++;
	cow_progress(disk->cow, &p);
	disk->bytes = p.bytes;
	assert(!old || d->since);
	if (d->since)
		rc = disks_since_watch(d->since, i, p.bytes, disk->tap, disk->store, err);
	if (rc)
		return rc;
	return old ? open_changes(d, i, old, config->id, err)
		   : open_image(d, i, config->direct, c, err);
}

static int open_all(struct disks *d, const struct disks_config *config, struct ft_err *err)
{
	struct companions c = {0};
	int rc = check_size(config, err);

	if (!rc && getrandom(&d->number, sizeof d->number, 0) != sizeof d->number)
		rc = ft_err_set(err, EIO, "no random numbers");
	while (!rc && d->n < config->n) {
		const char *id = config->disks[d->n].id;

		rc = open_disk(d, config, &c, err);
		if (rc)
			ft_err_context(err, "disk %s", id);
	}
	if (!rc && c.n && !(d->description = companions_describe(&c)))
		rc = ft_err_set(err, ENOMEM, "out of memory");
	return rc;
}

int disks_open(const struct disks_config *config, struct disks **out, struct ft_err *err)
{
	struct disks *d = calloc(1, sizeof *d);
	int rc;

	assert(config->n <= VMM_DISKS_MAX);
	if (!d)
		return ft_err_set(err, ENOMEM, "snapshot: out of memory");
	snprintf(d->path, sizeof d->path, "%s", config->path);
	d->verify = config->verify;
	d->since = config->since;
	atomic_flag_clear(&d->told);
	rc = open_all(d, config, err);
	if (rc) {
		disks_close(d);
		return ft_err_context(err, "snapshot");
	}
	*out = d;
	return 0;
}

const char *disks_description(const struct disks *d)
{
	return d->description;
}

static void close_disk(struct disk *disk)
{
	join(disk);
	if (disk->watched && disk->tap)
		disk_tap_unwatch(disk->tap);
	else if (disk->watched)
		store_unwatch(disk->store);
	disk_target_close(&disk->target);
	cow_unref(disk->cow);
}

void disks_close(struct disks *d)
{
	struct ft_err why = {0};

	if (!d)
		return;
	ft_err_set(&why, ECANCELED, "given up");
	disks_cancel(d, &why);
	for (unsigned i = 0; i < d->n; i++) {
		if (d->settled && d->since)
			disks_since_saved(d->since, i, disk_target_saved_as(&d->disks[i].target));
		close_disk(&d->disks[i]);
	}
	free(d->description);
	free(d);
}
