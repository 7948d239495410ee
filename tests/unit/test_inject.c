// SPDX-License-Identifier: Apache-2.0
// Borrowing threads of processes in every state that we could think of: the descriptor must come,
// and the process must not notice.
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "vmm-glue/inject.h"
#include "vmm-glue/uffd.h"
#include "vmm-glue/uffd_abi.h"

#define DEADLINE_MS 10000
#define WAIT_MS	    900 // what time-outs in targets are set to; less than a second
#define SIGNALS	    200

// Shared with the target.
struct shared {
	_Atomic int ready;
	_Atomic int stop;
	_Atomic uint32_t futex;
	_Atomic long result;
	_Atomic int count;
	int pipe[2]; // the target reads [0]
};

static struct shared *sh;

static long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void nap(void)
{
	struct timespec ts = {.tv_nsec = 1000000};

	nanosleep(&ts, NULL);
}

struct target {
	pid_t pid;
	int pidfd;
};

// Targets return 0 when they saw nothing odd.
static struct target target_start(int (*body)(void))
{
	struct target t;

	memset(sh, 0, sizeof *sh);
	assert_int_equal(pipe2(sh->pipe, O_CLOEXEC), 0);
	t.pid = fork();
	assert_true(t.pid >= 0);
	if (!t.pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(body());
	}
	t.pidfd = pidfd_open(t.pid, 0);
	assert_true(t.pidfd >= 0);
	return t;
}

static int target_end(struct target t)
{
	struct pollfd p = {.fd = t.pidfd, .events = POLLIN};
	int status = -1;

	if (poll(&p, 1, DEADLINE_MS) != 1)
		kill(t.pid, SIGKILL);
	waitpid(t.pid, &status, 0);
	close(t.pidfd);
	close(sh->pipe[0]);
	close(sh->pipe[1]);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + status;
}

static void wait_ready(void)
{
	for (long end = now_ms() + DEADLINE_MS; !sh->ready; nap())
		assert_true(now_ms() < end);
}

// Until the target's main thread sleeps in that system call.
static void wait_blocked(pid_t pid, long nr)
{
	char path[64], line[256];
	long at = -1;

	wait_ready();
	snprintf(path, sizeof path, "/proc/%d/syscall", pid);
	for (long end = now_ms() + DEADLINE_MS; at != nr; nap()) {
		FILE *f = fopen(path, "re");

		assert_non_null(f);
		if (!fgets(line, sizeof line, f) || sscanf(line, "%ld", &at) != 1)
			at = -1;
		fclose(f);
		assert_true(now_ms() < end);
	}
}

static long status_number(pid_t pid, const char *name)
{
	char path[64], line[256];
	long number = -1;
	size_t len = strlen(name);
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	f = fopen(path, "re");
	assert_non_null(f);
	while (fgets(line, sizeof line, f))
		if (!strncmp(line, name, len))
			number = strtol(line + len, NULL, 10);
	fclose(f);
	return number;
}

// A sanitizer may have added a thread of its own, which is the one to be borrowed then.
static void need_one_thread(struct target t)
{
	if (status_number(t.pid, "Threads:") == 1)
		return;
	print_message("needs a target of one thread\n");
	kill(t.pid, SIGKILL);
	target_end(t);
	skip();
}

static int fds_of(pid_t pid)
{
	char path[64];
	int n = 0;

	for (int fd = 0; fd < 256; fd++) {
		snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
		n += !faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW);
	}
	return n;
}

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

// n times; each descriptor must work, neither side may keep anything.
static void inject_times(struct target t, int n, const char *what)
{
	int own = fds_of(getpid()), theirs = fds_of(t.pid);
	uint64_t stopped[256];

	assert_true(n <= 256);
	for (int i = 0; i < n; i++) {
		struct inject_report report;
		struct ft_err err = {0};
		int uffd = -1, ret;

		ret = inject_uffd(t.pid, t.pidfd, UFFD_USER_MODE_ONLY, false, &uffd, &report, &err);
		if (ret)
			fail_msg("%s, injection %d: %s", what, i, err.text);
		assert_int_equal(report.remote_fd, -1);
		assert_int_equal(uffd_api(uffd, UFFD_FEATURE_WP_ASYNC, &err), 0);
		close(uffd);
		stopped[i] = report.stopped_ns;
	}
	assert_int_equal(status_number(t.pid, "TracerPid:"), 0);
	assert_int_equal(fds_of(getpid()), own);
	assert_int_equal(fds_of(t.pid), theirs);
	qsort(stopped, (size_t)n, sizeof *stopped, compare_u64);
	print_message("%-12s thread stood for %.3f ms (median of %d), %.3f at most\n", what,
		      (double)stopped[n / 2] / 1e6, n, (double)stopped[n - 1] / 1e6);
}

// ---- targets that sleep ----

static int ended_after(long begin, long result)
{
	long took = now_ms() - begin;

	if (result)
		return 16 + errno;
	return took < WAIT_MS ? 2 : took > WAIT_MS + DEADLINE_MS / 2 ? 4 : 0;
}

static int body_ppoll(void)
{
	struct timespec ts = {.tv_nsec = WAIT_MS * 1000000l};
	long begin = now_ms();

	sh->ready = 1;
	return ended_after(begin, ppoll(NULL, 0, &ts, NULL));
}

static int body_poll(void)
{
	struct pollfd p = {.fd = sh->pipe[0], .events = POLLIN};
	long begin = now_ms();

	sh->ready = 1;
	return ended_after(begin, poll(&p, 1, WAIT_MS));
}

static int body_nanosleep(void)
{
	struct timespec ts = {.tv_nsec = WAIT_MS * 1000000l};
	long begin = now_ms();

	sh->ready = 1;
	return ended_after(begin, clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL));
}

static int body_futex(void)
{
	sh->ready = 1;
	return syscall(SYS_futex, &sh->futex, FUTEX_WAIT, 0, NULL, NULL, 0) ? 1 : 0;
}

static int body_read(void)
{
	char c;

	sh->ready = 1;
	return read(sh->pipe[0], &c, 1) == 1 && c == 'x' ? 0 : 8;
}

static int body_epoll(void)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u32 = 7};
	int fd = epoll_create1(0);

	if (epoll_ctl(fd, EPOLL_CTL_ADD, sh->pipe[0], &event))
		return 1;
	memset(&event, 0, sizeof event);
	sh->ready = 1;
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
		_exit(read(sh->pipe[0], &c, 1) == 1 && write(pair[1], &c, 1) == 1 ? 0 : 1);
	}
	sh->ready = 1;
	return recv(pair[0], &c, 1, 0) == 1 && c == 'x' ? 0 : 2;
}

static int body_sigtimedwait(void)
{
	struct timespec ts = {.tv_sec = 30};
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	sh->ready = 1;
	return sigtimedwait(&set, NULL, &ts) == SIGUSR2 ? 0 : 1;
}

static void wake_nothing(pid_t pid)
{
	(void)pid;
}

static void wake_pipe(pid_t pid)
{
	(void)pid;
	assert_int_equal(write(sh->pipe[1], "x", 1), 1);
}

static void wake_futex(pid_t pid)
{
	(void)pid;
	sh->futex = 1;
	syscall(SYS_futex, &sh->futex, FUTEX_WAKE, 1, NULL, NULL, 0);
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
		{"read", body_read, SYS_read, wake_pipe},
		{"epoll_wait", body_epoll, SYS_epoll_wait, wake_pipe},
		{"recv", body_recv, SYS_recvfrom, wake_pipe},
		{"sigtimedwait", body_sigtimedwait, SYS_rt_sigtimedwait, wake_signal},
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct target t = target_start(cases[i].body);
		int code;

		wait_blocked(t.pid, cases[i].nr);
		inject_times(t, 10, cases[i].what);
		cases[i].wake(t.pid);
		code = target_end(t);
		if (code)
			fail_msg("%s: target ended with %d", cases[i].what, code);
	}
}

// ---- targets that run ----

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

	sh->ready = 1;
	while (!sh->stop) {
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
	struct target t = target_start(body_busy);

	(void)state;
	wait_ready();
	inject_times(t, 200, "busy");
	sh->stop = 1;
	assert_int_equal(target_end(t), 0);
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
	return (void *)(intptr_t)body_read();
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
	struct target t = target_start(body_threads);

	(void)state;
	wait_ready();
	inject_times(t, 50, "threads");
	wake_pipe(t.pid);
	sh->stop = 1;
	assert_int_equal(target_end(t), 0);
}

// ---- signals ----

static void on_signal(int sig)
{
	(void)sig;
	sh->count++;
}

// The signal is let in only inside ppoll, which must then say EINTR, each time.
static int body_signals(void)
{
	struct sigaction action = {.sa_handler = on_signal};
	struct pollfd p = {.fd = sh->pipe[0], .events = POLLIN};
	sigset_t blocked, none;

	sigemptyset(&none);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGRTMIN);
	sigprocmask(SIG_SETMASK, &blocked, NULL);
	sigaction(SIGRTMIN, &action, NULL);
	sh->ready = 1;
	while (sh->count < SIGNALS) {
		int before = sh->count, ret = ppoll(&p, 1, NULL, &none), saved = errno;
		sigset_t now;

		if (ret != -1 || saved != EINTR || sh->count == before)
			return 1;
		sigprocmask(SIG_SETMASK, NULL, &now);
		if (memcmp(&now, &blocked, 8) != 0)
			return 2;
	}
	return 0;
}

static void test_signals(void **state)
{
	struct target t = target_start(body_signals);

	(void)state;
	wait_blocked(t.pid, SYS_ppoll);
	for (int i = 0; i < SIGNALS - 1; i += 2) {
		union sigval value = {0};

		// One before and one around: they meet the stop in all its phases.
		assert_int_equal(sigqueue(t.pid, SIGRTMIN, value), 0);
		struct ft_err err;
		int uffd;

		if (inject_uffd(t.pid, t.pidfd, UFFD_USER_MODE_ONLY, false, &uffd, NULL, &err))
			fail_msg("%s", err.text);
		close(uffd);
		assert_int_equal(sigqueue(t.pid, SIGRTMIN, value), 0);
	}
	assert_int_equal(target_end(t), 0);
	assert_int_equal(sh->count, SIGNALS);
}

static bool is_stopped(pid_t pid)
{
	char path[64], line[256] = "", *state;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	f = fopen(path, "re");
	assert_non_null(f);
	assert_non_null(fgets(line, sizeof line, f));
	fclose(f);
	state = strrchr(line, ')');
	return state && state[2] == 'T';
}

static void test_stopped(void **state)
{
	struct target t = target_start(body_read);
	long end = now_ms() + DEADLINE_MS;

	(void)state;
	wait_blocked(t.pid, SYS_read);
	kill(t.pid, SIGSTOP);
	while (!is_stopped(t.pid))
		assert_true(now_ms() < end);
	inject_times(t, 5, "stopped");
	while (!is_stopped(t.pid))
		assert_true(now_ms() < end);
	kill(t.pid, SIGCONT);
	wake_pipe(t.pid);
	assert_int_equal(target_end(t), 0);
}

// ---- targets that make it hard ----

static int body_seccomp(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {.len = sizeof code / sizeof *code, .filter = code};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog))
		return 1;
	return body_read();
}

static void test_seccomp(void **state)
{
	struct target t = target_start(body_seccomp);
	struct ft_err err = {0};
	int uffd;

	(void)state;
	wait_blocked(t.pid, SYS_read);
	// Either it works, or the kernel cannot suspend filters and we kept our hands off.
	if (inject_uffd(t.pid, t.pidfd, UFFD_USER_MODE_ONLY, false, &uffd, NULL, &err))
		assert_non_null(strstr(err.text, "suspend its seccomp filter"));
	else
		close(uffd);
	wake_pipe(t.pid);
	assert_int_equal(target_end(t), 0);
}

static int body_nobody(void)
{
	if (setgid(65534) || setuid(65534))
		return 1;
	prctl(PR_SET_PDEATHSIG, SIGKILL); // forgotten by setuid
	return body_read();
}

static void test_unprivileged_target(void **state)
{
	struct target t;

	(void)state;
	if (geteuid()) {
		print_message("needs root to become somebody else\n");
		skip();
	}
	t = target_start(body_nobody);
	wait_blocked(t.pid, SYS_read);
	inject_times(t, 5, "nobody");
	wake_pipe(t.pid);
	assert_int_equal(target_end(t), 0);
}

// The parent of a vfork sleeps uninterruptibly until its child is done.
static int body_vfork(void)
{
	pid_t pid;
	int status;

	sh->ready = 1;
	pid = (pid_t)syscall(SYS_clone, CLONE_VFORK | SIGCHLD, 0, 0, 0, 0);
	if (!pid) {
		char c;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(read(sh->pipe[0], &c, 1) == 1 ? 0 : 1);
	}
	return waitpid(pid, &status, 0) == pid && !status ? 0 : 1;
}

static void test_never_stops(void **state)
{
	struct target t = target_start(body_vfork);
	struct ft_err err = {0};
	long begin, end;
	int uffd = -1, own;

	(void)state;
	wait_blocked(t.pid, SYS_clone);
	need_one_thread(t);
	own = fds_of(getpid());
	begin = now_ms();
	assert_int_equal(inject_uffd(t.pid, t.pidfd, 0, false, &uffd, NULL, &err), -ETIMEDOUT);
	assert_true(now_ms() - begin < INJECT_MS_MAX + 1000);
	assert_non_null(strstr(err.text, "does not stop"));
	assert_int_equal(uffd, -1);
	// It wakes, stops for the attempt that was given up, is let go and has not noticed.
	wake_pipe(t.pid);
	assert_int_equal(target_end(t), 0);
	for (end = now_ms() + DEADLINE_MS; fds_of(getpid()) > own - 3; nap())
		assert_true(now_ms() < end);
}

static void test_leave_open(void **state)
{
	struct target t = target_start(body_read);
	struct inject_report report;
	struct ft_err err = {0};
	int theirs, uffd;

	(void)state;
	wait_blocked(t.pid, SYS_read);
	need_one_thread(t);
	theirs = fds_of(t.pid);
	assert_int_equal(inject_uffd(t.pid, t.pidfd, 0, true, &uffd, &report, &err), 0);
	assert_true(report.remote_fd >= 0);
	assert_int_equal(report.tid, t.pid);
	assert_int_equal(fds_of(t.pid), theirs + 1);
	close(uffd);
	wake_pipe(t.pid);
	assert_int_equal(target_end(t), 0);
}

static void test_traced_by_other(void **state)
{
	struct target t = target_start(body_read);
	struct ft_err err = {0};
	int go[2], uffd, status;
	pid_t tracer;
	char c;

	(void)state;
	wait_blocked(t.pid, SYS_read);
	need_one_thread(t);
	assert_int_equal(pipe(go), 0);
	tracer = fork();
	assert_true(tracer >= 0);
	if (!tracer) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (ptrace(PTRACE_SEIZE, t.pid, 0, 0) || write(go[1], "x", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	assert_int_equal(read(go[0], &c, 1), 1);
	assert_int_equal(inject_uffd(t.pid, t.pidfd, 0, false, &uffd, NULL, &err), -EPERM);
	kill(tracer, SIGKILL);
	waitpid(tracer, &status, 0);
	close(go[0]);
	close(go[1]);
	inject_times(t, 1, "was traced");
	wake_pipe(t.pid);
	assert_int_equal(target_end(t), 0);
}

static void test_wrong_process(void **state)
{
	struct target t = target_start(body_read);
	int self = pidfd_open(getpid(), 0), uffd;
	struct ft_err err = {0};

	(void)state;
	// The number is alive, but not what the descriptor stands for.
	assert_int_equal(inject_uffd(t.pid, self, 0, false, &uffd, NULL, &err), -ESRCH);
	close(self);
	wake_pipe(t.pid);
	kill(t.pid, SIGKILL);
	waitpid(t.pid, NULL, 0);
	assert_int_equal(inject_uffd(t.pid, t.pidfd, 0, false, &uffd, NULL, &err), -ESRCH);
	assert_non_null(strstr(err.text, "is gone"));
	close(t.pidfd);
	close(sh->pipe[0]);
	close(sh->pipe[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sleepers),
		cmocka_unit_test(test_busy_200),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_signals),
		cmocka_unit_test(test_stopped),
		cmocka_unit_test(test_seccomp),
		cmocka_unit_test(test_unprivileged_target),
		cmocka_unit_test(test_never_stops),
		cmocka_unit_test(test_leave_open),
		cmocka_unit_test(test_traced_by_other),
		cmocka_unit_test(test_wrong_process),
	};

	sh = mmap(NULL, sizeof *sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (sh == MAP_FAILED)
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
