// SPDX-License-Identifier: Apache-2.0
// The read-only export at which backup clients find a disk and its bitmaps: as the guest sees it,
// or, from the begin of a backup to its end, as it was when that began.
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "eventtap/block/disk_tap_internal.h"

#define CONTEXT_PREFIX "qemu:dirty-bitmap:"
#define STATE_DIRTY    1u
#define MOMENT_MS      2000 /* for the writes that are under way */

_Static_assert(sizeof(CONTEXT_PREFIX) + FT_DIRTY_NAME_MAX <= NBD_CONTEXT_MAX, "a name fits");

// Inconsistent ones are of no use to anybody, those that have not arrived not yet.
static bool context(void *ctx, unsigned i, char name[NBD_CONTEXT_MAX])
{
	struct disk_tap *d = ctx;
	struct bitmap_info info;
	for (unsigned at = 0; bitmaps_info(&d->bitmaps, at, &info); at++) {
		if (info.inconsistent || info.arriving || i-- > 0)
			continue;
		snprintf(name, NBD_CONTEXT_MAX, CONTEXT_PREFIX "%s", info.name);
		return true;
	}
	return false;
}

static bool context_refused(void *ctx, const char *name, char why[NBD_REFUSAL_MAX])
{
	struct disk_tap *d = ctx;
	struct bitmap_info info;
	if (strncmp(name, CONTEXT_PREFIX, strlen(CONTEXT_PREFIX)) != 0)
		return false;
	name += strlen(CONTEXT_PREFIX);
	for (unsigned at = 0; bitmaps_info(&d->bitmaps, at, &info); at++) {
		if (!info.arriving || strcmp(info.name, name) != 0)
			continue;
		snprintf(why, NBD_REFUSAL_MAX,
			 "bitmap %s is busy: its guest has moved here, its bits are still arriving",
			 info.name);
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

static int view_pread(void *ctx, uint8_t *buf, uint32_t len, uint64_t offset)
{
	return fleece_read(((struct disk_tap *)ctx)->fleece, buf, len, offset);
}

static int view_extent(void *ctx, uint64_t offset, uint32_t len, uint32_t *extent, uint32_t *state)
{
	uint64_t part = len;
	bool hole = false;
	int ret = fleece_extent(((struct disk_tap *)ctx)->fleece, offset, part, &part, &hole);
	*extent = (uint32_t)part;
	*state = hole ? NBD_STATE_HOLE | NBD_STATE_ZERO : 0;
	return ret;
}

static int serve(struct disk_tap *d, const char *socket, struct ft_err *err)
{
	struct nbd_export export = {
		.ops = &d->backup_ops, .ctx = d, .bytes = d->image.bytes, .read_only = true};
	d->backup_ops = disk_io_ops;
	d->backup_ops.context = context;
	d->backup_ops.context_refused = context_refused;
	d->backup_ops.context_extent = context_extent;
	if (d->fleece) {
		d->backup_ops.pread = view_pread;
		d->backup_ops.extent = view_extent;
	}
	snprintf(export.name, sizeof(export.name), "%s", d->tap.id);
	return nbd_server_start(socket, &export, &d->backups, err);
}

int disk_tap_backups(struct tap *tap, const char *socket, struct ft_err *err)
{
	struct disk_tap *d = (struct disk_tap *)tap;
	return d->backups ? 0 : serve(d, socket, err);
}

void disk_tap_backups_end(struct tap *tap)
{
	struct disk_tap *d = (struct disk_tap *)tap;
	nbd_server_free(d->backups);
	d->backups = NULL;
}

// ---- one backup ----

bool disk_tap_backup_on(const struct tap *tap)
{
	return ((const struct disk_tap *)tap)->fleece != NULL;
}

// Between two writes: the view and the bitmap are of the same moment. A writer that was told of a
// view holds its range, so a view that goes with all ranges held is used by nobody.
static int set_view(struct disk_tap *d, struct fleece *view, const char *bitmap, bool used,
		    struct ft_err *err)
{
	pthread_mutex_lock(&d->lock);
	int range = range_lock_take(&d->ranges, &d->lock, 0, d->image.bytes, MOMENT_MS);
	int ret = range < 0 ? ft_err_set(err, -range, "writes are still on their way") : 0;
	if (ret == 0 && view && bitmap[0])
		ret = bitmaps_backup_begin(&d->bitmaps, bitmap, err);
	if (ret == 0)
		d->fleece = view;
	if (ret == 0 && !view && bitmap[0])
		bitmaps_backup_end(&d->bitmaps, bitmap, used);
	if (range >= 0)
		range_lock_give(&d->ranges, range);
	pthread_mutex_unlock(&d->lock);
	return ret;
}

int disk_tap_backup_begin(struct tap *tap, const char *bitmap, const char *socket,
			  struct ft_err *err)
{
	struct disk_tap *d = (struct disk_tap *)tap;
	struct fleece *view = NULL;
	struct ft_err why;
	if (d->fleece)
		return ft_err_set(err, EBUSY, "backup: one of disk %s is under way", tap->id);
	if (d->shared)
		return ft_err_set(err, ENOTSUP,
				  "backup: disk %s is shared: its storage has what can do that",
				  tap->id);
	int ret = fleece_new(&d->image, d->image_path, &view, err);
	if (ret == 0)
		ret = set_view(d, view, bitmap, false, err);
	if (ret < 0) {
		fleece_free(view);
		return ft_err_context(err, "backup: disk %s", tap->id);
	}
	snprintf(d->backup_bitmap, sizeof(d->backup_bitmap), "%s", bitmap);
	disk_tap_backups_end(tap);
	ret = serve(d, socket, err);
	if (ret < 0)
		(void)disk_tap_backup_end(tap, false, &why);
	return ret;
}

int disk_tap_backup_end(struct tap *tap, bool used, struct ft_err *err)
{
	struct disk_tap *d = (struct disk_tap *)tap;
	struct fleece *view = d->fleece;
	if (!view)
		return ft_err_set(err, EINVAL, "backup: none of disk %s is under way", tap->id);
	// First those who read from it.
	disk_tap_backups_end(tap);
	int ret = set_view(d, NULL, d->backup_bitmap, used, err);
	if (ret < 0)
		return ft_err_context(err, "backup: disk %s", tap->id);
	fleece_free(view);
	d->backup_bitmap[0] = '\0';
	return 0;
}

void disk_backups_close(struct disk_tap *d)
{
	nbd_server_free(d->backups);
	d->backups = NULL;
	if (d->backup_bitmap[0])
		bitmaps_backup_end(&d->bitmaps, d->backup_bitmap, false);
	fleece_free(d->fleece);
	d->fleece = NULL;
}
