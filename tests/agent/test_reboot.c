// SPDX-License-Identifier: Apache-2.0
/* What a host knows of its guest after it came up again, with an empty run directory: the disks'
 * metadata must do. */
#include "tests/agent/harness.h"

static struct host a, b;

static void protect(void)
{
	pocket_pair(&a, &b, "", "");
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	wait_state(&a, "protected", PROTECT_MS);
}

static void lose_power(struct host *h)
{
	host_kill(h);
	wait_children(h == &a, 5000);
	shell("rm -rf %s", h->run);
}

/* The image of B, and as a standby if it has to be one. */
static void start_b(bool incoming)
{
	if (incoming)
		host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--incoming",
			   unix_uri("b.sock"), NULL);
	else
		host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", NULL);
}

/* Its standby went on: the old primary is no place to start the guest, but a good one for a
 * standby. */
static void old_primary(void **state)
{
	(void)state;
	protect();
	host_kill(&a);
	wait_state(&b, "solo", GOES_ON_MS);
	shell("rm -rf %s", a.run);
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	host_one_error(&a, "was protected by a standby when its host stopped");
	host_start(&a, at("g.conf"), "--incoming", unix_uri("a.sock"), NULL);
	wait_state(&a, "standby", START_MS);
	ask_ok(&b, "migrate", unix_uri("a.sock"));
	wait_state(&b, "protected", PROTECT_MS);
	host_stop(&b);
	host_stop(&a);
}

/* The newest copy is known by its generation, whoever asks. */
static void newest_copy(void **state)
{
	(void)state;
	protect();
	host_kill(&a);
	wait_state(&b, "solo", GOES_ON_MS);
	shell("rm -rf %s %s", a.run,
	      at("A.img.kemari")); /* as if the operator believed that A is the newest */
	lose_power(&b);
	start_b(true);
	wait_state(&b, "standby", START_MS);
	host_start(&a, at("g.conf"), NULL);
	wait_state(&a, "solo", START_MS);
	ask_refused(&a, "migrate", unix_uri("b.sock"), "this side knows 2 already");
	host_stop(&b);
	start_b(false);
	host_stop(&a);
	wait_state(&b, "solo", START_MS);
	host_stop(&b);
}

/* An orderly stop leaves protection first: what was the guest's disk is the guest's disk. */
static void stopped(void **state)
{
	(void)state;
	protect();
	host_stop(&a);
	assert_state(&b, "standby");
	shell("rm -rf %s", a.run);
	host_start(&a, at("g.conf"), NULL);
	wait_state(&a, "solo", START_MS);
	host_stop(&b);
	assert_int_equal(host_try(&b, at("g.conf"), "--set", "disk.root.image=B.img", NULL), 2);
	host_one_error(&b, "Outdated");
	host_stop(&a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(old_primary, place_clear),
		cmocka_unit_test_teardown(newest_copy, place_clear),
		cmocka_unit_test_teardown(stopped, place_clear),
	};
	int failed;

	place_open();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}
