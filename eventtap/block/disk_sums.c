// SPDX-License-Identifier: Apache-2.0
// Both sides of a comparison: the standby's sums of its image, and the primary's look at its own
// with them. The primary reads a block with its range held, so that a writer comes before, and is
// seen, or after, and sets the bit again.
#include "eventtap/block/disk_sums.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <xxhash.h>

#include "eventtap/block/disk_tap.h"
#include "eventtap/block/disk_tap_internal.h"

#define COMPARE_WAIT_MS 10000 /* for a writer in the range */

_Static_assert(DISK_SUM_BLOCK_BYTES == DISK_TAP_BLOCK_BYTES, "one sum is for one bit");
_Static_assert(SCRATCH_BYTES % DISK_SUM_BLOCK_BYTES == 0, "scratch holds whole blocks");

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

void disk_sum(const uint8_t *data, uint64_t len, uint64_t seed, uint8_t sum[DISK_SUM_BYTES])
{
	XXH128_canonical_t canonical;
	XXH128_canonicalFromHash(&canonical, XXH3_128bits_withSeed(data, len, seed));
	_Static_assert(sizeof(canonical) == DISK_SUM_BYTES, "XXH3-128");
	memcpy(sum, &canonical, DISK_SUM_BYTES);
}

int disk_sums_next(const struct image *image, uint64_t seed, uint64_t offset, uint64_t limit,
		   unsigned max, uint64_t *bytes, bool *zero, uint8_t *sums)
{
	static uint8_t block[DISK_SUM_BLOCK_BYTES]; // the engine's thread's
	uint64_t extent;
	assert(offset < image->bytes && offset % DISK_SUM_BLOCK_BYTES == 0);
	assert(limit > 0 && limit <= image->bytes - offset);
	int ret = image_extent(image, offset, min_u64(limit, DISK_SUMS_HOLE_MAX), &extent, zero);
	if (ret < 0)
		return ret;
	if (*zero && offset + extent < image->bytes)
		extent -= extent % DISK_SUM_BLOCK_BYTES;
	if (*zero && extent > 0) {
		*bytes = extent;
		return 0;
	}
	// A hole that begins in mid-block belongs to that block.
	*zero = false;
	uint64_t blocks = (extent + DISK_SUM_BLOCK_BYTES - 1) / DISK_SUM_BLOCK_BYTES;
	blocks = blocks == 0 ? 1 : min_u64(blocks, max);
	*bytes = min_u64(blocks * DISK_SUM_BLOCK_BYTES, image->bytes - offset);
	for (uint64_t at = 0; at < *bytes && ret == 0; at += DISK_SUM_BLOCK_BYTES) {
		uint64_t len = min_u64(DISK_SUM_BLOCK_BYTES, *bytes - at);
		ret = image_pread(image, block, len, offset + at);
		if (ret == 0)
			disk_sum(block, len, seed,
				 sums + at / DISK_SUM_BLOCK_BYTES * DISK_SUM_BYTES);
	}
	return ret;
}

// The blocks [first, end) are alike; returns how many bytes are not behind any more by that.
static uint64_t alike_locked(struct disk_tap *d, uint64_t first, uint64_t end)
{
	uint64_t before = d->behind.count;
	if (end <= first)
		return 0;
	ft_bitmap_clear_range(&d->behind, first, end - first);
	return (before - d->behind.count) * DISK_TAP_BLOCK_BYTES;
}

// Both have a hole. What is zero here but takes room is not looked for: it costs a read.
static int compare_holes_locked(struct disk_tap *d, uint64_t start, uint64_t end, uint64_t *alike)
{
	uint64_t extent;
	int ret = 0;
	for (uint64_t at = start; at < end && ret == 0; at += extent) {
		bool hole;
		ret = image_extent(&d->image, at, end - at, &extent, &hole);
		if (ret < 0 || !hole)
			continue;
		uint64_t first = (at + DISK_TAP_BLOCK_BYTES - 1) / DISK_TAP_BLOCK_BYTES;
		uint64_t last = at + extent == d->image.bytes
					? d->behind.bits
					: (at + extent) / DISK_TAP_BLOCK_BYTES;
		*alike += alike_locked(d, first, last);
	}
	return ret;
}

static int compare_data_locked(struct disk_tap *d, uint64_t start, uint64_t end, uint64_t seed,
			       const uint8_t *sums, uint64_t *alike)
{
	pthread_mutex_unlock(&d->lock);
	int ret = image_pread(&d->image, d->scratch, end - start, start);
	pthread_mutex_lock(&d->lock);
	for (uint64_t at = start; at < end && ret == 0; at += DISK_TAP_BLOCK_BYTES) {
		uint8_t sum[DISK_SUM_BYTES];
		uint64_t block = at / DISK_TAP_BLOCK_BYTES;
		disk_sum(d->scratch + (at - start), min_u64(DISK_TAP_BLOCK_BYTES, end - at), seed,
			 sum);
		if (memcmp(sum, sums + (at - start) / DISK_TAP_BLOCK_BYTES * DISK_SUM_BYTES,
			   sizeof(sum)) == 0)
			*alike += alike_locked(d, block, block + 1);
	}
	return ret;
}

bool disk_range_is_whole(const struct disk_tap *d, uint64_t offset, uint64_t bytes)
{
	return bytes > 0 && bytes <= d->image.bytes && offset <= d->image.bytes - bytes &&
	       offset % DISK_TAP_BLOCK_BYTES == 0 &&
	       (bytes % DISK_TAP_BLOCK_BYTES == 0 || offset + bytes == d->image.bytes);
}

int disk_tap_compare(struct tap *tap, uint64_t seed, uint64_t offset, uint64_t bytes,
		     const uint8_t *sums, uint64_t *alike, struct ft_err *err)
{
	struct disk_tap *d = (struct disk_tap *)tap;
	*alike = 0;
	if (!disk_range_is_whole(d, offset, bytes))
		return ft_err_set(err, EPROTO, "disk %s: sums of %llu bytes at %llu: not within it",
				  tap->id, (unsigned long long)bytes, (unsigned long long)offset);
	uint64_t step = sums ? SCRATCH_BYTES : DISK_SUMS_HOLE_MAX, end;
	int ret = 0;
	pthread_mutex_lock(&d->lock);
	for (uint64_t at = offset; at < offset + bytes && ret == 0; at = end) {
		end = min_u64(at + step, offset + bytes);
		int range = range_lock_take(&d->ranges, &d->lock, at, end, COMPARE_WAIT_MS);
		if (range < 0) {
			ret = range;
			break;
		}
		ret = sums ? compare_data_locked(d, at, end, seed,
						 sums + (at - offset) / DISK_TAP_BLOCK_BYTES *
								 DISK_SUM_BYTES,
						 alike)
			   : compare_holes_locked(d, at, end, alike);
		range_lock_give(&d->ranges, range);
	}
	pthread_mutex_unlock(&d->lock);
	return ret < 0 ? ft_err_set(err, -ret, "disk %s: compare: %s", tap->id, strerror(-ret)) : 0;
}
