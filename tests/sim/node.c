// SPDX-License-Identifier: Apache-2.0
/* A host: the engine's environment over the simulated world. A crash ends the process (and the
 * machine, where a keeper would), the disk stays. */
#include "tests/sim/world.h"

#include "ft/engine_internal.h" /* white box: was the guest protected? */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

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
	if (n->crash_in && --n->crash_in == 0) {
		n->dying = true; /* world_step() does the rest when the engine has returned */
		return false;
	}
	return true;
}

/* ---- environment ---- */

static uint64_t env_now(void *ctx)
{
	return ((struct node *)ctx)->world->now;
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
	struct world *w = n->world;

	n->wake_seq++;
	if (when != UINT64_MAX)
		world_after(w, when > w->now ? when - w->now : 10 * US, n, on_wake, n, n->wake_seq);
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

static void block_sum(struct node *n, unsigned block, uint64_t seed, uint8_t sum[FT_SUM_BYTES])
{
	XXH128_canonical_t canonical;

	XXH128_canonicalFromHash(&canonical,
				 XXH3_128bits_withSeed(n->disk.blocks[block], SIM_BLOCK, seed));
	memcpy(sum, &canonical, FT_SUM_BYTES);
}

static int env_taps_in(void *ctx, struct ft_err *err)
{
	struct node *n = ctx;

	(void)err;
	n->disk_tap = sim_disk_tap(n);
	n->net_tap = sim_net_tap(n);
	tap_chain_add(ft_engine_chain(n->engine), n->disk_tap);
	tap_chain_add(ft_engine_chain(n->engine), n->net_tap);
	return 0;
}

static void taps_free(struct node *n)
{
	if (n->engine)
		tap_chain_free(ft_engine_chain(n->engine));
	n->disk_tap = n->net_tap = NULL;
}

static int env_taps_out(void *ctx, struct ft_err *err)
{
	(void)err;
	taps_free(ctx);
	return 0;
}

static void env_firing(void *ctx, bool on)
{
	(void)ctx;
	(void)on;
}

static int env_describe(void *ctx, Ft__Setup *setup, struct ft_err *err)
{
	static Ft__Disk disk = FT__DISK__INIT, *disks = &disk;

	(void)err;
	disk.shared = ((struct node *)ctx)->world->options.shared;
	setup->vmm = (char *)(uintptr_t) "sim";
	setup->ram_bytes = SIM_PAGES * VMM_PAGE_BYTES;
	setup->disks = &disks;
	setup->n_disks = 1;
	return 0;
}

static void env_disks_all_behind(void *ctx)
{
	sim_disk_tap_all_behind(((struct node *)ctx)->disk_tap);
}

static int env_disk_next(void *ctx, uint8_t *data, uint32_t max, struct ft_disk_chunk *chunk,
			 struct ft_err *err)
{
	(void)max;
	(void)err;
	return sim_disk_tap_next(((struct node *)ctx)->disk_tap, chunk, data);
}

static uint64_t env_disks_behind(void *ctx)
{
	return sim_disk_tap_behind(((struct node *)ctx)->disk_tap);
}

static int env_disk_compare(void *ctx, uint64_t seed, const struct ft_disk_sums *range,
			    const uint8_t *sums, uint64_t *alike, struct ft_err *err)
{
	struct node *n = ctx;
	uint64_t first = range->offset / SIM_BLOCK, end = first + range->bytes / SIM_BLOCK;
	bool blind = n->world->mutant == MUTANT_COMPARE_BLIND;

	*alike = 0;
	if (range->block != SIM_BLOCK || range->offset % SIM_BLOCK || range->bytes % SIM_BLOCK ||
	    first >= SIM_BLOCKS || end > SIM_BLOCKS)
		return ft_err_set(err, EPROTO, "disk: bad range of sums");
	for (uint64_t i = first; i < end; i++) {
		static const uint8_t none[SIM_BLOCK];
		uint8_t ours[FT_SUM_BYTES];
		bool same = !sums && !memcmp(n->disk.blocks[i], none, SIM_BLOCK);

		block_sum(n, (unsigned)i, seed, ours);
		if (same ||
		    (sums && !memcmp(ours, sums + (i - first) * FT_SUM_BYTES, FT_SUM_BYTES)) ||
		    (blind && world_chance(n->world, 5)))
			*alike += sim_disk_tap_alike(n->disk_tap, (unsigned)i);
	}
	return 0;
}

static void env_disks_yield(void *ctx)
{
	((struct node *)ctx)->write_lands_ns = 0; /* it waits for its own writes */
}

static int env_disks_reclaim(void *ctx, struct ft_err *err)
{
	(void)ctx;
	(void)err;
	return 0;
}

static void env_guard(void *ctx, bool on)
{
	((struct node *)ctx)->guarded = on;
}

static void env_vm_end(void *ctx)
{
	struct node *n = ctx;

	taps_free(n);
	if (n->machine)
		n->machine->vmm.ops->free(&n->machine->vmm);
	n->machine = NULL;
	ft_engine_set_vmm(n->engine, NULL);
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
	n->sums_at = 0;
	n->stored = n->sealing = 0;
	n->machine = machine_new(n, true);
	ft_engine_set_vmm(n->engine, &n->machine->vmm);
	return env_taps_in(n, err);
}

static void env_disarm(void *ctx)
{
	((struct node *)ctx)->stored = 0;
	env_vm_end(ctx);
}

static int write_block(uint8_t blocks[SIM_BLOCKS][SIM_BLOCK], uint64_t offset, const uint8_t *data,
		       uint32_t len, struct ft_err *err)
{
	if (offset % SIM_BLOCK || len != SIM_BLOCK || offset / SIM_BLOCK >= SIM_BLOCKS)
		return ft_err_set(err, EPROTO, "disk: bad range");
	memcpy(blocks[offset / SIM_BLOCK], data, len);
	return 0;
}

static int write_disk(struct node *n, uint64_t offset, const uint8_t *data, uint32_t len,
		      struct ft_err *err)
{
	if (!node_step(n))
		return ft_err_set(err, EINTR, "dying");
	return write_block(n->disk.blocks, offset, data, len, err);
}

/* Some blocks a time, zeroes as zeroes. */
static int env_store_sums(void *ctx, uint64_t seed, struct ft_disk_sums *range, uint8_t *sums,
			  struct ft_err *err)
{
	static const uint8_t none[SIM_BLOCK];
	struct node *n = ctx;
	unsigned blocks = 0, max = (unsigned)world_range(n->world, 1, 8);

	if (!node_step(n))
		return ft_err_set(err, EINTR, "dying");
	if (n->sums_at == SIM_BLOCKS)
		return 0;
	*range = (struct ft_disk_sums){.offset = n->sums_at * SIM_BLOCK, .block = SIM_BLOCK};
	range->zero = !memcmp(n->disk.blocks[n->sums_at], none, SIM_BLOCK);
	for (; blocks < max && n->sums_at < SIM_BLOCKS; blocks++, n->sums_at++) {
		if (range->zero != !memcmp(n->disk.blocks[n->sums_at], none, SIM_BLOCK))
			break;
		block_sum(n, n->sums_at, seed, sums + blocks * FT_SUM_BYTES);
	}
	range->bytes = blocks * SIM_BLOCK;
	return 1;
}

static int env_store_sync(void *ctx, const struct ft_disk_chunk *chunk, const uint8_t *data,
			  struct ft_err *err)
{
	struct node *n = ctx;

	if (n->world->mutant == MUTANT_SYNC_HOLE && world_chance(n->world, 1))
		return 0;
	return write_disk(n, chunk->offset, data, chunk->bytes, err);
}

/* Nothing of it is durable before its time, whatever happens meanwhile. The first checkpoint of a
 * session makes what was copied before durable too. */
static void env_store_unstage(void *ctx)
{
	struct node *n = ctx;

	n->staged = n->stored ? n->journaled : n->disk;
}

static int env_store_stage(void *ctx, const struct tap_record *rec, struct ft_err *err)
{
	struct node *n = ctx;

	if (!node_step(n))
		return ft_err_set(err, EINTR, "dying");
	if (n->world->mutant == MUTANT_JOURNAL_HOLE && world_chance(n->world, 5))
		return 0;
	return write_block(n->staged.blocks, rec->arg, rec->data, rec->len, err);
}

static void on_stored(void *ctx, uint64_t epoch)
{
	struct node *n = ctx;
	struct ft_err err = {.code = ENOSPC, .text = "sim: no room for the journal"};
	bool fails = n->apply_fails && world_chance(n->world, 50);

	if (n->sealing != epoch)
		return; /* given up, and another one is on its way */
	n->sealing = 0;
	if (fails) {
		n->apply_fails = false;
	} else {
		n->journaled = n->sealed;
		n->stored = epoch;
	}
	ft_engine_stored(n->engine, epoch, fails ? &err : NULL);
}

static int env_store_staged(void *ctx, uint64_t generation, uint64_t epoch, struct ft_err *err)
{
	struct node *n = ctx;

	(void)generation;
	if (!node_step(n))
		return ft_err_set(err, EINTR, "dying");
	n->sealed = n->staged;
	n->sealing = epoch;
	world_after(n->world, world_range(n->world, 10, 20000) * US, n, on_stored, n, epoch);
	return 0;
}

static int env_store_apply(void *ctx, const struct tap_record *rec, struct ft_err *err)
{
	struct node *n = ctx;

	if (n->apply_fails) {
		n->apply_fails = false;
		return ft_err_set(err, EIO, "sim: disk");
	}
	if (n->world->mutant == MUTANT_FORGET_APPLY && world_chance(n->world, 2))
		return 0;
	return write_disk(n, rec->arg, rec->data, rec->len, err);
}

static int env_store_commit(void *ctx, uint64_t generation, uint64_t epoch, struct ft_err *err)
{
	struct node *n = ctx;

	(void)generation;
	if (!node_step(n))
		return ft_err_set(err, EINTR, "dying");
	if (n->world->options.durable && n->stored != epoch)
		world_violation(n->world, "%s: epoch %llu counts before it is durable", n->name,
				(unsigned long long)epoch);
	if (n->world->mutant == MUTANT_FORGET_PAGE)
		machine_forget_page(n->machine);
	return 0;
}

static int env_store_activate(void *ctx, uint64_t generation, uint64_t epoch, bool settled,
			      struct ft_err *err)
{
	struct node *n = ctx;

	(void)generation;
	(void)epoch;
	if (!node_step(n))
		return ft_err_set(err, EINTR, "dying");
	if (n->resume_busy && world_chance(n->world, 80))
		return ft_err_set(err, EBUSY, "sim: the old primary still holds the disk");
	n->resume_busy = false;
	n->stored = 0; /* the disk is the guest's now, and the journal gone */
	if (!n->world->options.shared)
		return 0;
	/* The lock of a process that is dead is free. Of a host without power nobody can tell. */
	if (!settled && (!other(n)->crashed || other(n)->powerless) &&
	    n->world->mutant != MUTANT_LEASE_NOT_AWAITED)
		return ft_err_set(err, EBUSY, "sim: the old primary's lease is not over");
	check_shared_taken(n);
	return 0;
}

static void on_fenced(void *ctx, uint64_t arg)
{
	struct node *n = ctx;
	struct ft_err err = {.code = EPERM, .text = "sim: the power switch does not answer"};

	(void)arg;
	if (world_side_range(n->world, 0, 2) == 0) {
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
		world_after(n->world, world_side_range(n->world, 1, 100) * MS, n, on_fenced, n, 0);
}

static void env_store_released(void *ctx, uint64_t epoch)
{
	(void)ctx;
	(void)epoch;
}

static int env_store_outdate(void *ctx, struct ft_err *err)
{
	(void)ctx;
	(void)err;
	return 0;
}

static void env_generation(void *ctx, uint64_t generation)
{
	struct node *n = ctx;
	enum ft_state state = ft_engine_state(n->engine);

	if (!node_step(n))
		return;
	n->remembered_generation = generation;
	if (state != FT_STANDBY && state != FT_STARTING && generation > n->world->ran_generation)
		n->world->ran_generation = generation;
}

static void env_changed(void *ctx)
{
	struct node *n = ctx;

	if (n->engine && ft_engine_state(n->engine) != (enum ft_state)n->state_told) {
		n->state_told = (int)ft_engine_state(n->engine);
		if (n->none)
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
	.firing = env_firing,
	.describe = env_describe,
	.disks_all_behind = env_disks_all_behind,
	.disk_next = env_disk_next,
	.disks_behind = env_disks_behind,
	.disk_compare = env_disk_compare,
	.disks_yield = env_disks_yield,
	.disks_reclaim = env_disks_reclaim,
	.guard = env_guard,
	.vm_end = env_vm_end,
	.arm = env_arm,
	.disarm = env_disarm,
	.store_sums = env_store_sums,
	.store_sync = env_store_sync,
	.store_stage = env_store_stage,
	.store_staged = env_store_staged,
	.store_unstage = env_store_unstage,
	.store_apply = env_store_apply,
	.store_commit = env_store_commit,
	.store_released = env_store_released,
	.store_activate = env_store_activate,
	.fence = env_fence,
	.store_outdate = env_store_outdate,
	.generation = env_generation,
	.changed = env_changed,
};

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

void node_output_soon(struct node *n)
{
	if (n->output_told)
		return;
	n->output_told = true;
	world_after(n->world, 20 * US, n, on_output, n, 0);
}

void node_start(struct node *n, bool primary)
{
	const struct options *o = &n->world->options;
	struct ft_err err = {0};
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
			n->world->mutant == MUTANT_FORGET_GENERATION ? 0 : n->remembered_generation,
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
	n->crashed = n->frozen = n->powerless = false;
	n->crash_in = 0;
	n->released_op = 0;
	n->state_told = -1;
	n->waits_since_ns = n->world->now;
	for (unsigned i = 0; i < 3; i++)
		n->overflow[i].node = n;
	if (ft_engine_new(&config, &node_env, n, n->none ? n->none : &n->arbiter, &n->engine,
			  &err)) {
		world_violation(n->world, "%s: cannot start: %s", n->name, err.text);
		return;
	}
	n->knows_peer = false;
	n->write_lands_ns = 0;
	if (primary) {
		n->world->shared_owner = n->id;
		n->machine = machine_new(n, false);
		ft_engine_start_solo(n->engine, &n->machine->vmm);
	} else {
		ft_engine_start_standby(n->engine);
	}
}

/* Was the guest protected here, and the standby in reach? Then one fault may not cost it. */
static bool protected_here(struct node *n)
{
	const struct ft_primary *p = &n->engine->primary;
	const struct node *o = other(n);

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
	/* The next agent replays it, whatever was written since. */
	if (n->stored) {
		check_journal(n);
		n->disk = n->journaled;
	}
	n->stored = n->sealing = 0;
	net_node_gone(n, powerless);
	n->crashed = true;
	n->powerless = powerless;
	n->dying = false;
	n->crashed_ns = w->now;
	n->incarnation++;
	n->dial_number[0] = n->dial_number[1] = 0;
	n->output_told = false;
	taps_free(n);
	ft_engine_free(n->engine);
	n->engine = NULL;
	if (n->none)
		n->none->ops->free(n->none);
	n->none = NULL;
	for (unsigned i = 0; i < 3; i++)
		overflow_reset(&n->overflow[i]);
	if (n->machine)
		n->machine->vmm.ops->free(&n->machine->vmm);
	n->machine = NULL;
}

void node_freeze(struct node *n, bool frozen)
{
	world_log(n->world, "%s: %s", n->name, frozen ? "FROZEN" : "thaws");
	n->frozen = frozen;
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
	ft_engine_vm_lost(n->engine, by_guest,
			  by_guest ? "the guest shut down" : "VM process died");
}
