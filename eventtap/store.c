// SPDX-License-Identifier: Apache-2.0
// The standby's disk. Epochs are written into the page cache as they come; the disk itself catches
// up on a thread (block/worker.h), because an fdatasync may take longer than an epoch and nothing
// waits for it before activation.
#include "eventtap/store.h"

#include <assert.h>
#include <errno.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eventtap/block/bitmaps.h"
#include "eventtap/block/notes.h"
#include "eventtap/block/cow.h"
#include "eventtap/block/disk_log.h"
#include "eventtap/block/disk_sums.h"
#include "eventtap/block/image.h"
#include "eventtap/block/marks.h"
#include "eventtap/block/metadata.h"
#include "eventtap/block/overlay.h"
#include "eventtap/block/record.h"
#include "eventtap/block/worker.h"
#include "ft/log.h"

#define SYNC_BYTES (32u << 20)

struct store {
	char id[64];
	char path[PATH_MAX]; // of the image
	char folder[PATH_MAX];
	char uuid[METADATA_UUID_MAX];
	enum store_mode mode;
	enum store_state state;
	uint64_t generation, epoch; // committed
	struct image image;
	struct metadata meta;	 // replicated: open; shared: only within store_activate()
	struct notes notes;	 // replicated
	struct bitmaps bitmaps;	 // of the last epoch
	uint64_t session;	 // 0: of nobody who could know what changed
	bool broken;		 // a write failed: what the image holds is not known
	bool partial;		 // records of an epoch that is not committed yet
	bool flush;		 // one of them was a FLUSH
	bool lock_seen;		 // shared: held by the primary
	uint64_t unsynced;	 // bytes of the initial copy since the disk was asked to catch up
	bool active;		 // this host's VM has the disk now: image and lock are given up
	struct disk_log pending; // shared
	struct worker syncer;	 // makes the image durable
	struct cow *cow;	 // told before the image changes, or NULL
	struct marks *marks;	 // likewise
};

static int write_metadata(struct store *s, enum store_state state, struct ft_err *err)
{
	struct metadata_record record = {
		.generation = s->generation, .epoch = s->epoch, .state = state};
	memcpy(record.uuid, s->uuid, sizeof(record.uuid));
	return metadata_write(&s->meta, &record, err);
}

// An fdatasync may take longer than an epoch and nothing waits for it.
static int make_durable(void *ctx)
{
	return image_flush(&((struct store *)ctx)->image);
}

// The image is about to change under the bitmaps that are beside it.
static void spoil_bitmaps(const struct store *s)
{
	struct bitmaps old;
	struct ft_err err;
	if (!bitmaps_exist(s->path))
		return;
	bitmaps_init(&old, s->path, s->image.bytes);
	bitmaps_load(&old, true);
	if (bitmaps_save(&old, true, &err) < 0)
		ft_error("disk %s: %s", s->id, err.text);
	bitmaps_free(&old);
}

static void keep_bitmaps(struct store *s)
{
	struct ft_err err;
	if (bitmaps_save(&s->bitmaps, false, &err) == 0)
		return;
	ft_error("disk %s: %s: they are gone", s->id, err.text);
	(void)unlink(s->bitmaps.path);
}

static int open_replicated(struct store *s, uint64_t bytes, struct ft_err *err)
{
	// Locked before the image is touched. Its size says enough about its format: only the raw
	// image has the guest's.
	int ret = metadata_open(s->path, &s->meta, err);
	if (ret == 0)
		ret = image_open_or_create(s->path, true, bytes, &s->image, err);
	if (ret < 0)
		return ret;
	const char *owner = s->meta.record.uuid;
	if (owner[0] && s->uuid[0] && strcmp(owner, s->uuid) != 0)
		ft_warn("disk %s: image %s was guest %s's, is now overwritten with %s's", s->id,
			s->path, owner, s->uuid);
	s->generation = s->meta.record.generation;
	s->epoch = s->meta.record.epoch;
	if (notes_open(&s->notes, s->path, s->image.bytes, true) < 0)
		return ft_err_set(err, ENOMEM, "out of memory");
	spoil_bitmaps(s);
	ret = write_metadata(s, STORE_INCONSISTENT, err);
	if (ret == 0 && (ret = worker_start(&s->syncer)) < 0)
		ft_err_set(err, -ret, "thread: %s", strerror(-ret));
	return ret;
}

static int open_shared(struct store *s, uint64_t bytes, struct ft_err *err)
{
	int ret = image_open(s->path, true, &s->image, err);
	if (ret == 0 && s->image.bytes != bytes)
		ret = ft_err_set(err, EFBIG, "image %s: has %llu bytes, the guest's disk has %llu",
				 s->path, (unsigned long long)s->image.bytes,
				 (unsigned long long)bytes);
	return ret;
}

static void destroy(struct store *s)
{
	cow_unref(s->cow);
	if (s->marks)
		marks_end(s->marks);
	marks_unref(s->marks);
	worker_free(&s->syncer);
	disk_log_free(&s->pending);
	notes_close(&s->notes);
	bitmaps_free(&s->bitmaps);
	image_close(&s->image);
	metadata_close(&s->meta);
	free(s);
}

int store_open(const char *id, const char *image, enum store_mode mode, uint64_t bytes,
	       const char *uuid, struct store **out, struct ft_err *err)
{
	if (strlen(image) >= PATH_MAX)
		return ft_err_set(err, ENAMETOOLONG, "disk %s: image: name too long", id);
	if (bytes == 0)
		return ft_err_set(err, EINVAL, "disk %s: the guest's disk has no bytes", id);
	struct store *s = calloc(1, sizeof(*s));
	if (!s)
		return ft_err_set(err, ENOMEM, "disk %s: out of memory", id);
	char copy[PATH_MAX];
	snprintf(s->id, sizeof(s->id), "%s", id);
	snprintf(s->path, sizeof(s->path), "%s", image);
	snprintf(copy, sizeof(copy), "%s", image);
	snprintf(s->folder, sizeof(s->folder), "%s", dirname(copy));
	snprintf(s->uuid, sizeof(s->uuid), "%s", uuid ? uuid : "");
	s->mode = mode;
	s->state = STORE_INCONSISTENT;
	s->image.fd = s->meta.fd = s->notes.fd = -1;
	bitmaps_init(&s->bitmaps, s->path, bytes);
	worker_init(&s->syncer, make_durable, s);
	disk_log_init(&s->pending, STORE_PENDING_BYTES, s->folder);
	int ret = mode == STORE_REPLICATED ? open_replicated(s, bytes, err)
					   : open_shared(s, bytes, err);
	if (ret < 0) {
		ft_err_context(err, "disk %s", id);
		destroy(s);
		return ret;
	}
	*out = s;
	return 0;
}

// A disk that could not be written is no copy of anything any more.
static int failed(struct store *s, int ret, const char *what, struct ft_err *err)
{
	s->state = STORE_INCONSISTENT;
	s->broken = true;
	if (s->mode == STORE_REPLICATED)
		(void)notes_end(&s->notes);
	return ft_err_set(err, -ret, "disk %s: %s: %s", s->id, what, strerror(-ret));
}

// Before any change: an Outdated image that is written to again is Inconsistent from then on.
static int begin_change(struct store *s, struct ft_err *err)
{
	if (s->broken)
		return ft_err_set(err, EIO, "disk %s: broken by an earlier error", s->id);
	if (s->state != STORE_OUTDATED)
		return 0;
	// It was sealed.
	int ret = s->mode == STORE_REPLICATED ? notes_end(&s->notes) : 0;
	if (ret < 0)
		return failed(s, ret, "notes of changes", err);
	if (s->mode == STORE_REPLICATED && write_metadata(s, STORE_INCONSISTENT, err) < 0)
		return ft_err_context(err, "disk %s", s->id);
	s->state = STORE_INCONSISTENT;
	return 0;
}

static void before_change(struct store *s, uint64_t offset, uint64_t len)
{
	if (s->marks)
		marks_add(s->marks, offset, len);
	if (s->cow)
		cow_before_change(s->cow, offset, len);
}

int store_sync_write(struct store *s, uint64_t offset, const uint8_t *data, uint32_t len, bool zero,
		     struct ft_err *err)
{
	if (s->mode != STORE_REPLICATED)
		return ft_err_set(err, EPROTO,
				  "disk %s: copy: it is shared, there is nothing to copy", s->id);
	if (len == 0 || len > s->image.bytes || offset > s->image.bytes - len)
		return ft_err_set(err, EPROTO, "disk %s: copy: %u bytes at %llu are not within it",
				  s->id, len, (unsigned long long)offset);
	int ret = begin_change(s, err);
	if (ret < 0)
		return ret;
	before_change(s, offset, len);
	ret = zero ? image_zero(&s->image, offset, len, IMAGE_ZERO_UNMAP, false)
		   : image_pwrite(&s->image, data, len, offset);
	if (ret < 0)
		return failed(s, ret, "copy", err);
	// Piece by piece, or the first checkpoint waits for all of it.
	s->unsynced += zero ? 0 : len;
	if (s->unsynced >= SYNC_BYTES) {
		s->unsynced = 0;
		worker_want(&s->syncer);
	}
	return 0;
}

int store_join(struct store *s, uint64_t session, uint64_t since, struct ft_err *err)
{
	if (s->mode != STORE_REPLICATED)
		return 0;
	// Another history is going to be written here.
	int ret = since && since == notes_session(&s->notes) ? 0 : notes_end(&s->notes);
	s->session = session;
	return ret < 0 ? failed(s, ret, "notes of changes", err) : 0;
}

int store_sums(struct store *s, uint64_t seed, uint64_t *at, unsigned max,
	       struct store_sums_range *range, uint8_t *sums, struct ft_err *err)
{
	if (s->mode != STORE_REPLICATED || *at >= s->image.bytes)
		return 0;
	uint64_t limit = s->image.bytes - *at;
	range->zero = false;
	range->unchanged = notes_session(&s->notes) && !notes_at(&s->notes, *at, &limit);
	if (range->unchanged) {
		range->bytes = limit;
	} else {
		uint64_t blocks = (limit + DISK_SUM_BLOCK_BYTES - 1) / DISK_SUM_BLOCK_BYTES;
		int ret = disk_sums_next(&s->image, seed, *at, limit,
					 blocks < max ? (unsigned)blocks : max, &range->bytes,
					 &range->zero, sums);
		if (ret < 0)
			return ft_err_set(err, -ret, "disk %s: read for comparison: %s", s->id,
					  strerror(-ret));
	}
	*at += range->bytes;
	return 1;
}

// A write is kept in pieces that fit the log's segments.
static int keep(struct store *s, struct tap_record rec)
{
	if (rec.kind != TAP_DISK_WRITE)
		return disk_log_append(&s->pending, &rec, NULL, NULL);
	while (rec.len > 0) {
		struct tap_record piece = rec;
		piece.len = disk_log_piece(&s->pending, rec.len);
		int ret = disk_log_append(&s->pending, &piece, NULL, NULL);
		if (ret < 0)
			return ret;
		rec.len -= piece.len;
		rec.arg += piece.len;
		rec.data += piece.len;
	}
	return 0;
}

int store_apply(struct store *s, const struct tap_record *rec, struct ft_err *err)
{
	uint64_t offset, len;
	int ret = record_range(rec, s->image.bytes, &offset, &len);
	if (ret < 0)
		return ft_err_set(err, -ret, "disk %s: record of kind %d at %llu: not within it",
				  s->id, (int)rec->kind, (unsigned long long)rec->arg);
	ret = begin_change(s, err);
	if (ret < 0)
		return ret;
	s->partial = true;
	if (rec->kind == TAP_DISK_BITMAP) {
		ret = bitmaps_apply(&s->bitmaps, rec);
		return ret < 0 ? ft_err_set(err, -ret, "disk %s: bitmaps: %s", s->id,
					    strerror(-ret))
			       : 0;
	}
	if (rec->kind == TAP_DISK_FLUSH)
		s->flush = true;
	if (s->mode == STORE_REPLICATED)
		before_change(s, offset, len);
	ret = s->mode == STORE_SHARED ? keep(s, *rec) : record_apply(&s->image, rec);
	return ret < 0 ? failed(s, ret, "apply", err) : 0;
}

int store_commit(struct store *s, uint64_t generation, uint64_t epoch, struct ft_err *err)
{
	int begun = begin_change(s, err);
	if (begun < 0)
		return begun;
	if (s->mode == STORE_SHARED) {
		disk_log_close(&s->pending, epoch);
		if (!s->lock_seen)
			s->lock_seen = metadata_locked(s->path);
	} else {
		int ret = worker_error(&s->syncer);
		if (ret < 0)
			return failed(s, ret, "flush", err);
		if (s->flush)
			worker_want(&s->syncer);
	}
	s->partial = s->flush = false;
	s->generation = generation;
	s->epoch = epoch;
	if (s->state != STORE_UP_TO_DATE) {
		s->state = STORE_UP_TO_DATE;
		if (s->session)
			notes_begin(&s->notes, s->session, NULL);
		ft_info("disk %s: in sync at generation %llu epoch %llu", s->id,
			(unsigned long long)generation, (unsigned long long)epoch);
	}
	return 0;
}

void store_drop_pending(struct store *s, uint64_t epoch)
{
	disk_log_drop(&s->pending, epoch);
}

// What the pending writes leave behind, over all of them.
static int sum_pending(const struct store *s, struct overlay *sum)
{
	for (struct disk_segment *segment = disk_log_next(&s->pending, NULL); segment;
	     segment = disk_log_next(&s->pending, segment)) {
		struct tap_record rec;
		size_t at = 0;
		while (disk_segment_next(segment, &at, &rec)) {
			uint64_t offset, len;
			int ret = record_range(&rec, s->image.bytes, &offset, &len);
			if (ret == 0 && len > 0)
				ret = overlay_reserve(sum);
			if (ret < 0)
				return ret;
			struct overlay_extent extent = {
				.start = offset,
				.end = offset + len,
				.data = rec.kind == TAP_DISK_WRITE ? rec.data : NULL};
			if (len > 0)
				overlay_put(sum, &extent);
		}
	}
	return 0;
}

// Only the newest bytes are written: those of the primary's that are on the disk already must not
// give way to older ones for a moment, in which this host may die.
static int replay_pending(struct store *s)
{
	struct overlay sum = {0};
	int ret = sum_pending(s, &sum);
	for (size_t i = 0; i < sum.n && ret == 0; i++) {
		const struct overlay_extent *x = &sum.extents[i];
		ret = x->data ? image_pwrite(&s->image, x->data, x->end - x->start, x->start)
			      : image_zero(&s->image, x->start, x->end - x->start, IMAGE_ZERO_UNMAP,
					   false);
	}
	overlay_free(&sum);
	return ret;
}

// Shared: the old primary is to write no more.
static int take_lock(struct store *s, bool settled, struct ft_err *err)
{
	int ret = metadata_open(s->path, &s->meta, err);
	if (ret == 0 && !settled && !s->lock_seen) {
		metadata_close(&s->meta);
		ret = ft_err_set(
			err, EBUSY,
			"image %s: the old primary may still write to it: its lease is not "
			"over",
			s->path);
	}
	return ret;
}

int store_activate(struct store *s, uint64_t generation, uint64_t epoch, bool settled,
		   struct ft_err *err)
{
	// Of several disks a later one may have had to wait for its lock.
	if (s->active)
		return 0;
	if (s->state != STORE_UP_TO_DATE || s->partial)
		return ft_err_set(err, ESTALE, "disk %s: cannot take over: %s", s->id,
				  s->partial ? "an epoch is applied in part"
					     : metadata_state_name(s->state));
	int ret = 0;
	if (s->mode == STORE_SHARED && s->meta.fd < 0)
		ret = take_lock(s, settled, err);
	if (ret < 0)
		return ft_err_context(err, "disk %s", s->id);
	worker_stop(&s->syncer);
	if (s->mode == STORE_SHARED)
		image_forget(&s->image);
	// A replay that is cut short may leave a mixture, in the middle of an epoch.
	if (s->pending.records > 0 && write_metadata(s, STORE_INCONSISTENT, err) < 0)
		return ft_err_context(err, "disk %s", s->id);
	ret = replay_pending(s);
	if (ret < 0)
		return ft_err_set(err, -ret, "disk %s: replay: %s", s->id, strerror(-ret));
	ret = worker_error(&s->syncer);
	if (ret == 0)
		ret = image_flush(&s->image);
	if (ret < 0)
		return failed(s, ret, "flush", err);
	s->generation = generation;
	s->epoch = epoch;
	if (write_metadata(s, STORE_UP_TO_DATE, err) < 0)
		return ft_err_context(err, "disk %s", s->id);
	keep_bitmaps(s);
	disk_log_clear(&s->pending);
	notes_close(&s->notes);
	image_close(&s->image);
	metadata_close(&s->meta);
	s->active = true;
	return 0;
}

int store_outdate(struct store *s, struct ft_err *err)
{
	enum store_state before = s->state;
	s->state = STORE_OUTDATED;
	if (s->mode == STORE_SHARED || s->meta.fd < 0)
		return 0;
	if (before == STORE_INCONSISTENT || s->partial) {
		s->state = STORE_INCONSISTENT; // which is worse, and what the file says already
		return 0;
	}
	// Durable first: what is called outdated may still be the best copy that is left one day.
	int ret = image_flush(&s->image);
	if (ret < 0)
		return failed(s, ret, "flush", err);
	if (write_metadata(s, STORE_OUTDATED, err) < 0)
		return ft_err_context(err, "disk %s", s->id);
	keep_bitmaps(s);
	notes_seal(&s->notes);
	return 0;
}

struct bitmaps *store_bitmaps(struct store *s)
{
	return &s->bitmaps;
}

int store_watch(struct store *s, struct cow *cow, struct ft_err *err)
{
	assert(!s->cow);
	if (s->mode == STORE_SHARED)
		return ft_err_set(err, ENOTSUP,
				  "disk %s: is shared: the guest writes to it from the other host",
				  s->id);
	if (s->state != STORE_UP_TO_DATE || s->partial)
		return ft_err_set(err, EAGAIN, "disk %s: is not at a checkpoint just now", s->id);
	s->cow = cow_ref(cow);
	return 0;
}

void store_unwatch(struct store *s)
{
	cow_unref(s->cow);
	s->cow = NULL;
}

void store_mark(struct store *s, struct marks *marks)
{
	struct marks *former = s->marks;
	s->marks = marks_ref(marks);
	if (former)
		marks_end(former);
	marks_unref(former);
}

const char *store_id(const struct store *s)
{
	return s->id;
}

const char *store_image_path(const struct store *s)
{
	return s->path;
}

const struct image *store_image(const struct store *s)
{
	return s->mode == STORE_REPLICATED ? &s->image : NULL;
}

enum store_state store_state(const struct store *s)
{
	return s->state;
}

void store_free(struct store *s)
{
	if (!s)
		return;
	struct ft_err err;
	if (s->state == STORE_UP_TO_DATE && store_outdate(s, &err) < 0)
		ft_warn("%s", err.text);
	destroy(s);
}
