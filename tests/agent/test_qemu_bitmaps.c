// SPDX-License-Identifier: Apache-2.0
/* Named dirty bitmaps of real guests, and what they are for: a full backup with qemu-img, then
 * incremental ones of what the bitmaps say, of which one is made at the standby after the primary
 * host was lost. Restored, they are the guest's disk to the byte. */
#include <signal.h>

#include "tests/agent/backups.h"

static struct host a, b;

static int setup(void **state)
{
	(void)state;
	a = host_make("A");
	b = host_make("B");
	return 0;
}

static void start_b(void)
{
	qemu_standby(&b, unix_uri("b.sock"), NULL);
}

/* "" = it works; else what it is refused for. */
static void backup(struct host *h, const char *action, const char *name, const char *why)
{
	Ctl__Reply *reply = ask_for(h, "backup", action, name, 0);

	if (*why ? !strstr(reply->message, why) : *reply->error != 0)
		fail_msg("%s %s: '%s'", action, name, reply->message);
	ctl__reply__free_unpacked(reply, NULL);
}

static unsigned nbd_nodes(struct host *h)
{
	return access(at("%s/%s.taps", h->id, GUEST), F_OK) == 0;
}

static void chain_across_a_takeover(void **state)
{
	char here[65], there[65];
	bool bad = false;
	uint64_t bytes;

	(void)state;
	qemu_conf(at("g.conf"), "", "", "");
	qemu_start(&a, at("g.conf"));
	start_b();
	guest_writes(&a, 0, 2000);
	assert_int_equal(nbd_nodes(&a), 0);
	bitmap_ok(&a, "add", "daily", 4096);
	assert_int_equal(nbd_nodes(&a), 1); /* the guest is solo, and has its tap */
	full_backup(&a, "backup.img");
	assert_int_equal(dirty_of(&a, "daily", &bad), 0);
	guest_writes(&a, 100, 3);
	assert_int_equal(dirty_of(&a, "daily", &bad), 3 * 4096);

	ask_ok(&a, "migrate", unix_uri("b.sock"));
	guest_writes(&a, 5000, 20);
	bitmap_ok(&a, "add", "fine", 512);
	bitmap_ok(&a, "add", "idle", 1u << 20);
	bitmap_ok(&a, "disable", "idle", 0);
	guest_writes(&a, 6000, 7);
	ask_ok(&a, "checkpoint", NULL);
	ask_ok(&a, "verify", NULL); /* B has applied what it acknowledged */
	assert_int_equal(dirty_of(&b, "daily", &bad), 30 * 4096);
	assert_int_equal(dirty_of(&b, "fine", &bad), 7 * 4096);
	assert_int_equal(dirty_of(&b, "idle", &bad), 0);
	digest_of(&a, "daily", here);
	digest_of(&b, "daily", there);
	assert_string_equal(here, there);
	bitmap_refused(&b, "clear", "daily", "this is the standby");

	host_kill(&a);
	wait_state(&b, "solo", GOES_ON_MS);
	ticks_on(&b);
	guest_writes(&b, 9000, 5);
	assert_false(bad);
	assert_int_equal(dirty_of(&b, "daily", &bad), 35 * 4096);
	assert_false(bad);
	digest_of(&b, "daily", there);
	assert_string_not_equal(here, there);
	bytes = incremental_backup(&b, "daily", "backup.img");
	print_message("incremental backup at the other host: %llu KiB\n",
		      (unsigned long long)bytes >> 10);
	assert_int_equal(bytes, 35 * 4096);
	shell("cmp %s %s", at("backup.img"), at("B.img"));

	/* The next link of the chain, made where the guest came home. */
	bitmap_ok(&b, "clear", "daily", 0);
	guest_writes(&b, 40, 2);
	host_start(&a, at("g.conf"), "--incoming", unix_uri("a.sock"), NULL);
	wait_state(&a, "standby", START_MS);
	ask_ok(&b, "migrate", unix_uri("a.sock"));
	guest_writes(&b, 50, 2);
	ask_ok(&b, "failback", NULL);
	wait_state(&a, "protected", PROTECT_MS);
	ticks_on(&a); /* it hears what is typed */
	guest_writes(&a, 60, 1);
	bytes = incremental_backup(&a, "daily", "backup.img");
	assert_int_equal(bytes, 5 * 4096);
	ask_ok(&a, "cancel", NULL);
	wait_state(&a, "solo", GOES_ON_MS);
	shell("cmp %s %s", at("backup.img"), at("A.img"));
	assert_int_equal(nbd_nodes(&a), 1);
	bitmap_ok(&a, "remove", "daily", 0);
	bitmap_ok(&a, "remove", "fine", 0);
	assert_int_equal(nbd_nodes(&a), 1);
	bitmap_ok(&a, "remove", "idle", 0);
	assert_int_equal(nbd_nodes(&a), 0); /* nothing in the guest's way any more */
	ticks_on(&a);
	host_stop(&a);
	host_stop(&b);
}

/* The guest says nothing more until it is told: what its disk is like now is what a backup that is
 * begun now has to be. */
static void begin(struct host *h, const char *name)
{
	backup(h, "begin", name, "");
	shell("cp --sparse=always %s %s", at("%s.img", h->id), at("moment.img"));
}

static void of_one_moment(void **state)
{
	char here[65], there[65];
	bool bad = false;

	(void)state;
	qemu_conf(at("g.conf"), "", "", "");
	qemu_start(&a, at("g.conf"));
	start_b();
	guest_writes(&a, 0, 2000);
	/* A full one, of a disk that had no tap. */
	begin(&a, "");
	assert_int_equal(nbd_nodes(&a), 1);
	guest_writes(&a, 100, 50);
	full_backup(&a, "backup.img");
	shell("cmp %s %s", at("backup.img"), at("moment.img"));
	shell("! cmp -s %s %s", at("backup.img"), at("A.img"));
	backup(&a, "begin", "", "under way");
	backup(&a, "end", "", "");
	assert_int_equal(nbd_nodes(&a), 0);
	backup(&a, "end", "", "none of disk root is under way");
	backup(&a, "begin", "none", "there is none of that name");
	assert_int_equal(nbd_nodes(&a), 0);

	bitmap_ok(&a, "add", "daily", 4096);
	begin(&a, "daily");
	guest_writes(&a, 300, 3);
	full_backup(&a, "backup.img");
	shell("cmp %s %s", at("backup.img"), at("moment.img"));
	bitmap_refused(&a, "clear", "daily", "is being backed up");
	ask_refused(&a, "migrate", unix_uri("b.sock") + strlen("kemari:"), "a backup is under way");
	backup(&a, "end", "", "");
	assert_int_equal(dirty_of(&a, "daily", &bad), 3 * 4096);

	/* What is written while it is read is the next one's, also under protection. */
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	guest_writes(&a, 400, 4);
	begin(&a, "daily");
	guest_writes(&a, 300, 1);
	guest_writes(&a, 500, 5);
	assert_int_equal(incremental_backup(&a, "daily", "backup.img"), 7 * 4096);
	shell("cmp %s %s", at("backup.img"), at("moment.img"));
	backup(&a, "end", "", "");
	assert_int_equal(dirty_of(&a, "daily", &bad), 6 * 4096);

	/* One that fails is as if it had not been. */
	begin(&a, "daily");
	guest_writes(&a, 600, 6);
	backup(&a, "abort", "", "");
	assert_int_equal(dirty_of(&a, "daily", &bad), 12 * 4096);

	/* And one whose host is lost in the middle. */
	begin(&a, "daily");
	guest_writes(&a, 700, 7);
	ask_ok(&a, "checkpoint", NULL);
	ask_ok(&a, "verify", NULL);
	assert_int_equal(dirty_of(&b, "daily", &bad), 19 * 4096);
	digest_of(&a, "daily", here);
	digest_of(&b, "daily", there);
	assert_string_equal(here, there);
	backup(&b, "begin", "daily", "this is the standby");
	host_kill(&a);
	wait_state(&b, "solo", GOES_ON_MS);
	ticks_on(&b);
	begin(&b, "daily");
	guest_writes(&b, 800, 8);
	assert_int_equal(incremental_backup(&b, "daily", "backup.img"), 19 * 4096);
	shell("cmp %s %s", at("backup.img"), at("moment.img"));
	backup(&b, "end", "", "");
	assert_int_equal(dirty_of(&b, "daily", &bad), 8 * 4096);
	assert_false(bad);
	host_stop(&b);
}

/* Stopped in order they are kept; killed, they say that they are of no use. */
static void across_restarts(void **state)
{
	bool bad = false;
	pid_t qemu;

	(void)state;
	qemu_conf(at("g.conf"), "", "", "");
	qemu_start(&a, at("g.conf"));
	bitmap_ok(&a, "add", "kept", 4096);
	bitmap_ok(&a, "add", "off", 4096);
	guest_writes(&a, 100, 3);
	bitmap_ok(&a, "disable", "off", 0);
	host_stop(&a);
	shell("rm %s", at("A.console"));
	qemu_start(&a, at("g.conf"));
	assert_int_equal(dirty_of(&a, "kept", &bad), 3 * 4096);
	assert_false(bad);
	guest_writes(&a, 200, 1); /* from the guest's first moment */
	assert_int_equal(dirty_of(&a, "kept", &bad), 4 * 4096);
	qemu = vmm_pid(&a);
	host_kill(&a);
	host_start(&a, at("g.conf"), NULL);
	wait_state(&a, "solo", START_MS);
	assert_int_equal(vmm_pid(&a), qemu);
	(void)dirty_of(&a, "kept", &bad);
	assert_true(bad);
	bitmap_refused(&a, "clear", "kept", "inconsistent");
	assert_int_equal(dirty_of(&a, "off", &bad), 3 * 4096);
	assert_false(bad);
	bitmap_refused(&a, "add", "kept", "there is one of that name");
	bitmap_refused(&a, "add", "a/b", "letters, digits");
	bitmap_refused(&a, "nonsense", "kept", "no such action");
	bitmap_ok(&a, "remove", "kept", 0);
	bitmap_ok(&a, "remove", "off", 0);
	ticks_on(&a);
	host_stop(&a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(chain_across_a_takeover, setup, place_clear),
		cmocka_unit_test_setup_teardown(of_one_moment, setup, place_clear),
		cmocka_unit_test_setup_teardown(across_restarts, setup, place_clear),
	};
	int failed;

	need_qemu();
	if (system("command -v nbdinfo > /dev/null && command -v qemu-img > /dev/null") != 0) {
		printf("skipped: nbdinfo or qemu-img is not installed\n");
		return 77;
	}
	place_open();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}
