// SPDX-License-Identifier: Apache-2.0
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "ft/throttle.h"

#define MS UINT64_C(1000000)

static void grows_to_its_bound(void **state)
{
	struct ft_throttle t = {0};
	unsigned before = 0;

	(void)state;
	ft_throttle_more(&t);
	assert_int_equal(t.percent, FT_THROTTLE_FIRST);
	while (t.percent < FT_THROTTLE_MAX) {
		before = t.percent;
		ft_throttle_more(&t);
		assert_true(t.percent > before);
	}
	ft_throttle_more(&t);
	assert_int_equal(t.percent, FT_THROTTLE_MAX);
}

/* Of ten seconds it stands still for its share, however late it is asked. */
static void holds_its_share(void **state)
{
	(void)state;
	for (unsigned late_ms = 0; late_ms <= 5; late_ms += 5) {
		struct ft_throttle t = {.percent = 40};
		uint64_t held = 0, from = 0;

		for (uint64_t now = MS; now < 10000 * MS; now = t.until_ns + late_ms * MS) {
			bool was = t.held;
			bool hold = ft_throttle_hold(&t, now);

			assert_true(t.until_ns > now);
			if (hold && !was)
				from = now;
			if (!hold && was)
				held += now - from;
		}
		assert_in_range(held / MS, 3700, 4300);
	}
}

static void asked_early(void **state)
{
	struct ft_throttle t = {.percent = 50};
	uint64_t until;

	(void)state;
	assert_true(ft_throttle_hold(&t, 1000 * MS));
	until = t.until_ns;
	assert_int_equal(until, 1050 * MS);
	assert_true(ft_throttle_hold(&t, 1049 * MS));
	assert_int_equal(t.until_ns, until);
	assert_false(ft_throttle_hold(&t, 1050 * MS));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(grows_to_its_bound),
		cmocka_unit_test(holds_its_share),
		cmocka_unit_test(asked_early),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
