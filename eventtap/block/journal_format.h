/* SPDX-License-Identifier: Apache-2.0 */
/* The journal's file, as journal.h describes it; for what writes it and what reads it only. */
#ifndef EVENTTAP_BLOCK_JOURNAL_FORMAT_H
#define EVENTTAP_BLOCK_JOURNAL_FORMAT_H

#include <stddef.h>
#include <stdint.h>
#include <xxhash.h>

#include "eventtap/block/journal.h"

#define JOURNAL_MAGIC	    "KEMARIJ1"
#define JOURNAL_ENTRY_MAGIC "KEMARIJE"
#define JOURNAL_VERSION	    1

struct journal_header {
	char magic[8];
	uint32_t version, disks;
	uint64_t nonce, ids[JOURNAL_DISKS_MAX], bytes[JOURNAL_DISKS_MAX]; /* 0: not journaled */
	uint64_t sum;
};

struct journal_entry {
	char magic[8];
	uint64_t generation, epoch, bytes, records_sum;
	uint64_t sum;
};

_Static_assert(sizeof(struct journal_header) == 160 && sizeof(struct journal_entry) == 48,
	       "no padding");

static inline uint64_t journal_sum(const void *data, size_t len, uint64_t nonce)
{
	return XXH3_64bits_withSeed(data, len, nonce);
}

#endif
