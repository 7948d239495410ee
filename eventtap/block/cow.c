// SPDX-License-Identifier: Apache-2.0
// One lock. A block's way: in `left` until somebody, with its range of `reading` held, has read it;
// then in the pool, or in the hands of who scans, until it is written; then `done`.
//
// A bit of `left` goes when the block was read, with its range held from the look at the bit on. So
// whoever finds it gone may change the block, and nobody reads what was changed.
#include "eventtap/block/cow.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "eventtap/block/image.h"
#include "eventtap/block/range_lock.h"
#include "ft/bitmap.h"
#include "ft/page.h"
#include "ft/snapshot/claims.h"

#define SCAN_BLOCKS	4 /* read at a time in the image's order */
#define SCAN_BYTES	(SCAN_BLOCKS * (size_t)COW_BLOCK_BYTES)
#define HOLE_BLOCKS_MAX (1u << 14) /* 1 GiB: of one hole, at a time */
#define READ_MAX_MS	120000	   /* somebody's read of a block that another wants to change */

_Static_assert(COW_PAGE_BYTES == FT_PAGE_BYTES, "page_is_zero() looks at one");

struct pooled {
	uint64_t block;
	uint8_t *bytes;
};

struct cow {
	/* set at creation */
	struct cow_config config;
	struct image image;
	uint8_t *memory; /* the pool's */
	atomic_uint refs;
	/* who calls cow_step() */
	uint8_t *buffer; /* SCAN_BYTES */
	uint64_t scan_at;
	atomic_bool over; /* given up, or all was read: who changes the image need not care */
	/* under the lock */
	pthread_mutex_t lock;
	pthread_cond_t change; /* a spare, something pooled, the end */
	struct range_lock reading;
	struct ft_bitmap left; /* blocks that nobody has read yet */
	struct pooled *queue;  /* a ring */
	uint8_t **spare;
	unsigned first, queued, spares;
	uint64_t done, written, copied; /* blocks; bytes; blocks */
	bool failed;
	struct ft_err err;
};

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static void give_up_locked(struct cow *c, const struct ft_err *why)
{
	if (!c->failed)
		c->err = *why;
	c->failed = true;
	c->over = true;
	pthread_cond_broadcast(&c->change);
}

static void give_up_for_locked(struct cow *c, int code, const char *what)
{
	struct ft_err why = {0};

	ft_err_set(&why, code, "%s: %s", what, strerror(code));
	give_up_locked(c, &why);
}

static uint64_t block_len(const struct cow *c, uint64_t block)
{
	uint64_t left = c->image.bytes - block * COW_BLOCK_BYTES;

	return left < COW_BLOCK_BYTES ? left : COW_BLOCK_BYTES;
}

static bool is_zero(const uint8_t *bytes, size_t len)
{
	for (; len >= COW_PAGE_BYTES; bytes += COW_PAGE_BYTES, len -= COW_PAGE_BYTES)
		if (!page_is_zero(bytes))
			return false;
	for (; len; bytes++, len--)
		if (*bytes)
			return false;
	return true;
}

static void taken_locked(struct cow *c, uint64_t first, uint64_t n)
{
	ft_bitmap_clear_range(&c->left, first, n);
	if (!c->left.count)
		c->over = true;
}

static void done_locked(struct cow *c, uint64_t blocks)
{
	c->done += blocks;
	if (c->done == c->left.bits)
		pthread_cond_broadcast(&c->change);
}

// ---- who changes the image

/* NULL: given up. */
static uint8_t *wait_for_spare_locked(struct cow *c, const struct timespec *until)
{
	while (!c->spares && !c->failed)
		if (pthread_cond_timedwait(&c->change, &c->lock, until) == ETIMEDOUT &&
		    !c->spares) {
			struct ft_err why = {0};

			ft_err_set(&why, ETIMEDOUT,
				   "the storage takes longer than %u ms to write what the guest "
				   "changes: given up, so that the guest need not wait",
				   c->config.stall_max_ms);
			give_up_locked(c, &why);
		}
	return c->failed ? NULL : c->spare[--c->spares];
}

static void put_locked(struct cow *c, uint64_t block, uint8_t *bytes)
{
	c->queue[(c->first + c->queued++) % c->config.pool_blocks] =
		(struct pooled){.block = block, .bytes = bytes};
	pthread_cond_broadcast(&c->change);
}

/* The block's range is held, and given up while it is read. */
static void copy_aside_locked(struct cow *c, uint64_t block, uint8_t *bytes)
{
	uint64_t len = block_len(c, block);
	bool zero = false;
	int rc;

	pthread_mutex_unlock(&c->lock);
	rc = image_pread(&c->image, bytes, len, block * COW_BLOCK_BYTES);
	if (rc == 0)
		zero = is_zero(bytes, len);
	pthread_mutex_lock(&c->lock);
	if (rc == 0) {
		taken_locked(c, block, 1);
		c->copied++;
	} else {
		give_up_for_locked(c, -rc, "the disk cannot be read");
	}
	if (rc == 0 && (!zero || c->config.zeroes)) {
		put_locked(c, block, bytes);
		return;
	}
	c->spare[c->spares++] = bytes;
	pthread_cond_broadcast(&c->change);
	if (rc == 0)
		done_locked(c, 1);
}

static void save_range_locked(struct cow *c, uint64_t first, uint64_t end)
{
	uint64_t pools = (end - first) / c->config.pool_blocks;
	unsigned factor = pools < 1000 ? (unsigned)pools + 1 : 1000;
	struct timespec until = monotonic_in_ms(c->config.stall_max_ms * factor);

	for (uint64_t block; !c->failed && (block = ft_bitmap_next(&c->left, first)) < end;) {
		uint8_t *bytes = wait_for_spare_locked(c, &until);

		if (bytes)
			copy_aside_locked(c, block, bytes);
		first = block + 1;
	}
}

void cow_before_change(struct cow *c, uint64_t offset, uint64_t len)
{
	uint64_t first = offset / COW_BLOCK_BYTES,
		 end = (offset + len + COW_BLOCK_BYTES - 1) / COW_BLOCK_BYTES;
	int range;

	assert(offset <= c->image.bytes && len <= c->image.bytes - offset);
	if (c->over || !len)
		return;
	pthread_mutex_lock(&c->lock);
	if (!c->failed && ft_bitmap_next(&c->left, first) < end) {
		range = range_lock_take(&c->reading, &c->lock, first, end, READ_MAX_MS);
		if (range < 0) {
			give_up_for_locked(c, -range, "the disk cannot be read");
		} else {
			save_range_locked(c, first, end);
			range_lock_give(&c->reading, range);
		}
	}
	pthread_mutex_unlock(&c->lock);
}

// ---- who writes the copy

static bool page_at_is_zero(const uint8_t *bytes, uint64_t at, uint64_t len)
{
	return is_zero(bytes + at, min_u64(COW_PAGE_BYTES, len - at));
}

/* Pages of zeroes apart from the others. */
static int write_pages(struct cow *c, uint64_t offset, const uint8_t *bytes, uint64_t len,
		       uint64_t *written)
{
	int rc = 0;

	for (uint64_t at = 0, end; at < len && !rc; at = end) {
		bool zero = page_at_is_zero(bytes, at, len);

		for (end = at + COW_PAGE_BYTES; end < len; end += COW_PAGE_BYTES)
			if (page_at_is_zero(bytes, end, len) != zero)
				break;
		end = min_u64(end, len);
		if (!zero)
			rc = c->config.write(c->config.ctx, offset + at, bytes + at, end - at);
		else if (c->config.zeroes)
			rc = c->config.zeroes(c->config.ctx, offset + at, end - at);
		*written += rc || zero ? 0 : end - at;
	}
	return rc;
}

static void wrote_locked(struct cow *c, int rc, uint64_t blocks, uint64_t bytes)
{
	c->written += bytes;
	if (rc)
		give_up_for_locked(c, -rc, "write");
	else
		done_locked(c, blocks);
}

static void save_pooled_locked(struct cow *c, uint64_t *paid)
{
	struct pooled p = c->queue[c->first];
	int rc;

	c->first = (c->first + 1) % c->config.pool_blocks;
	c->queued--;
	pthread_mutex_unlock(&c->lock);
	rc = write_pages(c, p.block * COW_BLOCK_BYTES, p.bytes, block_len(c, p.block), paid);
	pthread_mutex_lock(&c->lock);
	c->spare[c->spares++] = p.bytes;
	pthread_cond_broadcast(&c->change);
	wrote_locked(c, rc, 1, *paid);
}

/* Blocks from `first` on that are left, and all of them a hole, or all to be read. Only a hint: the
 * range is not held. */
static uint64_t next_piece_locked(struct cow *c, uint64_t first, bool *hole)
{
	uint64_t n = 1, bytes, extent = 0;
	int rc;

	while (n < HOLE_BLOCKS_MAX && first + n < c->left.bits &&
	       ft_bitmap_test(&c->left, first + n))
		n++;
	bytes = min_u64(n * COW_BLOCK_BYTES, c->image.bytes - first * COW_BLOCK_BYTES);
	pthread_mutex_unlock(&c->lock);
	rc = image_extent(&c->image, first * COW_BLOCK_BYTES, bytes, &extent, hole);
	pthread_mutex_lock(&c->lock);
	*hole = *hole && !rc;
	if (*hole && extent == bytes)
		return n;
	if (*hole && extent >= COW_BLOCK_BYTES)
		return extent / COW_BLOCK_BYTES;
	*hole = false;
	return min_u64(n, SCAN_BLOCKS);
}

static uint64_t left_mask_locked(const struct cow *c, uint64_t first, uint64_t n)
{
	uint64_t mask = 0;

	for (uint64_t i = 0; i < n; i++)
		mask |= (uint64_t)ft_bitmap_test(&c->left, first + i) << i;
	return mask;
}

/* `mine`: blocks of the piece that nobody had saved when its range was taken: the others may have
 * changed since. */
static void save_data_locked(struct cow *c, uint64_t first, uint64_t n, int range, uint64_t *paid)
{
	uint64_t at = first * COW_BLOCK_BYTES, mine = left_mask_locked(c, first, n),
		 bytes = min_u64(n * COW_BLOCK_BYTES, c->image.bytes - at);
	int rc;

	pthread_mutex_unlock(&c->lock);
	rc = mine ? image_pread(&c->image, c->buffer, bytes, at) : 0;
	pthread_mutex_lock(&c->lock);
	if (!rc)
		taken_locked(c, first, n);
	range_lock_give(&c->reading, range);
	if (rc) {
		give_up_for_locked(c, -rc, "the disk cannot be read");
		return;
	}
	pthread_mutex_unlock(&c->lock);
	for (unsigned i = 0, run; !rc && (run = claims_run(mine, &i)); i += run)
		rc = write_pages(c, at + i * (uint64_t)COW_BLOCK_BYTES,
				 c->buffer + i * (size_t)COW_BLOCK_BYTES,
				 min_u64(run * (uint64_t)COW_BLOCK_BYTES,
					 bytes - i * (uint64_t)COW_BLOCK_BYTES),
				 paid);
	pthread_mutex_lock(&c->lock);
	wrote_locked(c, rc, (uint64_t)__builtin_popcountll(mine), *paid);
}

/* What is still left has not changed since it was seen to be a hole: its first blocks without a
 * gap; the others come again. */
static void save_hole_locked(struct cow *c, uint64_t first, uint64_t end, int range)
{
	uint64_t n = 0, at;
	int rc = 0;

	first = ft_bitmap_next(&c->left, first);
	while (first + n < end && ft_bitmap_test(&c->left, first + n))
		n++;
	if (n)
		taken_locked(c, first, n);
	range_lock_give(&c->reading, range);
	if (!n)
		return;
	at = first * COW_BLOCK_BYTES;
	if (c->config.zeroes) {
		pthread_mutex_unlock(&c->lock);
		rc = c->config.zeroes(c->config.ctx, at,
				      min_u64(n * COW_BLOCK_BYTES, c->image.bytes - at));
		pthread_mutex_lock(&c->lock);
	}
	wrote_locked(c, rc, n, 0);
}

/* The next piece in the image's order. False: who is about to change it has it just now; he may
 * wait for the pool, so he is not waited for. */
static bool scan_locked(struct cow *c, uint64_t *paid)
{
	uint64_t first = ft_bitmap_next(&c->left, c->scan_at), n;
	bool hole;
	int range;

	if (first == c->left.bits)
		first = ft_bitmap_next(&c->left, 0);
	n = next_piece_locked(c, first, &hole);
	c->scan_at = first + n;
	range = range_lock_take(&c->reading, &c->lock, first, first + n, 0);
	if (range < 0)
		return false;
	if (hole)
		save_hole_locked(c, first, first + n, range);
	else
		save_data_locked(c, first, n, range, paid);
	return true;
}

static bool over_locked(const struct cow *c)
{
	assert(c->done <= c->left.bits - c->left.count);
	return c->failed || c->done == c->left.bits;
}

enum cow_step cow_step(struct cow *c, bool may_scan, uint64_t *paid)
{
	enum cow_step step = COW_SAVED;

	*paid = 0;
	pthread_mutex_lock(&c->lock);
	if (over_locked(c))
		step = COW_DONE;
	else if (c->queued)
		save_pooled_locked(c, paid);
	else if (!may_scan || !c->left.count || !scan_locked(c, paid))
		step = COW_WAIT;
	pthread_mutex_unlock(&c->lock);
	return step;
}

void cow_wait(struct cow *c, unsigned ms)
{
	struct timespec until = monotonic_in_ms(ms);

	pthread_mutex_lock(&c->lock);
	if (!over_locked(c) && !c->queued)
		pthread_cond_timedwait(&c->change, &c->lock, &until);
	pthread_mutex_unlock(&c->lock);
}

// ---- the owner

void cow_cancel(struct cow *c, const struct ft_err *why)
{
	pthread_mutex_lock(&c->lock);
	give_up_locked(c, why);
	pthread_mutex_unlock(&c->lock);
}

int cow_error(struct cow *c, struct ft_err *err)
{
	int rc;

	pthread_mutex_lock(&c->lock);
	rc = c->failed ? -c->err.code : 0;
	if (c->failed && err)
		*err = c->err;
	pthread_mutex_unlock(&c->lock);
	return rc;
}

void cow_progress(struct cow *c, struct cow_progress *p)
{
	pthread_mutex_lock(&c->lock);
	*p = (struct cow_progress){.bytes = c->image.bytes,
				   .bytes_done = min_u64(c->done * COW_BLOCK_BYTES, c->image.bytes),
				   .bytes_written = c->written,
				   .copied = c->copied};
	pthread_mutex_unlock(&c->lock);
}

int cow_digest(const struct cow *c, uint64_t *digest, struct ft_err *err)
{
	XXH3_state_t *state = XXH3_createState();
	uint8_t *bytes = malloc(SCAN_BYTES);
	int rc = state && bytes ? 0 : -ENOMEM;

	if (!rc)
		XXH3_64bits_reset(state);
	for (uint64_t at = 0, n; at < c->image.bytes && !rc; at += n) {
		n = min_u64(SCAN_BYTES, c->image.bytes - at);
		rc = image_pread(&c->image, bytes, n, at);
		if (!rc)
			XXH3_64bits_update(state, bytes, n);
	}
	if (!rc)
		*digest = XXH3_64bits_digest(state);
	XXH3_freeState(state);
	free(bytes);
	return rc ? ft_err_set(err, -rc, "digest: %s", strerror(-rc)) : 0;
}

static int make_pool(struct cow *c)
{
	unsigned n = c->config.pool_blocks;

	c->memory = aligned_alloc(COW_PAGE_BYTES, n * (size_t)COW_BLOCK_BYTES);
	c->buffer = aligned_alloc(COW_PAGE_BYTES, SCAN_BYTES);
	c->queue = calloc(n, sizeof *c->queue);
	c->spare = calloc(n, sizeof *c->spare);
	if (!c->memory || !c->buffer || !c->queue || !c->spare)
		return -ENOMEM;
	for (unsigned i = 0; i < n; i++)
		c->spare[c->spares++] = c->memory + i * (size_t)COW_BLOCK_BYTES;
	return 0;
}

int cow_new(const struct cow_config *config, struct cow **out, struct ft_err *err)
{
	struct cow *c = calloc(1, sizeof *c);
	int rc;

	assert(config->stall_max_ms > 0);
	if (!c)
		return ft_err_set(err, ENOMEM, "out of memory");
	c->config = *config;
	if (!c->config.pool_blocks)
		c->config.pool_blocks = COW_POOL_BLOCKS;
	c->refs = 1;
	pthread_mutex_init(&c->lock, NULL);
	monotonic_cond_init(&c->change);
	range_lock_init(&c->reading);
	rc = image_open(config->image, true, &c->image, err);
	if (!rc && (make_pool(c) || ft_bitmap_init(&c->left, (c->image.bytes + COW_BLOCK_BYTES -
							      1) / COW_BLOCK_BYTES)))
		rc = ft_err_set(err, ENOMEM, "out of memory");
	if (rc) {
		cow_unref(c);
		return rc;
	}
	ft_bitmap_set_all(&c->left);
	*out = c;
	return 0;
}

void cow_only(struct cow *c, const struct ft_bitmap *blocks)
{
	pthread_mutex_lock(&c->lock);
	assert(blocks->bits == c->left.bits);
	assert(!c->done && c->left.count == c->left.bits);
	ft_bitmap_clear_all(&c->left);
	ft_bitmap_merge(&c->left, blocks);
	c->done = c->left.bits - c->left.count;
	if (!c->left.count)
		c->over = true;
	pthread_mutex_unlock(&c->lock);
}

struct cow *cow_ref(struct cow *c)
{
	c->refs++;
	return c;
}

void cow_unref(struct cow *c)
{
	if (!c || --c->refs)
		return;
	image_close(&c->image);
	ft_bitmap_free(&c->left);
	free(c->memory);
	free(c->buffer);
	free(c->queue);
	free(c->spare);
	range_lock_destroy(&c->reading);
	pthread_cond_destroy(&c->change);
	pthread_mutex_destroy(&c->lock);
	free(c);
}
