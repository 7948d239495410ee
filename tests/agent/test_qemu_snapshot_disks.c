// SPDX-License-Identifier: Apache-2.0
/* Snapshots with disks of a Linux guest that writes its disk and its memory all the time, and
 * answers a client whose every answer depends on both (tools/drill/ledger.h). The image beside the
 * memory is what the disk was in the pause; the guest goes on from the pair, over its old TCP
 * connection, as if nothing had come after. */
#include <signal.h>
#include <sys/socket.h>

#include "tests/agent/harness.h"
#include "tests/agent/ledger.h"

#define MACHINE	  "machine = \"pc-i440fx-7.2\"\n"
#define NIC	  "nic net0 { mac = \"52:54:00:12:34:56\" attach = \"tap:tapb\" }\n"
#define LOAD	  "ft.serve=7001:/dev/vda ft.write=16:/dev/vda:20 ft.dirty=5000:64"
#define DISK_SIZE "disk.root.size=96M"
#define SLOW	  (48u << 20) /* bytes a second */
#define ROUNDS	  4
#define WORK	  150
#define GAP_MS	  3000 /* of a client on a busy machine, TCG, with the disk's pauses */

static struct host a, b;
static int connection;
static struct ledger ledger;

static int setup(void **state)
{
	place_clear(state);
	ledger = (struct ledger){0};
	a = host_make("A");
	b = host_make("B");
	shell("rm -rf %s/s* %s/t* %s/*.img* %s/*.console %s/A/*.memory %s/B/*.memory", place, place,
	      place, place, place, place);
	qemu_conf(at("g.conf"), LOAD, "", MACHINE NIC);
	return 0;
}

static void start(struct host *h, const char *option, const char *value, const char *more)
{
	host_start(h, at("g.conf"), "--set", DISK_SIZE, option, value, more, NULL);
	wait_state(h, "solo", START_MS);
}

static void boot(void)
{
	uint64_t until = now_ms() + BOOT_MS;

	start(&a, NULL, NULL, NULL);
	while (!strstr(file_text(at("A.console")), "GUEST-READY"))
		breathe(until, "the guest boots");
}

/* What the guest does after the moment, on a connection of its own, will not have been. */
static void another_life(const struct ledger *then)
{
	struct ledger l = *then;
	int fd = ledger_connect();

	ledger_work(&l, fd, WORK);
	close(fd);
	print_message("longest answer meanwhile: %lu ms\n", l.longest_ms);
	assert_true(l.longest_ms < GAP_MS);
}

static void kill_guest(struct host *h)
{
	kill(vmm_pid(h), SIGKILL);
	assert_int_equal(host_reap(h, START_MS), 3);
}

/* What the operator gives up is given up once the rest is known to fit. */
static void not_overwritten(void)
{
	shell("cp %s %s", at("A.img"), at("copy.img"));
	assert_int_equal(host_try(&a, at("g.conf"), "--set", DISK_SIZE, "--set",
				  "machine=pc-i440fx-7.1", "--restore", file_uri("s"), "--force",
				  NULL),
			 2);
	host_one_error(&a, "machine: 'pc-i440fx-7.1' here, 'pc-i440fx-7.2' in the snapshot");
	shell("cmp %s %s", at("A.img"), at("copy.img"));
	shell("rm %s", at("copy.img"));
}

static void goes_on_from_both(void **state)
{
	uint64_t faults = 0;

	(void)state;
	boot();
	connection = ledger_connect();
	for (unsigned round = 0; round < ROUNDS; round++) {
		int fd;

		ledger_work(&ledger, connection, WORK);
		fd = snapshot_begin_slow_with_disks(&a, "s", round % 2 ? SLOW : 0);
		another_life(&ledger);
		faults += snapshot_wait(&a, fd);
		assert_int_not_equal(access(at("A/%s.taps", GUEST), F_OK), 0);
		kill_guest(&a);
		/* Once over what the guest wrote since, and once into an image that is none yet. */
		if (round % 2)
			shell("rm -f %s*", at("A.img"));
		if (!round)
			not_overwritten();
		start(&a, "--restore", file_uri("s"), round % 2 ? "--lazy" : "--force");
		ledger_work(&ledger, connection, WORK);
		if (round % 2)
			host_wait_said(&a, "all memory is there", START_MS);
	}
	print_message("%lu blocks copied aside\n", faults);
	assert_true(faults > 100);
	close(connection);
	host_stop(&a);
}

/* An agent that dies while the disk is on its tap: what the guest writes waits for the next one. */
static void agent_killed(void **state)
{
	pid_t qemu;

	(void)state;
	boot();
	connection = ledger_connect();
	snapshot_with_disks(&a, "s", 0);
	qemu = vmm_pid(&a);
	for (unsigned round = 0; round < 3; round++) {
		int fd = snapshot_begin_slow_with_disks(&a, "s", SLOW / 8);

		ledger_work(&ledger, connection, 10);
		if (round == 2)
			host_signal(&a, SIGSTOP); /* its keeper ends it */
		else
			host_kill(&a);
		if (round == 2)
			assert_int_equal(host_reap(&a, START_MS), 128 + SIGKILL);
		close(fd);
		start(&a, NULL, NULL, NULL);
		assert_int_equal(vmm_pid(&a), qemu);
		assert_int_not_equal(access(at("A/%s.taps", GUEST), F_OK), 0);
		ledger_work(&ledger, connection, WORK);
	}
	/* The set from before is whole; then another takes its place, and nothing else is left. */
	kill_guest(&a);
	close(connection);
	start(&a, "--restore", file_uri("s"), "--force");
	snapshot_with_disks(&a, "s", 0);
	shell("test $(ls %s | grep -c '^s') = 2", place);
	host_stop(&a);
}

/* The guest is protected and does not notice; later checkpoints are applied meanwhile. */
static void from_the_standby(void **state)
{
	int fd;

	(void)state;
	boot();
	connection = ledger_connect();
	host_start(&b, at("g.conf"), "--set", DISK_SIZE, "--set", "disk.root.image=B.img", "--set",
		   "console.log=B.console", "--set", "console.socket=B.tty.sock", "--set",
		   "nic.net0.attach=tap:tapc", "--incoming", unix_uri("b.sock"), NULL);
	wait_state(&b, "standby", START_MS);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	ledger_work(&ledger, connection, WORK);
	fd = snapshot_begin_slow_with_disks(&b, "s", SLOW);
	another_life(&ledger);
	snapshot_wait(&b, fd);
	assert_state(&a, "protected");
	ask_ok(&a, "verify", NULL);
	host_stop(&a);
	host_stop(&b);
	/* As on a third host. */
	shell("rm -f %s* %s %s/A/*.memory", at("A.img"), at("A.console"), place);
	start(&a, "--restore", file_uri("s"), NULL);
	ledger_work(&ledger, connection, WORK);
	close(connection);
	host_stop(&a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(goes_on_from_both, setup, place_clear),
		cmocka_unit_test_setup_teardown(agent_killed, setup, place_clear),
		cmocka_unit_test_setup_teardown(from_the_standby, setup, place_clear),
	};
	int failed;

	need_qemu();
	place_open();
	bridge();
	shell("ip tuntap add tapc mode tap vnet_hdr && ip link set tapc master br0 up");
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}
