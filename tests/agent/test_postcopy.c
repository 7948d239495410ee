// SPDX-License-Identifier: Apache-2.0
/* The memory of a guest that runs elsewhere already: fetched, cut off, fetched again, lost. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>

#include "ft/msg.h"
#include "tests/agent/harness.h"
#include "tests/agent/proxy.h"

#define SILENCE_MS 700 /* no answer for so long: the guest stands still */

static struct host a, b;
static struct kv_client client;
static struct proxy *wire;

static const char *move_uri(const char *name)
{
	return unix_uri(name) + strlen("kemari:");
}

static void join(void)
{
	shell("rm -f %s", at("wire.sock"));
	wire = proxy_start(at("wire.sock"), at("b.sock"));
}

static int setup(void **state)
{
	(void)state;
	place_clear(NULL);
	shell("rm -rf %s %s %s", at("*.img"), at("*.kemari"), at("[AB]/*"));
	a = host_make("A");
	b = host_make("B");
	pocket_conf(at("g.conf"), "", "");
	host_start(&a, at("g.conf"), NULL);
	wait_state(&a, "solo", START_MS);
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--incoming",
		   move_uri("b.sock"), NULL);
	wait_state(&b, "standby", START_MS);
	join();
	kv_open(&client);
	kv_work(&client, 10);
	return 0;
}

static int teardown(void **state)
{
	kv_close(&client);
	if (wire)
		proxy_stop(wire);
	wire = NULL;
	if (b.agent)
		host_stop(&b);
	/* Who has pages is asked twice. */
	if (a.agent && host_said(&a, "-> fenced"))
		(void)ask(&a, "stop", NULL, (char[512]){0});
	if (a.agent)
		host_stop(&a);
	assert_int_equal(children(), 0);
	return place_clear(state);
}

static Ctl__Reply *migrate(bool recover, bool demand_only)
{
	Ctl__Request r = CTL__REQUEST__INIT;

	r.command = (char *)"migrate";
	r.uri = recover ? (char *)"" : (char *)(uintptr_t)move_uri("wire.sock");
	r.recover = recover;
	r.postcopy = !recover;
	r.demand_only = demand_only;
	return ask_any(&a, &r);
}

/* The guest runs at B, nearly all of its memory is at A. */
static void give_away(void)
{
	Ctl__Reply *reply = migrate(false, true);

	if (reply->error[0])
		fail_msg("A: %s", reply->message);
	assert_string_equal(reply->status->state, "fenced");
	ctl__reply__free_unpacked(reply, NULL);
	wait_state(&b, "solo", GOES_ON_MS);
}

static void cut(void)
{
	proxy_stop(wire);
	wire = NULL;
	wait_migration_cut(&a);
	wait_migration_cut(&b);
}

/* The guest is asked and does not answer, neither right nor wrong. */
static void assert_silent(void)
{
	struct timeval limit = {.tv_usec = SILENCE_MS * 1000};
	char text[64];

	setsockopt(client.fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	for (unsigned i = 0; i < 200; i++) {
		snprintf(text, sizeof text, "PUT 99 %u other%u x", i + 1, i);
		(void)!send(client.fd, text, strlen(text), MSG_NOSIGNAL);
	}
	/* Some may be answered with what is there; then no more. */
	while (recv(client.fd, text, sizeof text, 0) > 0)
		;
	assert_int_equal(errno, EAGAIN);
}

static void *work(void *ctx)
{
	(void)ctx;
	kv_work(&client, 200);
	return NULL;
}

static uint64_t faults(struct host *h)
{
	Ctl__Reply *reply = status_of(h);
	uint64_t n = reply->status->migration->faults;

	assert_string_equal(reply->status->migration->mode, "postcopy");
	ctl__reply__free_unpacked(reply, NULL);
	return n;
}

static void recover(void)
{
	Ctl__Reply *reply = migrate(true, false);

	if (reply->error[0])
		fail_msg("A: %s", reply->message);
	assert_string_equal(reply->status->state, "stopped");
	ctl__reply__free_unpacked(reply, NULL);
	assert_int_equal(host_reap(&a, START_MS), 0);
}

/* Only what is touched comes; then all of it. */
static void on_demand(void **state)
{
	Ctl__Reply *reply;
	uint64_t some;

	(void)state;
	give_away();
	kv_work(&client, 50);
	some = faults(&b);
	assert_true(some > 0);
	assert_true(some < 8192);
	/* Nothing else may happen to it meanwhile. */
	ask_refused(&b, "migrate", unix_uri("a.sock"), "on its way");
	ask_refused(&a, "migrate", unix_uri("b.sock"), "fenced");
	assert_state(&a, "fenced");
	reply = migrate(true, true);
	assert_non_null(strstr(reply->message, "the link is good"));
	ctl__reply__free_unpacked(reply, NULL);
	recover();
	kv_work(&client, 50);
	ask_ok(&b, "stop", NULL);
	assert_int_equal(host_reap(&b, START_MS), 0);
}

/* The guest waits for the link, and has missed nothing. */
static void cut_and_recovered(void **state)
{
	pthread_t thread;

	(void)state;
	give_away();
	kv_work(&client, 5);
	cut();
	ask_refused(&a, "migrate", NULL, "");
	assert_int_equal(pthread_create(&thread, NULL, work, NULL), 0);
	for (unsigned round = 0; round < 3; round++) {
		Ctl__Reply *reply;

		join();
		reply = migrate(true, true);
		if (reply->error[0])
			fail_msg("A: %s", reply->message);
		ctl__reply__free_unpacked(reply, NULL);
		cut();
	}
	/* Nobody is there. */
	ctl__reply__free_unpacked(migrate(true, false), NULL);
	assert_state(&a, "fenced");
	join();
	recover();
	pthread_join(thread, NULL);
	kv_work(&client, 10);
}

/* Not even then does the guest see zeroes in place of its memory. */
static void source_killed(void **state)
{
	(void)state;
	give_away();
	kv_work(&client, 5);
	host_kill(&a);
	wait_migration_cut(&b);
	assert_silent();
	assert_state(&b, "solo");
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
}

static void target_killed(void **state)
{
	(void)state;
	give_away();
	kv_work(&client, 5);
	host_kill(&b);
	wait_migration_cut(&a);
	/* It may not go on here, whoever asks. */
	assert_state(&a, "fenced");
	ask_refused(&a, "cancel", NULL, "");
	ask_refused(&a, "stop", NULL, "part of its memory is here only");
	ask_ok(&a, "stop", NULL);
	assert_int_equal(host_reap(&a, START_MS), 0);
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
}

static Ctl__Reply *bitmap(struct host *h, const char *action)
{
	Ctl__Request r = CTL__REQUEST__INIT;

	r.command = (char *)"bitmap";
	r.action = (char *)(uintptr_t)action;
	r.disk = (char *)"root";
	r.bitmap = (char *)"daily";
	return ask_any(h, &r);
}

static void bitmap_ok(struct host *h, const char *action)
{
	Ctl__Reply *reply = bitmap(h, action);

	if (reply->error[0])
		fail_msg("%s: bitmap %s: %s", h->id, action, reply->message);
	ctl__reply__free_unpacked(reply, NULL);
}

/* When only bitmaps are left to come the guest needs its source no more, nor its agent. */
static void source_lost_with_bitmaps(void **state)
{
	Ctl__Request r = CTL__REQUEST__INIT;
	Ctl__Reply *reply;

	(void)state;
	bitmap_ok(&a, "add");
	kv_work(&client, 10);
	proxy_hold(wire, FT_MSG_BITMAP);
	r.command = (char *)"migrate";
	r.uri = (char *)(uintptr_t)move_uri("wire.sock");
	r.postcopy = true;
	r.rounds = 2; /* of a guest that does little: few pages are to follow */
	ask_any_async(&a, &r);
	host_wait_said(&b, "its disks' bitmaps follow", GOES_ON_MS);
	host_kill(&a);
	wait_migration_cut(&b);
	kv_work(&client, 50);
	ask_refused(&b, "migrate", unix_uri("a.sock"), "on their way here");
	reply = bitmap(&b, "list");
	assert_int_equal(reply->n_bitmaps, 1);
	assert_true(reply->bitmaps[0]->arriving);
	ctl__reply__free_unpacked(reply, NULL);
	bitmap_ok(&b, "remove");
	host_wait_said(&b, "all of the guest's memory is here", GOES_ON_MS);
	kv_work(&client, 50);
	bitmap_ok(&b, "add");
	kv_work(&client, 10);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(on_demand),     TEST(cut_and_recovered),	     TEST(source_killed),
		TEST(target_killed), TEST(source_lost_with_bitmaps),
	};
	int failed;

	place_open();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return place_close() + failed;
}
