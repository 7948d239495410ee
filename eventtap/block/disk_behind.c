// SPDX-License-Identifier: Apache-2.0
// What the peer lacks: the bitmap `behind`, and who empties it: the copier, block by block while
// the guest runs, and close_epoch(), which puts what is left into the epoch.
#include <assert.h>
#include <string.h>

#include "eventtap/block/disk_tap_internal.h"

#define COPY_WAIT_MS  10000	 /* the copier for a writer in its range */
#define SYNC_HOLE_MAX (1u << 30) /* bytes of one hole that the copier reports */

void disk_mark_behind_locked(struct disk_tap *d, uint64_t offset, uint64_t len)
{
	if (d->shared || len == 0)
		return;
	uint64_t first = offset / DISK_TAP_BLOCK_BYTES;
	uint64_t last = (offset + len - 1) / DISK_TAP_BLOCK_BYTES;
	ft_bitmap_set_range(&d->behind, first, last - first + 1);
}

void disk_tap_mark_range_behind(struct tap *tap, uint64_t offset, uint64_t len)
{
	struct disk_tap *d = (struct disk_tap *)tap;
	assert(offset <= d->image.bytes && len <= d->image.bytes - offset);
	pthread_mutex_lock(&d->lock);
	disk_mark_behind_locked(d, offset, len);
	pthread_mutex_unlock(&d->lock);
}

void disk_tap_mark_all_behind(struct tap *tap)
{
	disk_tap_mark_range_behind(tap, 0, disk_tap_bytes(tap));
}

uint64_t disk_behind_bytes_locked(const struct disk_tap *d)
{
	uint64_t bytes = d->behind.count * DISK_TAP_BLOCK_BYTES;
	return bytes < d->image.bytes ? bytes : d->image.bytes;
}

uint64_t disk_tap_behind_bytes(struct tap *tap)
{
	struct disk_tap *d = (struct disk_tap *)tap;
	pthread_mutex_lock(&d->lock);
	uint64_t bytes = disk_behind_bytes_locked(d);
	pthread_mutex_unlock(&d->lock);
	return bytes;
}

// First and end of a run of behind blocks at or after d->sync_at, at most max bytes; in bytes.
// False: there is none.
static bool next_run_locked(struct disk_tap *d, uint64_t max, uint64_t *start, uint64_t *end)
{
	uint64_t first = ft_bitmap_next(&d->behind, d->sync_at);
	if (first == d->behind.bits)
		first = ft_bitmap_next(&d->behind, 0);
	if (first == d->behind.bits)
		return false;
	uint64_t last = first + 1, blocks_max = max / DISK_TAP_BLOCK_BYTES;
	while (last < d->behind.bits && last - first < blocks_max &&
	       ft_bitmap_test(&d->behind, last))
		last++;
	*start = first * DISK_TAP_BLOCK_BYTES;
	*end = last * DISK_TAP_BLOCK_BYTES;
	if (*end > d->image.bytes)
		*end = d->image.bytes;
	return true;
}

// Reads the beginning of the run [start, end), whose range is held: a hole of any length, or as
// much data as buf takes. *len is whole blocks but at the end of the disk.
static int read_run(struct disk_tap *d, uint64_t start, uint64_t end, uint8_t *buf, size_t buf_max,
		    uint64_t *len, bool *zero)
{
	uint64_t extent;
	int ret = image_extent(&d->image, start, end - start, &extent, zero);
	if (ret < 0)
		return ret;
	bool to_end = start + extent == end;
	if (*zero && !to_end)
		extent -= extent % DISK_TAP_BLOCK_BYTES;
	if (*zero && extent > 0) {
		*len = extent;
		return 0;
	}
	*zero = false;
	// Data up to the next hole, that hole's first bytes included where it begins in mid-block.
	extent = (extent + DISK_TAP_BLOCK_BYTES - 1) / DISK_TAP_BLOCK_BYTES * DISK_TAP_BLOCK_BYTES;
	if (extent == 0)
		extent = DISK_TAP_BLOCK_BYTES;
	if (extent > buf_max)
		extent = buf_max / DISK_TAP_BLOCK_BYTES * DISK_TAP_BLOCK_BYTES;
	*len = extent < end - start ? extent : end - start;
	return image_pread(&d->image, buf, *len, start);
}

static void clear_behind_locked(struct disk_tap *d, uint64_t start, uint64_t len)
{
	uint64_t first = start / DISK_TAP_BLOCK_BYTES;
	uint64_t end = (start + len + DISK_TAP_BLOCK_BYTES - 1) / DISK_TAP_BLOCK_BYTES;
	ft_bitmap_clear_range(&d->behind, first, end - first);
	d->sync_at = end;
}

int disk_tap_sync_next(struct tap *tap, uint8_t *buf, size_t buf_max, uint64_t *offset,
		       uint32_t *len, bool *zero, struct ft_err *err)
{
	assert(buf_max >= DISK_TAP_BLOCK_BYTES);
	struct disk_tap *d = (struct disk_tap *)tap;
	uint64_t start, end, part = 0;
	pthread_mutex_lock(&d->lock);
	if (!next_run_locked(d, SYNC_HOLE_MAX, &start, &end)) {
		pthread_mutex_unlock(&d->lock);
		return 0;
	}
	int range = range_lock_take(&d->ranges, &d->lock, start, end, COPY_WAIT_MS), ret = range;
	if (range >= 0) {
		pthread_mutex_unlock(&d->lock);
		ret = read_run(d, start, end, buf, buf_max, &part, zero);
		pthread_mutex_lock(&d->lock);
		// Writers of this range come after us, and will set the bits again.
		if (ret == 0)
			clear_behind_locked(d, start, part);
		range_lock_give(&d->ranges, range);
	}
	if (ret < 0)
		disk_io_failed_locked(d, "read for the peer", ret);
	pthread_mutex_unlock(&d->lock);
	if (ret < 0)
		return ft_err_set(err, -ret, "disk %s: copy at byte %llu: %s", tap->id,
				  (unsigned long long)start, strerror(-ret));
	*offset = start;
	*len = (uint32_t)part;
	return 1;
}

int disk_log_behind(struct disk_tap *d, struct ft_err *err)
{
	uint64_t start, end, len;
	bool zero;
	int ret = 0;
	pthread_mutex_lock(&d->lock);
	while (ret == 0 && next_run_locked(d, UINT64_MAX, &start, &end)) {
		pthread_mutex_unlock(&d->lock);
		ret = read_run(d, start, end, d->scratch, SCRATCH_BYTES, &len, &zero);
		pthread_mutex_lock(&d->lock);
		if (ret == 0)
			ret = zero ? disk_log_zero_locked(d, TAP_DISK_TRIM, start, len)
				   : disk_log_write_locked(d, d->scratch, start, len);
		if (ret == 0)
			clear_behind_locked(d, start, len);
	}
	pthread_mutex_unlock(&d->lock);
	if (ret < 0)
		return ft_err_set(err, -ret, "disk: what the peer lacks at byte %llu: %s",
				  (unsigned long long)start, strerror(-ret));
	return 0;
}
