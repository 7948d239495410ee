// SPDX-License-Identifier: Apache-2.0
/* Snapshots and restores of pocket machines by real agents: what operators may ask when, what is
 * left when they change their minds, and several guests out of one file. */
#include <sys/socket.h>

#include "tests/agent/harness.h"

#define SLOW (1u << 20) /* bytes a second: 32 MiB take long enough for everything here */

#define STANDBY_ROUNDS 6

static struct host a, b;

static int setup(void **state)
{
	place_clear(state);
	a = host_make("A");
	b = host_make("B");
	pocket_writer_conf(at("d.conf"), "32M");
	shell("rm -f %s %s %s/A/*.memory %s/B/*.memory", at("s"), at("s.part"), place, place);
	return 0;
}

static bool there(const char *file)
{
	return access(at("%s", file), F_OK) == 0;
}

static void wait_no_snapshot(struct host *h)
{
	uint64_t until = now_ms() + START_MS;

	for (bool busy = true; busy;) {
		Ctl__Reply *reply = status_of(h);

		busy = reply->status->snapshot != NULL;
		ctl__reply__free_unpacked(reply, NULL);
		breathe(until, "the snapshot ends");
	}
}

static void saved_and_restored(void **state)
{
	(void)state;
	pocket_writer_start(&a, at("d.conf"));
	snapshot(&a, "s", 0);
	assert_state(&a, "solo");
	snapshot(&a, "s", 0);
	host_stop(&a);
	/* Two guests out of one file, one of them lazily. */
	host_start(&a, at("d.conf"), "--restore", file_uri("s"), NULL);
	host_start(&b, at("d.conf"), "--restore", file_uri("s"), "--lazy", NULL);
	wait_state(&a, "solo", START_MS);
	wait_state(&b, "solo", START_MS);
	host_wait_said(&b, "all memory is there", START_MS);
	/* The guest's program verifies its memory when it is restored, and they can be saved anew.
	 */
	snapshot(&a, "a", 0);
	snapshot(&b, "b", 0);
	host_stop(&a);
	host_stop(&b);
}

static void interrupted(void **state)
{
	char answer[512];
	int fd;

	(void)state;
	pocket_writer_start(&a, at("d.conf"));
	/* By who asked for it: the connection is the snapshot. */
	fd = snapshot_begin_slow(&a, "s", SLOW);
	assert_true(there("s.part"));
	close(fd);
	wait_no_snapshot(&a);
	assert_false(there("s.part") || there("s"));
	/* By another operator. */
	fd = snapshot_begin_slow(&a, "s", SLOW);
	ask_refused(&a, "migrate", unix_uri("b.sock"), "a snapshot is being written");
	ask_refused(&a, "snapshot", file_uri("t"), "a snapshot is being written");
	ask_ok(&a, "cancel", NULL);
	assert_true(recv(fd, answer, sizeof answer, 0) > 0);
	close(fd);
	assert_false(there("s.part") || there("s"));
	/* By the end of the guest. */
	fd = snapshot_begin_slow(&a, "s", SLOW);
	host_stop(&a);
	close(fd);
	assert_false(there("s.part") || there("s"));
}

static void refused(void **state)
{
	Ctl__Request r = CTL__REQUEST__INIT;
	Ctl__Reply *reply;

	(void)state;
	pocket_pair(&a, &b, "", "");
	ask_refused(&a, "snapshot", "file:s", "not file:PATH, absolute");
	ask_refused(&a, "snapshot", "tls:h:1", "not file:PATH, absolute");
	ask_refused(&b, "snapshot", file_uri("s"), "holds no checkpoint");
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	ask_refused(&a, "snapshot", file_uri("s"),
		    "the guest is protected: its standby can take one");
	r.command = (char *)"snapshot";
	r.uri = (char *)(uintptr_t)file_uri("s");
	r.jobs = 1000;
	ask_ok(&a, "cancel", NULL);
	reply = ask_any(&a, &r);
	assert_non_null(strstr(reply->message, "jobs: 1 to 16"));
	ctl__reply__free_unpacked(reply, NULL);
	host_stop(&a);
	host_stop(&b);
	assert_false(there("s.part") || there("s"));
}

/* From the standby's image, while checkpoints go on; then it takes over in the middle of one. */
static void from_the_standby(void **state)
{
	uint64_t before;
	int fd;

	(void)state;
	pocket_writer_start(&a, at("d.conf"));
	/* One of the guest that runs alone leaves nothing in the way of protection. */
	snapshot(&a, "s", 0);
	host_start(&b, at("d.conf"), "--incoming", unix_uri("b.sock"), NULL);
	wait_state(&b, "standby", START_MS);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	for (unsigned round = 0; round < STANDBY_ROUNDS; round++) {
		before = committed(&b);
		snapshot(&b, "s", round % 2 ? 16u << 20 : 0);
		assert_state(&a, "protected");
		ask_ok(&a, "verify", NULL);
		assert_true(committed(&b) > before);
	}
	fd = snapshot_begin_slow(&b, "t", SLOW);
	host_kill(&a);
	wait_state(&b, "solo", START_MS);
	wait_no_snapshot(&b);
	close(fd);
	assert_false(there("t.part") || there("t"));
	host_stop(&b);
	host_start(&b, at("d.conf"), "--restore", file_uri("s"), NULL);
	wait_state(&b, "solo", START_MS);
	host_stop(&b);
}

/* What does not fit is refused before anything is started. */
static void not_restored(void **state)
{
	(void)state;
	pocket_writer_start(&a, at("d.conf"));
	snapshot(&a, "s", 0);
	host_stop(&a);
	pocket_writer_conf(at("large.conf"), "64M");
	assert_int_equal(host_try(&b, at("large.conf"), "--restore", file_uri("s"), NULL), 2);
	host_one_error(&b, "memory: 67108864 bytes here, 33554432 in the snapshot");
	assert_int_equal(host_try(&b, at("d.conf"), "--restore", file_uri("none"), NULL), 2);
	host_one_error(&b, "No such file");
	shell("truncate -s 20M %s", at("s"));
	assert_int_equal(host_try(&b, at("d.conf"), "--restore", file_uri("s"), "--lazy", NULL), 2);
	host_one_error(&b, "it ends before the pages of a block do");
	write_file(at("x"), "no snapshot");
	assert_int_equal(host_try(&b, at("d.conf"), "--restore", file_uri("x"), NULL), 2);
	host_one_error(&b, "not a mapped-ram migration file");
	assert_int_equal(host_try(&b, at("d.conf"), "--restore", "tls:h:1", NULL), 1);
	assert_int_equal(host_try(&b, at("d.conf"), "--lazy", NULL), 1);
	assert_int_equal(children(), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(saved_and_restored, setup, place_clear),
		cmocka_unit_test_setup_teardown(interrupted, setup, place_clear),
		cmocka_unit_test_setup_teardown(refused, setup, place_clear),
		cmocka_unit_test_setup_teardown(from_the_standby, setup, place_clear),
		cmocka_unit_test_setup_teardown(not_restored, setup, place_clear),
	};
	int failed;

	place_open();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}
