// SPDX-License-Identifier: Apache-2.0
/* What the linker puts under production code of disks (--wrap, see CMakeLists.txt) beside the
 * files: the NBD server, whose client is the simulated guest, and the threads of stores and
 * journals, which become events; and in the place of some functions mutants of them. */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <xxhash.h>

#include "eventtap/block/boot.h"
#include "eventtap/block/cow.h"
#include "eventtap/block/disk_log.h"
#include "eventtap/block/disk_tap_internal.h" /* white box: the mode of a mutant's tap */
#include "eventtap/block/image.h"
#include "eventtap/block/journal.h"
#include "eventtap/block/metadata.h"
#include "eventtap/block/overlay.h"
#include "eventtap/block/worker.h"
#include "ft/snapshot/claims.h"
#include "tests/sim/world.h"

#define SYNC_LATENCY_MIN 100
#define SYNC_LATENCY_MAX 20000
#define BLIND_BYTES	 4096

/* Production calls with nothing of ours. */
static struct world *world;
static struct node *opening; /* whose threads are being started */

void seams_init(struct world *w)
{
	world = w;
}

void seams_opening(struct node *n)
{
	opening = n;
}

/* ---- what the linker puts under production code ---- */

struct nbd_server {
	struct disk *disk;
};

int __wrap_nbd_server_start(const char *path, const struct nbd_export *export,
			    struct nbd_server **out, struct ft_err *err);
int __wrap_nbd_server_start(const char *path, const struct nbd_export *export,
			    struct nbd_server **out, struct ft_err *err)
{
	struct nbd_server *server = calloc(1, sizeof *server);

	(void)err;
	if (!server)
		abort();
	for (unsigned i = 0; i < SIM_NODES * SIM_DISKS; i++) {
		struct disk *d = &world->nodes[i / SIM_DISKS].disks[i % SIM_DISKS];

		if (!strcmp(d->nbd, path))
			server->disk = d;
	}
	if (!server->disk)
		abort();
	server->disk->export = *export;
	*out = server;
	return 0;
}

void __wrap_nbd_server_free(struct nbd_server *server);
void __wrap_nbd_server_free(struct nbd_server *server)
{
	if (server)
		server->disk->export.ops = NULL;
	free(server);
}

unsigned __wrap_nbd_server_connections(struct nbd_server *server);
unsigned __wrap_nbd_server_connections(struct nbd_server *server)
{
	(void)server;
	return 1;
}

/* The threads of a host's stores and of its journal, as events. */
#define WORKERS_MAX (SIM_NODES * (SIM_DISKS + 1))
static struct {
	struct worker *worker; /* NULL: free */
	struct node *owner;
} workers[WORKERS_MAX];

static int place_of(const struct worker *worker)
{
	for (int i = 0; i < WORKERS_MAX; i++)
		if (workers[i].worker == worker)
			return i;
	return -1;
}

static void on_work(void *ctx, uint64_t arg)
{
	struct worker *y = (struct worker *)(uintptr_t)arg;
	int place = place_of(y), ret;

	/* It may have ended meanwhile, and another may have the memory: then there is nothing, or
	 * nothing more, to be done. */
	if (place < 0 || workers[place].owner != ctx || !y->wanted)
		return;
	y->wanted = false;
	ret = y->fn(y->ctx);
	if (ret < 0 && y->error == 0)
		y->error = ret;
}

int __wrap_worker_start(struct worker *y);
int __wrap_worker_start(struct worker *y)
{
	int place = place_of(NULL);

	if (place < 0)
		abort();
	workers[place].worker = y;
	workers[place].owner = opening;
	return 0;
}

void __wrap_worker_want(struct worker *y);
void __wrap_worker_want(struct worker *y)
{
	int place = place_of(y);

	if (place < 0 || y->wanted)
		return;
	y->wanted = true;
	world_after(world, world_range(world, SYNC_LATENCY_MIN, SYNC_LATENCY_MAX) * US,
		    workers[place].owner, on_work, workers[place].owner, (uint64_t)(uintptr_t)y);
}

void __wrap_worker_stop(struct worker *y);
void __wrap_worker_stop(struct worker *y)
{
	int place = place_of(y);

	if (place >= 0)
		workers[place].worker = NULL;
}

void __real_worker_free(struct worker *y);
void __wrap_worker_free(struct worker *y);
void __wrap_worker_free(struct worker *y)
{
	__wrap_worker_stop(y);
	__real_worker_free(y);
}

ssize_t __real_getrandom(void *buf, size_t len, unsigned flags);
ssize_t __wrap_getrandom(void *buf, size_t len, unsigned flags);
ssize_t __wrap_getrandom(void *buf, size_t len, unsigned flags)
{
	uint64_t random;

	if (!world || len > sizeof random)
		return __real_getrandom(buf, len, flags);
	random = world_random(world);
	memcpy(buf, &random, len);
	return (ssize_t)len;
}

void __real_boot_identity(uint8_t id[BOOT_ID_BYTES]);
void __wrap_boot_identity(uint8_t id[BOOT_ID_BYTES]);
void __wrap_boot_identity(uint8_t id[BOOT_ID_BYTES])
{
	memset(id, 1, BOOT_ID_BYTES);
	id[0] = opening->boots;
}

/* ---- mutants of production code ---- */

void __real_bitmaps_mark(struct bitmaps *s, uint64_t offset, uint64_t len);
void __wrap_bitmaps_mark(struct bitmaps *s, uint64_t offset, uint64_t len);
void __wrap_bitmaps_mark(struct bitmaps *s, uint64_t offset, uint64_t len)
{
	if (world->mutant != MUTANT_BITMAP_FORGETS || !world_chance(world, 3))
		__real_bitmaps_mark(s, offset, len);
}

int __real_bitmaps_apply(struct bitmaps *s, const struct tap_record *rec);
int __wrap_bitmaps_apply(struct bitmaps *s, const struct tap_record *rec);
int __wrap_bitmaps_apply(struct bitmaps *s, const struct tap_record *rec)
{
	if (world->mutant == MUTANT_BITMAP_STALE && rec->data[0] == 2 && world_chance(world, 5))
		return 0;
	return __real_bitmaps_apply(s, rec);
}

void __real_ft_dirty_reclaim(struct ft_dirty_bitmap *b);
void __wrap_ft_dirty_reclaim(struct ft_dirty_bitmap *b);
void __wrap_ft_dirty_reclaim(struct ft_dirty_bitmap *b)
{
	if (world->mutant == MUTANT_MAP_UNMERGED)
		ft_bitmap_clear_all(&b->successor->bits);
	__real_ft_dirty_reclaim(b);
}

int __real_bitmaps_incoming_put(struct bitmaps *s, const char *name, uint64_t at,
				const uint8_t *data, uint64_t len, struct ft_err *err);
int __wrap_bitmaps_incoming_put(struct bitmaps *s, const char *name, uint64_t at,
				const uint8_t *data, uint64_t len, struct ft_err *err);
int __wrap_bitmaps_incoming_put(struct bitmaps *s, const char *name, uint64_t at,
				const uint8_t *data, uint64_t len, struct ft_err *err)
{
	if (world->mutant == MUTANT_MAP_HOLE && world_chance(world, 10))
		return 0;
	return __real_bitmaps_incoming_put(s, name, at, data, len, err);
}

int __real_bitmaps_incoming_add(struct bitmaps *s, const struct bitmap_info *what,
				struct ft_err *err);
int __wrap_bitmaps_incoming_add(struct bitmaps *s, const struct bitmap_info *what,
				struct ft_err *err);
int __wrap_bitmaps_incoming_add(struct bitmaps *s, const struct bitmap_info *what,
				struct ft_err *err)
{
	struct bitmap_info other = *what;

	other.enabled |= world->mutant == MUTANT_MAP_ENABLED;
	return __real_bitmaps_incoming_add(s, &other, err);
}

void __real_bitmaps_incoming_run(struct bitmaps *s);
void __wrap_bitmaps_incoming_run(struct bitmaps *s);
void __wrap_bitmaps_incoming_run(struct bitmaps *s)
{
	if (world->mutant != MUTANT_MAP_LATE)
		__real_bitmaps_incoming_run(s);
}

int __real_notes_mark(struct notes *c, uint64_t offset, uint64_t len);
int __wrap_notes_mark(struct notes *c, uint64_t offset, uint64_t len);
int __wrap_notes_mark(struct notes *c, uint64_t offset, uint64_t len)
{
	struct disk_tap *d = (struct disk_tap *)((char *)c - offsetof(struct disk_tap, notes));

	if (world->mutant == MUTANT_MARK_FORGOTTEN && d->mode == TAP_PASS && world_chance(world, 3))
		return 0;
	return __real_notes_mark(c, offset, len);
}

void __real_notes_replace(struct notes *c, const struct ft_bitmap *bits);
void __wrap_notes_replace(struct notes *c, const struct ft_bitmap *bits);
void __wrap_notes_replace(struct notes *c, const struct ft_bitmap *bits)
{
	struct ft_bitmap none;

	if (world->mutant != MUTANT_MARKS_EARLY) {
		__real_notes_replace(c, bits);
		return;
	}
	if (ft_bitmap_init(&none, bits->bits))
		abort();
	__real_notes_replace(c, &none);
	ft_bitmap_free(&none);
}

int __real_image_flush(const struct image *image);
int __wrap_image_flush(const struct image *image);
int __wrap_image_flush(const struct image *image)
{
	bool of_store = false, shared = false;

	for (unsigned i = 0; i < SIM_NODES * SIM_DISKS; i++) {
		const struct disk *d = &world->nodes[i / SIM_DISKS].disks[i % SIM_DISKS];
		const struct disk_tap *t = (const struct disk_tap *)d->tap;

		if (t && &t->image == image)
			shared = t->shared && t->mode == TAP_HOLD;
		of_store |= d->store != NULL && (!t || &t->image != image);
	}
	if (world->mutant == MUTANT_STORE_UNSYNCED && of_store)
		return 0;
	if (world->mutant == MUTANT_RELEASE_UNSYNCED && shared)
		return 0;
	return __real_image_flush(image);
}

int __real_metadata_startable(const char *image, const struct metadata_record *record,
			      struct ft_err *err);
int __wrap_metadata_startable(const char *image, const struct metadata_record *record,
			      struct ft_err *err);
int __wrap_metadata_startable(const char *image, const struct metadata_record *record,
			      struct ft_err *err)
{
	if (world->mutant == MUTANT_STALE_START ||
	    (world->mutant == MUTANT_TORN_ACCEPTED && record->state == STORE_INCONSISTENT))
		return 0;
	return __real_metadata_startable(image, record, err);
}

uint64_t __real_store_generation(const char *image);
uint64_t __wrap_store_generation(const char *image);
uint64_t __wrap_store_generation(const char *image)
{
	return world->mutant == MUTANT_STORE_GENERATION ? 0 : __real_store_generation(image);
}

size_t __real_disk_log_export(const struct disk_log *log, uint64_t epoch, struct tap_cursor *cursor,
			      uint8_t *out, size_t room);
size_t __wrap_disk_log_export(const struct disk_log *log, uint64_t epoch, struct tap_cursor *cursor,
			      uint8_t *out, size_t room);
size_t __wrap_disk_log_export(const struct disk_log *log, uint64_t epoch, struct tap_cursor *cursor,
			      uint8_t *out, size_t room)
{
	if (world->mutant == MUTANT_OLD_EPOCHS_FORGOTTEN)
		for (const struct disk_segment *s = log->first; s; s = s->next)
			if (s->closed && s->epoch > epoch)
				return 0;
	return __real_disk_log_export(log, epoch, cursor, out, room);
}

int __real_disk_log_append(struct disk_log *log, const struct tap_record *rec, const uint8_t **copy,
			   uint64_t *seq);
int __wrap_disk_log_append(struct disk_log *log, const struct tap_record *rec, const uint8_t **copy,
			   uint64_t *seq);
int __wrap_disk_log_append(struct disk_log *log, const struct tap_record *rec, const uint8_t **copy,
			   uint64_t *seq)
{
	struct tap_record other = *rec;

	/* copy: a shared disk's tap, which would miss it itself. */
	if (world->mutant == MUTANT_FORGET_WRITE && !copy && rec->kind != TAP_DISK_FLUSH &&
	    world_chance(world, 3))
		return 0;
	if (world->mutant == MUTANT_DISK_SWAPPED && rec->device && world_chance(world, 10))
		other.device = 0;
	return __real_disk_log_append(log, &other, copy, seq);
}

void __real_overlay_put(struct overlay *o, const struct overlay_extent *extent);
void __wrap_overlay_put(struct overlay *o, const struct overlay_extent *extent);
void __wrap_overlay_put(struct overlay *o, const struct overlay_extent *extent)
{
	if (world->mutant == MUTANT_OVERLAY_FORGETS && world_chance(world, 3))
		return;
	if (world->mutant == MUTANT_OVERLAY_THROUGH && extent->data) {
		struct disk_tap *d =
			(struct disk_tap *)((char *)o - offsetof(struct disk_tap, overlay));

		(void)image_pwrite(&d->image, extent->data, extent->end - extent->start,
				   extent->start);
	}
	__real_overlay_put(o, extent);
}

uint64_t __real_claims_page(struct claims *c, uint64_t pfn, unsigned near);
uint64_t __wrap_claims_page(struct claims *c, uint64_t pfn, unsigned near);
uint64_t __wrap_claims_page(struct claims *c, uint64_t pfn, unsigned near)
{
	uint64_t mine = __real_claims_page(c, pfn, near);

	if (!mine && world->mutant == MUTANT_CLAIMED_TWICE)
		return UINT64_C(1) << (pfn % CLAIMS_WORD_PAGES);
	return mine;
}

/* Late: the tap's and the store's next step is the change itself, so what is told of the one before
 * comes after it. */
void __real_cow_before_change(struct cow *c, uint64_t offset, uint64_t len);
void __wrap_cow_before_change(struct cow *c, uint64_t offset, uint64_t len);
void __wrap_cow_before_change(struct cow *c, uint64_t offset, uint64_t len)
{
	static struct {
		struct cow *cow;
		uint64_t offset, len;
	} owed;

	if (world->mutant == MUTANT_COW_FORGETS && world_chance(world, 10))
		return;
	if (world->mutant == MUTANT_COW_LATE) {
		if (owed.cow == c)
			__real_cow_before_change(c, owed.offset, owed.len);
		owed.cow = c;
		owed.offset = offset;
		owed.len = len;
		return;
	}
	__real_cow_before_change(c, offset, len);
}

int __real_journal_add(struct journal *j, const struct tap_record *rec, struct ft_err *err);
int __wrap_journal_add(struct journal *j, const struct tap_record *rec, struct ft_err *err);
int __wrap_journal_add(struct journal *j, const struct tap_record *rec, struct ft_err *err)
{
	if (world->mutant == MUTANT_JOURNAL_HOLE && world_chance(world, 5))
		return 0;
	return __real_journal_add(j, rec, err);
}

/* Only disks are compared by sums of this kind. */
XXH128_hash_t __real_XXH3_128bits_withSeed(const void *data, size_t len, XXH64_hash_t seed);
XXH128_hash_t __wrap_XXH3_128bits_withSeed(const void *data, size_t len, XXH64_hash_t seed);
XXH128_hash_t __wrap_XXH3_128bits_withSeed(const void *data, size_t len, XXH64_hash_t seed)
{
	if (world->mutant == MUTANT_COMPARE_BLIND && len > BLIND_BYTES)
		len = BLIND_BYTES;
	return __real_XXH3_128bits_withSeed(data, len, seed);
}
