// SPDX-License-Identifier: Apache-2.0
// Bitmaps that go to a standby with checkpoints: what it has then, and records that are damaged or
// that lie.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fixture/bitmaps_lab.h"

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
	assert_int_equal(bitmaps_log(&maps.own, 3, emit, &wire), 0);
	for (size_t at = 0; at < wire.len;) {
		long n = tap_record_parse(wire.bytes + at, wire.len - at, &rec, NULL);
		assert_true(n > 0);
		assert_int_equal(rec.device, 3);
		assert_int_equal(bitmaps_apply(&maps.peer, &rec), 0);
		at += (size_t)n;
	}
	len = wire.len;
	wire.len = 0;
	return len;
}

static void expect_equal_sets(void)
{
	assert_int_equal(bitmaps_count(&maps.own), bitmaps_count(&maps.peer));
	struct bitmap_info a, b;
	for (unsigned i = 0; bitmaps_info(&maps.own, i, &a); i++) {
		assert_true(bitmaps_info(&maps.peer, i, &b));
		assert_memory_equal(&a, &b, sizeof(a));
	}
}

static void test_checkpoints(void **state)
{
	(void)state;
	assert_int_equal(checkpoint(), 0); // nobody has any
	bitmaps_lab_write(&maps.own, 3);
	bitmaps_lab_add();
	bitmaps_lab_write(&maps.own, 10);
	bitmaps_tell_all(&maps.own);
	size_t whole = checkpoint();
	expect_equal_sets();
	bitmaps_lab_expect(&maps.peer);
	assert_int_equal(checkpoint(), 0); // changes only
	bitmaps_mark(&maps.own, 5 * 65536, 1);
	for (unsigned i = 0; i < BITMAPS_LAB_GRANULARITIES; i++)
		bitmap_model_mark(&maps.models[i], 5 * 65536, 1);
	size_t little = checkpoint();
	assert_true(little < BITMAPS_LAB_GRANULARITIES * 128 && little < whole);
	for (unsigned round = 0; round < 40; round++) {
		unsigned which = (unsigned)rand() % BITMAPS_LAB_GRANULARITIES;
		bitmaps_lab_write(&maps.own, 2);
		if (round % 5 == 1) {
			assert_int_equal(bitmaps_clear(&maps.own, maps.names[which], &maps.err), 0);
			memset(maps.models[which].bits, 0, sizeof(maps.models[which].bits));
		}
		if (round % 7 == 2) { // a checkpoint that does not fit: the next one tells all
			wire.fail_at = 1 + (unsigned)rand() % 6;
			wire.records = 0;
			(void)bitmaps_log(&maps.own, 3, emit, &wire);
			wire.fail_at = 0;
			// What was logged stays logged and goes first.
			bitmaps_lab_write(&maps.own, 1);
		}
		(void)checkpoint();
		bitmaps_lab_expect(&maps.peer);
		expect_equal_sets();
	}
	assert_int_equal(bitmaps_enable(&maps.own, maps.names[2], false, &maps.err), 0);
	assert_int_equal(bitmaps_remove(&maps.own, maps.names[5], &maps.err), 0);
	(void)checkpoint();
	expect_equal_sets();
	while (bitmaps_count(&maps.own)) {
		struct bitmap_info info;
		assert_true(bitmaps_info(&maps.own, 0, &info));
		assert_int_equal(bitmaps_remove(&maps.own, info.name, &maps.err), 0);
	}
	(void)checkpoint();
	assert_int_equal(bitmaps_count(&maps.peer), 0);
	free(wire.bytes);
	wire = (struct wire){0};
}

static int apply(uint64_t arg, const void *data, size_t len)
{
	const struct tap_record rec = {
		.kind = TAP_DISK_BITMAP, .arg = arg, .len = (uint32_t)len, .data = data};
	return bitmaps_apply(&maps.peer, &rec);
}

static size_t wire_of_one(void)
{
	bitmaps_lab_again(&maps.own);
	bitmaps_lab_again(&maps.peer);
	wire.len = 0;
	assert_int_equal(bitmaps_add(&maps.own, "one", 4096, &maps.err), 0);
	bitmaps_mark(&maps.own, 123456, 100000);
	wire.records = 0;
	assert_int_equal(bitmaps_log(&maps.own, 3, emit, &wire), 0);
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
			assert_int_equal(bitmaps_apply(&maps.peer, &rec), 0);
			at += (size_t)n;
		}
		assert_int_equal(bitmaps_lab_info(&maps.peer, "one").inconsistent, damage);
		assert_int_equal(bitmaps_lab_info(&maps.peer, "one").enabled, !damage);
	}
	assert_int_equal(sums, 2);
	// One that is being backed up is told with the marks of both halves, and so is its sum.
	bitmaps_lab_again(&maps.peer);
	assert_int_equal(bitmaps_backup_begin(&maps.own, "one", &maps.err), 0);
	bitmaps_mark(&maps.own, 2000000, 5000);
	bitmaps_tell_all(&maps.own);
	(void)checkpoint();
	assert_false(bitmaps_lab_info(&maps.peer, "one").inconsistent);
	assert_int_equal(bitmaps_lab_info(&maps.peer, "one").dirty_bytes,
			 bitmaps_lab_info(&maps.own, "one").dirty_bytes);
	bitmaps_backup_end(&maps.own, "one", false);
	maps.peer.list[0].map->inconsistent = true;
	// What spoils it is not taken back by the next change.
	assert_int_equal(bitmaps_enable(&maps.own, "one", false, &maps.err), 0);
	assert_int_equal(bitmaps_enable(&maps.own, "one", true, &maps.err), 0);
	(void)checkpoint();
	assert_true(bitmaps_lab_info(&maps.peer, "one").inconsistent);
	const uint8_t cut[] = {5, 3, 'o', 'n', 'e', 1, 2, 3}, none[34] = {5, 0};
	rec = (struct tap_record){.kind = TAP_DISK_BITMAP, .len = sizeof(cut), .data = cut};
	assert_int_equal(bitmaps_apply(&maps.peer, &rec), -EPROTO);
	rec = (struct tap_record){.kind = TAP_DISK_BITMAP, .len = sizeof(none), .data = none};
	assert_int_equal(bitmaps_apply(&maps.peer, &rec), -EPROTO);
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
	assert_int_equal(bitmaps_lab_info(&maps.peer, "a").dirty_bytes, 2 * 65536);
	assert_int_equal(APPLY(0, "\3\1a\10\0\0\0\0\0\0\0"), 0);
	assert_int_equal(bitmaps_lab_info(&maps.peer, "a").dirty_bytes, 0);
	assert_int_equal(APPLY(0, "\4\0"), 0);
	assert_int_equal(bitmaps_count(&maps.peer), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_checkpoints, bitmaps_lab_setup,
						bitmaps_lab_teardown),
		cmocka_unit_test_setup_teardown(test_damaged_checkpoint, bitmaps_lab_setup,
						bitmaps_lab_teardown),
		cmocka_unit_test_setup_teardown(test_hostile_records, bitmaps_lab_setup,
						bitmaps_lab_teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
