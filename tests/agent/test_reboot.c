// SPDX-License-Identifier: Apache-2.0
/* What a host knows of its guest after it came up again, with an empty run directory: the disks'
 * metadata must do. */
#include <signal.h>

#include "tests/agent/harness.h"
#include "vmm-glue/pocket/kv.h"

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
	host_stop(&a);
	start_b(false);
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

/* Of the guest's journal: each PUT is a record, the first ones came with the initial copy. */
#define PUTS_BEFORE 20
#define PUTS	    60

static struct kv_client client;

static void protect_durably(const char *arbiter)
{
	shell("rm -rf %s", at("arbiter"));
	shell("mkdir %s", at("arbiter"));
	pocket_pair(&a, &b, "durability = \"disk\"", arbiter);
	kv_open(&client);
	kv_work(&client, PUTS_BEFORE);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	kv_work(&client, PUTS - PUTS_BEFORE);
	assert_int_equal(access(at("B.img.kemari-journal"), F_OK), 0);
}

/* Both lose their power at once. What was not synced is lost: of B's image everything that came
 * after the initial copy. */
static void lose_both(void)
{
	host_signal(&b, SIGSTOP); /* or it would take over */
	lose_power(&a);
	lose_power(&b);
	shell("dd if=/dev/zero of=%s bs=%d seek=%d count=%d conv=notrunc status=none", at("B.img"),
	      KV_RECORD_BYTES, PUTS_BEFORE, PUTS);
	kv_close(&client);
}

/* The last operation that the client was told of is on B's disk. */
static void nothing_lost(void)
{
	FILE *f = fopen(at("B.img"), "re");
	struct kv_record record;

	assert_non_null(f);
	for (int i = 0; i < PUTS; i++) {
		assert_int_equal(fread(&record, 1, sizeof record, f), sizeof record);
		assert_true(kv_record_valid(&record));
	}
	fclose(f);
	assert_int_equal(record.number, client.number - 1); /* a GET was the last */
}

/* Only the standby comes up again: an arbiter that calls it in sync lets it boot the guest. */
static void standby_alone(void **state)
{
	(void)state;
	protect_durably("arbiter { type = \"file\" dir = \"arbiter\" }");
	lose_both();
	start_b(false);
	wait_state(&b, "solo", START_MS);
	assert_true(host_said(&b, "the last that was acknowledged"));
	nothing_lost();
	/* And the old primary is no place to start it any more, but can be its standby. */
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	host_one_error(&a, "host B holds the guest");
	host_start(&a, at("g.conf"), "--incoming", unix_uri("a.sock"), NULL);
	wait_state(&a, "standby", START_MS);
	ask_ok(&b, "migrate", unix_uri("a.sock"));
	host_stop(&a);
	host_stop(&b);
}

/* Without an arbiter nobody knows whether the primary went on: it says what it has, and an operator
 * may force it. */
static void standby_forced(void **state)
{
	(void)state;
	protect_durably("");
	lose_both();
	assert_int_equal(host_try(&b, at("g.conf"), "--set", "disk.root.image=B.img", NULL), 2);
	host_one_error(&b, "Consistent at generation 1 epoch");
	host_one_error(&b, "--force");
	assert_int_equal(access(at("B.img.kemari-journal"), F_OK), -1);
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--force", NULL);
	wait_state(&b, "solo", START_MS);
	assert_true(host_said(&b, "lost is what the primary did with the guest after that epoch"));
	nothing_lost();
	host_stop(&b);
	/* Once is enough. */
	start_b(false);
	wait_state(&b, "solo", START_MS);
	host_stop(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(old_primary, place_clear),
		cmocka_unit_test_teardown(newest_copy, place_clear),
		cmocka_unit_test_teardown(stopped, place_clear),
		cmocka_unit_test_teardown(standby_alone, place_clear),
		cmocka_unit_test_teardown(standby_forced, place_clear),
	};
	int failed;

	place_open();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}
