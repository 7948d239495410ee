// SPDX-License-Identifier: Apache-2.0
/* Endpoints that are no members, or lose what passes through them, and records that are not ours:
 * an answer in time, and never a grant that was not given. */
#include <event2/event.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/fixture/arbiter_contract.h"
#include "tests/fixture/clock.h"
#include "tests/fixture/etcd_arbiter.h"
#include "tests/fixture/etcd_fake.h"

static void test_silent_endpoint(void **state)
{
	struct etcd_fake *silent = etcd_fake_new(arbiter_loop, NULL);
	struct ft_arbiter *a =
		etcd_arbiter_at(etcd_fake_url(silent), etcd.members[0].url, "silent");
	struct ft_arbiter *alone = etcd_arbiter_at(etcd_fake_url(silent), NULL, "silent");
	struct answer answer;
	double start = now_s();

	(void)state;
	assert_answer(swap(a, 0, record(1, "a", false, "")), FT_ARBITER_GRANTED);
	assert_int_equal(etcd_fake_connections(silent), 1);
	assert_answer(swap(a, 1, record(2, "a", false, "")), FT_ARBITER_GRANTED);
	/* It was not asked again. */
	assert_int_equal(etcd_fake_connections(silent), 1);
	start = now_s();
	answer = swap(alone, 2, record(3, "a", false, ""));
	assert_answer(answer, FT_ARBITER_UNREACHABLE);
	assert_non_null(strstr(answer.why, "no answer within the deadline; http://127.0.0.1:"));
	assert_true(now_s() - start < FT_ARBITER_DEADLINE_MS / 1000.0 + ETCD_SLACK_S);
	/* Freed while a question is under way: nothing comes any more. */
	memset(&answer, 0, sizeof answer);
	alone->ops->read(alone, note, &answer);
	event_base_loop(arbiter_loop, EVLOOP_NONBLOCK);
	alone->ops->free(alone);
	a->ops->free(a);
	etcd_fake_free(silent);
	event_base_loop(arbiter_loop, EVLOOP_NONBLOCK);
	assert_int_equal(answer.calls, 0);
}

/* The transaction arrives, its answer does not: the record says that it is ours. */
static void test_lost_answer(void **state)
{
	struct etcd_fake *lossy = etcd_fake_proxy(arbiter_loop, etcd.members[0].client_port, false);
	struct ft_arbiter *a = etcd_arbiter_at(etcd_fake_url(lossy), etcd.members[1].url, "lossy");
	struct ft_arbiter *only = etcd_arbiter_at(etcd_fake_url(lossy), NULL, "lossy");
	struct ft_arbiter *b = etcd_arbiter_at_members(1, "lossy");
	struct answer answer;

	(void)state;
	answer = swap(a, 0, record(1, "a", false, ""));
	assert_answer(answer, FT_ARBITER_GRANTED);
	assert_record(&answer.now, record(1, "a", false, ""));
	/* Nobody else to ask: the same one is asked again. */
	assert_answer(swap(only, 1, record(1, "a", true, "b")), FT_ARBITER_GRANTED);
	assert_answer(swap(only, 1, record(2, "a", false, "")), FT_ARBITER_GRANTED);
	/* Not a grant for whoever was beaten, however its answer is lost. */
	assert_answer(swap(only, 1, record(2, "b", false, "")), FT_ARBITER_LOST);
	answer = ask(b);
	assert_record(&answer.now, record(2, "a", false, ""));
	only->ops->free(only);
	a->ops->free(a);
	b->ops->free(b);
	etcd_fake_free(lossy);
}

/* A transaction that arrives after all, when its question was given up long ago and the world went
 * on: it changes nothing. */
static void test_late_transaction(void **state)
{
	struct etcd_fake *slow = etcd_fake_proxy(arbiter_loop, etcd.members[0].client_port, true);
	struct ft_arbiter *a = etcd_arbiter_at(etcd_fake_url(slow), NULL, "late");
	struct ft_arbiter *b = etcd_arbiter_at_members(1, "late");
	struct answer answer;

	(void)state;
	assert_answer(swap(b, 0, record(1, "a", true, "b")), FT_ARBITER_GRANTED);
	assert_answer(swap(a, 1, record(2, "a", false, "")), FT_ARBITER_UNREACHABLE);
	assert_answer(swap(b, 1, record(2, "b", false, "")), FT_ARBITER_GRANTED);
	etcd_fake_let_go(slow);
	answer = ask(b);
	assert_record(&answer.now, record(2, "b", false, ""));
	a->ops->free(a);
	b->ops->free(b);
	etcd_fake_free(slow);
}

#define OK(body) "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" body
#define OTHER	 "{\"header\":{\"cluster_id\":\"1\",\"revision\":\"1\"}}"

static void test_garbage(void **state)
{
	static const struct {
		const char *answer, *why;
	} table[] = {
		{"garbage", "http"},
		{OK(""), "no JSON object"},
		{OK("{"), "no JSON object"},
		{OK("{}"), "no cluster id"},
		{OK("{\"header\":{\"cluster_id\":\"1\"},\"kvs\":[{}]}"), "not the key"},
		{"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{", "transfer closed"},
		{"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: "
		 "0\r\n\r\n",
		 "HTTP status 301"},
		{"HTTP/1.1 503 Busy\r\nContent-Length: 22\r\n\r\n{\"error\":\"no\\nleader\"}",
		 "no?leader"},
		{"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", "HTTP status 401"},
	};
	static char flood[2 * ETCD_ANSWER_MAX];
	struct ft_grant_record want = record(1, "a", false, "");
	struct answer answers[sizeof table / sizeof *table] = {{0}}, answer;
	struct etcd_fake *fakes[sizeof table / sizeof *table], *fake;
	struct ft_arbiter *liars[sizeof table / sizeof *table], *a;

	(void)state;
	/* All at once: each answers at its deadline. */
	for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
		fakes[i] = etcd_fake_new(arbiter_loop, table[i].answer);
		liars[i] = etcd_arbiter_at(etcd_fake_url(fakes[i]), NULL, "garbage");
		liars[i]->ops->swap(liars[i], 0, &want, note, &answers[i]);
	}
	for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
		await(&answers[i]);
		assert_answer(answers[i], FT_ARBITER_UNREACHABLE);
		if (!strstr(answers[i].why, table[i].why))
			fail_msg("answer %zu: %s", i, answers[i].why);
		assert_null(strchr(answers[i].why, '\n'));
		liars[i]->ops->free(liars[i]);
		etcd_fake_free(fakes[i]);
	}
	snprintf(flood, sizeof flood, "%s", OK(""));
	memset(flood + strlen(flood), ' ', sizeof flood - strlen(flood) - 1);
	fake = etcd_fake_new(arbiter_loop, flood);
	a = etcd_arbiter_at(etcd_fake_url(fake), etcd.members[0].url, "garbage");
	answer = swap(a, 0, record(1, "a", false, ""));
	assert_answer(answer, FT_ARBITER_GRANTED);
	a->ops->free(a);
	a = etcd_arbiter_at(etcd_fake_url(fake), NULL, "garbage");
	answer = ask(a);
	assert_answer(answer, FT_ARBITER_UNREACHABLE);
	assert_non_null(strstr(answer.why, "too long"));
	a->ops->free(a);
	etcd_fake_free(fake);
}

/* Endpoints of two clusters would grant one generation twice. */
static void test_other_cluster(void **state)
{
	struct etcd_fake *other = etcd_fake_new(arbiter_loop, OK(OTHER));
	struct ft_arbiter *a = etcd_arbiter_at(etcd.members[0].url, etcd_fake_url(other), "two");
	struct answer answer;

	(void)state;
	assert_answer(swap(a, 0, record(1, "a", false, "")), FT_ARBITER_GRANTED);
	etcd_freeze(&etcd, 0, true);
	answer = ask(a);
	etcd_freeze(&etcd, 0, false);
	assert_answer(answer, FT_ARBITER_UNREACHABLE);
	assert_non_null(strstr(answer.why, "belongs to another cluster"));
	a->ops->free(a);
	etcd_fake_free(other);
	etcd_wait_healthy(&etcd, 0);
}

/* Nothing is granted over what is not a grant record. */
static void test_foreign_value(void **state)
{
	struct ft_arbiter *a = etcd_arbiter_at_members(0, "foreign"),
			  *b = etcd_arbiter_at_members(1, "foreign");
	struct ft_grant_record want = record(1, "a", false, "");
	struct answer answers[2] = {{0}, {0}};

	(void)state;
	etcd_ctl(&etcd, "put /kemari-ft/foreign hello");
	a->ops->read(a, note, &answers[0]);
	b->ops->swap(b, 0, &want, note, &answers[1]);
	for (unsigned i = 0; i < 2; i++) {
		await(&answers[i]);
		assert_answer(answers[i], FT_ARBITER_UNREACHABLE);
		assert_non_null(strstr(answers[i].why, "not a grant record"));
	}
	assert_string_equal(etcd_ctl(&etcd, "get --print-value-only /kemari-ft/foreign"),
			    "hello\n");
	a->ops->free(a);
	b->ops->free(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_silent_endpoint),	 cmocka_unit_test(test_lost_answer),
		cmocka_unit_test(test_late_transaction), cmocka_unit_test(test_garbage),
		cmocka_unit_test(test_other_cluster),	 cmocka_unit_test(test_foreign_value),
	};

	etcd_needed();
	return cmocka_run_group_tests(tests, etcd_plain_setup, etcd_teardown);
}
