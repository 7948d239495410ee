// SPDX-License-Identifier: Apache-2.0
/* Snapshots with disks, of pocket machines that answer a client and write their disk meanwhile: the
 * images beside the memory are of the same moment, a set changes as one, and goes back into guests'
 * images without anything being lost unasked. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "tests/agent/harness.h"

#define SLOW	  (1u << 20) /* bytes a second: 4 MiB of the disk take long enough */
#define WORK	  40
#define KILLS	  6
#define DISK_SIZE (8u << 20)

static struct host a, b;
static struct kv_client client;

static int setup(void **state)
{
	place_clear(state);
	a = host_make("A");
	b = host_make("B");
	shell("rm -rf %s/*.img* %s/s* %s/t* %s/A/*.memory %s/B/*.memory", place, place, place,
	      place, place);
	pocket_conf(at("g.conf"), "", "");
	pocket_image(at("A.img"));
	return 0;
}

static void start(void)
{
	host_start(&a, at("g.conf"), NULL);
	wait_state(&a, "solo", START_MS);
	kv_open(&client);
	kv_work(&client, WORK);
}

static void wait_no_snapshot(struct host *h)
{
	uint64_t until = now_ms() + START_MS;

	for (bool busy = true; busy;) {
		Ctl__Reply *reply = status_of(h);

		busy = reply->status->snapshot != NULL;
		ctl__reply__free_unpacked(reply, NULL);
		breathe(until, "the snapshot ends");
	}
}

static void wait_no_file(const char *name)
{
	uint64_t until = now_ms() + START_MS;

	while (access(at("%s", name), F_OK) == 0)
		breathe(until, name);
}

/* Images beside the memory called `file`, and the name of one of them. */
static unsigned images(const char *file, char name[256])
{
	struct dirent *e;
	char prefix[64];
	unsigned n = 0;
	DIR *dir = opendir(place);

	snprintf(prefix, sizeof prefix, "%s.root.", file);
	while ((e = readdir(dir)))
		if (!strncmp(e->d_name, prefix, strlen(prefix))) {
			snprintf(name, 256, "%s", e->d_name);
			n++;
		}
	closedir(dir);
	return n;
}

static void assert_same(const char *one, const char *other)
{
	shell("cmp %s %s", at("%s", one), at("%s", other));
}

static void assert_different(const char *one, const char *other)
{
	shell("! cmp -s %s %s", at("%s", one), at("%s", other));
}

static bool is_sparse(const char *name)
{
	struct stat st;

	assert_int_equal(stat(at("%s", name), &st), 0);
	return st.st_size == DISK_SIZE && (uint64_t)st.st_blocks * 512 < DISK_SIZE / 4 * 3;
}

static void assert_no_taps(struct host *h)
{
	assert_int_equal(access(at("%s/g.nbd0", h->id), F_OK), -1);
}

static void of_one_moment(void **state)
{
	struct kv_client then;
	char image[256];
	int fd;

	(void)state;
	start();
	then = client;
	shell("cp --sparse=always %s %s", at("A.img"), at("then.img"));
	fd = snapshot_begin_slow_with_disks(&a, "s", SLOW);
	ask_refused(&a, "migrate", unix_uri("b.sock"), "a snapshot is being written");
	kv_work(&client, WORK);
	snapshot_wait(&a, fd);
	assert_int_equal(images("s", image), 1);
	assert_same("then.img", image);
	assert_different("then.img", "A.img");
	assert_true(is_sparse(image));
	assert_no_taps(&a);
	assert_state(&a, "solo");
	/* On it goes, and another set takes the place of the first. */
	kv_work(&client, WORK);
	snapshot_with_disks(&a, "t", 0);
	snapshot_with_disks(&a, "t", 0);
	assert_int_equal(images("t", image), 1);
	host_stop(&a);
	kv_close(&client);
	/* Two guests out of one file, lazily and not, into images that are not there yet. */
	for (unsigned lazy = 0; lazy < 2; lazy++) {
		shell("rm -f %s*", at("B.img"));
		host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--restore",
			   file_uri("s"), lazy ? "--lazy" : NULL, NULL);
		wait_state(&b, "solo", START_MS);
		assert_same("then.img", "B.img");
		assert_true(is_sparse("B.img"));
		kv_go_on(&then, WORK);
		host_stop(&b);
		shell("rm -f %s", at("B/g.memory"));
	}
	(void)images("s", image);
	assert_same("then.img", image);
}

/* What is in an image is not overwritten unasked; what is so already is left. */
static void into_an_image_in_use(void **state)
{
	struct kv_client then;
	struct stat before, after;
	char image[256];

	(void)state;
	start();
	snapshot_with_disks(&a, "s", 0);
	then = client;
	host_stop(&a);
	host_start(&a, at("g.conf"), "--restore", file_uri("s"), NULL);
	wait_state(&a, "solo", START_MS);
	kv_go_on(&then, WORK);
	host_stop(&a);
	assert_int_equal(host_try(&a, at("g.conf"), "--restore", file_uri("s"), NULL), 2);
	host_one_error(&a, "holds something else than the snapshot's disk");
	assert_int_equal(host_try(&a, at("g.conf"), "--set", "disk.root.size=16M", "--restore",
				  file_uri("s"), "--force", NULL),
			 2);
	host_one_error(&a, "size: 16777216 bytes here, 8388608 in the snapshot");
	assert_int_equal(stat(at("A.img"), &before), 0);
	host_start(&a, at("g.conf"), "--restore", file_uri("s"), "--force", NULL);
	wait_state(&a, "solo", START_MS);
	assert_int_equal(stat(at("A.img"), &after), 0);
	assert_int_equal(before.st_ino, after.st_ino);
	(void)images("s", image);
	assert_same(image, "A.img");
	kv_go_on(&then, WORK);
	host_stop(&a);
	/* A set that is not whole is none. */
	shell("truncate -s 7M %s", at("%s", image));
	assert_int_equal(host_try(&a, at("g.conf"), "--restore", file_uri("s"), "--force", NULL),
			 2);
	host_one_error(&a, "is not the file of 8388608 bytes that belongs to it");
	shell("rm %s", at("%s", image));
	assert_int_equal(host_try(&a, at("g.conf"), "--restore", file_uri("s"), "--force", NULL),
			 2);
	host_one_error(&a, "No such file");
	kv_close(&client);
}

/* The last committed checkpoint, while later ones are applied; the guest does not notice. */
static void from_the_standby(void **state)
{
	struct kv_client then;
	char image[256];
	int fd;

	(void)state;
	start();
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--incoming",
		   unix_uri("b.sock"), NULL);
	wait_state(&b, "standby", START_MS);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	kv_work(&client, WORK);
	ask_ok(&a, "checkpoint", NULL);
	then = client;
	shell("cp %s %s", at("A.img"), at("then.img"));
	fd = snapshot_begin_slow_with_disks(&b, "s", SLOW);
	kv_work(&client, WORK);
	ask_ok(&a, "verify", NULL);
	snapshot_wait(&b, fd);
	assert_state(&a, "protected");
	assert_int_equal(images("s", image), 1);
	assert_same("then.img", image);
	/* It takes over in the middle of one. */
	fd = snapshot_begin_slow_with_disks(&b, "t", SLOW / 4);
	kv_work(&client, 1);
	host_kill(&a);
	wait_state(&b, "solo", START_MS);
	kv_work(&client, WORK);
	close(fd);
	/* The taps of the takeover are there: they serve. */
	then = client;
	kv_close(&client);
	wait_no_snapshot(&b);
	wait_no_file("B/g.out0");
	assert_int_equal(images("t", image), 0);
	snapshot_with_disks(&b, "t", 0);
	host_stop(&b);
	shell("rm -f %s* %s", at("A.img"), at("A/g.memory"));
	host_start(&a, at("g.conf"), "--restore", file_uri("t"), NULL);
	wait_state(&a, "solo", START_MS);
	kv_go_on(&then, WORK);
	host_stop(&a);
}

/* Past the page cache: whole pages only, and the disk ends with less than one. */
static void direct(void **state)
{
	Ctl__Request r = CTL__REQUEST__INIT;
	Ctl__Reply *reply;
	char image[256];
	int fd = open(place, O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);

	(void)state;
	if (fd < 0) {
		print_message("%s has no direct I/O\n", place);
		skip();
	}
	close(fd);
	shell("sed 's/size = \"8M\"//' %s >%s && printf odd >>%s", at("g.conf"), at("odd.conf"),
	      at("A.img"));
	host_start(&a, at("odd.conf"), NULL);
	wait_state(&a, "solo", START_MS);
	kv_open(&client);
	kv_work(&client, WORK);
	shell("cp %s %s", at("A.img"), at("then.img"));
	r.command = (char *)"snapshot";
	r.uri = (char *)(uintptr_t)file_uri("s");
	r.direct = r.verify = true;
	reply = ask_any(&a, &r);
	if (reply->error[0])
		fail_msg("%s", reply->message);
	ctl__reply__free_unpacked(reply, NULL);
	assert_int_equal(images("s", image), 1);
	assert_same("then.img", image);
	kv_close(&client);
	host_stop(&a);
}

/* The other host writes a shared disk, so its standby cannot save it; a guest that is alone with it
 * can be saved as any. */
static void shared_disk(void **state)
{
	char image[256];

	(void)state;
	host_start(&a, at("g.conf"), "--set", "disk.root.mode=shared", NULL);
	wait_state(&a, "solo", START_MS);
	kv_open(&client);
	kv_work(&client, 5);
	shell("cp %s %s", at("A.img"), at("then.img"));
	snapshot_with_disks(&a, "s", 0);
	assert_int_equal(images("s", image), 1);
	assert_same("then.img", image);
	host_start(&b, at("g.conf"), "--set", "disk.root.mode=shared", "--incoming",
		   unix_uri("b.sock"), NULL);
	wait_state(&b, "standby", START_MS);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	ask_refused(&b, "snapshot", file_uri("t"), "disk root: is shared");
	assert_int_equal(images("t", image), 0);
	snapshot(&b, "t", 0);
	kv_work(&client, 5);
	kv_close(&client);
	host_stop(&a);
	wait_state(&b, "standby", START_MS);
	host_stop(&b);
}

/* Whoever dies, and whenever: the set of before is whole, or the new one; nothing is left over
 * once there is a next one. */
static void killed(void **state)
{
	char image[256];

	(void)state;
	start();
	snapshot_with_disks(&a, "s", 0);
	for (unsigned i = 0; i < KILLS; i++) {
		int fd = snapshot_begin_slow_with_disks(&a, "s", i % 2 ? SLOW : 16u << 20);
		uint64_t until = now_ms() + 90 * i;

		kv_work(&client, 2);
		while (now_ms() + 5 < until)
			breathe(until, "the snapshot goes on");
		host_kill(&a);
		close(fd);
		assert_true(access(at("s"), F_OK) == 0);
		shell("rm -f %s* %s", at("B.img"), at("B/g.memory"));
		host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--restore",
			   file_uri("s"), NULL);
		wait_state(&b, "solo", START_MS);
		host_stop(&b);
		host_start(&a, at("g.conf"), NULL);
		wait_state(&a, "solo", START_MS);
		kv_close(&client);
		kv_open(&client);
		kv_work(&client, 2);
	}
	snapshot_with_disks(&a, "s", 0);
	assert_int_equal(images("s", image), 1);
	assert_int_equal(access(at("s.part"), F_OK), -1);
	kv_close(&client);
	host_stop(&a);
}

static void assert_nothing_left(const char *file)
{
	char image[256];

	assert_int_equal(images(file, image), 0);
	assert_int_equal(access(at("%s", file), F_OK), -1);
	assert_int_equal(access(at("%s.part", file), F_OK), -1);
	assert_no_taps(&a);
	kv_work(&client, 5);
}

static void given_up(void **state)
{
	int fd;

	(void)state;
	start();
	/* By who asked for it, and by another operator. */
	close(snapshot_begin_slow_with_disks(&a, "s", SLOW / 4));
	kv_work(&client, 5);
	wait_no_snapshot(&a);
	fd = snapshot_begin_slow_with_disks(&a, "s", SLOW / 4);
	ask_ok(&a, "cancel", NULL);
	close(fd);
	assert_nothing_left("s");
	/* By what it is written to: a filesystem with room for memory and not for disks, too. */
	ask_refused(&a, "snapshot", file_uri("nowhere/s"), "No such file");
	ask_refused(&a, "snapshot", "file:/proc/s", "/proc/s");
	assert_nothing_left("s");
	assert_int_equal(mkdir(at("small"), 0700), 0);
	assert_int_equal(mount("none", at("small"), "tmpfs", 0, "size=1m"), 0);
	ask_refused(&a, "snapshot", file_uri("small/s"), "No space left");
	shell("test -z \"$(ls %s)\"", at("small"));
	shell("mount -o remount,ro %s", at("small"));
	ask_refused(&a, "snapshot", file_uri("small/s"), "Read-only file system");
	assert_nothing_left("s");
	umount2(at("small"), MNT_DETACH);
	/* By the end of the guest. */
	fd = snapshot_begin_slow_with_disks(&a, "s", SLOW / 4);
	host_stop(&a);
	close(fd);
	kv_close(&client);
	shell("! ls %s | grep -q -x -e s -e 's[.].*'", place);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(of_one_moment, setup, place_clear),
		cmocka_unit_test_setup_teardown(into_an_image_in_use, setup, place_clear),
		cmocka_unit_test_setup_teardown(from_the_standby, setup, place_clear),
		cmocka_unit_test_setup_teardown(direct, setup, place_clear),
		cmocka_unit_test_setup_teardown(shared_disk, setup, place_clear),
		cmocka_unit_test_setup_teardown(killed, setup, place_clear),
		cmocka_unit_test_setup_teardown(given_up, setup, place_clear),
	};
	int failed;

	place_open();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}
