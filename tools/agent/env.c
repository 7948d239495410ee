// SPDX-License-Identifier: Apache-2.0
/* The engine's environment: time, the VM and its taps where the guest runs, armed VM and disk
 * stores where it may run next. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "eventtap/block/disk_sums.h"
#include "eventtap/block/disk_tap.h"
#include "eventtap/block/journal.h"
#include "ft/log.h"
#include "tools/agent/agent.h"
#include "vmm-glue/qemu/qemu.h"

uint64_t agent_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_BOOTTIME, &ts); /* a host that was suspended was away */
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

static uint64_t env_now_ns(void *ctx)
{
	(void)ctx;
	return agent_now_ns();
}

static void env_wake_at(void *ctx, uint64_t when_ns)
{
	struct agent *a = ctx;
	uint64_t now = agent_now_ns(), in = when_ns > now ? when_ns - now : 0;
	struct timeval tv = {.tv_sec = (time_t)(in / 1000000000),
			     .tv_usec = (suseconds_t)(in % 1000000000 / 1000)};

	if (when_ns == UINT64_MAX)
		evtimer_del(a->tick);
	else
		evtimer_add(a->tick, &tv);
}

static uint64_t env_random(void *ctx)
{
	uint64_t value = 0;

	(void)ctx;
	if (getrandom(&value, sizeof value, 0) != sizeof value)
		value = agent_now_ns();
	return value;
}

static void env_dial(void *ctx, bool heartbeat)
{
	peer_dial(ctx, heartbeat);
}

static void env_hang_up(void *ctx)
{
	peer_hang_up(ctx);
}

/* ---- where the guest runs ---- */

/* What a reboot must not forget is beside the disks: the run directory is gone then. */
static int mark_disks(struct agent *a, bool is_protected, struct ft_err *err)
{
	struct ft_engine_status s;
	int rc = 0;

	ft_engine_status(a->engine, &s);
	for (unsigned i = 0; i < VMM_DISKS_MAX && !rc; i++) {
		const char *image = a->vm_info.disks[i].image;

		/* Of a guest that was to be taken over disks have no taps. */
		if (a->disk_taps[i])
			rc = disk_tap_set_protected(a->disk_taps[i], is_protected, s.generation,
						    err);
		else if (is_protected && i < a->vm_info.disks_n && image[0])
			rc = disk_set_protected(image, s.generation, err);
	}
	return rc;
}

static void disks_in_sync(struct agent *a)
{
	struct ft_engine_status s;

	ft_engine_status(a->engine, &s);
	for (unsigned i = 0; s.session && i < VMM_DISKS_MAX; i++)
		if (a->disk_taps[i])
			disk_tap_in_sync(a->disk_taps[i], s.session);
}

static int env_taps_in(void *ctx, struct ft_err *err)
{
	struct agent *a = ctx;
	int rc;

	/* Protection may be resumed by itself at any time; it comes again. */
	if (snapshot_busy(a))
		return ft_err_set(err, EBUSY, "%s", snapshot_busy(a));
	increment_forget(a);
	rc = taps_make(a, true, err);
	if (!rc)
		rc = taps_complete(a, err);
	if (rc)
		return rc;
	/* The generation of this protection first here, then at the standby: who knows less than a
	 * standby is refused by it. */
	rc = mark_disks(a, false, err);
	if (!rc)
		rc = vmm_taps_in(a->vmm, &a->points, err);
	if (rc)
		taps_part(a);
	return rc;
}

static int env_taps_out(void *ctx, struct ft_err *err)
{
	struct agent *a = ctx;
	int rc;

	if (!a->taps_made)
		return 0;
	/* What was let go is on its way through the filter: it must be through before the filter
	 * goes. */
	taps_settle(a);
	a->disks_stay = taps_disks_stay(a);
	rc = a->vmm ? vmm_taps_out(a->vmm, a->disks_stay, err) : 0;
	/* A VM that still has them would lose its disks and its network with them. */
	if (!rc)
		taps_part(a);
	return rc;
}

static void env_firing(void *ctx, bool on)
{
	struct agent *a = ctx;

	for (unsigned i = 0; i < VMM_DISKS_MAX; i++)
		if (a->disk_taps[i])
			disk_tap_firing(a->disk_taps[i], on);
}

static int env_describe(void *ctx, Ft__Setup *setup, struct ft_err *err)
{
	struct agent *a = ctx;
	struct ft_engine_status s;
	int rc = 0;

	vmm_info(a->vmm, &a->vm_info);
	ft_engine_status(a->engine, &s);
	setup->generation = s.generation;
	setup->vmm = (char *)(uintptr_t)a->vm_info.kind;
	setup->machine = (char *)(uintptr_t)machine_type(a);
	setup->ram_bytes = a->vm_info.ram_bytes;
	setup->uuid = a->vm_info.uuid[0] ? a->vm_info.uuid : a->config.uuid;
	setup->nics = a->vm_info.nics_n;
	for (unsigned i = 0; i < a->vm_info.disks_n; i++) {
		a->setup_disks[i] = (Ft__Disk)FT__DISK__INIT;
		a->setup_disks[i].id = a->vm_info.disks[i].id;
		a->setup_disks[i].image = a->vm_info.disks[i].image;
		a->setup_disks[i].bytes = a->vm_info.disks[i].bytes;
		a->setup_disks[i].since = a->disk_taps[i] ? disk_tap_session(a->disk_taps[i]) : 0;
		a->setup_disks[i].shared =
			taps_disk_mode(a, a->vm_info.disks[i].id) == STORE_SHARED;
		a->setup_disk_ptrs[i] = &a->setup_disks[i];
	}
	setup->n_disks = a->vm_info.disks_n;
	setup->disks = a->setup_disk_ptrs;
	if (setup->postcopy)
		follow_describe(a);
	if (a->config.source != CONFIG_LAUNCH) {
		qemu_command_line_free(a->command_line);
		a->command_line = NULL;
		rc = qemu_command_line(a->vmm, &a->command_line, err);
		if (rc)
			return rc;
		setup->command_line = a->command_line;
		while (a->command_line[setup->n_command_line])
			setup->n_command_line++;
	}
	return rc;
}

static void env_disks_all_behind(void *ctx)
{
	struct agent *a = ctx;

	for (unsigned i = 0; i < VMM_DISKS_MAX; i++)
		if (a->disk_taps[i])
			disk_tap_mark_all_behind(a->disk_taps[i]);
}

static int env_disk_next(void *ctx, uint8_t *data, uint32_t data_max, struct ft_disk_chunk *chunk,
			 struct ft_err *err)
{
	struct agent *a = ctx;

	for (unsigned i = 0; i < VMM_DISKS_MAX; i++) {
		int rc;

		if (!a->disk_taps[i])
			continue;
		rc = disk_tap_sync_next(a->disk_taps[i], data, data_max, &chunk->offset,
					&chunk->bytes, &chunk->zero, err);
		if (rc) {
			chunk->disk = i;
			return rc;
		}
	}
	return 0;
}

static uint64_t env_disks_behind(void *ctx)
{
	struct agent *a = ctx;
	uint64_t sum = 0;

	for (unsigned i = 0; i < VMM_DISKS_MAX; i++)
		if (a->disk_taps[i])
			sum += disk_tap_behind_bytes(a->disk_taps[i]);
	return sum;
}

static int env_disk_compare(void *ctx, uint64_t seed, const struct ft_disk_sums *range,
			    const uint8_t *sums, uint64_t *alike, struct ft_err *err)
{
	struct agent *a = ctx;

	*alike = 0;
	if (range->disk >= VMM_DISKS_MAX || !a->disk_taps[range->disk])
		return 0;
	if (range->unchanged)
		return disk_tap_unchanged(a->disk_taps[range->disk], range->offset, range->bytes,
					  alike, err);
	/* A standby that sums other blocks gets everything. */
	if (sums && range->block != DISK_SUM_BLOCK_BYTES)
		return 0;
	return disk_tap_compare(a->disk_taps[range->disk], seed, range->offset, range->bytes, sums,
				alike, err);
}

static bool is_shared(struct agent *a, unsigned i)
{
	return a->disk_taps[i] && taps_disk_mode(a, a->vm_info.disks[i].id) == STORE_SHARED;
}

/* A disk that is not given up cannot be activated by the standby, which then waits, and the engine
 * takes the switch back. */
static void env_disks_yield(void *ctx)
{
	struct agent *a = ctx;
	struct ft_err err = {0};

	for (unsigned i = 0; i < VMM_DISKS_MAX; i++)
		if (is_shared(a, i) && disk_tap_yield(a->disk_taps[i], &err))
			ft_warn("%s: %s", a->config.name, err.text);
}

static int env_disks_reclaim(void *ctx, uint64_t void_generation, struct ft_err *err)
{
	struct agent *a = ctx;
	int rc = 0;

	for (unsigned i = 0; i < VMM_DISKS_MAX && !rc; i++)
		if (is_shared(a, i))
			rc = disk_tap_reclaim(a->disk_taps[i], void_generation, err);
	if (rc)
		env_disks_yield(a);
	return rc;
}

static int env_guard(void *ctx, bool on, struct ft_err *why)
{
	struct agent *a = ctx;
	struct ft_err err = {0};
	struct memory m;
	int rc;

	/* First the memory: an agent that is started after this one died must not run what the
	 * standby runs. */
	memory_load(a->run_dir, a->config.name, &m);
	m.elsewhere = on;
	if (on) {
		struct ft_engine_status s;

		ft_engine_status(a->engine, &s);
		m.guarded = s.generation;
		m.peer[0] = 0;
		if (a->has_peer)
			uri_format(&a->peer, m.peer, sizeof m.peer);
	}
	/* Marked disks say the same; a guest without any has only this. */
	rc = memory_save(a->run_dir, a->config.name, &m, &err);
	if (rc)
		ft_warn("%s: %s", a->config.name, err.text);
	if (!rc || a->vm_info.disks_n || !on)
		rc = mark_disks(a, on, &err);
	if (on)
		disks_in_sync(a);
	if (!rc || !on)
		keeper_set_protected(a->keeper, on);
	else if (why)
		*why = err;
	return rc;
}

static void env_vm_end(void *ctx)
{
	guest_end(ctx);
}

/* ---- standby ---- */

static int env_arm(void *ctx, const Ft__Setup *setup, struct ft_err *err)
{
	struct agent *a = ctx;
	int rc = arm_guest(a, setup, err);

	if (!rc && setup->postcopy) {
		rc = follow_expect(a, setup, err);
		if (rc)
			agent_env.disarm(a);
	}
	return rc;
}

static void env_disarm(void *ctx)
{
	struct agent *a = ctx;

	guest_end(a);
	stores_free(a);
}

static int find_store(struct agent *a, unsigned disk, struct store **store, struct ft_err *err)
{
	if (disk >= a->stores_n)
		return ft_err_set(err, EPROTO, "disk %u: the guest has %u", disk, a->stores_n);
	*store = a->stores[disk];
	return 0;
}

static int env_store_sums(void *ctx, uint64_t seed, struct ft_disk_sums *range, uint8_t *sums,
			  struct ft_err *err)
{
	struct agent *a = ctx;

	for (; a->sums_disk < a->stores_n; a->sums_disk++, a->sums_at = 0) {
		struct store_sums_range part = {0};
		int rc;

		range->disk = a->sums_disk;
		range->offset = a->sums_at;
		range->block = DISK_SUM_BLOCK_BYTES;
		rc = store_sums(a->stores[a->sums_disk], seed, &a->sums_at, FT_SUMS_MAX, &part,
				sums, err);
		range->bytes = part.bytes;
		range->zero = part.zero;
		range->unchanged = part.unchanged;
		if (rc)
			return rc;
	}
	return 0;
}

static int env_store_sync(void *ctx, const struct ft_disk_chunk *chunk, const uint8_t *data,
			  struct ft_err *err)
{
	struct store *store = NULL;
	int rc = find_store(ctx, chunk->disk, &store, err);

	return rc ? rc
		  : store_sync_write(store, chunk->offset, data, chunk->bytes, chunk->zero, err);
}

static int env_store_stage(void *ctx, const struct tap_record *rec, struct ft_err *err)
{
	return durable_stage(ctx, rec, err);
}

static int env_store_staged(void *ctx, uint64_t generation, uint64_t epoch, struct ft_err *err)
{
	return durable_staged(ctx, generation, epoch, err);
}

static void env_store_unstage(void *ctx)
{
	struct agent *a = ctx;

	if (a->journal)
		journal_drop(a->journal);
}

static int env_store_apply(void *ctx, const struct tap_record *rec, struct ft_err *err)
{
	struct store *store = NULL;
	int rc = find_store(ctx, rec->device, &store, err);

	return rc ? rc : store_apply(store, rec, err);
}

static int env_store_commit(void *ctx, uint64_t generation, uint64_t epoch, struct ft_err *err)
{
	struct agent *a = ctx;
	int rc = 0;

	for (unsigned i = 0; i < a->stores_n && !rc; i++)
		rc = store_commit(a->stores[i], generation, epoch, err);
	return rc;
}

static void env_store_released(void *ctx, uint64_t epoch)
{
	struct agent *a = ctx;

	for (unsigned i = 0; i < a->stores_n; i++)
		store_drop_pending(a->stores[i], epoch);
}

static int env_store_activate(void *ctx, uint64_t generation, uint64_t epoch, bool settled,
			      struct ft_err *err)
{
	struct agent *a = ctx;
	int rc = durable_settle(a, err);

	for (unsigned i = 0; i < a->stores_n && !rc; i++)
		rc = store_activate(a->stores[i], generation, epoch, settled, err);
	if (!rc) {
		stores_free(a);
		taps_in_solo(a, true);
	}
	return rc;
}

static void env_fence(void *ctx, const char *host, uint64_t generation)
{
	fence_start(ctx, host, generation);
}

static int env_store_outdate(void *ctx, struct ft_err *err)
{
	struct agent *a = ctx;
	int rc = durable_settle(a, err);

	for (unsigned i = 0; i < a->stores_n && !rc; i++)
		rc = store_outdate(a->stores[i], err);
	return rc;
}

/* ---- postcopy ---- */

static int env_pages_open(void *ctx, uint64_t session, struct ft_err *err)
{
	(void)session;
	return follow_open(ctx, err);
}

static void env_pages_give(void *ctx, const struct ft_bitmap *missing)
{
	follow_give(ctx, missing);
}

static void env_pages_push(void *ctx, bool on)
{
	follow_background(ctx, on);
}

static int env_pages_prepare(void *ctx, uint64_t generation, struct ft_err *err)
{
	return follow_prepare(ctx, generation, err);
}

static void env_pages_link(void *ctx, struct ft_link *link, bool urgent)
{
	follow_link(ctx, link, urgent);
}

static int env_pages_begin(void *ctx, const struct ft_bitmap *missing, struct ft_err *err)
{
	return follow_begin(ctx, missing, err);
}

static void env_pages_close(void *ctx)
{
	follow_close(ctx);
	follow_bitmaps_end(ctx);
}

/* ---- both ---- */

static void env_generation(void *ctx, uint64_t generation)
{
	struct agent *a = ctx;
	struct ft_engine_status s;
	struct ft_err err = {0};
	struct memory m;

	memory_load(a->run_dir, a->config.name, &m);
	m.generation = generation;
	ft_engine_status(a->engine, &s);
	snprintf(m.home, sizeof m.home, "%s", s.home);
	if (memory_save(a->run_dir, a->config.name, &m, &err))
		ft_warn("%s: %s", a->config.name, err.text);
	for (unsigned i = 0; i < VMM_DISKS_MAX; i++)
		if (a->disk_taps[i] &&
		    disk_tap_set_generation(a->disk_taps[i], generation, 0, &err))
			ft_warn("%s: %s", a->config.name, err.text);
}

static void env_changed(void *ctx)
{
	struct agent *a = ctx;
	enum ft_state now;

	if (!a->engine || !a->ctl)
		return;
	now = ft_engine_state(a->engine);
	if (now != a->state_told) {
		a->state_told = now;
		/* What the guest writes here from now on is not seen by a snapshot of the image. */
		if (now == FT_TAKEOVER)
			(void)snapshot_give_up(a, "this host takes the guest over");
		if (now == FT_TAKEOVER)
			history_give_up(a, "this host takes the guest over");
		/* Roles change; the operator's word is about whoever has the role now. */
		if (a->config.arbiter.type == CONFIG_ARBITER_NONE &&
		    (now == FT_STANDBY || now == FT_SOLO))
			ft_arbiter_none_set_side(a->arbiter, now == FT_STANDBY ? FT_SIDE_STANDBY
									       : FT_SIDE_PRIMARY);
		ctl_server_state_changed(a->ctl, now, ft_engine_reason(a->engine));
	}
	agent_left(a);
	if (now == FT_FAILED)
		agent_end(a, AGENT_GUEST_LOST);
	else if (now == FT_STOPPED)
		agent_end(a, AGENT_OK);
}

const struct ft_env_ops agent_env = {
	.now_ns = env_now_ns,
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
	.pages_open = env_pages_open,
	.pages_give = env_pages_give,
	.pages_push = env_pages_push,
	.pages_prepare = env_pages_prepare,
	.pages_link = env_pages_link,
	.pages_begin = env_pages_begin,
	.pages_close = env_pages_close,
	.generation = env_generation,
	.changed = env_changed,
};
