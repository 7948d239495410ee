// SPDX-License-Identifier: Apache-2.0
/* The arbiter over a real etcd cluster of three members, that lose their leader, their majority and
 * their history, and ask for certificates and passwords. */
#include <event2/event.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "tests/fixture/arbiter_contract.h"
#include "tests/fixture/clock.h"
#include "tests/fixture/etcd_arbiter.h"

#define ROUNDS 100

/* Until it is granted: who has no leader yet says so, which takes a question more. */
static struct answer ask_until_granted(struct ft_arbiter *a)
{
	double until = now_s() + 20;
	struct answer answer;

	do
		answer = ask(a);
	while (answer.answer == FT_ARBITER_UNREACHABLE && now_s() < until);
	assert_answer(answer, FT_ARBITER_GRANTED);
	return answer;
}

static void test_contract(void **state)
{
	struct ft_arbiter *a = etcd_arbiter_at_members(0, "web1"),
			  *b = etcd_arbiter_at_members(1, "web1"),
			  *other = etcd_arbiter_at_members(2, "web1.2");
	char name[32];

	(void)state;
	arbiter_contract(a, b, other);
	if (!etcd.auth) {
		/* People can read it. */
		snprintf(name, sizeof name, "web1.2");
		assert_non_null(
			strstr(etcd_ctl(&etcd, "get /kemari-ft/%s", name),
			       "{\"kemari_grant\": 1, \"generation\": 1, \"holder\": \"c\", "
			       "\"in_sync\": false, \"partner\": \"\"}"));
	}
	a->ops->free(a);
	b->ops->free(b);
	other->ops->free(other);
}

/* Both ask at the same moment, at different members: one is granted, the other knows by whom it was
 * beaten. */
static void test_race(void **state)
{
	struct ft_arbiter *racers[2] = {etcd_arbiter_at_members(0, "race"),
					etcd_arbiter_at_members(1, "race")};
	static const char *const ids[2] = {"a", "b"};
	unsigned won[2] = {0};

	(void)state;
	for (uint64_t g = 0; g < ROUNDS; g++) {
		struct answer answers[2] = {{0}, {0}};
		int winner;

		for (unsigned i = 0; i < 2; i++) {
			unsigned who = (g + i) % 2;
			struct ft_grant_record want = record(g + 1, ids[who], false, "");

			racers[who]->ops->swap(racers[who], g, &want, note, &answers[who]);
		}
		await(&answers[0]);
		await(&answers[1]);
		winner = answers[0].answer == FT_ARBITER_GRANTED ? 0 : 1;
		assert_answer(answers[winner], FT_ARBITER_GRANTED);
		assert_answer(answers[!winner], FT_ARBITER_LOST);
		assert_record(&answers[!winner].now, record(g + 1, ids[winner], false, ""));
		won[winner]++;
	}
	print_message("a won %u, b won %u\n", won[0], won[1]);
	racers[0]->ops->free(racers[0]);
	racers[1]->ops->free(racers[1]);
}

/* The member that is asked first leads, and dies. */
static void test_leader_dies(void **state)
{
	unsigned leader = etcd_leader(&etcd);
	struct ft_arbiter *a = etcd_arbiter_at_members(leader, "leader");
	struct answer answer;
	double start;

	(void)state;
	assert_answer(swap(a, 0, record(1, "a", false, "")), FT_ARBITER_GRANTED);
	etcd_kill(&etcd, leader);
	start = now_s();
	do
		answer = swap(a, 1, record(2, "a", true, "b"));
	while (answer.answer == FT_ARBITER_UNREACHABLE && now_s() < start + 20);
	print_message("granted %.1f s after the leader's death\n", now_s() - start);
	/* A transaction of an unanswered question may have happened: then it is ours. */
	if (answer.answer == FT_ARBITER_LOST)
		assert_record(&answer.now, record(2, "a", true, "b"));
	else
		assert_answer(answer, FT_ARBITER_GRANTED);
	answer = ask_until_granted(a);
	assert_record(&answer.now, record(2, "a", true, "b"));
	etcd_restart(&etcd, leader);
	a->ops->free(a);
}

/* A member that does not answer costs a part of the deadline, once: then another comes first. */
static void test_member_freezes(void **state)
{
	unsigned frozen = (etcd_leader(&etcd) + 1) % ETCD_MEMBERS;
	struct ft_arbiter *a = etcd_arbiter_at_members(frozen, "frozen");
	double start;

	(void)state;
	assert_answer(ask(a), FT_ARBITER_GRANTED);
	etcd_freeze(&etcd, frozen, true);
	start = now_s();
	assert_answer(swap(a, 0, record(1, "a", false, "")), FT_ARBITER_GRANTED);
	assert_true(now_s() - start < FT_ARBITER_DEADLINE_MS / 1000.0 + ETCD_SLACK_S);
	assert_true(now_s() - start > 0.3);
	start = now_s();
	assert_answer(swap(a, 1, record(2, "a", false, "")), FT_ARBITER_GRANTED);
	assert_true(now_s() - start < 0.5 + ETCD_SLACK_S);
	etcd_freeze(&etcd, frozen, false);
	etcd_wait_healthy(&etcd, frozen);
	a->ops->free(a);
}

/* One of three knows nothing, not even what it has on its disk. */
static void test_no_majority(void **state)
{
	struct ft_arbiter *a = etcd_arbiter_at_members(0, "alone");
	struct answer answer;
	double start;

	(void)state;
	assert_answer(swap(a, 0, record(1, "a", false, "")), FT_ARBITER_GRANTED);
	etcd_kill(&etcd, 1);
	etcd_kill(&etcd, 2);
	start = now_s();
	answer = ask(a);
	assert_answer(answer, FT_ARBITER_UNREACHABLE);
	assert_true(now_s() - start < FT_ARBITER_DEADLINE_MS / 1000.0 + ETCD_SLACK_S);
	assert_record(&answer.now, record(0, "", false, ""));
	assert_non_null(strstr(answer.why, etcd.members[1].url));
	assert_non_null(strstr(answer.why, "cannot be reached"));
	answer = swap(a, 1, record(2, "a", false, ""));
	assert_answer(answer, FT_ARBITER_UNREACHABLE);
	print_message("%s\n", answer.why);
	etcd_restart(&etcd, 1);
	answer = ask_until_granted(a);
	assert_int_equal(answer.now.generation, 1);
	assert_answer(swap(a, 1, record(2, "a", false, "")), FT_ARBITER_GRANTED);
	etcd_restart(&etcd, 2);
	a->ops->free(a);
}

static void test_compaction(void **state)
{
	struct ft_arbiter *a = etcd_arbiter_at_members(0, "compact"),
			  *b = etcd_arbiter_at_members(1, "compact");
	const char *at;

	(void)state;
	assert_answer(swap(a, 0, record(1, "a", false, "")), FT_ARBITER_GRANTED);
	for (unsigned i = 0; i < 5; i++)
		etcd_ctl(&etcd, "put other %u", i);
	assert_answer(ask(b), FT_ARBITER_GRANTED);
	at = strstr(etcd_ctl(&etcd, "get other -w json"), "\"revision\":");
	assert_non_null(at);
	etcd_ctl(&etcd, "compact --physical %ld", strtol(at + 11, NULL, 10));
	etcd_ctl(&etcd, "defrag");
	assert_answer(swap(b, 1, record(2, "b", false, "")), FT_ARBITER_GRANTED);
	assert_answer(swap(a, 1, record(2, "a", false, "")), FT_ARBITER_LOST);
	a->ops->free(a);
	b->ops->free(b);
}

struct refused {
	struct arbiter_etcd_config config;
	const char *why;
};

/* All at once: each answers at its deadline. */
static void expect_unreachable(const struct refused *list, unsigned n)
{
	struct ft_grant_record want = record(1, "a", false, "");
	struct answer answers[4] = {{0}};
	struct ft_arbiter *a[4];

	assert_true(n <= 4);
	for (unsigned i = 0; i < n; i++) {
		a[i] = etcd_arbiter(&list[i].config, "tls");
		a[i]->ops->swap(a[i], 0, &want, note, &answers[i]);
	}
	for (unsigned i = 0; i < n; i++) {
		await(&answers[i]);
		assert_answer(answers[i], FT_ARBITER_UNREACHABLE);
		if (!strstr(answers[i].why, list[i].why))
			fail_msg("%s in place of %s", answers[i].why, list[i].why);
		a[i]->ops->free(a[i]);
	}
}

static void test_tls(void **state)
{
	struct arbiter_etcd_config strange = etcd_members(0), nameless = etcd_members(0), plain;
	char url[64], path[128];
	struct ft_err err;

	(void)state;
	strange.servers.n = 1;
	strange.servers.ca = NULL; /* the system's authorities do not know it */
	nameless.servers.n = 1;
	nameless.servers.cert = nameless.servers.key = NULL;
	snprintf(url, sizeof url, "http://127.0.0.1:%u", etcd.members[0].client_port);
	plain = etcd_endpoints(url, NULL);
	expect_unreachable((struct refused[]){{strange, "certificate"},
					      {nameless, "certificate"},
					      {plain, url}},
			   3);
	snprintf(path, sizeof path, "%s/nothing.pem", etcd.dir);
	strange.servers.ca = path;
	assert_null(arbiter_etcd_new(arbiter_loop, &strange, "tls", &err));
	assert_non_null(strstr(err.text, "nothing.pem: No such file"));
}

static void write_password(const char *path, const char *text, mode_t mode)
{
	FILE *f = fopen(path, "we");

	assert_non_null(f);
	assert_int_equal(fchmod(fileno(f), mode), 0);
	fputs(text, f);
	fclose(f);
}

static void test_password(void **state)
{
	static const struct {
		const char *text, *why;
		mode_t mode;
	} refused[] = {{ETCD_PASSWORD, "chmod 600", 0640},
		       {ETCD_PASSWORD, "chmod 600", 0604},
		       {"\nx", "first line is empty", 0600},
		       {"", "first line is empty", 0600}};
	struct arbiter_etcd_config wrong = etcd_members(0), nobody = etcd_members(0),
				   elsewhere = etcd_members(0);
	char path[128];
	struct ft_err err;

	(void)state;
	snprintf(path, sizeof path, "%s/password.try", etcd.dir);
	wrong.password_file = path;
	for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
		write_password(path, refused[i].text, refused[i].mode);
		assert_null(arbiter_etcd_new(arbiter_loop, &wrong, "tls", &err));
		assert_non_null(strstr(err.text, refused[i].why));
	}
	write_password(path, "wrong", 0600);
	nobody.user = NULL;
	/* The user may use /kemari-ft/ and nothing else. */
	elsewhere.prefix = "/elsewhere/";
	wrong.servers.n = nobody.servers.n = elsewhere.servers.n = 1;
	expect_unreachable(
		(struct refused[]){{wrong, "authentication failed, invalid user ID or password"},
				   {nobody, "user name is empty"},
				   {elsewhere, "permission denied"}},
		3);
}

/* Tokens live for a second here. */
static void test_token_expires(void **state)
{
	struct ft_arbiter *a = etcd_arbiter_at_members(0, "token");
	double until;

	(void)state;
	assert_answer(swap(a, 0, record(1, "a", false, "")), FT_ARBITER_GRANTED);
	/* Longer than it takes etcd to clean up; nobody may use it meanwhile, for that keeps it. */
	until = now_s() + 3;
	while (now_s() < until)
		event_base_loopexit(arbiter_loop, &(struct timeval){.tv_sec = 1}),
			event_base_dispatch(arbiter_loop);
	assert_answer(swap(a, 1, record(2, "a", false, "")), FT_ARBITER_GRANTED);
	/* A member that was restarted knows no token either. */
	for (unsigned i = 0; i < ETCD_MEMBERS; i++)
		etcd_restart(&etcd, i);
	assert_int_equal(ask_until_granted(a).now.generation, 2);
	assert_answer(swap(a, 2, record(3, "a", false, "")), FT_ARBITER_GRANTED);
	/* Nor is one good that is older than a change of the users. */
	etcd_ctl(&etcd, "role add another");
	assert_answer(swap(a, 3, record(4, "a", false, "")), FT_ARBITER_GRANTED);
	a->ops->free(a);
}

static int tls_start(void **state)
{
	(void)state;
	etcd_start(&etcd, ETCD_TLS_CLIENTS, 0);
	arbiter_loop = event_base_new();
	return 0;
}

static int auth_start(void **state)
{
	(void)state;
	etcd_start(&etcd, ETCD_TLS, 1);
	etcd_enable_auth(&etcd);
	arbiter_loop = event_base_new();
	return 0;
}

int main(void)
{
	const struct CMUnitTest plain[] = {
		cmocka_unit_test(test_contract),    cmocka_unit_test(test_race),
		cmocka_unit_test(test_leader_dies), cmocka_unit_test(test_member_freezes),
		cmocka_unit_test(test_no_majority), cmocka_unit_test(test_compaction),
	};
	const struct CMUnitTest tls[] = {
		cmocka_unit_test(test_contract),
		cmocka_unit_test(test_tls),
	};
	const struct CMUnitTest auth[] = {
		cmocka_unit_test(test_contract),
		cmocka_unit_test(test_race),
		cmocka_unit_test(test_password),
		cmocka_unit_test(test_token_expires),
	};

	etcd_needed();
	return cmocka_run_group_tests(plain, etcd_plain_setup, etcd_teardown) +
	       cmocka_run_group_tests(tls, tls_start, etcd_teardown) +
	       cmocka_run_group_tests(auth, auth_start, etcd_teardown);
}
