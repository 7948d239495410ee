// SPDX-License-Identifier: Apache-2.0
/* The race of a snapshot of RAM: production's claims (ft/snapshot/claims.h), and the steps of
 * vmm-glue/snapshot/snapshot.c between them, one at a time in any order. A guest writes pages; one
 * that is protected makes it wait for the fault thread, which claims, copies and lets go; workers
 * claim a word, read it, let go what is theirs, and write. In the end each page was saved once, as
 * it was when all were protected.
 *
 * Small worlds, drawn from the seed: nothing of a life's is shared with them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ft/snapshot/claims.h"
#include "tests/sim/world.h"

#define RAM_PAGES   150
#define WORKERS_MAX 3
#define NEAR_PAGES  8
#define STEPS	    5000 /* more than it takes, at any pace */
#define WORLDS	    16	 /* for each seed */

enum worker_step { WORKER_CLAIMS, WORKER_READS, WORKER_LETS_GO, WORKER_WRITES, WORKER_ENDS };

struct scanner {
	enum worker_step step;
	uint64_t word, mine;
	uint64_t read[CLAIMS_WORD_PAGES];
};

/* What one page holds is a number: how often it was written. */
struct frozen_ram {
	struct world *world;
	struct claims claims;
	unsigned pages, workers_n;
	uint64_t now[RAM_PAGES], then[RAM_PAGES], saved[RAM_PAGES];
	unsigned saves[RAM_PAGES];
	bool protected[RAM_PAGES];
	struct scanner workers[WORKERS_MAX];
	/* the guest's write that waits, and the fault thread's place in serving it */
	enum { GUEST_RUNS, FAULT_CLAIMS, FAULT_COPIES, FAULT_LETS_GO, FAULT_IS_ANOTHERS } fault;
	unsigned page;
	uint64_t mine; /* of its word: it, and neighbours that come along */
};

static void save(struct frozen_ram *f, unsigned page, uint64_t value)
{
	f->saved[page] = value;
	f->saves[page]++;
}

/* A write that waits goes on as soon as its page is not protected. */
static void let_go(struct frozen_ram *f, unsigned page)
{
	f->protected[page] = false;
	if (f->fault == GUEST_RUNS || f->page != page)
		return;
	f->now[page]++;
	if (f->fault == FAULT_IS_ANOTHERS || f->fault == FAULT_LETS_GO)
		f->fault = GUEST_RUNS;
}

static void guest_writes(struct frozen_ram *f)
{
	unsigned page = (unsigned)world_range(f->world, 0, f->pages - 1);

	if (!f->protected[page]) {
		f->now[page]++;
		return;
	}
	f->page = page;
	f->fault = FAULT_CLAIMS;
}

/* on_fault() */
static void fault_step(struct frozen_ram *f)
{
	unsigned first = f->page / CLAIMS_WORD_PAGES * CLAIMS_WORD_PAGES;

	switch (f->fault) {
	case GUEST_RUNS:
		guest_writes(f);
		break;
	case FAULT_CLAIMS:
		/* Alone when there is no room for others. */
		f->mine = claims_page(&f->claims, f->page,
				      world_chance(f->world, 70) ? NEAR_PAGES : 1);
		f->fault = f->mine ? FAULT_COPIES : FAULT_IS_ANOTHERS;
		/* It was let go between the fault and its claim. */
		if (f->fault == FAULT_IS_ANOTHERS && !f->protected[f->page])
			f->fault = GUEST_RUNS;
		break;
	case FAULT_COPIES:
		for (unsigned i = 0; claims_run(f->mine, &i); i++)
			save(f, first + i, f->now[first + i]);
		f->fault = FAULT_LETS_GO;
		break;
	case FAULT_LETS_GO:
		for (unsigned i = 0; claims_run(f->mine, &i); i++)
			let_go(f, first + i);
		f->fault = GUEST_RUNS;
		break;
	case FAULT_IS_ANOTHERS:
		break;
	}
}

/* save_chunk() */
static void worker_step(struct frozen_ram *f, struct scanner *w)
{
	enum mutant mutant = f->world->mutant;
	unsigned first = (unsigned)w->word * CLAIMS_WORD_PAGES, n;

	switch (w->step) {
	case WORKER_CLAIMS:
		w->step = claims_next(&f->claims, &w->word, &w->mine)
				  ? mutant == MUTANT_LET_GO_EARLY ? WORKER_LETS_GO : WORKER_READS
				  : WORKER_ENDS;
		break;
	case WORKER_READS:
		for (unsigned i = 0; i < CLAIMS_WORD_PAGES && first + i < f->pages; i++)
			w->read[i] = f->now[first + i];
		w->step = mutant == MUTANT_LET_GO_EARLY ? WORKER_WRITES : WORKER_LETS_GO;
		break;
	case WORKER_LETS_GO:
		if (mutant == MUTANT_NEIGHBOUR_LET_GO)
			for (unsigned i = 0; i < CLAIMS_WORD_PAGES && first + i < f->pages; i++)
				let_go(f, first + i);
		for (unsigned i = 0; (n = claims_run(w->mine, &i)); i += n)
			for (unsigned k = 0; k < n; k++)
				let_go(f, first + i + k);
		w->step = mutant == MUTANT_LET_GO_EARLY ? WORKER_READS : WORKER_WRITES;
		break;
	case WORKER_WRITES:
		for (unsigned i = 0; (n = claims_run(w->mine, &i)); i += n)
			for (unsigned k = 0; k < n; k++)
				save(f, first + i + k, w->read[i + k]);
		w->step = WORKER_CLAIMS;
		break;
	case WORKER_ENDS:
		break;
	}
}

static bool ended(const struct frozen_ram *f)
{
	for (unsigned i = 0; i < f->workers_n; i++)
		if (f->workers[i].step != WORKER_ENDS)
			return false;
	return f->fault == GUEST_RUNS;
}

static void check(const struct frozen_ram *f)
{
	if (!ended(f))
		world_violation(f->world, "snapshot: the guest waits for ever");
	for (unsigned i = 0; i < f->pages; i++)
		if (f->saves[i] != 1)
			world_violation(f->world, "snapshot: page %u is saved %u times", i,
					f->saves[i]);
		else if (f->saved[i] != f->then[i])
			world_violation(f->world, "snapshot: page %u is not as it was", i);
}

static void run_one(struct world *w)
{
	/* Percent of the steps are the guest's and the fault thread's. */
	unsigned quick = (unsigned)world_range(w, 5, 95);
	struct frozen_ram *f = calloc(1, sizeof *f);

	if (!f)
		abort();
	f->world = w;
	f->pages = (unsigned)world_range(w, 1, RAM_PAGES);
	f->workers_n = (unsigned)world_range(w, 1, WORKERS_MAX);
	if (claims_init(&f->claims, f->pages))
		abort();
	for (unsigned i = 0; i < f->pages; i++) {
		f->then[i] = f->now[i] = world_random(w);
		f->protected[i] = true;
	}
	for (unsigned i = 0; i < STEPS && !ended(f); i++) {
		if (world_chance(w, quick))
			fault_step(f);
		else
			worker_step(f, &f->workers[world_range(w, 0, f->workers_n - 1)]);
	}
	check(f);
	claims_free(&f->claims);
	free(f);
}

void frozen_ram_run(struct world *w)
{
	uint64_t before = w->rng;

	w->rng = w->options.seed;
	for (unsigned i = 0; i < WORLDS; i++)
		run_one(w);
	w->rng = before;
}
