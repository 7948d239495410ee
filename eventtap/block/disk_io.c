// SPDX-License-Identifier: Apache-2.0
// The guest's side of a disk tap: the NBD server's backend, called by connection threads.
//
// A change of the image and the note of it (record or bit) are one step to everybody else because
// the range is held for both. Which note it is, is decided after the change, when the lock is held
// again: the mode may have become TRACK meanwhile.
//
// Reads of a shared disk ask the overlay first and the image for the gaps: what release() moves
// from one to the other in between is found in the overlay.
#include "eventtap/block/disk_tap_internal.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "ft/log.h"

struct change {
	enum tap_kind kind; // WRITE, ZERO or TRIM
	uint64_t offset, len;
	const uint8_t *data;
	bool no_hole, fast, fua;
};

int disk_io_failed_locked(struct disk_tap *d, const char *what, int ret)
{
	d->io_errors++;
	snprintf(d->last_error, sizeof(d->last_error), "%s: %s", what, strerror(-ret));
	if ((d->io_errors & (d->io_errors - 1)) == 0) // a broken disk must not fill the log
		ft_error("disk %s: %s (error number %llu)", d->tap.id, d->last_error,
			 (unsigned long long)d->io_errors);
	return ret;
}

// One record; zeroes: its data are a length.
static int append_locked(struct disk_tap *d, const struct tap_record *rec, uint64_t len)
{
	struct overlay_extent extent = {.start = rec->arg, .end = rec->arg + len};
	if (!d->shared || len == 0)
		return disk_log_append(&d->log, rec, NULL, NULL);
	int ret = overlay_reserve(&d->overlay);
	if (ret == 0)
		ret = disk_log_append(&d->log, rec, &extent.data, &extent.seq);
	if (ret < 0)
		return ret;
	if (rec->kind != TAP_DISK_WRITE)
		extent.data = NULL;
	overlay_put(&d->overlay, &extent);
	return 0;
}

int disk_log_write_locked(struct disk_tap *d, const uint8_t *data, uint64_t offset, uint64_t len)
{
	while (len > 0) {
		struct tap_record rec = {.kind = TAP_DISK_WRITE,
					 .device = d->tap.device,
					 .arg = offset,
					 .len = disk_log_piece(&d->log, len),
					 .data = data};
		int ret = append_locked(d, &rec, rec.len);
		if (ret < 0)
			return ret;
		data += rec.len;
		offset += rec.len;
		len -= rec.len;
	}
	return 0;
}

int disk_log_zero_locked(struct disk_tap *d, enum tap_kind kind, uint64_t offset, uint64_t len)
{
	uint64_t le = htole64(len);
	struct tap_record rec = {.kind = kind,
				 .device = d->tap.device,
				 .arg = offset,
				 .len = sizeof(le),
				 .data = (const uint8_t *)&le};
	return append_locked(d, &rec, len);
}

int disk_log_flush_locked(struct disk_tap *d)
{
	struct tap_record rec = {.kind = TAP_DISK_FLUSH, .device = d->tap.device};
	return append_locked(d, &rec, 0);
}

int disk_log_record_locked(void *ctx, const struct tap_record *rec)
{
	return append_locked(ctx, rec, 0);
}

static int log_change_locked(struct disk_tap *d, const struct change *c)
{
	int ret = c->kind == TAP_DISK_WRITE ? disk_log_write_locked(d, c->data, c->offset, c->len)
					    : disk_log_zero_locked(d, c->kind, c->offset, c->len);
	if (ret == 0 && c->fua)
		ret = disk_log_flush_locked(d);
	return ret;
}

// ---- room in the log ----

static bool must_wait_locked(const struct disk_tap *d)
{
	return d->mode == TAP_HOLD && d->log.bytes >= d->log_bytes_soft && !d->firing &&
	       !d->stopping && !d->fenced;
}

// A writer that finds the log past its soft bound waits for a release, as long as that takes: the
// state of the pair, which the engine reports, is what it waits for.
static int admit_locked(struct disk_tap *d)
{
	if (must_wait_locked(d)) {
		if (d->waiting++ == 0)
			clock_gettime(CLOCK_MONOTONIC, &d->waiting_since);
		struct timespec notice = monotonic_in_ms(WAIT_NOTICE_MS);
		bool noticed = false;
		while (must_wait_locked(d)) {
			if (noticed)
				pthread_cond_wait(&d->room, &d->lock);
			else if (pthread_cond_timedwait(&d->room, &d->lock, &notice) == ETIMEDOUT) {
				noticed = true;
				ft_warn("disk %s: a write has waited %d s for a checkpoint to free "
					"the log",
					d->tap.id, WAIT_NOTICE_MS / 1000);
			}
		}
		d->waiting--;
	}
	return d->stopping || d->fenced ? -ESHUTDOWN : 0;
}

// True once each time that the soft bound is crossed.
static bool pressure_begins_locked(struct disk_tap *d)
{
	bool over = d->mode == TAP_HOLD && d->log.bytes >= d->log_bytes_soft;
	bool begins = over && !d->pressure;
	d->pressure = over;
	return begins;
}

// ---- changes ----

static int apply_to_image(struct disk_tap *d, const struct change *c, const char **what)
{
	int ret;
	disk_before_change(d, c->offset, c->len);
	*what = "write";
	if (c->kind == TAP_DISK_WRITE)
		ret = image_pwrite(&d->image, c->data, c->len, c->offset);
	else
		ret = image_zero(&d->image, c->offset, c->len,
				 c->no_hole ? IMAGE_ZERO_ALLOCATED : IMAGE_ZERO_UNMAP, c->fast);
	if (ret == 0 && c->fua) {
		*what = "flush";
		ret = image_flush(&d->image);
	}
	return ret;
}

// The image has changed, or part of it when that failed.
static void note_locked(struct disk_tap *d, const struct change *c, bool failed)
{
	bitmaps_mark(&d->bitmaps, c->offset, c->len);
	if (d->shared || d->mode == TAP_PASS)
		return;
	if (d->mode == TAP_TRACK || failed || log_change_locked(d, c) < 0) {
		disk_mark_behind_locked(d, c->offset, c->len);
		if (d->mode == TAP_HOLD && c->fua)
			d->flush_owed = true;
	}
}

// Held writes of a shared disk go on being held as long as there are any, even after HOLD has
// ended, or the order would be lost.
static bool holds_back_locked(const struct disk_tap *d)
{
	return d->shared && (d->mode == TAP_HOLD || d->log.records > 0);
}

static int change_in_range_locked(struct disk_tap *d, const struct change *c)
{
	if (d->fenced)
		return -ESHUTDOWN;
	d->writes++;
	d->bytes_written += c->len;
	if (holds_back_locked(d)) {
		int ret = log_change_locked(d, c);
		bitmaps_mark(&d->bitmaps, c->offset, c->len);
		return ret < 0 ? disk_io_failed_locked(d, "log of held writes", ret) : 0;
	}
	const char *what = "note of a write";
	pthread_mutex_unlock(&d->lock);
	int ret = disk_note_change(d, c->offset, c->len);
	if (ret == 0)
		ret = apply_to_image(d, c, &what);
	pthread_mutex_lock(&d->lock);
	if (ret == -ENOTSUP && c->fast)
		return ret; // nothing was done
	note_locked(d, c, ret < 0);
	return ret < 0 ? disk_io_failed_locked(d, what, ret) : 0;
}

static int change(struct disk_tap *d, const struct change *c)
{
	pthread_mutex_lock(&d->lock);
	int ret = admit_locked(d);
	if (ret == 0) {
		int range = range_lock_take(&d->ranges, &d->lock, c->offset, c->offset + c->len,
					    RANGE_WAIT_MS);
		if (range < 0) {
			ret = disk_io_failed_locked(d, "write", range);
		} else {
			ret = change_in_range_locked(d, c);
			range_lock_give(&d->ranges, range);
		}
	}
	bool tell = pressure_begins_locked(d);
	pthread_mutex_unlock(&d->lock);
	if (tell && d->tap.notify.pressure)
		d->tap.notify.pressure(d->tap.notify.ctx);
	return ret;
}

static int disk_pwrite(void *ctx, const uint8_t *buf, uint32_t len, uint64_t offset, bool fua)
{
	const struct change c = {
		.kind = TAP_DISK_WRITE, .offset = offset, .len = len, .data = buf, .fua = fua};
	return change(ctx, &c);
}

static int disk_zero(void *ctx, uint64_t offset, uint32_t len, unsigned flags)
{
	const struct change c = {.kind = flags & NBD_ZERO_NO_HOLE ? TAP_DISK_ZERO : TAP_DISK_TRIM,
				 .offset = offset,
				 .len = len,
				 .no_hole = flags & NBD_ZERO_NO_HOLE,
				 .fast = flags & NBD_ZERO_FAST,
				 .fua = flags & NBD_ZERO_FUA};
	return change(ctx, &c);
}

static int disk_trim(void *ctx, uint64_t offset, uint32_t len, bool fua)
{
	const struct change c = {.kind = TAP_DISK_TRIM, .offset = offset, .len = len, .fua = fua};
	return change(ctx, &c);
}

static int flush_image_locked(struct disk_tap *d)
{
	pthread_mutex_unlock(&d->lock);
	int ret = image_flush(&d->image);
	pthread_mutex_lock(&d->lock);
	if (ret < 0)
		return disk_io_failed_locked(d, "flush", ret);
	if (!d->shared && d->mode == TAP_HOLD && disk_log_flush_locked(d) < 0)
		d->flush_owed = true;
	return 0;
}

// The engine is writing to the image what was held: not for long, or it fails.
static int await_let_go_locked(struct disk_tap *d)
{
	struct timespec deadline = monotonic_in_ms(RANGE_WAIT_MS);
	while (d->letting_go)
		if (pthread_cond_timedwait(&d->room, &d->lock, &deadline) == ETIMEDOUT)
			return -ETIMEDOUT;
	return 0;
}

// A shared disk's flush in HOLD is a promise about the epoch, kept by release(). After HOLD, if
// what was held could not be written, there is nothing to promise.
static int flush_locked(struct disk_tap *d)
{
	int ret = await_let_go_locked(d);
	if (ret < 0)
		return disk_io_failed_locked(d, "flush", ret);
	if (d->fenced)
		return -ESHUTDOWN;
	if (!holds_back_locked(d))
		return flush_image_locked(d);
	ret = d->mode == TAP_HOLD ? disk_log_flush_locked(d) : -EIO;
	return ret < 0 ? disk_io_failed_locked(d, "flush of held writes", ret) : 0;
}

static int disk_flush(void *ctx)
{
	struct disk_tap *d = ctx;
	pthread_mutex_lock(&d->lock);
	int ret = flush_locked(d);
	pthread_mutex_unlock(&d->lock);
	return ret;
}

// ---- reads ----

// The extent of the overlay at offset, if there is one there; *len is cut to what is alike.
static bool overlay_at_locked(struct disk_tap *d, uint64_t offset, uint64_t *len,
			      const uint8_t **data)
{
	const struct overlay_extent *extent = overlay_find(&d->overlay, offset);
	if (!extent)
		return false;
	bool inside = extent->start <= offset;
	uint64_t left = (inside ? extent->end : extent->start) - offset;
	if (left < *len)
		*len = left;
	*data = inside && extent->data ? extent->data + (offset - extent->start) : NULL;
	return inside;
}

static int image_read(struct disk_tap *d, uint8_t *buf, uint64_t len, uint64_t offset)
{
	int ret = image_pread(&d->image, buf, len, offset);
	if (ret < 0) {
		pthread_mutex_lock(&d->lock);
		disk_io_failed_locked(d, "read", ret);
		pthread_mutex_unlock(&d->lock);
	}
	return ret;
}

static int disk_pread(void *ctx, uint8_t *buf, uint32_t len, uint64_t offset)
{
	struct disk_tap *d = ctx;
	if (!d->shared)
		return image_read(d, buf, len, offset);
	for (uint64_t done = 0, part; done < len; done += part) {
		const uint8_t *data;
		part = len - done;
		pthread_mutex_lock(&d->lock);
		bool held = overlay_at_locked(d, offset + done, &part, &data);
		if (held && data)
			memcpy(buf + done, data, part);
		else if (held)
			memset(buf + done, 0, part);
		pthread_mutex_unlock(&d->lock);
		int ret = held ? 0 : image_read(d, buf + done, part, offset + done);
		if (ret < 0)
			return ret;
	}
	return 0;
}

static int disk_extent(void *ctx, uint64_t offset, uint32_t len, uint32_t *extent, uint32_t *state)
{
	struct disk_tap *d = ctx;
	uint64_t part = len;
	if (d->shared) {
		const uint8_t *data;
		pthread_mutex_lock(&d->lock);
		bool held = overlay_at_locked(d, offset, &part, &data);
		pthread_mutex_unlock(&d->lock);
		if (held) {
			*extent = (uint32_t)part;
			*state = data ? 0 : NBD_STATE_ZERO;
			return 0;
		}
	}
	bool hole;
	int ret = image_extent(&d->image, offset, part, &part, &hole);
	*extent = (uint32_t)part;
	*state = hole ? NBD_STATE_HOLE | NBD_STATE_ZERO : 0;
	return ret;
}

const struct nbd_backend_ops disk_io_ops = {
	.pread = disk_pread,
	.pwrite = disk_pwrite,
	.zero = disk_zero,
	.trim = disk_trim,
	.flush = disk_flush,
	.extent = disk_extent,
};
