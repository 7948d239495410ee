// SPDX-License-Identifier: Apache-2.0
/* The arbiter over a real etcd cluster of three members, and over members that lie, lose, delay or
 * are silent. */
#include <event2/event.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/fixture/arbiter_contract.h"
#include "tests/fixture/etcd_cluster.h"
#include "tests/fixture/etcd_fake.h"
#include "transport/arbiter_etcd.h"

#define ROUNDS 100
/* What a test may need more than the deadline: this machine does other things too. */
#define SLACK_S 1.0

static struct etcd_cluster cluster;

static double seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static struct ft_arbiter *arbiter(const struct arbiter_etcd_config *config, const char *guest)
{
	struct ft_err err;
	struct ft_arbiter *a = arbiter_etcd_new(arbiter_loop, config, guest, &err);

	if (!a)
		fail_msg("%s", err.text);
	assert_string_equal(a->ops->type, "etcd");
	return a;
}

/* All members, beginning with `first`. */
static struct arbiter_etcd_config members(unsigned first)
{
	static char ca[128], cert[128], key[128], password[128];
	struct arbiter_etcd_config config = {.servers.n = ETCD_MEMBERS};

	for (unsigned i = 0; i < ETCD_MEMBERS; i++)
		config.servers.endpoints[i] = cluster.members[(first + i) % ETCD_MEMBERS].url;
	if (cluster.tls) {
		snprintf(ca, sizeof ca, "%s/pki/ca.pem", cluster.dir);
		snprintf(cert, sizeof cert, "%s/pki/client.pem", cluster.dir);
		snprintf(key, sizeof key, "%s/pki/client.key", cluster.dir);
		config.servers.ca = ca;
	}
	if (cluster.tls == ETCD_TLS_CLIENTS) {
		config.servers.cert = cert;
		config.servers.key = key;
	}
	if (cluster.auth) {
		snprintf(password, sizeof password, "%s/password", cluster.dir);
		config.user = ETCD_USER;
		config.password_file = password;
	}
	return config;
}

static struct arbiter_etcd_config endpoints(const char *first, const char *second)
{
	return (struct arbiter_etcd_config){
		.servers = {.n = second ? 2 : 1, .endpoints = {first, second}}};
}

static struct ft_arbiter *at_members(unsigned first, const char *guest)
{
	struct arbiter_etcd_config config = members(first);

	return arbiter(&config, guest);
}

static struct ft_arbiter *at_endpoints(const char *first, const char *second, const char *guest)
{
	struct arbiter_etcd_config config = endpoints(first, second);

	return arbiter(&config, guest);
}

/* Until it is granted: who has no leader yet says so, which takes a question more. */
static struct answer ask_until_granted(struct ft_arbiter *a)
{
	double until = seconds() + 20;
	struct answer answer;

	do
		answer = ask(a);
	while (answer.answer == FT_ARBITER_UNREACHABLE && seconds() < until);
	assert_answer(answer, FT_ARBITER_GRANTED);
	return answer;
}

static void test_contract(void **state)
{
	struct ft_arbiter *a = at_members(0, "web1"), *b = at_members(1, "web1"),
			  *other = at_members(2, "web1.2");
	char name[32];

	(void)state;
	arbiter_contract(a, b, other);
	if (!cluster.auth) {
		/* People can read it. */
		snprintf(name, sizeof name, "web1.2");
		assert_non_null(
			strstr(etcd_ctl(&cluster, "get /kemari-ft/%s", name),
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
	struct ft_arbiter *racers[2] = {at_members(0, "race"), at_members(1, "race")};
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
	unsigned leader = etcd_leader(&cluster);
	struct ft_arbiter *a = at_members(leader, "leader");
	struct answer answer;
	double start;

	(void)state;
	assert_answer(swap(a, 0, record(1, "a", false, "")), FT_ARBITER_GRANTED);
	etcd_kill(&cluster, leader);
	start = seconds();
	do
		answer = swap(a, 1, record(2, "a", true, "b"));
	while (answer.answer == FT_ARBITER_UNREACHABLE && seconds() < start + 20);
	print_message("granted %.1f s after the leader's death\n", seconds() - start);
	/* A transaction of an unanswered question may have happened: then it is ours. */
	if (answer.answer == FT_ARBITER_LOST)
		assert_record(&answer.now, record(2, "a", true, "b"));
	else
		assert_answer(answer, FT_ARBITER_GRANTED);
	answer = ask_until_granted(a);
	assert_record(&answer.now, record(2, "a", true, "b"));
	etcd_restart(&cluster, leader);
	a->ops->free(a);
}

/* A member that does not answer costs a part of the deadline, once: then another comes first. */
static void test_member_freezes(void **state)
{
	unsigned frozen = (etcd_leader(&cluster) + 1) % ETCD_MEMBERS;
	struct ft_arbiter *a = at_members(frozen, "frozen");
	double start;

	(void)state;
	assert_answer(ask(a), FT_ARBITER_GRANTED);
	etcd_freeze(&cluster, frozen, true);
	start = seconds();
	assert_answer(swap(a, 0, record(1, "a", false, "")), FT_ARBITER_GRANTED);
	assert_true(seconds() - start < FT_ARBITER_DEADLINE_MS / 1000.0 + SLACK_S);
	assert_true(seconds() - start > 0.3);
	start = seconds();
	assert_answer(swap(a, 1, record(2, "a", false, "")), FT_ARBITER_GRANTED);
	assert_true(seconds() - start < 0.5 + SLACK_S);
	etcd_freeze(&cluster, frozen, false);
	etcd_wait_healthy(&cluster, frozen);
	a->ops->free(a);
}

/* One of three knows nothing, not even what it has on its disk. */
static void test_no_majority(void **state)
{
	struct ft_arbiter *a = at_members(0, "alone");
	struct answer answer;
	double start;

	(void)state;
	assert_answer(swap(a, 0, record(1, "a", false, "")), FT_ARBITER_GRANTED);
	etcd_kill(&cluster, 1);
	etcd_kill(&cluster, 2);
	start = seconds();
	answer = ask(a);
	assert_answer(answer, FT_ARBITER_UNREACHABLE);
	assert_true(seconds() - start < FT_ARBITER_DEADLINE_MS / 1000.0 + SLACK_S);
	assert_record(&answer.now, record(0, "", false, ""));
	assert_non_null(strstr(answer.why, cluster.members[1].url));
	assert_non_null(strstr(answer.why, "cannot be reached"));
	answer = swap(a, 1, record(2, "a", false, ""));
	assert_answer(answer, FT_ARBITER_UNREACHABLE);
	print_message("%s\n", answer.why);
	etcd_restart(&cluster, 1);
	answer = ask_until_granted(a);
	assert_int_equal(answer.now.generation, 1);
	assert_answer(swap(a, 1, record(2, "a", false, "")), FT_ARBITER_GRANTED);
	etcd_restart(&cluster, 2);
	a->ops->free(a);
}

static void test_compaction(void **state)
{
	struct ft_arbiter *a = at_members(0, "compact"), *b = at_members(1, "compact");
	const char *at;

	(void)state;
	assert_answer(swap(a, 0, record(1, "a", false, "")), FT_ARBITER_GRANTED);
	for (unsigned i = 0; i < 5; i++)
		etcd_ctl(&cluster, "put other %u", i);
	assert_answer(ask(b), FT_ARBITER_GRANTED);
	at = strstr(etcd_ctl(&cluster, "get other -w json"), "\"revision\":");
	assert_non_null(at);
	etcd_ctl(&cluster, "compact --physical %ld", strtol(at + 11, NULL, 10));
	etcd_ctl(&cluster, "defrag");
	assert_answer(swap(b, 1, record(2, "b", false, "")), FT_ARBITER_GRANTED);
	assert_answer(swap(a, 1, record(2, "a", false, "")), FT_ARBITER_LOST);
	a->ops->free(a);
	b->ops->free(b);
}

/* ---- members that are none ---- */

static void test_silent_endpoint(void **state)
{
	struct etcd_fake *silent = etcd_fake_new(arbiter_loop, NULL);
	struct ft_arbiter *a =
		at_endpoints(etcd_fake_url(silent), cluster.members[0].url, "silent");
	struct ft_arbiter *alone = at_endpoints(etcd_fake_url(silent), NULL, "silent");
	struct answer answer;
	double start = seconds();

	(void)state;
	assert_answer(swap(a, 0, record(1, "a", false, "")), FT_ARBITER_GRANTED);
	assert_int_equal(etcd_fake_connections(silent), 1);
	assert_answer(swap(a, 1, record(2, "a", false, "")), FT_ARBITER_GRANTED);
	/* It was not asked again. */
	assert_int_equal(etcd_fake_connections(silent), 1);
	start = seconds();
	answer = swap(alone, 2, record(3, "a", false, ""));
	assert_answer(answer, FT_ARBITER_UNREACHABLE);
	assert_non_null(strstr(answer.why, "no answer within the deadline; http://127.0.0.1:"));
	assert_true(seconds() - start < FT_ARBITER_DEADLINE_MS / 1000.0 + SLACK_S);
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
	struct etcd_fake *lossy =
		etcd_fake_proxy(arbiter_loop, cluster.members[0].client_port, false);
	struct ft_arbiter *a = at_endpoints(etcd_fake_url(lossy), cluster.members[1].url, "lossy");
	struct ft_arbiter *only = at_endpoints(etcd_fake_url(lossy), NULL, "lossy");
	struct ft_arbiter *b = at_members(1, "lossy");
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
	struct etcd_fake *slow =
		etcd_fake_proxy(arbiter_loop, cluster.members[0].client_port, true);
	struct ft_arbiter *a = at_endpoints(etcd_fake_url(slow), NULL, "late");
	struct ft_arbiter *b = at_members(1, "late");
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
		liars[i] = at_endpoints(etcd_fake_url(fakes[i]), NULL, "garbage");
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
	a = at_endpoints(etcd_fake_url(fake), cluster.members[0].url, "garbage");
	answer = swap(a, 0, record(1, "a", false, ""));
	assert_answer(answer, FT_ARBITER_GRANTED);
	a->ops->free(a);
	a = at_endpoints(etcd_fake_url(fake), NULL, "garbage");
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
	struct ft_arbiter *a = at_endpoints(cluster.members[0].url, etcd_fake_url(other), "two");
	struct answer answer;

	(void)state;
	assert_answer(swap(a, 0, record(1, "a", false, "")), FT_ARBITER_GRANTED);
	etcd_freeze(&cluster, 0, true);
	answer = ask(a);
	etcd_freeze(&cluster, 0, false);
	assert_answer(answer, FT_ARBITER_UNREACHABLE);
	assert_non_null(strstr(answer.why, "belongs to another cluster"));
	a->ops->free(a);
	etcd_fake_free(other);
	etcd_wait_healthy(&cluster, 0);
}

/* Nothing is granted over what is not a grant record. */
static void test_foreign_value(void **state)
{
	struct ft_arbiter *a = at_members(0, "foreign"), *b = at_members(1, "foreign");
	struct ft_grant_record want = record(1, "a", false, "");
	struct answer answers[2] = {{0}, {0}};

	(void)state;
	etcd_ctl(&cluster, "put /kemari-ft/foreign hello");
	a->ops->read(a, note, &answers[0]);
	b->ops->swap(b, 0, &want, note, &answers[1]);
	for (unsigned i = 0; i < 2; i++) {
		await(&answers[i]);
		assert_answer(answers[i], FT_ARBITER_UNREACHABLE);
		assert_non_null(strstr(answers[i].why, "not a grant record"));
	}
	assert_string_equal(etcd_ctl(&cluster, "get --print-value-only /kemari-ft/foreign"),
			    "hello\n");
	a->ops->free(a);
	b->ops->free(b);
}

/* ---- TLS and authentication ---- */

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
		a[i] = arbiter(&list[i].config, "tls");
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
	struct arbiter_etcd_config strange = members(0), nameless = members(0), plain;
	char url[64], path[128];
	struct ft_err err;

	(void)state;
	strange.servers.n = 1;
	strange.servers.ca = NULL; /* the system's authorities do not know it */
	nameless.servers.n = 1;
	nameless.servers.cert = nameless.servers.key = NULL;
	snprintf(url, sizeof url, "http://127.0.0.1:%u", cluster.members[0].client_port);
	plain = endpoints(url, NULL);
	expect_unreachable((struct refused[]){{strange, "certificate"},
					      {nameless, "certificate"},
					      {plain, url}},
			   3);
	snprintf(path, sizeof path, "%s/nothing.pem", cluster.dir);
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
	struct arbiter_etcd_config wrong = members(0), nobody = members(0), elsewhere = members(0);
	char path[128];
	struct ft_err err;

	(void)state;
	snprintf(path, sizeof path, "%s/password.try", cluster.dir);
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
	struct ft_arbiter *a = at_members(0, "token");
	double until;

	(void)state;
	assert_answer(swap(a, 0, record(1, "a", false, "")), FT_ARBITER_GRANTED);
	/* Longer than it takes etcd to clean up; nobody may use it meanwhile, for that keeps it. */
	until = seconds() + 3;
	while (seconds() < until)
		event_base_loopexit(arbiter_loop, &(struct timeval){.tv_sec = 1}),
			event_base_dispatch(arbiter_loop);
	assert_answer(swap(a, 1, record(2, "a", false, "")), FT_ARBITER_GRANTED);
	/* A member that was restarted knows no token either. */
	for (unsigned i = 0; i < ETCD_MEMBERS; i++)
		etcd_restart(&cluster, i);
	assert_int_equal(ask_until_granted(a).now.generation, 2);
	assert_answer(swap(a, 2, record(3, "a", false, "")), FT_ARBITER_GRANTED);
	/* Nor is one good that is older than a change of the users. */
	etcd_ctl(&cluster, "role add another");
	assert_answer(swap(a, 3, record(4, "a", false, "")), FT_ARBITER_GRANTED);
	a->ops->free(a);
}

/* ---- clusters ---- */

static int plain_start(void **state)
{
	(void)state;
	etcd_start(&cluster, ETCD_PLAIN, 0);
	arbiter_loop = event_base_new();
	return 0;
}

static int tls_start(void **state)
{
	(void)state;
	etcd_start(&cluster, ETCD_TLS_CLIENTS, 0);
	arbiter_loop = event_base_new();
	return 0;
}

static int auth_start(void **state)
{
	(void)state;
	etcd_start(&cluster, ETCD_TLS, 1);
	etcd_enable_auth(&cluster);
	arbiter_loop = event_base_new();
	return 0;
}

static int stop(void **state)
{
	(void)state;
	event_base_free(arbiter_loop);
	etcd_stop(&cluster);
	return 0;
}

int main(void)
{
	const struct CMUnitTest plain[] = {
		cmocka_unit_test(test_contract),	 cmocka_unit_test(test_race),
		cmocka_unit_test(test_leader_dies),	 cmocka_unit_test(test_member_freezes),
		cmocka_unit_test(test_no_majority),	 cmocka_unit_test(test_compaction),
		cmocka_unit_test(test_silent_endpoint),	 cmocka_unit_test(test_lost_answer),
		cmocka_unit_test(test_late_transaction), cmocka_unit_test(test_garbage),
		cmocka_unit_test(test_other_cluster),	 cmocka_unit_test(test_foreign_value),
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
	return cmocka_run_group_tests(plain, plain_start, stop) +
	       cmocka_run_group_tests(tls, tls_start, stop) +
	       cmocka_run_group_tests(auth, auth_start, stop);
}
