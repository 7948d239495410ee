// SPDX-License-Identifier: Apache-2.0
#include "ft/postcopy/giver.h"

#include <assert.h>

int ft_giver_init(struct ft_giver *g, uint64_t pages)
{
	g->at = 0;
	return ft_bitmap_init(&g->owed, pages);
}

void ft_giver_free(struct ft_giver *g)
{
	ft_bitmap_free(&g->owed);
}

void ft_giver_owe(struct ft_giver *g, const struct ft_bitmap *missing)
{
	assert(missing->bits == g->owed.bits);
	ft_bitmap_clear_all(&g->owed);
	ft_bitmap_merge(&g->owed, missing);
}

bool ft_giver_asked(struct ft_giver *g, uint64_t pfn)
{
	if (pfn >= g->owed.bits)
		return false;
	ft_bitmap_clear(&g->owed, pfn);
	g->at = pfn > FT_GIVER_BELOW ? pfn - FT_GIVER_BELOW : 0;
	return true;
}

size_t ft_giver_next(struct ft_giver *g, uint64_t *pfns, size_t n)
{
	size_t found = 0;

	while (found < n && g->owed.count) {
		uint64_t pfn = ft_bitmap_next(&g->owed, g->at);

		if (pfn == g->owed.bits) {
			/* A frame is ascending: the rest goes with the next one. */
			g->at = 0;
			if (found)
				break;
			continue;
		}
		ft_bitmap_clear(&g->owed, pfn);
		g->at = pfn + 1;
		pfns[found++] = pfn;
	}
	return found;
}
