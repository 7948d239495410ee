// SPDX-License-Identifier: Apache-2.0
// Listener and connector without TLS: addresses, stale sockets, ports in use, deadlines, black
// holes. (With TLS: test_tls.c)
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
#include <unistd.h>
#include <cmocka.h>

#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "tests/fixture/transport.h"
#include "transport/connector.h"
#include "transport/listener.h"

struct test {
	struct event_base *base;
	struct listener *listener;
	struct connector *connector;
	struct end client, server;
	unsigned accepts, refusals, failures;
	struct ft_err failed;
	bool close_when_accepted;
};

static void accepted(void *ctx, struct ft_link *link)
{
	struct test *t = ctx;

	t->accepts++;
	end_close(&t->server);
	end_take(&t->server, link);
	if (t->close_when_accepted) {
		listener_close(t->listener);
		t->listener = NULL;
	}
}

static void refused(void *ctx, const struct ft_err *why)
{
	struct test *t = ctx;

	(void)why;
	t->refusals++;
}

static void connected(void *ctx, struct ft_link *link, const struct ft_err *why)
{
	struct test *t = ctx;

	t->connector = NULL;
	if (link) {
		end_take(&t->client, link);
	} else {
		t->failures++;
		t->failed = *why;
	}
}

static struct uri uri_of(const char *text)
{
	struct uri uri;
	struct ft_err err;

	if (uri_parse(text, &uri, &err))
		fail_msg("%s", err.text);
	return uri;
}

static int listen_on(struct test *t, const struct uri *uri, struct listener **out,
		     struct ft_err *err)
{
	struct listener_events events = {accepted, refused, t};

	return listener_open(t->base, uri, NULL, &events, out, err);
}

static void setup(struct test *t)
{
	memset(t, 0, sizeof *t);
	t->base = event_base_new();
}

static void teardown(struct test *t)
{
	connector_cancel(t->connector);
	end_close(&t->client);
	end_close(&t->server);
	listener_close(t->listener);
	event_base_free(t->base);
}

static void says(const struct ft_err *err, int code, const char *text)
{
	assert_int_equal(err->code, code);
	if (!strstr(err->text, text))
		fail_msg("\"%s\" does not say \"%s\"", err->text, text);
}

static void reach(struct test *t, const struct uri *uri, unsigned deadline_ms)
{
	assert_int_equal(
		connector_start(t->base, uri, NULL, deadline_ms, connected, t, &t->connector, NULL),
		0);
}

static void meet(const char *listen_text, const char *host)
{
	struct uri uri = uri_of(listen_text);
	struct test t;

	setup(&t);
	uri.port = 0;
	assert_int_equal(listen_on(&t, &uri, &t.listener, NULL), 0);
	uri = *listener_uri(t.listener);
	strcpy(uri.host, host);
	reach(&t, &uri, 2000);
	run_until(t.base, t.client.link && t.server.link);
	assert_int_equal(end_send(&t.client, 1, "ping", 4), 0);
	assert_int_equal(end_send(&t.server, 1, "pong", 4), 0);
	run_until(t.base, t.client.messages && t.server.messages);
	teardown(&t);
}

static void test_meet(void **state)
{
	(void)state;
	meet("kemari:tcp:127.0.0.1:1", "127.0.0.1");
	meet("kemari:tcp:0.0.0.0:1",
	     "localhost"); /* IPv6 first perhaps: refused, then the next address */
	meet("kemari:tcp:localhost:1", "localhost");
	int fd = socket(AF_INET6, SOCK_STREAM, 0);
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	if (fd >= 0 && !bind(fd, (struct sockaddr *)&in6, sizeof in6))
		meet("kemari:tcp:[::1]:1", "::1");
	else
		print_message("no IPv6 here: that part is skipped\n");
	close(fd);
}

static void test_peer_names(void **state)
{
	struct uri uri = uri_of("kemari:tcp:127.0.0.1:1");
	struct test t;
	char text[100];

	(void)state;
	setup(&t);
	uri.port = 0;
	assert_int_equal(listen_on(&t, &uri, &t.listener, NULL), 0);
	reach(&t, listener_uri(t.listener), 2000);
	run_until(t.base, t.client.link && t.server.link);
	assert_string_equal(t.client.link->peer,
			    uri_format(listener_uri(t.listener), text, sizeof text));
	assert_non_null(strstr(t.server.link->peer, "kemari:tcp:127.0.0.1:"));
	teardown(&t);
}

static void test_port_in_use(void **state)
{
	struct uri uri = uri_of("kemari:tcp:127.0.0.1:1");
	struct listener *second;
	struct ft_err err;
	struct test t;
	char text[100];

	(void)state;
	setup(&t);
	uri.port = 0;
	assert_int_equal(listen_on(&t, &uri, &t.listener, &err), 0);
	assert_int_equal(listen_on(&t, listener_uri(t.listener), &second, &err), -EADDRINUSE);
	snprintf(text, sizeof text, "listen on kemari:tcp:127.0.0.1:%u: port %u is in use",
		 listener_uri(t.listener)->port, listener_uri(t.listener)->port);
	says(&err, EADDRINUSE, text);
	uri = uri_of("tcp:192.0.2.1:4444");
	assert_int_equal(listen_on(&t, &uri, &second, &err), -EADDRNOTAVAIL);
	says(&err, EADDRNOTAVAIL, "192.0.2.1 is no address of this host");
	uri = uri_of("tls:127.0.0.1:4444");
	assert_int_equal(listen_on(&t, &uri, &second, &err), -EINVAL);
	says(&err, EINVAL, "no certificate is configured");
	uri = uri_of("file:/x");
	assert_int_equal(listen_on(&t, &uri, &second, &err), -EINVAL);
	teardown(&t);
}

static void test_unix(void **state)
{
	char dir[] = "/tmp/ft-test-unix-XXXXXX", text[100];
	struct listener *second;
	struct ft_err err;
	struct stat st;
	struct uri uri;
	struct test t;
	int fd;

	(void)state;
	setup(&t);
	assert_non_null(mkdtemp(dir));
	snprintf(text, sizeof text, "kemari:unix:%s/sock", dir);
	uri = uri_of(text);
	/* What a dead process left behind. */
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	strcpy(un.sun_path, uri.path);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&un, sizeof un), 0);
	close(fd);
	if (listen_on(&t, &uri, &t.listener, &err))
		fail_msg("%s", err.text);
	assert_int_equal(stat(uri.path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	/* Somebody lives there. */
	assert_int_equal(listen_on(&t, &uri, &second, &err), -EADDRINUSE);
	says(&err, EADDRINUSE, "another process listens there");
	reach(&t, &uri, 2000);
	run_until(t.base, t.client.link && t.accepts == 2); /* the probe of the second came, too */
	assert_int_equal(end_send(&t.client, 1, "ping", 4), 0);
	run_until(t.base, t.server.messages);
	listener_close(t.listener);
	t.listener = NULL;
	assert_int_equal(access(uri.path, F_OK), -1);
	/* Not ours to replace. */
	fd = open(uri.path, O_CREAT | O_WRONLY, 0600);
	close(fd);
	assert_int_equal(listen_on(&t, &uri, &second, &err), -EEXIST);
	says(&err, EEXIST, "the path exists and is no socket");
	unlink(uri.path);
	/* Nobody there. */
	end_close(&t.client);
	reach(&t, &uri, 2000);
	run_until(t.base, t.failures);
	says(&t.failed, ENOENT, "sock: connecting: No such file");
	rmdir(dir);
	teardown(&t);
}

static void test_close_when_accepted(void **state)
{
	struct uri uri = uri_of("tcp:127.0.0.1:1");
	struct test t;

	(void)state;
	setup(&t);
	t.close_when_accepted = true;
	uri.port = 0;
	assert_int_equal(listen_on(&t, &uri, &t.listener, NULL), 0);
	reach(&t, listener_uri(t.listener), 2000);
	run_until(t.base, t.client.link && t.server.link);
	assert_null(t.listener);
	assert_int_equal(end_send(&t.server, 1, "x", 1), 0);
	run_until(t.base, t.client.messages);
	teardown(&t);
}

static void test_refused(void **state)
{
	struct uri uri = uri_of("tcp:127.0.0.1:1"), gone;
	struct ft_err err;
	struct test t;

	(void)state;
	setup(&t);
	uri.port = 0;
	assert_int_equal(listen_on(&t, &uri, &t.listener, NULL), 0);
	gone = *listener_uri(t.listener);
	listener_close(t.listener);
	t.listener = NULL;
	reach(&t, &gone, 2000);
	assert_int_equal(t.failures, 0); /* from the loop only */
	run_until(t.base, t.failures);
	says(&t.failed, ECONNREFUSED, "connect to tcp:127.0.0.1:");
	says(&t.failed, ECONNREFUSED, "Connection refused");
	uri = uri_of("file:/x");
	assert_int_equal(connector_start(t.base, &uri, NULL, 1, connected, &t, &t.connector, &err),
			 -EINVAL);
	uri = uri_of("tls:localhost:1");
	assert_int_equal(connector_start(t.base, &uri, NULL, 1, connected, &t, &t.connector, &err),
			 -EINVAL);
	says(&err, EINVAL, "connect to tls:localhost:1: no certificate is configured");
	teardown(&t);
}

/* A full backlog: the kernel drops our SYN. */
static void test_black_hole(void **state)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof in;
	int listener = socket(AF_INET, SOCK_STREAM, 0), fill[4];
	struct uri uri = uri_of("tcp:127.0.0.1:1");
	struct test t;

	(void)state;
	setup(&t);
	assert_int_equal(bind(listener, (struct sockaddr *)&in, sizeof in), 0);
	assert_int_equal(listen(listener, 0), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&in, &len), 0);
	for (int i = 0; i < 4; i++) {
		fill[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		(void)!connect(fill[i], (struct sockaddr *)&in, sizeof in);
	}
	uri.port = ntohs(in.sin_port);
	reach(&t, &uri, 100);
	run_until(t.base, t.failures);
	says(&t.failed, ETIMEDOUT, "connecting: no answer within 100 ms");
	/* And once more, given up by us. */
	reach(&t, &uri, 5000);
	run_idle(t.base);
	connector_cancel(t.connector);
	t.connector = NULL;
	run_idle(t.base);
	assert_int_equal(t.failures, 1);
	for (int i = 0; i < 4; i++)
		close(fill[i]);
	close(listener);
	teardown(&t);
}

static void test_unix_backlog(void **state)
{
	char dir[] = "/tmp/ft-test-unix-XXXXXX", text[100];
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	int listener = socket(AF_UNIX, SOCK_STREAM, 0), fill[2];
	struct uri uri;
	struct test t;

	(void)state;
	setup(&t);
	assert_non_null(mkdtemp(dir));
	snprintf(text, sizeof text, "unix:%s/sock", dir);
	uri = uri_of(text);
	strcpy(un.sun_path, uri.path);
	assert_int_equal(bind(listener, (struct sockaddr *)&un, sizeof un), 0);
	assert_int_equal(listen(listener, 0), 0);
	for (int i = 0; i < 2; i++) {
		fill[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
		(void)!connect(fill[i], (struct sockaddr *)&un, sizeof un);
	}
	reach(&t, &uri, 100);
	run_until(t.base, t.failures);
	says(&t.failed, EAGAIN, "its backlog stays full");
	for (int i = 0; i < 2; i++)
		close(fill[i]);
	close(listener);
	unlink(uri.path);
	rmdir(dir);
	teardown(&t);
}

/* Out of descriptors: the listener pauses rather than spins, and goes on when there are some again.
 */
static void test_no_descriptors(void **state)
{
	struct uri uri = uri_of("tcp:127.0.0.1:1");
	struct rlimit was, none;
	struct test t;
	int client;

	(void)state;
	setup(&t);
	uri.port = 0;
	assert_int_equal(listen_on(&t, &uri, &t.listener, NULL), 0);
	client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in in = {.sin_family = AF_INET,
				 .sin_port = htons(listener_uri(t.listener)->port),
				 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	assert_int_equal(connect(client, (struct sockaddr *)&in, sizeof in), 0);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &was), 0);
	none = was;
	none.rlim_cur = 0;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	run_idle(t.base);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &was), 0);
	assert_int_equal(t.accepts, 0);
	run_until(t.base, t.accepts == 1);
	close(client);
	teardown(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_meet),
		cmocka_unit_test(test_peer_names),
		cmocka_unit_test(test_port_in_use),
		cmocka_unit_test(test_unix),
		cmocka_unit_test(test_close_when_accepted),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_black_hole),
		cmocka_unit_test(test_unix_backlog),
		cmocka_unit_test(test_no_descriptors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
