// SPDX-License-Identifier: Apache-2.0
/* Snapshots with disks that are updated in place, and a history with disks, of a Linux guest that
 * writes its disk and its memory all the time, and answers a client whose every answer depends on
 * both (tools/drill/ledger.h). Each update is verified against digests taken in the pause, and the
 * guest goes on from the files over its old TCP connection, as if nothing had come after. */
#include <pthread.h>
#include <signal.h>

#include "tests/agent/harness.h"
#include "tests/agent/ledger.h"

#define MACHINE	  "machine = \"pc-i440fx-7.2\"\n"
#define NIC	  "nic net0 { mac = \"52:54:00:12:34:56\" attach = \"tap:tapb\" }\n"
#define LOAD	  "ft.serve=7001:/dev/vda ft.write=16:/dev/vda:20 ft.dirty=2000:16"
#define DISK_SIZE "disk.root.size=96M"
#define ROUNDS	  3
#define UPDATES	  3 /* of a round */
#define WORK	  100
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
	shell("rm -rf %s/s* %s/h %s/*.img* %s/*.console %s/A/*.memory %s/B/*.memory", place, place,
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
	connection = ledger_connect();
}

static void kill_guest(struct host *h)
{
	kill(vmm_pid(h), SIGKILL);
	assert_int_equal(host_reap(h, START_MS), 3);
}

static void *ask_for_update(void *ctx)
{
	struct host *h = ctx;

	assert_int_equal(snapshot_update_with_disks(h, "s"), 0);
	return NULL;
}

/* The moment of the update that goes on is over, or the whole update. */
static void wait_moment(struct host *h)
{
	uint64_t until = now_ms() + START_MS;
	bool seen = false;

	for (bool over = false; !over;) {
		Ctl__Reply *reply = status_of(h);
		const Ctl__Snapshot *s = reply->status->snapshot;

		over = s ? s->incremental && s->pause_us > 0 : seen;
		seen = seen || s;
		ctl__reply__free_unpacked(reply, NULL);
		if (!over)
			breathe(until, "the update's moment");
	}
}

/* What the guest does after the moment, on a connection of its own, will not have been. */
static void update_and_live_on(struct host *h)
{
	struct ledger l = ledger;
	pthread_t asker;
	int fd;

	assert_int_equal(pthread_create(&asker, NULL, ask_for_update, h), 0);
	wait_moment(h);
	fd = ledger_connect();
	ledger_work(&l, fd, WORK);
	close(fd);
	assert_int_equal(pthread_join(asker, NULL), 0);
	print_message("longest answer meanwhile: %lu ms\n", l.longest_ms);
	assert_true(l.longest_ms < GAP_MS);
}

static void goes_on_from_both(void **state)
{
	(void)state;
	boot();
	(void)snapshot_update_with_disks(&a, "s");
	for (unsigned round = 0; round < ROUNDS; round++) {
		for (unsigned i = 0; i < UPDATES; i++) {
			ledger_work(&ledger, connection, WORK);
			(void)snapshot_update_with_disks(&a, "s");
		}
		ledger_work(&ledger, connection, WORK);
		update_and_live_on(&a);
		kill_guest(&a);
		if (round % 2)
			shell("rm -f %s*", at("A.img"));
		start(&a, "--restore", file_uri("s"), round % 2 ? "--lazy" : "--force");
		ledger_work(&ledger, connection, WORK);
		if (round % 2)
			host_wait_said(&a, "all memory is there", START_MS);
	}
	shell("test $(ls %s | grep -c '^s[.]root[.]') = 1 && ! ls %s | grep -q journal", place,
	      place);
	close(connection);
	host_stop(&a);
}

/* Between updates the disk is on its tap: what the guest writes while there is no agent waits for
 * the next one, which knows nothing, compares, and knows from then on. */
static void agent_killed_between(void **state)
{
	pid_t qemu;

	(void)state;
	boot();
	(void)snapshot_update_with_disks(&a, "s");
	assert_int_equal(access(at("A/%s.taps", GUEST), F_OK), 0);
	qemu = vmm_pid(&a);
	for (unsigned round = 0; round < 2; round++) {
		ledger_work(&ledger, connection, WORK);
		host_kill(&a);
		start(&a, NULL, NULL, NULL);
		assert_int_equal(vmm_pid(&a), qemu);
		assert_int_not_equal(access(at("A/%s.taps", GUEST), F_OK), 0);
		ledger_work(&ledger, connection, WORK);
		assert_int_equal(snapshot_update_with_disks(&a, "s"), 1);
		assert_int_equal(snapshot_update_with_disks(&a, "s"), 0);
	}
	/* An agent that ends leaves the guest without taps, and its disk as it is. */
	kill_guest(&a);
	start(&a, "--restore", file_uri("s"), "--force");
	ledger_work(&ledger, connection, WORK);
	close(connection);
	host_stop(&a);
}

static uint64_t newest_kept(struct host *h)
{
	Ctl__Request r = CTL__REQUEST__INIT;
	Ctl__Reply *reply;
	uint64_t epoch;

	r.command = (char *)"history";
	reply = ask_any(h, &r);
	if (reply->error[0])
		fail_msg("%s: history: %s", h->id, reply->message);
	epoch = reply->n_points ? reply->points[reply->n_points - 1]->epoch : 0;
	ctl__reply__free_unpacked(reply, NULL);
	return epoch;
}

static void from_history(void **state)
{
	uint64_t until, epoch;
	struct ledger l;
	char uri[64];
	int fd;

	(void)state;
	qemu_conf(at("g.conf"), LOAD, "history = 100  history_seconds = 1  history_dir = \"h\"",
		  MACHINE NIC);
	boot();
	host_start(&b, at("g.conf"), "--set", DISK_SIZE, "--set", "disk.root.image=B.img", "--set",
		   "console.log=B.console", "--set", "console.socket=B.tty.sock", "--set",
		   "nic.net0.attach=tap:tapc", "--incoming", unix_uri("b.sock"), NULL);
	wait_state(&b, "standby", START_MS);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	ledger_work(&ledger, connection, WORK);
	/* From here on the client stands still: any checkpoint later than this one will do. */
	ask_ok(&a, "checkpoint", NULL);
	epoch = committed(&b);
	until = now_ms() + PROTECT_MS;
	while (newest_kept(&b) <= epoch)
		breathe(until, "a checkpoint is kept");
	epoch = newest_kept(&b);
	/* And another life. */
	l = ledger;
	fd = ledger_connect();
	ledger_work(&l, fd, WORK);
	close(fd);
	until = now_ms() + PROTECT_MS;
	while (newest_kept(&b) <= epoch)
		breathe(until, "another checkpoint is kept");
	ask_ok(&a, "verify", NULL);
	host_stop(&a);
	host_stop(&b);
	/* As on a third host. */
	shell("rm -f %s* %s %s/A/*.memory", at("A.img"), at("A.console"), place);
	snprintf(uri, sizeof uri, "history:%lu", epoch);
	start(&a, "--restore", uri, NULL);
	ledger_work(&ledger, connection, WORK);
	close(connection);
	host_stop(&a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(goes_on_from_both, setup, place_clear),
		cmocka_unit_test_setup_teardown(agent_killed_between, setup, place_clear),
		cmocka_unit_test_setup_teardown(from_history, setup, place_clear),
	};
	int failed;

	need_qemu();
	place_open();
	bridge();
	shell("ip tuntap add tapc mode tap vnet_hdr && ip link set tapc master br0 up");
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}
