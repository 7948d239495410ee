// SPDX-License-Identifier: Apache-2.0
/* The disks where the guest runs, production's disk taps: how they come, stay while the guest is
 * solo, and go, in the order of tools/agent/taps.c; and what the engine asks of them. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "eventtap/block/disk_sums.h"
#include "eventtap/block/disk_tap.h"
#include "ft/engine_internal.h" /* white box: its generation */
#include "tests/sim/world.h"

/* ---- what a tap needs ---- */

static void on_pressure(void *ctx)
{
	node_pressure_soon(ctx);
}

/* The lease; the keeper, the kernel and the storage are in check_shared_write(). */
static bool gate_enter(void *ctx)
{
	struct node *n = ctx;
	uint64_t left_ns = ft_engine_may_write_ns(n->engine);

	if (!left_ns && n->world->mutant != MUTANT_LEASE_IGNORED)
		return false;
	check_shared_write(n, left_ns);
	return true;
}

static void gate_leave(void *ctx)
{
	(void)ctx;
}

static int make_tap(struct node *n, unsigned i, bool known, struct ft_err *err)
{
	struct disk *d = &n->disks[i];
	char id[8], spill[16];
	struct disk_tap_config config = {
		.id = id,
		.device = (uint8_t)i,
		.image = d->path,
		.format_raw = true,
		.shared = d->shared,
		.known = known,
		.uuid = DISK_GUEST_UUID,
		.gate = {.enter = gate_enter, .leave = gate_leave, .ctx = n},
		.socket = d->nbd,
		.log_bytes_max = n->world->options.disk_log_bytes,
		.spill_dir = spill};
	int rc;

	snprintf(id, sizeof id, "disk%u", i);
	snprintf(spill, sizeof spill, "/sim/%c/run", 'A' + (int)n->id);
	seams_opening(n);
	rc = disk_tap_open(&config, &d->tap, err);
	if (rc)
		return rc;
	d->tap->notify = (struct tap_notify){.pressure = on_pressure, .ctx = n};
	tap_chain_add(ft_engine_chain(n->engine), d->tap);
	if (n->world->options.bitmaps)
		disk_bitmaps_begin(n, i);
	return 0;
}

/* ---- come and go ---- */

bool disk_keeps_tap(const struct node *n, const struct disk *d)
{
	return n->world->options.bitmaps || (n->world->options.track && !d->shared);
}

void disks_taps_gone(struct node *n)
{
	copies_gone(n);
	for (unsigned i = 0; i < SIM_DISKS; i++) {
		maps_tap_ends(n, i);
		if (n->disks[i].tap)
			n->disks[i].tap->ops->free(n->disks[i].tap);
		n->disks[i].tap = NULL;
	}
}

int disks_mark(struct node *n, bool is_protected, struct ft_err *err)
{
	int rc = 0;

	for (unsigned i = 0; i < n->world->options.disks && !rc; i++)
		if (n->disks[i].tap)
			rc = disk_tap_set_protected(n->disks[i].tap, is_protected,
						    n->engine->generation, err);
		else if (is_protected)
			rc = disk_set_protected(n->disks[i].path, n->engine->generation, err);
	return rc;
}

void disks_taps_solo(struct node *n)
{
	for (unsigned i = 0; i < n->world->options.disks; i++) {
		struct disk *d = &n->disks[i];
		struct ft_err err = {0};

		if (d->tap)
			continue;
		if (disk_keeps_tap(n, d) && make_tap(n, i, true, &err))
			world_log(n->world, "%s: %s", n->name, err.text);
		if (!d->tap)
			disk_tap_forget(d->path);
		else if (d->image_fd >= 0)
			close(d->image_fd);
		if (d->tap)
			d->image_fd = -1;
	}
}

void disks_taps_part(struct node *n)
{
	copies_gone(n);
	for (unsigned i = 0; i < SIM_DISKS; i++) {
		struct disk *d = &n->disks[i];

		if (!d->tap)
			continue;
		d->tap->next = NULL;
		if (disk_keeps_tap(n, d) && d->image_fd < 0) {
			tap_chain_add(ft_engine_chain(n->engine), d->tap);
			continue;
		}
		if (d->image_fd >= 0)
			disk_tap_leave(d->tap);
		maps_tap_ends(n, i);
		d->tap->ops->free(d->tap);
		d->tap = NULL;
	}
}

int disks_taps_in(struct node *n, struct ft_err *err)
{
	int rc = 0;

	for (unsigned i = 0; i < n->world->options.disks && !rc; i++)
		rc = n->disks[i].tap ? 0 : make_tap(n, i, false, err);
	if (!rc)
		rc = disks_mark(n, false, err);
	if (!rc)
		disks_vm_close(n); /* reopened as NBD */
	return rc;
}

int disks_taps_out(struct node *n, struct ft_err *err)
{
	/* An armed VM's disks are not open yet. */
	return n->machine && !n->machine->dead && !n->machine->armed ? disks_vm_open(n, err) : 0;
}

/* ---- the engine ---- */

static void env_firing(void *ctx, bool on)
{
	struct node *n = ctx;

	for (unsigned i = 0; i < SIM_DISKS; i++)
		if (n->disks[i].tap)
			disk_tap_firing(n->disks[i].tap, on);
}

static void env_disks_all_behind(void *ctx)
{
	struct node *n = ctx;

	for (unsigned i = 0; i < SIM_DISKS; i++)
		if (n->disks[i].tap)
			disk_tap_mark_all_behind(n->disks[i].tap);
}

static int env_disk_next(void *ctx, uint8_t *data, uint32_t max, struct ft_disk_chunk *chunk,
			 struct ft_err *err)
{
	struct node *n = ctx;

	for (unsigned i = 0; i < SIM_DISKS; i++) {
		int rc = n->disks[i].tap
				 ? disk_tap_sync_next(n->disks[i].tap, data, max, &chunk->offset,
						      &chunk->bytes, &chunk->zero, err)
				 : 0;

		if (rc) {
			chunk->disk = i;
			return rc;
		}
	}
	return 0;
}

static uint64_t env_disks_behind(void *ctx)
{
	struct node *n = ctx;
	uint64_t sum = 0;

	for (unsigned i = 0; i < SIM_DISKS; i++)
		if (n->disks[i].tap)
			sum += disk_tap_behind_bytes(n->disks[i].tap);
	return sum;
}

static int env_disk_compare(void *ctx, uint64_t seed, const struct ft_disk_sums *range,
			    const uint8_t *sums, uint64_t *alike, struct ft_err *err)
{
	struct node *n = ctx;

	*alike = 0;
	if (range->disk >= SIM_DISKS || !n->disks[range->disk].tap)
		return 0;
	if (range->unchanged)
		return disk_tap_unchanged(n->disks[range->disk].tap, range->offset, range->bytes,
					  alike, err);
	if (sums && range->block != DISK_SUM_BLOCK_BYTES)
		return 0;
	return disk_tap_compare(n->disks[range->disk].tap, seed, range->offset, range->bytes, sums,
				alike, err);
}

static void env_disks_yield(void *ctx)
{
	struct node *n = ctx;
	struct ft_err err = {0};

	n->write_lands_ns = 0; /* it waits for its own writes */
	for (unsigned i = 0; i < SIM_DISKS; i++)
		if (n->disks[i].tap && n->disks[i].shared && disk_tap_yield(n->disks[i].tap, &err))
			world_log(n->world, "%s: %s", n->name, err.text);
}

static int env_disks_reclaim(void *ctx, uint64_t void_generation, struct ft_err *err)
{
	struct node *n = ctx;
	int rc = 0;

	for (unsigned i = 0; i < SIM_DISKS && !rc; i++)
		if (n->disks[i].tap && n->disks[i].shared)
			rc = disk_tap_reclaim(n->disks[i].tap, void_generation, err);
	if (rc)
		env_disks_yield(n);
	else if (void_generation && n->world->options.shared)
		check_shared_taken(n);
	return rc;
}

const struct ft_env_ops disk_taps_env = {
	.firing = env_firing,
	.disks_all_behind = env_disks_all_behind,
	.disk_next = env_disk_next,
	.disks_behind = env_disks_behind,
	.disk_compare = env_disk_compare,
	.disks_yield = env_disks_yield,
	.disks_reclaim = env_disks_reclaim,
};
