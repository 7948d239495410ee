// SPDX-License-Identifier: Apache-2.0
// A disk tap's named bitmaps: their file is in use from the tap's first moment to its last.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "eventtap/block/disk_tap_internal.h"
#include "ft/log.h"

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
	disk_backups_close(d);
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
