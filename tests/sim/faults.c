// SPDX-License-Identifier: Apache-2.0
/* What goes wrong, when, and for how long: all from the seed. Every fault heals or is repaired by
 * the operator; none is impossible in the field. */
#include "tests/sim/world.h"

#include <errno.h>

#include "ft/engine_internal.h" /* white box: is there a connection? */

#define FAULTS_FROM (50 * MS)
#define FAULTS_TO   (2500 * MS)

struct node *world_runner(struct world *w)
{
	for (unsigned i = 0; i < SIM_NODES; i++)
		if (!w->nodes[i].crashed && !w->nodes[i].frozen && w->nodes[i].machine &&
		    w->nodes[i].machine->running)
			return &w->nodes[i];
	return &w->nodes[0];
}

static void on_thaw(void *ctx, uint64_t incarnation)
{
	struct node *n = ctx;

	if (n->frozen && n->incarnation == incarnation)
		node_freeze(n, false);
}

enum heal { HEAL_ARBITER, HEAL_ARBITER_A, HEAL_ARBITER_B, HEAL_LINK_A, HEAL_LINK_B };

static void on_heal(void *ctx, uint64_t what)
{
	struct world *w = ctx;

	world_log(w, "HEALED: %s",
		  (const char *[]){"arbiter", "host-A to arbiter", "host-B to arbiter", "A to B",
				   "B to A"}[what]);
	switch ((enum heal)what) {
	case HEAL_ARBITER:
		w->arbiter_down = false;
		break;
	case HEAL_ARBITER_A:
	case HEAL_ARBITER_B:
		w->nodes[what - HEAL_ARBITER_A].arbiter_cut = false;
		break;
	case HEAL_LINK_A:
	case HEAL_LINK_B:
		w->cut[what - HEAL_LINK_A] = false;
		net_healed(w);
		break;
	}
}

static void cut_link(struct world *w, unsigned mask, uint64_t ms)
{
	world_log(w, "LINK CUT, %s, for %llu ms",
		  mask == 3   ? "both ways"
		  : mask == 1 ? "A to B"
			      : "B to A",
		  (unsigned long long)ms);
	for (unsigned i = 0; i < SIM_NODES; i++) {
		if (!(mask & 1u << i) || w->cut[i])
			continue;
		w->cut[i] = true;
		world_after(w, ms * MS, NULL, on_heal, w, HEAL_LINK_A + i);
	}
}

static void cut_arbiter(struct world *w)
{
	unsigned who = (unsigned)world_range(w, 0, 2);
	uint64_t in = world_range(w, 50, 3000) * MS;

	world_log(w, "ARBITER LOST for %s", who == 2 ? "all" : w->nodes[who].name);
	if (who == 2) {
		w->arbiter_down = true;
		world_after(w, in, NULL, on_heal, w, HEAL_ARBITER);
	} else {
		w->nodes[who].arbiter_cut = true;
		world_after(w, in, NULL, on_heal, w, HEAL_ARBITER_A + who);
	}
}

void freeze_for(struct node *n, uint64_t ns)
{
	if (n->crashed || n->frozen)
		return;
	node_freeze(n, true);
	world_after(n->world, ns, NULL, on_thaw, n, n->incarnation);
}

static void freeze(struct world *w, struct node *n)
{
	if (!n->crashed && !n->frozen)
		freeze_for(n, world_range(w, 20, world_chance(w, 50) ? 300 : 3000) * MS);
}

/* The worst moment to fall asleep: with an acknowledgement on its way, which is the word to write.
 */
void faults_on_ack(struct node *n)
{
	struct world *w = n->world;

	if (!w->options.shared || w->faults_over || world_range(w, 0, 99))
		return;
	w->options.faults++;
	freeze_for(n, (w->options.takeover_ms + world_range(w, 0, 2000)) * MS);
}

static void crash_soon(struct world *w, struct node *n)
{
	if (n->crashed || n->crash_in)
		return;
	n->crash_in = (unsigned)world_range(w, 1, world_chance(w, 50) ? 60 : 300);
	n->powerless = world_chance(w, 50);
	world_log(w, "%s: will crash within its %u. step from here", n->name, n->crash_in);
}

static void switched(void *ctx, const struct ft_err *err, uint64_t value)
{
	struct world *w = ctx;

	(void)value;
	if (!err)
		w->switches++;
}

/* What operators do when they should not have to think: the engine must keep them from harm. With
 * arbiter none and a lost peer their word is a grant, so that is left to the careful one
 * (operator.c). */
static bool word_is_grant(struct node *n)
{
	struct ft_engine_status s;

	ft_engine_status(n->engine, &s);
	return s.waiting_for_decision && !n->world->options.arbiter_file;
}

static void operate(struct world *w, struct node *n)
{
	struct ft_err err = {0};
	bool standby;

	if (n->crashed || n->frozen || word_is_grant(n))
		return;
	standby = ft_engine_state(n->engine) == FT_STANDBY;
	if (standby || world_chance(w, 60)) {
		if (standby && !n->world->options.arbiter_file &&
		    n->engine->conns[CONN_DATA].link == NULL)
			return;
		if (w->options.seed % 8 == 2 && w->now / US % 2)
			(standby ? n : node_other(n))->resume_fails = true;
		world_log(w, "%s: FAILOVER by an operator: %s", n->name,
			  ft_engine_failover(n->engine, switched, w, &err) ? err.text
									   : "under way");
	} else {
		world_log(w, "%s: CANCEL by an operator: %s", n->name,
			  ft_engine_cancel(n->engine, &err) ? err.text : "under way");
	}
}

/* In order: whoever stops says so, and its process ends. */
static void stop(struct world *w, struct node *n)
{
	if (n->crashed || n->frozen)
		return;
	world_log(w, "%s: STOPPED by an operator", n->name);
	ft_engine_stop(n->engine, "an operator");
	if (!n->dying)
		node_crash(n, false);
}

/* Its disk is full, or fails, for the next so many operations. */
static void disk_fault(struct world *w, struct node *n)
{
	n->disk_errors = (unsigned)world_range(w, 1, world_chance(w, 70) ? 3 : 60);
	n->disk_errno = world_chance(w, 50) ? EIO : ENOSPC;
	world_log(w, "%s: DISK %s, %u times", n->name, n->disk_errno == EIO ? "ERROR" : "FULL",
		  n->disk_errors);
}

static void clock_leap(struct world *w, struct node *n)
{
	/* A lease counts on clocks that do not. */
	if (w->options.shared)
		return;
	uint64_t by = world_range(w, 10, world_chance(w, 50) ? 500 : 20000) * MS;

	n->clock_ahead_ns += (int64_t)by;
	world_log(w, "%s: CLOCK leaps ahead by %llu ms", n->name, (unsigned long long)(by / MS));
}

/* Everything loses its power, and comes back in any order. */
static void blackout(struct world *w)
{
	world_log(w, "BLACKOUT");
	for (unsigned i = 0; i < SIM_NODES; i++)
		node_crash(&w->nodes[i], true);
	w->must_survive = false; /* more than one fault */
}

static void small_fault(struct world *w, struct node *p, struct node *s)
{
	switch (world_range(w, 0, 11)) {
	case 0:
	case 1:
	case 2:
		p->checkpoint_fails = true;
		break;
	case 3:
		s->trial_fails = s->resume_fails = true;
		break;
	case 4:
		s->arm_fails = true;
		break;
	case 5:
		disk_fault(w, s);
		break;
	case 6:
		s->overflow_fails = true;
		break;
	case 7:
		disk_fault(w, s);
		break;
	case 8:
		disk_fault(w, p);
		break;
	case 10:
		clock_leap(w, world_chance(w, 50) ? p : s);
		break;
	case 9:
		stop(w, world_chance(w, 30) ? p : s);
		break;
	default:
		node_vm_ends(p, true);
	}
}

static void on_runner_crash(void *ctx, uint64_t powerless)
{
	struct world *w = ctx;

	if (w->faults_over)
		return;
	node_crash(world_runner(w), powerless);
	w->must_survive = false; /* more than one fault */
}

/* The old primary is away for long, and the new one does not live to tell it. */
static void away(struct world *w, struct node *p)
{
	uint64_t ms = world_range(w, 1500, 3000);

	if (p->crashed || p->frozen)
		return;
	if (world_chance(w, 50)) {
		node_freeze(p, true);
		world_after(w, ms * MS, NULL, on_thaw, p, p->incarnation);
	} else {
		cut_link(w, 3, ms);
	}
	world_after(w, world_range(w, w->options.takeover_ms, 800) * MS, NULL, on_runner_crash, w,
		    world_chance(w, 50));
}

static void on_fault(void *ctx, uint64_t arg)
{
	struct world *w = ctx;
	struct node *p = world_runner(w), *s = &w->nodes[1 - p->id];

	(void)arg;
	w->injected++;
	switch (world_range(w, 0, 20)) {
	case 0:
	case 1:
		node_crash(p, world_chance(w, 50));
		break;
	case 2:
		node_crash(s, world_chance(w, 50));
		break;
	case 3:
		crash_soon(w, p);
		break;
	case 4:
		crash_soon(w, s);
		break;
	case 5:
		freeze(w, p);
		break;
	case 6:
		freeze(w, s);
		break;
	case 7:
		node_vm_ends(p, false);
		break;
	case 8:
		node_vm_ends(s, false);
		break;
	case 9:
	case 10:
		cut_link(w, (unsigned)world_range(w, 1, 3),
			 world_range(w, 5, world_chance(w, 50) ? 100 : 2500));
		break;
	case 11:
		cut_arbiter(w);
		break;
	case 12:
		world_log(w, "CONNECTIONS RESET");
		net_reset_data(p);
		break;
	case 13:
		if (world_chance(w, 50))
			w->corrupt_next = true;
		else
			net_stall_one(w,
				      world_range(w, 10, world_chance(w, 70) ? 500 : 30000) * MS);
		break;
	case 14:
		away(w, p);
		break;
	case 15:
	case 16:
		operate(w, world_chance(w, 70) ? p : s);
		break;
	case 17:
		if (world_chance(w, 60))
			blackout(w);
		else
			disk_fault(w, world_chance(w, 50) ? p : s);
		break;
	default:
		small_fault(w, p, s);
	}
}

void faults_draw(struct world *w)
{
	uint64_t at = 0;

	for (unsigned i = 0; i < w->options.faults; i++) {
		/* Half of them come right behind the one before: that is where two faults meet. */
		if (i && world_chance(w, 50))
			at += world_range(w, 0, 200) * MS;
		else
			at = world_range(w, FAULTS_FROM, FAULTS_TO);
		world_after(w, at, NULL, on_fault, w, 0);
	}
}

void faults_end(struct world *w)
{
	for (unsigned i = 0; i < SIM_NODES; i++) {
		struct node *n = &w->nodes[i];

		w->cut[i] = n->arbiter_cut = n->checkpoint_fails = n->trial_fails = n->arm_fails =
			n->overflow_fails = n->resume_fails = false;
		n->disk_errors = 0;
		n->crash_in = 0;
		if (n->frozen)
			node_freeze(n, false);
	}
	w->arbiter_down = w->corrupt_next = false;
	net_healed(w);
	w->faults_over = true;
	w->calm_ns = w->now;
	world_log(w, "---- calm ----");
}
