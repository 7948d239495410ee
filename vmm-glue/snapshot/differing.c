// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/snapshot/differing.h"

#include <assert.h>
#include <stdbool.h>
#include <string.h>

#include "ft/page.h"

#define PAGE MAPPED_RAM_PAGE_BYTES

/* What was saved before counts, not what is in the source. */
static bool differs(const struct differing *d, uint64_t pfn, const uint8_t *page,
		    const uint8_t *old)
{
	if (changes_has(d->to, pfn))
		return true;
	return old ? memcmp(page, old, PAGE) != 0 : !page_is_zero(page);
}

/* Pages that are all in the source, or all zeroes there. */
static int put_alike(struct differing *d, uint64_t pfn, size_t n, const uint8_t *pages)
{
	bool has = source_has(d->than, pfn);
	int rc = has ? source_read(d->than, pfn, n, d->buffer) : 0;

	for (size_t at = 0, end; at < n && !rc; at = end) {
		for (end = at; end < n; end++)
			if (!differs(d, pfn + end, pages + end * PAGE,
				     has ? d->buffer + end * PAGE : NULL))
				break;
		if (end > at)
			rc = changes_put(d->to, pfn + at, end - at, pages + at * PAGE);
		d->put += end - at;
		end += end < n;
	}
	return rc;
}

int differing_put(struct differing *d, uint64_t pfn, size_t n, const uint8_t *pages)
{
	int rc = 0;

	assert(n <= DIFFERING_PAGES_MAX);
	for (size_t at = 0, run; at < n && !rc; at += run) {
		run = source_run(d->than, pfn + at, n - at);
		rc = put_alike(d, pfn + at, run, pages + at * PAGE);
	}
	return rc;
}

int differing_put_zeroes(struct differing *d, uint64_t pfn, uint64_t n)
{
	static const uint8_t zeroes[DIFFERING_PAGES_MAX * PAGE];
	uint64_t end = pfn + n;
	int rc = 0;

	for (uint64_t run; pfn < end && !rc; pfn += run) {
		run = source_run(d->than, pfn, end - pfn);
		if (!source_has(d->than, pfn))
			continue;
		run = run < DIFFERING_PAGES_MAX ? run : DIFFERING_PAGES_MAX;
		rc = put_alike(d, pfn, run, zeroes);
	}
	return rc;
}
