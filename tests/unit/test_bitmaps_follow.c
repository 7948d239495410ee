// SPDX-License-Identifier: Apache-2.0
// Bitmaps that follow a guest which runs elsewhere already: both halves without threads and
// sockets, against arrays of bools in every granularity; links that are lost anywhere, and peers
// that lie.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eventtap/block/bitmaps_follow.h"

#define DISKS	      2
#define BYTES	      ((40u << 20) + 70000)
#define UNIT	      FT_DIRTY_GRANULARITY_MIN
#define UNITS	      (BYTES / UNIT + 1)
#define GRANULARITIES 12

static struct bitmaps source[DISKS], store[DISKS], target[DISKS];
static struct bitmaps_giver giver;
static struct bitmaps_taker taker;
static Ft__Disk disks[DISKS];
static bool model[DISKS][UNITS], off[DISKS][UNITS];
static struct ft_err err;

static void init_all(void)
{
	for (unsigned i = 0; i < DISKS; i++) {
		bitmaps_init(&source[i], "/nowhere/source", BYTES);
		bitmaps_init(&store[i], "/nowhere/store", BYTES);
		bitmaps_init(&target[i], "/nowhere/target", BYTES);
		disks[i] = (Ft__Disk)FT__DISK__INIT;
	}
	bitmaps_giver_init(&giver);
	bitmaps_taker_init(&taker);
	memset(model, 0, sizeof(model));
	memset(off, 0, sizeof(off));
}

static void free_all(void)
{
	for (unsigned i = 0; i < DISKS; i++) {
		bitmaps_free(&source[i]);
		bitmaps_free(&store[i]);
		bitmaps_free(&target[i]);
	}
	bitmaps_giver_free(&giver);
	bitmaps_taker_free(&taker);
}

static int setup(void **state)
{
	(void)state;
	init_all();
	srand(5);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	free_all();
	return 0;
}

// ---- writes, and what the bitmaps must say ----

static void guest_writes(struct bitmaps *sets, unsigned times)
{
	for (unsigned n = 0; n < times; n++) {
		unsigned disk = (unsigned)rand() % DISKS;
		uint64_t offset = ((uint64_t)rand() << 4) % BYTES,
			 len = (uint64_t)rand() % (rand() % 10 ? 20000 : 900000) + 1;
		if (len > BYTES - offset)
			len = BYTES - offset;
		bitmaps_mark(&sets[disk], offset, len);
		for (uint64_t u = offset / UNIT; u <= (offset + len - 1) / UNIT; u++)
			model[disk][u] = true;
	}
}

static const char *name_of(uint32_t granularity)
{
	static char name[16];
	snprintf(name, sizeof(name), "g%u", granularity);
	return name;
}

static void expect(struct bitmaps *s, const char *name, const bool *units, uint32_t granularity)
{
	for (uint64_t at = 0, len; at < BYTES; at += len) {
		bool dirty = false, should = false;
		len = granularity < BYTES - at ? granularity : BYTES - at;
		assert_int_equal(bitmaps_at(s, name, at, &len, &dirty), 0);
		for (uint64_t u = at / UNIT; u <= (at + len - 1) / UNIT; u++)
			should |= units[u];
		if (dirty != should)
			fail_msg("%s: at %llu it is %s", name, (unsigned long long)at,
				 dirty ? "dirty" : "clean");
	}
}

static void expect_all(struct bitmaps *sets)
{
	for (unsigned i = 0; i < DISKS; i++) {
		for (unsigned n = 0; n < GRANULARITIES; n++)
			expect(&sets[i], name_of(UNIT << n), model[i], UNIT << n);
		expect(&sets[i], "off", off[i], 4096);
	}
}

static struct bitmap_info info_of(struct bitmaps *s, const char *name)
{
	struct bitmap_info info = {0};
	for (unsigned i = 0; bitmaps_info(s, i, &info); i++)
		if (strcmp(info.name, name) == 0)
			return info;
	fail_msg("there is no bitmap %s", name);
	return info;
}

static void add_all(void)
{
	for (unsigned i = 0; i < DISKS; i++) {
		for (unsigned n = 0; n < GRANULARITIES; n++)
			assert_int_equal(
				bitmaps_add(&source[i], name_of(UNIT << n), UNIT << n, &err), 0);
		assert_int_equal(bitmaps_add(&source[i], "off", 4096, &err), 0);
		assert_int_equal(bitmaps_add(&source[i], "lost", 4096, &err), 0);
		source[i].list[source[i].n - 1].map->inconsistent = true;
	}
	guest_writes(source, 20);
	memcpy(off, model, sizeof(off));
	for (unsigned i = 0; i < DISKS; i++)
		assert_int_equal(bitmaps_enable(&source[i], "off", false, &err), 0);
}

// ---- the steps ----

static void describe(void)
{
	for (unsigned i = 0; i < DISKS; i++)
		bitmaps_giver_describe(&giver, i, &source[i], &disks[i]);
}

static void set_up(void)
{
	describe();
	for (unsigned i = 0; i < DISKS; i++)
		assert_int_equal(bitmaps_taker_expect(&taker, i, &store[i], &disks[i], &err), 0);
}

static void begin(void)
{
	struct bitmaps *sets[VMM_DISKS_MAX] = {&target[0], &target[1]};
	bitmaps_taker_begin(&taker, sets);
}

static bool next(struct ft_msg *msg)
{
	return giver.cargo.ops->next(&giver.cargo, msg);
}

static int take(const struct ft_msg *msg)
{
	return taker.cargo.ops->take(&taker.cargo, msg, &err);
}

static bool all(void)
{
	return taker.cargo.ops->all(&taker.cargo);
}

static void go_on(void)
{
	struct ft_msg msg;
	taker.cargo.ops->lacks(&taker.cargo, &msg);
	assert_int_equal(msg.type, FT_MSG_BITMAP);
	assert_int_equal(giver.cargo.ops->go_on(&giver.cargo, &msg, &err), 0);
}

static void follow(void)
{
	struct ft_msg msg;
	while (next(&msg)) {
		assert_true(msg.payload_len <= BITMAPS_PIECE);
		assert_int_equal(take(&msg), 0);
		guest_writes(target, 1);
	}
	assert_true(all());
}

static void expect_moved(void)
{
	expect_all(target);
	for (unsigned i = 0; i < DISKS; i++) {
		assert_true(info_of(&target[i], "g512").enabled);
		assert_false(info_of(&target[i], "g512").busy);
		assert_false(info_of(&target[i], "off").enabled);
		assert_true(info_of(&target[i], "lost").inconsistent);
	}
}

// ---- tests ----

static void test_six_steps(void **state)
{
	(void)state;
	add_all();
	set_up();
	assert_int_equal(bitmaps_taker_awaits(&taker, 0), GRANULARITIES + 1);
	assert_int_equal(bitmaps_add(&source[0], "more", 4096, &err), -EBUSY);
	assert_int_equal(bitmaps_remove(&source[0], "lost", &err), -EBUSY);
	guest_writes(source, 20); // rounds
	begin();
	assert_true(info_of(&target[0], "g512").arriving);
	assert_int_equal(info_of(&target[0], "g512").dirty_bytes, 0);
	guest_writes(target, 20);
	uint64_t len = 1;
	bool dirty;
	assert_int_equal(bitmaps_at(&target[0], "g512", 0, &len, &dirty), -EBUSY);
	assert_true(bitmaps_taker_awaits_this(&taker, 0, "g512"));
	assert_false(bitmaps_taker_awaits_this(&taker, 0, "lost"));
	follow();
	assert_false(bitmaps_taker_awaits_this(&taker, 0, "g512"));
	bitmaps_taker_end(&taker);
	guest_writes(target, 20);
	expect_moved();
	bitmaps_giver_end(&giver);
	assert_int_equal(bitmaps_add(&source[0], "more", 4096, &err), 0);
}

// After every message: what was on its way is lost, the target says how far it has come.
static void test_lost_links(void **state)
{
	struct ft_msg msg;
	unsigned lost = 0;
	(void)state;
	giver.piece_max = 1024;
	add_all();
	set_up();
	begin();
	while (!all()) {
		assert_true(next(&msg));
		if (rand() % 3 == 0)
			assert_int_equal(take(&msg), 0);
		else
			lost++;
		while (rand() % 2)
			(void)next(&msg);
		guest_writes(target, 1);
		go_on();
	}
	assert_false(next(&msg));
	assert_true(lost > 10);
	bitmaps_taker_end(&taker);
	expect_moved();
}

// The set-up reached the target, the guest did not.
static void test_it_fails(void **state)
{
	(void)state;
	add_all();
	assert_int_equal(bitmaps_add(&target[0], "mine", 4096, &err), 0);
	set_up();
	guest_writes(source, 10);
	bitmaps_taker_end(&taker);
	begin(); // of a takeover that comes to nothing
	assert_int_equal(bitmaps_count(&target[0]), 1);
	describe();
	for (unsigned i = 0; i < DISKS; i++) {
		bitmaps_free(&store[i]);
		bitmaps_init(&store[i], "/nowhere/store", BYTES);
		assert_int_equal(bitmaps_taker_expect(&taker, i, &store[i], &disks[i], &err), 0);
	}
	begin();
	assert_true(bitmaps_count(&target[0]) > 1);
	bitmaps_taker_end(&taker);
	assert_int_equal(bitmaps_count(&target[0]), 1);
	assert_int_equal(bitmaps_count(&target[1]), 0);
	bitmaps_giver_end(&giver);
	guest_writes(source, 10);
	expect_all(source);
	assert_true(info_of(&source[0], "g512").enabled);
	assert_false(info_of(&source[0], "off").enabled);
	assert_int_equal(bitmaps_clear(&source[0], "g512", &err), 0);
}

// What an agent that died meanwhile has left is of no use, and in nobody's way.
static void test_found(void **state)
{
	(void)state;
	add_all();
	set_up();
	for (unsigned i = 0; i < DISKS; i++) {
		assert_int_equal(bitmaps_add(&target[i], "g4096", 512, &err), 0);
		target[i].list[0].map->inconsistent = true;
	}
	begin();
	follow();
	bitmaps_taker_end(&taker);
	expect_moved();
}

static void test_given_up(void **state)
{
	struct ft_msg msg;
	(void)state;
	add_all();
	set_up();
	begin();
	assert_true(next(&msg));
	assert_int_equal(take(&msg), 0);
	bitmaps_taker_give_up(&taker, 0, "g1024");
	assert_true(info_of(&target[0], "g1024").inconsistent);
	assert_int_equal(bitmaps_remove(&target[0], "g1024", &err), 0);
	// A disk loses its tap.
	bitmaps_taker_forget(&taker, 1);
	while (next(&msg))
		assert_int_equal(take(&msg), 0);
	assert_true(all());
	expect(&target[0], "g512", model[0], 512);
	assert_true(info_of(&target[1], "g512").arriving); // it ends with its tap
	bitmaps_giver_forget(&giver, 0);
	bitmaps_giver_forget(&giver, 1);
	go_on();
	assert_false(next(&msg));
}

// A byte that changed on its way, in whatever way.
static void test_damaged(void **state)
{
	struct ft_msg msg;
	bool once = false;
	(void)state;
	add_all();
	set_up();
	begin();
	while (next(&msg)) {
		if (msg.payload_len && !once) {
			((uint8_t *)(uintptr_t)msg.payload)[3] ^= 1;
			once = true;
		}
		assert_int_equal(take(&msg), 0);
	}
	assert_true(once && all());
	assert_true(info_of(&target[0], "g512").inconsistent);
	assert_false(info_of(&target[0], "g512").busy);
	assert_false(info_of(&target[1], "g512").inconsistent);
	expect(&target[0], "g1024", model[0], 1024);
}

// ---- hostile ----

static int say(uint32_t disk, const char *name, uint64_t at, uint64_t zeroes, const uint8_t *data,
	       uint32_t len, size_t sum_len)
{
	static uint8_t sum[64];
	uint8_t body[FT_MSG_BODY_SMALL];
	Ft__BitmapData d = FT__BITMAP_DATA__INIT;
	d.disk = disk;
	d.name = (char *)(uintptr_t)name;
	d.at = at;
	d.zeroes = zeroes;
	d.sha256.data = sum;
	d.sha256.len = sum_len;
	struct ft_msg msg = {
		.type = FT_MSG_BITMAP, .body = body, .payload = data, .payload_len = len};
	msg.body_len = (uint32_t)ft__bitmap_data__pack(&d, body);
	return take(&msg);
}

static void test_hostile_data(void **state)
{
	static const uint8_t data[BITMAPS_PIECE + 8];
	(void)state;
	add_all();
	set_up();
	begin();
	uint64_t map = info_of(&target[0], "g512").map_bytes;
	assert_int_equal(say(0, "none", 0, 8, NULL, 0, 0), -EPROTO);
	assert_int_equal(say(7, "g512", 0, 8, NULL, 0, 0), -EPROTO);
	assert_int_equal(say(UINT32_MAX, "g512", 0, 8, NULL, 0, 0), -EPROTO);
	assert_int_equal(say(0, "g512", 0, 0, NULL, 0, 0), -EPROTO);
	assert_int_equal(say(0, "g512", 8, 8, NULL, 0, 0), -EPROTO); // not the next one
	assert_int_equal(say(0, "g512", 0, 7, NULL, 0, 0), -EPROTO);
	assert_int_equal(say(0, "g512", 0, UINT64_MAX & ~UINT64_C(7), NULL, 0, 0), -EPROTO);
	assert_int_equal(say(0, "g512", 0, map + 8, NULL, 0, 32), -EPROTO);
	assert_int_equal(say(0, "g512", 0, map, NULL, 0, 0), -EPROTO); // without its sum
	assert_int_equal(say(0, "g512", 0, map, NULL, 0, 31), -EPROTO);
	assert_int_equal(say(0, "g512", 0, 8, NULL, 0, 32), -EPROTO); // too early
	assert_int_equal(say(0, "g512", 0, 8, data, 8, 0), -EPROTO);
	assert_int_equal(say(0, "g512", 0, 0, data, 12, 0), -EPROTO);
	assert_int_equal(say(0, "g512", 0, 0, data, sizeof(data), 0), -EPROTO);
	struct ft_msg bad = {.type = FT_MSG_BITMAP, .body = data, .body_len = 30};
	assert_int_equal(take(&bad), -EPROTO);
	// Bits beyond the disk.
	uint8_t ones[8];
	memset(ones, 0xff, sizeof(ones));
	uint64_t last = info_of(&target[0], "g1048576").map_bytes;
	assert_int_equal(last, 8);
	assert_int_equal(say(0, "g1048576", 0, 0, ones, 8, 32), -EPROTO);
	assert_int_equal(say(0, "lost", 0, 8, NULL, 0, 0), 0); // on its way still, as if given up
	follow();
	expect_moved();
}

static void test_hostile_questions(void **state)
{
	static const struct {
		uint32_t disk;
		const char *name;
		uint64_t at;
		int rc;
	} cases[] = {
		{0, "none", 0, -EPROTO},
		{9, "g512", 0, -EPROTO},
		{UINT32_MAX, "g512", 0, -EPROTO},
		{0, "g512", 4, -EPROTO},
		{0, "g512", UINT64_MAX - 7, -EPROTO},
		{0, "g512", 8, 0},
		{0, "", 77, 0},
	};
	(void)state;
	add_all();
	describe();
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		uint8_t body[FT_MSG_BODY_SMALL];
		Ft__BitmapData d = FT__BITMAP_DATA__INIT;
		d.disk = cases[i].disk;
		d.name = (char *)(uintptr_t)cases[i].name;
		d.at = cases[i].at;
		struct ft_msg msg = {.body = body};
		msg.body_len = (uint32_t)ft__bitmap_data__pack(&d, body);
		assert_int_equal(giver.cargo.ops->go_on(&giver.cargo, &msg, &err), cases[i].rc);
	}
	struct ft_msg msg = {.body = (const uint8_t *)"\xff\xff", .body_len = 2};
	assert_int_equal(giver.cargo.ops->go_on(&giver.cargo, &msg, &err), -EPROTO);
	assert_false(next(&msg)); // nothing lacks
}

static void test_hostile_setup(void **state)
{
	static char long_name[200];
	Ft__Bitmap bad = FT__BITMAP__INIT, *list[BITMAPS_MAX + 1];
	Ft__Disk disk = FT__DISK__INIT;
	(void)state;
	memset(long_name, 'x', sizeof(long_name) - 1);
	static const struct {
		const char *name;
		uint32_t granularity;
		int rc;
	} cases[] = {{"", 4096, -EINVAL},	{"a/b", 4096, -EINVAL}, {long_name, 4096, -EINVAL},
		     {"a", 0, -EINVAL},		{"a", 511, -EINVAL},	{"a", 1u << 21, -EINVAL},
		     {"a", UINT32_MAX, -EINVAL}};
	disk.bitmaps = list;
	disk.n_bitmaps = 1;
	list[0] = &bad;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		bad.name = (char *)(uintptr_t)cases[i].name;
		bad.granularity = cases[i].granularity;
		assert_int_equal(bitmaps_taker_expect(&taker, 0, &store[0], &disk, &err),
				 cases[i].rc);
	}
	bad.name = long_name + sizeof(long_name) - 5;
	bad.granularity = 4096;
	list[1] = &bad;
	disk.n_bitmaps = 2;
	assert_int_equal(bitmaps_taker_expect(&taker, 0, &store[0], &disk, &err), -EEXIST);
	Ft__Bitmap many[BITMAPS_MAX + 1];
	char many_names[BITMAPS_MAX + 1][8];
	for (unsigned i = 0; i <= BITMAPS_MAX; i++) {
		snprintf(many_names[i], sizeof(many_names[i]), "m%u", i);
		many[i] = bad;
		many[i].name = many_names[i];
		list[i] = &many[i];
	}
	disk.n_bitmaps = BITMAPS_MAX + 1;
	assert_int_equal(bitmaps_taker_expect(&taker, 1, &store[1], &disk, &err), -ENOSPC);
}

// A checkpoint's records say nothing of what follows.
static void test_records_of_a_checkpoint(void **state)
{
	const uint8_t reset[] = {4, 0};
	const struct tap_record rec = {.kind = TAP_DISK_BITMAP, .len = 2, .data = reset};
	(void)state;
	add_all();
	set_up();
	assert_int_equal(bitmaps_apply(&store[0], &rec), -EPROTO);
	assert_int_equal(bitmaps_count(&store[0]), GRANULARITIES + 2);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_six_steps),	  TEST(test_lost_links),
		TEST(test_it_fails),	  TEST(test_found),
		TEST(test_given_up),	  TEST(test_damaged),
		TEST(test_hostile_data),  TEST(test_hostile_questions),
		TEST(test_hostile_setup), TEST(test_records_of_a_checkpoint),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
