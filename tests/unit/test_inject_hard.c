// SPDX-License-Identifier: Apache-2.0
// Borrowing threads of processes that make it hard: under signals, stopped, sandboxed, of another
// user, traced by somebody else, stuck in the kernel, or gone.
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/fixture/clock.h"
#include "tests/fixture/inject_lab.h"
#include "vmm-glue/inject.h"
#include "vmm-glue/uffd_abi.h"

#define SIGNALS 200

// A sanitizer may have added a thread of its own, which is the one to be borrowed then.
static void need_one_thread(struct target t)
{
	if (inject_lab_status(t.pid, "Threads:") == 1)
		return;
	print_message("needs a target of one thread\n");
	kill(t.pid, SIGKILL);
	inject_lab_end(t);
	skip();
}

static void on_signal(int sig)
{
	(void)sig;
	shared->count++;
}

// The signal is let in only inside ppoll, which must then say EINTR, each time.
static int body_signals(void)
{
	struct sigaction action = {.sa_handler = on_signal};
	struct pollfd p = {.fd = shared->pipe[0], .events = POLLIN};
	sigset_t blocked, none;

	sigemptyset(&none);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGRTMIN);
	sigprocmask(SIG_SETMASK, &blocked, NULL);
	sigaction(SIGRTMIN, &action, NULL);
	shared->ready = 1;
	while (shared->count < SIGNALS) {
		int before = shared->count, ret = ppoll(&p, 1, NULL, &none), saved = errno;
		sigset_t now;

		if (ret != -1 || saved != EINTR || shared->count == before)
			return 1;
		sigprocmask(SIG_SETMASK, NULL, &now);
		if (memcmp(&now, &blocked, 8) != 0)
			return 2;
	}
	return 0;
}

static void test_signals(void **state)
{
	struct target t = inject_lab_start(body_signals);

	(void)state;
	inject_lab_wait_blocked(t.pid, SYS_ppoll);
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
	assert_int_equal(inject_lab_end(t), 0);
	assert_int_equal(shared->count, SIGNALS);
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
	struct target t = inject_lab_start(inject_lab_body_read);
	uint64_t end = now_ms() + INJECT_DEADLINE_MS;

	(void)state;
	inject_lab_wait_blocked(t.pid, SYS_read);
	kill(t.pid, SIGSTOP);
	while (!is_stopped(t.pid))
		assert_true(now_ms() < end);
	inject_lab_times(t, 5, "stopped");
	while (!is_stopped(t.pid))
		assert_true(now_ms() < end);
	kill(t.pid, SIGCONT);
	inject_lab_wake(t.pid);
	assert_int_equal(inject_lab_end(t), 0);
}

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
	return inject_lab_body_read();
}

static void test_seccomp(void **state)
{
	struct target t = inject_lab_start(body_seccomp);
	struct ft_err err = {0};
	int uffd;

	(void)state;
	inject_lab_wait_blocked(t.pid, SYS_read);
	// Either it works, or the kernel cannot suspend filters and we kept our hands off.
	if (inject_uffd(t.pid, t.pidfd, UFFD_USER_MODE_ONLY, false, &uffd, NULL, &err))
		assert_non_null(strstr(err.text, "suspend its seccomp filter"));
	else
		close(uffd);
	inject_lab_wake(t.pid);
	assert_int_equal(inject_lab_end(t), 0);
}

static int body_nobody(void)
{
	if (setgid(65534) || setuid(65534))
		return 1;
	prctl(PR_SET_PDEATHSIG, SIGKILL); // forgotten by setuid
	return inject_lab_body_read();
}

static void test_unprivileged_target(void **state)
{
	struct target t;

	(void)state;
	if (geteuid()) {
		print_message("needs root to become somebody else\n");
		skip();
	}
	t = inject_lab_start(body_nobody);
	inject_lab_wait_blocked(t.pid, SYS_read);
	inject_lab_times(t, 5, "nobody");
	inject_lab_wake(t.pid);
	assert_int_equal(inject_lab_end(t), 0);
}

// The parent of a vfork sleeps uninterruptibly until its child is done.
static int body_vfork(void)
{
	pid_t pid;
	int status;

	shared->ready = 1;
	pid = (pid_t)syscall(SYS_clone, CLONE_VFORK | SIGCHLD, 0, 0, 0, 0);
	if (!pid) {
		char c;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(read(shared->pipe[0], &c, 1) == 1 ? 0 : 1);
	}
	return waitpid(pid, &status, 0) == pid && !status ? 0 : 1;
}

static void test_never_stops(void **state)
{
	struct target t = inject_lab_start(body_vfork);
	struct ft_err err = {0};
	uint64_t begin, end;
	int uffd = -1, own;

	(void)state;
	inject_lab_wait_blocked(t.pid, SYS_clone);
	need_one_thread(t);
	own = inject_lab_fds(getpid());
	begin = now_ms();
	assert_int_equal(inject_uffd(t.pid, t.pidfd, 0, false, &uffd, NULL, &err), -ETIMEDOUT);
	assert_true(now_ms() - begin < INJECT_MS_MAX + 1000);
	assert_non_null(strstr(err.text, "does not stop"));
	assert_int_equal(uffd, -1);
	// It wakes, stops for the attempt that was given up, is let go and has not noticed.
	inject_lab_wake(t.pid);
	assert_int_equal(inject_lab_end(t), 0);
	for (end = now_ms() + INJECT_DEADLINE_MS; inject_lab_fds(getpid()) > own - 3; nap())
		assert_true(now_ms() < end);
}

static void test_leave_open(void **state)
{
	struct target t = inject_lab_start(inject_lab_body_read);
	struct inject_report report;
	struct ft_err err = {0};
	int theirs, uffd;

	(void)state;
	inject_lab_wait_blocked(t.pid, SYS_read);
	need_one_thread(t);
	theirs = inject_lab_fds(t.pid);
	assert_int_equal(inject_uffd(t.pid, t.pidfd, 0, true, &uffd, &report, &err), 0);
	assert_true(report.remote_fd >= 0);
	assert_int_equal(report.tid, t.pid);
	assert_int_equal(inject_lab_fds(t.pid), theirs + 1);
	close(uffd);
	inject_lab_wake(t.pid);
	assert_int_equal(inject_lab_end(t), 0);
}

static void test_traced_by_other(void **state)
{
	struct target t = inject_lab_start(inject_lab_body_read);
	struct ft_err err = {0};
	int go[2], uffd, status;
	pid_t tracer;
	char c;

	(void)state;
	inject_lab_wait_blocked(t.pid, SYS_read);
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
	inject_lab_times(t, 1, "was traced");
	inject_lab_wake(t.pid);
	assert_int_equal(inject_lab_end(t), 0);
}

static void test_wrong_process(void **state)
{
	struct target t = inject_lab_start(inject_lab_body_read);
	int self = pidfd_open(getpid(), 0), uffd;
	struct ft_err err = {0};

	(void)state;
	// The number is alive, but not what the descriptor stands for.
	assert_int_equal(inject_uffd(t.pid, self, 0, false, &uffd, NULL, &err), -ESRCH);
	close(self);
	inject_lab_wake(t.pid);
	kill(t.pid, SIGKILL);
	waitpid(t.pid, NULL, 0);
	assert_int_equal(inject_uffd(t.pid, t.pidfd, 0, false, &uffd, NULL, &err), -ESRCH);
	assert_non_null(strstr(err.text, "is gone"));
	close(t.pidfd);
	close(shared->pipe[0]);
	close(shared->pipe[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_signals),		cmocka_unit_test(test_stopped),
		cmocka_unit_test(test_seccomp),		cmocka_unit_test(test_unprivileged_target),
		cmocka_unit_test(test_never_stops),	cmocka_unit_test(test_leave_open),
		cmocka_unit_test(test_traced_by_other), cmocka_unit_test(test_wrong_process),
	};

	return cmocka_run_group_tests(tests, inject_lab_setup, inject_lab_teardown);
}
