// SPDX-License-Identifier: Apache-2.0
// Agents and VMMs here are children of the test that do as little as needed. What matters is who is
// alive in the end, and how fast.
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/fixture/clock.h"
#include "tests/fixture/target.h"
#include "vmm-glue/keeper.h"

#define DEADLINE_MS 10000
#define HOLD_MAX_MS 200
#define TRIES	    3 // for bounds of time, on a machine that does other things too

struct shared {
	_Atomic int ready;
	_Atomic int go;
	_Atomic long at_ms;
};

static struct shared *sh;

static bool lives(struct target p)
{
	return !target_ends_within(p, 0);
}

static int body_vmm(void)
{
	for (;;)
		pause();
	return 0;
}

static struct target start_vmm(void)
{
	return target_fork(body_vmm);
}

// Agents start with a keeper that watches the VMM, and say when they are ready themselves.
static struct target start_agent(void (*body)(struct keeper *k), struct target vmm,
				 bool is_protected)
{
	uint64_t end = now_ms() + DEADLINE_MS;
	struct target agent;
	pid_t pid;

	memset(sh, 0, sizeof *sh);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		struct ft_err err;
		struct keeper *k;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (keeper_start(HOLD_MAX_MS, &k, &err))
			_exit(100);
		if (keeper_watch(k, vmm.pid, &err))
			_exit(101);
		keeper_set_protected(k, is_protected);
		body(k);
		_exit(0);
	}
	agent = target_of(pid);
	while (!sh->ready && lives(agent)) {
		assert_true(now_ms() < end);
		nap();
	}
	return agent;
}

static struct target keeper_of(struct target agent)
{
	char path[64];
	int pid = 0;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/task/%d/children", agent.pid, agent.pid);
	f = fopen(path, "re");
	assert_non_null(f);
	assert_int_equal(fscanf(f, "%d", &pid), 1);
	fclose(f);
	return target_of(pid);
}

static void body_idle(struct keeper *k)
{
	(void)k;
	sh->ready = 1;
	for (;;)
		pause();
}

static void body_freeze(struct keeper *k)
{
	keeper_hold_begin(k);
	sh->at_ms = now_ms();
	sh->ready = 1;
	raise(SIGSTOP);
}

#define WRITE_MS (KEEPER_LOOK_MS + 50)

static uint64_t boot_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_BOOTTIME, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void body_freeze_in_write(struct keeper *k)
{
	keeper_deadline(k, boot_ns() + WRITE_MS * 1000000ull);
	keeper_deadline(k, 0);
	keeper_deadline(k, boot_ns() + WRITE_MS * 1000000ull);
	sh->at_ms = now_ms();
	sh->ready = 1;
	raise(SIGSTOP);
}

/* Waiting for a disk is an uninterruptible sleep, as is waiting for a child of vfork(2). */
static void body_slow_write(struct keeper *k)
{
	keeper_deadline(k, boot_ns() + WRITE_MS * 1000000ull);
	sh->ready = 1;
	if (!vfork()) {
		struct timespec t = {.tv_nsec = 3 * WRITE_MS * 1000000};

		nanosleep(&t, NULL);
		_exit(0);
	}
	keeper_deadline(k, 0);
	keeper_stop(k);
	_exit(7);
}

// The guest may wait for a page of its; a hold that ended before makes no difference.
static void body_freeze_serving(struct keeper *k)
{
	keeper_serving(k);
	keeper_hold_begin(k);
	keeper_hold_end(k);
	sh->at_ms = now_ms();
	sh->ready = 1;
	raise(SIGSTOP);
}

static void frozen(void (*body)(struct keeper *k), long limit_ms, bool is_protected)
{
	long took = 0;

	for (int i = 0; i < TRIES; i++) {
		struct target vmm = start_vmm(), agent = start_agent(body, vmm, is_protected);
		struct target keeper = keeper_of(agent);
		int status;

		assert_true(target_ends_within(agent, DEADLINE_MS));
		took = now_ms() - sh->at_ms;
		status = target_kill(agent);
		assert_true(WIFSIGNALED(status));
		assert_int_equal(WTERMSIG(status), SIGKILL);
		assert_true(target_ends_within(keeper, DEADLINE_MS));
		close(keeper.pidfd);
		if (is_protected)
			assert_true(target_ends_within(vmm, DEADLINE_MS));
		else
			assert_true(lives(vmm));
		target_kill(vmm);
		assert_true(took >= limit_ms - 1);
		if (took <= limit_ms + 100)
			break;
	}
	print_message("frozen agent killed after %ld ms (limit %ld)\n", took, limit_ms);
	assert_true(took <= limit_ms + 100);
}

static void test_frozen_holder(void **state)
{
	(void)state;
	frozen(body_freeze, HOLD_MAX_MS, false);
}

static void test_frozen_holder_protected(void **state)
{
	(void)state;
	frozen(body_freeze, HOLD_MAX_MS, true);
}

static void test_frozen_server(void **state)
{
	(void)state;
	frozen(body_freeze_serving, HOLD_MAX_MS, false);
}

static void test_frozen_writer(void **state)
{
	(void)state;
	frozen(body_freeze_in_write, WRITE_MS, true);
}

static void test_slow_writer(void **state)
{
	struct target vmm = start_vmm(), agent = start_agent(body_slow_write, vmm, true);
	int status;

	(void)state;
	assert_true(target_ends_within(agent, DEADLINE_MS));
	status = target_kill(agent);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 7);
	assert_true(lives(vmm));
	target_kill(vmm);
}

// Frozen, but it holds nothing: it may be stopped in a debugger for all we know.
static void body_freeze_unheld(struct keeper *k)
{
	keeper_serving(k);
	keeper_serving_end(k);
	keeper_hold_begin(k);
	keeper_hold_end(k);
	keeper_deadline(k, boot_ns() + KEEPER_LOOK_MS * 1000000ull);
	keeper_deadline(k, 0);
	sh->ready = 1;
	raise(SIGSTOP);
}

static void test_frozen_without_hold(void **state)
{
	struct target vmm = start_vmm(), agent = start_agent(body_freeze_unheld, vmm, true);

	(void)state;
	assert_false(target_ends_within(agent, 3 * HOLD_MAX_MS));
	assert_true(lives(vmm));
	target_kill(agent);
	target_kill(vmm);
}

// Many holds, each short, so that the keeper's looks meet one each time.
static void body_holds(struct keeper *k)
{
	uint64_t end = now_ms() + 4 * HOLD_MAX_MS;

	sh->ready = 1;
	while (now_ms() < end) {
		keeper_hold_begin(k);
		nap();
		keeper_hold_end(k);
	}
	keeper_stop(k);
}

static void test_short_holds(void **state)
{
	struct target vmm = start_vmm(), agent = start_agent(body_holds, vmm, true);
	int status;

	(void)state;
	assert_true(target_ends_within(agent, DEADLINE_MS));
	status = target_kill(agent);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	assert_true(lives(vmm));
	target_kill(vmm);
}

static void test_agent_dies_protected(void **state)
{
	long took = 0;

	(void)state;
	for (int i = 0; i < TRIES; i++) {
		struct target vmm = start_vmm(), agent = start_agent(body_idle, vmm, true);
		long begin = now_ms();

		kill(agent.pid, SIGKILL);
		assert_true(target_ends_within(vmm, DEADLINE_MS));
		took = now_ms() - begin;
		target_kill(agent);
		target_kill(vmm);
		if (took <= 50)
			break;
	}
	print_message("VMM killed %ld ms after its agent\n", took);
	assert_true(took <= 50);
}

static void test_agent_dies_solo(void **state)
{
	struct target vmm = start_vmm(), agent = start_agent(body_idle, vmm, false),
		      keeper = keeper_of(agent);

	(void)state;
	kill(agent.pid, SIGKILL);
	assert_true(target_ends_within(keeper, DEADLINE_MS));
	assert_true(lives(vmm));
	close(keeper.pidfd);
	target_kill(agent);
	target_kill(vmm);
}

static void body_stop(struct keeper *k)
{
	keeper_stop(k);
	keeper_stop(NULL);
	if (waitpid(-1, NULL, 0) != -1 || errno != ECHILD)
		_exit(1);
	sh->ready = 1;
	while (!sh->go)
		nap();
}

static void test_orderly_stop(void **state)
{
	struct target vmm = start_vmm(), agent = start_agent(body_stop, vmm, true);
	int status;

	(void)state;
	sh->go = 1;
	assert_true(target_ends_within(agent, DEADLINE_MS));
	status = target_kill(agent);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	assert_true(lives(vmm));
	target_kill(vmm);
}

static void body_without_keeper(struct keeper *k)
{
	struct ft_err err = {0};
	uint64_t end = now_ms() + DEADLINE_MS;

	if (!keeper_alive(k))
		_exit(1);
	sh->ready = 1;
	while (keeper_alive(k)) {
		if (now_ms() > end)
			_exit(2);
		nap();
	}
	keeper_hold_begin(k);
	keeper_hold_end(k);
	keeper_set_protected(k, true);
	if (!keeper_watch(k, getppid(), &err) || strncmp(err.text, "keeper: watch", 13) != 0)
		_exit(3);
	keeper_stop(k);
}

static void test_keeper_killed(void **state)
{
	struct target vmm = start_vmm(), agent = start_agent(body_without_keeper, vmm, true);
	struct target keeper = keeper_of(agent);
	int status;

	(void)state;
	kill(keeper.pid, SIGKILL);
	assert_true(target_ends_within(agent, DEADLINE_MS));
	status = target_kill(agent);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	assert_true(lives(vmm));
	close(keeper.pidfd);
	target_kill(vmm);
}

static void test_forgotten(void **state)
{
	struct target vmm = start_vmm(), keeper, agent;
	struct target nobody = {0};

	(void)state;
	agent = start_agent(body_idle, nobody, true);
	keeper = keeper_of(agent);
	kill(agent.pid, SIGKILL);
	assert_true(target_ends_within(keeper, DEADLINE_MS));
	assert_true(lives(vmm));
	close(keeper.pidfd);
	target_kill(agent);
	target_kill(vmm);
}

static void test_lives_apart(void **state)
{
	static const int signals[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGPIPE, SIGALRM, SIGUSR1};
	struct target vmm = start_vmm(), agent, keeper;
	char path[64], comm[32] = "";
	int many[2], fds = 0;
	FILE *f;

	(void)state;
	for (int i = 0; i < 10; i++)
		assert_int_equal(pipe(many), 0); // what an agent might have open
	agent = start_agent(body_idle, vmm, true);
	keeper = keeper_of(agent);
	for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
		kill(keeper.pid, signals[i]);
	assert_false(target_ends_within(keeper, 50));
	assert_int_equal(getsid(keeper.pid), keeper.pid);
	snprintf(path, sizeof path, "/proc/%d/comm", keeper.pid);
	f = fopen(path, "re");
	assert_non_null(f);
	assert_int_equal(fscanf(f, "%31s", comm), 1);
	fclose(f);
	assert_string_equal(comm, "ft-keeper");
	for (int fd = 0; fd < 256; fd++) {
		snprintf(path, sizeof path, "/proc/%d/fd/%d", keeper.pid, fd);
		fds += !faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW);
	}
	assert_int_equal(fds, 5); // standard error, agent, its state, VMM, socket
	close_range((unsigned)many[1] - 19, (unsigned)many[1], 0);
	close(keeper.pidfd);
	target_kill(agent);
	target_kill(vmm);
}

// A new process with the number of the one that was watched.
static void test_pid_reuse(void **state)
{
	struct target vmm = start_vmm(), agent = start_agent(body_idle, vmm, true),
		      keeper = keeper_of(agent);
	struct target impostor;
	pid_t wanted = vmm.pid, pid;
	struct clone_args args = {
		.exit_signal = SIGCHLD, .set_tid = (uintptr_t)&wanted, .set_tid_size = 1};

	(void)state;
	target_kill(vmm);
	pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
	if (pid < 0) {
		print_message("cannot choose a pid: %s\n", strerror(errno));
		close(keeper.pidfd);
		target_kill(agent);
		skip();
	}
	if (!pid)
		for (;;)
			pause();
	assert_int_equal(pid, wanted);
	impostor = target_of(pid);
	kill(agent.pid, SIGKILL);
	assert_true(target_ends_within(keeper, DEADLINE_MS));
	assert_true(lives(impostor));
	close(keeper.pidfd);
	target_kill(agent);
	target_kill(impostor);
}

static void body_watch_errors(struct keeper *k)
{
	struct ft_err err = {0};
	pid_t pid = fork();

	if (!pid)
		_exit(0);
	waitpid(pid, NULL, 0);
	if (keeper_watch(k, pid, &err) != -ESRCH)
		_exit(1);
	if (!geteuid()) {
		if (setgid(65534) || setuid(65534))
			_exit(2);
		prctl(PR_SET_PDEATHSIG, SIGKILL); // forgotten by setuid
		if (keeper_watch(k, getppid(), &err) != -EPERM ||
		    !strstr(err.text, "not permitted"))
			_exit(3);
	}
	keeper_stop(k);
}

static void test_watch_errors(void **state)
{
	struct target vmm = start_vmm(), agent = start_agent(body_watch_errors, vmm, false);
	int status;

	(void)state;
	assert_true(target_ends_within(agent, DEADLINE_MS));
	status = target_kill(agent);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	target_kill(vmm);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_frozen_holder),
		cmocka_unit_test(test_frozen_holder_protected),
		cmocka_unit_test(test_frozen_writer),
		cmocka_unit_test(test_slow_writer),
		cmocka_unit_test(test_frozen_server),
		cmocka_unit_test(test_frozen_without_hold),
		cmocka_unit_test(test_short_holds),
		cmocka_unit_test(test_agent_dies_protected),
		cmocka_unit_test(test_agent_dies_solo),
		cmocka_unit_test(test_orderly_stop),
		cmocka_unit_test(test_keeper_killed),
		cmocka_unit_test(test_forgotten),
		cmocka_unit_test(test_lives_apart),
		cmocka_unit_test(test_pid_reuse),
		cmocka_unit_test(test_watch_errors),
	};

	sh = mmap(NULL, sizeof *sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (sh == MAP_FAILED)
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
