// SPDX-License-Identifier: Apache-2.0
/* A set-associative cache, as in a processor: page number modulo sets gives the set, which has
 * BASE_CACHE_WAYS slots to look through, and second chance within the set to evict. So the index is
 * the slots' own page numbers: nothing to rehash, no chain to walk, and a cache as large as the
 * guest's RAM never conflicts. */
#include "ft/base_cache.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define WAYS	       BASE_CACHE_WAYS
#define NO_PFN	       UINT32_MAX
#define PAGE_ALIGNMENT 64 /* a line of the processor's cache */

struct base_set {
	uint64_t epoch[WAYS];
	uint32_t pfn[WAYS]; /* NO_PFN: free */
	uint8_t used;	    /* bit: hit since the hand last passed */
	uint8_t touched;    /* bit: slot is in base_cache.touched */
	uint8_t hand;
};

static int set_way(const struct base_set *s, uint32_t pfn)
{
	for (int way = 0; way < WAYS; way++)
		if (s->pfn[way] == pfn)
			return way;
	return -1;
}

size_t base_cache_find(struct base_cache *c, uint32_t pfn)
{
	size_t set;
	int way;

	if (c->sets_n == 0)
		return BASE_NONE;
	set = pfn % c->sets_n;
	way = set_way(&c->sets[set], pfn);
	if (way < 0)
		return BASE_NONE;
	c->sets[set].used |= (uint8_t)(1u << way);
	return set * WAYS + (size_t)way;
}

size_t base_cache_take(struct base_cache *c, uint32_t pfn)
{
	struct base_set *s;
	size_t set;
	int way;

	if (c->sets_n == 0)
		return BASE_NONE;
	set = pfn % c->sets_n;
	s = &c->sets[set];
	way = set_way(s, NO_PFN);
	if (way < 0) {
		while (s->used & (1u << s->hand)) {
			s->used &= (uint8_t) ~(1u << s->hand);
			s->hand = (s->hand + 1) % WAYS;
		}
		way = s->hand;
		s->hand = (s->hand + 1) % WAYS;
	}
	s->pfn[way] = pfn;
	return set * WAYS + (size_t)way;
}

void base_cache_touch(struct base_cache *c, size_t slot, uint64_t epoch)
{
	struct base_set *s = &c->sets[slot / WAYS];
	unsigned way = slot % WAYS;

	s->epoch[way] = epoch;
	if (s->touched & (1u << way))
		return;
	s->touched |= (uint8_t)(1u << way);
	assert(c->touched_n < c->sets_n * WAYS);
	c->touched[c->touched_n++] = (uint32_t)slot;
}

int base_cache_init(struct base_cache *c, uint64_t pages_total, size_t bytes_max)
{
	const size_t set_bytes =
		sizeof(struct base_set) + WAYS * (FT_PAGE_BYTES + sizeof *c->touched);
	size_t sets_all = (size_t)(pages_total / WAYS + (pages_total % WAYS != 0));
	size_t sets_n = bytes_max / set_bytes;

	assert(pages_total <= NO_PFN);
	*c = (struct base_cache){.sets_n = sets_n < sets_all ? sets_n : sets_all};
	if (c->sets_n == 0)
		return 0;
	c->sets = calloc(c->sets_n, sizeof *c->sets);
	c->touched = calloc(c->sets_n * WAYS, sizeof *c->touched);
	c->pages = aligned_alloc(PAGE_ALIGNMENT, c->sets_n * WAYS * FT_PAGE_BYTES);
	if (!c->sets || !c->touched || !c->pages) {
		base_cache_free(c);
		return -ENOMEM;
	}
	base_cache_reset(c);
	return 0;
}

void base_cache_free(struct base_cache *c)
{
	free(c->pages);
	free(c->touched);
	free(c->sets);
	*c = (struct base_cache){0};
}

void base_cache_commit(struct base_cache *c, uint64_t epoch)
{
	size_t kept = 0;

	for (size_t i = 0; i < c->touched_n; i++) {
		size_t slot = c->touched[i];
		struct base_set *s = &c->sets[slot / WAYS];
		unsigned way = slot % WAYS;

		if (s->epoch[way] > epoch)
			c->touched[kept++] = (uint32_t)slot;
		else
			s->touched &= (uint8_t) ~(1u << way);
	}
	c->touched_n = kept;
}

void base_cache_abort(struct base_cache *c)
{
	for (size_t i = 0; i < c->touched_n; i++) {
		struct base_set *s = &c->sets[c->touched[i] / WAYS];
		unsigned way = c->touched[i] % WAYS;

		s->pfn[way] = NO_PFN;
		s->used &= (uint8_t) ~(1u << way);
		s->touched &= (uint8_t) ~(1u << way);
	}
	c->touched_n = 0;
}

void base_cache_reset(struct base_cache *c)
{
	for (size_t i = 0; i < c->sets_n; i++) {
		memset(&c->sets[i], 0, sizeof c->sets[i]);
		for (int way = 0; way < WAYS; way++)
			c->sets[i].pfn[way] = NO_PFN;
	}
	c->touched_n = 0;
}
