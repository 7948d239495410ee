// SPDX-License-Identifier: Apache-2.0
// Our listener and connector against each other and against OpenSSL peers that do what ours never
// would. Bare peers block in a thread of their own.
#include <errno.h>
#include <netinet/in.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/fixture/tls_hosts.h"
#include "tests/fixture/transport.h"
#include "transport/connector.h"
#include "transport/listener.h"

#define DEADLINE_MS 5000

struct test {
	struct event_base *base;
	struct listener *listener;
	struct connector *connector;
	struct end client, server;
	unsigned refusals, failures;
	struct ft_err refused, failed;
};

static void accepted(void *ctx, struct ft_link *link)
{
	struct test *t = ctx;

	end_take(&t->server, link);
}

static void refused(void *ctx, const struct ft_err *why)
{
	struct test *t = ctx;

	t->refusals++;
	t->refused = *why;
}

static void connected(void *ctx, struct ft_link *link, const struct ft_err *why)
{
	struct test *t = ctx;

	t->connector = NULL;
	if (link) {
		assert_null(why);
		end_take(&t->client, link);
	} else {
		t->failures++;
		t->failed = *why;
	}
}

static void start(struct test *t, const char *listen_on, const struct tls_config *config)
{
	struct listener_events events = {accepted, refused, t};
	struct uri uri;
	struct ft_err err;

	memset(t, 0, sizeof *t);
	t->base = event_base_new();
	assert_int_equal(uri_parse(listen_on, &uri, NULL), 0);
	uri.port = 0;
	if (listener_open(t->base, &uri, config, &events, &t->listener, &err))
		fail_msg("%s", err.text);
}

static void reach_port(struct test *t, const char *host, unsigned port,
		       const struct tls_config *config)
{
	char text[100];
	struct uri uri;

	snprintf(text, sizeof text, "kemari:tls:%s:%u", host, port);
	assert_int_equal(uri_parse(text, &uri, NULL), 0);
	assert_int_equal(connector_start(t->base, &uri, config, DEADLINE_MS, connected, t,
					 &t->connector, NULL),
			 0);
}

static void reach(struct test *t, const char *host, const struct tls_config *config)
{
	reach_port(t, host, listener_uri(t->listener)->port, config);
}

static void stop(struct test *t)
{
	connector_cancel(t->connector);
	end_close(&t->client);
	end_close(&t->server);
	listener_close(t->listener);
	event_base_free(t->base);
}

static void says(const struct ft_err *err, const char *text)
{
	if (!strstr(err->text, text))
		fail_msg("\"%s\" does not say \"%s\"", err->text, text);
}

/* ---- bare peers ---- */

struct bare {
	SSL_CTX *ctx; /* NULL: plain text */
	unsigned port;
	int listener; /* >= 0: serve one connection rather than connect */
	pthread_t thread;
};

static void file_of(char *out, const char *d, const char *name, const char *suffix)
{
	snprintf(out, 200, "%s/%s.%s", d, name, suffix);
}

/* Trusts everyone; shows certificate `name` of directory d, if any. */
static SSL_CTX *bare_ctx(const char *d, const char *name, int version)
{
	SSL_CTX *ctx = SSL_CTX_new(TLS_method());
	char path[200];

	assert_true(SSL_CTX_set_max_proto_version(ctx, version));
	if (name) {
		file_of(path, d, name, "pem");
		assert_int_equal(SSL_CTX_use_certificate_file(ctx, path, SSL_FILETYPE_PEM), 1);
		file_of(path, d, name, "key");
		assert_int_equal(SSL_CTX_use_PrivateKey_file(ctx, path, SSL_FILETYPE_PEM), 1);
	}
	return ctx;
}

static void *bare_run(void *arg)
{
	struct bare *b = arg;
	struct sockaddr_in in = {.sin_family = AF_INET,
				 .sin_port = htons((uint16_t)b->port),
				 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	SSL *ssl = b->ctx ? SSL_new(b->ctx) : NULL;
	int fd = b->listener >= 0 ? accept(b->listener, NULL, NULL)
				  : socket(AF_INET, SOCK_STREAM, 0);
	char buf[100];

	if (b->listener < 0 && connect(fd, (struct sockaddr *)&in, sizeof in))
		abort();
	if (!ssl) {
		memset(buf, 'x', sizeof buf);
		(void)!send(fd, buf, sizeof buf, MSG_NOSIGNAL);
		while (recv(fd, buf, sizeof buf, 0) > 0)
			;
	} else {
		SSL_set_fd(ssl, fd);
		if ((b->listener >= 0 ? SSL_accept(ssl) : SSL_connect(ssl)) == 1)
			while (SSL_read(ssl, buf, sizeof buf) > 0)
				;
	}
	SSL_free(ssl);
	close(fd);
	return NULL;
}

static void bare_start(struct bare *b)
{
	assert_int_equal(pthread_create(&b->thread, NULL, bare_run, b), 0);
}

static void bare_stop(struct bare *b)
{
	pthread_join(b->thread, NULL);
	SSL_CTX_free(b->ctx);
	if (b->listener >= 0)
		close(b->listener);
}

static int listen_loopback(int backlog, unsigned *port)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof in;
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	assert_int_equal(bind(fd, (struct sockaddr *)&in, sizeof in), 0);
	assert_int_equal(listen(fd, backlog), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&in, &len), 0);
	*port = ntohs(in.sin_port);
	return fd;
}

/* ctx connects to our listener, which must refuse it. */
static void refuses(SSL_CTX *ctx, const struct tls_config *config, const char *text)
{
	struct bare b = {.ctx = ctx, .listener = -1};
	struct test t;

	start(&t, "tls:127.0.0.1:1", config);
	b.port = listener_uri(t.listener)->port;
	bare_start(&b);
	run_until(t.base, t.refusals || t.server.link);
	assert_null(t.server.link);
	says(&t.refused, "peer tls:127.0.0.1:");
	says(&t.refused, text);
	bare_stop(&b);
	stop(&t);
}

/* Our connector reaches ctx as `host`, and must fail. */
static void fails(SSL_CTX *ctx, const char *host, const char *text)
{
	struct bare b = {.ctx = ctx};
	struct test t;

	start(&t, "tls:127.0.0.1:1", hosts.good);
	b.listener = listen_loopback(1, &b.port);
	bare_start(&b);
	reach_port(&t, host, b.port, hosts.good);
	run_until(t.base, t.failures || t.client.link);
	assert_null(t.client.link);
	says(&t.failed, "connect to kemari:tls:");
	says(&t.failed, text);
	bare_stop(&b);
	stop(&t);
}

/* ---- they get along ---- */

static void exchange(struct test *t, const char *host, const struct tls_config *server,
		     const struct tls_config *client)
{
	static uint8_t payload[FT_PAYLOAD_MAX];

	start(t, "tls:127.0.0.1:1", server);
	reach(t, host, client);
	run_until(t->base, t->client.link && t->server.link);
	for (int i = 0; i < 20; i++) {
		assert_int_equal(end_send(&t->client, 1, payload, i % 2 ? sizeof payload : 1), 0);
		assert_int_equal(end_send(&t->server, 1, payload, i % 3 ? 77 : 20000), 0);
		run_until(t->base, t->client.messages == i + 1u && t->server.messages == i + 1u);
	}
	end_close(&t->client);
	run_until(t->base, t->server.closes);
	says(&t->server.why, "closed by the peer");
	assert_null(strstr(t->server.why.text, "middle"));
	assert_int_equal(t->refusals + t->failures, 0);
	stop(t);
}

static void test_good(void **state)
{
	struct test t;

	(void)state;
	exchange(&t, "127.0.0.1", hosts.good, hosts.good);
	exchange(&t, "localhost", hosts.good, hosts.good); /* /etc/hosts, DNS name */
}

static void test_expected_peer(void **state)
{
	struct tls_config *picky = load_config(hosts.dir, hosts.dir, "good", "backup.example");
	struct tls_config *by_ip = load_config(hosts.dir, hosts.dir, "good", "10.9.8.7");
	struct tls_config *several =
		load_config(hosts.dir, hosts.dir, "good", "other.example backup.example");
	struct tls_config *backup = load_config(hosts.dir, hosts.dir, "backup", NULL);
	struct test t;

	(void)state;
	exchange(&t, "127.0.0.1", picky, backup);
	exchange(&t, "127.0.0.1", by_ip, backup);
	exchange(&t, "127.0.0.1", several, backup);
	refuses(bare_ctx(hosts.dir, "good", TLS1_3_VERSION), picky,
		"peer's certificate is not for backup.example but for localhost, 127.0.0.1");
	refuses(bare_ctx(hosts.dir, "good", TLS1_3_VERSION), by_ip,
		"is not for 10.9.8.7 but for localhost");
	refuses(bare_ctx(hosts.dir, "good", TLS1_3_VERSION), several,
		"is not for other.example or backup.example but for localhost");
	tls_config_free(several);
	tls_config_free(picky);
	tls_config_free(by_ip);
	tls_config_free(backup);
}

/* ---- they must not get along ---- */

static void test_bad_clients(void **state)
{
	(void)state;
	refuses(bare_ctx(NULL, NULL, TLS1_3_VERSION), hosts.good, "peer showed no certificate");
	refuses(bare_ctx(hosts.other_dir, "stranger", TLS1_3_VERSION), hosts.good,
		"peer's certificate is not signed by our CA");
	refuses(bare_ctx(hosts.dir, "old", TLS1_3_VERSION), hosts.good,
		"peer's certificate has expired");
	refuses(bare_ctx(hosts.dir, "future", TLS1_3_VERSION), hosts.good, "not valid yet");
	refuses(bare_ctx(hosts.dir, "good", TLS1_2_VERSION), hosts.good,
		"peer does not speak TLS 1.3");
	refuses(NULL, hosts.good, "peer does not speak TLS");
}

static void test_bad_servers(void **state)
{
	(void)state;
	fails(bare_ctx(hosts.other_dir, "stranger", TLS1_3_VERSION), "127.0.0.1",
	      "is not signed by our CA");
	fails(bare_ctx(hosts.dir, "old", TLS1_3_VERSION), "127.0.0.1",
	      "peer's certificate has expired");
	fails(bare_ctx(hosts.dir, "backup", TLS1_3_VERSION), "127.0.0.1",
	      "peer's certificate is not for 127.0.0.1 but for backup.example, 10.9.8.7");
	fails(bare_ctx(hosts.dir, "backup", TLS1_3_VERSION), "localhost",
	      "peer's certificate is not for localhost but for backup.example");
	fails(bare_ctx(hosts.dir, "good", TLS1_2_VERSION), "127.0.0.1",
	      "peer does not speak TLS 1.3");
	fails(NULL, "127.0.0.1", "peer does not speak TLS");
}

/* With TLS 1.3 the client has its link before the server has looked at it; what it hears then must
 * still be the reason, even if it was writing all the time. */
static void test_client_hears_why(void **state)
{
	static uint8_t payload[FT_PAYLOAD_MAX];
	char ca[200], cert[200], key[200];
	struct tls_files files = {ca, cert, key, NULL};
	struct tls_config *mixed;
	struct test t;

	(void)state;
	/* Trusts both CAs, shows a certificate of the other. */
	file_of(ca, hosts.other_dir, "both", "pem");
	file_of(cert, hosts.other_dir, "stranger", "pem");
	file_of(key, hosts.other_dir, "stranger", "key");
	assert_int_equal(tls_config_load(&files, &mixed, NULL), 0);
	start(&t, "tls:127.0.0.1:1", hosts.good);
	reach(&t, "127.0.0.1", mixed);
	run_until(t.base, t.client.link || t.failures);
	for (int i = 0; t.client.link && i < 20; i++)
		end_send(&t.client, 1, payload, sizeof payload);
	run_until(t.base, t.refusals && (t.client.closes || t.failures));
	says(&t.refused, "not signed by our CA");
	says(t.failures ? &t.failed : &t.client.why,
	     "peer refuses our certificate: not signed by its CA");
	stop(&t);
	tls_config_free(mixed);
}

static void test_tls_to_plain_port(void **state)
{
	struct test t;

	(void)state;
	start(&t, "tcp:127.0.0.1:1", NULL);
	reach(&t, "127.0.0.1", hosts.good);
	run_until(t.base, t.server.closes);
	says(&t.server.why, "peer speaks TLS, this end is plaintext");
	end_close(&t.server);
	run_until(t.base, t.failures);
	says(&t.failed, "TLS handshake: closed by the peer during the TLS handshake");
	stop(&t);
}

/* ---- deadlines ---- */

/* A peer whose kernel accepts, but which never says a word. */
static void test_silent_server(void **state)
{
	struct test t;
	struct uri uri;
	unsigned port;
	int fd = listen_loopback(1, &port);

	(void)state;
	start(&t, "tls:127.0.0.1:1", hosts.good);
	assert_int_equal(uri_parse("tls:127.0.0.1:1", &uri, NULL), 0);
	uri.port = (uint16_t)port;
	assert_int_equal(
		connector_start(t.base, &uri, hosts.good, 150, connected, &t, &t.connector, NULL),
		0);
	run_until(t.base, t.failures);
	assert_int_equal(t.failed.code, ETIMEDOUT);
	says(&t.failed, "TLS handshake: no answer within 150 ms");
	close(fd);
	stop(&t);
}

/* Silent strangers take all places; when their time is over, who waits is served. */
static void test_silent_clients(void **state)
{
	int fd[LISTENER_PENDING_MAX];
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct test t;

	(void)state;
	start(&t, "tls:127.0.0.1:1", hosts.good);
	in.sin_port = htons(listener_uri(t.listener)->port);
	for (int i = 0; i < LISTENER_PENDING_MAX; i++) {
		fd[i] = socket(AF_INET, SOCK_STREAM, 0);
		assert_int_equal(connect(fd[i], (struct sockaddr *)&in, sizeof in), 0);
	}
	run_idle(t.base);
	run_idle(t.base);
	run_idle(t.base);
	/* No place for this one yet; it waits longer than they may. */
	struct uri uri = *listener_uri(t.listener);
	assert_int_equal(connector_start(t.base, &uri, hosts.good, 2 * LISTENER_HANDSHAKE_MS,
					 connected, &t, &t.connector, NULL),
			 0);
	run_until(t.base, t.client.link && t.server.link);
	assert_int_equal(t.refusals, LISTENER_PENDING_MAX);
	says(&t.refused, "TLS handshake: no answer within 5000 ms");
	for (int i = 0; i < LISTENER_PENDING_MAX; i++)
		close(fd[i]);
	stop(&t);
}

static void test_cancel(void **state)
{
	struct test t;

	(void)state;
	/* After each number of turns of the loop; pending handshakes of the listener go with it. */
	for (int turns = 0; turns < 8; turns++) {
		start(&t, "tls:127.0.0.1:1", hosts.good);
		reach(&t, turns % 2 ? "localhost" : "127.0.0.1", hosts.good);
		for (int i = 0; i < turns && t.connector; i++)
			event_base_loop(t.base, EVLOOP_NONBLOCK);
		stop(&t);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good),
		cmocka_unit_test(test_expected_peer),
		cmocka_unit_test(test_bad_clients),
		cmocka_unit_test(test_bad_servers),
		cmocka_unit_test(test_client_hears_why),
		cmocka_unit_test(test_tls_to_plain_port),
		cmocka_unit_test(test_silent_server),
		cmocka_unit_test(test_silent_clients),
		cmocka_unit_test(test_cancel),
	};

	return cmocka_run_group_tests(tests, tls_hosts_setup, tls_hosts_teardown);
}
