// SPDX-License-Identifier: Apache-2.0
// Named dirty bitmaps against arrays of bools, in every granularity: marks, successors, checkpoints
// to a standby, live migration, and their file after every kind of end and at every damaged byte.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "eventtap/block/bitmaps.h"

#define BYTES	  ((3u << 20) + 70000) // no whole number of any granularity above 16
#define UNITS_MAX (BYTES / FT_DIRTY_GRANULARITY_MIN + 1)

static char dir[64], image[96], file[128];
static struct bitmaps s, peer;
static struct ft_err err;

struct model {
	uint32_t granularity;
	bool bits[UNITS_MAX];
};

static int setup(void **state)
{
	(void)state;
	snprintf(dir, sizeof(dir), "/tmp/ft-bitmaps-XXXXXX");
	assert_non_null(mkdtemp(dir));
	snprintf(image, sizeof(image), "%s/d.img", dir);
	snprintf(file, sizeof(file), "%s%s", image, BITMAPS_SUFFIX);
	bitmaps_init(&s, image, BYTES);
	bitmaps_init(&peer, image, BYTES);
	srand(11);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	bitmaps_free(&s);
	bitmaps_free(&peer);
	unlink(file);
	return rmdir(dir);
}

static void again(struct bitmaps *set)
{
	bitmaps_free(set);
	bitmaps_init(set, image, BYTES);
}

static unsigned units(uint32_t granularity)
{
	return (BYTES + granularity - 1) / granularity;
}

static void model_mark(struct model *m, uint64_t offset, uint64_t len)
{
	for (uint64_t u = offset / m->granularity; u <= (offset + len - 1) / m->granularity; u++)
		m->bits[u] = true;
}

static void expect(struct bitmaps *set, const char *name, const struct model *m)
{
	uint64_t at = 0, len;
	for (; at < BYTES; at += len) {
		bool dirty = false;
		len = BYTES - at;
		assert_int_equal(bitmaps_at(set, name, at, &len, &dirty), 0);
		for (uint64_t u = at / m->granularity; u * m->granularity < at + len; u++)
			if (m->bits[u] != dirty)
				fail_msg("%s: unit %llu of %u bytes is %s", name,
					 (unsigned long long)u, m->granularity,
					 dirty ? "dirty" : "clean");
	}
	assert_int_equal(at, BYTES);
}

static struct bitmap_info info_of(struct bitmaps *set, const char *name)
{
	struct bitmap_info info;
	for (unsigned i = 0; bitmaps_info(set, i, &info); i++)
		if (strcmp(info.name, name) == 0)
			return info;
	fail_msg("there is no bitmap %s", name);
	return info;
}

static bool exists(struct bitmaps *set, const char *name)
{
	struct bitmap_info info;
	for (unsigned i = 0; bitmaps_info(set, i, &info); i++)
		if (strcmp(info.name, name) == 0)
			return true;
	return false;
}

static void random_range(uint64_t *offset, uint64_t *len)
{
	*offset = ((uint64_t)rand() << 3) % BYTES;
	*len = (uint64_t)rand() % (rand() % 10 ? 20000 : 400000) + 1;
	if (*len > BYTES - *offset)
		*len = BYTES - *offset;
}

// One bitmap of every granularity, and what each must say.
#define GRANULARITIES 12
static struct model models[GRANULARITIES];
static char names[GRANULARITIES][16];

static void add_all(void)
{
	memset(models, 0, sizeof(models));
	for (unsigned i = 0; i < GRANULARITIES; i++) {
		models[i].granularity = FT_DIRTY_GRANULARITY_MIN << i;
		snprintf(names[i], sizeof(names[i]), "b%u", models[i].granularity);
		assert_int_equal(bitmaps_add(&s, names[i], models[i].granularity, &err), 0);
	}
	assert_int_equal(models[GRANULARITIES - 1].granularity, FT_DIRTY_GRANULARITY_MAX);
}

static void write_all(struct bitmaps *set, unsigned n)
{
	uint64_t offset, len;
	for (; n > 0; n--) {
		random_range(&offset, &len);
		bitmaps_mark(set, offset, len);
		for (unsigned i = 0; i < GRANULARITIES; i++)
			model_mark(&models[i], offset, len);
	}
}

static void expect_all(struct bitmaps *set)
{
	for (unsigned i = 0; i < GRANULARITIES; i++)
		expect(set, names[i], &models[i]);
}

// ---- operators ----

static void test_operators(void **state)
{
	(void)state;
	static const char too_long[] = "0123456789012345678901234567890123456789"
				       "01234567890123456789abcd";
	static const char *const bad[] = {"", "-x", "a b", "a/b", "a:b", ".x", too_long};
	static const uint32_t wrong[] = {0, 1, 256, 513, 768, 2u << 20, UINT32_MAX};
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		assert_int_equal(bitmaps_add(&s, bad[i], 512, &err), -EINVAL);
	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++)
		assert_int_equal(bitmaps_add(&s, "a", wrong[i], &err), -EINVAL);
	assert_int_equal(bitmaps_count(&s), 0);
	for (unsigned i = 0; i < BITMAPS_MAX; i++) {
		char name[8];
		snprintf(name, sizeof(name), "a%u", i);
		assert_int_equal(bitmaps_add(&s, name, 65536, &err), 0);
		assert_int_equal(bitmaps_add(&s, name, 65536, &err), -EEXIST);
	}
	assert_int_equal(bitmaps_add(&s, "more", 65536, &err), -ENOSPC);
	assert_non_null(strstr(err.text, "bitmap more: a disk has at most 16"));
	assert_int_equal(bitmaps_remove(&s, "more", &err), -ENOENT);
	assert_int_equal(bitmaps_enable(&s, "a3", false, &err), 0);
	bitmaps_mark(&s, 0, 1);
	assert_int_equal(info_of(&s, "a3").dirty_bytes, 0);
	assert_int_equal(info_of(&s, "a4").dirty_bytes, 65536);
	assert_int_equal(bitmaps_enable(&s, "a3", true, &err), 0);
	bitmaps_mark(&s, 70000, 1);
	assert_int_equal(info_of(&s, "a3").dirty_bytes, 65536);
	assert_int_equal(info_of(&s, "a4").dirty_bytes, 2 * 65536);
	assert_int_equal(bitmaps_clear(&s, "a4", &err), 0);
	assert_int_equal(info_of(&s, "a4").dirty_bytes, 0);
	assert_int_equal(bitmaps_remove(&s, "a0", &err), 0);
	assert_int_equal(info_of(&s, "a3").dirty_bytes, 65536);
	assert_false(exists(&s, "a0"));
	// What is too fine for a large disk says what would do.
	struct bitmaps large;
	bitmaps_init(&large, image, UINT64_C(1) << 42);
	assert_int_equal(bitmaps_add(&large, "a", 512, &err), -EINVAL);
	assert_non_null(strstr(err.text, "from 65536 to 1048576"));
	assert_int_equal(bitmaps_add(&large, "a", 65536, &err), 0);
	bitmaps_free(&large);
}

static void test_marks(void **state)
{
	(void)state;
	add_all();
	for (unsigned round = 0; round < 20; round++) {
		write_all(&s, 5);
		expect_all(&s);
	}
	bitmaps_mark(&s, BYTES - 1, 1);
	for (unsigned i = 0; i < GRANULARITIES; i++)
		model_mark(&models[i], BYTES - 1, 1);
	expect_all(&s);
}

// ---- the object with its successor ----

static void test_successors(void **state)
{
	(void)state;
	for (uint32_t g = FT_DIRTY_GRANULARITY_MIN; g <= FT_DIRTY_GRANULARITY_MAX; g *= 2) {
		static struct model old, now;
		struct ft_dirty_bitmap *b;
		uint64_t offset, len;
		old = now = (struct model){.granularity = g};
		assert_int_equal(ft_dirty_new("b", BYTES, g, &b), 0);
		for (unsigned round = 0; round < 30; round++) {
			random_range(&offset, &len);
			ft_dirty_mark(b, offset, len);
			model_mark(b->successor ? &now : &old, offset, len);
			if (!b->successor && rand() % 3 == 0) {
				assert_int_equal(ft_dirty_freeze(b), 0);
				assert_int_equal(ft_dirty_freeze(b), -EBUSY);
				memset(now.bits, 0, sizeof(now.bits));
				continue;
			}
			if (!b->successor)
				continue;
			for (unsigned u = 0; u < units(g); u++) // the frozen one does not change
				assert_int_equal(ft_bitmap_test(&b->bits, u), old.bits[u]);
			bool merge = rand() % 2;
			if (merge)
				ft_dirty_reclaim(b);
			else
				ft_dirty_abdicate(b);
			for (unsigned u = 0; u < units(g); u++) {
				old.bits[u] = now.bits[u] || (merge && old.bits[u]);
				assert_int_equal(ft_bitmap_test(&b->bits, u), old.bits[u]);
			}
			assert_true(b->enabled);
		}
		// A disabled one has a disabled successor; enabling reaches the one that is marked.
		if (b->successor)
			ft_dirty_reclaim(b);
		ft_dirty_clear(b);
		ft_dirty_enable(b, false);
		assert_int_equal(ft_dirty_freeze(b), 0);
		ft_dirty_mark(b, 0, BYTES);
		assert_int_equal(ft_dirty_count_bytes(b), 0);
		ft_dirty_enable(b, true);
		ft_dirty_mark(b, 0, 1);
		assert_int_equal(ft_dirty_count_bytes(b), g);
		ft_dirty_reclaim(b);
		assert_true(b->enabled);
		ft_dirty_free(b);
	}
}

// ---- checkpoints ----

struct wire {
	uint8_t *bytes;
	size_t len, room;
	unsigned records, fail_at; // 0: never
};
static struct wire wire;

static int emit(void *ctx, const struct tap_record *rec)
{
	struct wire *w = ctx;
	size_t need = TAP_RECORD_HEADER + rec->len;
	if (++w->records == w->fail_at)
		return -ENOSPC;
	if (w->len + need > w->room) {
		w->room = (w->len + need) * 2;
		w->bytes = realloc(w->bytes, w->room);
	}
	tap_record_put_header(w->bytes + w->len, rec);
	memcpy(w->bytes + w->len + TAP_RECORD_HEADER, rec->data, rec->len);
	w->len += need;
	return 0;
}

static size_t checkpoint(void)
{
	struct tap_record rec;
	size_t len;
	wire.records = 0;
	assert_int_equal(bitmaps_log(&s, 3, emit, &wire), 0);
	for (size_t at = 0; at < wire.len;) {
		long n = tap_record_parse(wire.bytes + at, wire.len - at, &rec, NULL);
		assert_true(n > 0);
		assert_int_equal(rec.device, 3);
		assert_int_equal(bitmaps_apply(&peer, &rec), 0);
		at += (size_t)n;
	}
	len = wire.len;
	wire.len = 0;
	return len;
}

static void expect_equal_sets(void)
{
	assert_int_equal(bitmaps_count(&s), bitmaps_count(&peer));
	struct bitmap_info a, b;
	for (unsigned i = 0; bitmaps_info(&s, i, &a); i++) {
		assert_true(bitmaps_info(&peer, i, &b));
		assert_memory_equal(&a, &b, sizeof(a));
	}
}

static void test_checkpoints(void **state)
{
	(void)state;
	assert_int_equal(checkpoint(), 0); // nobody has any
	write_all(&s, 3);
	add_all();
	write_all(&s, 10);
	bitmaps_tell_all(&s);
	size_t whole = checkpoint();
	expect_equal_sets();
	expect_all(&peer);
	assert_int_equal(checkpoint(), 0); // changes only
	bitmaps_mark(&s, 5 * 65536, 1);
	for (unsigned i = 0; i < GRANULARITIES; i++)
		model_mark(&models[i], 5 * 65536, 1);
	size_t little = checkpoint();
	assert_true(little < GRANULARITIES * 128 && little < whole);
	for (unsigned round = 0; round < 40; round++) {
		unsigned which = (unsigned)rand() % GRANULARITIES;
		write_all(&s, 2);
		if (round % 5 == 1) {
			assert_int_equal(bitmaps_clear(&s, names[which], &err), 0);
			memset(models[which].bits, 0, sizeof(models[which].bits));
		}
		if (round % 7 == 2) { // a checkpoint that does not fit: the next one tells all
			wire.fail_at = 1 + (unsigned)rand() % 6;
			wire.records = 0;
			(void)bitmaps_log(&s, 3, emit, &wire);
			wire.fail_at = 0;
			// What was logged stays logged and goes first.
			write_all(&s, 1);
		}
		(void)checkpoint();
		expect_all(&peer);
		expect_equal_sets();
	}
	assert_int_equal(bitmaps_enable(&s, names[2], false, &err), 0);
	assert_int_equal(bitmaps_remove(&s, names[5], &err), 0);
	(void)checkpoint();
	expect_equal_sets();
	while (bitmaps_count(&s)) {
		struct bitmap_info info;
		assert_true(bitmaps_info(&s, 0, &info));
		assert_int_equal(bitmaps_remove(&s, info.name, &err), 0);
	}
	(void)checkpoint();
	assert_int_equal(bitmaps_count(&peer), 0);
	free(wire.bytes);
	wire = (struct wire){0};
}

static int apply(uint64_t arg, const void *data, size_t len)
{
	const struct tap_record rec = {
		.kind = TAP_DISK_BITMAP, .arg = arg, .len = (uint32_t)len, .data = data};
	return bitmaps_apply(&peer, &rec);
}

static size_t wire_of_one(void)
{
	again(&s);
	again(&peer);
	wire.len = 0;
	assert_int_equal(bitmaps_add(&s, "one", 4096, &err), 0);
	bitmaps_mark(&s, 123456, 100000);
	wire.records = 0;
	assert_int_equal(bitmaps_log(&s, 3, emit, &wire), 0);
	size_t len = wire.len;
	wire.len = 0;
	return len;
}

// A bit of a map that changed on its way: the map's sum, sent behind it, tells.
static void test_damaged_checkpoint(void **state)
{
	struct tap_record rec;
	unsigned sums = 0;
	(void)state;
	for (unsigned damage = 0; damage < 2; damage++) {
		size_t len = wire_of_one();
		for (size_t at = 0; at < len;) {
			long n = tap_record_parse(wire.bytes + at, len - at, &rec, NULL);
			assert_true(n > 0);
			uint8_t *data = (uint8_t *)(uintptr_t)rec.data;
			if (damage && data[0] == 2) // DATA
				data[rec.len - 60] ^= 4;
			sums += data[0] == 5;
			assert_int_equal(bitmaps_apply(&peer, &rec), 0);
			at += (size_t)n;
		}
		assert_int_equal(info_of(&peer, "one").inconsistent, damage);
		assert_int_equal(info_of(&peer, "one").enabled, !damage);
	}
	assert_int_equal(sums, 2);
	// One that is being backed up is told with the marks of both halves, and so is its sum.
	again(&peer);
	assert_int_equal(bitmaps_backup_begin(&s, "one", &err), 0);
	bitmaps_mark(&s, 2000000, 5000);
	bitmaps_tell_all(&s);
	(void)checkpoint();
	assert_false(info_of(&peer, "one").inconsistent);
	assert_int_equal(info_of(&peer, "one").dirty_bytes, info_of(&s, "one").dirty_bytes);
	bitmaps_backup_end(&s, "one", false);
	peer.list[0].map->inconsistent = true;
	// What spoils it is not taken back by the next change.
	assert_int_equal(bitmaps_enable(&s, "one", false, &err), 0);
	assert_int_equal(bitmaps_enable(&s, "one", true, &err), 0);
	(void)checkpoint();
	assert_true(info_of(&peer, "one").inconsistent);
	const uint8_t cut[] = {5, 3, 'o', 'n', 'e', 1, 2, 3}, none[34] = {5, 0};
	rec = (struct tap_record){.kind = TAP_DISK_BITMAP, .len = sizeof(cut), .data = cut};
	assert_int_equal(bitmaps_apply(&peer, &rec), -EPROTO);
	rec = (struct tap_record){.kind = TAP_DISK_BITMAP, .len = sizeof(none), .data = none};
	assert_int_equal(bitmaps_apply(&peer, &rec), -EPROTO);
}

static void test_hostile_records(void **state)
{
	(void)state;
#define APPLY(arg, bytes) apply(arg, bytes, sizeof(bytes) - 1)
	assert_int_equal(APPLY(0, "\2\1a12345678"), -EPROTO);	// no such bitmap
	assert_int_equal(APPLY(0, "\1\1a\1\0\0\1\0"), 0);	// 64 KiB
	assert_int_equal(APPLY(0, "\1\1a\1\0\0\2\0"), -EPROTO); // another granularity
	assert_int_equal(APPLY(0, "\1\1b\1\0\1\0\0"), -EPROTO); // 256 bytes
	assert_int_equal(APPLY(0, "\1\1b\4\0\0\1\0"), -EPROTO); // flags
	assert_int_equal(APPLY(0, "\1\1b\1\0\0\1"), -EPROTO);	// cut
	assert_int_equal(APPLY(0, "\1\0\1\0\0\1\0"), -EPROTO);	// no name
	assert_int_equal(APPLY(0, "\1\1/\1\0\0\1\0"), -EPROTO);
	assert_int_equal(APPLY(0, "\1\2a\0\1\0\0\1\0"), -EPROTO);
	assert_int_equal(APPLY(0, "\1\377a"), -EPROTO);
	assert_int_equal(APPLY(0, "\0\0"), -EPROTO);
	assert_int_equal(APPLY(0, "\5\0"), -EPROTO);
	assert_int_equal(APPLY(0, "\4\1a"), -EPROTO);
	assert_int_equal(APPLY(0, "\2\1a1234567"), -EPROTO); // no whole word
	assert_int_equal(APPLY(4, "\2\1a\0\0\0\0\0\0\0\0"), -EPROTO);
	assert_int_equal(APPLY(8, "\2\1a\0\0\0\0\0\0\0\0"), -EPROTO);	// beyond the map
	assert_int_equal(APPLY(0, "\2\1a\0\0\0\0\0\0\0\200"), -EPROTO); // beyond the disk
	assert_int_equal(APPLY(UINT64_MAX - 7, "\2\1a\0\0\0\0\0\0\0\0"), -EPROTO);
	assert_int_equal(APPLY(0, "\3\1a\377\377\377\377\377\377\377\377"), -EPROTO);
	assert_int_equal(APPLY(0, "\3\1a\0\0\0\0\0\0\0\0"), -EPROTO);
	assert_int_equal(APPLY(0, "\2\1a\3\0\0\0\0\0\0\0"), 0);
	assert_int_equal(info_of(&peer, "a").dirty_bytes, 2 * 65536);
	assert_int_equal(APPLY(0, "\3\1a\10\0\0\0\0\0\0\0"), 0);
	assert_int_equal(info_of(&peer, "a").dirty_bytes, 0);
	assert_int_equal(APPLY(0, "\4\0"), 0);
	assert_int_equal(bitmaps_count(&peer), 0);
}

// ---- live migration ----

static void announce(void)
{
	struct bitmap_info info;
	bitmaps_outgoing_begin(&s);
	for (unsigned i = 0; bitmaps_info(&s, i, &info); i++)
		if (!info.inconsistent)
			assert_int_equal(bitmaps_incoming_add(&peer, &info, &err), 0);
}

static void send_map(const char *name, size_t chunk)
{
	uint8_t piece[4096];
	struct bitmap_info info = info_of(&s, name);
	for (uint64_t at = 0; at < info.map_bytes; at += chunk) {
		size_t len = info.map_bytes - at < chunk ? (size_t)(info.map_bytes - at) : chunk;
		assert_int_equal(bitmaps_read(&s, name, at, piece, len), 0);
		assert_int_equal(bitmaps_incoming_put(&peer, name, at, piece, len, &err), 0);
	}
}

static void test_migration(void **state)
{
	(void)state;
	add_all();
	assert_int_equal(bitmaps_add(&s, "off", 4096, &err), 0);
	bitmaps_mark(&s, 100000, 5000);
	for (unsigned i = 0; i < GRANULARITIES; i++)
		model_mark(&models[i], 100000, 5000);
	assert_int_equal(bitmaps_enable(&s, "off", false, &err), 0);
	uint64_t off = info_of(&s, "off").dirty_bytes;
	write_all(&s, 10);
	announce();
	assert_int_equal(bitmaps_clear(&s, names[0], &err), -EBUSY);
	assert_int_equal(bitmaps_remove(&peer, names[0], &err), -EBUSY);
	write_all(&s, 10); // precopy: at the source only
	bitmaps_mark(&peer, 0, BYTES);
	assert_int_equal(info_of(&peer, names[0]).dirty_bytes, 0);
	bitmaps_incoming_run(&peer); // the switch
	write_all(&peer, 10);
	for (unsigned i = 0; i < GRANULARITIES; i++) {
		write_all(&peer, 1); // while the data come
		send_map(names[i], 64 << i % 7);
		write_all(&peer, 1);
		assert_int_equal(bitmaps_incoming_end(&peer, names[i], &err), 0);
		expect(&peer, names[i], &models[i]);
	}
	send_map("off", 4096);
	assert_int_equal(bitmaps_incoming_end(&peer, "off", &err), 0);
	assert_int_equal(bitmaps_incoming_end(&peer, "off", &err), -EPROTO);
	uint8_t word[8] = {0};
	assert_int_equal(bitmaps_incoming_put(&peer, "off", 0, word, 8, &err), -EPROTO);
	bitmaps_incoming_finish(&peer);
	write_all(&peer, 10);
	expect_all(&peer);
	assert_false(info_of(&peer, "off").enabled);
	assert_int_equal(info_of(&peer, "off").dirty_bytes, off);
	bitmaps_incoming_cancel(&peer); // it is over: nothing is cancelled
	assert_int_equal(bitmaps_count(&peer), GRANULARITIES + 1);
}

// It fails at any point: the source is as before, at the target there is what was there before.
static void test_migration_fails(void **state)
{
	(void)state;
	for (unsigned when = 0; when < 4; when++) {
		again(&s);
		again(&peer);
		add_all();
		assert_int_equal(bitmaps_add(&peer, "mine", 4096, &err), 0);
		write_all(&s, 10);
		announce();
		write_all(&s, 5);
		if (when > 0)
			bitmaps_incoming_run(&peer);
		if (when > 1)
			send_map(names[4], 8);
		if (when > 2)
			assert_int_equal(bitmaps_incoming_end(&peer, names[4], &err), 0);
		bitmaps_mark(&peer, 0, 10);
		bitmaps_incoming_cancel(&peer);
		assert_int_equal(bitmaps_count(&peer), 1);
		assert_true(exists(&peer, "mine"));
		bitmaps_outgoing_end(&s);
		write_all(&s, 5);
		expect_all(&s);
		assert_int_equal(bitmaps_clear(&s, names[0], &err), 0);
		assert_true(info_of(&s, names[1]).enabled);
	}
	const struct bitmap_info mine = {.name = "mine", .granularity = 4096},
				 odd = {.name = "x", .granularity = 100};
	assert_int_equal(bitmaps_incoming_add(&peer, &mine, &err), -EEXIST);
	assert_int_equal(bitmaps_incoming_add(&peer, &odd, &err), -EINVAL);
	bitmaps_incoming_cancel(&peer);
	assert_int_equal(bitmaps_count(&peer), 1);
}

// ---- the file ----

static void load(bool known)
{
	again(&s);
	bitmaps_load(&s, known);
}

static void test_file(void **state)
{
	(void)state;
	load(true);
	assert_int_equal(bitmaps_count(&s), 0);
	assert_int_equal(bitmaps_save(&s, true, &err), 0);
	assert_false(bitmaps_exist(image));
	add_all();
	write_all(&s, 20);
	assert_int_equal(bitmaps_enable(&s, names[3], false, &err), 0);
	assert_int_equal(bitmaps_save(&s, false, &err), 0);
	assert_true(bitmaps_exist(image));
	load(true);
	expect_all(&s);
	assert_false(info_of(&s, names[3]).enabled);
	assert_true(info_of(&s, names[4]).enabled);

	// In use when it all ended, or the image was written by others.
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(bitmaps_save(&s, i == 0, &err), 0);
		load(i == 0);
		assert_true(info_of(&s, names[4]).inconsistent);
		assert_false(info_of(&s, names[3]).inconsistent);
		expect(&s, names[3], &models[3]);
		uint64_t len = 1;
		bool dirty;
		assert_int_equal(bitmaps_at(&s, names[4], 0, &len, &dirty), -ENOENT);
		assert_int_equal(bitmaps_enable(&s, names[4], true, &err), -EINVAL);
		assert_non_null(strstr(err.text, "inconsistent"));
		assert_int_equal(bitmaps_clear(&s, names[4], &err), -EINVAL);
		bitmaps_mark(&s, 0, 1);
		load(true); // nothing was saved
		assert_int_equal(bitmaps_remove(&s, names[4], &err), 0);
		again(&s);
		add_all();
		assert_int_equal(bitmaps_enable(&s, names[3], false, &err), 0);
		models[3] = (struct model){.granularity = models[3].granularity};
	}
	// Frozen under a successor: saved as if it had been reclaimed.
	again(&s);
	add_all();
	write_all(&s, 5);
	assert_int_equal(ft_dirty_freeze(s.list[2].map), 0);
	write_all(&s, 5);
	assert_int_equal(bitmaps_save(&s, false, &err), 0);
	load(true);
	expect_all(&s);
	assert_true(info_of(&s, names[2]).enabled);
	// Not arrived: of no use to whoever loads it, and no map is kept.
	again(&s);
	const struct bitmap_info coming = {.name = "coming", .granularity = 4096, .enabled = true};
	assert_int_equal(bitmaps_incoming_add(&s, &coming, &err), 0);
	bitmaps_incoming_run(&s);
	bitmaps_mark(&s, 0, 4096);
	assert_int_equal(bitmaps_save(&s, false, &err), 0);
	load(true);
	assert_true(info_of(&s, "coming").inconsistent);
	assert_int_equal(info_of(&s, "coming").dirty_bytes, 0);
	while (bitmaps_count(&s))
		assert_int_equal(bitmaps_remove(&s, s.list[0].map->name, &err), 0);
	assert_int_equal(bitmaps_save(&s, true, &err), 0);
	assert_false(bitmaps_exist(image));
}

// Every byte of it damaged, and every beginning of it: never taken for what it was.
static void test_damaged_file(void **state)
{
	(void)state;
	static uint8_t bytes[4096];
	assert_int_equal(bitmaps_add(&s, "one", 65536, &err), 0);
	assert_int_equal(bitmaps_add(&s, "two", 4096, &err), 0);
	bitmaps_mark(&s, 123456, 100000);
	assert_int_equal(bitmaps_save(&s, false, &err), 0);
	int fd = open(file, O_RDONLY);
	ssize_t len = read(fd, bytes, sizeof(bytes));
	close(fd);
	assert_in_range(len, 100, sizeof(bytes) - 1);
	bool in_use = true;
	assert_int_equal(bitmaps_parse(&peer, bytes, (size_t)len, &in_use), 0);
	assert_false(in_use);
	assert_int_equal(bitmaps_count(&peer), 2);
	for (ssize_t i = 0; i < len; i++) {
		again(&peer);
		bytes[i] ^= 0x20;
		assert_int_equal(bitmaps_parse(&peer, bytes, (size_t)len, &in_use), -EBADMSG);
		bytes[i] ^= 0x20;
		assert_int_equal(bitmaps_parse(&peer, bytes, (size_t)i, &in_use), -EBADMSG);
		assert_int_equal(bitmaps_count(&peer), 0);
	}
	bitmaps_free(&peer);
	bitmaps_init(&peer, image, BYTES + 1);
	assert_int_equal(bitmaps_parse(&peer, bytes, (size_t)len, &in_use), -EFBIG);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_operators, setup, teardown),
		cmocka_unit_test_setup_teardown(test_marks, setup, teardown),
		cmocka_unit_test_setup_teardown(test_successors, setup, teardown),
		cmocka_unit_test_setup_teardown(test_checkpoints, setup, teardown),
		cmocka_unit_test_setup_teardown(test_damaged_checkpoint, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hostile_records, setup, teardown),
		cmocka_unit_test_setup_teardown(test_migration, setup, teardown),
		cmocka_unit_test_setup_teardown(test_migration_fails, setup, teardown),
		cmocka_unit_test_setup_teardown(test_file, setup, teardown),
		cmocka_unit_test_setup_teardown(test_damaged_file, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
