// SPDX-License-Identifier: Apache-2.0
// Writing: the engine's thread puts records and, last, the entry's header into the page cache; the
// journal's thread makes them durable. Who is asked again while it is busy does all in the next go.
#include "eventtap/block/journal.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>
#include <xxhash.h>

#include "eventtap/block/journal_format.h"
#include "eventtap/block/record.h"
#include "eventtap/block/worker.h"
#include "ft/file_io.h"

struct job {
	bool begin; // a new file: the images first, then it takes the journal's name
	int fd;	    // to be made durable
	uint64_t epoch;
};

struct journal {
	char path[PATH_MAX], fresh[PATH_MAX + 8]; // its name, and that of the next file
	struct image images[JOURNAL_DISKS_MAX];	  // fd < 0: not journaled
	uint64_t ids[JOURNAL_DISKS_MAX];
	unsigned images_n;
	uint64_t bytes_max;
	journal_notify_fn *notify;
	void *ctx;

	// the engine's thread only
	int fd;
	bool begins;		  // the next seal is the first of a file
	uint64_t nonce, at, used; // where the entry begins, bytes of records in it
	XXH3_state_t *hash;
	bool finished; // the images may be closed

	struct worker worker;
	pthread_mutex_t lock; // guards what follows
	struct job job;
	bool news;
	uint64_t durable;
	int error; // the first one
};

static int write_at(int fd, const void *data, size_t len, uint64_t at)
{
	const struct image file = {.fd = fd};
	return image_pwrite(&file, data, len, at);
}

static int flush_images(const struct journal *j)
{
	int ret = 0;
	for (unsigned i = 0; i < j->images_n && ret == 0; i++)
		ret = j->images[i].fd >= 0 ? image_flush(&j->images[i]) : 0;
	return ret;
}

// ---- the thread ----

static int do_job(const struct journal *j, const struct job *job)
{
	int ret = job->begin ? flush_images(j) : 0;
	if (ret == 0 && fdatasync(job->fd) < 0)
		ret = -errno;
	if (ret == 0 && job->begin && rename(j->fresh, j->path) < 0)
		ret = -errno;
	if (ret == 0 && job->begin)
		ret = file_sync_folder(j->path);
	return ret;
}

static int work(void *ctx)
{
	struct journal *j = ctx;
	pthread_mutex_lock(&j->lock);
	struct job job = j->job;
	j->job.begin = false;
	pthread_mutex_unlock(&j->lock);
	int ret = do_job(j, &job);
	pthread_mutex_lock(&j->lock);
	if (ret < 0 && j->error == 0)
		j->error = ret;
	if (j->error == 0)
		j->durable = job.epoch;
	j->news = true;
	pthread_mutex_unlock(&j->lock);
	j->notify(j->ctx);
	return ret;
}

// ---- life ----

int journal_new(const char *path, const struct journal_disk *disks, unsigned n, uint64_t bytes_max,
		journal_notify_fn *notify, void *ctx, struct journal **out, struct ft_err *err)
{
	assert(n > 0 && n <= JOURNAL_DISKS_MAX);
	int ret = journal_remove(path, err);
	if (ret < 0)
		return ret;
	struct journal *j = calloc(1, sizeof(*j));
	if (!j || !(j->hash = XXH3_createState())) {
		free(j);
		return ft_err_set(err, ENOMEM, "journal %s: out of memory", path);
	}
	snprintf(j->path, sizeof(j->path), "%s", path);
	snprintf(j->fresh, sizeof(j->fresh), "%s.new", path);
	for (unsigned i = 0; i < n; i++) {
		j->ids[i] = XXH3_64bits(disks[i].id, strlen(disks[i].id));
		j->images[i] = disks[i].image ? *disks[i].image : (struct image){.fd = -1};
		j->images_n++;
	}
	j->bytes_max = bytes_max;
	j->notify = notify;
	j->ctx = ctx;
	j->fd = -1;
	j->begins = true;
	pthread_mutex_init(&j->lock, NULL);
	worker_init(&j->worker, work, j);
	ret = worker_start(&j->worker);
	if (ret < 0) {
		journal_free(j, false);
		return ft_err_set(err, -ret, "journal %s: thread: %s", path, strerror(-ret));
	}
	*out = j;
	return 0;
}

void journal_free(struct journal *j, bool keep)
{
	if (!j)
		return;
	worker_free(&j->worker);
	if (j->fd >= 0)
		close(j->fd);
	unlink(j->fresh);
	if (!keep)
		(void)journal_remove(j->path, NULL);
	pthread_mutex_destroy(&j->lock);
	XXH3_freeState(j->hash);
	free(j);
}

int journal_finish(struct journal *j)
{
	worker_stop(&j->worker);
	int ret = j->finished ? 0 : flush_images(j);
	j->finished = ret == 0;
	return ret;
}

int journal_remove(const char *path, struct ft_err *err)
{
	if (strlen(path) >= PATH_MAX)
		return ft_err_set(err, ENAMETOOLONG, "journal: name too long");
	// Durably: one that came back would undo what was written since.
	if (unlink(path) < 0)
		return errno == ENOENT ? 0
				       : ft_err_set(err, errno, "journal %s: remove: %s", path,
						    strerror(errno));
	int ret = file_sync_folder(path);
	return ret < 0 ? ft_err_set(err, -ret, "journal %s: remove: %s", path, strerror(-ret)) : 0;
}

// ---- writing ----

// A file is begun under another name; until that is renamed the old one is the journal.
static int begin_file(struct journal *j)
{
	struct journal_header header = {.version = htole32(JOURNAL_VERSION),
					.disks = htole32(j->images_n)};
	int fd = open(j->fresh, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	if (getrandom(&j->nonce, sizeof(j->nonce), 0) != sizeof(j->nonce)) {
		close(fd);
		return -EIO;
	}
	memcpy(header.magic, JOURNAL_MAGIC, sizeof(header.magic));
	header.nonce = htole64(j->nonce);
	for (unsigned i = 0; i < j->images_n; i++) {
		header.ids[i] = htole64(j->ids[i]);
		header.bytes[i] = htole64(j->images[i].fd >= 0 ? j->images[i].bytes : 0);
	}
	header.sum = htole64(journal_sum(&header, offsetof(struct journal_header, sum), j->nonce));
	int ret = write_at(fd, &header, sizeof(header), 0);
	if (ret < 0) {
		close(fd);
		return ret;
	}
	if (j->fd >= 0)
		close(j->fd);
	j->fd = fd;
	j->at = sizeof(header);
	j->used = 0;
	return 0;
}

static int failed(struct journal *j, int ret, struct ft_err *err)
{
	return ft_err_set(err, -ret, "journal %s: %s", j->path, strerror(-ret));
}

static int begin_entry(struct journal *j)
{
	// Only when the thread has nothing to do with the file before.
	if (j->at >= j->bytes_max && worker_idle(&j->worker))
		j->begins = true;
	int ret = j->begins && (j->fd < 0 || j->at > sizeof(struct journal_header)) ? begin_file(j)
										    : 0;
	XXH3_64bits_reset_withSeed(j->hash, j->nonce);
	return ret;
}

int journal_add(struct journal *j, const struct tap_record *rec, struct ft_err *err)
{
	uint8_t header[TAP_RECORD_HEADER];
	uint64_t offset, len;
	if (rec->device >= j->images_n || j->images[rec->device].fd < 0 ||
	    record_range(rec, j->images[rec->device].bytes, &offset, &len) < 0)
		return ft_err_set(err, EPROTO,
				  "journal: record of kind %d of disk %u: no such place",
				  (int)rec->kind, rec->device);
	int ret = j->used == 0 ? begin_entry(j) : 0;
	uint64_t at = j->at + sizeof(struct journal_entry) + j->used;
	tap_record_put_header(header, rec);
	if (ret == 0)
		ret = write_at(j->fd, header, sizeof(header), at);
	if (ret == 0 && rec->len > 0)
		ret = write_at(j->fd, rec->data, rec->len, at + sizeof(header));
	if (ret < 0)
		return failed(j, ret, err);
	XXH3_64bits_update(j->hash, header, sizeof(header));
	XXH3_64bits_update(j->hash, rec->data, rec->len);
	j->used += sizeof(header) + rec->len;
	return 0;
}

void journal_drop(struct journal *j)
{
	j->used = 0;
}

int journal_seal(struct journal *j, uint64_t generation, uint64_t epoch, struct ft_err *err)
{
	int ret = j->used == 0 ? begin_entry(j) : 0;
	struct journal_entry entry = {.generation = htole64(generation),
				      .epoch = htole64(epoch),
				      .bytes = htole64(j->used),
				      .records_sum = htole64(XXH3_64bits_digest(j->hash))};
	memcpy(entry.magic, JOURNAL_ENTRY_MAGIC, sizeof(entry.magic));
	entry.sum = htole64(journal_sum(&entry, offsetof(struct journal_entry, sum), j->nonce));
	if (ret == 0)
		ret = write_at(j->fd, &entry, sizeof(entry), j->at);
	if (ret < 0)
		return failed(j, ret, err);
	j->at += sizeof(entry) + j->used;
	j->used = 0;
	pthread_mutex_lock(&j->lock);
	j->job.begin |= j->begins;
	j->job.fd = j->fd;
	j->job.epoch = epoch;
	pthread_mutex_unlock(&j->lock);
	worker_want(&j->worker);
	j->begins = false;
	return 0;
}

bool journal_take(struct journal *j, uint64_t *epoch, int *error)
{
	pthread_mutex_lock(&j->lock);
	bool news = j->news;
	j->news = false;
	*epoch = j->durable;
	*error = j->error;
	pthread_mutex_unlock(&j->lock);
	return news;
}
