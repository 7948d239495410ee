/* SPDX-License-Identifier: Apache-2.0 */
/* The sender's bases: the last copies of pages that the standby has, in a bounded number of slots.
 * A base is uncommitted from base_cache_touch() until its epoch is committed; an abort forgets
 * every uncommitted one. One thread at a time; internal to the page codec. */
#ifndef FT_BASE_CACHE_H
#define FT_BASE_CACHE_H

#include <stddef.h>
#include <stdint.h>

#include "ft/codec.h"

#define BASE_CACHE_WAYS 8
#define BASE_NONE	SIZE_MAX

struct base_set;
struct base_cache {
	size_t sets_n; /* 0: no cache, all else NULL */
	struct base_set *sets;
	uint8_t *pages; /* sets_n * BASE_CACHE_WAYS; the system gives the memory as slots are first
			   used */
	uint32_t *touched; /* slots with uncommitted bases, each once */
	size_t touched_n;
};

/* bytes_max bounds everything; too little for one set means no cache. pages_total < 2^32. 0 or
 * -ENOMEM. */
int base_cache_init(struct base_cache *c, uint64_t pages_total, size_t bytes_max);
void base_cache_free(struct base_cache *c);

/* The slot that holds pfn's base, or BASE_NONE. */
size_t base_cache_find(struct base_cache *c, uint32_t pfn);
/* A slot for a page that has none; BASE_NONE without a cache. The caller fills it, then touches it.
 * It starts as not used, so that a sweep over all of RAM evicts its own pages before those that
 * come back at every checkpoint. */
size_t base_cache_take(struct base_cache *c, uint32_t pfn);
/* The slot's base belongs to `epoch` until that is committed. */
void base_cache_touch(struct base_cache *c, size_t slot, uint64_t epoch);

static inline uint8_t *base_cache_page(struct base_cache *c, size_t slot)
{
	return c->pages + slot * FT_PAGE_BYTES;
}

/* Both O(slots touched since the last commit). */
void base_cache_commit(struct base_cache *c, uint64_t epoch);
void base_cache_abort(struct base_cache *c);
/* Forgets every base. O(slots). */
void base_cache_reset(struct base_cache *c);

#endif
