// SPDX-License-Identifier: Apache-2.0
// Waiting awake: a bounded time, and less and less often where it is of no use.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/fixture/clock.h"
#include "transport/awake.h"

static bool wait_in_vain(struct awake *a)
{
	bool awake = awake_begin(a);

	while (awake && awake_wait(a))
		;
	assert_false(awake_end(a, false));
	return awake;
}

static void a_wait_has_its_bound(void **state)
{
	uint64_t shortest = UINT64_MAX;

	(void)state;
	for (unsigned i = 0; i < 20; i++) { /* one of which nobody interrupted */
		struct awake a = {0};
		uint64_t start = now_ns(), took;

		assert_true(wait_in_vain(&a));
		took = now_ns() - start;
		assert_true(took >= AWAKE_MAX_US * 1000);
		shortest = took < shortest ? took : shortest;
	}
	assert_true(shortest < AWAKE_MAX_US * 3000);
}

static unsigned tried(struct awake *a, unsigned waits)
{
	unsigned n = 0;

	while (waits--)
		n += wait_in_vain(a);
	return n;
}

static void vain_waits_become_rare(void **state)
{
	struct awake a = {0};

	(void)state;
	assert_int_equal(tried(&a, AWAKE_VAIN_MAX), AWAKE_VAIN_MAX);
	assert_int_equal(tried(&a, AWAKE_EVERY - 1), 0);
	assert_int_equal(tried(&a, 1), 1);
	assert_int_equal(tried(&a, 5 * AWAKE_EVERY), 5);
}

static void one_that_was_of_use_brings_them_back(void **state)
{
	struct awake a = {0};

	(void)state;
	tried(&a, AWAKE_VAIN_MAX);
	while (!awake_begin(&a))
		awake_end(&a, false);
	assert_true(awake_end(&a, true));
	assert_int_equal(tried(&a, AWAKE_VAIN_MAX), AWAKE_VAIN_MAX);
	assert_int_equal(tried(&a, 1), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_wait_has_its_bound),
		cmocka_unit_test(vain_waits_become_rare),
		cmocka_unit_test(one_that_was_of_use_brings_them_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
