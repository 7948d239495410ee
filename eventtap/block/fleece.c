// SPDX-License-Identifier: Apache-2.0
#include "eventtap/block/fleece.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ft/bitmap.h"
#include "ft/log.h"

struct fleece {
	struct image image; // the tap's; not closed here
	struct image old;   // fd < 0: there is none yet
	pthread_mutex_t lock;
	pthread_cond_t saved_some;
	struct ft_bitmap saved, saving; // in blocks
	int error;			// the view is broken; 0: it is not
};

static int open_beside(const char *path)
{
	char folder[PATH_MAX];
	if ((size_t)snprintf(folder, sizeof(folder), "%s", path) >= sizeof(folder))
		return -ENAMETOOLONG;
	int fd = open(dirname(folder), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	return fd < 0 ? -errno : fd;
}

int fleece_new(const struct image *image, const char *path, struct fleece **out, struct ft_err *err)
{
	struct fleece *f = calloc(1, sizeof(*f));
	uint64_t blocks = (image->bytes + FLEECE_BLOCK_BYTES - 1) / FLEECE_BLOCK_BYTES;
	if (!f)
		return ft_err_set(err, ENOMEM, "out of memory");
	f->image = *image;
	pthread_mutex_init(&f->lock, NULL);
	pthread_cond_init(&f->saved_some, NULL);
	f->old = (struct image){.fd = open_beside(path), .bytes = image->bytes};
	int ret = f->old.fd;
	if (ret >= 0 && ftruncate(f->old.fd, (off_t)image->bytes) < 0)
		ret = -errno;
	if (ret < 0) {
		ft_err_set(err, -ret, "a file for old content beside %s: %s", path, strerror(-ret));
	} else if (ft_bitmap_init(&f->saved, blocks) < 0 ||
		   ft_bitmap_init(&f->saving, blocks) < 0) {
		ret = ft_err_set(err, ENOMEM, "out of memory");
	} else {
		*out = f;
		return 0;
	}
	fleece_free(f);
	return ret;
}

void fleece_free(struct fleece *f)
{
	if (!f)
		return;
	if (f->old.fd >= 0)
		close(f->old.fd);
	ft_bitmap_free(&f->saved);
	ft_bitmap_free(&f->saving);
	pthread_cond_destroy(&f->saved_some);
	pthread_mutex_destroy(&f->lock);
	free(f);
}

static uint64_t block_len(const struct fleece *f, uint64_t block)
{
	uint64_t left = f->image.bytes - block * FLEECE_BLOCK_BYTES;
	return left < FLEECE_BLOCK_BYTES ? left : FLEECE_BLOCK_BYTES;
}

static bool all_zero(const uint8_t *data, uint64_t len)
{
	return data[0] == 0 && memcmp(data, data + 1, len - 1) == 0;
}

// What was zero stays a hole of the file.
static int save(struct fleece *f, uint64_t block)
{
	uint8_t data[FLEECE_BLOCK_BYTES];
	uint64_t at = block * FLEECE_BLOCK_BYTES, len = block_len(f, block);
	int ret = image_pread(&f->image, data, len, at);
	if (ret == 0 && !all_zero(data, len))
		ret = image_pwrite(&f->old, data, len, at);
	return ret;
}

// Another writer may be at the same block; whoever comes second waits for the first.
static void save_block_locked(struct fleece *f, uint64_t block)
{
	while (ft_bitmap_test(&f->saving, block))
		pthread_cond_wait(&f->saved_some, &f->lock);
	if (ft_bitmap_test(&f->saved, block) || f->error)
		return;
	ft_bitmap_set(&f->saving, block);
	pthread_mutex_unlock(&f->lock);
	int ret = save(f, block);
	pthread_mutex_lock(&f->lock);
	ft_bitmap_clear(&f->saving, block);
	if (ret == 0)
		ft_bitmap_set(&f->saved, block);
	else if (!f->error) {
		f->error = ret;
		ft_error("backup: old content cannot be kept: %s: the view of the disk is broken",
			 strerror(-ret));
	}
	pthread_cond_broadcast(&f->saved_some);
}

void fleece_before_change(struct fleece *f, uint64_t offset, uint64_t len)
{
	if (len == 0)
		return;
	pthread_mutex_lock(&f->lock);
	for (uint64_t block = offset / FLEECE_BLOCK_BYTES;
	     block <= (offset + len - 1) / FLEECE_BLOCK_BYTES; block++)
		save_block_locked(f, block);
	pthread_mutex_unlock(&f->lock);
}

// How far from offset on the state of its block goes, at most len.
static uint64_t alike_locked(const struct fleece *f, uint64_t offset, uint64_t len, bool *saved)
{
	uint64_t block = offset / FLEECE_BLOCK_BYTES, end = (offset + len - 1) / FLEECE_BLOCK_BYTES;
	*saved = ft_bitmap_test(&f->saved, block);
	uint64_t last = block;
	while (last < end && ft_bitmap_test(&f->saved, last + 1) == *saved)
		last++;
	uint64_t until = (last + 1) * FLEECE_BLOCK_BYTES;
	return until - offset < len ? until - offset : len;
}

static int state_at(struct fleece *f, uint64_t offset, uint64_t *len, bool *saved)
{
	pthread_mutex_lock(&f->lock);
	*len = alike_locked(f, offset, *len, saved);
	int error = f->error;
	pthread_mutex_unlock(&f->lock);
	return error;
}

// A block that is still not saved after it was read had not changed before.
static bool still_unsaved(struct fleece *f, uint64_t offset, uint64_t len)
{
	bool saved;
	pthread_mutex_lock(&f->lock);
	bool good = alike_locked(f, offset, len, &saved) == len && !saved;
	pthread_mutex_unlock(&f->lock);
	return good;
}

int fleece_read(struct fleece *f, uint8_t *buf, uint32_t len, uint64_t offset)
{
	for (uint64_t done = 0, part; done < len; done += part) {
		bool saved;
		part = len - done;
		int ret = state_at(f, offset + done, &part, &saved);
		if (ret == 0)
			ret = image_pread(saved ? &f->old : &f->image, buf + done, part,
					  offset + done);
		if (ret < 0)
			return ret;
		if (!saved && !still_unsaved(f, offset + done, part))
			part = 0;
	}
	// A view that broke meanwhile may have lost what should have been saved.
	pthread_mutex_lock(&f->lock);
	int error = f->error;
	pthread_mutex_unlock(&f->lock);
	return error;
}

int fleece_extent(struct fleece *f, uint64_t offset, uint64_t len, uint64_t *extent, bool *hole)
{
	for (;;) {
		bool saved;
		uint64_t part = len;
		int ret = state_at(f, offset, &part, &saved);
		if (ret == 0)
			ret = image_extent(saved ? &f->old : &f->image, offset, part, &part, hole);
		if (ret < 0)
			return ret;
		*extent = part;
		if (saved || still_unsaved(f, offset, part))
			return 0;
	}
}

uint64_t fleece_saved_bytes(struct fleece *f)
{
	pthread_mutex_lock(&f->lock);
	uint64_t bytes = f->saved.count * FLEECE_BLOCK_BYTES;
	pthread_mutex_unlock(&f->lock);
	return bytes < f->image.bytes ? bytes : f->image.bytes;
}
