// SPDX-License-Identifier: Apache-2.0
/* The simulated machine's NIC: production's queue of held outputs, driven as production's net tap
 * drives it, without sockets and threads. */
#include "tests/sim/world.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "eventtap/queue.h"

#define QUEUE_BYTES 4096 /* small enough to be full now and then; a page is the least */

struct sim_tap {
	struct tap tap;
	struct node *node;
	struct queue *queue;
	enum tap_mode mode;
	bool becomes_hold;
	uint64_t open, dropped;
};

static struct sim_tap *of(struct tap *tap)
{
	return (struct sim_tap *)tap;
}

static void let_go(struct sim_tap *t, const struct tap_record *rec)
{
	if (!t->node->dying)
		check_output(t->node, rec);
}

/* What was released leaves, in order. */
static void send_released(struct sim_tap *t)
{
	enum mutant mutant = t->node->world->mutant;
	struct tap_record rec;
	size_t at = 0, positions[256];
	unsigned n = 0;

	for (size_t here = 0; n < 256 && queue_peek(t->queue, &at, &rec); here = at)
		positions[n++] = here;
	for (unsigned i = 0; i < n; i++) {
		size_t from = positions[mutant == MUTANT_RELEASE_BACKWARDS ? n - 1 - i : i];

		(void)queue_peek(t->queue, &from, &rec);
		let_go(t, &rec);
		if (mutant == MUTANT_RELEASE_TWICE)
			let_go(t, &rec);
	}
	while (n-- > 0)
		queue_pop(t->queue);
}

void sim_net_output(struct tap *tap, const void *data, uint32_t len)
{
	struct sim_tap *t = of(tap);
	struct tap_record rec = {.kind = TAP_NET, .len = len, .data = data};

	if (t->mode != TAP_HOLD) {
		let_go(t, &rec);
		return;
	}
	if (queue_append(t->queue, &rec, NULL)) {
		t->dropped++;
		return;
	}
	if (tap->notify.output)
		tap->notify.output(tap->notify.ctx);
}

bool sim_net_within_bounds(const struct tap *tap)
{
	const struct sim_tap *t = (const struct sim_tap *)tap;
	struct tap_stats stats = {0};

	queue_stats(t->queue, &stats);
	return stats.held_bytes <= QUEUE_BYTES;
}

static int sim_set_mode(struct tap *tap, enum tap_mode mode)
{
	struct sim_tap *t = of(tap);

	t->becomes_hold = mode == TAP_HOLD && t->mode != TAP_HOLD;
	if (mode == TAP_HOLD)
		return 0;
	t->mode = mode;
	queue_release_all(t->queue);
	send_released(t);
	return 0;
}

static int sim_close_epoch(struct tap *tap, uint64_t epoch, struct ft_err *err)
{
	struct sim_tap *t = of(tap);
	int rc;

	if (t->becomes_hold) {
		t->becomes_hold = false;
		t->mode = TAP_HOLD;
	}
	if (t->mode != TAP_HOLD)
		return 0;
	rc = queue_close(t->queue, epoch, err);
	if (!rc)
		t->open = epoch + 1;
	if (!rc && t->node->world->mutant == MUTANT_RELEASE_EARLY) {
		queue_release(t->queue, epoch);
		send_released(t);
	}
	return rc;
}

static size_t sim_export(struct tap *tap, uint64_t epoch, struct tap_cursor *cursor, uint8_t *out,
			 size_t room)
{
	struct sim_tap *t = of(tap);

	if (t->node->world->mutant == MUTANT_OLD_EPOCHS_FORGOTTEN && epoch + 1 < t->open)
		return 0;
	return queue_export(t->queue, epoch, cursor, out, room);
}

static int sim_release(struct tap *tap, uint64_t epoch, struct ft_err *err)
{
	struct sim_tap *t = of(tap);

	(void)err;
	if (!node_step(t->node))
		return 0;
	queue_release(t->queue, epoch);
	send_released(t);
	return 0;
}

static void sim_discard(struct tap *tap)
{
	struct sim_tap *t = of(tap);

	if (t->node->world->mutant == MUTANT_RELEASE_FENCED) {
		queue_release_all(t->queue);
		send_released(t);
		return;
	}
	(void)queue_discard(t->queue);
}

static int sim_replay(struct tap *tap, const struct tap_record *rec, struct ft_err *err)
{
	struct sim_tap *t = of(tap);

	(void)err;
	if (t->node->world->mutant != MUTANT_NO_REPLAY && node_step(t->node))
		check_output(t->node, rec);
	return 0;
}

static void sim_stats(struct tap *tap, struct tap_stats *stats)
{
	memset(stats, 0, sizeof *stats);
	queue_stats(of(tap)->queue, stats);
	stats->dropped = of(tap)->dropped;
}

static void sim_free(struct tap *tap)
{
	queue_free(of(tap)->queue);
	free(tap);
}

static const struct tap_ops net_ops = {.kind = "net",
				       .set_mode = sim_set_mode,
				       .close_epoch = sim_close_epoch,
				       .export = sim_export,
				       .release = sim_release,
				       .discard = sim_discard,
				       .replay = sim_replay,
				       .stats = sim_stats,
				       .free = sim_free};

static void on_output(void *ctx)
{
	/* As in production: told to the loop, not called from inside the guest. */
	node_output_soon(ctx);
}

static void on_pressure(void *ctx)
{
	node_pressure_soon(ctx);
}

struct tap *sim_net_tap(struct node *node)
{
	struct sim_tap *t = calloc(1, sizeof *t);
	struct ft_err err = {0};
	size_t bytes = node->world->mutant == MUTANT_QUEUE_UNBOUNDED ? 1u << 20 : QUEUE_BYTES;

	if (!t || queue_new(bytes, &t->queue, &err))
		abort();
	t->tap.ops = &net_ops;
	t->tap.notify =
		(struct tap_notify){.output = on_output, .pressure = on_pressure, .ctx = node};
	t->node = node;
	t->open = 1;
	strcpy(t->tap.id, "net0");
	return &t->tap;
}
