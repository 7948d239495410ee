// SPDX-License-Identifier: Apache-2.0
/* Who may be whose standby, and what an operator reads when somebody may not: certificates, names,
 * plain text, guests and machines that do not match. Whatever goes wrong, the guest goes on, and
 * afterwards a right standby can have it. */
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <sys/socket.h>
#include <time.h>

#include "ft/msg.h"
#include "tests/agent/harness.h"
#include "transport/frame.h"
#include "transport/pki.h"

#define URI "kemari:tls:127.0.0.1:7000"
#define DAY (24 * 60 * 60)

static struct host a, b;
static struct kv_client client;

/* pki/: the CA of this test, with h (good), old (expired), other (for another host). wrong/:
 * another CA. */
static int group_setup(void **state)
{
	static const char *const here[] = {"127.0.0.1"}, *const there[] = {"203.0.113.7"};
	struct ft_err err = {0};
	time_t now = time(NULL);

	(void)state;
	if (pki_init(at("pki"), &err) || pki_issue(at("pki"), "h", here, 1, &err) ||
	    pki_issue_for(at("pki"), "old", here, 1, now - 2 * DAY, now - DAY, &err) ||
	    pki_issue(at("pki"), "other", there, 1, &err) || pki_init(at("wrong"), &err) ||
	    pki_issue(at("wrong"), "h", here, 1, &err))
		fail_msg("%s", err.text);
	return 0;
}

static void conf(const char *name, const char *ca, const char *cert, const char *extra)
{
	char tls[400];

	snprintf(tls, sizeof tls,
		 "tls { ca = \"%s/ca.pem\" cert = \"%s.pem\" key = \"%s.key\" }\n%s", ca, cert,
		 cert, extra);
	pocket_conf(at("%s", name), "", tls);
}

static int setup(void **state)
{
	place_clear(state); /* a failed teardown has not */
	a = host_make("A");
	b = host_make("B");
	conf("a.conf", "pki", "pki/h", "");
	host_start(&a, at("a.conf"), NULL);
	wait_state(&a, "solo", START_MS);
	kv_open(&client);
	kv_work(&client, 3);
	return 0;
}

static void start_standby(const char *name, const char *uri)
{
	host_start(&b, at("%s", name), "--set", "disk.root.image=B.img", "--incoming", uri, NULL);
	wait_state(&b, "standby", START_MS);
}

/* After whatever went wrong: the guest lives, and the agent can still do its work. */
static int teardown(void **state)
{
	kv_work(&client, 3);
	assert_state(&a, "solo");
	if (b.agent)
		host_stop(&b);
	conf("good.conf", "pki", "pki/h", "");
	start_standby("good.conf", URI);
	ask_ok(&a, "migrate", URI);
	kv_work(&client, 20);
	ask_ok(&a, "verify", NULL);
	host_stop(&a);
	host_stop(&b);
	kv_close(&client);
	return place_clear(state);
}

static void nobody_there(void **state)
{
	(void)state;
	ask_refused(&a, "migrate", URI, "refused");
	ask_refused(&a, "migrate", "kemari:tls:127.0.0.1", "port");
	ask_refused(&a, "migrate", "kemari:tls:no.such.host.invalid:7000", "no.such.host.invalid");
	ask_refused(&a, "migrate", "tls:127.0.0.1:7000", "refused");
	ask_refused(&a, "migrate", "", "");
	ask_refused(&a, "checkpoint", NULL, "not protected");
	ask_refused(&a, "verify", NULL, "not protected");
	ask_refused(&a, "failover", NULL, "not protected");
	ask_refused(&a, "cancel", NULL, "not protected");
	ask_refused(&a, "dance", NULL, "no such command");
}

static void standby_of_another_ca(void **state)
{
	(void)state;
	conf("b.conf", "wrong", "wrong/h", "");
	start_standby("b.conf", URI);
	ask_refused(&a, "migrate", URI, "certificate");
}

/* Its own certificate an agent checks when it starts; the peer's whenever they meet. */
static void standby_expired(void **state)
{
	static const char *const here[] = {"127.0.0.1"};
	uint64_t until = now_ms() + START_MS;
	struct ft_err err = {0};
	time_t now = time(NULL);

	(void)state;
	conf("b.conf", "pki", "pki/old", "");
	assert_int_equal(host_try(&b, at("b.conf"), "--incoming", URI, NULL), 2);
	host_one_error(&b, "expired");
	assert_int_equal(pki_issue_for(at("pki"), "soon", here, 1, now - DAY, now + 2, &err), 0);
	conf("b.conf", "pki", "pki/soon", "");
	start_standby("b.conf", URI);
	while (time(NULL) <= now + 2)
		breathe(until, "the certificate expires");
	ask_refused(&a, "migrate", URI, "expired");
}

static void standby_of_another_name(void **state)
{
	(void)state;
	conf("b.conf", "pki", "pki/other", "");
	start_standby("b.conf", URI);
	ask_refused(&a, "migrate", URI, "127.0.0.1");
}

/* Now it is the standby that refuses, and both say so. An agent whose own certificate is not its
 * CA's does not even start. */
static void standby_wants_another_name(void **state)
{
	(void)state;
	conf("b.conf", "wrong", "pki/h", "");
	assert_int_equal(host_try(&b, at("b.conf"), "--incoming", URI, NULL), 2);
	host_one_error(&b, "does not verify with CA");
	conf("b.conf", "pki", "pki/h", "");
	host_start(&b, at("b.conf"), "--set", "disk.root.image=B.img", "--set",
		   "tls.peer=203.0.113.7", "--incoming", URI, NULL);
	wait_state(&b, "standby", START_MS);
	ask_refused(&a, "migrate", URI, "certificate");
	host_wait_said(&b, "203.0.113.7", START_MS);
	assert_state(&b, "standby");
}

/* Another host with a good certificate of the same CA is no primary of this guest; the one that was
 * named is. */
static void standby_knows_its_primaries(void **state)
{
	(void)state;
	conf("b.conf", "pki", "pki/h", "");
	host_start(&b, at("b.conf"), "--set", "disk.root.image=B.img", "--set",
		   "tls.peer=203.0.113.7", "--set", "tls.peer=127.0.0.1", "--incoming", URI, NULL);
	wait_state(&b, "standby", START_MS);
	ask_ok(&a, "migrate", URI);
	wait_state(&a, "protected", PROTECT_MS);
	ask_ok(&a, "cancel", NULL);
}

static int talk_to(uint16_t port)
{
	struct sockaddr_in to = {.sin_family = AF_INET,
				 .sin_port = htons(port),
				 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct timeval limit = {10, 0};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
	return fd;
}

/* Reads until the other side closes. */
static void wait_closed(int fd)
{
	char got[512];
	ssize_t n;

	while ((n = recv(fd, got, sizeof got, 0)) > 0)
		;
	if (n < 0 && errno != ECONNRESET)
		fail_msg("the connection stays open");
	close(fd);
}

static void plain_text(void **state)
{
	static const char words[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
	struct frame_header h = {.type = FT_MSG_HELLO, .seq = 1};
	uint8_t frame[FRAME_HEADER];
	int fd;

	(void)state;
	conf("b.conf", "pki", "pki/h", "");
	start_standby("b.conf", URI);
	fd = talk_to(7000);
	assert_int_equal(send(fd, words, sizeof words - 1, 0), sizeof words - 1);
	wait_closed(fd);
	host_wait_said(&b, "TLS", START_MS);
	h.body_hash = h.payload_hash = frame_hash(NULL, 0);
	frame_encode(&h, frame);
	fd = talk_to(7000);
	assert_int_equal(send(fd, frame, sizeof frame, 0), sizeof frame);
	wait_closed(fd);
	assert_state(&b, "standby");
}

/* The other way round: TLS to a port that speaks plain text, and to one that says nothing. */
static void tls_to_plain_text(void **state)
{
	struct sockaddr_in in = {.sin_family = AF_INET,
				 .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
				 .sin_port = htons(7001)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	(void)state;
	conf("b.conf", "pki", "pki/h", "");
	host_start(&b, at("b.conf"), "--set", "disk.root.image=B.img", "--set", "tls.insecure=true",
		   "--incoming", "kemari:tcp:127.0.0.1:7000", NULL);
	wait_state(&b, "standby", START_MS);
	ask_refused(&a, "migrate", URI, "TLS");
	assert_int_equal(bind(fd, (struct sockaddr *)&in, sizeof in), 0);
	assert_int_equal(listen(fd, 4), 0);
	ask_refused(&a, "migrate", "kemari:tls:127.0.0.1:7001", "within");
	close(fd);
}

static void another_guest(void **state)
{
	(void)state;
	write_file(at("b.conf"),
		   "name = \"h\"\nvmm = \"pocket\"\nmemory = \"32M\"\nprogram = \"kv\"\ndisk root "
		   "{ image = \"B.img\" size = \"8M\" }\n"
		   "tls { ca = \"pki/ca.pem\" cert = \"pki/h.pem\" key = \"pki/h.key\" }\n");
	host_start(&b, at("b.conf"), "--incoming", URI, NULL);
	host_wait_said(&b, "standby", START_MS);
	ask_refused(&a, "migrate", URI, "agent is for 'h'");
	host_signal(&b, SIGTERM);
	assert_int_equal(host_reap(&b, START_MS), 0);
}

static void same_host(void **state)
{
	(void)state;
	conf("b.conf", "pki", "pki/h", "");
	host_start(&b, at("b.conf"), "--host-id", "A", "--set", "disk.root.image=B.img",
		   "--incoming", URI, NULL);
	wait_state(&b, "standby", START_MS);
	ask_refused(&a, "migrate", URI, "this host");
}

/* Machines that differ: refused with the standby's own words, before anything was copied. */
static void other_machine(void **state)
{
	static const struct {
		const char *set, *says;
	} cases[] = {
		{"memory=64M", "memory"},
		{"disk.root.size=16M", "size"},
		{"program=dirty", "program"},
		{"uuid=11111111-2222-3333-4444-555555555555", "uuid"},
	};

	(void)state;
	conf("b.conf", "pki", "pki/h", "");
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		shell("rm -f %s*", at("B.img"));
		host_start(&b, at("b.conf"), "--set", "disk.root.image=B.img", "--set",
			   cases[i].set, "--incoming", URI, NULL);
		wait_state(&b, "standby", START_MS);
		ask_refused(&a, "migrate", URI, cases[i].says);
		kv_work(&client, 2);
		host_stop(&b);
	}
	/* An image that is too short, one that cannot be made. */
	make_image(at("B.img"), 4 << 20);
	host_start(&b, at("b.conf"), "--set", "disk.root.image=B.img", "--incoming", URI, NULL);
	wait_state(&b, "standby", START_MS);
	ask_refused(&a, "migrate", URI, "4194304 bytes");
	host_stop(&b);
	host_start(&b, at("b.conf"), "--set", "disk.root.image=nowhere/B.img", "--incoming", URI,
		   NULL);
	wait_state(&b, "standby", START_MS);
	ask_refused(&a, "migrate", URI, "nowhere/B.img");
	shell("rm -f %s*", at("B.img"));
}

/* Already a primary of its own: two primaries never meet. */
static void to_a_primary(void **state)
{
	(void)state;
	conf("b.conf", "pki", "pki/h", "");
	start_standby("b.conf", URI);
	ask_ok(&a, "migrate", URI);
	ask_refused(&a, "migrate", URI, "protected");
	ask_refused(&b, "migrate", URI, "standby");
	ask_refused(&b, "cancel", NULL, "standby");
	ask_ok(&a, "cancel", NULL);
	ask_refused(&b, "failover", NULL, "no checkpoint");
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(nobody_there),
		TEST(standby_of_another_ca),
		TEST(standby_expired),
		TEST(standby_of_another_name),
		TEST(standby_wants_another_name),
		TEST(standby_knows_its_primaries),
		TEST(plain_text),
		TEST(tls_to_plain_text),
		TEST(another_guest),
		TEST(same_host),
		TEST(other_machine),
		TEST(to_a_primary),
	};
	int failed;

	place_open();
	failed = cmocka_run_group_tests(tests, group_setup, NULL);
	return failed + place_close();
}
