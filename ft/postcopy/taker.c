// SPDX-License-Identifier: Apache-2.0
#include "ft/postcopy/taker.h"

#include <errno.h>

int ft_taker_init(struct ft_taker *t, const struct ft_bitmap *missing)
{
	if (ft_bitmap_init(&t->missing, missing->bits))
		return -ENOMEM;
	if (ft_bitmap_init(&t->asked, missing->bits)) {
		ft_bitmap_free(&t->missing);
		return -ENOMEM;
	}
	ft_bitmap_merge(&t->missing, missing);
	return 0;
}

void ft_taker_free(struct ft_taker *t)
{
	ft_bitmap_free(&t->missing);
	ft_bitmap_free(&t->asked);
}

enum ft_taker_fault ft_taker_fault(struct ft_taker *t, uint64_t pfn)
{
	if (!ft_bitmap_test(&t->missing, pfn))
		return FT_TAKER_ZERO;
	if (ft_bitmap_test(&t->asked, pfn))
		return FT_TAKER_WAIT;
	ft_bitmap_set(&t->asked, pfn);
	return FT_TAKER_ASK;
}

bool ft_taker_wants(const struct ft_taker *t, uint64_t pfn)
{
	return pfn < t->missing.bits && ft_bitmap_test(&t->missing, pfn);
}

void ft_taker_placed(struct ft_taker *t, uint64_t pfn)
{
	ft_bitmap_clear(&t->missing, pfn);
	ft_bitmap_clear(&t->asked, pfn);
}

uint64_t ft_taker_waiting(const struct ft_taker *t, uint64_t from)
{
	return ft_bitmap_next(&t->asked, from);
}
