// SPDX-License-Identifier: Apache-2.0
// No descriptors and no thread: the machine is in this process, so what it has put out when it is
// paused is in the queue already.
#include "eventtap/pio/pio_tap.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "eventtap/queue.h"

struct pio_tap {
	struct tap tap;
	pio_tap_deliver_fn *deliver;
	void *ctx;

	pthread_mutex_t lock; // guards what follows
	enum tap_mode mode;   // PASS or HOLD
	bool hold_next;	      // HOLD from the next close_epoch() on
	struct queue *queue;
	bool pressed;
	uint64_t outputs, bytes;
};

static struct pio_tap *pio_tap(struct tap *tap)
{
	return (struct pio_tap *)tap;
}

static void deliver_locked(struct pio_tap *t)
{
	struct tap_record rec;

	for (size_t at = 0; queue_peek(t->queue, &at, &rec); at = 0) {
		t->deliver(t->ctx, rec.kind, rec.arg, rec.data, rec.len);
		queue_pop(t->queue);
	}
}

static int put_locked(struct pio_tap *t, const struct tap_record *rec)
{
	int rc = queue_append(t->queue, rec, NULL);

	if (rc)
		return rc;
	t->outputs++;
	t->bytes += rec->len;
	return 0;
}

static void notify_locked(struct pio_tap *t)
{
	struct tap_stats stats;

	if (t->tap.notify.output)
		t->tap.notify.output(t->tap.notify.ctx);
	queue_stats(t->queue, &stats);
	if (stats.held_bytes <= queue_bytes_max(t->queue) / 2) {
		t->pressed = false;
	} else if (!t->pressed) {
		t->pressed = true;
		if (t->tap.notify.pressure)
			t->tap.notify.pressure(t->tap.notify.ctx);
	}
}

int pio_tap_emit(struct tap *tap, enum tap_kind kind, uint64_t addr, uint64_t value, unsigned width)
{
	struct pio_tap *t = pio_tap(tap);
	uint64_t le = htole64(value);
	struct tap_record rec = {
		.kind = kind,
		.device = tap->device,
		.len = width,
		.arg = addr,
		.data = (const uint8_t *)&le,
	};
	int rc;

	assert(kind == TAP_PIO || kind == TAP_MMIO);
	assert(width == 1 || width == 2 || width == 4 || width == 8);
	pthread_mutex_lock(&t->lock);
	rc = put_locked(t, &rec);
	if (t->mode == TAP_PASS) {
		queue_release_all(t->queue);
		deliver_locked(t);
	} else if (!rc) {
		notify_locked(t);
	}
	pthread_mutex_unlock(&t->lock);
	return rc;
}

static int pio_tap_set_mode(struct tap *tap, enum tap_mode mode)
{
	struct pio_tap *t = pio_tap(tap);

	pthread_mutex_lock(&t->lock);
	t->hold_next = mode == TAP_HOLD;
	if (mode != TAP_HOLD && t->mode == TAP_HOLD) {
		t->mode = TAP_PASS;
		t->pressed = false;
		queue_release_all(t->queue);
		deliver_locked(t);
	}
	pthread_mutex_unlock(&t->lock);
	return 0;
}

static int pio_tap_close_epoch(struct tap *tap, uint64_t epoch, struct ft_err *err)
{
	struct pio_tap *t = pio_tap(tap);
	int rc = 0;

	pthread_mutex_lock(&t->lock);
	if (t->mode == TAP_HOLD)
		rc = queue_close(t->queue, epoch, err);
	else if (t->hold_next)
		t->mode = TAP_HOLD;
	pthread_mutex_unlock(&t->lock);
	return rc;
}

static size_t pio_tap_export(struct tap *tap, uint64_t epoch, struct tap_cursor *cursor,
			     uint8_t *out, size_t room)
{
	struct pio_tap *t = pio_tap(tap);
	size_t n;

	pthread_mutex_lock(&t->lock);
	n = queue_export(t->queue, epoch, cursor, out, room);
	pthread_mutex_unlock(&t->lock);
	return n;
}

static int pio_tap_release(struct tap *tap, uint64_t epoch, struct ft_err *err)
{
	struct pio_tap *t = pio_tap(tap);

	(void)err;
	pthread_mutex_lock(&t->lock);
	queue_release(t->queue, epoch);
	deliver_locked(t);
	pthread_mutex_unlock(&t->lock);
	return 0;
}

static void pio_tap_discard(struct tap *tap)
{
	struct pio_tap *t = pio_tap(tap);

	pthread_mutex_lock(&t->lock);
	queue_discard(t->queue);
	pthread_mutex_unlock(&t->lock);
}

static int pio_tap_replay(struct tap *tap, const struct tap_record *rec, struct ft_err *err)
{
	struct pio_tap *t = pio_tap(tap);
	int rc = 0;

	pthread_mutex_lock(&t->lock);
	if (queue_holds(t->queue))
		rc = ft_err_set(err, EBUSY, "replay: outputs are held");
	else
		rc = put_locked(t, rec); // an empty queue has room
	assert(rc != -ENOBUFS);
	if (!rc) {
		queue_release_all(t->queue);
		deliver_locked(t);
	}
	pthread_mutex_unlock(&t->lock);
	return rc;
}

static void pio_tap_stats(struct tap *tap, struct tap_stats *stats)
{
	struct pio_tap *t = pio_tap(tap);

	*stats = (struct tap_stats){0};
	pthread_mutex_lock(&t->lock);
	queue_stats(t->queue, stats);
	stats->outputs = t->outputs;
	stats->bytes = t->bytes;
	pthread_mutex_unlock(&t->lock);
}

static void pio_tap_free(struct tap *tap)
{
	struct pio_tap *t = pio_tap(tap);

	queue_free(t->queue);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

static const struct tap_ops pio_tap_ops = {
	.kind = "pio",
	.set_mode = pio_tap_set_mode,
	.close_epoch = pio_tap_close_epoch,
	.export = pio_tap_export,
	.release = pio_tap_release,
	.discard = pio_tap_discard,
	.replay = pio_tap_replay,
	.stats = pio_tap_stats,
	.free = pio_tap_free,
};

int pio_tap_open(const struct pio_tap_config *config, struct tap **out, struct ft_err *err)
{
	struct pio_tap *t = calloc(1, sizeof *t);
	int rc;

	assert(config->deliver);
	if (!t)
		return ft_err_set(err, ENOMEM, "%s: out of memory", config->id);
	t->tap.ops = &pio_tap_ops;
	t->tap.device = config->device;
	snprintf(t->tap.id, sizeof t->tap.id, "%s", config->id);
	t->deliver = config->deliver;
	t->ctx = config->ctx;
	rc = queue_new(config->held_bytes_max, &t->queue, err);
	if (rc) {
		free(t);
		ft_err_context(err, "%s", config->id);
		return rc;
	}
	pthread_mutex_init(&t->lock, NULL);
	*out = &t->tap;
	return 0;
}
