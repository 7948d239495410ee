// SPDX-License-Identifier: Apache-2.0
// Each way in which a start of the guest can begin, and what the rule says to it.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "ft/start_rule.h"

static struct ft_err err;

static struct ft_start_question question(const char *arbiter, bool elsewhere,
					 const struct ft_grant_record *record)
{
	return (struct ft_start_question){.host_id = "a",
					  .elsewhere = elsewhere,
					  .memory = "/run/guest.memory",
					  .arbiter = arbiter,
					  .record = record,
					  .why = "timed out"};
}

static void without_an_arbiter_memory_decides(void **state)
{
	(void)state;
	struct ft_start_question q = question("none", false, NULL);
	assert_int_equal(ft_start_rule(&q, &err), FT_START);
	q.elsewhere = true;
	assert_int_equal(ft_start_rule(&q, &err), -EPERM);
	assert_non_null(strstr(err.text, "/run/guest.memory"));
}

static void a_silent_arbiter_grants_nothing(void **state)
{
	(void)state;
	struct ft_start_question q = question("etcd", false, NULL);
	assert_int_equal(ft_start_rule(&q, &err), -EAGAIN);
	assert_non_null(strstr(err.text, "timed out"));
}

static void the_record_decides(void **state)
{
	(void)state;
	struct ft_grant_record none = {0}, other = {.generation = 4, .holder = "b"},
			       ours = {.generation = 4,
				       .holder = "a",
				       .in_sync = true,
				       .partner = "b"};
	struct ft_start_question q = question("file", true, &none);
	assert_int_equal(ft_start_rule(&q, &err), FT_START);
	q.record = &other;
	assert_int_equal(ft_start_rule(&q, &err), -EPERM);
	assert_non_null(strstr(err.text, "host b holds the guest (generation 4)"));
	// Ours, but the standby may be granted it at any moment.
	q.record = &ours;
	assert_int_equal(ft_start_rule(&q, &err), -EPERM);
	assert_non_null(strstr(err.text, "standby b may take over"));
	ours.in_sync = false;
	assert_int_equal(ft_start_rule(&q, &err), FT_START_AFTER_CLAIM);
	struct ft_grant_record claim = ft_start_claim(&q);
	assert_int_equal(claim.generation, 5);
	assert_string_equal(claim.holder, "a");
	assert_false(claim.in_sync);
	assert_string_equal(claim.partner, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(without_an_arbiter_memory_decides),
		cmocka_unit_test(a_silent_arbiter_grants_nothing),
		cmocka_unit_test(the_record_decides),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
