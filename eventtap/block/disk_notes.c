// SPDX-License-Identifier: Apache-2.0
// What a disk tap knows of the difference between the two copies (notes.h): every write is marked
// before it reaches the image, from the tap's first moment to its last, in every mode. While a peer
// acknowledges, what it surely has is taken off again, not at once but when there is much of it: a
// block too many costs a sum, an update of the map a system call.
#include <errno.h>
#include <string.h>

#include "eventtap/block/disk_tap_internal.h"
#include "eventtap/block/record.h"
#include "ft/log.h"

#define KEPT_BLOCKS_MAX 1024 // of 64 KiB, marked longer than they have to be ...
#define KEPT_SHARE	256  // ... or this share of a small disk

_Static_assert(NOTES_BLOCK_BYTES == DISK_TAP_BLOCK_BYTES, "a bit here is a bit in `behind`");

int disk_note_change(struct disk_tap *d, uint64_t offset, uint64_t len)
{
	return d->shared ? 0 : notes_mark(&d->notes, offset, len);
}

static void add(struct ft_bitmap *blocks, uint64_t offset, uint64_t len)
{
	if (len == 0)
		return;
	uint64_t first = offset / DISK_TAP_BLOCK_BYTES;
	uint64_t last = (offset + len - 1) / DISK_TAP_BLOCK_BYTES;
	ft_bitmap_set_range(blocks, first, last - first + 1);
}

// The blocks that the peer may lack: what the log has, what could not be logged, and what writers
// are about to change, which they mark without the lock.
static int not_with_peer_locked(const struct disk_tap *d, struct ft_bitmap *blocks)
{
	if (ft_bitmap_init(blocks, d->behind.bits) < 0)
		return -ENOMEM;
	for (struct disk_segment *s = disk_log_next(&d->log, NULL); s;
	     s = disk_log_next(&d->log, s)) {
		struct tap_record rec;
		size_t at = 0;
		while (disk_segment_next(s, &at, &rec)) {
			uint64_t offset, len;
			if (record_range(&rec, d->image.bytes, &offset, &len) == 0)
				add(blocks, offset, len);
		}
	}
	for (int i = 0; i < RANGE_LOCK_MAX; i++)
		if (d->ranges.ranges[i].used)
			add(blocks, d->ranges.ranges[i].start,
			    d->ranges.ranges[i].end - d->ranges.ranges[i].start);
	ft_bitmap_merge(blocks, &d->behind);
	return 0;
}

void disk_notes_released(struct disk_tap *d)
{
	uint64_t kept = d->behind.bits / KEPT_SHARE;
	struct ft_bitmap blocks;
	if (d->shared || !notes_session(&d->notes) ||
	    d->notes.bits.count <= (kept < KEPT_BLOCKS_MAX ? kept : KEPT_BLOCKS_MAX))
		return;
	pthread_mutex_lock(&d->lock);
	if (not_with_peer_locked(d, &blocks) == 0) {
		notes_replace(&d->notes, &blocks);
		ft_bitmap_free(&blocks);
	}
	pthread_mutex_unlock(&d->lock);
}

void disk_tap_in_sync(struct tap *tap, uint64_t session)
{
	struct disk_tap *d = (struct disk_tap *)tap;
	struct ft_bitmap blocks;
	if (d->shared || d->fenced)
		return;
	pthread_mutex_lock(&d->lock);
	if (not_with_peer_locked(d, &blocks) == 0) {
		notes_begin(&d->notes, session, &blocks);
		ft_bitmap_free(&blocks);
	} else {
		(void)notes_end(&d->notes);
	}
	pthread_mutex_unlock(&d->lock);
}

uint64_t disk_tap_session(struct tap *tap)
{
	struct disk_tap *d = (struct disk_tap *)tap;
	return d->shared ? 0 : notes_session(&d->notes);
}

int disk_tap_unchanged(struct tap *tap, uint64_t offset, uint64_t bytes, uint64_t *alike,
		       struct ft_err *err)
{
	struct disk_tap *d = (struct disk_tap *)tap;
	*alike = 0;
	if (!disk_range_is_whole(d, offset, bytes) || !disk_tap_session(tap))
		return ft_err_set(err, EPROTO,
				  "disk %s: no change in %llu bytes at %llu: not within it",
				  tap->id, (unsigned long long)bytes, (unsigned long long)offset);
	pthread_mutex_lock(&d->lock);
	uint64_t before = d->behind.count;
	for (uint64_t at = offset, len; at < offset + bytes; at += len) {
		len = offset + bytes - at;
		if (notes_at(&d->notes, at, &len))
			continue;
		uint64_t first = at / DISK_TAP_BLOCK_BYTES;
		uint64_t end = (at + len + DISK_TAP_BLOCK_BYTES - 1) / DISK_TAP_BLOCK_BYTES;
		ft_bitmap_clear_range(&d->behind, first, end - first);
	}
	*alike = (before - d->behind.count) * DISK_TAP_BLOCK_BYTES;
	pthread_mutex_unlock(&d->lock);
	return 0;
}

void disk_tap_leave(struct tap *tap)
{
	struct disk_tap *d = (struct disk_tap *)tap;
	d->left = true;
	if (!d->shared)
		(void)notes_end(&d->notes);
}

void disk_tap_forget(const char *image)
{
	notes_forget(image);
}

void disk_notes_seal(struct disk_tap *d)
{
	if (d->image.fd < 0 || d->shared || !notes_session(&d->notes))
		return;
	if (image_flush(&d->image) == 0)
		notes_seal(&d->notes);
}
