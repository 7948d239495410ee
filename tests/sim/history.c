// SPDX-License-Identifier: Apache-2.0
/* All histories that any machine executed, as a tree of chains, and what they promised: a guest
 * that boots from its disks must have everything that a client was told is durable, at a state that
 * is in one history with it. */
#include "tests/sim/world.h"

#include <stdlib.h>
#include <string.h>

#include "eventtap/tap.h"

struct plan plan_of(const struct world *w, uint64_t op, uint64_t request)
{
	struct plan p = {.writes = (unsigned)(request >> 8) % (SIM_WRITES_MAX + 1)};

	/* The journal is a ring: it must not overtake its last flush. */
	p.durable = (request >> 4) % 3 == 0 || op % (SIM_JOURNAL / 2) == 0;
	for (unsigned i = 0; i < p.writes; i++) {
		uint64_t r = request >> (12 + 10 * i);

		p.write[i].disk = (uint8_t)(r % w->options.disks);
		p.write[i].block = (uint8_t)(SIM_JOURNAL + (r >> 2) % (SIM_BLOCKS - SIM_JOURNAL));
		p.write[i].kind = (r >> 7) % 8 == 0   ? TAP_DISK_TRIM
				  : (r >> 7) % 8 == 1 ? TAP_DISK_ZERO
						      : TAP_DISK_WRITE;
	}
	return p;
}

void history_executed(struct world *w, const struct link_of_chain *link)
{
	if (w->history_n == w->history_max) {
		w->history_max = w->history_max ? w->history_max * 2 : 1024;
		w->history = realloc(w->history, w->history_max * sizeof *w->history);
		if (!w->history)
			abort();
	}
	w->history[w->history_n++] = *link;
}

uint64_t history_ancestor(struct world *w, uint64_t chain, uint64_t op)
{
	for (unsigned i = w->history_n; i-- > 0;) {
		const struct link_of_chain *l = &w->history[i];

		if (l->chain != chain)
			continue;
		if (l->op == op)
			return chain;
		chain = l->parent;
	}
	return 0;
}

struct writer {
	uint64_t op, chain;
};

/* The newest operation that wrote each block, in the history that leads to chain; none where a
 * later one trimmed or zeroed it. */
static void last_writers(struct world *w, uint64_t chain,
			 struct writer writer[SIM_DISKS][SIM_BLOCKS])
{
	bool known[SIM_DISKS][SIM_BLOCKS] = {0};

	memset(writer, 0, sizeof(struct writer) * SIM_DISKS * SIM_BLOCKS);
	for (unsigned i = w->history_n; i-- > 0;) {
		const struct link_of_chain *l = &w->history[i];

		if (l->chain != chain)
			continue;
		for (unsigned k = l->plan.writes; k-- > 0;) {
			unsigned d = l->plan.write[k].disk, b = l->plan.write[k].block;

			if (!known[d][b] && !l->unsure && l->plan.write[k].kind == TAP_DISK_WRITE)
				writer[d][b] = (struct writer){.op = l->op, .chain = chain};
			known[d][b] = true;
		}
		chain = l->parent;
	}
}

/* The newest operation up to this state whose data was flushed before its journal was written: the
 * guest trusts the journal. */
static uint64_t newest_durable(struct world *w, uint64_t chain)
{
	for (unsigned i = w->history_n; i-- > 0;) {
		const struct link_of_chain *l = &w->history[i];

		if (l->chain != chain)
			continue;
		if (l->plan.durable)
			return chain;
		chain = l->parent;
	}
	return 0;
}

/* Each data block is what the newest durable write left there, or newer, be it of a history that
 * ended with the power. Zeroes may be of a later request, and say nothing. */
static void check_blocks(struct node *n, unsigned disk, uint64_t durable)
{
	struct world *w = n->world;
	struct writer writer[SIM_DISKS][SIM_BLOCKS];
	uint64_t stamp[2];
	uint8_t block[SECTOR];

	last_writers(w, durable, writer);
	for (unsigned b = SIM_JOURNAL; b < SIM_BLOCKS; b++) {
		const struct writer *by = &writer[disk][b];

		if (!by->op || disk_read(n, disk, b, block))
			continue;
		memcpy(stamp, block, sizeof stamp);
		if (stamp[0] && history_ancestor(w, stamp[1], by->op) != by->chain)
			world_violation(w,
					"%s boots from disk %u whose block %u is of operation "
					"%llu; operation %llu had written it and flushed",
					n->name, disk, b, (unsigned long long)stamp[0],
					(unsigned long long)by->op);
	}
}

/* Does a flush of one disk come before later writes of another? A shared disk's held writes reach
 * it later than what is written through elsewhere, and one disk after the other. */
static bool ordered_with_journal(const struct world *w, unsigned disk)
{
	return !w->torn &&
	       (disk == 0 || (!w->options.disk_shared[0] && !w->options.disk_shared[disk]));
}

/* The journal may tell of operations whose data was not flushed, or not in order with it: the guest
 * takes what is there. */
static void forget_unflushed(struct world *w, uint64_t chain)
{
	bool ordered = true;

	for (unsigned d = 0; d < w->options.disks; d++)
		ordered &= ordered_with_journal(w, d);
	for (unsigned i = w->history_n; i-- > 0;) {
		struct link_of_chain *l = &w->history[i];

		if (l->chain != chain)
			continue;
		if (ordered ? l->plan.durable : l->op <= w->durable_op)
			return;
		l->unsure = true;
		chain = l->parent;
	}
}

void check_boot(struct node *n, const struct machine_state *state)
{
	struct world *w = n->world;
	uint64_t chain = state->chain;

	w->boots++;
	world_log(w, "%s: BOOTS from its disks at operation %llu", n->name,
		  (unsigned long long)state->ops);
	if (w->must_survive)
		world_violation(w, "the guest was protected, met one fault, and had to boot anew");
	/* A takeover was cut short in the middle of its disk, and people insist: a mixture of
	 * epochs, in which even a journal may have a gap. */
	if (w->torn && state->ops < w->durable_op) {
		w->durable_op = state->ops;
		w->durable_chain = chain;
	}
	if (w->durable_op && (state->ops < w->durable_op ||
			      history_ancestor(w, chain, w->durable_op) != w->durable_chain)) {
		world_violation(w,
				"%s boots at operation %llu without operation %llu, which the "
				"client was told is durable",
				n->name, (unsigned long long)state->ops,
				(unsigned long long)w->durable_op);
		return;
	}
	for (unsigned d = 0; d < w->options.disks; d++)
		check_blocks(n, d,
			     ordered_with_journal(w, d) ? newest_durable(w, chain)
							: w->durable_chain);
	forget_unflushed(w, state->chain);
	/* What was not promised to be durable may be gone, and the client's connections are. */
	for (uint64_t op = state->ops + 1; op <= w->answered_max; op++)
		w->seen_chain[op] = 0;
	if (w->answered_max > state->ops)
		w->answered_max = state->ops;
	for (unsigned i = w->history_n; i-- > 0;) {
		const struct link_of_chain *l = &w->history[i];

		if (l->chain != chain)
			continue;
		if (w->seen_chain[l->op] && w->seen_chain[l->op] != chain)
			world_violation(w, "%s boots into a history without answer %llu", n->name,
					(unsigned long long)l->op);
		w->seen_chain[l->op] = chain;
		chain = l->parent;
	}
	w->answered_max = state->ops;
	/* The rule let this host have the guest: who spoke before has nothing new to say. */
	w->spoke = n;
	w->spoke_generation = 0;
	w->taken_ops = state->ops;
}
