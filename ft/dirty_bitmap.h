/* SPDX-License-Identifier: Apache-2.0 */
/* A named dirty bitmap of a disk: which parts were written since it was added or cleared, in units
 * of its granularity.
 *
 * While somebody reads it, or its bits are still on their way here, it is frozen under a successor,
 * which takes the marks:
 *
 *      [ bitmap ]  --freeze-->  [ bitmap, frozen ] <- [ successor ]  <-- marks
 *
 *      reclaim:    the bitmap has the bits of both (it was not used up, or it has all arrived)
 *      abdicate:   the successor takes its place (it was used up: a backup has what it said)
 *
 * Whoever ships changes of bitmaps asks for those since it asked last: `touched`, in pieces of
 * FT_DIRTY_PIECE bytes of the map. Not locked. */
#ifndef FT_DIRTY_BITMAP_H
#define FT_DIRTY_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ft/bitmap.h"
#include "ft/err.h"

#define FT_DIRTY_NAME_MAX	 64 /* with its end; what a URI and a command line can carry */
#define FT_DIRTY_GRANULARITY_MIN 512u
#define FT_DIRTY_GRANULARITY_MAX (1u << 20)
#define FT_DIRTY_GRANULARITY	 65536u
/* 8 MiB of memory, on both hosts, for 32 GiB in units of 512 bytes or 4 TiB in units of 64 KiB. */
#define FT_DIRTY_BITS_MAX (1u << 26)
#define FT_DIRTY_PIECE	  64u /* bytes of the map; whole words */

struct ft_dirty_bitmap {
	char name[FT_DIRTY_NAME_MAX];
	uint64_t bytes; /* of the disk */
	uint32_t granularity;
	bool enabled;
	bool inconsistent; /* marks were lost: of no use but to be removed */
	bool busy;	   /* somebody uses it: operators may not change it */
	bool changed;	   /* anything but bits, since it was shipped */
	struct ft_bitmap bits, touched;
	struct ft_dirty_bitmap *successor;
};

/* Letters, digits and what else no shell, URI or line of a file trips over. */
bool ft_dirty_name_ok(const char *name);
/* A power of two within the bounds, and not too fine for the disk: -EINVAL says which it may be. */
int ft_dirty_granularity_ok(uint64_t bytes, uint32_t granularity, struct ft_err *err);

/* Enabled, clear. The name and the granularity are good. 0 or -ENOMEM. */
int ft_dirty_new(const char *name, uint64_t bytes, uint32_t granularity,
		 struct ft_dirty_bitmap **out);
void ft_dirty_free(struct ft_dirty_bitmap *b); /* its successor too; NULL is fine */

/* A write; the range is within the disk. */
void ft_dirty_mark(struct ft_dirty_bitmap *b, uint64_t offset, uint64_t len);
void ft_dirty_clear(struct ft_dirty_bitmap *b);
/* Of the one that takes the marks. */
void ft_dirty_enable(struct ft_dirty_bitmap *b, bool enabled);
/* -EBUSY: it is frozen; -ENOMEM. The successor is enabled if it was. */
int ft_dirty_freeze(struct ft_dirty_bitmap *b);
/* Both: frozen ones only. It is enabled afterwards if the successor was. */
void ft_dirty_reclaim(struct ft_dirty_bitmap *b);
void ft_dirty_abdicate(struct ft_dirty_bitmap *b);
/* Bits that are set, with those of the successor; in bytes of the disk. */
uint64_t ft_dirty_count_bytes(const struct ft_dirty_bitmap *b);
/* State at an offset: *len is cut to what is alike. */
bool ft_dirty_at(const struct ft_dirty_bitmap *b, uint64_t offset, uint64_t *len);

/* Of a frozen one alone, as it was when it was frozen. */
bool ft_dirty_frozen_at(const struct ft_dirty_bitmap *b, uint64_t offset, uint64_t *len);
/* What its successor touched counts as touched by itself: before changes are shipped. */
void ft_dirty_gather(struct ft_dirty_bitmap *b);

/* The map as bytes: words of 64 bits, little endian; bits beyond the disk are zero. */
uint64_t ft_dirty_map_bytes(const struct ft_dirty_bitmap *b);
/* Whole words within the map. */
void ft_dirty_get(const struct ft_dirty_bitmap *b, uint64_t at, uint8_t *out, size_t len);
/* With the bits of the successor. */
void ft_dirty_get_all(const struct ft_dirty_bitmap *b, uint64_t at, uint8_t *out, size_t len);
/* In place of what is there; data NULL: zeroes. -EPROTO: not whole words within the map, or bits
 * beyond the disk. Input is hostile. */
int ft_dirty_put(struct ft_dirty_bitmap *b, uint64_t at, const uint8_t *data, uint64_t len);

#endif
