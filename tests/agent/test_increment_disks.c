// SPDX-License-Identifier: Apache-2.0
/* Snapshots with disks that are updated in place, and a history with disks, by real agents: of
 * pocket machines that answer a client and write their disk meanwhile. What is restored is memory
 * and disk of one moment, whoever was killed at whatever moment. */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "tests/agent/harness.h"
#include "vmm-glue/snapshot/update.h"

#define WORK	40
#define FEW	5 /* where each waits for a checkpoint */
#define ROUNDS	4
#define KILLS	10
#define KILL_MS 40 /* an update, or two */
#define POINTS	4

static struct host a, b;
static struct kv_client client;

static int setup(void **state)
{
	place_clear(state);
	a = host_make("A");
	b = host_make("B");
	shell("rm -rf %s/*.img* %s/s* %s/h* %s/A/*.memory %s/B/*.memory", place, place, place,
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

static bool has_tap(struct host *h)
{
	return access(at("%s/g.nbd0", h->id), F_OK) == 0;
}

/* The client stands still, and its disk is what it is now. */
static struct kv_client note(const char *image, const char *name)
{
	shell("cp --sparse=always %s %s", at("%s", image), at("%s", name));
	return client;
}

static void assert_same(const char *one, const char *other)
{
	shell("cmp %s %s", at("%s", one), at("%s", other));
}

/* Into an image that is none yet. */
static void restore(const char *uri, bool lazy)
{
	shell("rm -f %s* %s", at("B.img"), at("B/g.memory"));
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--restore", uri,
		   lazy ? "--lazy" : NULL, NULL);
	wait_state(&b, "solo", START_MS);
}

static void assert_restores(const char *uri, const char *image, const struct kv_client *then,
			    bool lazy)
{
	restore(uri, lazy);
	assert_same(image, "B.img");
	kv_go_on(then, WORK);
	host_stop(&b);
}

struct asker {
	struct host *host;
	const char *file;
	unsigned times;
};

/* Until so many were updated, or the agent is gone. */
static void *ask_on(void *ctx)
{
	struct asker *asker = ctx;
	Ctl__Request r = snapshot_update_request(asker->file);
	struct ft_err err = {0};
	Ctl__Reply *reply;

	for (unsigned i = 0; i < asker->times; i++) {
		if (ctl_ask(asker->host->run, GUEST, &r, START_MS, &reply, &err))
			return NULL;
		if (reply->error[0])
			print_message("%s\n", reply->message);
		assert_int_equal(reply->error[0], 0);
		ctl__reply__free_unpacked(reply, NULL);
	}
	return ctx;
}

/* The guest writes while they are taken; each is verified. */
static void update_under_load(struct host *h, const char *file)
{
	struct asker asker = {h, file, ROUNDS};
	pthread_t thread;
	void *all;

	assert_int_equal(pthread_create(&thread, NULL, ask_on, &asker), 0);
	kv_work(&client, 4 * WORK);
	assert_int_equal(pthread_join(thread, &all), 0);
	assert_ptr_equal(all, &asker);
}

static void of_a_guest_alone(void **state)
{
	struct kv_client then;

	(void)state;
	start();
	/* The first one is a whole one, after which it is known what is written. */
	assert_int_equal(snapshot_update_with_disks(&a, "s"), 0);
	for (unsigned i = 0; i < ROUNDS; i++) {
		kv_work(&client, WORK);
		then = note("A.img", "then.img");
		assert_int_equal(snapshot_update_with_disks(&a, "s"), 0);
		assert_true(has_tap(&a));
	}
	update_under_load(&a, "s");
	kv_work(&client, 1);
	then = note("A.img", "then.img");
	assert_int_equal(snapshot_update_with_disks(&a, "s"), 0);
	shell("test $(ls %s | grep -c '^s') = 2", place);
	/* The next agent does not know, and says so. */
	host_stop(&a);
	kv_close(&client);
	assert_restores(file_uri("s"), "then.img", &then, false);
	assert_restores(file_uri("s"), "then.img", &then, true);
	host_start(&a, at("g.conf"), "--restore", file_uri("s"), NULL);
	wait_state(&a, "solo", START_MS);
	assert_false(has_tap(&a));
	assert_int_equal(snapshot_update_with_disks(&a, "s"), 1);
	host_wait_said(&a, "compared whole", START_MS);
	assert_int_equal(snapshot_update_with_disks(&a, "s"), 0);
	/* One that is not incremental takes the taps out. */
	snapshot_with_disks(&a, "s2", 0);
	assert_false(has_tap(&a));
	assert_restores(file_uri("s"), "then.img", &then, false);
	host_stop(&a);
}

/* Of the standby's image, and across protection: what was known stays known as long as the tap. */
static void of_a_standby(void **state)
{
	struct kv_client then;

	(void)state;
	start();
	assert_int_equal(snapshot_update_with_disks(&a, "s"), 0);
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--incoming",
		   unix_uri("b.sock"), NULL);
	wait_state(&b, "standby", START_MS);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	kv_work(&client, WORK);
	assert_int_equal(snapshot_update_with_disks(&b, "s"), 1);
	update_under_load(&b, "s");
	assert_state(&a, "protected");
	ask_ok(&a, "checkpoint", NULL);
	then = note("A.img", "then.img");
	assert_int_equal(snapshot_update_with_disks(&b, "s"), 0);
	ask_ok(&a, "cancel", NULL);
	wait_state(&a, "solo", START_MS);
	assert_true(has_tap(&a));
	kv_work(&client, WORK);
	host_stop(&a);
	wait_state(&b, "standby", START_MS);
	host_stop(&b);
	assert_restores(file_uri("s"), "then.img", &then, false);
	kv_close(&client);
}

static bool is_same(const char *one, const char *other)
{
	char line[300];

	snprintf(line, sizeof line, "cmp -s %s %s", at("%s", one), at("%s", other));
	return system(line) == 0;
}

/* Between two moments at which the client stands still, an update is killed: memory and disk are
 * those of one of them, both. */
static void killed(void **state)
{
	unsigned journals = 0, news = 0;

	(void)state;
	start();
	assert_int_equal(snapshot_update_with_disks(&a, "s"), 0);
	srandom(11);
	for (unsigned i = 0; i < KILLS; i++) {
		struct asker asker = {&a, "s", 100};
		struct kv_client old, new;
		pthread_t thread;
		bool is_new;

		kv_work(&client, 2);
		old = note("A.img", "old.img");
		(void)snapshot_update_with_disks(&a, "s");
		kv_work(&client, WORK);
		new = note("A.img", "new.img");
		assert_int_equal(pthread_create(&thread, NULL, ask_on, &asker), 0);
		poll(NULL, 0, (int)(random() % KILL_MS));
		host_kill(&a);
		assert_int_equal(pthread_join(thread, NULL), 0);
		journals += !access(at("s" UPDATE_SUFFIX), F_OK);
		kv_close(&client);
		restore(file_uri("s"), i % 2);
		is_new = is_same("B.img", "new.img");
		assert_true(is_new || is_same("B.img", "old.img"));
		kv_go_on(is_new ? &new : &old, WORK);
		host_stop(&b);
		news += is_new;
		/* On it goes from there. */
		shell("rm -f %s* %s", at("A.img"), at("A/g.memory"));
		host_start(&a, at("g.conf"), "--restore", file_uri("s"), NULL);
		wait_state(&a, "solo", START_MS);
		kv_open(&client);
		client.seq = is_new ? new.seq : old.seq;
		client.number = is_new ? new.number : old.number;
		client.chain = is_new ? new.chain : old.chain;
	}
	print_message("%u of %u kills left a journal, %u the new snapshot\n", journals, KILLS,
		      news);
	(void)snapshot_update_with_disks(&a, "s");
	/* Lazy restores may have left what they touched first. */
	shell("test $(ls %s | grep '^s' | grep -vc '[.]ws$') = 2", place);
	kv_close(&client);
	host_stop(&a);
}

static void update_refused(const char *file, const char *text)
{
	Ctl__Request r = snapshot_update_request(file);
	Ctl__Reply *reply = ask_any(&a, &r);

	if (!reply->error[0] || !strstr(reply->message, text))
		fail_msg("expected '%s', got: %s", text, reply->message);
	ctl__reply__free_unpacked(reply, NULL);
}

/* One clear error, the guest goes on, and what was there is there. */
static void given_up(void **state)
{
	struct kv_client then;
	Ctl__Request r;
	Ctl__Reply *reply;

	(void)state;
	assert_int_equal(mkdir(at("small"), 0700), 0);
	assert_int_equal(mount("none", at("small"), "tmpfs", 0, "size=12m"), 0);
	start();
	then = note("A.img", "then.img");
	assert_int_equal(snapshot_update_with_disks(&a, "small/s"), 0);
	/* The kv program's journal on the disk, and its memory, change. */
	kv_work(&client, WORK);
	shell("head -c 12M /dev/zero >%s || true", at("small/ballast"));
	update_refused("small/s", "No space left");
	kv_work(&client, WORK);
	shell("mount -o remount,ro %s", at("small"));
	update_refused("small/s", "Read-only file system");
	kv_work(&client, WORK);
	shell("mount -o remount,rw %s && rm %s", at("small"), at("small/ballast"));
	/* Without its disks they would be of another moment. */
	r = snapshot_update_request("small/s");
	r.no_disks = true;
	reply = ask_any(&a, &r);
	assert_non_null(strstr(reply->message, "has 1 disks, and 0 are to be saved"));
	ctl__reply__free_unpacked(reply, NULL);
	shell("test $(ls %s | wc -l) = 2", at("small"));
	kv_close(&client);
	host_stop(&a);
	assert_restores(file_uri("small/s"), "then.img", &then, false);
	umount2(at("small"), MNT_DETACH);
}

// ---- history

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

/* One that is not older than this epoch; returns which. */
static uint64_t wait_kept(struct host *h, uint64_t epoch)
{
	uint64_t until = now_ms() + START_MS, newest = 0;

	while (newest < epoch || !newest) {
		Ctl__Reply *reply = history_of(h);

		newest = reply->n_points ? reply->points[reply->n_points - 1]->epoch : 0;
		ctl__reply__free_unpacked(reply, NULL);
		breathe(until, "a checkpoint is kept");
	}
	return newest;
}

static void of_history(void **state)
{
	struct kv_client then[POINTS];
	uint64_t epochs[POINTS];
	char uri[64], name[32];

	(void)state;
	pocket_conf(at("g.conf"),
		    "trigger = interval  interval_ms = 50  history = 256  history_seconds = 0  "
		    "history_dir = \"h\"",
		    "");
	start();
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--incoming",
		   unix_uri("b.sock"), NULL);
	wait_state(&b, "standby", START_MS);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	for (unsigned i = 0; i < POINTS; i++) {
		kv_work(&client, FEW);
		ask_ok(&a, "checkpoint", NULL);
		snprintf(name, sizeof name, "then%u.img", i);
		then[i] = note("A.img", name);
		epochs[i] = wait_kept(&b, committed(&b));
	}
	kv_work(&client, FEW);
	/* A snapshot of the standby's is no obstacle, nor is a takeover. */
	(void)snapshot_update_with_disks(&b, "s");
	(void)wait_kept(&b, committed(&b));
	(void)snapshot_update_with_disks(&b, "s");
	host_kill(&a);
	wait_state(&b, "solo", START_MS);
	kv_work(&client, FEW);
	kv_close(&client);
	host_stop(&b);
	/* The live image is not touched unasked. */
	snprintf(uri, sizeof uri, "history:%lu", epochs[0]);
	shell("cp %s %s", at("B.img"), at("live.img"));
	assert_int_equal(host_try(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--restore",
				  uri, NULL),
			 2);
	host_one_error(&b, "holds something else than the snapshot's disk");
	assert_same("live.img", "B.img");
	for (unsigned i = 0; i < POINTS; i++) {
		snprintf(uri, sizeof uri, "history:%lu", epochs[i]);
		snprintf(name, sizeof name, "then%u.img", i);
		assert_restores(uri, name, &then[i], i % 2);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(of_a_guest_alone, setup, place_clear),
		cmocka_unit_test_setup_teardown(of_a_standby, setup, place_clear),
		cmocka_unit_test_setup_teardown(killed, setup, place_clear),
		cmocka_unit_test_setup_teardown(given_up, setup, place_clear),
		cmocka_unit_test_setup_teardown(of_history, setup, place_clear),
	};
	int failed;

	place_open();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}
