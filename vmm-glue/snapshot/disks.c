// SPDX-License-Identifier: Apache-2.0
// Threads: the VM's (open, moment, start, close), one worker for each disk, and the snapshot's own,
// which finishes. A disk's file belongs to its worker until that was joined.
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
#include <xxhash.h>

#include "eventtap/block/cow.h"
#include "eventtap/block/disk_tap.h"
#include "vmm-glue/snapshot/companions.h"
#include "vmm-glue/snapshot/disks_folder.h"
#include "vmm-glue/snapshot/out_file.h"

#define WORKER_NICE 5
#define WAIT_MS	    100

struct disk {
	struct disks *all;
	const char *id;
	struct tap *tap;
	struct store *store;
	struct out_file file;
	int lock_fd; /* the file's, after it has its name, until all of the set have */
	bool named;
	bool joined; /* no worker has it */
	bool watched;
	struct cow *cow;
	uint64_t digest; /* verify: in the pause */
	pthread_t worker;
};

struct disks {
	/* set at open */
	char path[OUT_FILE_PATH_MAX];
	uint64_t number;
	bool verify;
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

/* cow_config.write */
static int write_piece(void *ctx, uint64_t offset, const uint8_t *data, size_t len)
{
	struct disk *disk = ctx;
	bool whole = len % COW_PAGE_BYTES == 0;
	int rc = out_file_write(&disk->file, data, len, offset, whole);

	if (rc) {
		struct ft_err err = {0};

		ft_err_set(&err, -rc, "%s: %s", disk->file.path, strerror(-rc));
		cow_cancel(disk->cow, &err);
	}
	return rc;
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
		p->bytes_written += one.bytes_written;
		p->copied += one.copied;
	}
}

// ---- the moment

int disks_moment(struct disks *d, struct ft_err *err)
{
	int rc = 0;

	for (unsigned i = 0; i < d->n && !rc; i++) {
		struct disk *disk = &d->disks[i];

		rc = disk->tap ? disk_tap_watch(disk->tap, disk->cow, err)
			       : store_watch(disk->store, disk->cow, err);
		disk->watched = !rc;
		if (!rc && d->verify)
			rc = cow_digest(disk->cow, &disk->digest, err);
	}
	return rc;
}

// ---- the end

static int verify(const struct disk *disk, struct ft_err *err)
{
	struct cow_config config = {.image = disk->file.part, .stall_max_ms = 1, .pool_blocks = 1};
	struct cow *file;
	uint64_t digest = 0;
	int rc = cow_new(&config, &file, err);

	if (rc)
		return rc;
	rc = cow_digest(file, &digest, err);
	cow_unref(file);
	if (!rc && digest != disk->digest)
		rc = ft_err_set(err, EBADMSG,
				"verify: the file has digest %016" PRIx64
				", the disk had %016" PRIx64,
				digest, disk->digest);
	return rc;
}

int disks_finish(struct disks *d, struct ft_err *err)
{
	int rc = 0;

	for (unsigned i = 0; i < d->n && !rc; i++) {
		struct disk *disk = &d->disks[i];

		join(disk);
		rc = cow_error(disk->cow, err);
		if (!rc && d->verify)
			rc = verify(disk, err);
		disk->lock_fd = dup(disk->file.fd);
		if (!rc)
			rc = out_file_commit(&disk->file, err);
		disk->named = !rc;
		if (rc)
			ft_err_context(err, "disk %s", disk->id);
	}
	return rc;
}

void disks_settle(struct disks *d)
{
	for (unsigned i = 0; i < d->n; i++)
		d->disks[i].named = false; /* not ours to remove any more */
	disks_folder_clean(d->path, d->number);
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

static int open_disk(struct disks *d, const struct disks_config *config, struct companions *c,
		     struct ft_err *err)
{
	unsigned i = d->n;
	struct disk *disk = &d->disks[i];
	struct companion *name = &c->disks[i];
	char path[OUT_FILE_PATH_MAX];
	struct cow_config cow = {.image = config->disks[i].image,
				 .stall_max_ms = config->stall_max_ms,
				 .write = write_piece,
				 .ctx = disk};
	struct cow_progress p;
	int rc;

	*disk = (struct disk){.all = d,
			      .id = config->disks[i].id,
			      .tap = config->disks[i].tap,
			      .store = config->disks[i].store,
			      .joined = true,
			      .lock_fd = -1,
			      .file = {.fd = -1, .direct_fd = -1, .dir_fd = -1}};
	rc = cow_new(&cow, &disk->cow, err);
	if (rc)
		return rc;
	d->n++;
	cow_progress(disk->cow, &p);
	rc = disks_folder_name(d->path, disk->id, i, d->number, path, name->file, err);
	if (rc)
		return rc;
	snprintf(name->id, sizeof name->id, "%s", disk->id);
	name->bytes = p.bytes;
	c->n = d->n;
	return out_file_open(&disk->file, path, p.bytes, config->direct, err);
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
	if (!rc && !(d->description = companions_describe(&c)))
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
	out_file_discard(&disk->file);
	if (disk->named)
		(void)unlink(disk->file.path);
	if (disk->lock_fd >= 0)
		close(disk->lock_fd);
	cow_unref(disk->cow);
}

void disks_close(struct disks *d)
{
	struct ft_err why = {0};

	if (!d)
		return;
	ft_err_set(&why, ECANCELED, "given up");
	disks_cancel(d, &why);
	for (unsigned i = 0; i < d->n; i++)
		close_disk(&d->disks[i]);
	free(d->description);
	free(d);
}
