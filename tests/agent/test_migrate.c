// SPDX-License-Identifier: Apache-2.0
/* A guest moves from one host to the other, or stays where it was. */
#include <signal.h>

#include "tests/agent/harness.h"

static struct host a, b;
static struct kv_client client;

/* Without kemari: */
static const char *move_uri(const char *name)
{
	return unix_uri(name) + strlen("kemari:");
}

static void target(struct host *h, const char *image, const char *listen)
{
	host_start(h, at("g.conf"), "--set", image, "--incoming", move_uri(listen), NULL);
	wait_state(h, "standby", START_MS);
}

static void begin(const char *extra)
{
	place_clear(NULL);
	shell("rm -rf %s %s %s %s", at("arbiter"), at("*.img"), at("*.kemari"), at("[AB]/*"));
	shell("mkdir %s", at("arbiter"));
	a = host_make("A");
	b = host_make("B");
	pocket_conf(at("g.conf"), "", extra);
	host_start(&a, at("g.conf"), NULL);
	wait_state(&a, "solo", START_MS);
	target(&b, "disk.root.image=B.img", "b.sock");
	kv_open(&client);
	kv_work(&client, 10);
}

static int setup_none(void **state)
{
	(void)state;
	begin("");
	return 0;
}

static int setup_file(void **state)
{
	(void)state;
	begin("arbiter { type = \"file\" dir = \"arbiter\" }");
	return 0;
}

static int teardown(void **state)
{
	kv_close(&client);
	hosts_stop(&a, &b);
	assert_int_equal(children(), 0);
	return place_clear(state);
}

static void move(struct host *from, struct host *to, const char *listen)
{
	Ctl__Reply *reply;

	ask_ok(from, "migrate", move_uri(listen));
	assert_int_equal(host_reap(from, START_MS), 0);
	wait_state(to, "solo", GOES_ON_MS);
	kv_work(&client, 10);
	reply = status_of(to);
	assert_string_equal(reply->status->mode, "precopy");
	ctl__reply__free_unpacked(reply, NULL);
}

/* The client never misses an operation; who had the guest has ended. */
static void there_and_back(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 3; round++) {
		move(&a, &b, "b.sock");
		target(&a, "disk.root.image=A.img", "a.sock");
		move(&b, &a, "a.sock");
		target(&b, "disk.root.image=B.img", "b.sock");
	}
}

/* The answer has the figures, and the place that it left is none to start it from. */
static void moved_is_moved(void **state)
{
	Ctl__Request r = CTL__REQUEST__INIT;
	Ctl__Reply *reply;

	(void)state;
	r.command = (char *)"migrate";
	r.uri = (char *)(uintptr_t)move_uri("b.sock");
	reply = ask_any(&a, &r);
	assert_string_equal(reply->error, "");
	assert_string_equal(reply->status->state, "stopped");
	assert_non_null(strstr(reply->status->reason, "moved to B"));
	assert_string_equal(reply->status->migration->mode, "precopy");
	assert_true(reply->status->migration->rounds > 0);
	assert_true(reply->status->migration->downtime_us > 0);
	ctl__reply__free_unpacked(reply, NULL);
	assert_int_equal(host_reap(&a, START_MS), 0);
	kv_work(&client, 10);
	assert_non_null(strstr(file_text(at("A.img.kemari")), "Outdated"));
	assert_non_null(strstr(file_text(at("B.img.kemari")), "UpToDate"));
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	/* Not even where the run directory is forgotten. */
	shell("rm -rf %s", a.run);
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
}

/* The target is killed while it receives: the guest goes on here, and can move later. */
static void target_killed(void **state)
{
	uint64_t until = now_ms() + START_MS;
	char message[512];

	(void)state;
	host_signal(&b, SIGSTOP);
	ask_async(&a, "migrate", move_uri("b.sock"));
	wait_state(&a, "syncing", START_MS);
	host_signal(&b, SIGCONT);
	host_kill(&b);
	wait_state(&a, "solo", GOES_ON_MS);
	kv_work(&client, 10);
	target(&b, "disk.root.image=B.img", "b.sock");
	while (ask(&a, "migrate", move_uri("b.sock"), message))
		breathe(until, message);
	assert_int_equal(host_reap(&a, START_MS), 0);
	kv_work(&client, 10);
}

static void cancelled(void **state)
{
	(void)state;
	host_signal(&b, SIGSTOP);
	ask_async(&a, "migrate", move_uri("b.sock"));
	wait_state(&a, "syncing", START_MS);
	ask_ok(&a, "cancel", NULL);
	wait_state(&a, "solo", GOES_ON_MS);
	host_signal(&b, SIGCONT);
	kv_work(&client, 10);
	move(&a, &b, "b.sock");
}

/* A target that cannot take it says so when the guest stands still already. */
static void not_taken(void **state)
{
	(void)state;
	host_stop(&b);
	/* Its NIC's port is taken: what is armed cannot go on. */
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--set",
		   "nic.net0.attach=udp:192.0.2.1:7700", "--incoming", move_uri("b.sock"), NULL);
	wait_state(&b, "standby", START_MS);
	ask_refused(&a, "migrate", move_uri("b.sock"), "");
	assert_state(&a, "solo");
	kv_work(&client, 10);
	assert_int_equal(host_reap(&b, START_MS), 3);
}

static void wrong_place(void **state)
{
	(void)state;
	ask_refused(&a, "migrate", unix_uri("b.sock"), "protects none");
	host_stop(&b);
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--incoming",
		   unix_uri("b.sock"), NULL);
	wait_state(&b, "standby", START_MS);
	ask_refused(&a, "migrate", move_uri("b.sock"), "this agent is a standby");
	assert_state(&a, "solo");
	kv_work(&client, 10);
}

/* ---- postcopy ---- */

static Ctl__Reply *postcopy(struct host *from, const char *listen, unsigned rounds,
			    bool demand_only)
{
	Ctl__Request r = CTL__REQUEST__INIT;

	r.command = (char *)"migrate";
	r.uri = (char *)(uintptr_t)move_uri(listen);
	r.postcopy = true;
	r.rounds = rounds;
	r.demand_only = demand_only;
	return ask_any(from, &r);
}

static void follow(struct host *from, struct host *to, const char *listen, unsigned rounds)
{
	Ctl__Reply *reply = postcopy(from, listen, rounds, false);

	if (reply->error[0])
		fail_msg("%s: %s; it said: %s", from->id, reply->message, file_text(from->log));
	assert_string_equal(reply->status->state, "stopped");
	ctl__reply__free_unpacked(reply, NULL);
	assert_int_equal(host_reap(from, START_MS), 0);
	kv_work(&client, 10);
	reply = status_of(to);
	assert_string_equal(reply->status->state, "solo");
	assert_string_equal(reply->status->mode, "postcopy");
	/* After rounds there may be nothing left to follow. */
	assert_true(reply->status->migration->bytes_total > 0 || rounds > 0);
	assert_int_equal(reply->status->migration->bytes_done,
			 reply->status->migration->bytes_total);
	ctl__reply__free_unpacked(reply, NULL);
}

static void postcopy_there_and_back(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 3; round++) {
		follow(&a, &b, "b.sock", round);
		target(&a, "disk.root.image=A.img", "a.sock");
		follow(&b, &a, "a.sock", round);
		target(&b, "disk.root.image=B.img", "b.sock");
	}
}

int main(void)
{
#define NONE(f)	  cmocka_unit_test_setup_teardown(f, setup_none, teardown)
#define RECORD(f) cmocka_unit_test_setup_teardown(f, setup_file, teardown)
	const struct CMUnitTest tests[] = {
		NONE(there_and_back),
		RECORD(there_and_back),
		NONE(moved_is_moved),
		RECORD(moved_is_moved),
		NONE(target_killed),
		NONE(cancelled),
		NONE(not_taken),
		RECORD(not_taken),
		NONE(wrong_place),
		NONE(postcopy_there_and_back),
		RECORD(postcopy_there_and_back),
	};
	int failed;

	place_open();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return place_close() + failed;
}
