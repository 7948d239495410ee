// SPDX-License-Identifier: Apache-2.0
/* The agent stands still in the worst moment, while it holds the guest: its keeper ends it, and the
 * guest runs again, here or at the standby, and never at both. */
#include <signal.h>

#include "tests/agent/harness.h"
#include "vmm-glue/vmm.h"

#define TURNS	     100
#define TURN_MS	     20	 /* several of the intervals below */
#define SLACK_MS     200 /* between the keeper's deadline and the guest's next tick, besides */
#define TICK_MS	     200
#define STANDBY_DOES 1000 /* takeover and load on a busy machine */

static struct host a, b;

static int setup(void **state)
{
	place_clear(state);
	a = host_make("A");
	b = host_make("B");
	return 0;
}

/* Its main thread writes device state into a pipe that nobody empties. */
static bool is_held(pid_t qemu)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/wchan", qemu);
	return strstr(file_text(path), "pipe_write") != NULL;
}

static bool is_stopped(pid_t pid)
{
	const char *state;
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	state = strrchr(file_text(path), ')');
	return state && state[1] == ' ' && state[2] == 'T';
}

static void stop(pid_t pid)
{
	uint64_t until = now_ms() + GOES_ON_MS;

	assert_int_equal(kill(pid, SIGSTOP), 0);
	while (!is_stopped(pid) && now_ms() < until)
		;
	assert_true(is_stopped(pid));
}

/* The agent and QEMU run by turns, so that their talk goes on word by word, until QEMU writes its
 * state and nobody is there to take it. The agent is stopped then. */
static void freeze_in_hold(pid_t qemu)
{
	for (unsigned i = 0; i < TURNS; i++) {
		uint64_t until;

		stop(qemu);
		if (i > 0)
			host_signal(&a, SIGCONT);
		for (until = now_ms() + TURN_MS; now_ms() < until;)
			;
		stop(a.agent);
		assert_int_equal(kill(qemu, SIGCONT), 0);
		for (until = now_ms() + TURN_MS; !is_held(qemu) && now_ms() < until;)
			;
		if (is_held(qemu))
			return;
	}
	fail_msg("no hold in %d turns", TURNS);
}

static void freeze_between_holds(pid_t qemu)
{
	for (unsigned i = 0; i < TURNS; i++) {
		uint64_t until;

		stop(a.agent);
		for (until = now_ms() + TURN_MS; !is_held(qemu) && now_ms() < until;)
			;
		if (!is_held(qemu))
			return;
		host_signal(&a, SIGCONT);
	}
	fail_msg("%d turns, and every one in a hold", TURNS);
}

static void start(const char *ft, const char *extra)
{
	qemu_conf(at("g.conf"), "", ft, extra);
	qemu_start(&a, at("g.conf"));
	qemu_standby(&b, unix_uri("b.sock"), NULL);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
}

static void frozen_in_a_hold(void **state)
{
	uint64_t frozen;
	pid_t qemu;
	int tick;

	(void)state;
	start("trigger = \"both\" interval_ms = 5 max_overhead = 0.9", "");
	qemu = vmm_pid(&a);
	tick = wait_tick(&a, last_tick(&a), GOES_ON_MS);
	freeze_in_hold(qemu);
	frozen = now_ms();
	/* The standby does not wait for the keeper: a silent primary is silent, whatever froze it.
	 */
	wait_tick(&b, tick, VMM_HOLD_MAX_MS + SLACK_MS + TICK_MS + STANDBY_DOES);
	printf("guest ticks at the standby %lu ms after the freeze\n", now_ms() - frozen);
	assert_int_equal(host_reap(&a, VMM_HOLD_MAX_MS + SLACK_MS), 128 + SIGKILL);
	printf("agent dead after %lu ms\n", now_ms() - frozen);
	host_wait_said(&a, "agent froze while it held the guest", GOES_ON_MS);
	wait_dead(qemu, 1000);
	ticks_on(&b);
	host_stop(&b);
	assert_int_equal(children(), 0);
}

/* Nobody else may have the guest yet: it must run here again. */
static void frozen_before_anybody_has_it(void **state)
{
	uint64_t frozen;
	pid_t qemu;
	int tick;

	(void)state;
	/* A standby that stands still itself never acknowledges the first checkpoint. */
	qemu_conf(at("g.conf"), "", "", "");
	qemu_start(&a, at("g.conf"));
	qemu_standby(&b, unix_uri("b.sock"), NULL);
	qemu = vmm_pid(&a);
	ask_async(&a, "migrate", unix_uri("b.sock"));
	host_wait_said(&a, "async rounds to", PROTECT_MS);
	freeze_in_hold(qemu);
	assert_false(host_said(&a, "-> protected"));
	frozen = now_ms();
	assert_int_equal(host_reap(&a, VMM_HOLD_MAX_MS + SLACK_MS), 128 + SIGKILL);
	printf("agent dead after %lu ms\n", now_ms() - frozen);
	assert_true(process_alive(qemu));
	tick = last_tick(&a);
	host_start(&a, at("g.conf"), NULL);
	wait_state(&a, "solo", START_MS);
	wait_tick(&a, tick + 2, GOES_ON_MS);
	assert_int_equal(vmm_pid(&a), qemu);
	host_stop(&a);
	host_stop(&b);
	assert_int_equal(children(), 0);
}

/* Frozen between holds, it runs nothing and releases nothing; when it comes back it finds itself
 * replaced. */
static void frozen_and_back(void **state)
{
	pid_t qemu;
	int tick;

	(void)state;
	start("", "arbiter { type = \"file\" dir = \"arbiter\" }");
	qemu = vmm_pid(&a);
	tick = wait_tick(&a, last_tick(&a), GOES_ON_MS);
	freeze_between_holds(qemu);
	wait_tick(&b, tick, GOES_ON_MS);
	tick = last_tick(&a);
	ticks_on(&b);
	assert_int_equal(last_tick(&a), tick);
	host_signal(&a, SIGCONT);
	wait_state(&a, "fenced", GOES_ON_MS);
	wait_dead(qemu, GOES_ON_MS);
	assert_int_equal(last_tick(&a), tick);
	ticks_on(&b);
	host_stop(&a);
	host_stop(&b);
	assert_int_equal(children(), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(frozen_in_a_hold, setup, place_clear),
		cmocka_unit_test_setup_teardown(frozen_before_anybody_has_it, setup, place_clear),
		cmocka_unit_test_setup_teardown(frozen_and_back, setup, place_clear),
	};
	int failed;

	need_qemu();
	place_open();
	shell("mkdir %s", at("arbiter"));
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}
