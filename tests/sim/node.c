// SPDX-License-Identifier: Apache-2.0
/* A host: the engine's environment over the simulated world. A crash ends the process (and the
 * machine, where a keeper would), the disk stays. */
#include "tests/sim/world.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eventtap/block/disk_tap.h"
#include "ft/engine_internal.h" /* white box: was the guest protected? */
#include "ft/start_rule.h"

#define CONNECT_US_MIN	100
#define CONNECT_US_MAX	2000
#define CONNECT_TIMEOUT (3 * S)
#define OVERFLOW_MAX	(4u << 20) /* a world of this size never needs more */

static struct node *other(struct node *n)
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

/* ---- environment ---- */

/* Each host's clock starts somewhere, goes a little wrong, and may leap ahead. */
uint64_t node_now(const struct node *n)
{
	int64_t now = (int64_t)n->world->now;

	return (uint64_t)(now + now / 1000000 * n->clock_ppm + n->clock_ahead_ns);
}

static uint64_t env_now(void *ctx)
{
	return node_now(ctx);
}

static void on_wake(void *ctx, uint64_t number)
{
	struct node *n = ctx;

	if (number == n->wake_seq && n->engine)
		ft_engine_tick(n->engine);
}

static void env_wake_at(void *ctx, uint64_t when)
{
	struct node *n = ctx;
	uint64_t now = node_now(n);

	n->wake_seq++;
	if (when != UINT64_MAX)
		world_after(n->world, when > now ? when - now + 10 * US : 10 * US, n, on_wake, n,
			    n->wake_seq);
}

static uint64_t env_random(void *ctx)
{
	return world_random(((struct node *)ctx)->world);
}

static void on_dial(void *ctx, uint64_t number)
{
	struct node *n = ctx;
	bool heartbeat = n->dial_number[1] == number;
	struct ft_err err = {.code = ECONNREFUSED, .text = "connection refused"};
	struct ft_link *link;

	if (!heartbeat && n->dial_number[0] != number)
		return; /* hung up */
	n->dial_number[heartbeat] = 0;
	if (!n->knows_peer) {
		err = (struct ft_err){.code = EDESTADDRREQ, .text = "no peer is known"};
		ft_engine_dialed(n->engine, heartbeat, NULL, &err);
		return;
	}
	link = net_connect(n, other(n));
	ft_engine_dialed(n->engine, heartbeat, link, link ? NULL : &err);
}

static void env_dial(void *ctx, bool heartbeat)
{
	struct node *n = ctx;
	struct world *w = n->world;
	bool silent = net_silent(n, other(n));

	if (n->dial_number[heartbeat] || !node_step(n))
		return;
	n->dial_number[heartbeat] = ++w->seq;
	world_after(w,
		    silent ? CONNECT_TIMEOUT : world_range(w, CONNECT_US_MIN, CONNECT_US_MAX) * US,
		    n, on_dial, n, n->dial_number[heartbeat]);
}

static void env_hang_up(void *ctx)
{
	struct node *n = ctx;

	n->dial_number[0] = n->dial_number[1] = 0;
	if (n->world->mutant == MUTANT_RELEASE_ON_LOSS && n->net_tap &&
	    ft_engine_state(n->engine) == FT_PROTECTED)
		n->net_tap->ops->release(n->net_tap, UINT64_MAX - 1, NULL);
}

static void net_tap_in(struct node *n)
{
	n->net_tap = sim_net_tap(n);
	tap_chain_add(ft_engine_chain(n->engine), n->net_tap);
}

static void taps_free(struct node *n)
{
	if (n->engine)
		ft_engine_chain(n->engine)->first = NULL;
	disks_taps_gone(n);
	if (n->net_tap)
		n->net_tap->ops->free(n->net_tap);
	n->net_tap = NULL;
}

static int env_taps_in(void *ctx, struct ft_err *err)
{
	struct node *n = ctx;
	int rc;

	if (!node_step(n))
		return ft_err_set(err, EINTR, "dying");
	rc = disks_taps_in(n, err);
	if (rc)
		taps_free(n);
	else
		net_tap_in(n);
	return rc;
}

static int env_taps_out(void *ctx, struct ft_err *err)
{
	struct node *n = ctx;
	int rc = disks_taps_out(n, err);

	if (!rc)
		taps_free(n);
	return rc;
}

static int env_describe(void *ctx, Ft__Setup *setup, struct ft_err *err)
{
	static Ft__Disk disks[SIM_DISKS];
	static Ft__Disk *list[SIM_DISKS];
	static char ids[SIM_DISKS][8];
	struct node *n = ctx;

	(void)err;
	setup->generation = n->engine->generation;
	setup->vmm = (char *)(uintptr_t) "sim";
	setup->ram_bytes = SIM_PAGES * VMM_PAGE_BYTES;
	setup->n_disks = n->world->options.disks;
	setup->disks = list;
	for (unsigned i = 0; i < setup->n_disks; i++) {
		snprintf(ids[i], sizeof ids[i], "disk%u", i);
		disks[i] = (Ft__Disk)FT__DISK__INIT;
		disks[i].id = ids[i];
		disks[i].image = n->disks[i].path;
		disks[i].bytes = SIM_DISK_BYTES;
		disks[i].shared = n->disks[i].shared;
		list[i] = &disks[i];
	}
	return 0;
}

/* As in production: what a restarted agent must know first, then what a rebooted host must know,
 * then the keeper. */
static void env_guard(void *ctx, bool on)
{
	struct node *n = ctx;
	struct ft_err err = {0};

	if (!node_step(n))
		return;
	if (n->world->mutant != MUTANT_GUARD_FORGOTTEN) {
		n->elsewhere = on;
		if (on) {
			n->guarded_generation = n->engine->generation;
			n->knows_standby = true;
		}
		if (disks_mark(n, on, &err))
			world_log(n->world, "%s: %s", n->name, err.text);
	}
	if (!n->dying)
		n->guarded = on;
}

static void vm_free(struct node *n)
{
	taps_free(n);
	if (n->machine)
		n->machine->vmm.ops->free(&n->machine->vmm);
	n->machine = NULL;
}

static void env_vm_end(void *ctx)
{
	struct node *n = ctx;

	vm_free(n);
	ft_engine_set_vmm(n->engine, NULL);
}

static void env_disarm(void *ctx)
{
	env_vm_end(ctx);
	disks_stores_free(ctx);
}

static int env_arm(void *ctx, const Ft__Setup *setup, struct ft_err *err)
{
	struct node *n = ctx;

	if (!node_step(n))
		return ft_err_set(err, EINTR, "dying");
	if (n->arm_fails) {
		n->arm_fails = false;
		return ft_err_set(err, ENOMEM, "sim: cannot start a VM");
	}
	if (strcmp(setup->vmm, "sim"))
		return ft_err_set(err, EINVAL, "vmm: %s", setup->vmm);
	if (disks_stores_open(n, setup, err)) {
		env_disarm(n);
		return -err->code;
	}
	n->machine = machine_new(n, true);
	ft_engine_set_vmm(n->engine, &n->machine->vmm);
	n->guarded = true;
	net_tap_in(n);
	return 0;
}

static int env_store_activate(void *ctx, uint64_t generation, uint64_t epoch, bool settled,
			      struct ft_err *err)
{
	struct node *n = ctx;

	if (!node_step(n))
		return ft_err_set(err, EINTR, "dying");
	return disk_env.store_activate(ctx, generation, epoch, settled, err);
}

static void on_fenced(void *ctx, uint64_t arg)
{
	struct node *n = ctx;
	struct ft_err err = {.code = EPERM, .text = "sim: the power switch does not answer"};

	(void)arg;
	if (!n->world->faults_over && world_chance(n->world, 33)) {
		ft_engine_fenced(n->engine, &err);
		return;
	}
	node_crash(other(n), true);
	ft_engine_fenced(n->engine, NULL);
}

static void env_fence(void *ctx, const char *host, uint64_t generation)
{
	struct node *n = ctx;

	(void)host;
	(void)generation;
	world_log(n->world, "%s: fence program started", n->name);
	if (node_step(n))
		world_after(n->world, world_range(n->world, 1, 100) * MS, n, on_fenced, n, 0);
}

static void env_generation(void *ctx, uint64_t generation)
{
	struct node *n = ctx;
	enum ft_state state = ft_engine_state(n->engine);

	struct ft_err err = {0};

	if (!node_step(n))
		return;
	n->remembered_generation = generation;
	for (unsigned i = 0; i < SIM_DISKS; i++)
		if (n->disks[i].tap &&
		    disk_tap_set_generation(n->disks[i].tap, generation, 0, &err))
			world_log(n->world, "%s: %s", n->name, err.text);
	if (state != FT_STANDBY && state != FT_STARTING && generation > n->world->ran_generation)
		n->world->ran_generation = generation;
}

static void env_changed(void *ctx)
{
	struct node *n = ctx;

	if (n->engine && ft_engine_state(n->engine) != (enum ft_state)n->state_told) {
		n->state_told = (int)ft_engine_state(n->engine);
		if (n->none && (n->state_told == FT_STANDBY || n->state_told == FT_SOLO))
			ft_arbiter_none_set_side(n->none, n->state_told == FT_STANDBY
								  ? FT_SIDE_STANDBY
								  : FT_SIDE_PRIMARY);
		world_log(n->world, "%s: %s: %s", n->name,
			  ft_state_name(ft_engine_state(n->engine)), ft_engine_reason(n->engine));
	}
}

const struct ft_env_ops node_env = {
	.now_ns = env_now,
	.wake_at = env_wake_at,
	.random = env_random,
	.dial = env_dial,
	.hang_up = env_hang_up,
	.taps_in = env_taps_in,
	.taps_out = env_taps_out,
	.describe = env_describe,
	.guard = env_guard,
	.vm_end = env_vm_end,
	.arm = env_arm,
	.disarm = env_disarm,
	.store_activate = env_store_activate,
	.fence = env_fence,
	.generation = env_generation,
	.changed = env_changed,
};

/* Those about disks are disk.c's. */
static struct ft_env_ops whole_env(void)
{
	struct ft_env_ops e = node_env;

	e.firing = disk_env.firing;
	e.disks_all_behind = disk_env.disks_all_behind;
	e.disk_next = disk_env.disk_next;
	e.disks_behind = disk_env.disks_behind;
	e.disk_compare = disk_env.disk_compare;
	e.disks_yield = disk_env.disks_yield;
	e.disks_reclaim = disk_env.disks_reclaim;
	e.store_sums = disk_env.store_sums;
	e.store_sync = disk_env.store_sync;
	e.store_stage = disk_env.store_stage;
	e.store_staged = disk_env.store_staged;
	e.store_unstage = disk_env.store_unstage;
	e.store_apply = disk_env.store_apply;
	e.store_commit = disk_env.store_commit;
	e.store_released = disk_env.store_released;
	e.store_outdate = disk_env.store_outdate;
	return e;
}

/* ---- staging beyond its bound ---- */

static int overflow_write(void *ctx, uint64_t at, const uint8_t *data, size_t len)
{
	struct overflow *o = ctx;

	if (o->node->overflow_fails) {
		o->node->overflow_fails = false;
		return -ENOSPC;
	}
	if (at + len > OVERFLOW_MAX) {
		world_violation(o->node->world, "%s: %llu bytes of staging beyond its bound",
				o->node->name, (unsigned long long)at + len);
		return -ENOSPC;
	}
	if (at + len > o->room) {
		o->room = (at + len) * 2;
		o->bytes = realloc(o->bytes, o->room);
		if (!o->bytes)
			abort();
	}
	memcpy(o->bytes + at, data, len);
	return 0;
}

static int overflow_read(void *ctx, uint64_t at, uint8_t *out, size_t len)
{
	struct overflow *o = ctx;

	if (at + len > o->room)
		return -EIO;
	memcpy(out, o->bytes + at, len);
	return 0;
}

static void overflow_reset(void *ctx)
{
	struct overflow *o = ctx;

	free(o->bytes);
	o->bytes = NULL;
	o->room = 0;
}

static const struct ft_overflow_ops overflow_ops = {
	.write = overflow_write, .read = overflow_read, .reset = overflow_reset};

/* ---- life ---- */

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
	struct node *o = other(n);
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
				      .peer = n->knows_standby ? other(n)->name : "",
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
	vm_free(n);
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

	env = whole_env();
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
	const struct node *o = other(n);

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
	taps_free(n);
	ft_engine_free(n->engine);
	n->engine = NULL;
	if (n->none)
		n->none->ops->free(n->none);
	n->none = NULL;
	for (unsigned i = 0; i < 3; i++)
		overflow_reset(&n->overflow[i]);
	vm_free(n);
	disks_process_gone(n);
	files_process_gone(n);
	if (!powerless)
		return;
	files_power_lost(n);
	n->remembered_generation = 0;
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
