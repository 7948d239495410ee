// SPDX-License-Identifier: Apache-2.0
/* Disks that are full or broken, on either host. The standby's costs protection, never the guest;
 * the primary's the guest hears of as an I/O error, as it would without us. */
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>

#include "tests/agent/harness.h"

static struct host a, b;
static struct kv_client client;
static char small[80]; /* a folder with little room */

static int setup(void **state)
{
	place_clear(state);
	a = host_make("A");
	b = host_make("B");
	pocket_conf(at("g.conf"), "", "arbiter { survivor = \"primary\" }");
	snprintf(small, sizeof small, "%s", at("small"));
	shell("mkdir -p %s && mount -t tmpfs -o size=%s none %s", small, "6m", small);
	kv_open(&client);
	return 0;
}

static int teardown(void **state)
{
	kv_close(&client);
	hosts_stop(&a, &b);
	umount2(small, MNT_DETACH);
	return place_clear(state);
}

static void start(const char *image_a, const char *image_b)
{
	host_start(&a, at("g.conf"), "--set", image_a, NULL);
	wait_state(&a, "solo", START_MS);
	host_start(&b, at("g.conf"), "--set", image_b, "--incoming", unix_uri("b.sock"), NULL);
	wait_state(&b, "standby", START_MS);
}

static void fill(const char *path)
{
	static const uint8_t block[65536] = {1};
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	while (write(fd, block, sizeof block) > 0)
		;
	close(fd);
}

/* An image with content, so that the initial copy needs its room. */
static void make_full_image(const char *path)
{
	make_image(path, 8u << 20);
	shell("dd if=/dev/urandom of=%s bs=1M seek=1 count=7 conv=notrunc status=none", path);
}

/* It has no room for the copy: protection is refused, and says which disk of whom. */
static void standby_has_no_room(void **state)
{
	(void)state;
	make_full_image(at("A.img"));
	start("disk.root.image=A.img", "disk.root.image=small/B.img");
	kv_work(&client, 10);
	ask_refused(&a, "migrate", unix_uri("b.sock"), "No space left");
	kv_work(&client, 10);
	assert_state(&a, "solo");
	assert_state(&b, "standby");
	/* With room it works. */
	shell("mount -o remount,size=64m %s", small);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	kv_work(&client, 10);
	ask_ok(&a, "verify", NULL);
}

/* The room is gone while the guest is protected. */
static void standby_fills_up(void **state)
{
	(void)state;
	start("disk.root.image=A.img", "disk.root.image=small/B.img");
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	fill(at("small/ballast"));
	/* Operations go on being written to new places of the disk until one has no room. */
	for (unsigned i = 0; i < 100 && !host_lines(&a, "No space left"); i++)
		kv_work(&client, 20);
	host_wait_said(&a, "No space left", START_MS);
	kv_work(&client, 20);
	assert_true(client.longest_ms < 10000);
	shell("rm %s", at("small/ballast"));
	wait_state(&a, "protected", PROTECT_MS);
	kv_work(&client, 10);
	ask_ok(&a, "verify", NULL);
}

/* The guest's own disk: it gets the error, everything else goes on, also under protection. */
static void primary_fills_up(void **state)
{
	(void)state;
	start("disk.root.image=small/A.img", "disk.root.image=B.img");
	kv_work(&client, 5);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	kv_work(&client, 5);
	fill(at("small/ballast"));
	kv_until_error(&client, 5000);
	assert_state(&a, "protected");
	shell("rm %s", at("small/ballast"));
	kv_work(&client, 10);
	ask_ok(&a, "verify", NULL);
	/* What the standby has is what the guest was told. */
	host_kill(&a);
	ask_ok(&b, "failover", NULL);
	kv_work(&client, 10);
	assert_state(&b, "solo");
}

/* The run directory has no room for what outgrows memory, nor for the agent's notes. */
static void run_directory_full(void **state)
{
	(void)state;
	snprintf(a.run, sizeof a.run, "%s", at("small/run"));
	start("disk.root.image=A.img", "disk.root.image=B.img");
	fill(at("small/ballast"));
	kv_work(&client, 10);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	kv_work(&client, 10);
	ask_ok(&a, "cancel", NULL);
	kv_work(&client, 10);
}

/* Nothing would keep the primary from being started beside its standby: protection is refused. */
static void disk_cannot_be_marked(void **state)
{
	(void)state;
	shell("mkdir %s", at("marks"));
	start("disk.root.image=marks/A.img", "disk.root.image=B.img");
	kv_work(&client, 10);
	/* The mark is written under another name first. */
	shell("mkdir %s", at("marks/A.img.kemari.tmp"));
	ask_refused(&a, "migrate", unix_uri("b.sock"), "marks/A.img.kemari");
	assert_state(&a, "solo");
	kv_work(&client, 10);
	shell("rmdir %s", at("marks/A.img.kemari.tmp"));
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	kv_work(&client, 10);
	ask_ok(&a, "verify", NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(standby_has_no_room, setup, teardown),
		cmocka_unit_test_setup_teardown(disk_cannot_be_marked, setup, teardown),
		cmocka_unit_test_setup_teardown(standby_fills_up, setup, teardown),
		cmocka_unit_test_setup_teardown(primary_fills_up, setup, teardown),
		cmocka_unit_test_setup_teardown(run_directory_full, setup, teardown),
	};
	int failed;

	place_open();
	if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) {
		printf("skipped: mounting a small folder needs root\n");
		place_close();
		return 77;
	}
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}
