/* SPDX-License-Identifier: Apache-2.0 */
/* RAM in huge pages that follows in small ones. A huge page is shown to the guest when the last of
 * its small pages has come; until then it is put together in the file behind RAM, through a mapping
 * of our own, where the guest cannot see it: who touches it over there waits, whether the file has
 * that page (a minor fault) or not (a missing one). So what rounds brought before stays, and
 * nothing is kept twice. One thread at a time; the owner's lock. */
#ifndef VMM_GLUE_POSTCOPY_PAGE_HUGE_H
#define VMM_GLUE_POSTCOPY_PAGE_HUGE_H

#include <stdint.h>

#include "ft/bitmap.h"
#include "vmm-glue/vmm.h"

/* The largest that may wait for all of its small ones: x86-64's other size is 1 GiB. */
#define PAGE_HUGE_PAGES 512

struct page_huge {
	struct vmm_ram ram;
	uint64_t pages; /* small ones in a huge one */
	uint8_t *map;
	struct ft_bitmap backed; /* huge pages for which the file has memory for certain */
};

/* *out NULL: this RAM is in small pages. -ENOTSUP: in larger ones than PAGE_HUGE_PAGES. */
int page_huge_new(const struct vmm_ram *ram, struct page_huge **out, struct ft_err *err);
/* RAM is registered with uffd now: of the missing pages none is seen by the VM from here on. */
int page_huge_hide(struct page_huge *h, const struct ft_bitmap *missing, struct ft_err *err);
static inline uint64_t page_huge_first(const struct page_huge *h, uint64_t pfn)
{
	return pfn - pfn % h->pages;
}
/* A small page's place, to be written to. NULL: no huge page is left on this host. */
uint8_t *page_huge_at(struct page_huge *h, uint64_t pfn);
/* Are all small pages there that share a huge one with pfn? */
bool page_huge_is_whole(const struct page_huge *h, const struct ft_bitmap *missing, uint64_t pfn);
/* The guest sees it, and who waits goes on. 0 or -errno. Any thread. */
int page_huge_show(const struct page_huge *h, int uffd, uint64_t pfn);
/* Accepts NULL. */
void page_huge_free(struct page_huge *h);

#endif
