// SPDX-License-Identifier: Apache-2.0
/* A standby that keeps past checkpoints, by real agents: they are listed, a guest goes on from any
 * of them, whoever kills the standby at whatever moment; and snapshots of the standby go on. */
#include <errno.h>
#include <poll.h>

#include "tests/agent/harness.h"

#define KEEP	4
#define KILLS	6
#define KILL_MS 400

static struct host a, b;

static int setup(void **state)
{
	place_clear(state);
	a = host_make("A");
	b = host_make("B");
	write_file(at("h.conf"),
		   "name = \"%s\"\nvmm = \"pocket\"\nmemory = \"16M\"\nprogram = \"dirty\"\n"
		   "tls { insecure = true }\n"
		   "ft { trigger = interval  interval_ms = 20  history = %d  history_seconds = 0\n"
		   "history_dir = \"h\" }\n",
		   GUEST, KEEP);
	shell("rm -rf %s %s %s/A/*.memory %s/B/*.memory", at("h"), at("s"), place, place);
	return 0;
}

static Ctl__Reply *history_of(struct host *h)
{
	Ctl__Request r = CTL__REQUEST__INIT;
	Ctl__Reply *reply;

	r.command = (char *)"history";
	reply = ask_any(h, &r);
	if (reply->error[0])
		fail_msg("%s: history: %s", h->id, reply->message);
	return reply;
}

/* Newer than this epoch, and as many as are kept. */
static uint64_t wait_kept(struct host *h, uint64_t after)
{
	uint64_t until = now_ms() + START_MS, epoch = 0;
	size_t n = 0;

	while (n < KEEP || epoch <= after) {
		Ctl__Reply *reply = history_of(h);

		n = reply->n_points;
		epoch = n ? reply->points[n - 1]->epoch : 0;
		ctl__reply__free_unpacked(reply, NULL);
		breathe(until, "checkpoints are kept");
	}
	return epoch;
}

static void protect(void)
{
	host_start(&b, at("h.conf"), "--incoming", unix_uri("b.sock"), NULL);
	wait_state(&b, "standby", START_MS);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
}

/* The guest's program verifies its memory when it is restored. */
static void goes_back_to(uint64_t epoch, bool lazy)
{
	char uri[64];

	snprintf(uri, sizeof uri, "history:%lu", epoch);
	host_start(&b, at("h.conf"), "--restore", uri, lazy ? "--lazy" : NULL, NULL);
	wait_state(&b, "solo", START_MS);
	if (lazy)
		host_wait_said(&b, "all memory is there", START_MS);
	host_stop(&b);
}

static void kept_and_restored(void **state)
{
	uint64_t epochs[KEEP];
	Ctl__Reply *reply;

	(void)state;
	host_start(&a, at("h.conf"), NULL);
	protect();
	(void)wait_kept(&b, wait_kept(&b, 0));
	/* One of the standby's image is no obstacle, nor is a takeover. */
	snapshot(&b, "s", 0);
	(void)wait_kept(&b, wait_kept(&b, 0));
	ask_ok(&a, "verify", NULL);
	host_kill(&a);
	wait_state(&b, "solo", START_MS);
	reply = history_of(&b);
	assert_int_equal(reply->n_points, KEEP);
	for (unsigned i = 0; i < KEEP; i++) {
		epochs[i] = reply->points[i]->epoch;
		if (i)
			assert_true(epochs[i] > epochs[i - 1]);
		if (i)
			assert_true(reply->points[i]->time_ms > reply->points[i - 1]->time_ms);
		assert_true(reply->points[i]->bytes > 0);
	}
	ctl__reply__free_unpacked(reply, NULL);
	host_stop(&b);
	for (unsigned i = 0; i < KEEP; i++)
		goes_back_to(epochs[i], i % 2);
	/* By time: the newest one that is not later. */
	host_start(&b, at("h.conf"), "--restore", "history:2099-01-01T00:00:00Z", NULL);
	wait_state(&b, "solo", START_MS);
	host_stop(&b);
}

static void killed(void **state)
{
	Ctl__Reply *reply;

	(void)state;
	srandom(7);
	host_start(&a, at("h.conf"), NULL);
	for (unsigned i = 0; i < KILLS; i++) {
		uint64_t epoch;

		protect();
		epoch = wait_kept(&b, 0);
		poll(NULL, 0, (int)(random() % KILL_MS));
		host_kill(&b);
		ask_ok(&a, "cancel", NULL);
		wait_state(&a, "solo", START_MS);
		/* At least what was there is. */
		host_start(&b, at("h.conf"), "--incoming", unix_uri("b.sock"), NULL);
		wait_state(&b, "standby", START_MS);
		reply = history_of(&b);
		assert_true(reply->n_points >= KEEP - 1);
		assert_true(reply->points[reply->n_points - 1]->epoch >= epoch);
		epoch = reply->points[(size_t)random() % reply->n_points]->epoch;
		ctl__reply__free_unpacked(reply, NULL);
		host_stop(&b);
		goes_back_to(epoch, i % 2);
		shell("rm -f %s/B/*.memory", place);
	}
	host_stop(&a);
}

static void refused(void **state)
{
	(void)state;
	assert_int_equal(host_try(&b, at("h.conf"), "--restore", "history:1", NULL), 2);
	host_one_error(&b, "No such file");
	host_start(&a, at("h.conf"), NULL);
	protect();
	(void)wait_kept(&b, 0);
	host_stop(&b);
	assert_int_equal(host_try(&b, at("h.conf"), "--restore", "history:999999", NULL), 2);
	host_one_error(&b, "is not kept: 4 checkpoints are, from epoch");
	assert_int_equal(host_try(&b, at("h.conf"), "--restore", "history:yesterday", NULL), 2);
	host_one_error(&b, "neither an epoch nor a time");
	assert_int_equal(
		host_try(&b, at("h.conf"), "--restore", "history:1970-01-01T00:00:00Z", NULL), 2);
	host_one_error(&b, "is not kept");
	host_stop(&a);
	/* Off by default. */
	pocket_pair(&a, &b, "", "");
	ask_refused(&b, "history", NULL, "none is kept");
	host_stop(&a);
	host_stop(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(kept_and_restored, setup, place_clear),
		cmocka_unit_test_setup_teardown(killed, setup, place_clear),
		cmocka_unit_test_setup_teardown(refused, setup, place_clear),
	};
	int failed;

	place_open();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}
