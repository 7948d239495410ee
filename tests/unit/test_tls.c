// SPDX-License-Identifier: Apache-2.0
// Our listener and connector against each other and against OpenSSL peers that do what ours never
// would. Bare peers block in a thread of their own.
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <pthread.h>

#include "tests/fixture/transport.h"
#include "transport/connector.h"
#include "transport/listener.h"

#define DEADLINE_MS 5000
#define DAY_S	    86400

static char dir[64], other_dir[64];
static struct tls_config *good_config;

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

	start(&t, "tls:127.0.0.1:1", good_config);
	b.listener = listen_loopback(1, &b.port);
	bare_start(&b);
	reach_port(&t, host, b.port, good_config);
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
	exchange(&t, "127.0.0.1", good_config, good_config);
	exchange(&t, "localhost", good_config, good_config); /* /etc/hosts, DNS name */
}

static void test_expected_peer(void **state)
{
	struct tls_config *picky = load_config(dir, dir, "good", "backup.example");
	struct tls_config *by_ip = load_config(dir, dir, "good", "10.9.8.7");
	struct tls_config *several = load_config(dir, dir, "good", "other.example backup.example");
	struct tls_config *backup = load_config(dir, dir, "backup", NULL);
	struct test t;

	(void)state;
	exchange(&t, "127.0.0.1", picky, backup);
	exchange(&t, "127.0.0.1", by_ip, backup);
	exchange(&t, "127.0.0.1", several, backup);
	refuses(bare_ctx(dir, "good", TLS1_3_VERSION), picky,
		"peer's certificate is not for backup.example but for localhost, 127.0.0.1");
	refuses(bare_ctx(dir, "good", TLS1_3_VERSION), by_ip,
		"is not for 10.9.8.7 but for localhost");
	refuses(bare_ctx(dir, "good", TLS1_3_VERSION), several,
		"is not for other.example or backup.example but for localhost");
	tls_config_free(several);
	tls_config_free(picky);
	tls_config_free(by_ip);
	tls_config_free(backup);
}

/* ---- a channel that stutters: a byte a call, and now and then "not now" ---- */

struct stutter {
	struct channel channel;
	struct channel *inner;
	uint32_t seed;
	size_t chunk;
	uint64_t flip_at, read; /* the byte of the stream that is turned over, 0 none */
};

static bool stutters(struct stutter *s)
{
	s->seed = s->seed * 1664525 + 1013904223;
	return s->seed >> 30 == 0;
}

static enum channel_status stutter_open(struct channel *c, struct ft_err *err)
{
	struct stutter *s = (struct stutter *)c;

	return s->inner->ops->open(s->inner, err);
}

static enum channel_status stutter_read(struct channel *c, void *buf, size_t len, size_t *done,
					struct ft_err *err)
{
	struct stutter *s = (struct stutter *)c;
	enum channel_status status;

	if (stutters(s))
		return CHANNEL_WANT_READ;
	status = s->inner->ops->read(s->inner, buf, len < s->chunk ? len : s->chunk, done, err);
	if (status == CHANNEL_DONE) {
		if (s->flip_at && s->flip_at >= s->read && s->flip_at < s->read + *done)
			((uint8_t *)buf)[s->flip_at - s->read] ^= 4;
		s->read += *done;
	}
	return status;
}

static enum channel_status stutter_write(struct channel *c, const struct iovec *iov, int iov_n,
					 size_t *done, struct ft_err *err)
{
	struct stutter *s = (struct stutter *)c;
	struct iovec one = {iov[0].iov_base, iov[0].iov_len < s->chunk ? iov[0].iov_len : s->chunk};

	(void)iov_n;
	return stutters(s) ? CHANNEL_WANT_WRITE
			   : s->inner->ops->write(s->inner, &one, 1, done, err);
}

static bool stutter_pending(const struct channel *c)
{
	(void)c;
	return false;
}

static int stutter_fd(const struct channel *c)
{
	const struct stutter *s = (const struct stutter *)c;

	return s->inner->ops->fd(s->inner);
}

static void stutter_shutdown(struct channel *c)
{
	struct stutter *s = (struct stutter *)c;

	s->inner->ops->shutdown(s->inner);
}

static void stutter_close(struct channel *c)
{
	struct stutter *s = (struct stutter *)c;

	s->inner->ops->close(s->inner);
	free(s);
}

static const struct channel_ops stutter_ops = {stutter_open,	stutter_read, stutter_write,
					       stutter_pending, stutter_fd,   stutter_shutdown,
					       stutter_close};

static struct channel *over_stutter(int fd, enum tls_role role, size_t chunk, uint64_t flip_at)
{
	struct stutter *s = calloc(1, sizeof *s);
	struct channel *c;

	*s = (struct stutter){
		.channel.ops = &stutter_ops, .seed = 7, .chunk = chunk, .flip_at = flip_at};
	s->inner = channel_socket_new(fd, NULL);
	c = channel_tls_new(good_config, &s->channel, role, "localhost", NULL);
	assert_non_null(c);
	return c;
}

/* Both handshakes by turns: the sockets are a pair in this very thread. */
static void shake(struct channel *a, struct channel *b)
{
	enum channel_status sa, sb;
	struct ft_err err;

	for (int i = 0; i < 1000000; i++) {
		sa = a->ops->open(a, &err);
		sb = b->ops->open(b, &err);
		if (sa == CHANNEL_DONE && sb == CHANNEL_DONE)
			return;
		assert_true(sa < CHANNEL_CLOSED && sb < CHANNEL_CLOSED);
	}
	fail();
}

static void check_noise(struct end *end, const struct ft_msg *msg)
{
	(void)end;
	for (uint32_t i = 0; i < msg->payload_len; i++)
		if (msg->payload[i] != (uint8_t)(i * 13 + msg->type))
			fail_msg("byte %u of %u", i, msg->payload_len);
}

static void test_stutter(void **state)
{
	static const uint32_t sizes[] = {0, 1, 100, 16383, 16384, 16385, 70000, FT_PAYLOAD_MAX};
	static uint8_t noise[FT_PAYLOAD_MAX];

	(void)state;
	for (size_t chunk = 1; chunk < 10000; chunk = chunk * 9 + 1) {
		struct event_base *base = event_base_new();
		struct channel *a, *b;
		struct end ea = {0}, eb = {0};
		unsigned n = chunk == 1 ? 6 : 8;
		int fd[2];

		tcp_pair(fd);
		a = over_stutter(fd[0], TLS_CONNECT, chunk, 0);
		b = over_stutter(fd[1], TLS_ACCEPT, chunk, 0);
		shake(a, b);
		end_take(&ea, link_new(base, a, "a", NULL));
		end_take(&eb, link_new(base, b, "b", NULL));
		ea.on_message = eb.on_message = check_noise;
		for (unsigned i = 0; i < n; i++) {
			for (uint32_t k = 0; k < sizes[i]; k++)
				noise[k] = (uint8_t)(k * 13 + i);
			assert_int_equal(end_send(&ea, (uint16_t)i, noise, sizes[i]), 0);
			assert_int_equal(end_send(&eb, (uint16_t)i, noise, sizes[i]), 0);
		}
		run_until(base, ea.messages == n && eb.messages == n);
		assert_int_equal(ea.closes + eb.closes, 0);
		end_close(&ea);
		end_close(&eb);
		event_base_free(base);
	}
}

static void test_corrupted_record(void **state)
{
	struct event_base *base = event_base_new();
	struct channel *a, *b;
	struct end ea = {0}, eb = {0};
	struct stutter *s;
	int fd[2];

	(void)state;
	tcp_pair(fd);
	a = over_stutter(fd[0], TLS_CONNECT, 1000, 0);
	b = over_stutter(fd[1], TLS_ACCEPT, 1000, 0);
	shake(a, b);
	end_take(&ea, link_new(base, a, "a", NULL));
	end_take(&eb, link_new(base, b, "b", NULL));
	assert_int_equal(end_send(&ea, 1, "good", 4), 0);
	run_until(base, eb.messages == 1);
	s = *(struct stutter **)((char *)b + sizeof *b); /* the first field after the base: inner */
	s->flip_at = s->read + 50;
	assert_int_equal(end_send(&ea, 1, "bad", 3), 0);
	run_until(base, eb.closes);
	assert_int_equal(eb.messages, 1);
	says(&eb.why, "link to b: record was corrupted on the way");
	end_close(&eb);
	run_until(base, ea.closes);
	end_close(&ea);
	event_base_free(base);
}

/* ---- they must not get along ---- */

static void test_bad_clients(void **state)
{
	(void)state;
	refuses(bare_ctx(NULL, NULL, TLS1_3_VERSION), good_config, "peer showed no certificate");
	refuses(bare_ctx(other_dir, "stranger", TLS1_3_VERSION), good_config,
		"peer's certificate is not signed by our CA");
	refuses(bare_ctx(dir, "old", TLS1_3_VERSION), good_config,
		"peer's certificate has expired");
	refuses(bare_ctx(dir, "future", TLS1_3_VERSION), good_config, "not valid yet");
	refuses(bare_ctx(dir, "good", TLS1_2_VERSION), good_config, "peer does not speak TLS 1.3");
	refuses(NULL, good_config, "peer does not speak TLS");
}

static void test_bad_servers(void **state)
{
	(void)state;
	fails(bare_ctx(other_dir, "stranger", TLS1_3_VERSION), "127.0.0.1",
	      "is not signed by our CA");
	fails(bare_ctx(dir, "old", TLS1_3_VERSION), "127.0.0.1", "peer's certificate has expired");
	fails(bare_ctx(dir, "backup", TLS1_3_VERSION), "127.0.0.1",
	      "peer's certificate is not for 127.0.0.1 but for backup.example, 10.9.8.7");
	fails(bare_ctx(dir, "backup", TLS1_3_VERSION), "localhost",
	      "peer's certificate is not for localhost but for backup.example");
	fails(bare_ctx(dir, "good", TLS1_2_VERSION), "127.0.0.1", "peer does not speak TLS 1.3");
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
	file_of(ca, other_dir, "both", "pem");
	file_of(cert, other_dir, "stranger", "pem");
	file_of(key, other_dir, "stranger", "key");
	assert_int_equal(tls_config_load(&files, &mixed, NULL), 0);
	start(&t, "tls:127.0.0.1:1", good_config);
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
	reach(&t, "127.0.0.1", good_config);
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
	start(&t, "tls:127.0.0.1:1", good_config);
	assert_int_equal(uri_parse("tls:127.0.0.1:1", &uri, NULL), 0);
	uri.port = (uint16_t)port;
	assert_int_equal(
		connector_start(t.base, &uri, good_config, 150, connected, &t, &t.connector, NULL),
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
	start(&t, "tls:127.0.0.1:1", good_config);
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
	assert_int_equal(connector_start(t.base, &uri, good_config, 2 * LISTENER_HANDSHAKE_MS,
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
		start(&t, "tls:127.0.0.1:1", good_config);
		reach(&t, turns % 2 ? "localhost" : "127.0.0.1", good_config);
		for (int i = 0; i < turns && t.connector; i++)
			event_base_loop(t.base, EVLOOP_NONBLOCK);
		stop(&t);
	}
}

static int setup(void **state)
{
	static const char *const good[] = {"localhost", "127.0.0.1"}, *const backup[] = {
									      "backup.example",
									      "10.9.8.7"};
	time_t now = time(NULL);
	char command[300];

	(void)state;
	strcpy(dir, "/tmp/ft-test-tls-XXXXXX");
	strcpy(other_dir, "/tmp/ft-test-tls-XXXXXX");
	if (!mkdtemp(dir) || !mkdtemp(other_dir) || pki_init(dir, NULL) ||
	    pki_init(other_dir, NULL) || pki_issue(dir, "good", good, 2, NULL) ||
	    pki_issue(dir, "backup", backup, 2, NULL) ||
	    pki_issue(other_dir, "stranger", good, 2, NULL) ||
	    pki_issue_for(dir, "old", good, 2, now - 2 * DAY_S, now - DAY_S, NULL) ||
	    pki_issue_for(dir, "future", good, 2, now + DAY_S, now + 2 * DAY_S, NULL))
		return -1;
	snprintf(command, sizeof command, "cat %s/ca.pem %s/ca.pem > %s/both.pem", dir, other_dir,
		 other_dir);
	if (system(command))
		return -1;
	good_config = load_config(dir, dir, "good", NULL);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	tls_config_free(good_config);
	remove_dir(dir);
	remove_dir(other_dir);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good),
		cmocka_unit_test(test_expected_peer),
		cmocka_unit_test(test_stutter),
		cmocka_unit_test(test_corrupted_record),
		cmocka_unit_test(test_bad_clients),
		cmocka_unit_test(test_bad_servers),
		cmocka_unit_test(test_client_hears_why),
		cmocka_unit_test(test_tls_to_plain_port),
		cmocka_unit_test(test_silent_server),
		cmocka_unit_test(test_silent_clients),
		cmocka_unit_test(test_cancel),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
