// SPDX-License-Identifier: Apache-2.0
/* Snapshots' copies of disks (eventtap/block/cow.h): taken of any disk at any moment, where the
 * guest runs and at its standby, under production's taps and stores, while requests and epochs
 * change it; finished slowly. What is saved must be what the disk was at the moment, each page
 * once. A copy never outlives what tells it of changes. Chance of its own, so that a seed is the
 * same life with and without copies. */
#include <stdlib.h>
#include <string.h>

#include "eventtap/block/cow.h"
#include "eventtap/block/disk_tap.h"
#include "tests/sim/world.h"

#define TICK_MAX   (20 * MS)
#define PAGES	   (SIM_DISK_BYTES / COW_PAGE_BYTES)
#define BEGIN_ODDS 12 /* of so many looks at a disk */

struct copy {
	struct cow *cow; /* NULL: none */
	bool saved_page[PAGES];
	uint8_t then[SIM_DISK_BYTES], saved[SIM_DISK_BYTES];
};

static struct copy copies[SIM_NODES][SIM_DISKS];
static struct world *world;
static uint64_t chance;

static uint64_t draw(uint64_t n)
{
	chance = chance * 6364136223846793005ull + 1442695040888963407ull;
	return (chance >> 33) % n;
}

static int save(void *ctx, uint64_t offset, const uint8_t *data, size_t len)
{
	struct copy *c = ctx;

	for (uint64_t at = offset; at < offset + len; at += COW_PAGE_BYTES) {
		if (c->saved_page[at / COW_PAGE_BYTES])
			world_violation(world, "a page of a disk's copy is saved twice");
		c->saved_page[at / COW_PAGE_BYTES] = true;
	}
	memcpy(c->saved + offset, data, len);
	return 0;
}

static void begin(struct node *n, unsigned disk)
{
	struct disk *d = &n->disks[disk];
	struct copy *c = &copies[n->id][disk];
	struct cow_config config = {.image = d->path,
				    .pool_blocks = SIM_DISK_BYTES / COW_BLOCK_BYTES,
				    .stall_max_ms = 1,
				    .write = save,
				    .ctx = c};
	struct ft_err err = {0};
	struct cow *cow;

	/* A shared disk is saved where the guest runs alone only: the other host writes it too. */
	if (d->shared || (!d->tap && !d->store) || cow_new(&config, &cow, &err))
		return;
	if (d->tap ? disk_tap_watch(d->tap, cow, &err) : store_watch(d->store, cow, &err)) {
		cow_unref(cow);
		return;
	}
	c->cow = cow;
	memset(c->saved_page, 0, sizeof c->saved_page);
	memset(c->saved, 0, sizeof c->saved);
	files_peek(d->path, 0, c->then, sizeof c->then, false);
}

static void end(struct node *n, unsigned disk)
{
	struct disk *d = &n->disks[disk];
	struct copy *c = &copies[n->id][disk];

	if (d->tap)
		disk_tap_unwatch(d->tap);
	else if (d->store)
		store_unwatch(d->store);
	cow_unref(c->cow);
	c->cow = NULL;
}

static void check(struct node *n, unsigned disk)
{
	struct copy *c = &copies[n->id][disk];
	struct ft_err err = {0};

	if (cow_error(c->cow, &err))
		world_violation(world, "%s: the copy of disk %u failed: %s", n->name, disk,
				err.text);
	for (unsigned i = 0; i < PAGES; i++)
		if (memcmp(c->saved + i * COW_PAGE_BYTES, c->then + i * COW_PAGE_BYTES,
			   COW_PAGE_BYTES) != 0)
			world_violation(world,
					"%s: page %u of disk %u is not in its copy as it was",
					n->name, i, disk);
}

static void step(struct node *n, unsigned disk)
{
	struct copy *c = &copies[n->id][disk];
	uint64_t paid;

	if (cow_step(c->cow, draw(2), &paid) != COW_DONE)
		return;
	check(n, disk);
	end(n, disk);
}

static void on_tick(void *ctx, uint64_t arg)
{
	struct world *w = ctx;
	struct node *n = &w->nodes[draw(SIM_NODES)];
	unsigned disk = (unsigned)draw(w->options.disks);

	(void)arg;
	if (copies[n->id][disk].cow)
		step(n, disk);
	else if (!n->crashed && !n->frozen && !draw(BEGIN_ODDS))
		begin(n, disk);
	world_after(w, 1 + draw(TICK_MAX), NULL, on_tick, w, 0);
}

void copies_start(struct world *w)
{
	world = w;
	chance = w->options.seed;
	world_after(w, draw(TICK_MAX), NULL, on_tick, w, 0);
}

void copies_gone(struct node *n)
{
	for (unsigned i = 0; i < SIM_DISKS; i++)
		if (copies[n->id][i].cow)
			end(n, i);
}
