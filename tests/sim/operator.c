// SPDX-License-Identifier: Apache-2.0
/* The people: they protect what is solo, restart what crashed, and decide where only they can. With
 * arbiter none their word is a grant, so before they give it they find out whether the guest went
 * on elsewhere, as the handbook tells them to. */
#include "tests/sim/world.h"

#include <errno.h>

#include "ft/engine_internal.h" /* white box: what `status` and the log would tell */

#define EVERY	      (100 * MS)
#define RESTART_AFTER (800 * MS)
#define DECIDE_AFTER  (1000 * MS)

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

	/* The other host must be seen as it is, and must not run the guest. */
	if (o->frozen || w->cut[0] || w->cut[1] || (o->machine && o->machine->running && !waits(o)))
		return;
	if (w->ran_generation > generation) {
		world_log(w, "%s: an operator discards it: the guest went on elsewhere", n->name);
		node_crash(n, false);
	} else if (standby && waits(o) && !is_standby(o)) {
		return; /* the guest itself is there: that side first */
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

static void look_after(struct world *w, struct node *n, struct node *o)
{
	enum ft_state state = n->crashed ? FT_STARTING : ft_engine_state(n->engine);
	struct ft_err err = {0};

	if (n->crashed) {
		if (w->now - n->crashed_ns <= RESTART_AFTER)
			return;
		world_log(w, "%s: restarted as standby", n->name);
		node_start(n, false);
		return;
	}
	if (n->frozen)
		return;
	check_standby(n);
	if (state == FT_FENCED || state == FT_FAILED || state == FT_STOPPED) {
		node_crash(n, false);
		return;
	}
	n->knows_peer |= state == FT_SOLO && is_standby(o);
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
	world_after(w, EVERY, NULL, on_operator, w, 0);
}

void operator_start(struct world *w)
{
	world_after(w, 10 * MS, NULL, on_operator, w, 0);
}
