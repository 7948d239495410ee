// SPDX-License-Identifier: Apache-2.0
/* The engine's environment (ft/engine.h) over the simulated world; what it says of disks is
 * disk.c's. Whatever has an effect takes a step, at which the host may die (node_step). */
#include "tests/sim/world.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eventtap/block/disk_tap.h"
#include "ft/engine_internal.h" /* white box: its generation */

#define CONNECT_US_MIN	100
#define CONNECT_US_MAX	2000
#define CONNECT_TIMEOUT (3 * S)
#define OVERFLOW_MAX	(4u << 20) /* a world of this size never needs more */

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
	link = net_connect(n, node_other(n));
	ft_engine_dialed(n->engine, heartbeat, link, link ? NULL : &err);
}

static void env_dial(void *ctx, bool heartbeat)
{
	struct node *n = ctx;
	struct world *w = n->world;
	bool silent = net_silent(n, node_other(n));

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

static void net_tap_free(struct node *n)
{
	if (n->net_tap)
		n->net_tap->ops->free(n->net_tap);
	n->net_tap = NULL;
}

void node_taps_free(struct node *n)
{
	if (n->engine)
		ft_engine_chain(n->engine)->first = NULL;
	disks_taps_gone(n);
	net_tap_free(n);
}

/* The guest goes on without them. */
static void taps_part(struct node *n)
{
	ft_engine_chain(n->engine)->first = NULL;
	disks_taps_part(n);
	net_tap_free(n);
}

static int env_taps_in(void *ctx, struct ft_err *err)
{
	struct node *n = ctx;
	int rc;

	if (!node_step(n))
		return ft_err_set(err, EINTR, "dying");
	rc = disks_taps_in(n, err);
	if (rc)
		taps_part(n);
	else
		net_tap_in(n);
	return rc;
}

static int env_taps_out(void *ctx, struct ft_err *err)
{
	struct node *n = ctx;
	int rc = disks_taps_out(n, err);

	if (!rc)
		taps_part(n);
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
		disks[i].since = n->disks[i].tap ? disk_tap_session(n->disks[i].tap) : 0;
		list[i] = &disks[i];
	}
	if (setup->postcopy)
		maps_describe(n, list);
	return 0;
}

/* As in production: what a restarted agent must know first, then what a rebooted host must know,
 * then the keeper. */
static int env_guard(void *ctx, bool on, struct ft_err *why)
{
	struct node *n = ctx;
	struct ft_err err = {0};
	int rc = 0;

	if (!node_step(n))
		return 0;
	if (n->world->mutant == MUTANT_FAILED_UNPROVEN && ft_engine_state(n->engine) == FT_TAKEOVER)
		return 0;
	if (n->world->mutant != MUTANT_GUARD_FORGOTTEN) {
		n->elsewhere = on;
		if (on) {
			n->guarded_generation = n->engine->generation;
			n->knows_standby = true;
		}
		rc = disks_mark(n, on, &err);
		if (rc)
			world_log(n->world, "%s: %s", n->name, err.text);
		for (unsigned i = 0; on && n->engine->primary.session && i < SIM_DISKS; i++)
			if (n->disks[i].tap)
				disk_tap_in_sync(n->disks[i].tap, n->engine->primary.session);
	}
	if (!n->dying && (!rc || !on))
		n->guarded = on;
	if (rc && why)
		*why = err;
	return rc;
}

void node_vm_free(struct node *n)
{
	node_taps_free(n);
	if (n->machine)
		n->machine->vmm.ops->free(&n->machine->vmm);
	n->machine = NULL;
}

static void env_vm_end(void *ctx)
{
	struct node *n = ctx;

	node_vm_free(n);
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
	if (disks_stores_open(n, setup, err) || (setup->postcopy && maps_expect(n, setup, err))) {
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
	return disk_stores_env.store_activate(ctx, generation, epoch, settled, err);
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
	node_crash(node_other(n), true);
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
	struct ft_engine_status status;
	struct ft_err err = {0};

	if (!node_step(n))
		return;
	n->remembered_generation = generation;
	ft_engine_status(n->engine, &status);
	snprintf(n->home, sizeof n->home, "%s", status.home);
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

static const struct ft_env_ops own = {
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

struct ft_env_ops node_env(void)
{
	struct ft_env_ops e = own;

	pages_env(&e);
	e.firing = disk_taps_env.firing;
	e.disks_all_behind = disk_taps_env.disks_all_behind;
	e.disk_next = disk_taps_env.disk_next;
	e.disks_behind = disk_taps_env.disks_behind;
	e.disk_compare = disk_taps_env.disk_compare;
	e.disks_yield = disk_taps_env.disks_yield;
	e.disks_reclaim = disk_taps_env.disks_reclaim;
	e.store_sums = disk_stores_env.store_sums;
	e.store_sync = disk_stores_env.store_sync;
	e.store_stage = disk_stores_env.store_stage;
	e.store_staged = disk_stores_env.store_staged;
	e.store_unstage = disk_stores_env.store_unstage;
	e.store_apply = disk_stores_env.store_apply;
	e.store_commit = disk_stores_env.store_commit;
	e.store_released = disk_stores_env.store_released;
	e.store_outdate = disk_stores_env.store_outdate;
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

void overflow_reset(void *ctx)
{
	struct overflow *o = ctx;

	free(o->bytes);
	o->bytes = NULL;
	o->room = 0;
}

const struct ft_overflow_ops overflow_ops = {
	.write = overflow_write, .read = overflow_read, .reset = overflow_reset};
