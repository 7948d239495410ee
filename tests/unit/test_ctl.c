// SPDX-License-Identifier: Apache-2.0
/* The control socket's clients that behave, be they slow or gone: answers, in whatever order, and
 * waits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/fixture/ctl_lab.h"

static void test_answer_later(void **state)
{
	Ctl__Reply reply = CTL__REPLY__INIT, *got;
	int a = ctl_lab_dial(), b = ctl_lab_dial();

	(void)state;
	ctl_lab_put_request(a, "checkpoint", "", 0);
	ctl_lab_until(&control.requests, 1);
	assert_string_equal(control.command, "checkpoint");
	ctl_lab_put_request(b, "status", "", 0);
	ctl_lab_until(&control.requests, 2);
	ctl_reply_error(control.calls[1], CTL_ERR_STATE, "guest is %s", "solo");
	ctl_lab_expect(b, "state", "guest is solo");
	reply.epoch = 42;
	ctl_reply(control.calls[0], &reply);
	got = ctl_lab_reply(a);
	assert_string_equal(got->error, "");
	assert_int_equal(got->epoch, 42);
	ctl__reply__free_unpacked(got, NULL);
	/* The connection may be used again. */
	ctl_lab_put_request(a, "stop", "", 0);
	ctl_lab_until(&control.requests, 3);
	ctl_reply_error(control.calls[2], "x", "y");
	ctl_lab_expect(a, "x", "y");
	assert_int_equal(control.cancelled, 0);
	close(a);
	close(b);
}

/* A request may come in single bytes, and several in one piece, as long as each waits for its
 * answer on the server's side. */
static void test_pieces(void **state)
{
	uint8_t buf[1024];
	size_t n = ctl_lab_pack(buf, "one", "", 0);
	int fd = ctl_lab_dial();

	(void)state;
	control.answer_now = true;
	for (size_t i = 0; i < n; i++) {
		ctl_lab_put(fd, buf + i, 1);
		event_base_loop(control.base, EVLOOP_NONBLOCK);
	}
	ctl_lab_until(&control.requests, 1);
	ctl_lab_expect(fd, "echo", "");
	n += ctl_lab_pack(buf + n, "two", "", 0);
	ctl_lab_put(fd, buf, n);
	ctl_lab_expect(fd, "echo", "");
	ctl_lab_expect(fd, "echo", "");
	assert_int_equal(control.requests, 3);
	assert_string_equal(control.command, "two");
	close(fd);
}

/* An answer that is far larger than a socket's buffer, to a client that takes its time. */
static void test_large_answer(void **state)
{
	static char text[CTL_REPLY_MAX];
	Ctl__Reply reply = CTL__REPLY__INIT, *got;
	int fd = ctl_lab_dial();

	(void)state;
	memset(text, 'x', sizeof text - 64);
	reply.message = text;
	ctl_lab_put_request(fd, "status", "", 0);
	ctl_lab_until(&control.requests, 1);
	ctl_reply(control.calls[0], &reply);
	got = ctl_lab_reply(fd);
	assert_string_equal(got->message, text);
	ctl__reply__free_unpacked(got, NULL);
	/* One that is too large is an error, not a broken connection. */
	memset(text, 'x', sizeof text - 1);
	ctl_lab_put_request(fd, "status", "", 0);
	ctl_lab_until(&control.requests, 2);
	ctl_reply(control.calls[1], &reply);
	ctl_lab_expect(fd, "failed", "the answer is too long");
	close(fd);
}

static void test_wait(void **state)
{
	int a = ctl_lab_dial(), b = ctl_lab_dial(), c = ctl_lab_dial(), d = ctl_lab_dial();

	(void)state;
	ctl_lab_put_request(a, "wait", "starting", 0); /* is so */
	ctl_lab_expect(a, "", "");
	ctl_lab_put_request(a, "wait", "protected", 0);
	ctl_lab_put_request(b, "wait", "solo", 60000);
	ctl_lab_put_request(c, "wait", "protected", 1);
	ctl_lab_expect(c, "timeout", "guest is starting, not protected: starting");
	ctl_server_state_changed(control.server, FT_SOLO, "the guest has started");
	ctl_lab_expect(b, "", "");
	ctl_server_state_changed(control.server, FT_SYNCING, "asked");
	ctl_server_state_changed(control.server, FT_PROTECTED, "in sync");
	ctl_lab_expect(a, "", "");
	ctl_lab_put_request(a, "wait", "happiness", 0);
	ctl_lab_expect(a, "usage", "wait: no such state");
	ctl_lab_put_request(a, "wait", "solo", UINT64_MAX);
	ctl_lab_expect(a, "usage", "wait: timeout is longer than a day");
	/* It will never be: the guest has ended. */
	ctl_lab_put_request(a, "wait", "protected", 0);
	ctl_lab_expect(a, "", "");
	ctl_lab_put_request(a, "wait", "standby", 0);
	ctl_lab_put_request(d, "wait", "stopped", 0);
	ctl_server_state_changed(control.server, FT_STOPPED, "asked to");
	ctl_lab_expect(a, "state", "guest is stopped and will not be standby: asked to");
	ctl_lab_expect(d, "", "");
	assert_int_equal(control.requests, 0);
	close(a), close(b), close(c), close(d);
}

static void test_disconnect(void **state)
{
	int pending = ctl_lab_dial(), waiting = ctl_lab_dial(), idle = ctl_lab_dial(),
	    other = ctl_lab_dial();

	(void)state;
	ctl_lab_put_request(waiting, "wait", "protected", 60000);
	ctl_lab_put_request(pending, "checkpoint", "", 0);
	ctl_lab_until(&control.requests, 1);
	close(pending);
	close(waiting);
	close(idle);
	ctl_lab_until(&control.cancelled, 1);
	ctl_server_state_changed(control.server, FT_SOLO, "x");
	ctl_server_state_changed(control.server, FT_SYNCING, "x");
	ctl_server_state_changed(control.server, FT_PROTECTED, "x");
	ctl_lab_put_request(other, "wait", "protected", 0);
	ctl_lab_expect(other, "", "");
	assert_int_equal(control.cancelled, 1);
	close(other);
}

static void test_too_many(void **state)
{
	int fds[CTL_CLIENTS_MAX], extra;

	(void)state;
	for (unsigned i = 0; i < CTL_CLIENTS_MAX; i++) {
		fds[i] = ctl_lab_dial();
		ctl_lab_put_request(fds[i], "status", "", 0);
		ctl_lab_until(&control.requests, i + 1);
	}
	extra = ctl_lab_dial();
	ctl_lab_expect(extra, "busy", "too many clients");
	ctl_lab_expect_end(extra);
	close(extra);
	/* One goes, one may come. */
	close(fds[3]);
	ctl_lab_until(&control.cancelled, 1);
	fds[3] = ctl_lab_dial();
	ctl_lab_put_request(fds[3], "status", "", 0);
	ctl_lab_until(&control.requests, CTL_CLIENTS_MAX + 1);
	for (unsigned i = 0; i < CTL_CLIENTS_MAX; i++)
		close(fds[i]);
	ctl_lab_until(&control.cancelled, CTL_CLIENTS_MAX + 1);
}

/* The answer to `stop` arrives though the server ends right after it; who waits is cut off. */
static void test_last_words(void **state)
{
	int stop = ctl_lab_dial(), other = ctl_lab_dial(), waiting = ctl_lab_dial();

	(void)state;
	ctl_lab_put_request(waiting, "wait", "protected", 0);
	ctl_lab_put_request(other, "checkpoint", "", 0);
	ctl_lab_until(&control.requests, 1);
	ctl_lab_put_request(stop, "stop", "", 0);
	ctl_lab_until(&control.requests, 2);
	ctl_reply_error(control.calls[1], "x", "bye");
	ctl_server_free(control.server);
	control.server = NULL;
	assert_int_equal(control.cancelled, 1);
	ctl_lab_expect(stop, "x", "bye");
	ctl_lab_expect_end(stop);
	ctl_lab_expect_end(other);
	ctl_lab_expect_end(waiting);
	close(stop), close(other), close(waiting);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_answer_later, ctl_lab_setup, ctl_lab_teardown),
		cmocka_unit_test_setup_teardown(test_pieces, ctl_lab_setup, ctl_lab_teardown),
		cmocka_unit_test_setup_teardown(test_large_answer, ctl_lab_setup, ctl_lab_teardown),
		cmocka_unit_test_setup_teardown(test_wait, ctl_lab_setup, ctl_lab_teardown),
		cmocka_unit_test_setup_teardown(test_disconnect, ctl_lab_setup, ctl_lab_teardown),
		cmocka_unit_test_setup_teardown(test_too_many, ctl_lab_setup, ctl_lab_teardown),
		cmocka_unit_test_setup_teardown(test_last_words, ctl_lab_setup, ctl_lab_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
