// SPDX-License-Identifier: Apache-2.0
// The console tap between a VMM's serial socket, played by this test, and operators.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "eventtap/console/console_tap.h"
#include "tests/fixture/clock.h"

#define HELD_BYTES_MAX CONSOLE_TAP_HELD_BYTES_MIN
#define DEADLINE_MS    10000

struct lab {
	char folder[32], vmm_path[64], log_path[64], socket_path[64];
	struct tap *tap;
	int listener, vmm; // the VMM's side
	off_t log_at;
	atomic_int outputs, pressure;
};

static struct sockaddr_un address(const char *path)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};

	snprintf(sun.sun_path, sizeof sun.sun_path, "%s", path);
	return sun;
}

static int dial(const char *path)
{
	struct sockaddr_un sun = address(path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_int_equal(connect(fd, (struct sockaddr *)&sun, sizeof sun), 0);
	return fd;
}

static bool readable(int fd, int timeout_ms)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, timeout_ms) == 1;
}

static void vmm_start(struct lab *l)
{
	struct sockaddr_un sun = address(l->vmm_path);

	unlink(l->vmm_path);
	l->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(l->listener, (struct sockaddr *)&sun, sizeof sun), 0);
	assert_int_equal(listen(l->listener, 1), 0);
}

static void vmm_accept(struct lab *l)
{
	assert_true(readable(l->listener, DEADLINE_MS));
	l->vmm = accept4(l->listener, NULL, NULL, SOCK_CLOEXEC);
	assert_true(l->vmm >= 0);
}

static void vmm_end(struct lab *l)
{
	if (l->vmm >= 0)
		close(l->vmm);
	if (l->listener >= 0)
		close(l->listener);
	l->vmm = l->listener = -1;
	unlink(l->vmm_path);
}

static void on_output(void *ctx)
{
	atomic_fetch_add(&((struct lab *)ctx)->outputs, 1);
}

static void on_pressure(void *ctx)
{
	atomic_fetch_add(&((struct lab *)ctx)->pressure, 1);
}

static struct lab *lab_new(void)
{
	struct lab *l = calloc(1, sizeof *l);
	struct ft_err err;

	strcpy(l->folder, "/tmp/console-tap-XXXXXX");
	assert_non_null(mkdtemp(l->folder));
	snprintf(l->vmm_path, sizeof l->vmm_path, "%s/vmm", l->folder);
	snprintf(l->log_path, sizeof l->log_path, "%s/log", l->folder);
	snprintf(l->socket_path, sizeof l->socket_path, "%s/socket", l->folder);
	l->listener = l->vmm = -1;
	assert_int_equal(
		console_tap_open(&(struct console_tap_config){.id = "console0",
							      .vmm_path = l->vmm_path,
							      .log_path = l->log_path,
							      .socket_path = l->socket_path,
							      .held_bytes_max = HELD_BYTES_MAX},
				 &l->tap, &err),
		0);
	l->tap->notify = (struct tap_notify){on_output, on_pressure, l};
	return l;
}

static int setup(void **state)
{
	struct lab *l = lab_new();

	vmm_start(l);
	vmm_accept(l);
	*state = l;
	return 0;
}

static int teardown(void **state)
{
	struct lab *l = *state;

	l->tap->ops->free(l->tap);
	vmm_end(l);
	unlink(l->log_path);
	assert_int_equal(rmdir(l->folder), 0); // the operators' socket is gone
	free(l);
	return 0;
}

static void print_out(struct lab *l, const char *text)
{
	assert_int_equal(send(l->vmm, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

static void expect_text(int fd, const char *text)
{
	char got[256];
	size_t len = strlen(text);

	for (size_t at = 0; at < len;) {
		ssize_t n;

		if (!readable(fd, DEADLINE_MS))
			fail_msg("\"%s\" did not come", text + at);
		n = read(fd, got, len - at);
		assert_true(n > 0);
		assert_memory_equal(got, text + at, n);
		at += (size_t)n;
	}
}

static off_t log_size(struct lab *l)
{
	struct stat st;

	assert_int_equal(stat(l->log_path, &st), 0);
	return st.st_size;
}

static void wait_log(struct lab *l, off_t size)
{
	for (uint64_t deadline = now_ms() + DEADLINE_MS; log_size(l) < size; poll(NULL, 0, 1))
		assert_true(now_ms() < deadline);
}

static void expect_log(struct lab *l, const char *text)
{
	char got[256];
	int fd = open(l->log_path, O_RDONLY);
	off_t len = (off_t)strlen(text);

	wait_log(l, l->log_at + len);
	assert_int_equal(pread(fd, got, (size_t)len, l->log_at), len);
	assert_memory_equal(got, text, len);
	l->log_at += len;
	assert_int_equal(log_size(l), l->log_at);
	close(fd);
}

// An operator whom the tap has seen: a key that he pressed has arrived.
static int operator_new(struct lab *l)
{
	int fd = dial(l->socket_path);

	assert_int_equal(send(fd, "!", 1, MSG_NOSIGNAL), 1);
	expect_text(l->vmm, "!");
	return fd;
}

static struct tap_stats stats_of(struct lab *l)
{
	struct tap_stats stats;

	l->tap->ops->stats(l->tap, &stats);
	return stats;
}

static void wait_outputs(struct lab *l, uint64_t bytes)
{
	for (uint64_t deadline = now_ms() + DEADLINE_MS; stats_of(l).bytes < bytes;
	     poll(NULL, 0, 1))
		assert_true(now_ms() < deadline);
}

static void close_epoch(struct lab *l, uint64_t epoch)
{
	struct ft_err err;
	int rc = l->tap->ops->close_epoch(l->tap, epoch, &err);

	if (rc)
		fail_msg("close epoch: %s", err.text);
}

static void hold(struct lab *l, uint64_t epoch)
{
	l->tap->ops->set_mode(l->tap, TAP_HOLD);
	close_epoch(l, epoch);
}

static void pass_goes_everywhere_and_typing_comes_from_anyone(void **state)
{
	struct lab *l = *state;
	int a = operator_new(l), b = operator_new(l);

	print_out(l, "login: ");
	expect_text(a, "login: ");
	expect_text(b, "login: ");
	expect_log(l, "login: ");
	assert_int_equal(send(a, "root\n", 5, 0), 5);
	expect_text(l->vmm, "root\n");
	assert_int_equal(send(b, "pass\n", 5, 0), 5);
	expect_text(l->vmm, "pass\n");
	close(a);
	print_out(l, "welcome\n");
	expect_text(b, "welcome\n");
	expect_log(l, "welcome\n");
	close(b);
}

static void held_by_epoch_until_released(void **state)
{
	struct lab *l = *state;
	int a = operator_new(l);
	struct tap_cursor cursor = {0};
	struct tap_record rec;
	uint8_t out[256];
	size_t n;

	l->tap->ops->set_mode(l->tap, TAP_HOLD);
	print_out(l, "zero ");
	close_epoch(l, 1); // was printed before HOLD began
	expect_text(a, "zero ");
	print_out(l, "one ");
	wait_outputs(l, 9);
	assert_true(atomic_load(&l->outputs) > 0);
	print_out(l, "two ");
	close_epoch(l, 2);
	print_out(l, "three ");
	close_epoch(l, 3);
	print_out(l, "four ");
	assert_false(readable(a, 20));
	expect_log(l, "zero ");

	n = l->tap->ops->export(l->tap, 2, &cursor, out, sizeof out);
	assert_int_equal(tap_record_parse(out, n, &rec, NULL), TAP_RECORD_HEADER + 4);
	assert_int_equal(rec.kind, TAP_CONSOLE);
	assert_memory_equal(rec.data, "one ", 4);
	assert_int_equal(tap_record_parse(out + TAP_RECORD_HEADER + 4, n, &rec, NULL),
			 TAP_RECORD_HEADER + 4);
	assert_memory_equal(rec.data, "two ", 4);
	assert_int_equal(l->tap->ops->export(l->tap, 2, &cursor, out, sizeof out), 0);

	assert_int_equal(send(a, "typed", 5, 0), 5); // input is never held
	expect_text(l->vmm, "typed");
	l->tap->ops->release(l->tap, 2, NULL);
	expect_text(a, "one two ");
	assert_false(readable(a, 20));
	expect_log(l, "one two ");
	l->tap->ops->set_mode(l->tap, TAP_PASS);
	expect_text(a, "three four ");
	print_out(l, "five");
	expect_text(a, "five");
	close(a);
}

static void nothing_is_lost_over_the_bound(void **state)
{
	struct lab *l = *state;
	uint32_t in = 0, out = 0;
	int fd = open(l->log_path, O_RDONLY);

	hold(l, 1);
	for (uint64_t epoch = 2; epoch < 12; epoch++) {
		struct pollfd p = {.fd = l->vmm, .events = POLLOUT};

		// The guest prints until its line is full: the tap's bound, and what sockets hold.
		while (poll(&p, 1, 50) == 1 && in < 4u << 20) {
			uint32_t numbers[64];
			ssize_t n;

			for (int i = 0; i < 64; i++)
				numbers[i] = in + (uint32_t)i;
			n = send(l->vmm, numbers, sizeof numbers, MSG_DONTWAIT | MSG_NOSIGNAL);
			if (n < 0)
				break;
			assert_int_equal(n, sizeof numbers);
			in += 64;
		}
		assert_true(in < 4u << 20); // it did fill
		close_epoch(l, epoch);
		l->tap->ops->release(l->tap, epoch, NULL);
		wait_log(l, (off_t)in * 4);
	}
	assert_true(in * 4 > 10 * HELD_BYTES_MAX);
	assert_true(atomic_load(&l->pressure) >= 10);
	for (uint32_t numbers[64]; out < in; out += 64) {
		assert_int_equal(read(fd, numbers, sizeof numbers), sizeof numbers);
		for (uint32_t i = 0; i < 64; i++)
			assert_int_equal(numbers[i], out + i);
	}
	close(fd);
	assert_int_equal(stats_of(l).dropped, 0);
	assert_int_equal(stats_of(l).held_bytes, 0);
}

static void a_slow_operator_is_dropped_and_hurts_nobody(void **state)
{
	struct lab *l = *state;
	int slow = operator_new(l), quick = operator_new(l);
	char buf[4096];
	off_t total = 0;
	ssize_t n = 1;

	memset(buf, 'x', sizeof buf);
	for (; total < 4 << 20; total += (off_t)sizeof buf) {
		char got[sizeof buf];

		assert_int_equal(send(l->vmm, buf, sizeof buf, MSG_NOSIGNAL), sizeof buf);
		for (size_t at = 0; at < sizeof got; at += (size_t)n) {
			assert_true(readable(quick, DEADLINE_MS));
			n = read(quick, got, sizeof got - at);
			assert_true(n > 0);
		}
	}
	wait_log(l, total);
	for (uint64_t deadline = now_ms() + DEADLINE_MS; n > 0; assert_true(now_ms() < deadline)) {
		assert_true(readable(slow, DEADLINE_MS));
		n = read(slow, buf, sizeof buf);
	}
	assert_int_equal(send(quick, "ok", 2, 0), 2);
	expect_text(l->vmm, "ok");
	close(slow);
	close(quick);
}

// As many numbers as go in.
static uint32_t type_numbers(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLOUT};
	uint32_t in = 0;

	while (poll(&p, 1, 50) == 1 && in < 4u << 20) {
		if (send(fd, &in, 4, MSG_DONTWAIT | MSG_NOSIGNAL) != 4)
			break;
		in++;
	}
	assert_true(in < 4u << 20);
	return in;
}

static void expect_numbers(struct lab *l, uint32_t n)
{
	uint32_t got;

	for (uint32_t i = 0; i < n; i++) {
		for (size_t at = 0; at < 4;) {
			assert_true(readable(l->vmm, DEADLINE_MS));
			at += (size_t)read(l->vmm, (char *)&got + at, 4 - at);
		}
		assert_int_equal(got, i);
	}
}

static void a_guest_that_does_not_read_makes_operators_wait(void **state)
{
	struct lab *l = *state;
	int a = operator_new(l);
	uint32_t in = type_numbers(a);

	print_out(l, "still here");
	expect_text(a, "still here");
	expect_numbers(l, in);
	close(a);
}

static void what_was_typed_before_hanging_up_arrives(void **state)
{
	struct lab *l = *state;
	int a = operator_new(l);
	uint32_t in = type_numbers(a);

	close(a);
	print_out(l, "nobody sees this");
	expect_log(l, "nobody sees this");
	expect_numbers(l, in);
	a = operator_new(l); // the first one's place is free, and nothing came between
	close(a);
}

static void who_hung_up_makes_place(void **state)
{
	struct lab *l = *state;
	int a = operator_new(l);

	type_numbers(a); // the guest reads none of it
	for (int i = 0; i < 2 * CONSOLE_TAP_OPERATORS_MAX; i++) {
		int fd = dial(l->socket_path);

		assert_int_equal(send(fd, "?", 1, MSG_NOSIGNAL), 1);
		close(fd);
	}
	for (int i = 1; i < CONSOLE_TAP_OPERATORS_MAX; i++) {
		char text[16];
		int fd = dial(l->socket_path);

		snprintf(text, sizeof text, "visitor %d", i);
		for (uint64_t deadline = now_ms() + DEADLINE_MS; !readable(fd, 1);
		     print_out(l, text)) // who has a place hears the guest
			assert_true(now_ms() < deadline);
		expect_text(fd, text);
		close(fd);
	}
	close(a);
}

static void the_vmm_may_come_late_and_again(void **state)
{
	struct lab *l = lab_new();
	void *own = l;
	struct ft_err err;
	int a;

	(void)state;
	assert_int_equal(console_tap_connect(l->tap, &err), -ENOENT);
	a = dial(l->socket_path);
	assert_int_equal(send(a, "nobody reads this", 17, 0), 17);
	close(a);
	vmm_start(l);
	vmm_accept(l); // by the tap itself
	print_out(l, "first ");
	expect_log(l, "first ");
	vmm_end(l);
	vmm_start(l);
	vmm_accept(l);
	a = operator_new(l);
	print_out(l, "second ");
	expect_log(l, "second ");
	expect_text(a, "second ");
	assert_int_equal(console_tap_connect(l->tap, &err), 0);
	close(a);
	teardown(&own);
}

static void replay_prints_and_discard_does_not(void **state)
{
	struct lab *l = *state;
	struct tap_record rec = {.kind = TAP_CONSOLE, .len = 6, .data = (const uint8_t *)"replay"};
	struct ft_err err;

	assert_int_equal(l->tap->ops->replay(l->tap, &rec, &err), 0);
	expect_log(l, "replay");
	hold(l, 1);
	print_out(l, "never");
	close_epoch(l, 2);
	assert_int_equal(l->tap->ops->replay(l->tap, &rec, &err), -EBUSY);
	rec.len = 5000;
	assert_int_equal(l->tap->ops->replay(l->tap, &rec, &err), -EPROTO);
	print_out(l, "never");
	wait_outputs(l, 16);
	l->tap->ops->discard(l->tap);
	assert_int_equal(stats_of(l).held_outputs, 0);
	l->tap->ops->release(l->tap, 2, NULL);
	l->tap->ops->set_mode(l->tap, TAP_PASS);
	print_out(l, "after");
	expect_log(l, "after");
}

static void open_says_what_is_wrong(void **state)
{
	struct console_tap_config config = {
		.id = "c9", .vmm_path = "/nonexistent/vmm", .held_bytes_max = 1};
	struct tap *tap;
	struct ft_err err;

	(void)state;
	assert_int_equal(console_tap_open(&config, &tap, &err), -EINVAL);
	assert_string_equal(err.text, "c9: queue: 1 bytes: at least 65536");
	config.held_bytes_max = HELD_BYTES_MAX;
	config.log_path = "/nonexistent/log";
	assert_int_equal(console_tap_open(&config, &tap, &err), -ENOENT);
	assert_string_equal(err.text, "c9: /nonexistent/log: No such file or directory");
	config.log_path = NULL;
	config.socket_path = "/nonexistent/socket";
	assert_int_equal(console_tap_open(&config, &tap, &err), -ENOENT);
	assert_string_equal(err.text, "c9: /nonexistent/socket: listen: No such file or directory");
	config.socket_path = NULL; // neither is needed
	assert_int_equal(console_tap_open(&config, &tap, &err), 0);
	assert_int_equal(tap->ops->close_epoch(tap, 1, &err), 0);
	tap->ops->free(tap);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(pass_goes_everywhere_and_typing_comes_from_anyone,
						setup, teardown),
		cmocka_unit_test_setup_teardown(held_by_epoch_until_released, setup, teardown),
		cmocka_unit_test_setup_teardown(nothing_is_lost_over_the_bound, setup, teardown),
		cmocka_unit_test_setup_teardown(a_slow_operator_is_dropped_and_hurts_nobody, setup,
						teardown),
		cmocka_unit_test_setup_teardown(a_guest_that_does_not_read_makes_operators_wait,
						setup, teardown),
		cmocka_unit_test_setup_teardown(what_was_typed_before_hanging_up_arrives, setup,
						teardown),
		cmocka_unit_test_setup_teardown(who_hung_up_makes_place, setup, teardown),
		cmocka_unit_test(the_vmm_may_come_late_and_again),
		cmocka_unit_test_setup_teardown(replay_prints_and_discard_does_not, setup,
						teardown),
		cmocka_unit_test(open_says_what_is_wrong),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
