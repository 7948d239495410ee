// SPDX-License-Identifier: Apache-2.0
// A disk's set of bitmaps: operators' changes, marks, records of a checkpoint, migration. Its file
// is bitmaps_file.c.
#include "eventtap/block/bitmaps.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eventtap/block/bitmaps_internal.h"

enum what { WHAT_SET = 1, WHAT_DATA, WHAT_ZERO, WHAT_RESET, WHAT_SUM };

#define HEAD_MAX (2 + FT_DIRTY_NAME_MAX + 8)

void bitmaps_init(struct bitmaps *s, const char *image, uint64_t bytes)
{
	memset(s, 0, sizeof(*s));
	pthread_mutex_init(&s->lock, NULL);
	s->bytes = bytes;
	s->tell_all = true;
	int n = snprintf(s->path, sizeof(s->path), "%s" BITMAPS_SUFFIX, image);
	if (n >= (int)sizeof(s->path))
		s->path[0] = '\0';
}

void bitmaps_drop_locked(struct bitmaps *s)
{
	for (unsigned i = 0; i < s->n; i++)
		ft_dirty_free(s->list[i].map);
	memset(s->list, 0, sizeof(s->list));
	s->n = 0;
	s->tell_all = true;
}

void bitmaps_free(struct bitmaps *s)
{
	bitmaps_drop_locked(s);
	pthread_mutex_destroy(&s->lock);
}

static struct bitmaps_entry *find_locked(struct bitmaps *s, const char *name)
{
	for (unsigned i = 0; i < s->n; i++)
		if (strcmp(s->list[i].map->name, name) == 0)
			return &s->list[i];
	return NULL;
}

int bitmaps_make_locked(struct bitmaps *s, const char *name, uint32_t granularity,
			struct ft_dirty_bitmap **out, struct ft_err *err)
{
	if (!ft_dirty_name_ok(name))
		return ft_err_set(err, EINVAL,
				  "'%.64s': letters, digits, '-', '_' and '.' only, at most %d, "
				  "the first one a letter or a digit",
				  name, FT_DIRTY_NAME_MAX - 1);
	int ret = ft_dirty_granularity_ok(s->bytes, granularity, err);
	if (ret < 0)
		return ret;
	if (find_locked(s, name))
		return ft_err_set(err, EEXIST, "there is one of that name");
	if (s->n == BITMAPS_MAX)
		return ft_err_set(err, ENOSPC, "a disk has at most %d", BITMAPS_MAX);
	if (ft_dirty_new(name, s->bytes, granularity, out) < 0)
		return ft_err_set(err, ENOMEM, "out of memory");
	s->list[s->n++] = (struct bitmaps_entry){.map = *out};
	return 0;
}

static void remove_locked(struct bitmaps *s, struct bitmaps_entry *entry)
{
	ft_dirty_free(entry->map);
	for (struct bitmaps_entry *e = entry; e + 1 < s->list + s->n; e++)
		*e = *(e + 1);
	s->n--;
	s->tell_all = true;
}

// ---- operators ----

int bitmaps_add(struct bitmaps *s, const char *name, uint32_t granularity, struct ft_err *err)
{
	struct ft_dirty_bitmap *map;
	pthread_mutex_lock(&s->lock);
	int ret = s->outgoing ? ft_err_set(err, EBUSY, "the guest is being migrated")
			      : bitmaps_make_locked(s, name, granularity, &map, err);
	pthread_mutex_unlock(&s->lock);
	return ret < 0 ? ft_err_context(err, "bitmap %.64s", name) : 0;
}

// One that an operator may change.
static int take_locked(struct bitmaps *s, const char *name, bool to_remove,
		       struct bitmaps_entry **entry, struct ft_err *err)
{
	*entry = find_locked(s, name);
	if (!*entry)
		return ft_err_set(err, ENOENT, "bitmap %.64s: there is none of that name", name);
	if ((*entry)->map->busy)
		return ft_err_set(err, EBUSY, "bitmap %.64s: is being %s", name,
				  (*entry)->backup ? "backed up" : "migrated");
	if ((*entry)->map->inconsistent && !to_remove)
		return ft_err_set(
			err, EINVAL,
			"bitmap %.64s: inconsistent: it was in use when its host or agent "
			"went down, so marks may be missing; remove it",
			name);
	return 0;
}

int bitmaps_remove(struct bitmaps *s, const char *name, struct ft_err *err)
{
	struct bitmaps_entry *entry;
	pthread_mutex_lock(&s->lock);
	int ret = take_locked(s, name, true, &entry, err);
	if (ret == 0)
		remove_locked(s, entry);
	pthread_mutex_unlock(&s->lock);
	return ret;
}

int bitmaps_enable(struct bitmaps *s, const char *name, bool enabled, struct ft_err *err)
{
	struct bitmaps_entry *entry;
	pthread_mutex_lock(&s->lock);
	int ret = take_locked(s, name, false, &entry, err);
	if (ret == 0)
		ft_dirty_enable(entry->map, enabled);
	pthread_mutex_unlock(&s->lock);
	return ret;
}

int bitmaps_clear(struct bitmaps *s, const char *name, struct ft_err *err)
{
	struct bitmaps_entry *entry;
	pthread_mutex_lock(&s->lock);
	int ret = take_locked(s, name, false, &entry, err);
	if (ret == 0)
		ft_dirty_clear(entry->map);
	pthread_mutex_unlock(&s->lock);
	return ret;
}

unsigned bitmaps_count(struct bitmaps *s)
{
	pthread_mutex_lock(&s->lock);
	unsigned n = s->n;
	pthread_mutex_unlock(&s->lock);
	return n;
}

bool bitmaps_info(struct bitmaps *s, unsigned i, struct bitmap_info *info)
{
	pthread_mutex_lock(&s->lock);
	bool there = i < s->n;
	if (there) {
		const struct ft_dirty_bitmap *map = s->list[i].map;
		memset(info, 0, sizeof(*info)); // so that two can be compared
		info->granularity = map->granularity;
		info->enabled = map->successor ? map->successor->enabled : map->enabled;
		info->inconsistent = map->inconsistent;
		info->busy = map->busy;
		info->arriving = bitmaps_arrives(&s->list[i]);
		info->dirty_bytes = ft_dirty_count_bytes(map);
		info->map_bytes = ft_dirty_map_bytes(map);
		memcpy(info->name, map->name, sizeof(info->name));
	}
	pthread_mutex_unlock(&s->lock);
	return there;
}

// ---- marks and readers ----

void bitmaps_mark(struct bitmaps *s, uint64_t offset, uint64_t len)
{
	pthread_mutex_lock(&s->lock);
	for (unsigned i = 0; i < s->n; i++)
		ft_dirty_mark(s->list[i].map, offset, len);
	pthread_mutex_unlock(&s->lock);
}

int bitmaps_at(struct bitmaps *s, const char *name, uint64_t offset, uint64_t *len, bool *dirty)
{
	pthread_mutex_lock(&s->lock);
	const struct bitmaps_entry *entry = find_locked(s, name);
	int ret = !entry || entry->map->inconsistent ? -ENOENT
		  : bitmaps_arrives(entry)	     ? -EBUSY
						     : 0;
	if (ret == 0)
		*dirty = entry->backup ? ft_dirty_frozen_at(entry->map, offset, len)
				       : ft_dirty_at(entry->map, offset, len);
	pthread_mutex_unlock(&s->lock);
	return ret;
}

int bitmaps_read(struct bitmaps *s, const char *name, uint64_t at, uint8_t *out, size_t len)
{
	pthread_mutex_lock(&s->lock);
	const struct bitmaps_entry *entry = find_locked(s, name);
	int ret = entry ? 0 : -ENOENT;
	uint64_t map = entry ? ft_dirty_map_bytes(entry->map) : 0;
	if (ret == 0 && (at % 8 || len % 8 || len > map || at > map - len))
		ret = -EINVAL;
	// Of one that is backed up the other host has the whole; of one that arrives there is no
	// more yet.
	if (ret == 0 && entry->backup)
		ft_dirty_get_all(entry->map, at, out, len);
	else if (ret == 0)
		ft_dirty_get(entry->map, at, out, len);
	pthread_mutex_unlock(&s->lock);
	return ret;
}

// ---- backups ----

int bitmaps_backup_begin(struct bitmaps *s, const char *name, struct ft_err *err)
{
	struct bitmaps_entry *entry;
	pthread_mutex_lock(&s->lock);
	int ret = take_locked(s, name, false, &entry, err);
	if (ret == 0 && ft_dirty_freeze(entry->map) < 0)
		ret = ft_err_set(err, ENOMEM, "bitmap %.64s: out of memory", name);
	if (ret == 0)
		entry->backup = entry->map->busy = true;
	pthread_mutex_unlock(&s->lock);
	return ret;
}

void bitmaps_backup_end(struct bitmaps *s, const char *name, bool used)
{
	pthread_mutex_lock(&s->lock);
	struct bitmaps_entry *entry = find_locked(s, name);
	if (entry && entry->backup) {
		entry->backup = entry->map->busy = false;
		if (used)
			ft_dirty_abdicate(entry->map);
		else
			ft_dirty_reclaim(entry->map);
	}
	pthread_mutex_unlock(&s->lock);
}

// ---- checkpoints ----

void bitmaps_tell_all(struct bitmaps *s)
{
	pthread_mutex_lock(&s->lock);
	s->tell_all = true;
	pthread_mutex_unlock(&s->lock);
}

struct teller {
	uint8_t device;
	int (*emit)(void *ctx, const struct tap_record *rec);
	void *ctx;
	uint8_t data[HEAD_MAX + BITMAPS_RECORD_MAP];
};

static size_t head(struct teller *t, enum what what, const char *name)
{
	size_t len = strlen(name);
	t->data[0] = (uint8_t)what;
	t->data[1] = (uint8_t)len;
	memcpy(t->data + 2, name, len);
	return 2 + len;
}

static int tell(struct teller *t, uint64_t at, size_t len)
{
	const struct tap_record rec = {.kind = TAP_DISK_BITMAP,
				       .device = t->device,
				       .len = (uint32_t)len,
				       .arg = at,
				       .data = t->data};
	return t->emit(t->ctx, &rec);
}

static int tell_set(struct teller *t, const struct ft_dirty_bitmap *map)
{
	size_t len = head(t, WHAT_SET, map->name);
	uint32_t granularity = htole32(map->granularity);
	t->data[len++] = bitmaps_flags(map);
	memcpy(t->data + len, &granularity, sizeof(granularity));
	return tell(t, 0, len + sizeof(granularity));
}

static bool all_zero(const uint8_t *data, size_t len)
{
	return data[0] == 0 && memcmp(data, data + 1, len - 1) == 0;
}

// Bytes [at, at + len) of a map.
static int tell_bits(struct teller *t, const struct ft_dirty_bitmap *map, uint64_t at, size_t len)
{
	size_t before = head(t, WHAT_DATA, map->name);
	ft_dirty_get_all(map, at, t->data + before, len);
	if (!all_zero(t->data + before, len))
		return tell(t, at, before + len);
	if (len <= sizeof(uint64_t))
		return tell(t, at, before + len);
	uint64_t zeroes = htole64(len);
	t->data[0] = WHAT_ZERO;
	memcpy(t->data + before, &zeroes, sizeof(zeroes));
	return tell(t, at, before + sizeof(zeroes));
}

static int tell_sum(struct teller *t, const struct ft_dirty_bitmap *map)
{
	size_t len = head(t, WHAT_SUM, map->name);
	int ret = bitmaps_map_sha256(map, t->data + len);
	return ret < 0 ? ret : tell(t, 0, len + BITMAPS_SHA256);
}

// The pieces that were touched; all: of a map that the peer takes to be clear.
static int tell_map(struct teller *t, struct ft_dirty_bitmap *map, bool all)
{
	uint64_t bytes = ft_dirty_map_bytes(map), end;
	int ret = all || map->changed ? tell_set(t, map) : 0;
	ft_dirty_gather(map);
	if (all && ft_dirty_count_bytes(map) > 0)
		ft_bitmap_set_all(&map->touched);
	else if (all)
		ft_bitmap_clear_all(&map->touched);
	for (uint64_t piece = ft_bitmap_next(&map->touched, 0);
	     ret == 0 && piece < map->touched.bits; piece = ft_bitmap_next(&map->touched, end)) {
		uint64_t most = piece + BITMAPS_RECORD_MAP / FT_DIRTY_PIECE;
		for (end = piece + 1;
		     end < most && end < map->touched.bits && ft_bitmap_test(&map->touched, end);)
			end++;
		uint64_t at = piece * FT_DIRTY_PIECE, to = end * FT_DIRTY_PIECE;
		ret = tell_bits(t, map, at, (to < bytes ? to : bytes) - at);
	}
	if (ret == 0 && all && ft_dirty_count_bytes(map) > 0)
		ret = tell_sum(t, map);
	if (ret < 0)
		return ret;
	if (map->touched.count)
		ft_bitmap_clear_all(&map->touched);
	map->changed = false;
	return 0;
}

int bitmaps_log(struct bitmaps *s, uint8_t device,
		int (*emit)(void *ctx, const struct tap_record *rec), void *ctx)
{
	struct teller t = {.device = device, .emit = emit, .ctx = ctx};
	int ret = 0;
	pthread_mutex_lock(&s->lock);
	if (s->outgoing) { // they follow the guest by another way
		pthread_mutex_unlock(&s->lock);
		return 0;
	}
	bool all = s->tell_all;
	if (all && (s->n || s->told))
		ret = tell(&t, 0, head(&t, WHAT_RESET, ""));
	for (unsigned i = 0; i < s->n && ret == 0; i++)
		ret = tell_map(&t, s->list[i].map, all);
	s->tell_all = ret < 0;
	s->told = s->n > 0 || ret < 0;
	pthread_mutex_unlock(&s->lock);
	return ret;
}

static int apply_set(struct bitmaps *s, const char *name, const uint8_t *data, size_t len)
{
	uint32_t granularity;
	if (len != 1 + sizeof(granularity) || data[0] & ~(BITMAPS_ENABLED | BITMAPS_INCONSISTENT))
		return -EPROTO;
	memcpy(&granularity, data + 1, sizeof(granularity));
	granularity = le32toh(granularity);
	struct bitmaps_entry *entry = find_locked(s, name);
	struct ft_dirty_bitmap *map = entry ? entry->map : NULL;
	int ret = map ? 0 : bitmaps_make_locked(s, name, granularity, &map, NULL);
	if (ret < 0)
		return ret == -ENOMEM ? ret : -EPROTO;
	assert(map);
	if (map->granularity != granularity)
		return -EPROTO;
	map->enabled = data[0] & BITMAPS_ENABLED;
	map->inconsistent |= (data[0] & BITMAPS_INCONSISTENT) != 0;
	map->changed = true;
	return 0;
}

static int apply_sum(struct ft_dirty_bitmap *map, const uint8_t *data, size_t len)
{
	uint8_t own[BITMAPS_SHA256];
	if (len != sizeof(own))
		return -EPROTO;
	int ret = bitmaps_map_sha256(map, own);
	if (ret == 0 && memcmp(own, data, sizeof(own)) != 0)
		bitmaps_spoil(map, "what came is not what was sent");
	return ret;
}

// Those that come after the guest are no part of a checkpoint.
static bool awaits_any(const struct bitmaps *s)
{
	for (unsigned i = 0; i < s->n; i++)
		if (s->list[i].incoming)
			return true;
	return false;
}

static int apply_locked(struct bitmaps *s, enum what what, const char *name, uint64_t at,
			const uint8_t *data, size_t len)
{
	uint64_t zeroes;
	struct bitmaps_entry *entry = find_locked(s, name);
	if (awaits_any(s))
		return -EPROTO;
	switch (what) {
	case WHAT_SET:
		return apply_set(s, name, data, len);
	case WHAT_DATA:
		return entry ? ft_dirty_put(entry->map, at, data, len) : -EPROTO;
	case WHAT_ZERO:
		if (!entry || len != sizeof(zeroes))
			return -EPROTO;
		memcpy(&zeroes, data, sizeof(zeroes));
		return ft_dirty_put(entry->map, at, NULL, le64toh(zeroes));
	case WHAT_RESET:
		if (len != 0 || *name)
			return -EPROTO;
		bitmaps_drop_locked(s);
		return 0;
	case WHAT_SUM:
		return entry ? apply_sum(entry->map, data, len) : -EPROTO;
	}
	return -EPROTO;
}

int bitmaps_apply(struct bitmaps *s, const struct tap_record *rec)
{
	char name[FT_DIRTY_NAME_MAX] = "";
	if (rec->kind != TAP_DISK_BITMAP || rec->len < 2)
		return -EPROTO;
	size_t len = rec->data[1];
	if (len >= sizeof(name) || rec->len - 2 < len || memchr(rec->data + 2, 0, len))
		return -EPROTO;
	memcpy(name, rec->data + 2, len);
	pthread_mutex_lock(&s->lock);
	int ret = apply_locked(s, (enum what)rec->data[0], name, rec->arg, rec->data + 2 + len,
			       rec->len - 2 - len);
	pthread_mutex_unlock(&s->lock);
	return ret;
}

// ---- live migration ----

static void set_outgoing(struct bitmaps *s, bool outgoing)
{
	pthread_mutex_lock(&s->lock);
	s->outgoing = outgoing;
	for (unsigned i = 0; i < s->n; i++)
		s->list[i].map->busy = outgoing || s->list[i].backup;
	pthread_mutex_unlock(&s->lock);
}

void bitmaps_outgoing_begin(struct bitmaps *s)
{
	set_outgoing(s, true);
}

void bitmaps_outgoing_end(struct bitmaps *s)
{
	set_outgoing(s, false);
}

// Disabled, under a successor that is disabled too.
static int await_locked(struct bitmaps *s, const struct bitmap_info *what, struct ft_err *err)
{
	struct bitmaps_entry *entry = find_locked(s, what->name);
	struct ft_dirty_bitmap *map = NULL;
	// Left by an agent that had awaited it; of no use to anybody.
	if (entry && entry->map->inconsistent && !entry->incoming)
		remove_locked(s, entry);
	int ret = bitmaps_make_locked(s, what->name, what->granularity, &map, err);
	if (ret < 0)
		return ret;
	assert(map);
	entry = &s->list[s->n - 1];
	entry->incoming = true;
	map->enabled = false;
	map->inconsistent = what->inconsistent;
	if (what->inconsistent)
		return 0;
	map->busy = true;
	entry->enable_after = what->enabled;
	ret = ft_dirty_freeze(map);
	if (ret < 0) {
		remove_locked(s, entry);
		ft_err_set(err, ENOMEM, "out of memory");
	}
	return ret;
}

int bitmaps_incoming_add(struct bitmaps *s, const struct bitmap_info *what, struct ft_err *err)
{
	pthread_mutex_lock(&s->lock);
	int ret = await_locked(s, what, err);
	pthread_mutex_unlock(&s->lock);
	return ret < 0 ? ft_err_context(err, "bitmap %.64s", what->name) : 0;
}

void bitmaps_incoming_run(struct bitmaps *s)
{
	pthread_mutex_lock(&s->lock);
	for (unsigned i = 0; i < s->n; i++)
		if (bitmaps_arrives(&s->list[i]) && s->list[i].enable_after)
			ft_dirty_enable(s->list[i].map, true);
	pthread_mutex_unlock(&s->lock);
}

// One whose data are still awaited.
static struct bitmaps_entry *awaited_locked(struct bitmaps *s, const char *name)
{
	struct bitmaps_entry *entry = find_locked(s, name);
	return entry && bitmaps_arrives(entry) ? entry : NULL;
}

int bitmaps_incoming_put(struct bitmaps *s, const char *name, uint64_t at, const uint8_t *data,
			 uint64_t len, struct ft_err *err)
{
	pthread_mutex_lock(&s->lock);
	struct bitmaps_entry *entry = awaited_locked(s, name);
	int ret = entry ? ft_dirty_put(entry->map, at, data, len) : -EPROTO;
	pthread_mutex_unlock(&s->lock);
	return ret < 0 ? ft_err_set(err, -ret, "bitmap %.64s: data that do not fit it", name) : 0;
}

int bitmaps_incoming_end(struct bitmaps *s, const char *name, struct ft_err *err)
{
	pthread_mutex_lock(&s->lock);
	struct bitmaps_entry *entry = awaited_locked(s, name);
	if (entry) {
		ft_dirty_reclaim(entry->map);
		entry->map->enabled = entry->enable_after;
		entry->map->busy = false;
	}
	pthread_mutex_unlock(&s->lock);
	return entry ? 0 : ft_err_set(err, EPROTO, "bitmap %.64s: is not awaited", name);
}

bool bitmaps_incoming_lose(struct bitmaps *s, const char *name, const char *why)
{
	pthread_mutex_lock(&s->lock);
	struct bitmaps_entry *entry = awaited_locked(s, name);
	if (entry) {
		ft_dirty_reclaim(entry->map);
		bitmaps_spoil(entry->map, why);
		entry->map->busy = false;
	}
	pthread_mutex_unlock(&s->lock);
	return entry;
}

void bitmaps_incoming_finish(struct bitmaps *s)
{
	pthread_mutex_lock(&s->lock);
	for (unsigned i = 0; i < s->n; i++) {
		assert(!s->list[i].incoming || !s->list[i].map->successor);
		s->list[i].incoming = false;
	}
	pthread_mutex_unlock(&s->lock);
}

void bitmaps_incoming_cancel(struct bitmaps *s)
{
	pthread_mutex_lock(&s->lock);
	for (unsigned i = s->n; i-- > 0;)
		if (s->list[i].incoming)
			remove_locked(s, &s->list[i]);
	pthread_mutex_unlock(&s->lock);
}
