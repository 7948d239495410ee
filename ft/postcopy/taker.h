/* SPDX-License-Identifier: Apache-2.0 */
/* The target of a postcopy migration: which pages are not there yet, and what a guest that touches
 * one of them waits for. A page is missing until it was placed, once; what arrives for a page that
 * is there is thrown away, for the guest may have written to it since, or given it back. Pure; one
 * owner at a time. */
#ifndef FT_POSTCOPY_TAKER_H
#define FT_POSTCOPY_TAKER_H

#include <stdbool.h>
#include <stdint.h>

#include "ft/bitmap.h"

struct ft_taker {
	struct ft_bitmap missing;
	struct ft_bitmap asked; /* and the source was asked for them */
};

enum ft_taker_fault {
	FT_TAKER_ASK,  /* the source has it: ask */
	FT_TAKER_WAIT, /* it was asked already */
	FT_TAKER_ZERO, /* nobody has anything there: a page that reads as zeroes */
};

/* 0 or -ENOMEM. */
int ft_taker_init(struct ft_taker *t, const struct ft_bitmap *missing);
void ft_taker_free(struct ft_taker *t);
/* Somebody waits for this page, which is below missing.bits. */
enum ft_taker_fault ft_taker_fault(struct ft_taker *t, uint64_t pfn);
/* It came. True: place it, then ft_taker_placed(). False: it is there, or never was anybody's. */
bool ft_taker_wants(const struct ft_taker *t, uint64_t pfn);
void ft_taker_placed(struct ft_taker *t, uint64_t pfn);
/* A lost link is back: the pages for which somebody waits, to be asked for again: the first at or
 * after `from`, missing.bits: none. */
uint64_t ft_taker_waiting(const struct ft_taker *t, uint64_t from);

#endif
