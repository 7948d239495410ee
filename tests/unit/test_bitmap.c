// SPDX-License-Identifier: Apache-2.0
/* The bitmap against an array of bools, and its edges. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ft/bitmap.h"

#define MODEL_BITS 517 /* neither a multiple of 64 nor small */

static unsigned rnd(unsigned n)
{
	static uint64_t x = 88172645463325252u;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return (unsigned)(x % n);
}

static void assert_same(const struct ft_bitmap *b, const bool *model)
{
	uint64_t count = 0, at = 0;

	for (uint64_t i = 0; i < MODEL_BITS; i++) {
		assert_int_equal(ft_bitmap_test(b, i), model[i]);
		count += model[i];
	}
	assert_int_equal(b->count, count);
	for (uint64_t i = 0; i < MODEL_BITS; i++) {
		if (!model[i])
			continue;
		assert_int_equal(ft_bitmap_next(b, at), i);
		at = i + 1;
	}
	assert_int_equal(ft_bitmap_next(b, at), MODEL_BITS);
}

static void test_model(void **state)
{
	bool model[MODEL_BITS] = {0}, other_model[MODEL_BITS] = {0};
	struct ft_bitmap b, other;

	(void)state;
	assert_int_equal(ft_bitmap_init(&b, MODEL_BITS), 0);
	assert_int_equal(ft_bitmap_init(&other, MODEL_BITS), 0);
	for (int round = 0; round < 3000; round++) {
		unsigned first = rnd(MODEL_BITS), n = rnd(MODEL_BITS - first + 1);

		switch (rnd(6)) {
		case 0:
			ft_bitmap_set(&b, first);
			model[first] = true;
			break;
		case 1:
			ft_bitmap_clear(&b, first);
			model[first] = false;
			break;
		case 2:
			ft_bitmap_set_range(&b, first, n);
			memset(model + first, true, n);
			break;
		case 3:
			ft_bitmap_clear_range(&b, first, n);
			memset(model + first, false, n);
			break;
		case 4:
			ft_bitmap_set(&other, first);
			other_model[first] = true;
			break;
		case 5:
			ft_bitmap_merge(&b, &other);
			for (int i = 0; i < MODEL_BITS; i++)
				model[i] |= other_model[i];
			ft_bitmap_clear_all(&other);
			memset(other_model, 0, sizeof other_model);
			break;
		}
		assert_same(&b, model);
	}
	assert_same(&other, other_model);
	ft_bitmap_free(&other);
	ft_bitmap_free(&b);
}

static void test_all(void **state)
{
	static const uint64_t sizes[] = {1, 63, 64, 65, 128, 100000};

	(void)state;
	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
		uint64_t bits = sizes[i];
		struct ft_bitmap b, whole;

		assert_int_equal(ft_bitmap_init(&b, bits), 0);
		assert_int_equal(b.count, 0);
		assert_int_equal(ft_bitmap_next(&b, 0), bits);
		ft_bitmap_set_all(&b);
		assert_int_equal(b.count, bits);
		assert_int_equal(ft_bitmap_next(&b, bits - 1), bits - 1);
		/* No bit beyond the end may leak by way of a merge. */
		assert_int_equal(ft_bitmap_init(&whole, bits), 0);
		ft_bitmap_merge(&whole, &b);
		ft_bitmap_merge(&whole, &b);
		assert_int_equal(whole.count, bits);
		ft_bitmap_clear_all(&b);
		assert_int_equal(b.count, 0);
		assert_int_equal(ft_bitmap_next(&b, 0), bits);
		ft_bitmap_free(&whole);
		ft_bitmap_free(&b);
		assert_null(b.words);
	}
}

static void test_edges(void **state)
{
	struct ft_bitmap b;

	(void)state;
	assert_int_equal(ft_bitmap_init(&b, 0), 0);
	ft_bitmap_set_all(&b);
	assert_int_equal(ft_bitmap_next(&b, 0), 0);
	assert_int_equal(b.count, 0);
	ft_bitmap_free(&b);

	assert_int_equal(ft_bitmap_init(&b, 200), 0);
	ft_bitmap_set_range(&b, 200, 0);
	ft_bitmap_set_range(&b, 64, 64);
	assert_int_equal(b.count, 64);
	assert_int_equal(ft_bitmap_next(&b, 0), 64);
	assert_int_equal(ft_bitmap_next(&b, 128), 200);
	assert_int_equal(ft_bitmap_next(&b, 5000), 200);
	ft_bitmap_set(&b, 64);
	assert_int_equal(b.count, 64);
	ft_bitmap_clear(&b, 0);
	assert_int_equal(b.count, 64);
	ft_bitmap_free(&b);
}

static void test_out_of_memory(void **state)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	(void)state;
	skip(); /* there, calloc() aborts instead */
#else
	struct ft_bitmap b;

	(void)state;
	assert_int_equal(ft_bitmap_init(&b, UINT64_MAX), -12);
#endif
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_model),
		cmocka_unit_test(test_all),
		cmocka_unit_test(test_edges),
		cmocka_unit_test(test_out_of_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
