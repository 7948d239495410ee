// SPDX-License-Identifier: Apache-2.0
// Whose the image is: what this tap says of it in the metadata (metadata.h), and a shared image's
// lock, which goes to the other host and perhaps comes back.
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "eventtap/block/disk_tap_internal.h"

static int check_writable(const struct disk_tap *d, struct ft_err *err)
{
	if (d->fenced)
		return ft_err_set(err, ESHUTDOWN, "disk %s: fenced", d->tap.id);
	if (d->meta.fd < 0)
		return ft_err_set(err, EBUSY, "disk %s: yielded to the other host", d->tap.id);
	return 0;
}

int disk_tap_yield(struct tap *tap, struct ft_err *err)
{
	struct disk_tap *d = (struct disk_tap *)tap;
	assert(d->shared);
	if (!d->fenced && d->meta.fd < 0)
		return 0;
	int ret = check_writable(d, err);
	if (ret == 0 && (ret = image_flush(&d->image)) < 0)
		ft_err_set(err, -ret, "disk %s: flush: %s", tap->id, strerror(-ret));
	if (ret == 0)
		metadata_close(&d->meta);
	return ret;
}

int disk_tap_reclaim(struct tap *tap, uint64_t void_generation, struct ft_err *err)
{
	struct disk_tap *d = (struct disk_tap *)tap;
	struct metadata_record left = d->meta.record;
	if (d->fenced)
		return ft_err_set(err, ESHUTDOWN, "disk %s: fenced", tap->id);
	if (d->meta.fd >= 0)
		return 0;
	int ret = metadata_open(d->image_path, &d->meta, err);
	if (ret < 0)
		return ft_err_context(err, "disk %s", tap->id);
	// The lock is free too while the other host's guest runs unprotected: the record tells.
	// One that died in its replay has written nothing but what we had written before.
	const struct metadata_record now = d->meta.record;
	bool cut_short = now.generation == left.generation && now.state == STORE_INCONSISTENT;
	bool given_up = void_generation && now.generation == void_generation;
	bool untouched = now.generation == left.generation && now.state == left.state;
	if (d->meta.fresh || (!untouched && !cut_short && !given_up))
		ret = ft_err_set(err, EBUSY,
				 "disk %s: the other host has taken it (generation %llu)", tap->id,
				 (unsigned long long)now.generation);
	else if (!untouched)
		ret = metadata_write(&d->meta, &left, err);
	if (ret < 0)
		metadata_close(&d->meta);
	// Whatever was found: what we left is what the next attempt has to find.
	d->meta.record = left;
	return ret;
}

int disk_tap_set_generation(struct tap *tap, uint64_t generation, uint64_t epoch,
			    struct ft_err *err)
{
	struct disk_tap *d = (struct disk_tap *)tap;
	int ret = check_writable(d, err);
	if (ret < 0)
		return ret;
	struct metadata_record record = d->meta.record;
	record.generation = generation;
	record.epoch = epoch;
	return metadata_write(&d->meta, &record, err);
}

int disk_tap_set_protected(struct tap *tap, bool is_protected, uint64_t generation,
			   struct ft_err *err)
{
	struct disk_tap *d = (struct disk_tap *)tap;
	int ret = check_writable(d, err);
	if (ret < 0)
		return ret;
	struct metadata_record record = d->meta.record;
	record.generation = generation;
	record.state = is_protected ? STORE_PROTECTED : STORE_UP_TO_DATE;
	return metadata_write(&d->meta, &record, err);
}

int disk_set_protected(const char *image, uint64_t generation, struct ft_err *err)
{
	struct metadata meta;
	int ret = metadata_open(image, &meta, err);
	if (ret < 0)
		return ret;
	struct metadata_record record = meta.record;
	record.generation = generation;
	record.state = STORE_PROTECTED;
	ret = metadata_write(&meta, &record, err);
	metadata_close(&meta);
	return ret;
}
