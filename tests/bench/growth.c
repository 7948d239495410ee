// SPDX-License-Identifier: Apache-2.0
// What a dirty page adds to the pause: pauses with many dirty pages less pauses with few, by page.
// Floor: memcpy() of the same pages from the mapping that is shared with QEMU, after the same
// preparation.
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "direct.h"
#include "vmm-glue/qemu/internal.h"

#define MANY   8000u
#define GAP_MS 5

struct growth {
	struct direct *d;
	struct capture *c;
	uint64_t pfns[MANY];
	struct samples few, many, bare;
	size_t few_pages, many_pages;
};

static int pause_once(struct growth *g, size_t dirty, struct samples *s, size_t *pages,
		      struct ft_err *err)
{
	double ms = 0;
	int rc = direct_dirty(g->d->vmm, g->pfns, dirty, err);

	if (!rc)
		rc = vmm_checkpoint_prepare(g->d->vmm, err);
	direct_idle(g->d, GAP_MS);
	if (!rc)
		rc = capture_take(g->c, g->d->vmm, &ms, pages, err);
	if (!rc)
		samples_add(s, ms);
	return rc;
}

static int bare_once(struct growth *g, struct ft_err *err)
{
	const struct ram *ram = &qemu_of(g->d->vmm)->ram;
	uint8_t *staging = capture_of(g->c)->pages;
	int rc = direct_dirty(g->d->vmm, g->pfns, MANY, err);
	uint64_t start;

	direct_idle(g->d, GAP_MS);
	start = bench_now_ns();
	for (size_t i = 0; i < MANY; i++)
		memcpy(staging + i * VMM_PAGE_BYTES, ram->map + g->pfns[i] * VMM_PAGE_BYTES,
		       VMM_PAGE_BYTES);
	samples_add(&g->bare, bench_ms_since(start) / MANY * 1e3);
	return rc;
}

static void report(const struct growth *g)
{
	double pages =
		(double)g->many_pages / (double)g->many.n - (double)g->few_pages / (double)g->few.n;
	struct bench_figure f = {.name = "growth",
				 .unit = "us",
				 .kind = BENCH_AT_MOST,
				 .reach = 1.5,
				 .floor = samples_median(&g->bare)};

	f.value = (samples_median(&g->many) - samples_median(&g->few)) / pages * 1e3;
	snprintf(f.note, sizeof f.note,
		 "a page; %.0f more pages: pause p50 of %zu %.2f ms, not %.2f ms", pages, g->many.n,
		 samples_median(&g->many), samples_median(&g->few));
	bench_report(&f);
}

int bench_growth(struct bench *b, struct ft_err *err)
{
	static struct growth g;
	unsigned rounds = b->quick ? 16 : 60;
	int rc = direct_pc(b, err);

	if (rc)
		return rc;
	g.d = b->pc;
	rc = capture_new(GUEST_PAGES, &g.c, err);
	scatter(g.pfns, MANY, 256, GUEST_PAGES - 256);
	for (unsigned i = 0; i < rounds + 1 && !rc; i++) {
		if (i == 1) { /* the first is to warm up */
			g.few.n = g.many.n = g.bare.n = 0;
			g.few_pages = g.many_pages = 0;
		}
		rc = pause_once(&g, MANY, &g.many, &g.many_pages, err);
		if (!rc)
			rc = bare_once(&g, err);
		if (!rc) /* takes what bare_once() made dirty */
			rc = capture_take(g.c, g.d->vmm, &(double){0}, NULL, err);
		if (!rc)
			rc = pause_once(&g, 0, &g.few, &g.few_pages, err);
	}
	if (!rc)
		report(&g);
	capture_free(g.c);
	samples_free(&g.few);
	samples_free(&g.many);
	samples_free(&g.bare);
	return rc;
}
