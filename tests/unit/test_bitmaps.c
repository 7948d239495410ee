// SPDX-License-Identifier: Apache-2.0
// Named dirty bitmaps against arrays of bools, in every granularity: what operators do with them,
// marks, and successors.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fixture/bitmaps_lab.h"

// ---- operators ----

static void test_operators(void **state)
{
	(void)state;
	static const char too_long[] = "0123456789012345678901234567890123456789"
				       "01234567890123456789abcd";
	static const char *const bad[] = {"", "-x", "a b", "a/b", "a:b", ".x", too_long};
	static const uint32_t wrong[] = {0, 1, 256, 513, 768, 2u << 20, UINT32_MAX};
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		assert_int_equal(bitmaps_add(&maps.own, bad[i], 512, &maps.err), -EINVAL);
	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++)
		assert_int_equal(bitmaps_add(&maps.own, "a", wrong[i], &maps.err), -EINVAL);
	assert_int_equal(bitmaps_count(&maps.own), 0);
	for (unsigned i = 0; i < BITMAPS_MAX; i++) {
		char name[8];
		snprintf(name, sizeof(name), "a%u", i);
		assert_int_equal(bitmaps_add(&maps.own, name, 65536, &maps.err), 0);
		assert_int_equal(bitmaps_add(&maps.own, name, 65536, &maps.err), -EEXIST);
	}
	assert_int_equal(bitmaps_add(&maps.own, "more", 65536, &maps.err), -ENOSPC);
	assert_non_null(strstr(maps.err.text, "bitmap more: a disk has at most 16"));
	assert_int_equal(bitmaps_remove(&maps.own, "more", &maps.err), -ENOENT);
	assert_int_equal(bitmaps_enable(&maps.own, "a3", false, &maps.err), 0);
	bitmaps_mark(&maps.own, 0, 1);
	assert_int_equal(bitmaps_lab_info(&maps.own, "a3").dirty_bytes, 0);
	assert_int_equal(bitmaps_lab_info(&maps.own, "a4").dirty_bytes, 65536);
	assert_int_equal(bitmaps_enable(&maps.own, "a3", true, &maps.err), 0);
	bitmaps_mark(&maps.own, 70000, 1);
	assert_int_equal(bitmaps_lab_info(&maps.own, "a3").dirty_bytes, 65536);
	assert_int_equal(bitmaps_lab_info(&maps.own, "a4").dirty_bytes, 2 * 65536);
	assert_int_equal(bitmaps_clear(&maps.own, "a4", &maps.err), 0);
	assert_int_equal(bitmaps_lab_info(&maps.own, "a4").dirty_bytes, 0);
	assert_int_equal(bitmaps_remove(&maps.own, "a0", &maps.err), 0);
	assert_int_equal(bitmaps_lab_info(&maps.own, "a3").dirty_bytes, 65536);
	assert_false(bitmaps_lab_has(&maps.own, "a0"));
	// What is too fine for a large disk says what would do.
	struct bitmaps large;
	bitmaps_init(&large, maps.image, UINT64_C(1) << 42);
	assert_int_equal(bitmaps_add(&large, "a", 512, &maps.err), -EINVAL);
	assert_non_null(strstr(maps.err.text, "from 65536 to 1048576"));
	assert_int_equal(bitmaps_add(&large, "a", 65536, &maps.err), 0);
	bitmaps_free(&large);
}

static void test_marks(void **state)
{
	(void)state;
	bitmaps_lab_add();
	for (unsigned round = 0; round < 20; round++) {
		bitmaps_lab_write(&maps.own, 5);
		bitmaps_lab_expect(&maps.own);
	}
	bitmaps_mark(&maps.own, BITMAPS_LAB_BYTES - 1, 1);
	for (unsigned i = 0; i < BITMAPS_LAB_GRANULARITIES; i++)
		bitmap_model_mark(&maps.models[i], BITMAPS_LAB_BYTES - 1, 1);
	bitmaps_lab_expect(&maps.own);
}

// ---- the object with its successor ----

static unsigned units(uint32_t granularity)
{
	return (BITMAPS_LAB_BYTES + granularity - 1) / granularity;
}

static void test_successors(void **state)
{
	(void)state;
	for (uint32_t g = FT_DIRTY_GRANULARITY_MIN; g <= FT_DIRTY_GRANULARITY_MAX; g *= 2) {
		static struct bitmap_model old, now;
		struct ft_dirty_bitmap *b;
		uint64_t offset, len;
		old = now = (struct bitmap_model){.granularity = g};
		assert_int_equal(ft_dirty_new("b", BITMAPS_LAB_BYTES, g, &b), 0);
		for (unsigned round = 0; round < 30; round++) {
			bitmaps_lab_range(&offset, &len);
			ft_dirty_mark(b, offset, len);
			bitmap_model_mark(b->successor ? &now : &old, offset, len);
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
		ft_dirty_mark(b, 0, BITMAPS_LAB_BYTES);
		assert_int_equal(ft_dirty_count_bytes(b), 0);
		ft_dirty_enable(b, true);
		ft_dirty_mark(b, 0, 1);
		assert_int_equal(ft_dirty_count_bytes(b), g);
		ft_dirty_reclaim(b);
		assert_true(b->enabled);
		ft_dirty_free(b);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_operators, bitmaps_lab_setup,
						bitmaps_lab_teardown),
		cmocka_unit_test_setup_teardown(test_marks, bitmaps_lab_setup,
						bitmaps_lab_teardown),
		cmocka_unit_test_setup_teardown(test_successors, bitmaps_lab_setup,
						bitmaps_lab_teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
