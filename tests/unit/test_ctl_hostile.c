// SPDX-License-Identifier: Apache-2.0
/* The control socket against clients that mean harm, users who have no business there, and folders
 * that others may write to. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/fixture/ctl_lab.h"

#define NOBODY 65534

static void expect_refused(int fd, const char *why)
{
	ctl_lab_expect(fd, "protocol", why);
	ctl_lab_expect_end(fd);
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
	int fd = ctl_lab_dial(), honest = ctl_lab_dial();

	(void)state;
	ctl_lab_put(fd, garbage, sizeof garbage - 1);
	expect_refused(fd, "not a request, or longer than its bound");
	fd = ctl_lab_dial();
	ctl_lab_put(fd, just_over, sizeof just_over);
	expect_refused(fd, "not a request, or longer than its bound");
	fd = ctl_lab_dial();
	ctl_lab_put(fd, not_protobuf, sizeof not_protobuf);
	expect_refused(fd, "not a request, or longer than its bound");
	fd = ctl_lab_dial();
	ctl_lab_put(fd, cut, sizeof cut);
	expect_refused(fd, "not a request, or longer than its bound");
	assert_int_equal(control.requests, 0);

	/* Out of turn, while the handler has its request, and while it waits. */
	fd = ctl_lab_dial();
	ctl_lab_put_request(fd, "status", "", 0);
	ctl_lab_until(&control.requests, 1);
	ctl_lab_put(fd, buf, ctl_lab_pack(buf, "status", "", 0));
	expect_refused(fd, "a second request before the answer to the first");
	assert_int_equal(control.cancelled, 1);
	fd = ctl_lab_dial();
	ctl_lab_put_request(fd, "wait", "protected", 0);
	ctl_lab_put(fd, "x", 1);
	expect_refused(fd, "a second request before the answer to the first");

	/* The empty message is a request for the command "". */
	ctl_lab_put(honest, "\0\0\0\0", 4);
	ctl_lab_until(&control.requests, 2);
	assert_string_equal(control.command, "");
	ctl_reply_error(control.calls[1], "usage", "no command");
	ctl_lab_expect(honest, "usage", "no command");
	close(honest);
}

/* The largest request that is allowed. */
static void test_bound(void **state)
{
	static uint8_t buf[CTL_HEADER_BYTES + CTL_REQUEST_MAX];
	Ctl__Request request = CTL__REQUEST__INIT;
	static char uri[CTL_REQUEST_MAX];
	size_t sent = 0, len;
	int fd = ctl_lab_dial();

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
		event_base_loop(control.base, EVLOOP_NONBLOCK);
	}
	ctl_lab_until(&control.requests, 1);
	assert_int_equal(control.uri[0], 'u');
	close(fd);
	ctl_lab_until(&control.cancelled, 1);
}

static void test_socket(void **state)
{
	struct ctl_server *second = NULL;
	struct sockaddr_un addr;
	struct ft_err err;
	struct stat st;
	char expected[256];

	(void)state;
	assert_int_equal(ctl_socket_path(control.run_dir, "web1", &addr, NULL), 0);
	assert_int_equal(stat(addr.sun_path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_int_equal(
		ctl_server_new(control.base, control.run_dir, "web1", &ctl_lab_ops, &second, &err),
		-EADDRINUSE);
	snprintf(expected, sizeof expected,
		 "control socket: guest web1: another agent runs here (%s/web1.lock)",
		 control.run_dir);
	assert_string_equal(err.text, expected);
	assert_int_equal(ctl_server_new(control.base, control.run_dir, "../web1", &ctl_lab_ops,
					&second, &err),
			 -EINVAL);
	assert_int_equal(ctl_server_new(control.base, "/nonexistent/dir", "web1", &ctl_lab_ops,
					&second, &err),
			 -ENOENT);
	assert_int_equal(ctl_server_new(control.base,
					"/tmp/" /* 107 is the bound */
					"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
					"aaaaaaaaaaaaaaaaa"
					"aaaaaaaaaaaaaaaaaaaaaaaaaaaa",
					"web1", &ctl_lab_ops, &second, &err),
			 -ENAMETOOLONG);
	assert_null(second);
	/* The refusals left the first one alone. */
	assert_int_equal(access(addr.sun_path, F_OK), 0);
	ctl_server_free(control.server);
	control.server = NULL;
	assert_int_equal(access(addr.sun_path, F_OK), -1);

	/* What a killed agent leaves behind is replaced. */
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof addr), 0);
	close(fd);
	ctl_lab_start();
	fd = ctl_lab_dial();
	ctl_lab_put_request(fd, "wait", "starting", 0);
	ctl_lab_expect(fd, "", "");
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
	assert_int_equal(ctl_socket_path(control.run_dir, "web1", &addr, NULL), 0);
	assert_int_equal(chmod(control.dir, 0711) | chmod(control.run_dir, 0711) |
				 chmod(addr.sun_path, 0666),
			 0);
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

		event_base_loopexit(control.base, &tick);
		event_base_loop(control.base, EVLOOP_ONCE);
	}
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	assert_int_equal(control.requests, 0);
}

static void test_run_dir(void **state)
{
	struct ctl_server *second = NULL;
	struct ft_err err;
	struct stat st;

	(void)state;
	assert_int_equal(stat(control.run_dir, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0700);
	assert_int_equal(chmod(control.run_dir, 0770), 0);
	assert_int_equal(
		ctl_server_new(control.base, control.run_dir, "web2", &ctl_lab_ops, &second, &err),
		-EPERM);
	assert_non_null(strstr(err.text, "others may write there (mode 770)"));
	assert_int_equal(chmod(control.run_dir, 01777), 0);
	assert_int_equal(
		ctl_server_new(control.base, control.run_dir, "web2", &ctl_lab_ops, &second, &err),
		-EPERM);
	assert_int_equal(chmod(control.run_dir, 0700), 0);
	if (geteuid() == 0) {
		assert_int_equal(chown(control.run_dir, NOBODY, NOBODY), 0);
		assert_int_equal(ctl_server_new(control.base, control.run_dir, "web2", &ctl_lab_ops,
						&second, &err),
				 -EPERM);
		assert_non_null(strstr(err.text, "belongs to user 65534"));
		assert_int_equal(chown(control.run_dir, 0, 0), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_hostile, ctl_lab_setup, ctl_lab_teardown),
		cmocka_unit_test_setup_teardown(test_bound, ctl_lab_setup, ctl_lab_teardown),
		cmocka_unit_test_setup_teardown(test_socket, ctl_lab_setup, ctl_lab_teardown),
		cmocka_unit_test_setup_teardown(test_stranger, ctl_lab_setup, ctl_lab_teardown),
		cmocka_unit_test_setup_teardown(test_run_dir, ctl_lab_setup, ctl_lab_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
