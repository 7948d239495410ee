// SPDX-License-Identifier: Apache-2.0
/* Agents whose arbiter is a real etcd cluster: what they write there and say of it, who is let
 * start, and what happens while it is out of reach. */
#include <arpa/inet.h>
#include <signal.h>
#include <sys/socket.h>

#include "tests/agent/harness.h"
#include "tests/fixture/etcd_cluster.h"

#define POCKET                                                                                     \
	"name = \"g\"\nvmm = \"pocket\"\nprogram = \"kv\"\nmemory = \"4M\"\n"                      \
	"disk root { image = \"g.img\" size = \"1M\" }\n"

static struct etcd_cluster cluster;
static struct host a, b;
static struct kv_client client;

static int setup(void **state)
{
	place_clear(NULL);
	a = host_make("A");
	b = host_make("B");
	(void)state;
	return 0;
}

static int teardown(void **state)
{
	etcd_stop(&cluster);
	return place_clear(state);
}

static const char *arbiter_section(void)
{
	static char text[1024];

	snprintf(text, sizeof text,
		 "arbiter { type = \"etcd\" endpoints = {\"%s\", \"%s\", \"%s\"}\n"
		 "ca = \"%s/pki/ca.pem\" user = \"" ETCD_USER
		 "\" password_file = \"%s/password\" }",
		 cluster.members[0].url, cluster.members[1].url, cluster.members[2].url,
		 cluster.dir, cluster.dir);
	return text;
}

static void expect_arbiter(struct host *h, const char *state, const char *holder)
{
	Ctl__Reply *reply = status_of(h);

	assert_string_equal(reply->status->arbiter->type, "etcd");
	assert_string_equal(reply->status->arbiter->state, state);
	assert_string_equal(reply->status->arbiter->holder, holder);
	ctl__reply__free_unpacked(reply, NULL);
}

static void expect_record(const char *text)
{
	const char *got = etcd_ctl(&cluster, "get --print-value-only /kemari-ft/g");

	if (strncmp(got, text, strlen(text)) != 0)
		fail_msg("etcd says: %s", got);
}

static void wait_arbiter_unreachable(struct host *h)
{
	uint64_t deadline = now_ms() + GOES_ON_MS;
	bool found = false;

	while (!found) {
		Ctl__Reply *reply = status_of(h);

		found = reply->status->deciding &&
			!strcmp(reply->status->arbiter->state, "unreachable");
		ctl__reply__free_unpacked(reply, NULL);
		breathe(deadline, "the arbiter is out of reach");
	}
}

static void pair(void **state)
{
	char record[256];

	(void)state;
	etcd_start(&cluster, ETCD_TLS, 0);
	etcd_enable_auth(&cluster);
	pocket_pair(&a, &b, "", arbiter_section());
	kv_open(&client);
	kv_work(&client, 10);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	wait_state(&a, "protected", PROTECT_MS);
	expect_arbiter(&a, "held", "A");
	expect_arbiter(&b, "unused", "A");
	expect_record(
		"{\"kemari_grant\": 1, \"generation\": 1, \"holder\": \"A\", \"in_sync\": true, "
		"\"partner\": \"B\"}");

	/* Without etcd the pair goes on; and when the primary dies, its standby waits. */
	for (unsigned i = 0; i < ETCD_MEMBERS; i++)
		etcd_freeze(&cluster, i, true);
	kv_work(&client, 10);
	assert_state(&a, "protected");
	host_kill(&a);
	wait_arbiter_unreachable(&b);
	assert_state(&b, "standby");
	expect_arbiter(&b, "unreachable", "A");
	for (unsigned i = 0; i < ETCD_MEMBERS; i++)
		etcd_freeze(&cluster, i, false);
	wait_state(&b, "solo", GOES_ON_MS);
	kv_work(&client, 10);
	expect_arbiter(&b, "held", "B");
	expect_record("{\"kemari_grant\": 1, \"generation\": 2, \"holder\": \"B\", "
		      "\"in_sync\": false, \"partner\": \"\"}");

	/* Whoever comes back is not let start what runs elsewhere. */
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	host_one_error(&a, "arbiter etcd: host B holds the guest (generation 2)");
	host_start(&a, at("g.conf"), "--incoming", unix_uri("a.sock"), NULL);
	wait_state(&a, "standby", START_MS);
	ask_ok(&b, "migrate", unix_uri("a.sock"));
	wait_state(&b, "protected", PROTECT_MS);
	kv_work(&client, 10);
	/* The standby dies while one member is dead: the others grant. And a record that somebody
	 * deleted costs the guest nothing but time: what is not there was granted to nobody. */
	snprintf(record, sizeof record, "%s",
		 etcd_ctl(&cluster, "get --print-value-only /kemari-ft/g"));
	record[strcspn(record, "\n")] = '\0';
	etcd_kill(&cluster, 0);
	(void)etcd_leader(&cluster);
	etcd_ctl(&cluster, "del /kemari-ft/g");
	host_kill(&a);
	wait_arbiter_unreachable(&b);
	etcd_ctl(&cluster, "put /kemari-ft/g '%s'", record);
	wait_state(&b, "solo", GOES_ON_MS);
	kv_work(&client, 10);
	kv_close(&client);
	host_stop(&b);
	etcd_stop(&cluster);
	assert_int_equal(children(), 0);
}

static void out_of_reach(void **state)
{
	uint64_t began;

	(void)state;
	write_file(at("g.conf"),
		   POCKET "arbiter { type = \"etcd\" endpoints = {\"http://127.0.0.1:1\"} }\n");
	began = now_ms();
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	assert_true(now_ms() - began < START_MS / 2);
	host_one_error(&a, "arbiter etcd: does not answer (arbiter etcd: no answer within the "
			   "deadline; http://127.0.0.1:1: cannot be reached): another host may run "
			   "the guest");
	/* A standby needs no arbiter yet. */
	host_start(&a, at("g.conf"), "--incoming", unix_uri("a.sock"), NULL);
	wait_state(&a, "standby", START_MS);
	host_stop(&a);
}

/* Stopped while a member that does not answer is waited for: at once, and on request. */
static void stopped(void **state)
{
	struct sockaddr_in at_port = {.sin_family = AF_INET,
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int silent = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), asked;
	socklen_t len = sizeof at_port;

	(void)state;
	assert_int_equal(bind(silent, (struct sockaddr *)&at_port, len), 0);
	assert_int_equal(listen(silent, 4), 0);
	assert_int_equal(getsockname(silent, (struct sockaddr *)&at_port, &len), 0);
	write_file(at("g.conf"),
		   POCKET "arbiter { type = \"etcd\" endpoints = {\"http://127.0.0.1:%u\"} }\n",
		   ntohs(at_port.sin_port));
	host_start(&a, at("g.conf"), NULL);
	asked = accept4(silent, NULL, NULL, SOCK_CLOEXEC);
	assert_true(asked >= 0);
	host_signal(&a, SIGTERM);
	assert_int_equal(host_reap(&a, START_MS), 0);
	host_one_error(&a, "SIGTERM while the arbiter was asked");
	close(asked);
	close(silent);
}

static void mistakes(void **state)
{
	(void)state;
	write_file(at("g.conf"),
		   POCKET "arbiter { type = \"etcd\" endpoints = {\"http://127.0.0.1:1\"}\n"
			  "user = \"u\" password_file = \"password\" }\n");
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	host_one_error(&a, "password: No such file or directory");
	write_file(at("password"), "secret\n");
	shell("chmod 644 %s", at("password"));
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	host_one_error(&a, "others than its owner may use it (mode 644): chmod 600");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(out_of_reach, setup, place_clear),
		cmocka_unit_test_setup_teardown(stopped, setup, place_clear),
		cmocka_unit_test_setup_teardown(mistakes, setup, place_clear),
		cmocka_unit_test_setup_teardown(pair, setup, teardown),
	};
	int failed;

	etcd_needed();
	place_open();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}
