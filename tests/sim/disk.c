// SPDX-License-Identifier: Apache-2.0
/* The guest's disks on one host: production's disk tap where it runs, production's store where it
 * may run next, both over the files of this world. The NBD connection between VMM and tap is left
 * out: the linker gives the tap a server that hands its backend to the guest. What the agent does
 * around them (tools/agent/env.c, taps.c, guest.c) is done here in the same order. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eventtap/block/bitmaps.h"
#include "eventtap/block/disk_tap.h"
#include "eventtap/block/disk_tap_internal.h" /* white box: would a write have to wait? */
#include "eventtap/block/disk_sums.h"
#include "eventtap/block/journal.h"
#include "eventtap/block/metadata.h"
#include "ft/engine_internal.h" /* white box: its generation */
#include "tests/sim/world.h"

#define GUEST_UUID	 "8a7b0000-0000-4000-8000-000000000001"
#define BLOCKS_PER_CHUNK (SIM_DISK_BYTES / DISK_TAP_BLOCK_BYTES)

/* ---- the guest's side ---- */

uint64_t disk_offset(unsigned block)
{
	/* Over all chunks of the copier, and with holes between. */
	return (uint64_t)(block % BLOCKS_PER_CHUNK) * DISK_TAP_BLOCK_BYTES +
	       (uint64_t)(block / BLOCKS_PER_CHUNK) * 4096;
}

#define BITMAP "chain"
#define STILL  "still"

bool disk_dirty(struct node *n, unsigned disk, uint32_t *dirty)
{
	struct disk *d = &n->disks[disk];
	struct bitmaps *s = d->tap     ? disk_tap_bitmaps(d->tap)
			    : d->store ? store_bitmaps(d->store)
				       : NULL;

	*dirty = 0;
	for (unsigned i = 0; i < SIM_BLOCKS; i++) {
		uint64_t len = SECTOR;
		bool is = false;

		if (!s || bitmaps_at(s, BITMAP, disk_offset(i), &len, &is))
			return false;
		*dirty |= is ? 1u << i : 0;
	}
	return true;
}

static bool must_wait(const struct disk *d)
{
	const struct disk_tap *t = (const struct disk_tap *)d->tap;

	return t->mode == TAP_HOLD && t->log.bytes >= t->log_bytes_soft && !t->firing && !t->fenced;
}

int disk_write(struct node *n, unsigned disk, unsigned block, enum tap_kind kind,
	       const uint8_t *data)
{
	struct disk *d = &n->disks[disk];
	uint64_t at = disk_offset(block);

	n->machine->block_stale[disk][block] = true;
	if (d->export.ops) {
		const struct nbd_backend_ops *ops = d->export.ops;
		int rc;

		if (must_wait(d))
			return -EAGAIN;
		if (kind == TAP_DISK_WRITE)
			rc = ops->pwrite(d->export.ctx, data, SECTOR, at, false);
		else if (kind == TAP_DISK_TRIM)
			rc = ops->trim(d->export.ctx, at, SECTOR, false);
		else
			rc = ops->zero(d->export.ctx, at, SECTOR, NBD_ZERO_NO_HOLE);
		n->machine->written[disk] |= rc ? 0 : 1u << block;
		n->machine->perhaps[disk] |= 1u << block; /* who fails may have written a part */
		return rc;
	} else if (d->image_fd >= 0) {
		static const uint8_t zeroes[SECTOR];

		return pwrite(d->image_fd, kind == TAP_DISK_WRITE ? data : zeroes, SECTOR,
			      (off_t)at) == SECTOR
			       ? 0
			       : -errno;
	}
	return -ENXIO;
}

int disk_read(struct node *n, unsigned disk, unsigned block, uint8_t *out)
{
	struct disk *d = &n->disks[disk];
	uint64_t at = disk_offset(block);

	if (d->export.ops)
		return d->export.ops->pread(d->export.ctx, out, SECTOR, at);
	if (d->image_fd < 0)
		return -ENXIO;
	memset(out, 0, SECTOR);
	return pread(d->image_fd, out, SECTOR, (off_t)at) < 0 ? -errno : 0;
}

int disk_flush_all(struct node *n, unsigned disk)
{
	struct disk *d = &n->disks[disk];

	if (n->world->mutant == MUTANT_FLUSH_LIES)
		return 0;
	if (d->export.ops)
		return d->export.ops->flush(d->export.ctx);
	if (d->image_fd < 0)
		return -ENXIO;
	return fdatasync(d->image_fd) < 0 ? -errno : 0;
}

static bool stays(const struct node *n, const struct disk *d)
{
	return n->world->options.bitmaps || (n->world->options.track && !d->shared);
}

int disks_vm_open(struct node *n, struct ft_err *err)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

	for (unsigned i = 0; i < n->world->options.disks; i++) {
		struct disk *d = &n->disks[i];

		if (d->image_fd >= 0 || (d->tap && stays(n, d)))
			continue;
		d->image_fd = open(d->path, O_RDWR | O_CLOEXEC);
		if (d->image_fd < 0)
			return ft_err_set(err, errno, "sim: %s: %s", d->path, strerror(errno));
		/* As QEMU locks its image. */
		if (fcntl(d->image_fd, F_OFD_SETLK, &lock)) {
			close(d->image_fd);
			d->image_fd = -1;
			return ft_err_set(err, EBUSY, "sim: %s: a VM has it open", d->path);
		}
	}
	return 0;
}

void disks_vm_close(struct node *n)
{
	for (unsigned i = 0; i < SIM_DISKS; i++) {
		if (n->disks[i].image_fd >= 0)
			close(n->disks[i].image_fd);
		n->disks[i].image_fd = -1;
	}
}

/* ---- where the guest runs ---- */

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

	for (unsigned i = 0; i < SIM_DISKS && !rc; i++)
		if (n->disks[i].tap)
			rc = disk_tap_set_protected(n->disks[i].tap, is_protected,
						    n->engine->generation, err);
	return rc;
}

/* Another one is off, from the beginning to the end. */
static void begin_still(struct bitmaps *s)
{
	if (!bitmaps_add(s, STILL, SECTOR, NULL))
		(void)bitmaps_enable(s, STILL, false, NULL);
}

bool disk_still(struct node *n, unsigned disk)
{
	struct bitmap_info info;

	for (unsigned i = 0;
	     n->disks[disk].tap && bitmaps_info(disk_tap_bitmaps(n->disks[disk].tap), i, &info);
	     i++)
		if (!strcmp(info.name, STILL) && !info.arriving)
			return !info.enabled && !info.dirty_bytes;
	return true;
}

/* An operator's backups: where the bitmap is gone, or of no use, a new chain begins. */
static void begin_chain(struct node *n, unsigned disk)
{
	struct bitmaps *s = disk_tap_bitmaps(n->disks[disk].tap);
	struct ft_err err = {0};
	uint32_t dirty;

	if (n->machine)
		n->machine->written[disk] = n->machine->perhaps[disk] = 0;
	if (maps_awaited(n, disk))
		return;
	begin_still(s);
	if (disk_dirty(n, disk, &dirty))
		return;
	(void)bitmaps_remove(s, BITMAP, NULL);
	if (bitmaps_add(s, BITMAP, SECTOR, &err) || disk_tap_bitmaps_keep(n->disks[disk].tap, &err))
		world_log(n->world, "%s: %s", n->name, err.text);
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
		.uuid = GUEST_UUID,
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
		begin_chain(n, i);
	return 0;
}

void disks_taps_solo(struct node *n)
{
	for (unsigned i = 0; i < n->world->options.disks; i++) {
		struct disk *d = &n->disks[i];
		struct ft_err err = {0};

		if (d->tap)
			continue;
		if (stays(n, d) && make_tap(n, i, true, &err))
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
		if (stays(n, d) && d->image_fd < 0) {
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

/* ---- standby ---- */

/* Beside the first image that is replicated; false: there is none. */
static bool journal_path(const struct node *n, char path[96])
{
	for (unsigned i = 0; i < n->world->options.disks; i++) {
		if (n->disks[i].shared)
			continue;
		snprintf(path, 96, "%s" JOURNAL_SUFFIX, n->disks[i].path);
		return true;
	}
	return false;
}

static void on_news(void *ctx)
{
	node_journal_soon(ctx);
}

static int journal_begin(struct node *n, struct ft_err *err)
{
	struct journal_disk disks[SIM_DISKS];
	unsigned count = n->world->options.disks;
	char path[96];

	if (!n->world->options.durable || !journal_path(n, path))
		return 0;
	for (unsigned i = 0; i < count; i++)
		disks[i] = (struct journal_disk){store_id(n->disks[i].store),
						 store_image(n->disks[i].store)};
	return journal_new(path, disks, count, n->world->options.journal_bytes, on_news, n,
			   &n->journal, err);
}

static int journal_settle(struct node *n, struct ft_err *err)
{
	int rc = n->journal ? journal_finish(n->journal) : 0;

	return rc ? ft_err_set(err, -rc, "disks: flush: %s", strerror(-rc)) : 0;
}

static void journal_end(struct node *n, bool keep)
{
	journal_free(n->journal, keep);
	n->journal = NULL;
	n->stored = 0;
}

void disks_journal_news(struct node *n)
{
	struct ft_err err = {0};
	uint64_t epoch = n->stored;
	int error = 0;

	if (n->journal && !journal_take(n->journal, &epoch, &error))
		return;
	if (error)
		ft_err_set(&err, -error, "journal: %s", strerror(-error));
	else
		n->stored = epoch;
	ft_engine_stored(n->engine, epoch, error ? &err : NULL);
}

int disks_stores_open(struct node *n, const Ft__Setup *setup, struct ft_err *err)
{
	if (setup->n_disks != n->world->options.disks)
		return ft_err_set(err, EPROTO, "sim: %zu disks", setup->n_disks);
	char path[96];
	int gone = journal_path(n, path) ? journal_remove(path, err) : 0;

	if (gone)
		return gone;
	n->stored = n->sums_at = n->sums_disk = 0;
	seams_opening(n);
	for (unsigned i = 0; i < setup->n_disks; i++) {
		const Ft__Disk *s = setup->disks[i];
		struct disk *d = &n->disks[i];
		int rc;

		if (!n->forced && setup->generation &&
		    store_generation(d->path) > setup->generation)
			return ft_err_set(err, ESTALE, "disk %s: the copy here is the newer one",
					  s->id);
		if (s->shared != d->shared)
			return ft_err_set(err, EINVAL, "disk %s: mode", s->id);
		rc = store_open(s->id, d->path, d->shared ? STORE_SHARED : STORE_REPLICATED,
				s->bytes, GUEST_UUID, &d->store, err);
		if (rc)
			return rc;
		rc = store_join(d->store, setup->session, s->since, err);
		if (rc)
			return rc;
	}
	return journal_begin(n, err);
}

void disks_stores_free(struct node *n)
{
	struct ft_err err = {0};

	copies_gone(n);
	if (journal_settle(n, &err))
		world_log(n->world, "%s: %s", n->name, err.text);
	for (unsigned i = 0; i < SIM_DISKS; i++) {
		struct disk *d = &n->disks[i];

		if (!d->store)
			continue;
		store_free(d->store);
		d->store = NULL;
		check_claim(n, i);
	}
	journal_end(n, false);
}

static struct store *store_of(struct node *n, unsigned disk, struct ft_err *err)
{
	if (disk < SIM_DISKS && n->disks[disk].store)
		return n->disks[disk].store;
	ft_err_set(err, EPROTO, "disk %u: there is none", disk);
	return NULL;
}

static int env_store_sums(void *ctx, uint64_t seed, struct ft_disk_sums *range, uint8_t *sums,
			  struct ft_err *err)
{
	struct node *n = ctx;

	if (!n->world->options.compare)
		return 0;
	for (; n->sums_disk < n->world->options.disks; n->sums_disk++, n->sums_at = 0) {
		struct store_sums_range part = {0};
		int rc;

		range->disk = n->sums_disk;
		range->offset = n->sums_at;
		range->block = DISK_SUM_BLOCK_BYTES;
		rc = store_sums(n->disks[n->sums_disk].store, seed, &n->sums_at,
				(unsigned)world_range(n->world, 1, FT_SUMS_MAX), &part, sums, err);
		range->bytes = part.bytes;
		range->zero = part.zero;
		range->unchanged = part.unchanged;
		if (rc)
			return rc;
	}
	return 0;
}

static int env_store_stage(void *ctx, const struct tap_record *rec, struct ft_err *err)
{
	struct node *n = ctx;

	if (!n->journal || rec->device >= SIM_DISKS || !n->disks[rec->device].store ||
	    n->disks[rec->device].shared)
		return 0;
	return journal_add(n->journal, rec, err);
}

static int env_store_staged(void *ctx, uint64_t generation, uint64_t epoch, struct ft_err *err)
{
	struct node *n = ctx;

	if (n->journal)
		return journal_seal(n->journal, generation, epoch, err);
	n->stored = epoch;
	node_journal_soon(n);
	return 0;
}

static void env_store_unstage(void *ctx)
{
	struct node *n = ctx;

	if (n->journal)
		journal_drop(n->journal);
}

static int env_store_sync(void *ctx, const struct ft_disk_chunk *chunk, const uint8_t *data,
			  struct ft_err *err)
{
	struct node *n = ctx;
	struct store *store = store_of(n, chunk->disk, err);

	if (!store)
		return -EPROTO;
	if (n->world->mutant == MUTANT_SYNC_HOLE && world_chance(n->world, 5))
		return 0;
	return store_sync_write(store, chunk->offset, data, chunk->bytes, chunk->zero, err);
}

static int env_store_apply(void *ctx, const struct tap_record *rec, struct ft_err *err)
{
	struct node *n = ctx;
	struct store *store = store_of(n, rec->device, err);

	if (!store)
		return -EPROTO;
	if (n->world->mutant == MUTANT_FORGET_APPLY && world_chance(n->world, 2))
		return 0;
	return store_apply(store, rec, err);
}

static int env_store_commit(void *ctx, uint64_t generation, uint64_t epoch, struct ft_err *err)
{
	struct node *n = ctx;
	int rc = 0;

	if (n->world->options.durable && n->stored != epoch)
		world_violation(n->world, "%s: epoch %llu counts before it is durable", n->name,
				(unsigned long long)epoch);
	for (unsigned i = 0; i < SIM_DISKS && !rc; i++) {
		if (!n->disks[i].store)
			continue;
		rc = store_commit(n->disks[i].store, generation, epoch, err);
		if (!rc && n->world->mutant == MUTANT_PENDING_DROPPED)
			store_drop_pending(n->disks[i].store, epoch);
	}
	if (!rc && n->world->mutant == MUTANT_FORGET_PAGE)
		machine_forget_page(n->machine);
	return rc;
}

static void env_store_released(void *ctx, uint64_t epoch)
{
	struct node *n = ctx;

	for (unsigned i = 0; i < SIM_DISKS; i++)
		if (n->disks[i].store)
			store_drop_pending(n->disks[i].store, epoch);
}

static int env_store_activate(void *ctx, uint64_t generation, uint64_t epoch, bool settled,
			      struct ft_err *err)
{
	struct node *n = ctx;
	int rc = journal_settle(n, err);

	for (unsigned i = 0; i < SIM_DISKS && !rc; i++)
		if (n->disks[i].store)
			rc = store_activate(n->disks[i].store, generation, epoch,
					    settled || n->world->mutant == MUTANT_LEASE_NOT_AWAITED,
					    err);
	if (rc)
		return rc;
	if (n->world->options.shared)
		check_shared_taken(n);
	check_activated(n, epoch);
	disks_stores_free(n);
	disks_taps_solo(n);
	return 0;
}

static int env_store_outdate(void *ctx, struct ft_err *err)
{
	struct node *n = ctx;
	int rc = journal_settle(n, err);

	for (unsigned i = 0; i < SIM_DISKS && !rc; i++) {
		if (!n->disks[i].store)
			continue;
		rc = store_outdate(n->disks[i].store, err);
		check_claim(n, i);
	}
	return rc;
}

const struct ft_env_ops disk_env = {
	.firing = env_firing,
	.disks_all_behind = env_disks_all_behind,
	.disk_next = env_disk_next,
	.disks_behind = env_disks_behind,
	.disk_compare = env_disk_compare,
	.disks_yield = env_disks_yield,
	.disks_reclaim = env_disks_reclaim,
	.store_sums = env_store_sums,
	.store_sync = env_store_sync,
	.store_stage = env_store_stage,
	.store_staged = env_store_staged,
	.store_unstage = env_store_unstage,
	.store_apply = env_store_apply,
	.store_commit = env_store_commit,
	.store_released = env_store_released,
	.store_activate = env_store_activate,
	.store_outdate = env_store_outdate,
};

/* ---- life ---- */

void disks_init(struct node *n)
{
	for (unsigned i = 0; i < SIM_DISKS; i++) {
		struct disk *d = &n->disks[i];

		d->shared = n->world->options.disk_shared[i];
		d->image_fd = -1;
		snprintf(d->path, sizeof d->path, "/sim/%c/%sdisk%u", 'A' + (int)n->id,
			 d->shared ? "shared/" : "", i);
		snprintf(d->nbd, sizeof d->nbd, "/sim/%c/run/nbd%u", 'A' + (int)n->id, i);
		if (n->id == 0 && i < n->world->options.disks)
			files_make(n->world, d->path, SIM_DISK_BYTES);
	}
}

int disks_recover(struct node *n, struct ft_err *err)
{
	struct store_disk disks[SIM_DISKS];
	char path[96], ids[SIM_DISKS][8];

	if (!journal_path(n, path))
		return 0;
	for (unsigned i = 0; i < n->world->options.disks; i++) {
		snprintf(ids[i], sizeof ids[i], "disk%u", i);
		disks[i].id = ids[i];
		disks[i].image = n->disks[i].shared ? NULL : n->disks[i].path;
	}
	return store_recover(path, disks, n->world->options.disks, err);
}

bool disks_whole(struct node *n, uint64_t generation)
{
	for (unsigned i = 0; i < n->world->options.disks; i++)
		if (n->disks[i].shared || !store_is_consistent(n->disks[i].path, generation))
			return false;
	return true;
}

int disks_startable(struct node *n, enum store_right right, struct ft_err *err)
{
	for (unsigned i = 0; i < n->world->options.disks; i++) {
		int rc;

		if (!files_exists(n->disks[i].path))
			return ft_err_set(err, ENOENT, "disk %u: there is no image", i);
		rc = store_check_startable(n->disks[i].path, right, err);
		if (rc)
			return rc;
	}
	return 0;
}

bool disks_torn(struct node *n)
{
	struct metadata_record record;

	for (unsigned i = 0; i < n->world->options.disks; i++)
		if (n->disks[i].shared && !metadata_read(n->disks[i].path, &record, NULL) &&
		    record.state == STORE_INCONSISTENT)
			return true;
	return false;
}

uint64_t disks_generation(struct node *n)
{
	uint64_t newest = 0;

	for (unsigned i = 0; i < n->world->options.disks; i++) {
		uint64_t g = store_generation(n->disks[i].path);

		newest = g > newest ? g : newest;
	}
	return newest;
}

/* An operator who removes files looks after them: they do not come back with the next power cut. */
static void sync_folder(const char *path)
{
	char folder[80];
	int fd;

	snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(path, '/') - path), path);
	fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return;
	(void)fsync(fd);
	close(fd);
}

void disks_forget(struct node *n, bool image_too)
{
	for (unsigned i = 0; i < n->world->options.disks; i++) {
		char path[80];

		if (image_too && n->disks[i].shared)
			continue; /* it is the other host's as well */
		snprintf(path, sizeof path, "%s" METADATA_SUFFIX, n->disks[i].path);
		(void)unlink(path);
		if (image_too)
			(void)unlink(n->disks[i].path);
		sync_folder(path);
	}
}

/* Freed without a word: the objects' memory only, since a dead process writes nothing. */
void disks_process_gone(struct node *n)
{
	copies_gone(n);
	journal_end(n, true);
	for (unsigned i = 0; i < SIM_DISKS; i++) {
		store_free(n->disks[i].store);
		n->disks[i].store = NULL;
		n->disks[i].image_fd = -1;
	}
}
