/* SPDX-License-Identifier: Apache-2.0 */
/* A small guest's memory whose past is kept in files, and what is known of what it wrote; under
 * production's files of changes. For worlds of their own, before a life (increments.c, pasts.c). */
#ifndef TESTS_SIM_MEMORY_H
#define TESTS_SIM_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/sim/world.h"
#include "vmm-glue/snapshot/changes_file.h"
#include "vmm-glue/snapshot/source.h"

#define MEMORY_PAGES 20
#define MEMORY_KIND  "sim"

/* What a page holds is a number, in each word of it; 0: zeroes. */
struct memory {
	uint64_t page[MEMORY_PAGES], state;
};

struct memory_guest {
	struct world *world;
	struct memory now;
	bool written[MEMORY_PAGES]; /* since it was asked; production's since.h */
};

/* It writes some pages. */
void memory_run(struct memory_guest *g);
/* Which pages a next one may differ in: those written, or all where nobody knows. */
void memory_scan(struct memory_guest *g, bool known, bool pending[MEMORY_PAGES]);
/* As increment_work.c: passes over what is pending, while the guest runs; then a moment, *then. The
 * file that it is compared with is `from`; what differs goes into `to`, which is sealed. */
int memory_save(struct memory_guest *g, bool known, const struct source *from,
		struct changes_out *to, struct memory *then, struct ft_err *err);

void memory_ram(struct vmm_ram *ram);
void memory_layout(struct mapped_ram *m);
void memory_page(uint64_t value, uint8_t out[MAPPED_RAM_PAGE_BYTES]);
/* Packs the state; returns its length. */
size_t memory_tail(const struct memory *m, uint8_t out[MAPPED_RAM_TAIL_MAX + 64]);
/* What is restored from it is m, bit by bit. */
bool memory_is(const struct memory *m, const struct source *s);

/* The host dies in the middle of something, soon or not. */
void memory_may_die(struct node *n, unsigned percent, unsigned steps);
/* It did: it starts again. False: it lives. */
bool memory_died(struct node *n);
/* A random id, never 0. */
uint32_t memory_id(struct world *w);

#endif
