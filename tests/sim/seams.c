// SPDX-License-Identifier: Apache-2.0
/* What the linker puts under production code of disks (--wrap, see CMakeLists.txt) beside the
 * files: the NBD server, whose client is the simulated guest, and the store's thread, which becomes
 * events; and in the place of some functions mutants of them. */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "eventtap/block/disk_log.h"
#include "eventtap/block/disk_tap_internal.h" /* white box: the mode of a mutant's tap */
#include "eventtap/block/image.h"
#include "eventtap/block/metadata.h"
#include "eventtap/block/overlay.h"
#include "eventtap/block/syncer.h"
#include "tests/sim/world.h"

#define SYNC_LATENCY_MIN 100
#define SYNC_LATENCY_MAX 20000

/* Production calls with nothing of ours. */
static struct world *world;
static struct disk *opening; /* whose store is being opened */

void seams_init(struct world *w)
{
	world = w;
}

void seams_opening(struct disk *d)
{
	opening = d;
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

/* The store's thread, as events. */
static void on_sync(void *ctx, uint64_t arg)
{
	struct disk *d = ctx;
	struct syncer *y = (struct syncer *)(uintptr_t)arg;

	/* Its store may have ended meanwhile, and another may have the memory: then there is
	 * nothing, or nothing more, to be done. */
	if (!d->store || d->syncer != y || !y->wanted)
		return;
	y->wanted = false;
	int ret = image_flush(y->image);
	if (ret < 0 && y->error == 0)
		y->error = ret;
}

int __wrap_syncer_start(struct syncer *y, const struct image *image);
int __wrap_syncer_start(struct syncer *y, const struct image *image)
{
	y->image = image;
	y->started = true;
	opening->syncer = y;
	return 0;
}

static struct node *owner_of(const struct disk *d)
{
	for (unsigned i = 0; i < SIM_NODES; i++)
		if (d >= world->nodes[i].disks && d < world->nodes[i].disks + SIM_DISKS)
			return &world->nodes[i];
	abort();
}

void __wrap_syncer_want(struct syncer *y);
void __wrap_syncer_want(struct syncer *y)
{
	for (unsigned i = 0; i < SIM_NODES * SIM_DISKS; i++) {
		struct disk *d = &world->nodes[i / SIM_DISKS].disks[i % SIM_DISKS];

		if (d->syncer != y || y->wanted)
			continue;
		y->wanted = true;
		world_after(world, world_range(world, SYNC_LATENCY_MIN, SYNC_LATENCY_MAX) * US,
			    owner_of(d), on_sync, d, (uint64_t)(uintptr_t)y);
	}
}

void __wrap_syncer_stop(struct syncer *y);
void __wrap_syncer_stop(struct syncer *y)
{
	for (unsigned i = 0; i < SIM_NODES * SIM_DISKS; i++) {
		struct disk *d = &world->nodes[i / SIM_DISKS].disks[i % SIM_DISKS];

		if (d->syncer == y)
			d->syncer = NULL;
	}
	y->started = false;
}

/* ---- mutants of production code ---- */

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
