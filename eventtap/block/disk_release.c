// SPDX-License-Identifier: Apache-2.0
// What a shared disk held goes to the image: piece by piece, each through the gate, because each
// may be the one in front of which the agent freezes. Engine's thread.
#include <errno.h>

#include "eventtap/block/disk_tap_internal.h"
#include "eventtap/block/record.h"

#define ZERO_PIECE_BYTES (64u << 20)

static struct disk_segment *next_segment(struct disk_tap *d, const struct disk_segment *segment)
{
	pthread_mutex_lock(&d->lock);
	struct disk_segment *next = disk_log_next(&d->log, segment);
	pthread_mutex_unlock(&d->lock);
	return next;
}

// The image is written through; what becomes zero without being written is not.
static int write_piece(struct disk_tap *d, const struct tap_record *rec, uint64_t offset,
		       uint64_t at, uint64_t len)
{
	disk_before_change(d, offset + at, len);
	if (rec->kind == TAP_DISK_WRITE)
		return image_pwrite(&d->image, rec->data + at, len, offset + at);
	int ret = image_zero(&d->image, offset + at, len,
			     rec->kind == TAP_DISK_TRIM ? IMAGE_ZERO_UNMAP : IMAGE_ZERO_ALLOCATED,
			     false);
	return ret < 0 ? ret : image_flush(&d->image);
}

// From *done on, in pieces that are soon over; a write is one.
static int write_record(struct disk_tap *d, const struct tap_record *rec, bool gated,
			uint64_t *done)
{
	uint64_t offset, len;
	int ret = record_range(rec, d->image.bytes, &offset, &len);
	while (ret == 0 && *done < len) {
		uint64_t piece = len - *done;
		if (rec->kind != TAP_DISK_WRITE && piece > ZERO_PIECE_BYTES)
			piece = ZERO_PIECE_BYTES;
		if (gated && !d->gate.enter(d->gate.ctx))
			return -EAGAIN;
		ret = write_piece(d, rec, offset, *done, piece);
		if (gated)
			d->gate.leave(d->gate.ctx);
		if (ret == 0)
			*done += piece;
	}
	return ret;
}

int disk_write_held(struct disk_tap *d, bool all, uint64_t epoch, uint64_t *seq)
{
	struct disk_segment *s = NULL;
	while ((s = next_segment(d, s)) && (all || (s->closed && s->epoch <= epoch))) {
		struct tap_record rec;
		if (d->written.seq != s->seq)
			d->written = (struct disk_written){.seq = s->seq};
		size_t at = d->written.at;
		while (disk_segment_next(s, &at, &rec)) {
			int ret = write_record(d, &rec, !all && d->gate.enter, &d->written.part);
			if (ret < 0)
				return ret;
			d->written.at = at;
			d->written.part = 0;
		}
		*seq = s->seq;
	}
	return 0;
}
