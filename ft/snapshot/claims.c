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

bool claims_page(struct claims *c, uint64_t pfn)
{
	uint64_t bit = UINT64_C(1) << (pfn % CLAIMS_WORD_PAGES);

	assert(pfn < c->pages);
	return !(atomic_fetch_or(&c->words[pfn / CLAIMS_WORD_PAGES], bit) & bit);
}

bool claims_next(struct claims *c, uint64_t *word, uint64_t *mine)
{
	uint64_t all = UINT64_MAX, left;

	*word = atomic_fetch_add(&c->next, 1);
	if (*word >= words_of(c))
		return false;
	left = c->pages - *word * CLAIMS_WORD_PAGES;
	if (left < CLAIMS_WORD_PAGES)
		all = (UINT64_C(1) << left) - 1;
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
