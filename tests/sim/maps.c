// SPDX-License-Identifier: Apache-2.0
/* Named bitmaps that follow a guest (postcopy): production's both sides over the connection for
 * pages (pages.c), in pieces so small that there are many.
 *
 * The promises: a bitmap that has arrived says what was written, no more and no less; the one that
 * is off stays off; until then nobody reads it. */
#include "tests/sim/world.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "eventtap/block/bitmaps.h"
#include "eventtap/block/disk_tap.h"
#include "ft/engine_internal.h" /* white box: its pages */

#define PIECE_BYTES 8

void maps_init(struct node *n)
{
	bitmaps_giver_init(&n->maps);
	bitmaps_taker_init(&n->awaited);
	n->maps.piece_max = PIECE_BYTES;
}

void maps_free(struct node *n)
{
	bitmaps_giver_free(&n->maps);
	bitmaps_taker_free(&n->awaited);
}

void maps_tap_ends(struct node *n, unsigned disk)
{
	bitmaps_giver_forget(&n->maps, disk);
	bitmaps_taker_forget(&n->awaited, disk);
}

void maps_end(struct node *n)
{
	bitmaps_giver_end(&n->maps);
	bitmaps_taker_end(&n->awaited);
	n->maps_owed = false;
}

bool maps_awaited(struct node *n, unsigned disk)
{
	return bitmaps_taker_awaits(&n->awaited, disk);
}

/* ---- source ---- */

void maps_describe(struct node *n, Ft__Disk *const *disks)
{
	for (unsigned i = 0; i < n->world->options.disks; i++)
		if (n->disks[i].tap)
			bitmaps_giver_describe(&n->maps, i, disk_tap_bitmaps(n->disks[i].tap),
					       disks[i]);
}

struct piece {
	struct node *to;
	uint64_t line;
	struct ft_msg msg;
	uint8_t body[FT_MSG_BODY_SMALL], bytes[PIECE_BYTES];
};

static void on_piece(void *ctx, uint64_t arg)
{
	struct piece *p = ctx;

	(void)arg;
	if (p->to->engine && p->to->machine && p->to->engine->pages.taking &&
	    pages_line_good(p->to, p->line))
		maps_take(p->to, &p->msg);
	free(p);
}

void maps_push(struct node *s)
{
	struct world *w = s->world;
	struct ft_msg msg;
	struct piece *p;
	uint64_t at;

	if (!s->maps_owed)
		return;
	s->maps_owed = s->maps.cargo.ops->next(&s->maps.cargo, &msg);
	if (!s->maps_owed)
		return;
	p = malloc(sizeof *p);
	if (!p || msg.payload_len > PIECE_BYTES)
		abort();
	*p = (struct piece){.to = node_other(s), .line = s->line, .msg = msg};
	memcpy(p->body, msg.body, msg.body_len);
	if (msg.payload_len)
		memcpy(p->bytes, msg.payload, msg.payload_len);
	p->msg.body = p->body;
	p->msg.payload = p->bytes;
	/* In order, as a connection is. */
	at = w->now + world_range(w, w->options.latency_us_min, w->options.latency_us_max) * US;
	w->piece_ns = at > w->piece_ns ? at : w->piece_ns + 1;
	world_after(w, w->piece_ns - w->now, NULL, on_piece, p, 0);
}

/* ---- target ---- */

int maps_expect(struct node *n, const Ft__Setup *setup, struct ft_err *err)
{
	int rc = 0;

	bitmaps_taker_end(&n->awaited);
	for (unsigned i = 0; i < setup->n_disks && !rc; i++)
		rc = bitmaps_taker_expect(&n->awaited, i, store_bitmaps(n->disks[i].store),
					  setup->disks[i], err);
	return rc;
}

void maps_begin(struct node *n)
{
	struct bitmaps *sets[VMM_DISKS_MAX] = {0};

	for (unsigned i = 0; i < SIM_DISKS; i++)
		if (n->disks[i].tap)
			sets[i] = disk_tap_bitmaps(n->disks[i].tap);
	bitmaps_taker_begin(&n->awaited, sets);
}

bool maps_all(struct node *n)
{
	return n->awaited.cargo.ops->all(&n->awaited.cargo);
}

static bool is_inconsistent(struct node *n, const struct bitmaps_awaited *a)
{
	struct tap *tap = n->disks[a->disk].tap;
	struct bitmap_info info;

	for (unsigned i = 0; tap && bitmaps_info(disk_tap_bitmaps(tap), i, &info); i++)
		if (!strcmp(info.name, a->info.name))
			return info.inconsistent;
	return false; /* it was given up */
}

/* No marks were lost on either side, and nothing is damaged here on its way. */
static void check_arrived(struct node *n)
{
	for (unsigned i = 0; i < n->awaited.n; i++) {
		const struct bitmaps_awaited *a = &n->awaited.list[i];

		if (!a->info.inconsistent && is_inconsistent(n, a))
			world_violation(n->world, "%s: bitmap %s of disk %u has arrived damaged",
					n->name, a->info.name, a->disk);
	}
	check_own_bitmaps(n, true);
}

void maps_take(struct node *t, const struct ft_msg *msg)
{
	struct ft_err err = {0};

	if (t->awaited.cargo.ops->take(&t->awaited.cargo, msg, &err))
		world_violation(t->world, "%s: %s", t->name, err.text);
	if (!maps_all(t))
		return;
	check_arrived(t);
	pages_arrived(t);
}

void maps_exchange(struct node *s, struct node *t)
{
	struct ft_err err = {0};
	struct ft_msg msg;

	t->awaited.cargo.ops->lacks(&t->awaited.cargo, &msg);
	if (s->maps.cargo.ops->go_on(&s->maps.cargo, &msg, &err))
		world_violation(s->world, "%s: %s", s->name, err.text);
	s->maps_owed = s->handed;
}

/* Their source is gone, and the guest does not need them. */
void maps_give_up(struct node *n)
{
	world_log(n->world, "%s: an operator gives up the bitmaps that follow", n->name);
	for (unsigned i = 0; i < n->awaited.n; i++) {
		const struct bitmaps_awaited *a = &n->awaited.list[i];

		if (a->over)
			continue;
		bitmaps_taker_give_up(&n->awaited, a->disk, a->info.name);
		if (n->disks[a->disk].tap)
			(void)bitmaps_remove(disk_tap_bitmaps(n->disks[a->disk].tap), a->info.name,
					     NULL);
	}
	pages_arrived(n);
}
