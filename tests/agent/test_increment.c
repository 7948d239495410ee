// SPDX-License-Identifier: Apache-2.0
/* Snapshots that are updated in place, by real agents: of a guest that runs alone, of a standby's
 * image while checkpoints go on, across protection and a restart of the agent; and an agent that is
 * killed in the middle of one. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>

#include "tests/agent/harness.h"
#include "vmm-glue/snapshot/update.h"

#define KILLS	8
#define UPDATES 4
#define KILL_MS 400 /* some updates */

static struct host a, b;

static int setup(void **state)
{
	place_clear(state);
	a = host_make("A");
	b = host_make("B");
	pocket_writer_conf(at("d.conf"), "32M");
	shell("rm -f %s* %s/A/*.memory %s/B/*.memory", at("s"), place, place);
	return 0;
}

static Ctl__Request request_of(const char *file)
{
	Ctl__Request r = CTL__REQUEST__INIT;

	r.command = (char *)"snapshot";
	r.uri = (char *)(uintptr_t)file_uri(file);
	r.verify = r.incremental = true;
	return r;
}

/* Returns the bytes that were written. */
static uint64_t update(struct host *h, const char *file, bool is_there)
{
	Ctl__Request r = request_of(file);
	Ctl__Reply *reply = ask_any(h, &r);
	uint64_t written;

	if (reply->error[0])
		fail_msg("%s: snapshot: %s", h->id, reply->message);
	assert_int_equal(reply->snapshot->incremental, is_there);
	written = reply->snapshot->bytes_written;
	ctl__reply__free_unpacked(reply, NULL);
	assert_int_equal(access(at("%s" UPDATE_SUFFIX, file), F_OK), -1);
	return written;
}

static void update_refused(struct host *h, const char *file, bool direct, const char *text)
{
	Ctl__Request r = request_of(file);
	Ctl__Reply *reply;

	r.direct = direct;
	reply = ask_any(h, &r);
	if (!reply->error[0] || !strstr(reply->message, text))
		fail_msg("expected '%s', got: %s", text, reply->message);
	ctl__reply__free_unpacked(reply, NULL);
}

/* The guest's program verifies its memory when it is restored. */
static void restores(struct host *h, const char *file, bool lazy)
{
	host_start(h, at("d.conf"), "--restore", file_uri(file), lazy ? "--lazy" : NULL, NULL);
	wait_state(h, "solo", START_MS);
	if (lazy)
		host_wait_said(h, "all memory is there", START_MS);
}

static void of_a_guest_alone(void **state)
{
	(void)state;
	pocket_writer_start(&a, at("d.conf"));
	(void)update(&a, "s", false);
	for (unsigned i = 0; i < UPDATES; i++)
		(void)update(&a, "s", true);
	update_refused(&a, "s", true, "without --direct");
	assert_state(&a, "solo");
	host_stop(&a);
	restores(&a, "s", false);
	restores(&b, "s", true);
	/* An agent that knows nothing of the file compares it. */
	(void)update(&a, "s", true);
	/* A whole snapshot between two updates, to another file and to the same. */
	snapshot(&a, "s2", 0);
	(void)update(&a, "s", true);
	snapshot(&a, "s", 0);
	(void)update(&a, "s", true);
	host_stop(&a);
	host_stop(&b);
	restores(&a, "s", false);
	host_stop(&a);
}

/* The tracker that finds what was written gives way to protection's, and the other way round. */
static void of_a_standby(void **state)
{
	(void)state;
	pocket_writer_start(&a, at("d.conf"));
	(void)update(&a, "s", false);
	(void)update(&a, "s", true);
	host_start(&b, at("d.conf"), "--incoming", unix_uri("b.sock"), NULL);
	wait_state(&b, "standby", START_MS);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	update_refused(&a, "s", false, "its standby can take one");
	for (unsigned i = 0; i < UPDATES; i++) {
		(void)update(&b, "s", true);
		assert_state(&a, "protected");
		ask_ok(&a, "verify", NULL);
	}
	ask_ok(&a, "cancel", NULL);
	(void)update(&a, "s", true);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	(void)update(&b, "s", true);
	host_kill(&a);
	wait_state(&b, "solo", START_MS);
	(void)update(&b, "s", true);
	(void)update(&b, "s", true);
	host_stop(&b);
	restores(&b, "s", false);
	host_stop(&b);
}

/* Asks until the agent is gone. */
static void *ask_on(void *ctx)
{
	struct host *h = ctx;
	Ctl__Request r = request_of("s");
	struct ft_err err = {0};
	Ctl__Reply *reply;

	r.verify = false;
	while (!ctl_ask(h->run, GUEST, &r, START_MS, &reply, &err))
		ctl__reply__free_unpacked(reply, NULL);
	return NULL;
}

static void killed(void **state)
{
	unsigned journals = 0;

	(void)state;
	pocket_writer_start(&a, at("d.conf"));
	(void)update(&a, "s", false);
	srandom(5);
	for (unsigned i = 0; i < KILLS; i++) {
		pthread_t asker;

		assert_int_equal(pthread_create(&asker, NULL, ask_on, &a), 0);
		poll(NULL, 0, (int)(random() % KILL_MS));
		host_kill(&a);
		assert_int_equal(pthread_join(asker, NULL), 0);
		journals += !access(at("s" UPDATE_SUFFIX), F_OK);
		restores(&a, "s", i % 2);
	}
	print_message("%u of %u kills left a journal\n", journals, KILLS);
	(void)update(&a, "s", true);
	host_stop(&a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(of_a_guest_alone, setup, place_clear),
		cmocka_unit_test_setup_teardown(of_a_standby, setup, place_clear),
		cmocka_unit_test_setup_teardown(killed, setup, place_clear),
	};
	int failed;

	place_open();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}
