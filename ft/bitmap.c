// SPDX-License-Identifier: Apache-2.0
/* Words of 64 bits. The bits of the last word beyond `bits` are always clear, so that no reader has
 * to mask. */
#include "ft/bitmap.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define WORD_BITS 64

static uint64_t words_for(uint64_t bits)
{
	return bits / WORD_BITS + (bits % WORD_BITS != 0);
}

static uint64_t mask_of(uint64_t bit)
{
	return UINT64_C(1) << (bit % WORD_BITS);
}

static unsigned ones(uint64_t word)
{
	return (unsigned)__builtin_popcountll(word);
}

int ft_bitmap_init(struct ft_bitmap *b, uint64_t bits)
{
	uint64_t n = words_for(bits);

	/* At least one word, so that NULL means out of memory and nothing else. */
	*b = (struct ft_bitmap){.words = calloc(n ? n : 1, sizeof *b->words), .bits = bits};
	return b->words ? 0 : -ENOMEM;
}

void ft_bitmap_free(struct ft_bitmap *b)
{
	free(b->words);
	*b = (struct ft_bitmap){0};
}

bool ft_bitmap_test(const struct ft_bitmap *b, uint64_t bit)
{
	assert(bit < b->bits);
	return b->words[bit / WORD_BITS] & mask_of(bit);
}

void ft_bitmap_set(struct ft_bitmap *b, uint64_t bit)
{
	uint64_t *word = &b->words[bit / WORD_BITS];

	assert(bit < b->bits);
	b->count += !(*word & mask_of(bit));
	*word |= mask_of(bit);
}

void ft_bitmap_clear(struct ft_bitmap *b, uint64_t bit)
{
	uint64_t *word = &b->words[bit / WORD_BITS];

	assert(bit < b->bits);
	b->count -= !!(*word & mask_of(bit));
	*word &= ~mask_of(bit);
}

/* Sets or clears [first, first + n), a word at a time. */
static void range_fill(struct ft_bitmap *b, uint64_t first, uint64_t n, bool value)
{
	assert(first <= b->bits);
	assert(n <= b->bits - first);
	while (n > 0) {
		uint64_t *word = &b->words[first / WORD_BITS];
		uint64_t offset = first % WORD_BITS;
		uint64_t span = n < WORD_BITS - offset ? n : WORD_BITS - offset;
		uint64_t mask = (UINT64_MAX >> (WORD_BITS - span)) << offset;

		if (value) {
			b->count += ones(mask & ~*word);
			*word |= mask;
		} else {
			b->count -= ones(mask & *word);
			*word &= ~mask;
		}
		first += span;
		n -= span;
	}
}

void ft_bitmap_set_range(struct ft_bitmap *b, uint64_t first, uint64_t n)
{
	range_fill(b, first, n, true);
}

void ft_bitmap_clear_range(struct ft_bitmap *b, uint64_t first, uint64_t n)
{
	range_fill(b, first, n, false);
}

void ft_bitmap_clear_all(struct ft_bitmap *b)
{
	memset(b->words, 0, words_for(b->bits) * sizeof *b->words);
	b->count = 0;
}

void ft_bitmap_set_all(struct ft_bitmap *b)
{
	range_fill(b, 0, b->bits, true);
}

uint64_t ft_bitmap_next(const struct ft_bitmap *b, uint64_t from)
{
	uint64_t n = words_for(b->bits), i = from / WORD_BITS, word;

	if (from >= b->bits)
		return b->bits;
	word = b->words[i] & (UINT64_MAX << (from % WORD_BITS));
	while (!word) {
		if (++i == n)
			return b->bits;
		word = b->words[i];
	}
	return i * WORD_BITS + (unsigned)__builtin_ctzll(word);
}

void ft_bitmap_merge(struct ft_bitmap *target, const struct ft_bitmap *source)
{
	uint64_t n = words_for(source->bits);

	assert(target->bits == source->bits);
	for (uint64_t i = 0; i < n; i++) {
		uint64_t news = source->words[i] & ~target->words[i];

		if (!news)
			continue;
		target->words[i] |= news;
		target->count += ones(news);
	}
}
