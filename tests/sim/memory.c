// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/memory.h"

#include <stdlib.h>
#include <string.h>

#include "tests/sim/files.h"

#define STATE_BYTES  64
#define PASSES_MAX   3
#define WRITES_MAX   6
#define MACHINE_NAME "small"

void memory_run(struct memory_guest *g)
{
	struct world *w = g->world;

	for (uint64_t n = world_range(w, 0, WRITES_MAX); n; n--) {
		unsigned page = (unsigned)world_range(w, 0, MEMORY_PAGES - 1);

		g->now.page[page] = world_chance(w, 25) ? 0 : world_random(w);
		if (w->mutant != MUTANT_WRITE_FORGOTTEN || !world_chance(w, 5))
			g->written[page] = true;
	}
	g->now.state = world_random(w);
}

void memory_scan(struct memory_guest *g, bool known, bool pending[MEMORY_PAGES])
{
	for (unsigned i = 0; i < MEMORY_PAGES; i++) {
		pending[i] = !known || pending[i] || g->written[i];
		g->written[i] = false;
	}
}

static void run_now_and_then(struct memory_guest *g)
{
	if (world_chance(g->world, 10))
		memory_run(g);
}

static int put(const struct source *from, struct changes_out *to, unsigned pfn, uint64_t value)
{
	uint8_t page[MAPPED_RAM_PAGE_BYTES], before[MAPPED_RAM_PAGE_BYTES] = {0};
	int rc = source_has(from, pfn) ? source_read(from, pfn, 1, before) : 0;

	memory_page(value, page);
	/* What was saved before counts, not what the file has. */
	if (rc || (!changes_has(to, pfn) && !memcmp(page, before, sizeof page)))
		return rc;
	return changes_put(to, pfn, 1, page);
}

/* A page's bit is cleared before the page is read: who writes it meanwhile sets it again. */
static int pass(struct memory_guest *g, const bool pending[MEMORY_PAGES], const struct source *from,
		struct changes_out *to)
{
	bool late = g->world->mutant == MUTANT_CLEARED_LATE;
	int rc = 0;

	for (unsigned i = 0; i < MEMORY_PAGES && !rc; i++) {
		uint64_t value = g->now.page[i];

		if (!pending[i])
			continue;
		run_now_and_then(g);
		if (late)
			g->written[i] = false;
		rc = put(from, to, i, value);
	}
	return rc;
}

int memory_save(struct memory_guest *g, bool known, const struct source *from,
		struct changes_out *to, struct memory *then, struct ft_err *err)
{
	uint8_t tail[MAPPED_RAM_TAIL_MAX + STATE_BYTES];
	bool pending[MEMORY_PAGES] = {0};
	int rc = 0;

	memory_scan(g, known, pending);
	for (uint64_t n = world_range(g->world, 1, PASSES_MAX); n && !rc; n--) {
		rc = pass(g, pending, from, to);
		memset(pending, 0, sizeof pending);
		memory_scan(g, true, pending);
	}
	*then = g->now;
	memory_run(g);
	for (unsigned i = 0; i < MEMORY_PAGES && !rc; i++)
		if (pending[i])
			rc = put(from, to, i, then->page[i]);
	if (rc)
		return ft_err_set(err, -rc, "%s", to->path);
	return changes_seal(to, tail, memory_tail(then, tail), err);
}

void memory_ram(struct vmm_ram *ram)
{
	*ram = (struct vmm_ram){.pidfd = -1,
				.fd = -1,
				.bytes = MEMORY_PAGES * MAPPED_RAM_PAGE_BYTES,
				.block = "ram",
				.machine = MACHINE_NAME};
}

void memory_layout(struct mapped_ram *m)
{
	memset(m, 0, sizeof *m);
	m->blocks_n = 1;
	strcpy(m->machine, MACHINE_NAME);
	strcpy(m->blocks[0].name, "ram");
	m->blocks[0].bytes = MEMORY_PAGES * MAPPED_RAM_PAGE_BYTES;
	mapped_ram_plan(m);
}

void memory_page(uint64_t value, uint8_t out[MAPPED_RAM_PAGE_BYTES])
{
	for (unsigned i = 0; i < MAPPED_RAM_PAGE_BYTES; i += sizeof value)
		memcpy(out + i, &value, sizeof value);
}

size_t memory_tail(const struct memory *m, uint8_t out[MAPPED_RAM_TAIL_MAX + 64])
{
	uint8_t state[STATE_BYTES] = {0};

	memcpy(state, &m->state, sizeof m->state);
	return mapped_ram_pack_state(MEMORY_KIND, state, sizeof state, out);
}

static bool page_is(const struct source *s, unsigned pfn, uint64_t value)
{
	uint8_t want[MAPPED_RAM_PAGE_BYTES], got[MAPPED_RAM_PAGE_BYTES];

	if (!source_has(s, pfn))
		return value == 0;
	memory_page(value, want);
	return !source_read(s, pfn, 1, got) && !memcmp(want, got, sizeof want);
}

bool memory_is(const struct memory *m, const struct source *s)
{
	static uint8_t state[MAPPED_RAM_STATE_MAX];
	size_t len;

	if (source_state(s, MEMORY_KIND, state, &len, NULL) || len != STATE_BYTES ||
	    memcmp(state, &m->state, sizeof m->state) != 0)
		return false;
	for (unsigned i = 0; i < MEMORY_PAGES; i++)
		if (!page_is(s, i, m->page[i]))
			return false;
	return true;
}

void memory_may_die(struct node *n, unsigned percent, unsigned steps)
{
	n->crash_in =
		world_chance(n->world, percent) ? (unsigned)world_range(n->world, 1, steps) : 0;
}

bool memory_died(struct node *n)
{
	bool died = n->dying;

	n->crash_in = 0;
	if (!died)
		return false;
	n->dying = false;
	files_process_gone(n);
	if (world_chance(n->world, 60))
		files_power_lost(n);
	return true;
}

uint32_t memory_id(struct world *w)
{
	return (uint32_t)world_range(w, 1, UINT32_MAX);
}
