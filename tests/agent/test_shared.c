// SPDX-License-Identifier: Apache-2.0
/* One disk image for both hosts, and a primary that is not dead but frozen: it wakes up later, and
 * must find that the guest is not its own any more, without having touched the disk. */
#include <signal.h>
#include <sys/stat.h>

#include "ft/lease.h"
#include "tests/agent/harness.h"
#include "tests/agent/proxy.h"

#define TAKEOVER_MS 1000 /* harness */

static struct host a, b;
static struct kv_client client;

/* b_image: by which name B knows the image. */
static void pair(const char *b_image, const char *extra)
{
	char disk[64];

	place_clear(NULL);
	a = host_make("A");
	b = host_make("B");
	shell("rm -f %s %s %s", at("A.img*"), at("B.img*"), at("fence*"));
	make_image(at("A.img"), 8u << 20);
	shell("ln -s A.img %s", at("B.img"));
	pocket_conf(at("g.conf"), "", extra);
	snprintf(disk, sizeof disk, "disk.root.image=%s", b_image);
	host_start(&a, at("g.conf"), "--set", "disk.root.mode=shared", NULL);
	host_start(&b, at("g.conf"), "--set", "disk.root.mode=shared", "--set", disk, "--incoming",
		   unix_uri("b.sock"), NULL);
	wait_state(&a, "solo", START_MS);
	wait_state(&b, "standby", START_MS);
	kv_open(&client);
	kv_work(&client, 10);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	kv_work(&client, 10);
}

static int setup(void **state)
{
	(void)state;
	pair("A.img", "");
	return 0;
}

/* As on hosts whose locks do not reach each other: the lock is beside the name. */
static int setup_no_lock(void **state)
{
	(void)state;
	pair("B.img", "");
	return 0;
}

static int teardown(void **state)
{
	kv_close(&client);
	hosts_stop(&a, &b);
	wait_children(0, GOES_ON_MS);
	return place_clear(state);
}

/* The frozen one wakes up, is told, and lets go; the client never misses an operation. */
static void wakes_up(struct host *old, struct host *new)
{
	host_signal(old, SIGSTOP);
	wait_state(new, "takeover", GOES_ON_MS);
	host_wait_said(new, "waiting for the old primary to let go", GOES_ON_MS);
	host_signal(old, SIGCONT);
	wait_state(old, "fenced", GOES_ON_MS);
	wait_state(new, "solo", GOES_ON_MS);
	kv_work(&client, 10);
}

static void frozen(void **state)
{
	(void)state;
	wakes_up(&a, &b);
}

/* The new primary was dialed by its standby and knows no way to it. */
static void frozen_after_a_switch(void **state)
{
	(void)state;
	ask_ok(&a, "failover", NULL);
	wait_state(&b, "protected", PROTECT_MS);
	kv_work(&client, 10);
	wakes_up(&b, &a);
	host_wait_said(&b, "host A has the guest", GOES_ON_MS);
}

/* A dead primary's lock is free: nothing has to be waited for. */
static void killed(void **state)
{
	uint64_t began;

	(void)state;
	host_kill(&a);
	began = now_ms();
	wait_state(&b, "solo", GOES_ON_MS);
	print_message("took over after %lu ms\n", (unsigned long)(now_ms() - began));
	kv_work(&client, 10);
	assert_int_equal(host_lines(&b, "its lease is not over"), 0);
}

/* Where locks say nothing the lease does. */
static void lease_awaited(void **state)
{
	uint64_t began;

	(void)state;
	host_signal(&a, SIGSTOP);
	began = now_ms();
	wait_state(&b, "solo", GOES_ON_MS);
	assert_true(now_ms() - began >= TAKEOVER_MS + FT_WRITE_MAX_MS - 100);
	host_wait_said(&b, "its lease is not over", 0);
	kv_work(&client, 10);
	host_signal(&a, SIGCONT);
	wait_state(&a, "fenced", GOES_ON_MS);
	kv_work(&client, 10);
}

static void lease_awaited_after_death(void **state)
{
	uint64_t began;

	(void)state;
	host_kill(&a);
	began = now_ms();
	wait_state(&b, "solo", GOES_ON_MS);
	assert_true(now_ms() - began >= TAKEOVER_MS / 2 + FT_WRITE_MAX_MS);
	kv_work(&client, 10);
}

/* ---- fencing ---- */

static void fence_says(const char *what)
{
	write_file(at("fence.next"), "%s\n", what);
	shell("mv %s %s", at("fence.next"), at("fence.does"));
}

static int setup_fence(void **state)
{
	char extra[400];

	(void)state;
	place_clear(NULL);
	snprintf(extra, sizeof extra, "arbiter { fence = \"%s\" fence_timeout_ms = 500 }",
		 at("power"));
	write_file(
		at("power"),
		"#!/bin/sh\necho \"$@\" >> %s\n"
		"case $(cat %s) in fail) echo no power switch; exit 3;; hang) sleep 1000;; esac\n"
		"kill -9 $(cat %s)\n",
		at("fence.asked"), at("fence.does"), at("fence.pid"));
	chmod(at("power"), 0755);
	pair("B.img", extra);
	write_file(at("fence.pid"), "%d\n", (int)a.agent);
	return 0;
}

/* Not granted while the program fails or hangs, whatever the lease says; then it is. */
static void fence(void **state)
{
	char asked[32];

	(void)state;
	fence_says("fail");
	host_signal(&a, SIGSTOP);
	host_wait_said(&b, "exit code 3: no power switch", GOES_ON_MS);
	assert_state(&b, "takeover");
	fence_says("hang");
	host_wait_said(&b, "no end within 500 ms, killed", GOES_ON_MS);
	assert_state(&b, "takeover");
	/* B may have its next program under way, and nothing of the one before. */
	fence_says("succeed");
	wait_state(&b, "solo", GOES_ON_MS);
	snprintf(asked, sizeof asked, "%s A ", GUEST);
	assert_int_equal(strncmp(file_text(at("fence.asked")), asked, strlen(asked)), 0);
	kv_work(&client, 10);
	assert_int_equal(host_reap(&a, GOES_ON_MS), 128 + SIGKILL);
	a.agent = 0;
}

/* By agreement nobody has to be shot. */
static void fence_unused(void **state)
{
	(void)state;
	fence_says("fail");
	ask_ok(&a, "failover", NULL);
	wait_state(&b, "protected", PROTECT_MS);
	kv_work(&client, 10);
	assert_string_equal(file_text(at("fence.asked")), "");
}

/* The two cannot hear each other. The primary, which runs on, steps back so that the standby can
 * have the disk; an operator who then decides for the wrong one is not obeyed, for the lock knows
 * better. */
static void cut_off(void **state)
{
	struct proxy *wire = proxy_start(at("wire.sock"), at("b.sock"));

	(void)state;
	ask_ok(&a, "cancel", NULL);
	ask_ok(&a, "migrate", unix_uri("wire.sock"));
	kv_work(&client, 10);
	proxy_stop(wire);
	host_wait_said(&a, "its shared disks are free", GOES_ON_MS);
	wait_state(&b, "solo", GOES_ON_MS);
	kv_work(&client, 10);
	ask_refused(&a, "cancel", NULL, "the guest stays where its disks are");
	assert_state(&a, "protected");
	kv_work(&client, 10);
	host_stop(&b);
	host_kill(&a);
}

/* Likewise, but nobody took them: the guest goes on where it stood still. */
static void cut_off_alone(void **state)
{
	struct proxy *wire = proxy_start(at("wire.sock"), at("b.sock"));

	(void)state;
	ask_ok(&a, "cancel", NULL);
	ask_ok(&a, "migrate", unix_uri("wire.sock"));
	kv_work(&client, 10);
	host_kill(&b);
	host_wait_said(&a, "its shared disks are free", GOES_ON_MS);
	ask_ok(&a, "cancel", NULL);
	assert_state(&a, "solo");
	kv_work(&client, 10);
	proxy_stop(wire);
}

static void fence_missing(void **state)
{
	(void)state;
	a = host_make("A");
	b.agent = 0;
	kv_open(&client);
	pocket_conf(at("g.conf"), "", "arbiter { fence = \"nowhere\" }");
	assert_int_equal(host_try(&a, at("g.conf"), NULL), 2);
	host_one_error(&a, "nowhere: No such file or directory");
	a.agent = 0;
}

int main(void)
{
#define TEST(f, setup) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(frozen, setup),
		TEST(frozen_after_a_switch, setup),
		TEST(killed, setup),
		TEST(lease_awaited, setup_no_lock),
		TEST(lease_awaited_after_death, setup_no_lock),
		TEST(cut_off, setup),
		TEST(cut_off_alone, setup),
		TEST(fence, setup_fence),
		TEST(fence_unused, setup_fence),
		TEST(fence_missing, place_clear),
	};
	int failed;

	place_open();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}
