// SPDX-License-Identifier: Apache-2.0
#include "eventtap/block/bitmaps_follow.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "ft/log.h"

// A disk's number, a name, two numbers of 10 bytes, a sum: with their tags.
_Static_assert(FT_DIRTY_NAME_MAX + BITMAPS_SHA256 + 64 <= FT_MSG_BODY_SMALL, "a body fits");

static void pack(struct ft_msg *msg, const Ft__BitmapData *d, uint8_t body[FT_MSG_BODY_SMALL])
{
	*msg = (struct ft_msg){.type = FT_MSG_BITMAP, .body = body};
	msg->body_len = (uint32_t)ft__bitmap_data__pack(d, body);
	assert(msg->body_len <= FT_MSG_BODY_SMALL);
}

// ---- source ----

static struct bitmaps_giver *giver_of(struct ft_cargo *c)
{
	return (struct bitmaps_giver *)c;
}

// The bitmap whose piece is next: inconsistent ones have none. False: there are no more.
static bool find_next_locked(struct bitmaps_giver *g, struct bitmap_info *info)
{
	for (; g->disk < VMM_DISKS_MAX; g->disk++, g->i = 0, g->at = 0) {
		struct bitmaps *s = g->sets[g->disk];
		for (; s && bitmaps_info(s, g->i, info); g->i++, g->at = 0)
			if (!info->inconsistent && g->at < info->map_bytes)
				return true;
	}
	return false;
}

static bool is_zero(const uint8_t *data, size_t len)
{
	return data[0] == 0 && memcmp(data, data + 1, len - 1) == 0;
}

static size_t read_piece(struct bitmaps_giver *g, const struct bitmap_info *info, uint64_t at)
{
	uint64_t left = info->map_bytes - at;
	size_t len = left < g->piece_max ? (size_t)left : g->piece_max;
	int ret = bitmaps_read(g->sets[g->disk], info->name, at, g->piece, len);
	assert(ret == 0); // nobody may change it
	return len;
}

// Zeroes as far as they go, or else a piece; returns the piece's length.
static size_t make_piece_locked(struct bitmaps_giver *g, const struct bitmap_info *info,
				Ft__BitmapData *d)
{
	size_t len = read_piece(g, info, g->at);
	while (len > 0 && is_zero(g->piece, len)) {
		d->zeroes += len;
		len = g->at + d->zeroes < info->map_bytes ? read_piece(g, info, g->at + d->zeroes)
							  : 0;
	}
	return d->zeroes ? 0 : len; // what is behind zeroes goes with the next message
}

static bool giver_next(struct ft_cargo *c, struct ft_msg *msg)
{
	struct bitmaps_giver *g = giver_of(c);
	Ft__BitmapData d = FT__BITMAP_DATA__INIT;
	struct bitmap_info info;
	uint8_t sum[BITMAPS_SHA256] = {0};
	pthread_mutex_lock(&g->lock);
	bool more = find_next_locked(g, &info);
	if (more) {
		d.disk = g->disk;
		d.name = info.name;
		d.at = g->at;
		size_t len = make_piece_locked(g, &info, &d);
		g->at += d.zeroes + len;
		// A sum that cannot be had is a wrong one.
		if (g->at == info.map_bytes) {
			(void)bitmaps_sha256(g->sets[g->disk], info.name, sum);
			d.sha256 = (ProtobufCBinaryData){sizeof(sum), sum};
		}
		pack(msg, &d, g->body);
		msg->payload = len ? g->piece : NULL;
		msg->payload_len = (uint32_t)len;
	}
	pthread_mutex_unlock(&g->lock);
	return more;
}

static int seek_locked(struct bitmaps_giver *g, const Ft__BitmapData *d)
{
	struct bitmap_info info;
	if (!*d->name) {
		g->disk = VMM_DISKS_MAX;
		return 0;
	}
	if (d->disk >= VMM_DISKS_MAX || !g->sets[d->disk])
		return -EPROTO;
	for (unsigned i = 0; bitmaps_info(g->sets[d->disk], i, &info); i++) {
		if (strcmp(info.name, d->name) != 0)
			continue;
		if (d->at % 8 || d->at >= info.map_bytes)
			return -EPROTO;
		g->disk = d->disk;
		g->i = i;
		g->at = d->at;
		return 0;
	}
	return -EPROTO;
}

static int giver_go_on(struct ft_cargo *c, const struct ft_msg *msg, struct ft_err *err)
{
	struct bitmaps_giver *g = giver_of(c);
	Ft__BitmapData *d = ft__bitmap_data__unpack(NULL, msg->body_len, msg->body);
	if (!d)
		return ft_err_set(err, EPROTO, "BITMAP: body does not parse");
	pthread_mutex_lock(&g->lock);
	int ret = seek_locked(g, d);
	pthread_mutex_unlock(&g->lock);
	ft__bitmap_data__free_unpacked(d, NULL);
	return ret < 0 ? ft_err_set(err, EPROTO, "BITMAP: asks for what there is not") : 0;
}

void bitmaps_giver_init(struct bitmaps_giver *g)
{
	static const struct ft_cargo_ops ops = {.next = giver_next, .go_on = giver_go_on};
	memset(g, 0, sizeof(*g));
	g->cargo.ops = &ops;
	g->piece_max = BITMAPS_PIECE;
	pthread_mutex_init(&g->lock, NULL);
}

void bitmaps_giver_free(struct bitmaps_giver *g)
{
	pthread_mutex_destroy(&g->lock);
}

void bitmaps_giver_describe(struct bitmaps_giver *g, unsigned i, struct bitmaps *s, Ft__Disk *disk)
{
	bitmaps_outgoing_begin(s);
	pthread_mutex_lock(&g->lock);
	g->sets[i] = s;
	for (unsigned n = 0; n < BITMAPS_MAX && bitmaps_info(s, n, &g->infos[i][n]); n++) {
		const struct bitmap_info *info = &g->infos[i][n];
		g->bodies[i][n] = (Ft__Bitmap)FT__BITMAP__INIT;
		g->bodies[i][n].name = g->infos[i][n].name;
		g->bodies[i][n].granularity = info->granularity;
		g->bodies[i][n].enabled = info->enabled;
		g->bodies[i][n].inconsistent = info->inconsistent;
		g->ptrs[i][n] = &g->bodies[i][n];
		disk->n_bitmaps = n + 1;
	}
	disk->bitmaps = g->ptrs[i];
	pthread_mutex_unlock(&g->lock);
}

void bitmaps_giver_forget(struct bitmaps_giver *g, unsigned i)
{
	pthread_mutex_lock(&g->lock);
	g->sets[i] = NULL;
	pthread_mutex_unlock(&g->lock);
}

void bitmaps_giver_end(struct bitmaps_giver *g)
{
	pthread_mutex_lock(&g->lock);
	for (unsigned i = 0; i < VMM_DISKS_MAX; i++) {
		if (g->sets[i])
			bitmaps_outgoing_end(g->sets[i]);
		g->sets[i] = NULL;
	}
	g->disk = g->i = 0;
	g->at = 0;
	pthread_mutex_unlock(&g->lock);
}

// ---- target ----

static struct bitmaps_taker *taker_of(struct ft_cargo *c)
{
	return (struct bitmaps_taker *)c;
}

static struct bitmaps_awaited *find_locked(struct bitmaps_taker *t, unsigned disk, const char *name)
{
	for (unsigned i = 0; i < t->n; i++)
		if (t->list[i].disk == disk && strcmp(t->list[i].info.name, name) == 0)
			return &t->list[i];
	return NULL;
}

static void lose_locked(struct bitmaps_taker *t, struct bitmaps_awaited *a, const char *why)
{
	struct bitmaps *s = t->sets[a->disk];
	a->over = true;
	if (!s || !bitmaps_incoming_lose(s, a->info.name, why))
		ft_error("bitmap %s: is lost: %s", a->info.name, why);
}

static void arrived_locked(struct bitmaps_taker *t, struct bitmaps_awaited *a,
			   const Ft__BitmapData *d)
{
	struct bitmaps *s = t->sets[a->disk];
	uint8_t own[BITMAPS_SHA256];
	struct ft_err err;
	if (bitmaps_sha256(s, a->info.name, own) < 0 ||
	    memcmp(own, d->sha256.data, sizeof(own)) != 0) {
		lose_locked(t, a, "what came is not what was sent (SHA-256)");
		return;
	}
	a->over = true;
	if (bitmaps_incoming_end(s, a->info.name, &err) < 0)
		ft_error("%s", err.text);
	else
		ft_info("bitmap %s: has arrived", a->info.name);
}

static int put_locked(struct bitmaps_taker *t, struct bitmaps_awaited *a, const Ft__BitmapData *d,
		      const struct ft_msg *msg, struct ft_err *err)
{
	uint64_t len = d->zeroes ? d->zeroes : msg->payload_len, left = a->info.map_bytes - a->at;
	bool whole = len == left;
	if (d->at != a->at || !len || len % 8 || len > left || (d->zeroes && msg->payload_len) ||
	    msg->payload_len > BITMAPS_PIECE || d->sha256.len != (whole ? BITMAPS_SHA256 : 0))
		return ft_err_set(err, EPROTO, "BITMAP: %.64s: not its next piece", a->info.name);
	int ret = bitmaps_incoming_put(t->sets[a->disk], a->info.name, a->at,
				       d->zeroes ? NULL : msg->payload, len, err);
	if (ret < 0)
		return ret;
	a->at += len;
	if (whole)
		arrived_locked(t, a, d);
	return 0;
}

static int taker_take(struct ft_cargo *c, const struct ft_msg *msg, struct ft_err *err)
{
	struct bitmaps_taker *t = taker_of(c);
	Ft__BitmapData *d = ft__bitmap_data__unpack(NULL, msg->body_len, msg->body);
	int ret = 0;
	if (!d)
		return ft_err_set(err, EPROTO, "BITMAP: body does not parse");
	pthread_mutex_lock(&t->lock);
	struct bitmaps_awaited *a = find_locked(t, d->disk, d->name);
	if (!a)
		ret = ft_err_set(err, EPROTO, "BITMAP: %.64s: SETUP did not name it", d->name);
	else if (!a->over && !t->sets[a->disk])
		lose_locked(t, a, "its disk has no tap any more");
	else if (!a->over) // what was given up may be on its way still
		ret = put_locked(t, a, d, msg, err);
	pthread_mutex_unlock(&t->lock);
	ft__bitmap_data__free_unpacked(d, NULL);
	return ret;
}

static void taker_lacks(struct ft_cargo *c, struct ft_msg *msg)
{
	struct bitmaps_taker *t = taker_of(c);
	Ft__BitmapData d = FT__BITMAP_DATA__INIT;
	pthread_mutex_lock(&t->lock);
	for (unsigned i = 0; i < t->n && !*d.name; i++) {
		if (t->list[i].over)
			continue;
		d.disk = t->list[i].disk;
		d.name = t->list[i].info.name;
		d.at = t->list[i].at;
	}
	pack(msg, &d, t->body);
	pthread_mutex_unlock(&t->lock);
}

static bool taker_all(struct ft_cargo *c)
{
	struct bitmaps_taker *t = taker_of(c);
	bool all = true;
	pthread_mutex_lock(&t->lock);
	for (unsigned i = 0; i < t->n && all; i++)
		all = t->list[i].over;
	pthread_mutex_unlock(&t->lock);
	return all;
}

void bitmaps_taker_init(struct bitmaps_taker *t)
{
	static const struct ft_cargo_ops ops = {
		.take = taker_take, .lacks = taker_lacks, .all = taker_all};
	memset(t, 0, sizeof(*t));
	t->cargo.ops = &ops;
	pthread_mutex_init(&t->lock, NULL);
}

void bitmaps_taker_free(struct bitmaps_taker *t)
{
	pthread_mutex_destroy(&t->lock);
}

static int expect_one(struct bitmaps_taker *t, unsigned disk, struct bitmaps *s,
		      const Ft__Bitmap *b, struct ft_err *err)
{
	struct bitmaps_awaited a = {.disk = disk, .over = b->inconsistent};
	if (strlen(b->name) >= sizeof(a.info.name))
		return ft_err_set(err, EINVAL, "bitmap %.64s...: name too long", b->name);
	memcpy(a.info.name, b->name, strlen(b->name));
	a.info.granularity = b->granularity;
	a.info.enabled = b->enabled;
	a.info.inconsistent = b->inconsistent;
	int ret = bitmaps_incoming_add(s, &a.info, err);
	if (ret < 0)
		return ret;
	struct bitmap_info made = {0};
	(void)bitmaps_info(s, bitmaps_count(s) - 1, &made);
	a.info.map_bytes = made.map_bytes;
	assert(t->n < BITMAPS_TAKER_MAX); // the set would have been full
	t->list[t->n++] = a;
	return 0;
}

int bitmaps_taker_expect(struct bitmaps_taker *t, unsigned i, struct bitmaps *s,
			 const Ft__Disk *disk, struct ft_err *err)
{
	int ret = 0;
	assert(i < VMM_DISKS_MAX);
	pthread_mutex_lock(&t->lock);
	for (size_t n = 0; n < disk->n_bitmaps && ret == 0; n++)
		ret = expect_one(t, i, s, disk->bitmaps[n], err);
	pthread_mutex_unlock(&t->lock);
	return ret;
}

void bitmaps_taker_begin(struct bitmaps_taker *t, struct bitmaps *const sets[VMM_DISKS_MAX])
{
	pthread_mutex_lock(&t->lock);
	memcpy(t->sets, sets, sizeof(t->sets));
	for (unsigned i = 0; i < t->n; i++) {
		struct bitmaps_awaited *a = &t->list[i];
		struct ft_err err = {.text = "its disk has no tap"};
		if (!sets[a->disk] || bitmaps_incoming_add(sets[a->disk], &a->info, &err) < 0)
			lose_locked(t, a, err.text);
	}
	for (unsigned i = 0; i < VMM_DISKS_MAX; i++)
		if (sets[i])
			bitmaps_incoming_run(sets[i]);
	pthread_mutex_unlock(&t->lock);
}

unsigned bitmaps_taker_awaits(struct bitmaps_taker *t, unsigned i)
{
	unsigned n = 0;
	pthread_mutex_lock(&t->lock);
	for (unsigned x = 0; x < t->n; x++)
		n += t->list[x].disk == i && !t->list[x].over;
	pthread_mutex_unlock(&t->lock);
	return n;
}

bool bitmaps_taker_awaits_this(struct bitmaps_taker *t, unsigned i, const char *name)
{
	pthread_mutex_lock(&t->lock);
	const struct bitmaps_awaited *a = find_locked(t, i, name);
	bool awaited = a && !a->over;
	pthread_mutex_unlock(&t->lock);
	return awaited;
}

void bitmaps_taker_give_up(struct bitmaps_taker *t, unsigned i, const char *name)
{
	pthread_mutex_lock(&t->lock);
	struct bitmaps_awaited *a = find_locked(t, i, name);
	if (a && !a->over)
		lose_locked(t, a, "it was given up");
	pthread_mutex_unlock(&t->lock);
}

void bitmaps_taker_forget(struct bitmaps_taker *t, unsigned i)
{
	pthread_mutex_lock(&t->lock);
	t->sets[i] = NULL;
	pthread_mutex_unlock(&t->lock);
}

void bitmaps_taker_end(struct bitmaps_taker *t)
{
	bool all = taker_all(&t->cargo);
	pthread_mutex_lock(&t->lock);
	for (unsigned i = 0; i < VMM_DISKS_MAX; i++) {
		if (t->sets[i] && all)
			bitmaps_incoming_finish(t->sets[i]);
		else if (t->sets[i])
			bitmaps_incoming_cancel(t->sets[i]);
		t->sets[i] = NULL;
	}
	t->n = 0;
	pthread_mutex_unlock(&t->lock);
}
