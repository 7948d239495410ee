// SPDX-License-Identifier: Apache-2.0
/* The promises of the design, checked at every event that could break one.
 *
 * Output commit, nothing missing, one primary: each answer that a client sees must descend from
 * every answer seen before it. A release before its checkpoint, a lost operation and a second
 * primary all show as a fork of the chain. One process says each thing once, in order; at the end
 * no answer below the newest may be missing.
 *
 * Exact resume: RAM, state and disk at a takeover hash to what they were when that checkpoint was
 * captured; the standby's copy does so at any time.
 *
 * Protected means held: while a host says protected, no answer leaves whose checkpoint is not
 * acknowledged, and the VM would not outlive its agent. */
#include "tests/sim/world.h"

#include "ft/lease.h"

#include "ft/engine_internal.h" /* white box: what the engine says of itself costs too much to ask at every output */

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

struct answer {
	uint64_t op, chain, parent;
};

void check_executed(struct world *w, uint64_t op, uint64_t chain, uint64_t parent)
{
	if (w->history_n == w->history_max) {
		w->history_max = w->history_max ? w->history_max * 2 : 1024;
		w->history = realloc(w->history, w->history_max * sizeof *w->history);
		if (!w->history)
			abort();
	}
	w->history[w->history_n++] =
		(struct link_of_chain){.op = op, .chain = chain, .parent = parent};
}

/* The chain of operation `op` in the history that leads to `chain`; 0 = it does not lead there. */
static uint64_t ancestor(struct world *w, uint64_t chain, uint64_t op)
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

static void check_held(struct node *n, const struct answer *a)
{
	struct world *w = n->world;
	uint64_t committed;

	if (!n->engine || ft_engine_state(n->engine) != FT_PROTECTED)
		return;
	if (!n->guarded)
		world_violation(w, "%s is protected, but its VM would outlive it", n->name);
	committed = n->engine->committed;
	for (unsigned i = 0; i < SIM_CAPTURED; i++)
		if (w->captured[n->id][i].epoch == committed && w->captured[n->id][i].ops < a->op)
			world_violation(w,
					"%s released answer %llu while protected at epoch %llu, "
					"which holds %llu operations",
					n->name, (unsigned long long)a->op,
					(unsigned long long)committed,
					(unsigned long long)w->captured[n->id][i].ops);
}

void check_output(struct node *n, const struct tap_record *rec)
{
	struct world *w = n->world;
	struct answer a;

	if (rec->kind != TAP_NET || rec->len != sizeof a)
		return;
	memcpy(&a, rec->data, sizeof a);
	check_held(n, &a);
	/* One process says each thing once and in order. */
	if (a.op <= n->released_op)
		world_violation(w, "%s put out answer %llu after answer %llu", n->name,
				(unsigned long long)a.op, (unsigned long long)n->released_op);
	n->released_op = a.op;
	if (a.op >= SIM_OPS_MAX)
		return;
	if (w->seen_chain[a.op]) {
		w->duplicates++;
		if (w->seen_chain[a.op] != a.chain)
			world_violation(w,
					"answer %llu was given twice, differently (now by %s): two "
					"histories were released",
					(unsigned long long)a.op, n->name);
		return;
	}
	/* Answers may come late but never across histories: compare with the nearest known one on
	 * each side. */
	for (uint64_t op = a.op; op-- > 1;) {
		if (!w->seen_chain[op])
			continue;
		if (ancestor(w, a.chain, op) != w->seen_chain[op])
			world_violation(w,
					"answer %llu of %s does not contain operation %llu, which "
					"the client has",
					(unsigned long long)a.op, n->name, (unsigned long long)op);
		break;
	}
	for (uint64_t op = a.op + 1; op <= w->answered_max; op++) {
		if (!w->seen_chain[op])
			continue;
		if (ancestor(w, w->seen_chain[op], a.op) != a.chain)
			world_violation(
				w, "late answer %llu of %s is not in the history of answer %llu",
				(unsigned long long)a.op, n->name, (unsigned long long)op);
		break;
	}
	w->seen_chain[a.op] = a.chain;
	w->answers++;
	w->last_answer_ns = w->now;
	if (a.op > w->answered_max)
		w->answered_max = a.op;
}

void check_shared_write(struct node *n, uint64_t left_ns)
{
	struct world *w = n->world;

	if (w->shared_owner != n->id)
		world_violation(w, "%s writes to the shared disk, which is %s's", n->name,
				w->nodes[w->shared_owner].name);
	/* The worst: the agent freezes with one foot through the door, and its keeper, the kernel
	 * and the disk take all the time that they have. */
	if (left_ns != UINT64_MAX && !w->faults_over && !n->frozen && !world_side_range(w, 0, 39)) {
		uint64_t ns = world_side_range(w, 1, left_ns + FT_WRITE_MAX_MS * MS);

		w->options.faults++;
		n->write_lands_ns = w->now + ns;
		freeze_for(n, ns);
	}
}

void check_shared_taken(struct node *n)
{
	struct world *w = n->world;
	const struct node *o = &w->nodes[1 - n->id];

	if (!o->crashed && o->write_lands_ns > w->now)
		world_violation(w, "%s takes the shared disk, and a write of %s is on its way",
				n->name, o->name);
	w->shared_owner = n->id;
}

void check_captured(struct node *n, const struct machine_state *state)
{
	uint64_t epoch = n->engine->epoch;

	n->world->captured[n->id][epoch % SIM_CAPTURED] =
		(struct captured){.epoch = epoch,
				  .disk = disk_hash(&n->disk),
				  .hash = machine_hash_quick(n->machine, state),
				  .ops = state->ops,
				  .chain = state->chain};
}

static void check_resumable(struct node *n, const struct machine_state *state, const char *what)
{
	struct world *w = n->world;
	const struct captured *list = w->captured[1 - n->id];

	for (unsigned i = 0; i < SIM_CAPTURED; i++) {
		if (list[i].chain != state->chain || !list[i].epoch)
			continue;
		if (list[i].hash != machine_hash(n->machine, state))
			world_violation(w,
					"%s %s epoch %llu, but RAM, state or disk differ from what "
					"was captured",
					n->name, what, (unsigned long long)list[i].epoch);
		return;
	}
	if (state->ops)
		world_violation(w, "%s %s a state that was not captured lately (%llu operations)",
				n->name, what, (unsigned long long)state->ops);
}

void check_takeover(struct node *n, const struct machine_state *state)
{
	n->world->takeovers++;
	check_resumable(n, state, "resumes");
}

void check_standby(struct node *n)
{
	const struct ft_standby *s = &n->engine->standby;
	struct machine_state state;

	if (!s->committed || ft_engine_state(n->engine) != FT_STANDBY)
		return;
	memcpy(&state, s->stage.state[s->stage.staging ^ 1], sizeof state);
	check_resumable(n, &state, "holds");
}

uint64_t disk_hash(const struct disk *disk)
{
	return XXH3_64bits(disk->blocks, sizeof disk->blocks);
}

void check_journal(struct node *n)
{
	const struct captured *c = &n->world->captured[1 - n->id][n->stored % SIM_CAPTURED];

	if (n->stored < n->engine->standby.committed)
		world_violation(n->world, "%s acknowledged epoch %llu, its journal ends with %llu",
				n->name, (unsigned long long)n->engine->standby.committed,
				(unsigned long long)n->stored);
	if (c->epoch == n->stored && c->disk != disk_hash(&n->journaled))
		world_violation(n->world,
				"%s: a replay of its journal is not the disk of epoch %llu",
				n->name, (unsigned long long)n->stored);
}
