/* SPDX-License-Identifier: Apache-2.0 */
/* Sums of a disk's blocks, by which a primary finds out what a returning standby has already. XXH3
 * finds accidents, and its seed, which is another one each time, is unknown to the guest that
 * writes the blocks. Holes are told as zeroes without being read. */
#ifndef EVENTTAP_BLOCK_DISK_SUMS_H
#define EVENTTAP_BLOCK_DISK_SUMS_H

#include <stdbool.h>
#include <stdint.h>

#include "eventtap/block/image.h"

#define DISK_SUM_BLOCK_BYTES 65536u /* that of the bitmap `behind` */
#define DISK_SUM_BYTES	     16
/* Bytes of one hole that are told at once. */
#define DISK_SUMS_HOLE_MAX (1u << 30)

void disk_sum(const uint8_t *data, uint64_t len, uint64_t seed, uint8_t sum[DISK_SUM_BYTES]);
/* The range that begins at `offset` (a multiple of the block), within `limit` bytes, which are
 * whole blocks but at the end of the disk: a hole (*zero), or at most `max` blocks with their sums.
 * *bytes is whole blocks but at the end of the disk. 0 or -errno. */
int disk_sums_next(const struct image *image, uint64_t seed, uint64_t offset, uint64_t limit,
		   unsigned max, uint64_t *bytes, bool *zero, uint8_t *sums);

#endif
