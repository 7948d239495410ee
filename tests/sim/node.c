// SPDX-License-Identifier: Apache-2.0
/* A host's life: start, crash, freeze. A crash ends the process (and the machine, where a keeper
 * would), the disk stays. */
#include "tests/sim/world.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ft/engine_internal.h" /* white box: was the guest protected? */
#include "ft/start_rule.h"

struct node *node_other(struct node *n)
{
	return &n->world->nodes[1 - n->id];
}

bool node_step(struct node *n)
{
	if (n->dying || n->crashed)
		return false;
	n->steps++;
	if (n->steps == n->world->run->crash_step && n->id == n->world->run->crash_node) {
		n->powerless = n->world->run->crash_powerless;
		n->dying = true;
		return false;
	}
	if (n->crash_in && --n->crash_in == 0) {
		n->dying = true; /* world_step() does the rest when the engine has returned */
		return false;
	}
	return true;
}

static void on_output(void *ctx, uint64_t arg)
{
	struct node *n = ctx;

	(void)arg;
	n->output_told = false;
	if (n->engine)
		ft_engine_output(n->engine);
}

static void on_pressure(void *ctx, uint64_t arg)
{
	struct node *n = ctx;

	(void)arg;
	n->pressure_told = false;
	if (n->engine)
		ft_engine_pressure(n->engine);
}

void node_output_soon(struct node *n)
{
	if (n->output_told)
		return;
	n->output_told = true;
	world_after(n->world, 20 * US, n, on_output, n, 0);
}

void node_pressure_soon(struct node *n)
{
	if (n->pressure_told)
		return;
	n->pressure_told = true;
	world_after(n->world, 20 * US, n, on_pressure, n, 0);
}

static void on_journal(void *ctx, uint64_t arg)
{
	struct node *n = ctx;

	(void)arg;
	n->journal_told = false;
	if (n->engine)
		disks_journal_news(n);
}

void node_journal_soon(struct node *n)
{
	if (n->journal_told)
		return;
	n->journal_told = true;
	world_after(n->world, 20 * US, n, on_journal, n, 0);
}

/* The arbiter's record, asked by an agent that starts. It waits for the answer and does nothing
 * else meanwhile. */
static bool ask_record(struct node *n, struct ft_grant_record *now)
{
	struct world *w = n->world;

	*now = w->arbiter;
	return !w->arbiter_down && !n->arbiter_cut;
}

/* What the standby of before answers, if it does. */
static bool ask_standby(struct node *n, struct ft_start_standby *says)
{
	const struct world *w = n->world;
	struct node *o = node_other(n);
	enum ft_state state;

	if (o->crashed || o->frozen || !o->engine || w->cut[0] || w->cut[1])
		return false;
	state = ft_engine_state(o->engine);
	*says = (struct ft_start_standby){
		.runs = state == FT_SOLO || state == FT_SYNCING || state == FT_PROTECTED ||
			state == FT_TAKEOVER,
		.waits = state == FT_STANDBY,
		.generation = o->engine->generation,
		.committed = state == FT_STANDBY ? o->engine->standby.committed : 0};
	return true;
}

static int ask_rule(struct node *n, struct ft_start_question *q, struct ft_start_standby *says,
		    enum store_right *right, struct ft_err *err)
{
	int rc = ft_start_rule(q, right, err);

	if (rc != FT_START_ASK_STANDBY)
		return rc;
	q->asked = true;
	if (ask_standby(n, says))
		q->standby = says;
	return ft_start_rule(q, right, err);
}

/* Does this host's agent start the guest? As production's may_start.c. */
static bool may_start(struct node *n)
{
	struct world *w = n->world;
	struct ft_grant_record now;
	struct ft_err err = {0};
	struct ft_start_question q = {.host_id = n->name,
				      .elsewhere = n->elsewhere,
				      .guarded = n->guarded_generation,
				      .peer = n->knows_standby ? node_other(n)->name : "",
				      .arbiter = w->options.arbiter_file ? "file" : "none",
				      .why = "",
				      .standby_why = "",
				      .force = n->forced};
	struct ft_start_standby says;
	enum store_right right;
	int rc;

	if (w->options.arbiter_file && ask_record(n, &now))
		q.record = &now;
	if (q.record && disks_whole(n, now.generation))
		q.whole = now.generation;
	rc = ask_rule(n, &q, &says, &right, &err);
	if (w->mutant == MUTANT_START_UNASKED && rc < 0) {
		rc = FT_START;
		right = w->options.arbiter_file ? STORE_RIGHT_GRANTED : STORE_RIGHT_NONE;
	}
	if (n->forced && err.code)
		world_log(w, "%s: forced: %s", n->name, err.text);
	if (rc == FT_START_AFTER_CLAIM) {
		w->arbiter = ft_start_claim(&q);
		check_granted(n, &w->arbiter);
		rc = world_chance(w, 5) ? ft_err_set(&err, EAGAIN, "the claim's answer was lost")
					: FT_START;
		if (rc == FT_START)
			n->remembered_generation = w->arbiter.generation;
	}
	if (rc == FT_START) {
		n->elsewhere = false;
		rc = disks_startable(n, right, &err);
	}
	if (rc)
		world_log(w, "%s: refuses to start the guest: %s", n->name, err.text);
	return !rc;
}

static bool start_guest(struct node *n)
{
	if (n->world->now && !may_start(n))
		return false;
	n->machine = machine_new(n, false);
	if (machine_boot(n->machine))
		return true;
	node_vm_free(n);
	return false;
}

static bool recover(struct node *n)
{
	struct ft_err err = {0};

	if (disks_recover(n, &err)) {
		world_log(n->world, "%s: does not start: %s", n->name, err.text);
		return false;
	}
	check_recovered(n);
	return true;
}

/* It ends before it has begun, or its host dies meanwhile. */
static bool not_started(struct node *n)
{
	if (n->dying) {
		node_crash(n, n->powerless);
		return false;
	}
	disks_process_gone(n);
	files_process_gone(n);
	n->crashed = true;
	return false;
}

bool node_start(struct node *n, enum start_as as)
{
	bool primary = as == WITH_GUEST || as == WITH_GUEST_BY_FORCE;
	const struct options *o = &n->world->options;
	static struct ft_env_ops env;
	uint64_t on_disk;
	struct ft_err err = {0};

	env = node_env();
	n->crashed = n->frozen = n->powerless = n->guarded = false;
	n->crash_in = 0;
	n->forced = as == AS_STANDBY_BY_FORCE || as == WITH_GUEST_BY_FORCE;
	if (!recover(n))
		return not_started(n);
	on_disk = disks_generation(n); /* after a reboot the disks remember */
	if (on_disk > n->remembered_generation && n->world->mutant != MUTANT_FORGET_GENERATION)
		n->remembered_generation = on_disk;
	if (primary && !start_guest(n)) {
		n->world->refused_starts++;
		return not_started(n);
	}
	struct ft_engine_config config = {
		.policy = {.trigger = o->trigger,
			   .interval_ns = o->interval_ms * MS,
			   .max_downtime_ns = 30 * MS,
			   .max_overhead = 0.5},
		.heartbeat_ms = o->heartbeat_ms,
		.takeover_ms = o->takeover_ms,
		.lease_ms = o->takeover_ms,
		.fence = o->fence,
		.staging_bytes = o->staging_bytes,
		.delta_base_bytes = o->base_pages * 4096,
		.generation =
			as == AS_STANDBY_BY_FORCE || n->world->mutant == MUTANT_FORGET_GENERATION
				? 0
				: n->remembered_generation,
		.takeover_manual = o->takeover_manual,
		.durable = o->durable,
		.overflow = &overflow_ops,
		.overflow_ctx = {&n->overflow[0], &n->overflow[1], &n->overflow[2]},
	};

	snprintf(config.name, sizeof config.name, "guest");
	snprintf(config.host_id, sizeof config.host_id, "%s", n->name);
	if (n->world->mutant != MUTANT_HOME_FORGOTTEN)
		snprintf(config.home, sizeof config.home, "%s", n->home);
	n->arbiter.ops = &sim_arbiter_ops;
	if (!o->arbiter_file)
		n->none = ft_arbiter_none_new(o->survivor,
					      primary ? FT_SIDE_PRIMARY : FT_SIDE_STANDBY);
	n->released_op = 0;
	n->state_told = -1;
	n->waits_since_ns = n->world->now;
	for (unsigned i = 0; i < 3; i++)
		n->overflow[i].node = n;
	if (ft_engine_new(&config, &env, n, n->none ? n->none : &n->arbiter, &n->engine, &err)) {
		world_violation(n->world, "%s: cannot start: %s", n->name, err.text);
		return false;
	}
	n->knows_peer = false;
	n->write_lands_ns = 0;
	if (primary) {
		n->world->shared_owner = n->id;
		snprintf(n->world->home, sizeof n->world->home, "%s",
			 n->home[0] ? n->home : n->name);
		disks_taps_solo(n);
		ft_engine_start_solo(n->engine, &n->machine->vmm);
	} else {
		ft_engine_start_standby(n->engine);
	}
	return true;
}

/* Was the guest protected here, and the standby in reach? Then one fault may not cost it. */
static bool protected_here(struct node *n)
{
	const struct ft_primary *p = &n->engine->primary;
	const struct node *o = node_other(n);

	/* Where people decide, they may decide to boot it. */
	if (n->world->options.takeover_manual)
		return false;
	return ft_engine_state(n->engine) == FT_PROTECTED && p->first_commit_done && !o->crashed &&
	       o->engine->standby.committed &&
	       (p->phase == PRIMARY_RUNNING || p->phase == PRIMARY_HANDING);
}

void node_crash(struct node *n, bool powerless)
{
	struct world *w = n->world;

	if (n->crashed)
		return;
	world_log(w, "%s: CRASH%s", n->name, powerless ? " of the host" : "");
	if (!w->faults_over && w->options.faults == 1 && protected_here(n))
		w->must_survive = true;
	net_node_gone(n, powerless);
	n->crashed = true;
	n->powerless = powerless;
	n->dying = false;
	n->crashed_ns = w->now;
	n->incarnation++;
	n->dial_number[0] = n->dial_number[1] = 0;
	n->output_told = n->pressure_told = n->journal_told = false;
	if (n->journal && n->engine->standby.committed) {
		n->promised.generation = n->engine->standby.primary_generation;
		n->promised.epoch = n->engine->standby.committed;
	}
	/* A dead process writes nothing: only its memory is given back. */
	node_taps_free(n);
	pages_free(n);
	n->done_session = 0;
	ft_engine_free(n->engine);
	n->engine = NULL;
	if (n->none)
		n->none->ops->free(n->none);
	n->none = NULL;
	for (unsigned i = 0; i < 3; i++)
		overflow_reset(&n->overflow[i]);
	node_vm_free(n);
	disks_process_gone(n);
	files_process_gone(n);
	if (!powerless)
		return;
	files_power_lost(n);
	n->boots++;
	n->remembered_generation = 0;
	*n->home = '\0';
	n->elsewhere = n->knows_standby = false;
}

void node_freeze(struct node *n, bool frozen)
{
	struct world *w = n->world;

	world_log(w, "%s: %s", n->name, frozen ? "FROZEN" : "thaws");
	n->frozen = frozen;
	if (!frozen)
		n->write_lands_ns = 0; /* who is awake has waited for it */
	if (frozen) {
		n->frozen_ns = w->now;
		/* A paused host's; not where a lease counts on it. */
		n->clock_stops = !w->options.shared && world_chance(w, 30);
	} else if (n->clock_stops) {
		n->clock_ahead_ns -= (int64_t)(w->now - n->frozen_ns);
		n->clock_stops = false;
	}
}

void node_vm_ends(struct node *n, bool by_guest)
{
	struct world *w = n->world;

	if (!n->machine || n->crashed || n->frozen || n->machine->dead ||
	    (by_guest && !n->machine->running))
		return;
	world_log(w, "%s: VM %s", n->name, by_guest ? "POWERS OFF" : "DIES");
	if (w->options.faults == 1 && !by_guest && protected_here(n))
		w->must_survive = true;
	n->machine->running = false;
	n->machine->dead = true;
	disks_vm_close(n);
	ft_engine_vm_lost(n->engine, by_guest,
			  by_guest ? "the guest shut down" : "VM process died");
}
