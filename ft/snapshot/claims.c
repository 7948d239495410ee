// SPDX-License-Identifier: Apache-2.0
#include "ft/snapshot/claims.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

static uint64_t words_of(const struct claims *c)
{
	return (c->pages + CLAIMS_WORD_PAGES - 1) / CLAIMS_WORD_PAGES;
}

int claims_init(struct claims *c, uint64_t pages)
{
	assert(pages > 0);
	c->pages = pages;
	c->next = 0;
	c->words = calloc(words_of(c), sizeof *c->words);
	return c->words ? 0 : -ENOMEM;
}

void claims_free(struct claims *c)
{
	free(c->words);
	c->words = NULL;
}

/* The pages that there are of a word. */
static uint64_t pages_of(const struct claims *c, uint64_t word)
{
	uint64_t left = c->pages - word * CLAIMS_WORD_PAGES;

	return left < CLAIMS_WORD_PAGES ? (UINT64_C(1) << left) - 1 : UINT64_MAX;
}

uint64_t claims_page(struct claims *c, uint64_t pfn, unsigned near)
{
	uint64_t word = pfn / CLAIMS_WORD_PAGES, page = UINT64_C(1) << (pfn % CLAIMS_WORD_PAGES),
		 some = near < CLAIMS_WORD_PAGES ? (UINT64_C(1) << near) - 1 : UINT64_MAX,
		 had = c->words[word];

	assert(pfn < c->pages);
	assert(near > 0 && near <= CLAIMS_WORD_PAGES && !(near & (near - 1)));
	some = (some << (pfn % CLAIMS_WORD_PAGES / near * near)) & pages_of(c, word);
	do
		if (had & page)
			return 0;
	while (!atomic_compare_exchange_weak(&c->words[word], &had, had | some));
	return some & ~had;
}

bool claims_next(struct claims *c, uint64_t *word, uint64_t *mine)
{
	uint64_t all;

	*word = atomic_fetch_add(&c->next, 1);
	if (*word >= words_of(c))
		return false;
	all = pages_of(c, *word);
	*mine = all & ~atomic_fetch_or(&c->words[*word], all);
	return true;
}

unsigned claims_run(uint64_t pages, unsigned *i)
{
	uint64_t left;

	if (*i >= CLAIMS_WORD_PAGES || !(pages >> *i))
		return 0;
	*i += (unsigned)__builtin_ctzll(pages >> *i);
	left = ~(pages >> *i);
	return left ? (unsigned)__builtin_ctzll(left) : CLAIMS_WORD_PAGES;
}

bool claims_left(const struct claims *c)
{
	return c->next < words_of(c);
}
