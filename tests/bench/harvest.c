// SPDX-License-Identifier: Apache-2.0
// Harvest: which pages are dirty, and their copies in staging. Here: vmm_harvest() and, in the
// batches of a checkpoint, ram_copy(). Floor: one bare PAGEMAP_SCAN of the same RAM, and
// memcpy() of the same pages from the same mapping. A stopped QEMU with 1 GiB that was all written
// once serves both in turn.
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "direct.h"
#include "vmm-glue/qemu/internal.h"
#include "vmm-glue/uffd_abi.h"

#define BYTES	   (1ull << 30)
#define PAGES	   (BYTES / VMM_PAGE_BYTES)
#define PAGES_MAX  50000
#define COPY_BATCH 128 /* as a checkpoint copies */
#define FIRST_PAGE 256 /* the first MiB has more than one mapping */

struct harvest {
	struct vmm *vmm;
	struct ram *ram;
	int pagemap;
	struct ft_bitmap dirty;
	uint64_t *pfns, *want;
	uint8_t *staging;
	struct page_region *ranges;
};

static int ours(struct harvest *h, size_t n, double *ms, struct ft_err *err)
{
	uint64_t start = bench_now_ns(), pfn;
	size_t at = 0;
	int rc = vmm_harvest(h->vmm, &h->dirty, err);

	for (pfn = ft_bitmap_next(&h->dirty, 0); !rc && pfn < PAGES;) {
		size_t first = at;

		for (; at - first < COPY_BATCH && pfn < PAGES; at++) {
			h->pfns[at] = pfn;
			pfn = ft_bitmap_next(&h->dirty, pfn + 1);
		}
		if (!rc && ram_copy(h->ram, h->pfns + first, at - first,
				    h->staging + first * VMM_PAGE_BYTES))
			rc = ft_err_set(err, EIO, "harvest: RAM cannot be read");
	}
	*ms = bench_ms_since(start);
	ft_bitmap_clear_all(&h->dirty);
	return rc || at == n ? rc : ft_err_set(err, EIO, "harvest: %zu pages of %zu", at, n);
}

static int bare(struct harvest *h, size_t n, double *ms, struct ft_err *err)
{
	struct pm_scan_arg arg = {.size = sizeof arg,
				  .flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
				  .start = h->ram->hva,
				  .end = h->ram->hva + BYTES,
				  .vec = (uintptr_t)h->ranges,
				  .vec_len = PAGES_MAX + 1,
				  .category_mask = PAGE_IS_WRITTEN,
				  .return_mask = PAGE_IS_WRITTEN};
	uint64_t start = bench_now_ns();
	int ranges = ioctl(h->pagemap, PAGEMAP_SCAN, &arg);
	size_t at = 0;

	for (int i = 0; i < ranges; i++)
		for (uint64_t a = h->ranges[i].start; a < h->ranges[i].end; a += VMM_PAGE_BYTES)
			memcpy(h->staging + at++ * VMM_PAGE_BYTES, h->ram->map + (a - h->ram->hva),
			       VMM_PAGE_BYTES);
	*ms = bench_ms_since(start);
	return at == n ? 0 : ft_err_set(err, EIO, "bare scan: %zu pages of %zu", at, n);
}

static int measure(struct harvest *h, size_t n, unsigned rounds, const char *name,
		   struct ft_err *err)
{
	struct samples here = {0}, floor = {0};
	double ms;
	int rc = 0;

	scatter(h->want, n, FIRST_PAGE, PAGES - FIRST_PAGE);
	for (unsigned i = 0; i < 2 * rounds && !rc; i++) {
		bool mine = (i ^ i >> 1) & 1; /* one first, then the other first */

		rc = direct_dirty_stopped(h->vmm, h->want, n, err);
		if (!rc)
			rc = mine ? ours(h, n, &ms, err) : bare(h, n, &ms, err);
		if (!rc && i >= 2) /* the first two warm up */
			samples_add(mine ? &here : &floor, ms);
	}
	if (!rc)
		bench_report_samples(name, "ms", &here, &floor, BENCH_AT_MOST, 1.25,
				     "scan, re-arm, copy in 1 GiB");
	samples_free(&here);
	samples_free(&floor);
	return rc;
}

static int start(struct bench *b, struct harvest *h, struct ft_err *err)
{
	struct qemu_config c = {
		.name = "harvest", .run_dir = b->dir, .memory_bytes = BYTES, .cpus = 1};
	char path[64];
	int rc = qemu_start(&c, &h->vmm, err);

	if (!rc)
		rc = vmm_stop(h->vmm, err);
	if (rc)
		return rc;
	h->ram = &qemu_of(h->vmm)->ram;
	h->ranges = malloc((PAGES_MAX + 1) * sizeof *h->ranges);
	h->pfns = malloc(PAGES * sizeof *h->pfns);
	h->want = malloc(PAGES * sizeof *h->want);
	h->staging = malloc((size_t)PAGES_MAX * VMM_PAGE_BYTES);
	snprintf(path, sizeof path, "/proc/%d/pagemap", h->ram->pid);
	h->pagemap = open(path, O_RDONLY | O_CLOEXEC);
	if (!h->ranges || !h->pfns || !h->want || !h->staging || h->pagemap < 0 ||
	    ft_bitmap_init(&h->dirty, PAGES))
		return ft_err_set(err, ENOMEM, "harvest: no memory");
	memset(h->staging, 1, (size_t)PAGES_MAX * VMM_PAGE_BYTES);
	memset(h->ranges, 1, (PAGES_MAX + 1) * sizeof *h->ranges);
	for (uint64_t i = 0; i < PAGES; i++)
		h->want[i] = i;
	rc = direct_dirty_stopped(h->vmm, h->want, PAGES, err);
	if (!rc)
		rc = vmm_track_start(h->vmm, err);
	/* The save that track_start tries lets QEMU run as it was: stopped. What it wrote is not
	 * ours. */
	if (!rc)
		rc = vmm_harvest(h->vmm, &h->dirty, err);
	ft_bitmap_clear_all(&h->dirty);
	return rc;
}

static void end(struct harvest *h)
{
	if (h->vmm) {
		vmm_quit(h->vmm, false, 0);
		vmm_free(h->vmm);
	}
	if (h->pagemap >= 0)
		close(h->pagemap);
	ft_bitmap_free(&h->dirty);
	free(h->ranges);
	free(h->pfns);
	free(h->want);
	free(h->staging);
}

int bench_harvest(struct bench *b, struct ft_err *err)
{
	struct harvest h = {.pagemap = -1};
	int rc = start(b, &h, err);

	if (!rc)
		rc = measure(&h, 1000, b->quick ? 40 : 100, "harvest-1k", err);
	if (!rc)
		rc = measure(&h, 10000, b->quick ? 15 : 40, "harvest-10k", err);
	if (!rc)
		rc = measure(&h, 50000, b->quick ? 6 : 20, "harvest-50k", err);
	end(&h);
	return rc;
}
