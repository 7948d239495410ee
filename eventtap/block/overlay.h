/* SPDX-License-Identifier: Apache-2.0 */
/* What a shared disk's held writes look like to its reader: a sorted array of extents that do not
 * overlap, the newest write of each byte. The bytes stay in the disk's log; extents name the
 * segment that they lie in, so that dropping a segment drops them. An array, because it is searched
 * on every read and its size is bounded by the log's. Not locked. */
#ifndef EVENTTAP_BLOCK_OVERLAY_H
#define EVENTTAP_BLOCK_OVERLAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct overlay_extent {
	uint64_t start, end;
	const uint8_t *data; /* of start; NULL = zeroes */
	uint64_t seq;	     /* of the log's segment */
};

struct overlay {
	struct overlay_extent *extents;
	size_t n, room;
};

/* Room for one more overlay_put(), which then cannot fail. 0 or -ENOMEM. */
int overlay_reserve(struct overlay *o);
void overlay_put(struct overlay *o, const struct overlay_extent *extent);
/* The first extent that ends after `offset`, NULL if there is none. */
const struct overlay_extent *overlay_find(const struct overlay *o, uint64_t offset);
/* Forgets extents of segments up to `seq`. */
void overlay_drop(struct overlay *o, uint64_t seq);
void overlay_free(struct overlay *o);

#endif
