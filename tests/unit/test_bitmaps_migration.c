// SPDX-License-Identifier: Apache-2.0
// Bitmaps that move with a guest, marked at both ends while they do; and migrations that fail at
// any point. Those that come after a guest that runs already are in test_bitmaps_follow.c.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>

#include "tests/fixture/bitmaps_lab.h"

static void announce(void)
{
	struct bitmap_info info;
	bitmaps_outgoing_begin(&maps.own);
	for (unsigned i = 0; bitmaps_info(&maps.own, i, &info); i++)
		if (!info.inconsistent)
			assert_int_equal(bitmaps_incoming_add(&maps.peer, &info, &maps.err), 0);
}

static void send_map(const char *name, size_t chunk)
{
	uint8_t piece[4096];
	struct bitmap_info info = bitmaps_lab_info(&maps.own, name);
	for (uint64_t at = 0; at < info.map_bytes; at += chunk) {
		size_t len = info.map_bytes - at < chunk ? (size_t)(info.map_bytes - at) : chunk;
		assert_int_equal(bitmaps_read(&maps.own, name, at, piece, len), 0);
		assert_int_equal(bitmaps_incoming_put(&maps.peer, name, at, piece, len, &maps.err),
				 0);
	}
}

static void test_migration(void **state)
{
	(void)state;
	bitmaps_lab_add();
	assert_int_equal(bitmaps_add(&maps.own, "off", 4096, &maps.err), 0);
	bitmaps_mark(&maps.own, 100000, 5000);
	for (unsigned i = 0; i < BITMAPS_LAB_GRANULARITIES; i++)
		bitmap_model_mark(&maps.models[i], 100000, 5000);
	assert_int_equal(bitmaps_enable(&maps.own, "off", false, &maps.err), 0);
	uint64_t off = bitmaps_lab_info(&maps.own, "off").dirty_bytes;
	bitmaps_lab_write(&maps.own, 10);
	announce();
	assert_int_equal(bitmaps_clear(&maps.own, maps.names[0], &maps.err), -EBUSY);
	assert_int_equal(bitmaps_remove(&maps.peer, maps.names[0], &maps.err), -EBUSY);
	bitmaps_lab_write(&maps.own, 10); // precopy: at the source only
	bitmaps_mark(&maps.peer, 0, BITMAPS_LAB_BYTES);
	assert_int_equal(bitmaps_lab_info(&maps.peer, maps.names[0]).dirty_bytes, 0);
	bitmaps_incoming_run(&maps.peer); // the switch
	bitmaps_lab_write(&maps.peer, 10);
	for (unsigned i = 0; i < BITMAPS_LAB_GRANULARITIES; i++) {
		bitmaps_lab_write(&maps.peer, 1); // while the data come
		send_map(maps.names[i], 64 << i % 7);
		bitmaps_lab_write(&maps.peer, 1);
		assert_int_equal(bitmaps_incoming_end(&maps.peer, maps.names[i], &maps.err), 0);
		bitmap_model_expect(&maps.peer, maps.names[i], &maps.models[i]);
	}
	send_map("off", 4096);
	assert_int_equal(bitmaps_incoming_end(&maps.peer, "off", &maps.err), 0);
	assert_int_equal(bitmaps_incoming_end(&maps.peer, "off", &maps.err), -EPROTO);
	uint8_t word[8] = {0};
	assert_int_equal(bitmaps_incoming_put(&maps.peer, "off", 0, word, 8, &maps.err), -EPROTO);
	bitmaps_incoming_finish(&maps.peer);
	bitmaps_lab_write(&maps.peer, 10);
	bitmaps_lab_expect(&maps.peer);
	assert_false(bitmaps_lab_info(&maps.peer, "off").enabled);
	assert_int_equal(bitmaps_lab_info(&maps.peer, "off").dirty_bytes, off);
	bitmaps_incoming_cancel(&maps.peer); // it is over: nothing is cancelled
	assert_int_equal(bitmaps_count(&maps.peer), BITMAPS_LAB_GRANULARITIES + 1);
}

// It fails at any point: the source is as before, at the target there is what was there before.
static void test_migration_fails(void **state)
{
	(void)state;
	for (unsigned when = 0; when < 4; when++) {
		bitmaps_lab_again(&maps.own);
		bitmaps_lab_again(&maps.peer);
		bitmaps_lab_add();
		assert_int_equal(bitmaps_add(&maps.peer, "mine", 4096, &maps.err), 0);
		bitmaps_lab_write(&maps.own, 10);
		announce();
		bitmaps_lab_write(&maps.own, 5);
		if (when > 0)
			bitmaps_incoming_run(&maps.peer);
		if (when > 1)
			send_map(maps.names[4], 8);
		if (when > 2)
			assert_int_equal(bitmaps_incoming_end(&maps.peer, maps.names[4], &maps.err),
					 0);
		bitmaps_mark(&maps.peer, 0, 10);
		bitmaps_incoming_cancel(&maps.peer);
		assert_int_equal(bitmaps_count(&maps.peer), 1);
		assert_true(bitmaps_lab_has(&maps.peer, "mine"));
		bitmaps_outgoing_end(&maps.own);
		bitmaps_lab_write(&maps.own, 5);
		bitmaps_lab_expect(&maps.own);
		assert_int_equal(bitmaps_clear(&maps.own, maps.names[0], &maps.err), 0);
		assert_true(bitmaps_lab_info(&maps.own, maps.names[1]).enabled);
	}
	const struct bitmap_info mine = {.name = "mine", .granularity = 4096},
				 odd = {.name = "x", .granularity = 100};
	assert_int_equal(bitmaps_incoming_add(&maps.peer, &mine, &maps.err), -EEXIST);
	assert_int_equal(bitmaps_incoming_add(&maps.peer, &odd, &maps.err), -EINVAL);
	bitmaps_incoming_cancel(&maps.peer);
	assert_int_equal(bitmaps_count(&maps.peer), 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_migration, bitmaps_lab_setup,
						bitmaps_lab_teardown),
		cmocka_unit_test_setup_teardown(test_migration_fails, bitmaps_lab_setup,
						bitmaps_lab_teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
