// SPDX-License-Identifier: Apache-2.0
/* An operator's named bitmaps on the guest's disks: one that a chain of backups goes by, and one
 * that is off, from the beginning to the end. How they follow a guest is in maps.c. */
#include <string.h>

#include "eventtap/block/bitmaps.h"
#include "eventtap/block/disk_tap.h"
#include "tests/sim/world.h"

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

void disk_bitmaps_begin(struct node *n, unsigned disk)
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
