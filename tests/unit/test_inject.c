// SPDX-License-Identifier: Apache-2.0
// Borrowing threads that sleep in every call we could think of, and threads that run.
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/fixture/clock.h"
#include "tests/fixture/inject_lab.h"

#define WAIT_MS 900 // what time-outs in targets are set to; less than a second

static int ended_after(long begin, long result)
{
	long took = now_ms() - begin;

	if (result)
		return 16 + errno;
	return took < WAIT_MS ? 2 : took > WAIT_MS + INJECT_DEADLINE_MS / 2 ? 4 : 0;
}

static int body_ppoll(void)
{
	struct timespec ts = {.tv_nsec = WAIT_MS * 1000000l};
	long begin = now_ms();

	shared->ready = 1;
	return ended_after(begin, ppoll(NULL, 0, &ts, NULL));
}

static int body_poll(void)
{
	struct pollfd p = {.fd = shared->pipe[0], .events = POLLIN};
	long begin = now_ms();

	shared->ready = 1;
	return ended_after(begin, poll(&p, 1, WAIT_MS));
}

static int body_nanosleep(void)
{
	struct timespec ts = {.tv_nsec = WAIT_MS * 1000000l};
	long begin = now_ms();

	shared->ready = 1;
	return ended_after(begin, clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL));
}

static int body_futex(void)
{
	shared->ready = 1;
	/* EAGAIN: it was on its way back to sleep after the last call, and found the word changed.
	 */
	return syscall(SYS_futex, &shared->futex, FUTEX_WAIT, 0, NULL, NULL, 0) == 0 ||
			       errno == EAGAIN
		       ? 0
		       : 1;
}

static int body_epoll(void)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u32 = 7};
	int fd = epoll_create1(0);

	if (epoll_ctl(fd, EPOLL_CTL_ADD, shared->pipe[0], &event))
		return 1;
	memset(&event, 0, sizeof event);
	shared->ready = 1;
	return epoll_wait(fd, &event, 1, -1) == 1 && event.data.u32 == 7 ? 0 : 2;
}

static int body_recv(void)
{
	struct timeval tv = {.tv_sec = 30};
	int pair[2];
	char c;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) ||
	    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv))
		return 1;
	if (!fork()) { // hands on what comes through the pipe
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(read(shared->pipe[0], &c, 1) == 1 && write(pair[1], &c, 1) == 1 ? 0 : 1);
	}
	shared->ready = 1;
	return recv(pair[0], &c, 1, 0) == 1 && c == 'x' ? 0 : 2;
}

static int body_sigtimedwait(void)
{
	struct timespec ts = {.tv_sec = 30};
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	shared->ready = 1;
	return sigtimedwait(&set, NULL, &ts) == SIGUSR2 ? 0 : 1;
}

static void wake_nothing(pid_t pid)
{
	(void)pid;
}

static void wake_futex(pid_t pid)
{
	(void)pid;
	shared->futex = 1;
	syscall(SYS_futex, &shared->futex, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void wake_signal(pid_t pid)
{
	kill(pid, SIGUSR2);
}

static void test_sleepers(void **state)
{
	static const struct {
		const char *what;
		int (*body)(void);
		long nr;
		void (*wake)(pid_t pid);
	} cases[] = {
		{"ppoll", body_ppoll, SYS_ppoll, wake_nothing},
		{"poll", body_poll, SYS_poll, wake_nothing},
		{"nanosleep", body_nanosleep, SYS_clock_nanosleep, wake_nothing},
		{"futex", body_futex, SYS_futex, wake_futex},
		{"read", inject_lab_body_read, SYS_read, inject_lab_wake},
		{"epoll_wait", body_epoll, SYS_epoll_wait, inject_lab_wake},
		{"recv", body_recv, SYS_recvfrom, inject_lab_wake},
		{"sigtimedwait", body_sigtimedwait, SYS_rt_sigtimedwait, wake_signal},
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct target t = inject_lab_start(cases[i].body);
		int code;

		inject_lab_wait_blocked(t.pid, cases[i].nr);
		inject_lab_times(t, 10, cases[i].what);
		cases[i].wake(t.pid);
		code = inject_lab_end(t);
		if (code)
			fail_msg("%s: target ended with %d", cases[i].what, code);
	}
}

static uint64_t integer_step(uint64_t x)
{
	x ^= x << 13;
	x ^= x >> 7;
	return x ^ x << 17;
}

// All registers live: what they hold shows in the result.
static int body_busy(void)
{
	uint64_t a = 1, b = 2;
	double d = 1.0;
	long rounds = 0;

	shared->ready = 1;
	while (!shared->stop) {
		a = integer_step(a);
		b = integer_step(b + (a & 1));
		d = d * 0.5 + (double)(a & 0xff);
		rounds++;
	}
	uint64_t a2 = 1, b2 = 2;
	double d2 = 1.0;

	for (long i = 0; i < rounds; i++) {
		a2 = integer_step(a2);
		b2 = integer_step(b2 + (a2 & 1));
		d2 = d2 * 0.5 + (double)(a2 & 0xff);
	}
	return a == a2 && b == b2 && !memcmp(&d, &d2, sizeof d) ? 0 : 1;
}

static void test_busy_200(void **state)
{
	struct target t = inject_lab_start(body_busy);

	(void)state;
	inject_lab_wait_ready();
	inject_lab_times(t, 200, "busy");
	shared->stop = 1;
	assert_int_equal(inject_lab_end(t), 0);
}

static void *thread_busy(void *arg)
{
	(void)arg;
	return (void *)(intptr_t)body_busy();
}

static void *thread_ppoll(void *arg)
{
	(void)arg;
	return (void *)(intptr_t)body_ppoll();
}

static void *thread_read(void *arg)
{
	(void)arg;
	return (void *)(intptr_t)inject_lab_body_read();
}

static int body_threads(void)
{
	void *(*bodies[])(void *) = {thread_busy, thread_ppoll, thread_read};
	pthread_t threads[3];
	intptr_t bad = 0;

	for (int i = 0; i < 3; i++)
		if (pthread_create(&threads[i], NULL, bodies[i], NULL))
			return 1;
	for (int i = 0; i < 3; i++) {
		void *ret;

		pthread_join(threads[i], &ret);
		bad |= (intptr_t)ret;
	}
	return (int)bad;
}

static void test_threads(void **state)
{
	struct target t = inject_lab_start(body_threads);

	(void)state;
	inject_lab_wait_ready();
	inject_lab_times(t, 50, "threads");
	inject_lab_wake(t.pid);
	shared->stop = 1;
	assert_int_equal(inject_lab_end(t), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sleepers),
		cmocka_unit_test(test_busy_200),
		cmocka_unit_test(test_threads),
	};

	return cmocka_run_group_tests(tests, inject_lab_setup, inject_lab_teardown);
}
