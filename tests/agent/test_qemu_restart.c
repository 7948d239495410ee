// SPDX-License-Identifier: Apache-2.0
/* The agent dies, and what that means for the guest depends on the moment: solo and syncing guests
 * run on and a new agent finds them; a protected one ends here, for the standby has it. And nothing
 * is left when a guest is stopped. */
#include <net/if.h>
#include <signal.h>

#include "tests/agent/harness.h"

#define NIC "nic net0 { mac = \"52:54:00:12:34:56\" attach = \"bridge:br0\" }\n"

static struct host a, b;

static int setup(void **state)
{
	(void)state;
	a = host_make("A");
	b = host_make("B");
	return 0;
}

/* One network namespace is both hosts' here, so B's tap needs a name of its own. */
static void start_standby(void)
{
	qemu_standby(&b, unix_uri("b.sock"), "nic.net0.attach=tap:tapb");
}

static void start_pair(const char *append, const char *ft)
{
	qemu_conf(at("g.conf"), append, ft, NIC);
	qemu_start(&a, at("g.conf"));
	start_standby();
}

static void protect(struct host *h)
{
	ask_ok(h, "migrate", unix_uri("b.sock"));
	assert_state(h, "protected");
	ask_ok(h, "verify", NULL);
}

static void killed_while_solo(void **state)
{
	pid_t qemu;
	int tick;

	(void)state;
	start_pair("", "");
	qemu = vmm_pid(&a);
	for (int round = 0; round < 2; round++) {
		host_kill(&a);
		assert_true(process_alive(qemu));
		tick = last_tick(&a);
		host_start(&a, at("g.conf"), NULL);
		wait_state(&a, "solo", START_MS);
		assert_true(host_said(&a, "found the guest running"));
		assert_int_equal(vmm_pid(&a), qemu);
		wait_tick(&a, tick, GOES_ON_MS);
		/* The keeper of the dead agent has gone with it: agents, QEMU, keepers of A and B.
		 */
		wait_children(3, 5000);
		protect(&a);
		ask_ok(&a, "cancel", NULL);
		wait_state(&b, "standby", START_MS);
	}
	/* An orderly stop ends the guest although this agent did not start it. */
	host_stop(&a);
	wait_dead(qemu, 5000);
}

/* Between the first round and the first checkpoint: the taps are in, disk writes go through the
 * agent. */
static void wait_console(const struct host *h, const char *text)
{
	uint64_t until = now_ms() + GOES_ON_MS;

	while (!strstr(file_text(at("%s.console", h->id)), text))
		breathe(until, text);
}

static void killed_while_syncing(void **state)
{
	int connection;
	pid_t qemu;

	(void)state;
	/* Too many dirty pages for a hold of 1 ms: rounds go on. */
	start_pair("ft.dirty=200000:96 ft.write=4:/dev/vda:0", "max_downtime_ms = 1");
	qemu = vmm_pid(&a);
	{
		Ctl__Reply *reply;
		uint64_t until = now_ms() + START_MS;
		char uri[200];

		snprintf(uri, sizeof uri, "%s", unix_uri("b.sock"));
		ask_async(&a, "migrate", uri);
		for (bool tapped = false; !tapped; ctl__reply__free_unpacked(reply, NULL)) {
			reply = status_of(&a);
			tapped = !strcmp(reply->status->state, "syncing") &&
				 reply->status->rounds > 0;
			if (!tapped)
				breathe(until, "async rounds");
		}
	}
	assert_int_equal(access(at("A/%s.taps", GUEST), F_OK), 0);
	host_kill(&a);
	assert_true(process_alive(qemu));
	host_start(&a, at("g.conf"), NULL);
	wait_state(&a, "solo", START_MS);
	assert_int_equal(vmm_pid(&a), qemu);
	assert_int_not_equal(access(at("A/%s.taps", GUEST), F_OK), 0);
	ticks_on(&a);
	/* Its disk and its network are its own again. */
	connection = guest_connect();
	guest_echo(connection, 20);
	close(connection);
	guest_type(&a, "gl disk /dev/vda 20");
	wait_console(&a, "disk 20 writes");
	wait_state(&b, "standby", START_MS);
	host_stop(&a);
	host_stop(&b);
	assert_int_equal(children(), 0);
}

static void killed_while_protected(void **state)
{
	pid_t qemu;
	int tick, connection;

	(void)state;
	start_pair("", "");
	protect(&a);
	qemu = vmm_pid(&a);
	connection = guest_connect();
	guest_echo(connection, 20);
	tick = wait_tick(&a, last_tick(&a), GOES_ON_MS);
	host_kill(&a);
	wait_dead(qemu, 2000);
	assert_true(host_said(&a, "killed the guest's VMM"));
	wait_state(&b, "solo", GOES_ON_MS);
	/* Output of the committed epoch may come again, later output must come. */
	assert_true(wait_tick(&b, tick, GOES_ON_MS) > tick);
	guest_echo(connection, 50);
	close(connection);
	/* Whoever restarts the dead agent as if nothing had been must not run the guest twice. */
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	host_one_error(&a, "--incoming");
	ticks_on(&b);
	/* B's agent is killed and restarted with the words that it was started with. */
	qemu = vmm_pid(&b);
	host_kill(&b);
	assert_true(process_alive(qemu));
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--set",
		   "console.log=B.console", "--set", "console.socket=B.tty.sock", "--set",
		   "nic.net0.attach=tap:tapb", "--incoming", unix_uri("b.sock"), NULL);
	wait_state(&b, "solo", START_MS);
	assert_int_equal(vmm_pid(&b), qemu);
	ticks_on(&b);
	host_stop(&b);
	assert_int_equal(children(), 0);
}

static unsigned interfaces(void)
{
	struct if_nameindex *list = if_nameindex();
	unsigned n = 0;

	assert_non_null(list);
	for (; list[n].if_index; n++)
		;
	if_freenameindex(list);
	return n;
}

/* What stop leaves in a run directory: logs, and the agent's memory. */
static void assert_only_logs(const struct host *h)
{
	char command[256];

	snprintf(command, sizeof command,
		 "! find %s -mindepth 1 ! -name '*.log' ! -name '*.memory' ! -name '*.lock' | grep "
		 ". >&2",
		 h->run);
	shell("%s", command);
}

static unsigned before_ifs;

static void nothing_left(void **state)
{
	unsigned before_fds = descriptors(getpid());

	(void)state;
	start_pair("", "");
	protect(&a);
	host_stop(&a);
	wait_state(&b, "standby", START_MS);
	host_stop(&b);
	assert_int_equal(children(), 0);
	assert_int_equal(descriptors(getpid()), before_fds);
	assert_int_equal(interfaces(), before_ifs);
	assert_only_logs(&a);
	assert_only_logs(&b);
}

static void terminated(void **state)
{
	(void)state;
	start_pair("", "");
	protect(&a);
	host_signal(&b, SIGTERM);
	assert_int_equal(host_reap(&b, START_MS), 0);
	wait_state(&a, "solo", GOES_ON_MS);
	ticks_on(&a);
	host_signal(&a, SIGTERM);
	assert_int_equal(host_reap(&a, START_MS), 0);
	assert_int_equal(children(), 0);
	assert_int_equal(interfaces(), before_ifs);
}

/* A guest that shuts itself down is no fault and no reason for a takeover. */
static void powers_off(void **state)
{
	(void)state;
	start_pair("", "");
	protect(&a);
	guest_type(&a, "poweroff -f");
	assert_int_equal(host_reap(&a, START_MS), 0);
	assert_true(host_said(&a, "the guest shut down"));
	wait_state(&b, "standby", START_MS);
	host_wait_said(&b, "the primary ended protection", START_MS);
	/* Both may go on from here. */
	host_start(&a, at("g.conf"), NULL);
	wait_state(&a, "solo", START_MS);
	protect(&a);
	host_stop(&a);
	host_stop(&b);
	assert_int_equal(children(), 0);
}

static void qemu_killed_while_solo(void **state)
{
	(void)state;
	qemu_conf(at("g.conf"), "", "", NIC);
	qemu_start(&a, at("g.conf"));
	kill(vmm_pid(&a), SIGKILL);
	assert_int_equal(host_reap(&a, START_MS), 3);
	assert_int_equal(children(), 0);
	/* What died may be started again. */
	host_start(&a, at("g.conf"), NULL);
	wait_state(&a, "solo", START_MS);
	host_stop(&a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(killed_while_solo, setup, place_clear),
		cmocka_unit_test_setup_teardown(killed_while_syncing, setup, place_clear),
		cmocka_unit_test_setup_teardown(killed_while_protected, setup, place_clear),
		cmocka_unit_test_setup_teardown(nothing_left, setup, place_clear),
		cmocka_unit_test_setup_teardown(terminated, setup, place_clear),
		cmocka_unit_test_setup_teardown(powers_off, setup, place_clear),
		cmocka_unit_test_setup_teardown(qemu_killed_while_solo, setup, place_clear),
	};
	int failed;

	need_qemu();
	place_open();
	bridge();
	before_ifs = interfaces();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}
