/* SPDX-License-Identifier: Apache-2.0 */
/* The source of a postcopy migration: which page goes next. What is asked for goes at once; what
 * nobody asked for goes in the background, beginning around the page that was asked for last, for
 * who touched one page will soon touch the next. The guest stands still here, so a page never
 * changes, and one that is sent twice does no harm. Pure; one owner at a time. */
#ifndef FT_POSTCOPY_GIVER_H
#define FT_POSTCOPY_GIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ft/bitmap.h"

/* The background goes on this far below the page that was asked for: stacks and backward copies. */
#define FT_GIVER_BELOW 8

struct ft_giver {
	struct ft_bitmap owed; /* not sent, as far as this side knows */
	uint64_t at;	       /* where the background goes on */
};

/* Of `pages` pages none is owed. 0 or -ENOMEM. */
int ft_giver_init(struct ft_giver *g, uint64_t pages);
void ft_giver_free(struct ft_giver *g);
/* The target lacks these pages and no others: at the switch, and when a lost link is back. */
void ft_giver_owe(struct ft_giver *g, const struct ft_bitmap *missing);
/* The target waits for this page: it is to be sent now, whether it went before or not. False: there
 * is no such page. */
bool ft_giver_asked(struct ft_giver *g, uint64_t pfn);
/* The next pages of the background, at most n, ascending; not owed any more. 0: nothing is owed. */
size_t ft_giver_next(struct ft_giver *g, uint64_t *pfns, size_t n);

#endif
