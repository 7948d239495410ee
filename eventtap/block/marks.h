/* SPDX-License-Identifier: Apache-2.0 */
/* Which blocks of a disk are written, for somebody who asks now and then. Whoever changes the image
 * marks before (the tap for a guest that runs here, the store for a standby's disk), so at a moment
 * at which no write is on its way (cow.h) the marks are what was written since the last one.
 *
 * References: one is the owner's, one his who marks. Any thread. */
#ifndef EVENTTAP_BLOCK_MARKS_H
#define EVENTTAP_BLOCK_MARKS_H

#include <stdbool.h>
#include <stdint.h>

#include "ft/bitmap.h"

#define MARKS_BLOCK_BYTES (64u << 10)

struct marks;

static inline uint64_t marks_blocks(uint64_t disk_bytes)
{
	return (disk_bytes + MARKS_BLOCK_BYTES - 1) / MARKS_BLOCK_BYTES;
}

/* Of a disk of so many bytes, all clear. NULL: out of memory. */
struct marks *marks_new(uint64_t disk_bytes);
struct marks *marks_ref(struct marks *m);
/* The last one frees. Accepts NULL. */
void marks_unref(struct marks *m);

/* The range, which is within the disk, is about to change. */
void marks_add(struct marks *m, uint64_t offset, uint64_t len);
/* Nobody marks any more: what is written from now on is not known. */
void marks_end(struct marks *m);
/* *to |= what was marked, which is forgotten here. False: marks_end() was called, and more may have
 * been written. */
bool marks_take(struct marks *m, struct ft_bitmap *to);

#endif
