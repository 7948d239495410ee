// SPDX-License-Identifier: Apache-2.0
/* Taps of the simulated machine: a NIC whose outputs wait by epoch, and a replicated disk. */
#include "tests/sim/world.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define RECORD_DATA_MAX (SIM_BLOCK)
#define RECORDS_MAX	8192

struct held {
	uint64_t epoch;
	enum tap_kind kind;
	uint64_t arg;
	uint32_t len;
	uint8_t data[RECORD_DATA_MAX];
};

struct sim_tap {
	struct tap tap;
	struct node *node;
	enum tap_mode mode;
	bool becomes_hold;
	uint64_t open;
	struct held *held;
	unsigned n, room;
	uint8_t behind[SIM_BLOCKS];
};

static bool is_disk(const struct sim_tap *t)
{
	return !strcmp(t->tap.ops->kind, "disk");
}

static void let_go(struct sim_tap *t, const struct held *h)
{
	struct tap_record rec = {.kind = h->kind, .arg = h->arg, .len = h->len, .data = h->data};

	if (!is_disk(t) && !t->node->dying)
		check_output(t->node, &rec);
}

static void append(struct sim_tap *t, enum tap_kind kind, uint64_t arg, const void *data,
		   uint32_t len)
{
	struct held *h;

	assert(len <= RECORD_DATA_MAX);
	if (t->n == RECORDS_MAX) {
		world_violation(t->node->world, "%s: tap holds more than %d outputs", t->node->name,
				RECORDS_MAX);
		return;
	}
	if (t->n == t->room) {
		t->room = t->room ? t->room * 2 : 64;
		t->held = realloc(t->held, t->room * sizeof *t->held);
		if (!t->held)
			abort();
	}
	h = &t->held[t->n++];
	*h = (struct held){.epoch = t->open, .kind = kind, .arg = arg, .len = len};
	memcpy(h->data, data, len);
}

void sim_tap_output(struct tap *tap, enum tap_kind kind, uint64_t arg, const void *data,
		    uint32_t len)
{
	struct sim_tap *t = (struct sim_tap *)tap;
	struct held direct = {.kind = kind, .arg = arg, .len = len};

	if (is_disk(t) && t->mode == TAP_TRACK) {
		t->behind[arg / SIM_BLOCK] = 1;
	} else if (t->mode == TAP_HOLD) {
		if (is_disk(t) && t->node->world->mutant == MUTANT_FORGET_WRITE &&
		    world_chance(t->node->world, 3))
			return;
		append(t, kind, arg, data, len);
		if (!is_disk(t) && tap->notify.output)
			tap->notify.output(tap->notify.ctx);
	} else {
		memcpy(direct.data, data, len);
		let_go(t, &direct);
	}
}

static void release_up_to(struct sim_tap *t, uint64_t epoch)
{
	enum mutant mutant = t->node->world->mutant;
	unsigned kept = 0;

	for (unsigned i = 0; i < t->n; i++) {
		if (t->held[i].epoch <= epoch && mutant != MUTANT_RELEASE_BACKWARDS)
			let_go(t, &t->held[i]);
		if (t->held[i].epoch <= epoch && mutant == MUTANT_RELEASE_TWICE)
			let_go(t, &t->held[i]);
	}
	for (unsigned i = t->n; mutant == MUTANT_RELEASE_BACKWARDS && i-- > 0;)
		if (t->held[i].epoch <= epoch)
			let_go(t, &t->held[i]);
	for (unsigned i = 0; i < t->n; i++)
		if (t->held[i].epoch > epoch)
			t->held[kept++] = t->held[i];
	t->n = kept;
}

static void sim_set_mode(struct tap *tap, enum tap_mode mode)
{
	struct sim_tap *t = (struct sim_tap *)tap;

	if (mode == TAP_HOLD) {
		t->becomes_hold = t->mode != TAP_HOLD;
		return;
	}
	t->becomes_hold = false;
	t->mode = mode;
	release_up_to(t, UINT64_MAX);
}

static int sim_close_epoch(struct tap *tap, uint64_t epoch, struct ft_err *err)
{
	struct sim_tap *t = (struct sim_tap *)tap;

	(void)err;
	if (t->becomes_hold) {
		t->becomes_hold = false;
		t->mode = TAP_HOLD;
		t->open = epoch;
		for (unsigned i = 0; is_disk(t) && i < SIM_BLOCKS; i++) {
			if (t->behind[i])
				append(t, TAP_DISK_WRITE, i * SIM_BLOCK, t->node->disk.blocks[i],
				       SIM_BLOCK);
			t->behind[i] = 0;
		}
	}
	if (t->mode == TAP_HOLD && t->node->world->mutant == MUTANT_RELEASE_EARLY)
		release_up_to(t, epoch);
	t->open = epoch + 1;
	return 0;
}

static size_t sim_export(struct tap *tap, uint64_t epoch, struct tap_cursor *cursor, uint8_t *out,
			 size_t room)
{
	struct sim_tap *t = (struct sim_tap *)tap;
	size_t used = 0;

	if (t->node->world->mutant == MUTANT_OLD_EPOCHS_FORGOTTEN && epoch + 1 < t->open)
		return 0;
	for (; cursor->at < t->n && used < room; cursor->at++) {
		const struct held *h = &t->held[cursor->at];
		struct tap_record rec = {.kind = h->kind, .arg = h->arg, .len = h->len};
		uint8_t whole[TAP_RECORD_HEADER + RECORD_DATA_MAX];
		size_t left;

		if (h->epoch != epoch)
			continue;
		/* A record may be cut anywhere; the rest goes into the next frame. */
		tap_record_put_header(whole, &rec);
		memcpy(whole + TAP_RECORD_HEADER, h->data, h->len);
		left = TAP_RECORD_HEADER + h->len - cursor->offset;
		if (left > room - used)
			left = room - used;
		memcpy(out + used, whole + cursor->offset, left);
		used += left;
		cursor->offset += left;
		if (cursor->offset < TAP_RECORD_HEADER + h->len)
			break;
		cursor->offset = 0;
	}
	return used;
}

static int sim_release(struct tap *tap, uint64_t epoch, struct ft_err *err)
{
	struct sim_tap *t = (struct sim_tap *)tap;

	if (!node_step(t->node))
		return 0;
	if (t->node->release_fails && is_disk(t)) {
		t->node->release_fails = world_chance(t->node->world, 50);
		return ft_err_set(err, EIO, "sim: a held write fails");
	}
	if (is_disk(t) && t->node->world->options.shared && t->n) {
		uint64_t left = ft_engine_may_write_ns(t->node->engine);

		if (!left && t->node->world->mutant != MUTANT_LEASE_IGNORED)
			return ft_err_set(err, EAGAIN, "sim: no lease");
		check_shared_write(t->node, left);
	}
	release_up_to(t, epoch);
	return 0;
}

static void sim_discard(struct tap *tap)
{
	((struct sim_tap *)tap)->n = 0;
}

static int sim_replay(struct tap *tap, const struct tap_record *rec, struct ft_err *err)
{
	struct sim_tap *t = (struct sim_tap *)tap;

	(void)err;
	if (t->node->world->mutant != MUTANT_NO_REPLAY && node_step(t->node))
		check_output(t->node, rec);
	return 0;
}

static void sim_stats(struct tap *tap, struct tap_stats *stats)
{
	memset(stats, 0, sizeof *stats);
	stats->held_outputs = ((struct sim_tap *)tap)->n;
}

static void sim_free(struct tap *tap)
{
	free(((struct sim_tap *)tap)->held);
	free(tap);
}

#define SIM_TAP_OPS(NAME)                                                                          \
	{                                                                                          \
		.kind = (NAME), .set_mode = sim_set_mode, .close_epoch = sim_close_epoch,          \
		.export = sim_export, .release = sim_release, .discard = sim_discard,              \
		.replay = sim_replay, .stats = sim_stats, .free = sim_free                         \
	}
static const struct tap_ops net_ops = SIM_TAP_OPS("net"), disk_ops = SIM_TAP_OPS("disk");

static void on_output(void *ctx)
{
	struct node *n = ctx;

	/* As in production: told to the loop, not called from inside the guest. */
	node_output_soon(n);
}

static void on_pressure(void *ctx)
{
	(void)ctx;
}

static struct tap *tap_new(struct node *node, const struct tap_ops *ops, const char *id)
{
	struct sim_tap *t = calloc(1, sizeof *t);

	if (!t)
		abort();
	t->tap.ops = ops;
	t->tap.notify =
		(struct tap_notify){.output = on_output, .pressure = on_pressure, .ctx = node};
	t->node = node;
	t->open = 1;
	memcpy(t->tap.id, id, strlen(id) + 1);
	return &t->tap;
}

struct tap *sim_net_tap(struct node *node)
{
	return tap_new(node, &net_ops, "net0");
}

struct tap *sim_disk_tap(struct node *node)
{
	return tap_new(node, &disk_ops, "root");
}

void sim_disk_tap_all_behind(struct tap *tap)
{
	memset(((struct sim_tap *)tap)->behind, 1, SIM_BLOCKS);
}

uint64_t sim_disk_tap_behind(struct tap *tap)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < SIM_BLOCKS; i++)
		n += ((struct sim_tap *)tap)->behind[i];
	return n * SIM_BLOCK;
}

uint64_t sim_disk_tap_alike(struct tap *tap, unsigned block)
{
	struct sim_tap *t = (struct sim_tap *)tap;
	uint64_t bytes = t->behind[block] ? SIM_BLOCK : 0;

	t->behind[block] = 0;
	return bytes;
}

bool sim_disk_tap_next(struct tap *tap, struct ft_disk_chunk *chunk, uint8_t *data)
{
	struct sim_tap *t = (struct sim_tap *)tap;

	for (unsigned i = 0; i < SIM_BLOCKS; i++) {
		if (!t->behind[i])
			continue;
		t->behind[i] = 0;
		*chunk = (struct ft_disk_chunk){.offset = i * SIM_BLOCK, .bytes = SIM_BLOCK};
		memcpy(data, t->node->disk.blocks[i], SIM_BLOCK);
		return true;
	}
	return false;
}
