/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by bitmaps*.c only. */
#ifndef EVENTTAP_BLOCK_BITMAPS_INTERNAL_H
#define EVENTTAP_BLOCK_BITMAPS_INTERNAL_H

#include "eventtap/block/bitmaps.h"

#define BITMAPS_ENABLED	     1u
#define BITMAPS_INCONSISTENT 2u

void bitmaps_drop_locked(struct bitmaps *s);
/* Enabled and clear, the last of the list. */
int bitmaps_make_locked(struct bitmaps *s, const char *name, uint32_t granularity,
			struct ft_dirty_bitmap **out, struct ft_err *err);

/* Marks were lost: says so in the log. */
void bitmaps_spoil(struct ft_dirty_bitmap *map, const char *why);
/* bitmaps_sha256.c: of the map as bytes, with the marks of its successor. 0 or -ENOMEM. */
int bitmaps_map_sha256(const struct ft_dirty_bitmap *map, uint8_t out[BITMAPS_SHA256]);

/* Its guest runs here already, and its bits are on their way. */
static inline bool bitmaps_arrives(const struct bitmaps_entry *entry)
{
	return entry->incoming && entry->map->successor;
}

/* Of the whole, where it is frozen under a successor. */
static inline uint8_t bitmaps_flags(const struct ft_dirty_bitmap *map)
{
	bool enabled = map->successor ? map->successor->enabled : map->enabled;
	return (uint8_t)((enabled ? BITMAPS_ENABLED : 0) |
			 (map->inconsistent ? BITMAPS_INCONSISTENT : 0));
}

#endif
