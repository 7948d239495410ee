// SPDX-License-Identifier: Apache-2.0
/* The disks where the guest may run next: production's stores, and before them its journal, if
 * durability is to be the disk's; and what the engine asks of them. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "eventtap/block/disk_sums.h"
#include "eventtap/block/journal.h"
#include "tests/sim/world.h"

/* ---- the journal ---- */

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

/* ---- come and go ---- */

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
				s->bytes, DISK_GUEST_UUID, &d->store, err);
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

/* Without a word: the objects' memory only, since a dead process writes nothing. */
void disks_stores_gone(struct node *n)
{
	copies_gone(n);
	journal_end(n, true);
	for (unsigned i = 0; i < SIM_DISKS; i++) {
		store_free(n->disks[i].store);
		n->disks[i].store = NULL;
	}
}

/* ---- the engine ---- */

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

const struct ft_env_ops disk_stores_env = {
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
