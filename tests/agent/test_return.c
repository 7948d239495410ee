// SPDX-License-Identifier: Apache-2.0
/* A host dies, its guest goes on at the standby, and the host comes back: as a standby always, as a
 * primary never. */
#include <signal.h>

#include "tests/agent/harness.h"

static struct host a, b;
static struct kv_client client;

static void shared_setup(const char *ft, const char *extra)
{
	place_clear(NULL);
	shell("rm -rf %s", at("arbiter"));
	shell("mkdir %s", at("arbiter"));
	pocket_pair(&a, &b, ft, extra);
	kv_open(&client);
	kv_work(&client, 10);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	kv_work(&client, 10);
}

static int setup_none(void **state)
{
	(void)state;
	shared_setup("", "");
	return 0;
}

static int setup_file(void **state)
{
	(void)state;
	shared_setup("", "arbiter { type = \"file\" dir = \"arbiter\" }");
	return 0;
}

static int setup_durable(void **state)
{
	(void)state;
	shared_setup("durability = \"disk\"", "");
	return 0;
}

static int teardown(void **state)
{
	kv_close(&client);
	hosts_stop(&a, &b);
	assert_int_equal(children(), 0);
	return place_clear(state);
}

/* There and back again, twice; the client never misses an operation. */
static void there_and_back(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 2; round++) {
		host_kill(&a);
		kv_work(&client, 10);
		wait_state(&b, "solo", GOES_ON_MS);
		host_start(&a, at("g.conf"), "--incoming", unix_uri("a.sock"), NULL);
		wait_state(&a, "standby", START_MS);
		ask_ok(&b, "migrate", unix_uri("a.sock"));
		kv_work(&client, 10);
		ask_ok(&b, "verify", NULL);
		host_kill(&b);
		kv_work(&client, 10);
		wait_state(&a, "solo", GOES_ON_MS);
		host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--incoming",
			   unix_uri("b.sock"), NULL);
		wait_state(&b, "standby", START_MS);
		ask_ok(&a, "migrate", unix_uri("b.sock"));
		kv_work(&client, 10);
		ask_ok(&a, "verify", NULL);
	}
	assert_true(client.longest_ms < GOES_ON_MS);
}

/* Planned, there and back, without being told to protect again. */
static void switched(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 2; round++) {
		ask_ok(&a, "failover", NULL);
		wait_state(&b, "protected", PROTECT_MS);
		kv_work(&client, 10);
		ask_ok(&b, "verify", NULL);
		ask_ok(&b, "failover", NULL);
		wait_state(&a, "protected", PROTECT_MS);
		kv_work(&client, 10);
		ask_ok(&a, "verify", NULL);
	}
}

/* A standby that cannot run the guest, as it shows when it is to: the address that its NIC should
 * have is not to be had there. */
static void setup_unable(const char *extra)
{
	const char *conf = at("g.conf");

	shared_setup("", extra);
	host_stop(&b);
	wait_state(&a, "solo", GOES_ON_MS);
	host_start(&b, conf, "--set", "disk.root.image=B.img", "--set",
		   "nic.net0.attach=udp:192.0.2.1:7777", "--incoming", unix_uri("b.sock"), NULL);
	wait_state(&a, "protected", PROTECT_MS);
	kv_work(&client, 10);
}

static int setup_unable_none(void **state)
{
	(void)state;
	setup_unable("");
	return 0;
}

static int setup_unable_record(void **state)
{
	(void)state;
	setup_unable("arbiter { type = \"file\" dir = \"arbiter\" }");
	return 0;
}

/* It was granted the guest, and says that it cannot: the guest goes on where it was, nobody is
 * asked, and what the other host has is no guest to start. */
static void cannot_run(void **state)
{
	(void)state;
	ask_refused(&a, "failover", NULL, "Cannot assign requested address");
	wait_state(&a, "solo", GOES_ON_MS);
	kv_work(&client, 20);
	assert_int_not_equal(host_reap(&b, GOES_ON_MS), 0);
	assert_int_equal(host_try(&b, at("g.conf"), "--set", "disk.root.image=B.img", NULL), 2);
	kv_work(&client, 5);
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--incoming",
		   unix_uri("b.sock"), NULL);
	wait_state(&a, "protected", PROTECT_MS);
	ask_ok(&a, "verify", NULL);
	ask_ok(&a, "failover", NULL);
	wait_state(&b, "protected", PROTECT_MS);
	kv_work(&client, 10);
}

static uint64_t copied(struct host *h, uint64_t *alike)
{
	Ctl__Reply *r = status_of(h);
	uint64_t bytes = r->status->disk_copied;

	*alike = r->status->disk_alike;
	ctl__reply__free_unpacked(r, NULL);
	return bytes;
}

/* A disk of which both hosts have the same data, but for what the guest and the test write. */
#define FILL_BYTES (6u << 20) /* of 8 MiB; the guest's journal is in what is before it */

static int setup_filled(void **state)
{
	place_clear(state);
	make_image(at("A.img"), 8u << 20);
	shell("dd if=/dev/urandom of=%s bs=1M seek=2 count=%u conv=notrunc status=none",
	      at("A.img"), FILL_BYTES >> 20);
	pocket_pair(&a, &b, "", "");
	kv_open(&client);
	kv_work(&client, 10);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	return 0;
}

/* The old primary has its image, with writes that nobody acknowledged; it gets what differs while
 * the guest runs, is protected from its old standby, and the guest goes home. */
static void home_again(void **state)
{
	uint64_t alike, bytes;

	(void)state;
	assert_true(copied(&a, &alike) >= FILL_BYTES);
	kv_work(&client, 10);
	ask_refused(&a, "failback", NULL, "is at home on A");
	ask_refused(&b, "failback", NULL, "is at home on A");

	host_kill(&a);
	kv_work(&client, 30);
	/* As if it had gone on writing when it was cut off already. */
	shell("dd if=/dev/urandom of=%s bs=64K seek=70 count=2 conv=notrunc status=none",
	      at("A.img"));
	ask_refused(&b, "failback", NULL, "not protected by a standby at home (A)");
	host_start(&a, at("g.conf"), "--incoming", unix_uri("a.sock"), NULL);
	wait_state(&a, "standby", START_MS);
	ask_ok(&b, "migrate", unix_uri("a.sock"));
	bytes = copied(&b, &alike);
	assert_true(alike >= FILL_BYTES - (128u << 10));
	assert_in_range(bytes, 128u << 10, 1u << 20);
	kv_work(&client, 10);
	ask_ok(&b, "verify", NULL);

	ask_ok(&b, "failback", NULL);
	wait_state(&a, "protected", PROTECT_MS);
	assert_true(copied(&a, &alike) <= 1u << 20);
	kv_work(&client, 10);
	assert_true(client.longest_ms < GOES_ON_MS);
	ask_ok(&a, "cancel", NULL);
	host_stop(&a);
	host_stop(&b);
	/* What the guest did not write is the same on both. */
	shell("cmp -i 2M %s %s", at("A.img"), at("B.img"));
}

/* The disks' taps stay when the guest is solo, and both hosts note what they write: the way home
 * and back without one image being read, though the old primary died in the middle of it all. */
static int setup_tracked(void **state)
{
	place_clear(state);
	make_image(at("A.img"), 8u << 20);
	shell("dd if=/dev/urandom of=%s bs=1M seek=2 count=%u conv=notrunc status=none",
	      at("A.img"), FILL_BYTES >> 20);
	a = host_make("A");
	b = host_make("B");
	pocket_conf(at("g.conf"), "", "");
	shell("sed -i 's/size =/track = true size =/' %s", at("g.conf"));
	host_start(&a, at("g.conf"), NULL);
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--incoming",
		   unix_uri("b.sock"), NULL);
	wait_state(&a, "solo", START_MS);
	wait_state(&b, "standby", START_MS);
	kv_open(&client);
	kv_work(&client, 10);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	return 0;
}

static uint64_t known(struct host *h)
{
	Ctl__Reply *r = status_of(h);
	uint64_t bytes = r->status->disk_known;

	ctl__reply__free_unpacked(r, NULL);
	return bytes;
}

static void noted(void **state)
{
	uint64_t alike;

	(void)state;
	assert_int_equal(known(&a), 0);
	for (unsigned round = 0; round < 2; round++) {
		kv_work(&client, 30);
		host_kill(&a);
		kv_work(&client, 30);
		host_start(&a, at("g.conf"), "--incoming", unix_uri("a.sock"), NULL);
		wait_state(&a, "standby", START_MS);
		ask_ok(&b, "migrate", unix_uri("a.sock"));
		assert_true(known(&b) >= FILL_BYTES);
		assert_true(copied(&b, &alike) <= 1u << 20);
		kv_work(&client, 10);
		ask_ok(&b, "verify", NULL);
		ask_ok(&b, "failback", NULL);
		wait_state(&a, "protected", PROTECT_MS);
		assert_true(known(&a) >= FILL_BYTES);
	}
	/* A standby that was stopped, and one whose guest ran without its tap. */
	host_stop(&b);
	wait_state(&a, "solo", GOES_ON_MS);
	kv_work(&client, 10);
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--incoming",
		   unix_uri("b.sock"), NULL);
	wait_state(&b, "standby", START_MS);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	assert_true(known(&a) >= FILL_BYTES);
	ask_ok(&a, "cancel", NULL);
	host_stop(&a);
	host_start(&a, at("g.conf"), "--set", "disk.root.track=false", NULL);
	wait_state(&a, "solo", START_MS);
	kv_close(&client);
	kv_open(&client);
	kv_work(&client, 10);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	assert_int_equal(known(&a), 0);
	assert_true(copied(&a, &alike) <= 1u << 20);
	ask_ok(&a, "cancel", NULL);
	host_stop(&a);
	host_stop(&b);
	shell("cmp -i 2M %s %s", at("A.img"), at("B.img"));
}

static void not_as_primary(const char *says)
{
	host_kill(&a);
	kv_work(&client, 10);
	wait_state(&b, "solo", GOES_ON_MS);
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	host_one_error(&a, says);
	host_one_error(&a, "--incoming");
	kv_work(&client, 10);
	/* Also when B ends meanwhile: whoever wants the old disk must say so. */
	host_stop(&b);
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	host_one_error(&a, says);
}

static void not_as_primary_by_memory(void **state)
{
	(void)state;
	not_as_primary("its standby may run it");
}

static void not_as_primary_by_record(void **state)
{
	(void)state;
	not_as_primary("host B holds the guest");
	/* The record decides also when this host has forgotten everything, as after a reboot. */
	shell("rm -rf %s", at("A"));
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	host_one_error(&a, "host B holds the guest");
	/* B itself may start it again. */
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", NULL);
	wait_state(&b, "solo", START_MS);
}

/* Both die at once and nobody took over: whichever comes first, the primary's copy is the newest,
 * and is started as soon as its standby says that it holds nothing. */
static void both_died(void **state)
{
	(void)state;
	host_signal(&b, SIGSTOP);
	host_kill(&a);
	host_kill(&b);
	kv_close(&client);
	assert_int_equal(host_try(&b, at("g.conf"), "--set", "disk.root.image=B.img", NULL), 2);
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	assert_int_equal(host_lines(&a, "does not answer"), 1);
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--incoming",
		   unix_uri("b.sock"), NULL);
	wait_state(&b, "standby", START_MS);
	host_start(&a, at("g.conf"), NULL);
	wait_state(&a, "solo", START_MS);
	assert_true(host_said(&a, "the copy here is the newest"));
	kv_open(&client);
	kv_work(&client, 10);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	kv_work(&client, 10);
	ask_ok(&a, "verify", NULL);
}

/* The standby took over, and died as well: now its copy is the newest, also when it waits as a
 * standby by mistake. */
static void both_died_in_turn(void **state)
{
	(void)state;
	host_kill(&a);
	kv_work(&client, 10);
	wait_state(&b, "solo", GOES_ON_MS);
	host_kill(&b);
	kv_close(&client);
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--incoming",
		   unix_uri("b.sock"), NULL);
	wait_state(&b, "standby", START_MS);
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	assert_int_equal(host_lines(&a, "b.sock has generation 2, checkpoint 0") +
				 host_lines(&a, "host B holds the guest"),
			 1);
	host_stop(&b);
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", NULL);
	wait_state(&b, "solo", START_MS);
	kv_open(&client);
	kv_work(&client, 10);
	host_start(&a, at("g.conf"), "--incoming", unix_uri("a.sock"), NULL);
	wait_state(&a, "standby", START_MS);
	ask_ok(&b, "migrate", unix_uri("a.sock"));
	kv_work(&client, 10);
}

/* An operator wants the old copy, and gives up the newer one: both must be said. */
static void forced(void **state)
{
	(void)state;
	host_kill(&a);
	kv_work(&client, 10);
	wait_state(&b, "solo", GOES_ON_MS);
	host_kill(&b);
	kv_close(&client);
	host_start(&a, at("g.conf"), "--force", NULL);
	wait_state(&a, "solo", START_MS);
	assert_true(host_said(&a, "what its standby did since is lost"));
	assert_true(host_said(&a, "lost is what its standby did with the guest since"));
	kv_open(&client);
	kv_work(&client, 10);
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--incoming",
		   unix_uri("b.sock"), NULL);
	wait_state(&b, "standby", START_MS);
	ask_refused(&a, "migrate", unix_uri("b.sock"), "this side knows 2 already");
	host_stop(&b);
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--incoming",
		   unix_uri("b.sock"), "--force", NULL);
	wait_state(&b, "standby", START_MS);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	kv_work(&client, 10);
	ask_ok(&a, "verify", NULL);
}

/* The standby has not taken over yet, but may at any moment. */
static void not_before_the_standby(void **state)
{
	(void)state;
	host_signal(&b, SIGSTOP);
	host_kill(&a);
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	host_one_error(&a, "standby B may take over");
	host_signal(&b, SIGCONT);
	wait_state(&b, "solo", GOES_ON_MS);
	kv_work(&client, 5);
}

static void arbiter_gone(void **state)
{
	(void)state;
	/* Between healthy hosts nobody asks it. */
	shell("mv %s %s", at("arbiter"), at("elsewhere"));
	kv_work(&client, 20);
	host_kill(&a);
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	host_one_error(&a, "another host may run the guest");
	assert_state(&b, "standby");
	shell("mv %s %s", at("elsewhere"), at("arbiter"));
	wait_state(&b, "solo", GOES_ON_MS);
	kv_work(&client, 10);
}

/* Stopped in order it may be started again, on either host that has the newest disk, and not on the
 * other. */
static void stopped_in_order(void **state)
{
	(void)state;
	host_stop(&a);
	wait_state(&b, "standby", START_MS);
	host_stop(&b);
	assert_int_equal(host_try(&b, at("g.conf"), "--set", "disk.root.image=B.img", NULL), 2);
	host_start(&a, at("g.conf"), NULL);
	wait_state(&a, "solo", START_MS);
}

/* The standby is stopped in order: nobody has to decide anything, and it may come back. */
static void standby_stopped(void **state)
{
	(void)state;
	host_stop(&b);
	wait_state(&a, "solo", GOES_ON_MS);
	assert_int_equal(host_lines(&a, "outputs are held"), 0);
	kv_work(&client, 10);
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--incoming",
		   unix_uri("b.sock"), NULL);
	wait_state(&a, "protected", PROTECT_MS);
	kv_work(&client, 10);
	ask_ok(&a, "verify", NULL);
}

/* The standby dies: the operator's word says that the primary goes on, so it does, and is protected
 * again by itself. */
static void standby_killed(void **state)
{
	uint64_t alike;

	(void)state;
	host_kill(&b);
	ask_ok(&a, "cancel", NULL);
	kv_work(&client, 10);
	assert_state(&a, "solo");
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--incoming",
		   unix_uri("b.sock"), NULL);
	wait_state(&b, "standby", START_MS);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	/* It was killed in the middle of an epoch, and has most of the disk all the same. */
	assert_true(copied(&a, &alike) <= 1u << 20);
	assert_true(alike >= FILL_BYTES);
	kv_work(&client, 10);
	ask_ok(&a, "verify", NULL);
}

/* With an arbiter that agrees nobody is asked, and the standby that comes back is used again. */
static void standby_killed_by_record(void **state)
{
	(void)state;
	host_kill(&b);
	kv_work(&client, 10);
	wait_state(&a, "solo", GOES_ON_MS);
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--incoming",
		   unix_uri("b.sock"), NULL);
	wait_state(&a, "protected", PROTECT_MS);
	kv_work(&client, 10);
	ask_ok(&a, "verify", NULL);
}

int main(void)
{
#define NONE(f)	   cmocka_unit_test_setup_teardown(f, setup_none, teardown)
#define DURABLE(f) cmocka_unit_test_setup_teardown(f, setup_durable, teardown)
#define RECORD(f)  cmocka_unit_test_setup_teardown(f, setup_file, teardown)
	const struct CMUnitTest tests[] = {
		NONE(there_and_back),
		NONE(switched),
		cmocka_unit_test_setup_teardown(cannot_run, setup_unable_none, teardown),
		cmocka_unit_test_setup_teardown(cannot_run, setup_unable_record, teardown),
		cmocka_unit_test_setup_teardown(home_again, setup_filled, teardown),
		cmocka_unit_test_setup_teardown(noted, setup_tracked, teardown),
		NONE(not_as_primary_by_memory),
		NONE(both_died),
		NONE(both_died_in_turn),
		NONE(forced),
		NONE(stopped_in_order),
		NONE(standby_stopped),
		cmocka_unit_test_setup_teardown(standby_killed, setup_filled, teardown),
		DURABLE(there_and_back),
		DURABLE(switched),
		DURABLE(standby_stopped),
		RECORD(there_and_back),
		RECORD(switched),
		RECORD(not_as_primary_by_record),
		RECORD(both_died),
		RECORD(both_died_in_turn),
		RECORD(not_before_the_standby),
		RECORD(arbiter_gone),
		RECORD(stopped_in_order),
		RECORD(standby_stopped),
		RECORD(standby_killed_by_record),
	};
	int failed;

	place_open();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}
