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

static enum store_right right;

static struct ft_start_question question(const char *arbiter, bool elsewhere,
					 const struct ft_grant_record *record)
{
	return (struct ft_start_question){.host_id = "a",
					  .elsewhere = elsewhere,
					  .guarded = 4,
					  .peer = "",
					  .arbiter = arbiter,
					  .record = record,
					  .why = "timed out"};
}

static void without_an_arbiter_memory_decides(void **state)
{
	(void)state;
	struct ft_start_question q = question("none", false, NULL);
	assert_int_equal(ft_start_rule(&q, &right, &err), FT_START);
	assert_int_equal(right, STORE_RIGHT_NONE);
	q.elsewhere = true;
	assert_int_equal(ft_start_rule(&q, &right, &err), -EPERM);
	assert_non_null(strstr(err.text, "its address is not known here"));
}

static void a_silent_arbiter_grants_nothing(void **state)
{
	(void)state;
	struct ft_start_question q = question("etcd", false, NULL);
	assert_int_equal(ft_start_rule(&q, &right, &err), -EAGAIN);
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
	assert_int_equal(ft_start_rule(&q, &right, &err), FT_START);
	assert_int_equal(right, STORE_RIGHT_NONE);
	q.record = &other;
	assert_int_equal(ft_start_rule(&q, &right, &err), -EPERM);
	assert_non_null(strstr(err.text, "host b holds the guest (generation 4)"));
	// Ours, but the standby may be granted it at any moment.
	q.record = &ours;
	assert_int_equal(ft_start_rule(&q, &right, &err), -EPERM);
	assert_non_null(strstr(err.text, "standby b may take over"));
	ours.in_sync = false;
	assert_int_equal(ft_start_rule(&q, &right, &err), FT_START_AFTER_CLAIM);
	assert_int_equal(right, STORE_RIGHT_GRANTED);
	struct ft_grant_record claim = ft_start_claim(&q);
	assert_int_equal(claim.generation, 5);
	assert_string_equal(claim.holder, "a");
	assert_false(claim.in_sync);
	assert_string_equal(claim.partner, "");
}

// Its host went down too, and it never had the guest.
static const struct ft_start_standby empty = {.waits = true, .generation = 4};

// Only then; and who is not known, or was asked, is not asked.
static void the_standby_of_before_decides(void **state)
{
	(void)state;
	struct ft_grant_record ours = {
		.generation = 4, .holder = "a", .in_sync = true, .partner = "b"};
	struct ft_start_standby holds = empty, newer = empty, runs = empty, something = empty;
	holds.committed = 7;
	newer.generation = 5;
	runs.runs = true;
	something.waits = false;
	const struct {
		const struct ft_start_standby *says;
		const char *text; // NULL: may start
	} cases[] = {{&empty, NULL},
		     {&holds, "b.sock has generation 4, checkpoint 7"},
		     {&newer, "b.sock has generation 5, checkpoint 0"},
		     {&runs, "b.sock runs it under generation 4"},
		     {&something, "b.sock has generation 4"},
		     {NULL, "b.sock does not answer: refused"}};
	for (int file = 0; file < 2; file++) {
		struct ft_start_question q =
			question(file ? "file" : "none", true, file ? &ours : NULL);
		q.peer = "b.sock";
		assert_int_equal(ft_start_rule(&q, &right, &err), FT_START_ASK_STANDBY);
		q.asked = true;
		q.standby_why = "refused";
		for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
			q.standby = cases[i].says;
			int rc = ft_start_rule(&q, &right, &err);
			if (cases[i].text) {
				assert_int_equal(rc, -EPERM);
				assert_non_null(strstr(err.text, cases[i].text));
			} else {
				assert_int_equal(rc, file ? FT_START_AFTER_CLAIM : FT_START);
				assert_int_equal(right, STORE_RIGHT_GRANTED);
			}
		}
	}
}

static void a_whole_copy_that_is_in_sync_may_start(void **state)
{
	(void)state;
	struct ft_grant_record theirs = {
		.generation = 4, .holder = "b", .in_sync = true, .partner = "a"};
	struct ft_start_question q = question("file", false, &theirs);
	assert_int_equal(ft_start_rule(&q, &right, &err), -EPERM);
	q.whole = 3;
	assert_int_equal(ft_start_rule(&q, &right, &err), -EPERM);
	q.whole = 4;
	assert_int_equal(ft_start_rule(&q, &right, &err), FT_START_AFTER_CLAIM);
	assert_int_equal(right, STORE_RIGHT_STANDBY);
	theirs.in_sync = false; // it went on alone
	assert_int_equal(ft_start_rule(&q, &right, &err), -EPERM);
	theirs.in_sync = true;
	strcpy(theirs.partner, "c");
	assert_int_equal(ft_start_rule(&q, &right, &err), -EPERM);
	// Nobody can tell whether the primary went on.
	q = question("none", false, NULL);
	q.whole = 4;
	assert_int_equal(ft_start_rule(&q, &right, &err), FT_START);
	assert_int_equal(right, STORE_RIGHT_NONE);
}

static void force_starts_and_says_what_is_lost(void **state)
{
	(void)state;
	struct ft_grant_record none = {0}, other = {.generation = 4, .holder = "b"},
			       ours = {.generation = 4, .holder = "a"};
	const struct {
		const char *arbiter;
		bool elsewhere;
		const struct ft_grant_record *record;
		int rc;
		const char *text; // NULL: nothing
	} cases[] = {{"none", false, NULL, FT_START, NULL},
		     {"none", true, NULL, FT_START, "what its standby did since is lost"},
		     {"file", true, NULL, FT_START, "does not answer (timed out)"},
		     {"file", false, &none, FT_START, NULL},
		     {"file", false, &ours, FT_START_AFTER_CLAIM, NULL},
		     {"file", true, &ours, FT_START_AFTER_CLAIM, "(generation 4)"},
		     {"file", false, &other, FT_START_AFTER_CLAIM,
		      "host b holds the guest under generation 4"}};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct ft_start_question q =
			question(cases[i].arbiter, cases[i].elsewhere, cases[i].record);
		q.peer = "b.sock";
		q.force = true;
		assert_int_equal(ft_start_rule(&q, &right, &err), cases[i].rc);
		assert_int_equal(right, STORE_RIGHT_FORCE);
		assert_int_equal(err.code != 0, cases[i].text != NULL);
		if (cases[i].text)
			assert_non_null(strstr(err.text, cases[i].text));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(without_an_arbiter_memory_decides),
		cmocka_unit_test(a_silent_arbiter_grants_nothing),
		cmocka_unit_test(the_record_decides),
		cmocka_unit_test(the_standby_of_before_decides),
		cmocka_unit_test(a_whole_copy_that_is_in_sync_may_start),
		cmocka_unit_test(force_starts_and_says_what_is_lost),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
