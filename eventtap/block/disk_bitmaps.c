// SPDX-License-Identifier: Apache-2.0
// A disk tap's named bitmaps: their file in use from the tap's first moment to its last, and the
// read-only export at which backup clients find them.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "eventtap/block/disk_tap_internal.h"
#include "ft/log.h"

#define CONTEXT_PREFIX "qemu:dirty-bitmap:"
#define STATE_DIRTY    1u

_Static_assert(sizeof(CONTEXT_PREFIX) + FT_DIRTY_NAME_MAX <= NBD_CONTEXT_MAX, "a name fits");

void disk_bitmaps_open(struct disk_tap *d, const char *image, bool known)
{
	struct ft_err err;
	bitmaps_free(&d->bitmaps);
	bitmaps_init(&d->bitmaps, image, d->image.bytes);
	bitmaps_load(&d->bitmaps, known);
	if (bitmaps_count(&d->bitmaps) && bitmaps_save(&d->bitmaps, true, &err) < 0)
		ft_error("disk %s: %s", d->tap.id, err.text);
}

// Whose disk it is now has its bitmaps too.
static bool is_others(const struct disk_tap *d)
{
	return d->fenced || d->meta.fd < 0;
}

void disk_bitmaps_close(struct disk_tap *d)
{
	struct ft_err err;
	nbd_server_free(d->backups);
	if (d->server && !d->left && !is_others(d) && bitmaps_count(&d->bitmaps) &&
	    bitmaps_save(&d->bitmaps, false, &err) < 0)
		ft_error("disk %s: %s", d->tap.id, err.text);
	bitmaps_free(&d->bitmaps);
}

struct bitmaps *disk_tap_bitmaps(struct tap *tap)
{
	return &((struct disk_tap *)tap)->bitmaps;
}

int disk_tap_bitmaps_keep(struct tap *tap, struct ft_err *err)
{
	struct disk_tap *d = (struct disk_tap *)tap;
	if (is_others(d))
		return ft_err_set(err, ESHUTDOWN, "disk %s: fenced", tap->id);
	return bitmaps_save(&d->bitmaps, true, err);
}

// ---- the export ----

// Inconsistent ones are of no use to anybody.
static bool context(void *ctx, unsigned i, char name[NBD_CONTEXT_MAX])
{
	struct disk_tap *d = ctx;
	struct bitmap_info info;
	for (unsigned at = 0; bitmaps_info(&d->bitmaps, at, &info); at++) {
		if (info.inconsistent || i-- > 0)
			continue;
		snprintf(name, NBD_CONTEXT_MAX, CONTEXT_PREFIX "%s", info.name);
		return true;
	}
	return false;
}

static int context_extent(void *ctx, const char *name, uint64_t offset, uint32_t len,
			  uint32_t *extent, uint32_t *state)
{
	struct disk_tap *d = ctx;
	uint64_t part = len;
	bool dirty = false;
	int ret = bitmaps_at(&d->bitmaps, name + strlen(CONTEXT_PREFIX), offset, &part, &dirty);
	*extent = (uint32_t)part;
	*state = dirty ? STATE_DIRTY : 0;
	return ret;
}

int disk_tap_backups(struct tap *tap, const char *socket, struct ft_err *err)
{
	struct disk_tap *d = (struct disk_tap *)tap;
	struct nbd_export export = {
		.ops = &d->backup_ops, .ctx = d, .bytes = d->image.bytes, .read_only = true};
	if (d->backups)
		return 0;
	d->backup_ops = disk_io_ops;
	d->backup_ops.context = context;
	d->backup_ops.context_extent = context_extent;
	snprintf(export.name, sizeof(export.name), "%s", tap->id);
	return nbd_server_start(socket, &export, &d->backups, err);
}

void disk_tap_backups_end(struct tap *tap)
{
	struct disk_tap *d = (struct disk_tap *)tap;
	nbd_server_free(d->backups);
	d->backups = NULL;
}
