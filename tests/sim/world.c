// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/world.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* A binary heap by (time, number): equal times run in the order in which they were asked for. */
struct event {
	uint64_t at, number;
	struct node *owner;
	uint64_t incarnation;
	bool survives; /* a crash of its owner */
	event_fn *fn;
	void *ctx;
	uint64_t arg;
};

#define FROZEN_RETRY (1 * MS)

uint64_t world_random(struct world *w)
{
	/* splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014 */
	uint64_t z = (w->rng += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

uint64_t world_range(struct world *w, uint64_t lo, uint64_t hi)
{
	return lo + world_random(w) % (hi - lo + 1);
}

bool world_chance(struct world *w, unsigned percent)
{
	return world_range(w, 1, 100) <= percent;
}

static bool before(const struct event *a, const struct event *b)
{
	return a->at != b->at ? a->at < b->at : a->number < b->number;
}

static void push(struct world *w, struct event event)
{
	unsigned i = w->heap_n++;

	if (w->heap_n > w->heap_max) {
		w->heap_max = w->heap_max ? w->heap_max * 2 : 256;
		w->heap = realloc(w->heap, w->heap_max * sizeof *w->heap);
		if (!w->heap)
			abort();
	}
	while (i && before(&event, &w->heap[(i - 1) / 2])) {
		w->heap[i] = w->heap[(i - 1) / 2];
		i = (i - 1) / 2;
	}
	w->heap[i] = event;
}

static struct event pop(struct world *w)
{
	struct event first = w->heap[0], last = w->heap[--w->heap_n];
	unsigned i = 0;

	for (;;) {
		unsigned child = 2 * i + 1;

		if (child >= w->heap_n)
			break;
		if (child + 1 < w->heap_n && before(&w->heap[child + 1], &w->heap[child]))
			child++;
		if (!before(&w->heap[child], &last))
			break;
		w->heap[i] = w->heap[child];
		i = child;
	}
	w->heap[i] = last;
	return first;
}

void world_after(struct world *w, uint64_t in, struct node *owner, event_fn *fn, void *ctx,
		 uint64_t arg)
{
	push(w, (struct event){.at = w->now + in,
			       .number = w->seq++,
			       .owner = owner,
			       .incarnation = owner ? owner->incarnation : 0,
			       .fn = fn,
			       .ctx = ctx,
			       .arg = arg});
}

void world_wait(struct world *w, uint64_t in, struct node *owner, event_fn *fn, void *ctx)
{
	push(w, (struct event){.at = w->now + in,
			       .number = w->seq++,
			       .owner = owner,
			       .survives = true,
			       .fn = fn,
			       .ctx = ctx});
}

bool world_step(struct world *w, uint64_t until)
{
	struct event e;

	if (w->violated || !w->heap_n || w->heap[0].at > until)
		return false;
	e = pop(w);
	/* Something that blocks may have let time pass it by. */
	if (e.at > w->now)
		w->now = e.at;
	if (e.owner && !e.survives && e.owner->incarnation != e.incarnation)
		return true;
	if (e.owner && e.owner->frozen) {
		/* The same number, so the order within a node survives its sleep. */
		e.at = w->now + FROZEN_RETRY;
		push(w, e);
		return true;
	}
	e.fn(e.ctx, e.arg);
	for (unsigned i = 0; i < SIM_NODES; i++)
		if (w->nodes[i].dying)
			node_crash(&w->nodes[i], w->nodes[i].powerless);
	check_bounds(w);
	return true;
}

/* A long timeline is told by its ends: how it was set up and what went wrong. */
void world_log(struct world *w, const char *fmt, ...)
{
	char *line = w->lines[w->lines_n % SIM_LINES];
	va_list ap;
	int n;

	if (!w->run->timeline)
		return;
	n = snprintf(line, SIM_LINE, "%10.4f ms  ", (double)w->now / 1e6);
	va_start(ap, fmt);
	vsnprintf(line + n, (size_t)(SIM_LINE - n), fmt, ap);
	va_end(ap);
	if (w->run->timeline == TIMELINE_WHOLE || w->lines_n < SIM_LINES / 4)
		puts(line);
	w->lines_n++;
}

void world_log_end(struct world *w)
{
	unsigned from = w->lines_n > SIM_LINES ? w->lines_n - SIM_LINES : 0;

	if (w->run->timeline != TIMELINE_ENDS)
		return;
	if (from < SIM_LINES / 4)
		from = SIM_LINES / 4;
	else
		printf("      ...  %u lines\n", from - SIM_LINES / 4);
	for (unsigned i = from; i < w->lines_n; i++)
		puts(w->lines[i % SIM_LINES]);
	w->run->timeline =
		TIMELINE_NONE; /* what is said while the world is freed is of no interest */
}

void world_violation(struct world *w, const char *fmt, ...)
{
	va_list ap;

	if (w->violated || w->mutant == MUTANT_HOSTILE)
		return;
	w->violated = true;
	va_start(ap, fmt);
	vsnprintf(w->violation, sizeof w->violation, fmt, ap);
	va_end(ap);
	world_log(w, "VIOLATION: %s", w->violation);
}
