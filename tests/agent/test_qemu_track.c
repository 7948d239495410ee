// SPDX-License-Identifier: Apache-2.0
/* Hosts that note what changes on their disks, with real guests: the one that was lost gets that
 * and nothing else, and no image is read for it. */
#include <signal.h>

#include "tests/agent/harness.h"

#define MIB 1048576u

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

static void guest_writes(const struct host *h, unsigned first, unsigned n)
{
	guest_noise(h, 65536, first, n);
}

static void expect_copied(struct host *h, uint64_t at_least, uint64_t at_most)
{
	Ctl__Reply *r = status_of(h);

	print_message("%llu KiB copied, %llu MiB of %llu MiB alike were known\n",
		      (unsigned long long)r->status->disk_copied >> 10,
		      (unsigned long long)r->status->disk_known >> 20,
		      (unsigned long long)r->status->disk_alike >> 20);
	assert_in_range(r->status->disk_copied, at_least, at_most);
	assert_true(r->status->disk_known + r->status->disk_copied >= 64 * MIB - 2 * MIB);
	assert_true(r->status->disk_alike + r->status->disk_copied >= 64 * MIB);
	ctl__reply__free_unpacked(r, NULL);
}

static void only_what_changed(void **state)
{
	(void)state;
	qemu_conf(at("g.conf"), "", "", "");
	shell("sed -i 's/size =/track = true size =/' %s", at("g.conf"));
	qemu_start(&a, at("g.conf"));
	start_b();
	guest_writes(&a, 0, 400);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	guest_writes(&a, 500, 3);
	ask_ok(&a, "verify", NULL);
	host_kill(&a);
	wait_state(&b, "solo", GOES_ON_MS);
	ticks_on(&b);
	guest_writes(&b, 100, 20);
	guest_writes(&b, 700, 5);
	host_start(&a, at("g.conf"), "--incoming", unix_uri("a.sock"), NULL);
	wait_state(&a, "standby", START_MS);
	ask_ok(&b, "migrate", unix_uri("a.sock"));
	expect_copied(&b, 25u << 16, 30u << 16);
	guest_writes(&b, 10, 2);
	ask_ok(&b, "verify", NULL);
	/* Home, without being asked for anything. */
	ask_ok(&b, "failback", NULL);
	wait_state(&a, "protected", PROTECT_MS);
	expect_copied(&a, 0, 20u << 16);
	ticks_on(&a);
	ask_ok(&a, "cancel", NULL);
	host_stop(&a);
	host_stop(&b);
	shell("cmp %s %s", at("A.img"), at("B.img"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(only_what_changed, setup, place_clear),
	};
	int failed;

	need_qemu();
	place_open();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}
