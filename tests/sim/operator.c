// SPDX-License-Identifier: Apache-2.0
/* The people: they protect what is solo, restart what crashed, and decide where only they can. With
 * arbiter none their word is a grant, so before they give it they find out whether the guest went
 * on elsewhere, as the handbook tells them to. */
#include "tests/sim/world.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "ft/engine_internal.h" /* white box: what `status` and the log would tell */

#define EVERY	      (100 * MS)
#define RESTART_AFTER (800 * MS)
#define DECIDE_AFTER  (1000 * MS)
#define NOBODY_AFTER  (1500 * MS)

static bool waits(struct node *n)
{
	return !n->crashed && !n->frozen &&
	       (n->engine->primary.phase == PRIMARY_LOST || n->engine->standby.suspicious);
}

static bool is_standby(struct node *n)
{
	return !n->crashed && !n->frozen && ft_engine_state(n->engine) == FT_STANDBY;
}

static void decide(struct world *w, struct node *n, struct node *o)
{
	bool standby = is_standby(n);
	uint64_t generation =
		standby ? n->engine->standby.primary_generation : n->engine->generation;
	struct ft_err err = {0};

	/* The other host must be seen as it is, and must not run the guest of the same history. */
	if (o->frozen || w->cut[0] || w->cut[1])
		return;
	if (w->ran_generation > generation) {
		world_log(w, "%s: an operator discards it: the guest went on elsewhere", n->name);
		node_crash(n, false);
	} else if ((o->machine && o->machine->running && !waits(o)) ||
		   (standby && waits(o) && !is_standby(o))) {
		return; /* the guest itself is there: it runs, or that side comes first */
	} else if (standby) {
		world_log(w, "%s: an operator says failover", n->name);
		if (ft_engine_failover(n->engine, NULL, NULL, &err))
			world_log(w, "%s: %s", n->name, err.text);
	} else {
		/* What the other side holds is void. */
		node_crash(o, true);
		world_log(w, "%s: an operator says cancel", n->name);
		if (ft_engine_cancel(n->engine, &err))
			world_log(w, "%s: %s", n->name, err.text);
	}
}

static void look_at_waiting(struct world *w, struct node *n, struct node *o)
{
	struct ft_err err = {0};

	if (!waits(n)) {
		n->waits_since_ns = w->now;
	} else if (w->now - n->waits_since_ns > DECIDE_AFTER) {
		n->waits_since_ns = w->now;
		if (!w->options.arbiter_file)
			decide(w, n, o);
		else if (w->options.takeover_manual && is_standby(n))
			(void)ft_engine_failover(n->engine, NULL, NULL,
						 &err); /* the arbiter decides */
	}
}

static void verified(void *ctx, const struct ft_err *err, uint64_t value)
{
	struct world *w = ctx;

	if (err && err->code == EBADMSG)
		world_violation(w, "verify: the digests differ (%llx): %s",
				(unsigned long long)value, err->text);
}

/* Whoever restarts a host knows nothing: often the guest is started first, and the agent has to
 * refuse. */
static void restart(struct world *w, struct node *n)
{
	/* A reboot takes longer than a takeover. */
	bool blind = w->options.lockless && !w->nodes[1 - n->id].crashed;

	/* Nor, where no lock would stop it, is a guest started while another host may run it. */
	if (!w->must_survive && !blind && world_chance(w, 50) && node_start(n, WITH_GUEST)) {
		world_log(w, "%s: restarted with the guest", n->name);
		return;
	}
	if (node_start(n, AS_STANDBY))
		world_log(w, "%s: restarted as standby", n->name);
}

/* Nobody has the guest, and nobody holds a checkpoint of it. */
static bool nobody(struct world *w)
{
	for (unsigned i = 0; i < SIM_NODES; i++) {
		struct node *n = &w->nodes[i];

		if (n->frozen || (!n->crashed && (!is_standby(n) || n->engine->standby.committed)))
			return false;
	}
	return true;
}

/* By hand, while no agent runs. */
static void forget(struct node *n, bool image_too)
{
	bool crashed = n->crashed;

	n->crashed = false;
	n->disk_errors = 0;
	disks_forget(n, image_too);
	n->crashed = crashed;
	n->elsewhere = n->knows_standby = false;
	n->remembered_generation = n->promised.epoch = 0;
	*n->home = '\0';
}

/* As the messages say when every host refuses: the copy where the guest ran last is the newest;
 * what the others have is void, and so is what they remember. */
static void insist(struct world *w, struct node *n)
{
	w->torn = disks_torn(n);
	world_log(w, "%s: the operators find that the guest ran here last, and insist", n->name);
	for (unsigned i = 0; i < SIM_NODES; i++)
		node_crash(&w->nodes[i], false);
	forget(&w->nodes[1 - n->id], true);
	/* --force needs the arbiter, or somebody may be granted the guest later. */
	if (world_chance(w, 50) && !w->arbiter_down && !n->arbiter_cut) {
		(void)node_start(n, WITH_GUEST_BY_FORCE);
		return;
	}
	forget(n, false);
	if (w->options.arbiter_file) {
		w->arbiter.generation++;
		w->arbiter.in_sync = false;
		snprintf(w->arbiter.holder, sizeof w->arbiter.holder, "%s", n->name);
		check_granted(n, &w->arbiter);
	}
	(void)node_start(n, WITH_GUEST);
}

static void look_for_guest(struct world *w)
{
	if (!nobody(w)) {
		w->nobody_since_ns = w->now;
		return;
	}
	if (w->now - w->nobody_since_ns < NOBODY_AFTER)
		return;
	w->nobody_since_ns = w->now;
	for (unsigned i = 0; i < SIM_NODES; i++) {
		node_crash(&w->nodes[i], false);
		if (node_start(&w->nodes[i], WITH_GUEST))
			return;
		(void)node_start(&w->nodes[i], AS_STANDBY);
	}
	insist(w, w->ran_last);
}

/* Its standby refuses it, because it knows a generation under which nobody runs the guest. */
static bool refused_for_nothing(struct node *n, struct node *o)
{
	return !n->world->options.arbiter_file && ft_engine_state(n->engine) == FT_SOLO &&
	       is_standby(o) && !o->engine->standby.committed &&
	       o->engine->generation > n->engine->generation;
}

static void look_after(struct world *w, struct node *n, struct node *o)
{
	enum ft_state state = n->crashed ? FT_STARTING : ft_engine_state(n->engine);
	struct ft_err err = {0};

	if (n->crashed) {
		if (w->now - n->crashed_ns > RESTART_AFTER)
			restart(w, n);
		return;
	}
	if (n->frozen)
		return;
	check_standby(n);
	if (pages_look_after(n, o))
		return;
	w->moves += state == FT_STOPPED && n->engine->moved;
	if (state == FT_FENCED || state == FT_FAILED || state == FT_STOPPED) {
		node_crash(n, false);
		return;
	}
	if (refused_for_nothing(n, o)) {
		world_log(w, "%s: its operator gives up what it has", o->name);
		node_crash(o, false);
		(void)node_start(o, AS_STANDBY_BY_FORCE);
	}
	n->knows_peer |= state == FT_SOLO && is_standby(o);
	if (state == FT_SOLO && is_standby(o) && w->options.migrations && !w->faults_over &&
	    world_chance(w, 30) && pages_migrate(n))
		return;
	if (state == FT_SOLO && is_standby(o) && !ft_engine_protect(n->engine, NULL, NULL, &err))
		world_log(w, "%s: protect", n->name);
	if (!n->crashed && state == FT_PROTECTED && world_chance(w, 5))
		(void)ft_engine_verify(n->engine, verified, w, &err);
	look_at_waiting(w, n, o);
}

static void on_operator(void *ctx, uint64_t arg)
{
	struct world *w = ctx;

	(void)arg;
	for (unsigned i = 0; i < SIM_NODES; i++)
		look_after(w, &w->nodes[i], &w->nodes[1 - i]);
	look_for_guest(w);
	world_after(w, EVERY, NULL, on_operator, w, 0);
}

void operator_start(struct world *w)
{
	world_after(w, 10 * MS, NULL, on_operator, w, 0);
}

/* ---- homecoming ---- */

static void on_homecoming(void *ctx, uint64_t arg)
{
	struct world *w = ctx;
	/* Either host may be asked. */
	struct node *n = &w->nodes[w->options.seed / 2 % SIM_NODES];
	struct ft_err err = {0};

	if (!n->crashed) {
		(void)ft_engine_failback(n->engine, NULL, NULL, &err);
		world_log(w, "%s: an operator says failback: %s", n->name,
			  err.code ? err.text : "under way");
	}
	world_after(w, EVERY, NULL, on_homecoming, w, arg);
}

void operator_checks_home(struct world *w)
{
	struct node *n = world_runner(w), *o = node_other(n);
	struct ft_engine_status mine, theirs;

	ft_engine_status(n->engine, &mine);
	ft_engine_status(o->engine, &theirs);
	if (strcmp(mine.home, w->home) || strcmp(theirs.home, w->home))
		world_violation(w, "home is %s, but '%s' for %s and '%s' for %s", w->home,
				mine.home, n->name, theirs.home, o->name);
}

bool operator_is_home(struct world *w)
{
	return !strcmp(world_runner(w)->name, w->home);
}

void operator_wants_home(struct world *w)
{
	world_after(w, EVERY, NULL, on_homecoming, w, 0);
}
