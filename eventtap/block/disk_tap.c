// SPDX-License-Identifier: Apache-2.0
// The engine's side of a disk tap: its life, modes and epochs. The guest's side is disk_io.c; the
// map is in disk_tap_internal.h.
//
// Only this side takes segments out of the log, and closed segments do not change: release() may
// read them without the lock. Lock order: a range, then d->lock (a range is waited for with d->lock
// given up).
#include "eventtap/block/disk_tap.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "eventtap/block/disk_tap_internal.h"
#include "eventtap/block/record.h"
#include "ft/log.h"

#define CLOSE_WAIT_MS                                                                              \
	2000 /* close_epoch() for the last writers: the VMM has drained them already */

static struct disk_tap *of(struct tap *tap)
{
	return (struct disk_tap *)tap;
}

// ---- modes ----

// Writers are kept out until give_whole(). With a deadline in any case.
static int take_whole(struct disk_tap *d, unsigned timeout_ms)
{
	pthread_mutex_lock(&d->lock);
	int range = range_lock_take(&d->ranges, &d->lock, 0, d->image.bytes, timeout_ms);
	pthread_mutex_unlock(&d->lock);
	return range;
}

static void give_whole(struct disk_tap *d, int range)
{
	pthread_mutex_lock(&d->lock);
	range_lock_give(&d->ranges, range);
	pthread_mutex_unlock(&d->lock);
}

static void clear_log_locked(struct disk_tap *d)
{
	disk_log_clear(&d->log);
	d->written = (struct disk_written){.seq = UINT64_MAX};
	overlay_free(&d->overlay);
	d->flush_owed = false;
	d->pressure = false;
	pthread_cond_broadcast(&d->room);
}

// What is in the log was not released: the peer lacks it.
static void log_to_behind_locked(struct disk_tap *d)
{
	for (struct disk_segment *s = disk_log_next(&d->log, NULL); s;
	     s = disk_log_next(&d->log, s)) {
		struct tap_record rec;
		size_t at = 0;
		while (disk_segment_next(s, &at, &rec)) {
			uint64_t offset, len;
			int ret = record_range(&rec, d->image.bytes, &offset, &len);
			assert(ret == 0);
			disk_mark_behind_locked(d, offset, len);
		}
	}
	clear_log_locked(d);
}

// When the image refuses them, the held writes stay held and are read from the log; the guest's
// flushes fail from now on, and another set_mode() tries again.
static int let_go_of_held(struct disk_tap *d)
{
	uint64_t seq;
	int range = take_whole(d, RANGE_WAIT_MS);
	int ret = range < 0 ? range : disk_write_held(d, true, 0, &seq);
	pthread_mutex_lock(&d->lock);
	if (ret == 0)
		clear_log_locked(d);
	else
		disk_io_failed_locked(d, "held writes to the image", ret);
	d->letting_go = false;
	pthread_cond_broadcast(&d->room);
	if (range >= 0)
		range_lock_give(&d->ranges, range);
	pthread_mutex_unlock(&d->lock);
	return ret;
}

static int disk_set_mode(struct tap *tap, enum tap_mode mode)
{
	struct disk_tap *d = of(tap);
	if (mode != TAP_HOLD && !d->fenced && d->meta.fd < 0)
		return -EBUSY; // yielded: what is held may not go to an image that another host
			       // writes
	// So that there is little left to do when the epoch closes.
	if (mode == TAP_HOLD && d->shared)
		(void)image_flush(&d->image);
	pthread_mutex_lock(&d->lock);
	d->hold_next = mode == TAP_HOLD && d->mode != TAP_HOLD;
	if (d->hold_next)
		bitmaps_tell_all(&d->bitmaps);
	bool held = mode != TAP_HOLD && d->log.records > 0;
	if (mode != TAP_HOLD) {
		d->mode = mode;
		if (held && !d->shared)
			log_to_behind_locked(d);
		d->letting_go = held && d->shared;
	}
	pthread_cond_broadcast(&d->room);
	pthread_mutex_unlock(&d->lock);
	return held && d->shared ? let_go_of_held(d) : 0;
}

// ---- epochs ----

static int disk_close_epoch(struct tap *tap, uint64_t epoch, struct ft_err *err)
{
	struct disk_tap *d = of(tap);
	if (d->fenced)
		return ft_err_set(err, ESHUTDOWN, "disk: fenced");
	if (d->mode != TAP_HOLD && !d->hold_next)
		return 0;
	int range = take_whole(d, CLOSE_WAIT_MS);
	if (range < 0)
		return ft_err_set(err, -range, "disk: writes are still on their way to the image");
	int ret = disk_log_behind(d, err);
	// From now on another host may take a shared disk: what the VM wrote before there was a tap
	// must not be on its way from a cache of this host any more.
	if (ret == 0 && d->shared && d->hold_next && (ret = image_flush(&d->image)) < 0)
		ft_err_set(err, -ret, "disk: flush: %s", strerror(-ret));
	pthread_mutex_lock(&d->lock);
	if (ret == 0 && d->flush_owed) {
		ret = disk_log_flush_locked(d);
		if (ret < 0)
			ft_err_set(err, -ret, "disk: log: %s", strerror(-ret));
		else
			d->flush_owed = false;
	}
	if (ret == 0) {
		ret = bitmaps_log(&d->bitmaps, tap->device, disk_log_record_locked, d);
		if (ret < 0)
			ft_err_set(err, -ret, "disk: log: %s", strerror(-ret));
	}
	if (ret == 0) {
		disk_log_close(&d->log, epoch);
		d->mode = TAP_HOLD;
		d->hold_next = false;
	}
	range_lock_give(&d->ranges, range);
	pthread_mutex_unlock(&d->lock);
	return ret;
}

static size_t disk_export(struct tap *tap, uint64_t epoch, struct tap_cursor *cursor, uint8_t *out,
			  size_t room)
{
	struct disk_tap *d = of(tap);
	pthread_mutex_lock(&d->lock);
	size_t n = disk_log_export(&d->log, epoch, cursor, out, room);
	pthread_mutex_unlock(&d->lock);
	return n;
}

static int disk_release(struct tap *tap, uint64_t epoch, struct ft_err *err)
{
	struct disk_tap *d = of(tap);
	uint64_t seq = UINT64_MAX;
	if (d->fenced)
		return ft_err_set(err, ESHUTDOWN, "disk: fenced");
	if (d->shared) {
		int ret = disk_write_held(d, false, epoch, &seq);
		if (ret == -EAGAIN)
			return ft_err_set(
				err, EAGAIN,
				"disk: held writes wait for the standby to renew the lease");
		if (ret < 0) {
			pthread_mutex_lock(&d->lock);
			disk_io_failed_locked(d, "held writes to the image", ret);
			pthread_mutex_unlock(&d->lock);
			return ft_err_set(err, -ret, "disk: held writes of epoch %llu: %s",
					  (unsigned long long)epoch, strerror(-ret));
		}
	}
	disk_notes_released(d);
	pthread_mutex_lock(&d->lock);
	if (seq != UINT64_MAX)
		overlay_drop(&d->overlay, seq);
	disk_log_drop(&d->log, epoch);
	d->pressure = d->log.bytes >= d->log_bytes_soft;
	pthread_cond_broadcast(&d->room);
	pthread_mutex_unlock(&d->lock);
	return 0;
}

// Fenced for good: no write reaches the image any more. A replicated image has writes of a history
// that is not the guest's: it is outdated. A shared one belongs to the other host now, so its lock
// is given up.
static void disk_discard(struct tap *tap)
{
	struct disk_tap *d = of(tap);
	pthread_mutex_lock(&d->lock);
	d->fenced = true;
	clear_log_locked(d);
	pthread_mutex_unlock(&d->lock);
	int range = take_whole(d, CLOSE_WAIT_MS);
	if (range < 0)
		ft_error("disk %s: a write is still on its way to the image", tap->id);
	else
		give_whole(d, range);
	if (!d->shared) {
		struct metadata_record record = d->meta.record;
		struct ft_err err;
		record.state = STORE_OUTDATED;
		if (metadata_write(&d->meta, &record, &err) < 0)
			ft_error("disk %s: %s", tap->id, err.text);
	} else if (range >= 0) {
		metadata_close(&d->meta);
	}
}

static int disk_replay(struct tap *tap, const struct tap_record *rec, struct ft_err *err)
{
	struct disk_tap *d = of(tap);
	uint64_t offset, len;
	int ret = record_range(rec, d->image.bytes, &offset, &len);
	if (ret == 0)
		disk_before_change(d, offset, len);
	if (ret == 0)
		ret = rec->kind == TAP_DISK_FLUSH ? image_flush(&d->image)
						  : record_apply(&d->image, rec);
	return ret < 0 ? ft_err_set(err, -ret, "disk: replay: %s", strerror(-ret)) : 0;
}

void disk_tap_firing(struct tap *tap, bool firing)
{
	struct disk_tap *d = of(tap);
	pthread_mutex_lock(&d->lock);
	d->firing = firing;
	pthread_cond_broadcast(&d->room);
	pthread_mutex_unlock(&d->lock);
}

// ---- figures ----

static void disk_stats(struct tap *tap, struct tap_stats *stats)
{
	struct disk_tap *d = of(tap);
	pthread_mutex_lock(&d->lock);
	stats->held_outputs = d->log.records;
	stats->held_bytes = d->log.bytes;
	stats->outputs = d->writes;
	stats->bytes = d->bytes_written;
	stats->dropped = 0;
	stats->behind_bytes = disk_behind_bytes_locked(d);
	pthread_mutex_unlock(&d->lock);
}

static uint64_t ms_since(const struct timespec *then)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)((now.tv_sec - then->tv_sec) * 1000 +
			  (now.tv_nsec - then->tv_nsec) / 1000000);
}

void disk_tap_info(struct tap *tap, struct disk_tap_info *info)
{
	struct disk_tap *d = of(tap);
	memset(info, 0, sizeof(*info));
	info->connections = nbd_server_connections(d->server);
	pthread_mutex_lock(&d->lock);
	info->writers_waiting = d->waiting;
	info->waiting_ms = d->waiting ? ms_since(&d->waiting_since) : 0;
	info->io_errors = d->io_errors;
	memcpy(info->last_error, d->last_error, sizeof(info->last_error));
	info->log_bytes = d->log.bytes;
	info->spilled_bytes = disk_log_spilled_bytes(&d->log);
	info->fenced = d->fenced;
	pthread_mutex_unlock(&d->lock);
}

uint64_t disk_tap_bytes(const struct tap *tap)
{
	return ((const struct disk_tap *)tap)->image.bytes;
}

// ---- creation ----

static void disk_free(struct tap *tap)
{
	struct disk_tap *d = of(tap);
	pthread_mutex_lock(&d->lock);
	d->stopping = true;
	pthread_cond_broadcast(&d->room);
	pthread_mutex_unlock(&d->lock);
	nbd_server_free(d->server);
	disk_bitmaps_close(d);
	cow_unref(d->cow);
	if (d->marks)
		marks_end(d->marks);
	marks_unref(d->marks);
	disk_log_free(&d->log);
	overlay_free(&d->overlay);
	ft_bitmap_free(&d->behind);
	free(d->scratch);
	disk_notes_seal(d);
	notes_close(&d->notes);
	image_close(&d->image);
	metadata_close(&d->meta);
	range_lock_destroy(&d->ranges);
	pthread_cond_destroy(&d->room);
	pthread_mutex_destroy(&d->lock);
	free(d);
}

static const struct tap_ops disk_tap_ops = {
	.kind = "disk",
	.set_mode = disk_set_mode,
	.close_epoch = disk_close_epoch,
	.export = disk_export,
	.release = disk_release,
	.discard = disk_discard,
	.replay = disk_replay,
	.stats = disk_stats,
	.free = disk_free,
};

static int open_disk(struct disk_tap *d, const struct disk_tap_config *config, struct ft_err *err)
{
	int ret = config->shared
			  ? image_open_through(config->image, config->format_raw, &d->image, err)
			  : image_open(config->image, config->format_raw, &d->image, err);
	if (ret == 0)
		ret = metadata_open(config->image, &d->meta, err);
	// The guest runs with it already: whether it might be started is not the question.
	if (ret == 0 && d->meta.record.state != STORE_PROTECTED)
		ret = metadata_startable(config->image, &d->meta.record, err);
	if (ret < 0)
		return ret;
	if (config->uuid && config->uuid[0])
		snprintf(d->meta.record.uuid, sizeof(d->meta.record.uuid), "%s", config->uuid);
	return 0;
}

static int serve(struct disk_tap *d, const struct disk_tap_config *config, struct ft_err *err)
{
	struct nbd_export export = {.ops = &disk_io_ops, .ctx = d, .bytes = d->image.bytes};
	snprintf(export.name, sizeof(export.name), "%s", config->id);
	return nbd_server_start(config->socket, &export, &d->server, err);
}

int disk_tap_open(const struct disk_tap_config *config, struct tap **out, struct ft_err *err)
{
	struct disk_tap *d = calloc(1, sizeof(*d));
	if (!d)
		return ft_err_set(err, ENOMEM, "disk %s: out of memory", config->id);
	d->tap.ops = &disk_tap_ops;
	d->tap.device = config->device;
	snprintf(d->tap.id, sizeof(d->tap.id), "%s", config->id);
	snprintf(d->spill_dir, sizeof(d->spill_dir), "%s", config->spill_dir);
	snprintf(d->image_path, sizeof(d->image_path), "%s", config->image);
	d->image.fd = d->meta.fd = d->notes.fd = -1;
	d->shared = config->shared;
	d->gate = config->gate;
	d->written.seq = UINT64_MAX;
	d->log_bytes_soft = config->log_bytes_max / 2;
	d->mode = TAP_PASS;
	pthread_mutex_init(&d->lock, NULL);
	monotonic_cond_init(&d->room);
	range_lock_init(&d->ranges);
	bitmaps_init(&d->bitmaps, config->image, 0);
	disk_log_init(&d->log, config->log_bytes_max, d->spill_dir);
	int ret = open_disk(d, config, err);
	if (ret < 0)
		goto fail;
	uint64_t blocks = (d->image.bytes + DISK_TAP_BLOCK_BYTES - 1) / DISK_TAP_BLOCK_BYTES;
	d->scratch = malloc(SCRATCH_BYTES);
	if (!d->scratch || ft_bitmap_init(&d->behind, blocks) < 0 ||
	    (!d->shared &&
	     notes_open(&d->notes, config->image, d->image.bytes, config->known) < 0)) {
		ret = ft_err_set(err, ENOMEM, "out of memory");
		goto fail;
	}
	disk_bitmaps_open(d, config->image, config->known);
	ret = serve(d, config, err);
	if (ret < 0)
		goto fail;
	*out = &d->tap;
	return 0;

fail:
	ft_err_context(err, "disk %s", config->id);
	disk_free(&d->tap);
	return ret;
}
