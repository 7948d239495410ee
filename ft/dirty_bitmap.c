// SPDX-License-Identifier: Apache-2.0
#include "ft/dirty_bitmap.h"

#include <assert.h>
#include <ctype.h>
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORD_BYTES 8
#define PIECE_BITS (FT_DIRTY_PIECE * 8)

bool ft_dirty_name_ok(const char *name)
{
	size_t len = strnlen(name, FT_DIRTY_NAME_MAX);

	if (len == 0 || len == FT_DIRTY_NAME_MAX || !isalnum((unsigned char)*name))
		return false;
	for (const char *p = name; *p; p++)
		if (!isalnum((unsigned char)*p) && !strchr("-_.", *p))
			return false;
	return true;
}

static uint64_t bits_for(uint64_t bytes, uint32_t granularity)
{
	return bytes / granularity + (bytes % granularity != 0);
}

int ft_dirty_granularity_ok(uint64_t bytes, uint32_t granularity, struct ft_err *err)
{
	uint32_t finest = FT_DIRTY_GRANULARITY_MIN;

	while (finest < FT_DIRTY_GRANULARITY_MAX && bits_for(bytes, finest) > FT_DIRTY_BITS_MAX)
		finest *= 2;
	if (granularity >= finest && granularity <= FT_DIRTY_GRANULARITY_MAX &&
	    (granularity & (granularity - 1)) == 0 &&
	    bits_for(bytes, granularity) <= FT_DIRTY_BITS_MAX)
		return 0;
	return ft_err_set(err, EINVAL,
			  "granularity %u: must be a power of two, from %u to %u for this disk",
			  granularity, finest, FT_DIRTY_GRANULARITY_MAX);
}

int ft_dirty_new(const char *name, uint64_t bytes, uint32_t granularity,
		 struct ft_dirty_bitmap **out)
{
	struct ft_dirty_bitmap *b = calloc(1, sizeof *b);
	uint64_t bits = bits_for(bytes, granularity);

	assert(ft_dirty_name_ok(name));
	assert(bits <= FT_DIRTY_BITS_MAX);
	if (!b || ft_bitmap_init(&b->bits, bits) ||
	    ft_bitmap_init(&b->touched, (bits + PIECE_BITS - 1) / PIECE_BITS)) {
		ft_dirty_free(b);
		return -ENOMEM;
	}
	snprintf(b->name, sizeof b->name, "%s", name);
	b->bytes = bytes;
	b->granularity = granularity;
	b->enabled = b->changed = true;
	*out = b;
	return 0;
}

void ft_dirty_free(struct ft_dirty_bitmap *b)
{
	if (!b)
		return;
	ft_dirty_free(b->successor);
	ft_bitmap_free(&b->bits);
	ft_bitmap_free(&b->touched);
	free(b);
}

static void touch(struct ft_dirty_bitmap *b, uint64_t first, uint64_t n)
{
	if (n)
		ft_bitmap_set_range(&b->touched, first / PIECE_BITS,
				    (first + n - 1) / PIECE_BITS - first / PIECE_BITS + 1);
}

void ft_dirty_mark(struct ft_dirty_bitmap *b, uint64_t offset, uint64_t len)
{
	struct ft_dirty_bitmap *takes = b->successor ? b->successor : b;
	uint64_t first, n, before = takes->bits.count;

	assert(offset <= b->bytes);
	assert(len <= b->bytes - offset);
	if (!takes->enabled || !len)
		return;
	first = offset / takes->granularity;
	n = (offset + len - 1) / takes->granularity - first + 1;
	ft_bitmap_set_range(&takes->bits, first, n);
	if (takes->bits.count != before)
		touch(takes, first, n);
}

void ft_dirty_clear(struct ft_dirty_bitmap *b)
{
	assert(!b->successor);
	ft_bitmap_clear_all(&b->bits);
	ft_bitmap_set_all(&b->touched);
}

void ft_dirty_enable(struct ft_dirty_bitmap *b, bool enabled)
{
	struct ft_dirty_bitmap *takes = b->successor ? b->successor : b;

	takes->enabled = enabled;
	b->changed = true;
}

int ft_dirty_freeze(struct ft_dirty_bitmap *b)
{
	int rc;

	if (b->successor)
		return -EBUSY;
	rc = ft_dirty_new(b->name, b->bytes, b->granularity, &b->successor);
	if (rc)
		return rc;
	b->successor->enabled = b->enabled;
	b->enabled = false;
	return 0;
}

void ft_dirty_reclaim(struct ft_dirty_bitmap *b)
{
	struct ft_dirty_bitmap *s = b->successor;

	assert(s);
	ft_bitmap_merge(&b->bits, &s->bits);
	ft_bitmap_merge(&b->touched, &s->touched);
	b->enabled = s->enabled;
	b->successor = NULL;
	ft_dirty_free(s);
}

void ft_dirty_abdicate(struct ft_dirty_bitmap *b)
{
	struct ft_dirty_bitmap *s = b->successor;
	struct ft_bitmap old = b->bits;

	assert(s);
	b->bits = s->bits;
	s->bits = old;
	b->enabled = s->enabled;
	ft_bitmap_set_all(&b->touched);
	b->successor = NULL;
	ft_dirty_free(s);
}

uint64_t ft_dirty_count_bytes(const struct ft_dirty_bitmap *b)
{
	uint64_t bits = b->bits.count, bytes;

	for (uint64_t i = 0; b->successor && i < (b->bits.bits + 63) / 64; i++)
		bits += (unsigned)__builtin_popcountll(b->successor->bits.words[i] &
						       ~b->bits.words[i]);
	bytes = bits * b->granularity;
	return bytes < b->bytes ? bytes : b->bytes;
}

static bool is_set(const struct ft_dirty_bitmap *b, uint64_t bit)
{
	return ft_bitmap_test(&b->bits, bit) ||
	       (b->successor && ft_bitmap_test(&b->successor->bits, bit));
}

/* The first bit behind `from` that is of the other kind. */
static uint64_t run_end(const struct ft_dirty_bitmap *b, uint64_t from, bool set, uint64_t limit)
{
	uint64_t end = from + 1;

	if (!set && !b->successor) {
		end = ft_bitmap_next(&b->bits, from);
		return end < limit ? end : limit;
	}
	while (end < limit && is_set(b, end) == set)
		end++;
	return end;
}

bool ft_dirty_at(const struct ft_dirty_bitmap *b, uint64_t offset, uint64_t *len)
{
	uint64_t bit = offset / b->granularity, limit = (offset + *len - 1) / b->granularity + 1,
		 end;
	bool set;

	assert(offset < b->bytes);
	assert(*len > 0);
	set = is_set(b, bit);
	end = run_end(b, bit, set, limit < b->bits.bits ? limit : b->bits.bits) * b->granularity;
	if (end - offset < *len)
		*len = end - offset;
	return set;
}

bool ft_dirty_frozen_at(const struct ft_dirty_bitmap *b, uint64_t offset, uint64_t *len)
{
	struct ft_dirty_bitmap alone = *b;

	alone.successor = NULL;
	return ft_dirty_at(&alone, offset, len);
}

void ft_dirty_gather(struct ft_dirty_bitmap *b)
{
	if (!b->successor || !b->successor->touched.count)
		return;
	ft_bitmap_merge(&b->touched, &b->successor->touched);
	ft_bitmap_clear_all(&b->successor->touched);
}

uint64_t ft_dirty_map_bytes(const struct ft_dirty_bitmap *b)
{
	return (b->bits.bits + 63) / 64 * WORD_BYTES;
}

void ft_dirty_get(const struct ft_dirty_bitmap *b, uint64_t at, uint8_t *out, size_t len)
{
	assert(at % WORD_BYTES == 0);
	assert(len % WORD_BYTES == 0);
	assert(at + len <= ft_dirty_map_bytes(b));
	for (size_t i = 0; i < len; i += WORD_BYTES) {
		uint64_t word = htole64(b->bits.words[(at + i) / WORD_BYTES]);

		memcpy(out + i, &word, WORD_BYTES);
	}
}

void ft_dirty_get_all(const struct ft_dirty_bitmap *b, uint64_t at, uint8_t *out, size_t len)
{
	uint64_t word, more;

	ft_dirty_get(b, at, out, len);
	for (size_t i = 0; b->successor && i < len; i += WORD_BYTES) {
		more = htole64(b->successor->bits.words[(at + i) / WORD_BYTES]);
		memcpy(&word, out + i, WORD_BYTES);
		word |= more;
		memcpy(out + i, &word, WORD_BYTES);
	}
}

static bool beyond(const struct ft_dirty_bitmap *b, uint64_t index, uint64_t word)
{
	uint64_t used = b->bits.bits - index * 64;

	return used < 64 && word >> used;
}

int ft_dirty_put(struct ft_dirty_bitmap *b, uint64_t at, const uint8_t *data, uint64_t len)
{
	uint64_t map = ft_dirty_map_bytes(b), word;

	if (!len || at % WORD_BYTES || len % WORD_BYTES || len > map || at > map - len)
		return -EPROTO;
	/* The last word is the only one that can have too much. */
	if (data && at + len == map) {
		memcpy(&word, data + len - WORD_BYTES, WORD_BYTES);
		if (beyond(b, map / WORD_BYTES - 1, le64toh(word)))
			return -EPROTO;
	}
	for (uint64_t i = 0; i < len; i += WORD_BYTES) {
		uint64_t *old = &b->bits.words[(at + i) / WORD_BYTES];

		word = 0;
		if (data)
			memcpy(&word, data + i, WORD_BYTES);
		word = le64toh(word);
		b->bits.count += (unsigned)__builtin_popcountll(word);
		b->bits.count -= (unsigned)__builtin_popcountll(*old);
		*old = word;
	}
	ft_bitmap_set_range(&b->touched, at / FT_DIRTY_PIECE,
			    (at + len - 1) / FT_DIRTY_PIECE - at / FT_DIRTY_PIECE + 1);
	return 0;
}
