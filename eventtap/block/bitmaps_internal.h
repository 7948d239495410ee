/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by bitmaps.c and bitmaps_file.c only. */
#ifndef EVENTTAP_BLOCK_BITMAPS_INTERNAL_H
#define EVENTTAP_BLOCK_BITMAPS_INTERNAL_H

#include "eventtap/block/bitmaps.h"

#define BITMAPS_ENABLED	     1u
#define BITMAPS_INCONSISTENT 2u

void bitmaps_drop_locked(struct bitmaps *s);
/* Enabled and clear, the last of the list. */
int bitmaps_make_locked(struct bitmaps *s, const char *name, uint32_t granularity,
			struct ft_dirty_bitmap **out, struct ft_err *err);

/* Of the whole, where it is frozen under a successor. */
static inline uint8_t bitmaps_flags(const struct ft_dirty_bitmap *map)
{
	bool enabled = map->successor ? map->successor->enabled : map->enabled;
	return (uint8_t)((enabled ? BITMAPS_ENABLED : 0) |
			 (map->inconsistent ? BITMAPS_INCONSISTENT : 0));
}

#endif
