// SPDX-License-Identifier: Apache-2.0
/* The promises of the design, checked at every event that could break one.
 *
 * (a) Output commit: while a host says protected, no answer leaves whose checkpoint is not
 * acknowledged, and its VM would not outlive its agent. check_held()
 *
 * (b) One history: each answer that a client sees must descend from every answer seen before it. A
 * release before its checkpoint, a lost operation and a second primary all show as a fork of the
 * chain. One process says each thing once, in order; at the end no answer below the newest may be
 * missing. check_output(), check_end()
 *
 * (c) What clients were told survives: a takeover loses no answered operation (b), a boot from the
 * disks none that was durable. check_boot()
 *
 * (d) Exact resume: RAM and state at a takeover hash to what they were when that checkpoint was
 * captured; the standby's copy does so at any time. check_takeover(), check_standby()
 *
 * (e) Disks equal their epoch: likewise, and before a host runs a guest from them they do so also
 * if all power went; whatever metadata claims to be whole is. check_activated(), check_claim(),
 * check_boot()
 *
 * (f) One primary: a generation has one holder, and who speaks under an older one than somebody
 * else has spoken under has lost. check_granted(), check_speaker()
 *
 * (g) Bounds: bounds.c
 *
 * Liveness: check_end() */
#include "tests/sim/world.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "eventtap/block/metadata.h"
#include "ft/lease.h"
#include "ft/engine_internal.h" /* white box: what the engine says of itself costs too much to ask at every output */

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

/* Rule 1 of arbitration, from outside: outputs are of one generation after the other. */
static void check_speaker(struct node *n, const struct answer *a)
{
	struct world *w = n->world;
	uint64_t generation = n->engine->generation;

	/* An acknowledged epoch's outputs may leave late: they say again what was said, or what the
	 * other host had no time to say of the checkpoint that it took over. */
	if (generation < w->spoke_generation && w->spoke != n) {
		if (a->op > w->taken_ops &&
		    (a->op >= SIM_OPS_MAX || w->seen_chain[a->op] != a->chain))
			world_violation(w,
					"%s releases answer %llu under generation %llu after %s "
					"has released under generation %llu",
					n->name, (unsigned long long)a->op,
					(unsigned long long)generation, w->spoke->name,
					(unsigned long long)w->spoke_generation);
		return;
	}
	if (generation && generation == w->spoke_generation && w->spoke != n)
		world_violation(w, "%s and %s release under the same generation %llu", n->name,
				w->spoke->name, (unsigned long long)generation);
	w->spoke_generation = generation;
	w->spoke = n;
	w->ran_last = n;
}

void check_granted(struct node *n, const struct ft_grant_record *record)
{
	struct world *w = n->world;
	struct ft_grant_record *known =
		&w->granted[record->generation % (sizeof w->granted / sizeof *w->granted)];

	if (known->generation == record->generation && strcmp(known->holder, record->holder))
		world_violation(w, "generation %llu was granted to %s and to %s",
				(unsigned long long)record->generation, known->holder,
				record->holder);
	*known = *record;
}

void check_output(struct node *n, const struct tap_record *rec)
{
	struct world *w = n->world;
	struct answer a;

	if (rec->kind != TAP_NET || rec->len != sizeof a)
		return;
	memcpy(&a, rec->data, sizeof a);
	check_held(n, &a);
	check_speaker(n, &a);
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
		if (history_ancestor(w, a.chain, op) != w->seen_chain[op])
			world_violation(w,
					"answer %llu of %s does not contain operation %llu, which "
					"the client has",
					(unsigned long long)a.op, n->name, (unsigned long long)op);
		break;
	}
	for (uint64_t op = a.op + 1; op <= w->answered_max; op++) {
		if (!w->seen_chain[op])
			continue;
		if (history_ancestor(w, w->seen_chain[op], a.op) != a.chain)
			world_violation(
				w, "late answer %llu of %s is not in the history of answer %llu",
				(unsigned long long)a.op, n->name, (unsigned long long)op);
		break;
	}
	w->seen_chain[a.op] = a.chain;
	if (a.durable && a.op > w->durable_op) {
		w->durable_op = a.op;
		w->durable_chain = a.chain;
	}
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
	if (left_ns != UINT64_MAX && !w->faults_over && !n->frozen && !world_range(w, 0, 39)) {
		uint64_t ns = world_range(w, 1, left_ns + FT_WRITE_MAX_MS * MS);

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

/* What a bitmap does not say was not written. exact: and what it says was. */
void check_own_bitmaps(struct node *n, bool exact)
{
	for (unsigned d = 0; d < n->world->options.disks; d++) {
		uint32_t dirty, written = n->machine->written[d], perhaps = n->machine->perhaps[d];

		if (!disk_still(n, d))
			world_violation(n->world, "%s: the bitmap of disk %u that is off has marks",
					n->name, d);
		if (!disk_dirty(n, d, &dirty))
			continue;
		if (written & ~dirty)
			world_violation(n->world, "%s: the bitmap of disk %u lacks blocks %08x",
					n->name, d, written & ~dirty);
		if (exact && dirty & ~perhaps)
			world_violation(n->world, "%s: the bitmap of disk %u has %08x too many",
					n->name, d, dirty & ~perhaps);
	}
}

void check_captured(struct node *n, const struct machine_state *state)
{
	uint64_t epoch = n->engine->epoch;

	check_own_bitmaps(n, false);
	n->world->captured[n->id][epoch % SIM_CAPTURED] =
		(struct captured){.generation = n->engine->generation,
				  .epoch = epoch,
				  .sums = machine_sums(n->machine),
				  .ops = state->ops,
				  .step = state->step,
				  .chain = state->chain};
}

static const struct captured *captured_by_peer(struct node *n, uint64_t generation, uint64_t epoch)
{
	const struct captured *c = &n->world->captured[1 - n->id][epoch % SIM_CAPTURED];

	return c->epoch == epoch && c->generation == generation ? c : NULL;
}

static uint64_t disk_sum(struct node *n, unsigned disk, bool durable)
{
	uint8_t block[SECTOR];
	uint64_t sum = 0;

	for (unsigned i = 0; i < SIM_BLOCKS; i++) {
		files_peek(n->disks[disk].path, disk_offset(i), block, SECTOR, durable);
		sum += XXH3_64bits_withSeed(block, SECTOR, i);
	}
	return sum;
}

/* The standby's says what the primary's said. */
static void check_bitmaps(struct node *n, const struct captured *c, const char *what)
{
	for (unsigned d = 0; d < n->world->options.disks; d++) {
		uint32_t dirty;

		if (disk_dirty(n, d, &dirty) && dirty != c->sums.dirty[d])
			world_violation(n->world,
					"%s %s epoch %llu, but the bitmap of disk %u says %08x, "
					"%08x was captured",
					n->name, what, (unsigned long long)c->epoch, d, dirty,
					c->sums.dirty[d]);
		n->machine->written[d] = n->machine->perhaps[d] = c->sums.dirty[d];
	}
}

static void check_disks(struct node *n, const struct captured *c, bool shared, bool durable,
			const char *what)
{
	for (unsigned d = 0; d < n->world->options.disks; d++)
		if ((shared || !n->disks[d].shared) && disk_sum(n, d, durable) != c->sums.disk[d])
			world_violation(n->world,
					"%s %s epoch %llu, but disk %u%s differs from what was "
					"captured",
					n->name, what, (unsigned long long)c->epoch, d,
					durable ? ", as a power cut would leave it," : "");
}

static void check_image(struct node *n, const struct machine_state *state, const struct captured *c,
			const char *what)
{
	if (c->chain != state->chain || c->ops != state->ops || c->step != state->step)
		world_violation(n->world,
				"%s %s epoch %llu with a state that was not captured there (%llu "
				"operations)",
				n->name, what, (unsigned long long)c->epoch,
				(unsigned long long)state->ops);
	/* Of a guest whose memory follows pages.c knows more. */
	else if (!n->engine->standby.postcopy && machine_ram_sum(n->machine) != c->sums.ram)
		world_violation(n->world,
				"%s %s epoch %llu, but its RAM differs from what was captured",
				n->name, what, (unsigned long long)c->epoch);
}

static void check_resumable(struct node *n, const struct machine_state *state, bool shared,
			    const char *what)
{
	const struct ft_standby *s = &n->engine->standby;
	const struct captured *c = captured_by_peer(n, s->primary_generation, s->committed);

	if (!c) {
		world_violation(n->world, "%s %s epoch %llu, which nobody captured", n->name, what,
				(unsigned long long)s->committed);
		return;
	}
	check_image(n, state, c, what);
	check_disks(n, c, shared, false, what);
	check_bitmaps(n, c, what);
}

void check_takeover(struct node *n, const struct machine_state *state)
{
	n->world->takeovers++;
	n->world->taken_ops = state->ops;
	n->world->ran_last = n;
	check_resumable(n, state, true, "resumes");
}

void check_standby(struct node *n)
{
	const struct ft_standby *s = &n->engine->standby;
	struct machine_state state;

	if (!s->committed || ft_engine_state(n->engine) != FT_STANDBY)
		return;
	memcpy(&state, s->stage.state[s->stage.staging ^ 1], sizeof state);
	check_resumable(n, &state, false, "holds");
}

void check_activated(struct node *n, uint64_t epoch)
{
	const struct captured *c =
		captured_by_peer(n, n->engine->standby.primary_generation, epoch);

	if (c)
		check_disks(n, c, true, true, "activates its disks at");
}

void check_claim(struct node *n, unsigned disk)
{
	struct metadata_record record;
	const struct captured *c;

	if (n->disks[disk].shared || n->dying || n->crashed ||
	    metadata_read(n->disks[disk].path, &record, NULL) || record.state == STORE_INCONSISTENT)
		return;
	c = captured_by_peer(n, record.generation, record.epoch);
	if (c && disk_sum(n, disk, true) != c->sums.disk[disk])
		world_violation(n->world,
				"%s: disk %u claims to be %s at epoch %llu, but a power cut would "
				"leave something else",
				n->name, disk, metadata_state_name(record.state),
				(unsigned long long)record.epoch);
}

static void check_promise(struct node *n, unsigned disk)
{
	struct metadata_record record = {0};

	if (!n->promised.epoch || metadata_read(n->disks[disk].path, &record, NULL))
		return;
	if (record.state == STORE_INCONSISTENT ||
	    (record.state == STORE_CONSISTENT &&
	     (record.generation != n->promised.generation || record.epoch < n->promised.epoch)))
		world_violation(n->world,
				"%s had acknowledged epoch %llu as durable, its disk %u is %s at "
				"epoch %llu",
				n->name, (unsigned long long)n->promised.epoch, disk,
				metadata_state_name(record.state),
				(unsigned long long)record.epoch);
}

void check_recovered(struct node *n)
{
	struct metadata_record record;

	for (unsigned i = 0; i < n->world->options.disks; i++) {
		if (n->disks[i].shared)
			continue;
		check_promise(n, i);
		if (!metadata_read(n->disks[i].path, &record, NULL) &&
		    record.state == STORE_CONSISTENT)
			check_claim(n, i);
	}
	n->promised.epoch = 0;
}
