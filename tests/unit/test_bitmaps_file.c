// SPDX-License-Identifier: Apache-2.0
// The bitmaps' file beside the image, after every kind of end and at every damaged byte.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "tests/fixture/bitmaps_lab.h"

static void load(bool known)
{
	bitmaps_lab_again(&maps.own);
	bitmaps_load(&maps.own, known);
}

static void test_file(void **state)
{
	(void)state;
	load(true);
	assert_int_equal(bitmaps_count(&maps.own), 0);
	assert_int_equal(bitmaps_save(&maps.own, true, &maps.err), 0);
	assert_false(bitmaps_exist(maps.image));
	bitmaps_lab_add();
	bitmaps_lab_write(&maps.own, 20);
	assert_int_equal(bitmaps_enable(&maps.own, maps.names[3], false, &maps.err), 0);
	assert_int_equal(bitmaps_save(&maps.own, false, &maps.err), 0);
	assert_true(bitmaps_exist(maps.image));
	load(true);
	bitmaps_lab_expect(&maps.own);
	assert_false(bitmaps_lab_info(&maps.own, maps.names[3]).enabled);
	assert_true(bitmaps_lab_info(&maps.own, maps.names[4]).enabled);

	// In use when it all ended, or the image was written by others.
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(bitmaps_save(&maps.own, i == 0, &maps.err), 0);
		load(i == 0);
		assert_true(bitmaps_lab_info(&maps.own, maps.names[4]).inconsistent);
		assert_false(bitmaps_lab_info(&maps.own, maps.names[3]).inconsistent);
		bitmap_model_expect(&maps.own, maps.names[3], &maps.models[3]);
		uint64_t len = 1;
		bool dirty;
		assert_int_equal(bitmaps_at(&maps.own, maps.names[4], 0, &len, &dirty), -ENOENT);
		assert_int_equal(bitmaps_enable(&maps.own, maps.names[4], true, &maps.err),
				 -EINVAL);
		assert_non_null(strstr(maps.err.text, "inconsistent"));
		assert_int_equal(bitmaps_clear(&maps.own, maps.names[4], &maps.err), -EINVAL);
		bitmaps_mark(&maps.own, 0, 1);
		load(true); // nothing was saved
		assert_int_equal(bitmaps_remove(&maps.own, maps.names[4], &maps.err), 0);
		bitmaps_lab_again(&maps.own);
		bitmaps_lab_add();
		assert_int_equal(bitmaps_enable(&maps.own, maps.names[3], false, &maps.err), 0);
		maps.models[3] = (struct bitmap_model){.granularity = maps.models[3].granularity};
	}
	// Frozen under a successor: saved as if it had been reclaimed.
	bitmaps_lab_again(&maps.own);
	bitmaps_lab_add();
	bitmaps_lab_write(&maps.own, 5);
	assert_int_equal(ft_dirty_freeze(maps.own.list[2].map), 0);
	bitmaps_lab_write(&maps.own, 5);
	assert_int_equal(bitmaps_save(&maps.own, false, &maps.err), 0);
	load(true);
	bitmaps_lab_expect(&maps.own);
	assert_true(bitmaps_lab_info(&maps.own, maps.names[2]).enabled);
	// Not arrived: of no use to whoever loads it, and no map is kept.
	bitmaps_lab_again(&maps.own);
	const struct bitmap_info coming = {.name = "coming", .granularity = 4096, .enabled = true};
	assert_int_equal(bitmaps_incoming_add(&maps.own, &coming, &maps.err), 0);
	bitmaps_incoming_run(&maps.own);
	bitmaps_mark(&maps.own, 0, 4096);
	assert_int_equal(bitmaps_save(&maps.own, false, &maps.err), 0);
	load(true);
	assert_true(bitmaps_lab_info(&maps.own, "coming").inconsistent);
	assert_int_equal(bitmaps_lab_info(&maps.own, "coming").dirty_bytes, 0);
	while (bitmaps_count(&maps.own))
		assert_int_equal(bitmaps_remove(&maps.own, maps.own.list[0].map->name, &maps.err),
				 0);
	assert_int_equal(bitmaps_save(&maps.own, true, &maps.err), 0);
	assert_false(bitmaps_exist(maps.image));
}

// Every byte of it damaged, and every beginning of it: never taken for what it was.
static void test_damaged_file(void **state)
{
	(void)state;
	static uint8_t bytes[4096];
	assert_int_equal(bitmaps_add(&maps.own, "one", 65536, &maps.err), 0);
	assert_int_equal(bitmaps_add(&maps.own, "two", 4096, &maps.err), 0);
	bitmaps_mark(&maps.own, 123456, 100000);
	assert_int_equal(bitmaps_save(&maps.own, false, &maps.err), 0);
	int fd = open(maps.file, O_RDONLY);
	ssize_t len = read(fd, bytes, sizeof(bytes));
	close(fd);
	assert_in_range(len, 100, sizeof(bytes) - 1);
	bool in_use = true;
	assert_int_equal(bitmaps_parse(&maps.peer, bytes, (size_t)len, &in_use), 0);
	assert_false(in_use);
	assert_int_equal(bitmaps_count(&maps.peer), 2);
	for (ssize_t i = 0; i < len; i++) {
		bitmaps_lab_again(&maps.peer);
		bytes[i] ^= 0x20;
		assert_int_equal(bitmaps_parse(&maps.peer, bytes, (size_t)len, &in_use), -EBADMSG);
		bytes[i] ^= 0x20;
		assert_int_equal(bitmaps_parse(&maps.peer, bytes, (size_t)i, &in_use), -EBADMSG);
		assert_int_equal(bitmaps_count(&maps.peer), 0);
	}
	bitmaps_free(&maps.peer);
	bitmaps_init(&maps.peer, maps.image, BITMAPS_LAB_BYTES + 1);
	assert_int_equal(bitmaps_parse(&maps.peer, bytes, (size_t)len, &in_use), -EFBIG);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_file, bitmaps_lab_setup, bitmaps_lab_teardown),
		cmocka_unit_test_setup_teardown(test_damaged_file, bitmaps_lab_setup,
						bitmaps_lab_teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
