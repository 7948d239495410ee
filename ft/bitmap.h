/* SPDX-License-Identifier: Apache-2.0 */
/* A bitmap that knows how many of its bits are set. Bits are pages or disk blocks. Not locked: one
 * owner at a time. */
#ifndef FT_BITMAP_H
#define FT_BITMAP_H

#include <stdbool.h>
#include <stdint.h>

struct ft_bitmap {
	uint64_t *words;
	uint64_t bits;	/* size */
	uint64_t count; /* bits that are set */
};

/* All clear. 0 or -ENOMEM. */
int ft_bitmap_init(struct ft_bitmap *b, uint64_t bits);
void ft_bitmap_free(struct ft_bitmap *b);

bool ft_bitmap_test(const struct ft_bitmap *b, uint64_t bit);
void ft_bitmap_set(struct ft_bitmap *b, uint64_t bit);
void ft_bitmap_clear(struct ft_bitmap *b, uint64_t bit);
/* [first, first + n) */
void ft_bitmap_set_range(struct ft_bitmap *b, uint64_t first, uint64_t n);
void ft_bitmap_clear_range(struct ft_bitmap *b, uint64_t first, uint64_t n);
void ft_bitmap_clear_all(struct ft_bitmap *b);
void ft_bitmap_set_all(struct ft_bitmap *b);

/* The first set bit at or after `from`, or b->bits when there is none. */
uint64_t ft_bitmap_next(const struct ft_bitmap *b, uint64_t from);
/* target |= source; both of the same size. */
void ft_bitmap_merge(struct ft_bitmap *target, const struct ft_bitmap *source);

#endif
