// SPDX-License-Identifier: Apache-2.0
/* The control socket's server, with a handler in this process and clients that are plain sockets:
 * honest, slow, mute and hostile. Both ends are driven by this one thread, so every order of events
 * is the test's choice. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tools/agent/ctl_server.h"

#define WITHIN_MS 20000
#define CALLS_MAX 64 /* of one test */

#define NOBODY 65534

static char dir[64], run_dir[80];
static struct event_base *base;
static struct ctl_server *server;

/* What the handler saw. */
static struct {
	unsigned requests, cancelled;
	struct ctl_call *calls[CALLS_MAX];
	char command[64], uri[256];
	bool answer_now;
} seen;

static void on_request(void *ctx, struct ctl_call *call, const Ctl__Request *request)
{
	(void)ctx;
	assert_true(seen.requests < CALLS_MAX);
	seen.calls[seen.requests] = call;
	seen.requests++;
	snprintf(seen.command, sizeof seen.command, "%s", request->command);
	snprintf(seen.uri, sizeof seen.uri, "%s", request->uri);
	if (seen.answer_now)
		ctl_reply_error(call, "echo", "%s", request->uri);
}

static void on_cancelled(void *ctx, struct ctl_call *call)
{
	bool known = false;

	(void)ctx;
	for (unsigned i = 0; i < seen.requests; i++)
		known |= seen.calls[i] == call;
	assert_true(known);
	seen.cancelled++;
}

static const struct ctl_server_ops ops = {.request = on_request, .cancelled = on_cancelled};

static void start(void)
{
	struct ft_err err;

	if (ctl_server_new(base, run_dir, "web1", &ops, &server, &err))
		fail_msg("%s", err.text);
}

static int setup(void **state)
{
	(void)state;
	memset(&seen, 0, sizeof seen);
	strcpy(dir, "/tmp/test-ctl-XXXXXX");
	if (!mkdtemp(dir))
		return -1;
	snprintf(run_dir, sizeof run_dir, "%s/run", dir);
	base = event_base_new();
	start();
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	ctl_server_free(server);
	event_base_free(base);
	/* Nothing of the server is left behind. */
	return rmdir(run_dir) || rmdir(dir);
}

static int64_t now_ms(void)
{
	struct timeval tv;

	evutil_gettimeofday(&tv, NULL);
	return tv.tv_sec * 1000 + tv.tv_usec / 1000;
}

/* Lets the server work until `*counter` is `n`. */
static void until(const unsigned *counter, unsigned n)
{
	int64_t deadline = now_ms() + WITHIN_MS;

	while (*counter < n) {
		struct timeval tick = {.tv_usec = 10000};

		assert_true(now_ms() < deadline);
		event_base_loopexit(base, &tick);
		event_base_loop(base, EVLOOP_ONCE);
	}
	assert_int_equal(*counter, n);
}

static int dial(void)
{
	struct sockaddr_un addr;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	assert_true(fd >= 0);
	assert_int_equal(ctl_socket_path(run_dir, "web1", &addr, NULL), 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof addr), 0);
	return fd;
}

static void put(int fd, const void *data, size_t len)
{
	assert_int_equal(send(fd, data, len, MSG_NOSIGNAL), (ssize_t)len);
}

static size_t pack(uint8_t *buf, const char *command, const char *state, uint64_t timeout_ms)
{
	Ctl__Request request = CTL__REQUEST__INIT;
	size_t len;

	request.command = (char *)command;
	request.state = (char *)state;
	request.timeout_ms = timeout_ms;
	len = ctl__request__pack(&request, buf + CTL_HEADER_BYTES);
	ctl_put_length(buf, (uint32_t)len);
	return CTL_HEADER_BYTES + len;
}

static void put_request(int fd, const char *command, const char *state, uint64_t timeout_ms)
{
	uint8_t buf[512];

	put(fd, buf, pack(buf, command, state, timeout_ms));
}

/* Reads exactly len bytes while the server works; false at the end of the connection. */
static bool get(int fd, uint8_t *data, size_t len)
{
	int64_t deadline = now_ms() + WITHIN_MS;

	while (len) {
		ssize_t n = recv(fd, data, len, 0);
		struct timeval tick = {.tv_usec = 10000};

		if (!n || (n < 0 && errno == ECONNRESET))
			return false;
		if (n > 0) {
			data += n;
			len -= (size_t)n;
			continue;
		}
		assert_int_equal(errno, EAGAIN);
		assert_true(now_ms() < deadline);
		event_base_loopexit(base, &tick);
		event_base_loop(base, EVLOOP_ONCE);
	}
	return true;
}

static Ctl__Reply *get_reply(int fd)
{
	uint8_t header[CTL_HEADER_BYTES], *buf;
	Ctl__Reply *reply;
	uint32_t len;

	assert_true(get(fd, header, sizeof header));
	len = ctl_get_length(header);
	assert_true(len <= CTL_REPLY_MAX);
	buf = malloc(len + 1);
	assert_non_null(buf);
	assert_true(get(fd, buf, len));
	reply = ctl__reply__unpack(NULL, len, buf);
	free(buf);
	assert_non_null(reply);
	return reply;
}

static void expect(int fd, const char *error, const char *message)
{
	Ctl__Reply *reply = get_reply(fd);

	assert_string_equal(reply->error, error);
	assert_string_equal(reply->message, message);
	ctl__reply__free_unpacked(reply, NULL);
}

static void expect_end(int fd)
{
	uint8_t byte;

	assert_false(get(fd, &byte, 1));
}

/* ---- honest clients ---- */

static void test_answer_later(void **state)
{
	Ctl__Reply reply = CTL__REPLY__INIT, *got;
	int a = dial(), b = dial();

	(void)state;
	put_request(a, "checkpoint", "", 0);
	until(&seen.requests, 1);
	assert_string_equal(seen.command, "checkpoint");
	put_request(b, "status", "", 0);
	until(&seen.requests, 2);
	ctl_reply_error(seen.calls[1], CTL_ERR_STATE, "guest is %s", "solo");
	expect(b, "state", "guest is solo");
	reply.epoch = 42;
	ctl_reply(seen.calls[0], &reply);
	got = get_reply(a);
	assert_string_equal(got->error, "");
	assert_int_equal(got->epoch, 42);
	ctl__reply__free_unpacked(got, NULL);
	/* The connection may be used again. */
	put_request(a, "stop", "", 0);
	until(&seen.requests, 3);
	ctl_reply_error(seen.calls[2], "x", "y");
	expect(a, "x", "y");
	assert_int_equal(seen.cancelled, 0);
	close(a);
	close(b);
}

/* A request may come in single bytes, and several in one piece, as long as each waits for its
 * answer on the server's side. */
static void test_pieces(void **state)
{
	uint8_t buf[1024];
	size_t n = pack(buf, "one", "", 0);
	int fd = dial();

	(void)state;
	seen.answer_now = true;
	for (size_t i = 0; i < n; i++) {
		put(fd, buf + i, 1);
		event_base_loop(base, EVLOOP_NONBLOCK);
	}
	until(&seen.requests, 1);
	expect(fd, "echo", "");
	n += pack(buf + n, "two", "", 0);
	put(fd, buf, n);
	expect(fd, "echo", "");
	expect(fd, "echo", "");
	assert_int_equal(seen.requests, 3);
	assert_string_equal(seen.command, "two");
	close(fd);
}

/* An answer that is far larger than a socket's buffer, to a client that takes its time. */
static void test_large_answer(void **state)
{
	static char text[CTL_REPLY_MAX];
	Ctl__Reply reply = CTL__REPLY__INIT, *got;
	int fd = dial();

	(void)state;
	memset(text, 'x', sizeof text - 64);
	reply.message = text;
	put_request(fd, "status", "", 0);
	until(&seen.requests, 1);
	ctl_reply(seen.calls[0], &reply);
	got = get_reply(fd);
	assert_string_equal(got->message, text);
	ctl__reply__free_unpacked(got, NULL);
	/* One that is too large is an error, not a broken connection. */
	memset(text, 'x', sizeof text - 1);
	put_request(fd, "status", "", 0);
	until(&seen.requests, 2);
	ctl_reply(seen.calls[1], &reply);
	expect(fd, "failed", "the answer is too long");
	close(fd);
}

/* ---- wait ---- */

static void test_wait(void **state)
{
	int a = dial(), b = dial(), c = dial(), d = dial();

	(void)state;
	put_request(a, "wait", "starting", 0); /* is so */
	expect(a, "", "");
	put_request(a, "wait", "protected", 0);
	put_request(b, "wait", "solo", 60000);
	put_request(c, "wait", "protected", 1);
	expect(c, "timeout", "guest is starting, not protected: starting");
	ctl_server_state_changed(server, FT_SOLO, "the guest has started");
	expect(b, "", "");
	ctl_server_state_changed(server, FT_SYNCING, "asked");
	ctl_server_state_changed(server, FT_PROTECTED, "in sync");
	expect(a, "", "");
	put_request(a, "wait", "happiness", 0);
	expect(a, "usage", "wait: no such state");
	put_request(a, "wait", "solo", UINT64_MAX);
	expect(a, "usage", "wait: timeout is longer than a day");
	/* It will never be: the guest has ended. */
	put_request(a, "wait", "protected", 0);
	expect(a, "", "");
	put_request(a, "wait", "standby", 0);
	put_request(d, "wait", "stopped", 0);
	ctl_server_state_changed(server, FT_STOPPED, "asked to");
	expect(a, "state", "guest is stopped and will not be standby: asked to");
	expect(d, "", "");
	assert_int_equal(seen.requests, 0);
	close(a), close(b), close(c), close(d);
}

/* ---- clients that go away ---- */

static void test_disconnect(void **state)
{
	int pending = dial(), waiting = dial(), idle = dial(), other = dial();

	(void)state;
	put_request(waiting, "wait", "protected", 60000);
	put_request(pending, "checkpoint", "", 0);
	until(&seen.requests, 1);
	close(pending);
	close(waiting);
	close(idle);
	until(&seen.cancelled, 1);
	ctl_server_state_changed(server, FT_SOLO, "x");
	ctl_server_state_changed(server, FT_SYNCING, "x");
	ctl_server_state_changed(server, FT_PROTECTED, "x");
	put_request(other, "wait", "protected", 0);
	expect(other, "", "");
	assert_int_equal(seen.cancelled, 1);
	close(other);
}

static void test_too_many(void **state)
{
	int fds[CTL_CLIENTS_MAX], extra;

	(void)state;
	for (unsigned i = 0; i < CTL_CLIENTS_MAX; i++) {
		fds[i] = dial();
		put_request(fds[i], "status", "", 0);
		until(&seen.requests, i + 1);
	}
	extra = dial();
	expect(extra, "busy", "too many clients");
	expect_end(extra);
	close(extra);
	/* One goes, one may come. */
	close(fds[3]);
	until(&seen.cancelled, 1);
	fds[3] = dial();
	put_request(fds[3], "status", "", 0);
	until(&seen.requests, CTL_CLIENTS_MAX + 1);
	for (unsigned i = 0; i < CTL_CLIENTS_MAX; i++)
		close(fds[i]);
	until(&seen.cancelled, CTL_CLIENTS_MAX + 1);
}

/* ---- hostile clients ---- */

static void expect_refused(int fd, const char *why)
{
	expect(fd, "protocol", why);
	expect_end(fd);
	close(fd);
}

static void test_hostile(void **state)
{
	static const char garbage[] = "GET / HTTP/1.0\r\n\r\n"; /* as a length: 0x20544547 */
	static const uint8_t not_protobuf[] = {3, 0, 0, 0, 0xff, 0xff, 0xff},
			     just_over[] = {1, 0, 1, 0};
	/* command is 5 bytes long, of which 2 are there */
	static const uint8_t cut[] = {4, 0, 0, 0, 0x0a, 5, 'a', 'b'};
	uint8_t buf[512];
	int fd = dial(), honest = dial();

	(void)state;
	put(fd, garbage, sizeof garbage - 1);
	expect_refused(fd, "not a request, or longer than its bound");
	fd = dial();
	put(fd, just_over, sizeof just_over);
	expect_refused(fd, "not a request, or longer than its bound");
	fd = dial();
	put(fd, not_protobuf, sizeof not_protobuf);
	expect_refused(fd, "not a request, or longer than its bound");
	fd = dial();
	put(fd, cut, sizeof cut);
	expect_refused(fd, "not a request, or longer than its bound");
	assert_int_equal(seen.requests, 0);

	/* Out of turn, while the handler has its request, and while it waits. */
	fd = dial();
	put_request(fd, "status", "", 0);
	until(&seen.requests, 1);
	put(fd, buf, pack(buf, "status", "", 0));
	expect_refused(fd, "a second request before the answer to the first");
	assert_int_equal(seen.cancelled, 1);
	fd = dial();
	put_request(fd, "wait", "protected", 0);
	put(fd, "x", 1);
	expect_refused(fd, "a second request before the answer to the first");

	/* The empty message is a request for the command "". */
	put(honest, "\0\0\0\0", 4);
	until(&seen.requests, 2);
	assert_string_equal(seen.command, "");
	ctl_reply_error(seen.calls[1], "usage", "no command");
	expect(honest, "usage", "no command");
	close(honest);
}

/* The largest request that is allowed. */
static void test_bound(void **state)
{
	static uint8_t buf[CTL_HEADER_BYTES + CTL_REQUEST_MAX];
	Ctl__Request request = CTL__REQUEST__INIT;
	static char uri[CTL_REQUEST_MAX];
	size_t sent = 0, len;
	int fd = dial();

	(void)state;
	memset(uri, 'u', CTL_REQUEST_MAX - 5);
	request.command = (char *)"";
	request.uri = uri;
	len = ctl__request__pack(&request, buf + CTL_HEADER_BYTES);
	assert_in_range(len, CTL_REQUEST_MAX - 8, CTL_REQUEST_MAX);
	ctl_put_length(buf, (uint32_t)len);
	while (sent < CTL_HEADER_BYTES + len) {
		ssize_t n = send(fd, buf + sent, CTL_HEADER_BYTES + len - sent, MSG_NOSIGNAL);

		assert_true(n > 0 || errno == EAGAIN);
		sent += n > 0 ? (size_t)n : 0;
		event_base_loop(base, EVLOOP_NONBLOCK);
	}
	until(&seen.requests, 1);
	assert_int_equal(seen.uri[0], 'u');
	close(fd);
	until(&seen.cancelled, 1);
}

/* ---- the socket ---- */

static void test_socket(void **state)
{
	struct ctl_server *second = NULL;
	struct sockaddr_un addr;
	struct ft_err err;
	struct stat st;
	char expected[256];

	(void)state;
	assert_int_equal(ctl_socket_path(run_dir, "web1", &addr, NULL), 0);
	assert_int_equal(stat(addr.sun_path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_int_equal(ctl_server_new(base, run_dir, "web1", &ops, &second, &err), -EADDRINUSE);
	snprintf(expected, sizeof expected,
		 "control socket: guest web1: another agent runs here (%s/web1.lock)", run_dir);
	assert_string_equal(err.text, expected);
	assert_int_equal(ctl_server_new(base, run_dir, "../web1", &ops, &second, &err), -EINVAL);
	assert_int_equal(ctl_server_new(base, "/nonexistent/dir", "web1", &ops, &second, &err),
			 -ENOENT);
	assert_int_equal(ctl_server_new(base,
					"/tmp/" /* 107 is the bound */
					"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
					"aaaaaaaaaaaaaaaaa"
					"aaaaaaaaaaaaaaaaaaaaaaaaaaaa",
					"web1", &ops, &second, &err),
			 -ENAMETOOLONG);
	assert_null(second);
	/* The refusals left the first one alone. */
	assert_int_equal(access(addr.sun_path, F_OK), 0);
	ctl_server_free(server);
	server = NULL;
	assert_int_equal(access(addr.sun_path, F_OK), -1);

	/* What a killed agent leaves behind is replaced. */
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof addr), 0);
	close(fd);
	start();
	fd = dial();
	put_request(fd, "wait", "starting", 0);
	expect(fd, "", "");
	close(fd);
}

/* A local user who can reach the socket, for somebody opened the folder, gets no further. */
static void test_stranger(void **state)
{
	struct sockaddr_un addr;
	int status;
	pid_t pid;

	(void)state;
	if (geteuid() != 0) {
		printf("skipped: only root can be another user\n");
		skip();
	}
	assert_int_equal(ctl_socket_path(run_dir, "web1", &addr, NULL), 0);
	assert_int_equal(chmod(dir, 0711) | chmod(run_dir, 0711) | chmod(addr.sun_path, 0666), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		char said[512] = "";
		ssize_t n = 0, got;
		int fd = setresuid(NOBODY, NOBODY, NOBODY)
				 ? -1
				 : socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

		if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof addr))
			_exit(1);
		while ((got = read(fd, said + n, sizeof said - (size_t)n)) > 0)
			n += got;
		_exit(got == 0 && memmem(said, (size_t)n, CTL_ERR_DENIED, 6) ? 0 : 2);
	}
	while (waitpid(pid, &status, WNOHANG) == 0) {
		struct timeval tick = {.tv_usec = 10000};

		event_base_loopexit(base, &tick);
		event_base_loop(base, EVLOOP_ONCE);
	}
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	assert_int_equal(seen.requests, 0);
}

static void test_run_dir(void **state)
{
	struct ctl_server *second = NULL;
	struct ft_err err;
	struct stat st;

	(void)state;
	assert_int_equal(stat(run_dir, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0700);
	assert_int_equal(chmod(run_dir, 0770), 0);
	assert_int_equal(ctl_server_new(base, run_dir, "web2", &ops, &second, &err), -EPERM);
	assert_non_null(strstr(err.text, "others may write there (mode 770)"));
	assert_int_equal(chmod(run_dir, 01777), 0);
	assert_int_equal(ctl_server_new(base, run_dir, "web2", &ops, &second, &err), -EPERM);
	assert_int_equal(chmod(run_dir, 0700), 0);
	if (geteuid() == 0) {
		assert_int_equal(chown(run_dir, NOBODY, NOBODY), 0);
		assert_int_equal(ctl_server_new(base, run_dir, "web2", &ops, &second, &err),
				 -EPERM);
		assert_non_null(strstr(err.text, "belongs to user 65534"));
		assert_int_equal(chown(run_dir, 0, 0), 0);
	}
}

/* The answer to `stop` arrives though the server ends right after it; who waits is cut off. */
static void test_last_words(void **state)
{
	int stop = dial(), other = dial(), waiting = dial();

	(void)state;
	put_request(waiting, "wait", "protected", 0);
	put_request(other, "checkpoint", "", 0);
	until(&seen.requests, 1);
	put_request(stop, "stop", "", 0);
	until(&seen.requests, 2);
	ctl_reply_error(seen.calls[1], "x", "bye");
	ctl_server_free(server);
	server = NULL;
	assert_int_equal(seen.cancelled, 1);
	expect(stop, "x", "bye");
	expect_end(stop);
	expect_end(other);
	expect_end(waiting);
	close(stop), close(other), close(waiting);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_answer_later, setup, teardown),
		cmocka_unit_test_setup_teardown(test_pieces, setup, teardown),
		cmocka_unit_test_setup_teardown(test_large_answer, setup, teardown),
		cmocka_unit_test_setup_teardown(test_wait, setup, teardown),
		cmocka_unit_test_setup_teardown(test_disconnect, setup, teardown),
		cmocka_unit_test_setup_teardown(test_too_many, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hostile, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bound, setup, teardown),
		cmocka_unit_test_setup_teardown(test_socket, setup, teardown),
		cmocka_unit_test_setup_teardown(test_stranger, setup, teardown),
		cmocka_unit_test_setup_teardown(test_run_dir, setup, teardown),
		cmocka_unit_test_setup_teardown(test_last_words, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
