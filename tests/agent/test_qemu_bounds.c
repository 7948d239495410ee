// SPDX-License-Identifier: Apache-2.0
/* A guest that dirties 10,000 pages and writes 16 MiB of disk each second, protected: memory stays
 * within what the interface promises, nothing is dropped, and what the standby has is equal.
 * FT_LONG=1: for five minutes. */
#include "tests/agent/harness.h"

#define MIB		(1u << 20)
#define STAGING		(128 * MIB) /* the defaults of the guest file */
#define DELTA_BASE	(64 * MIB)
#define OTHER		(64 * MIB)
#define RAM		(256 * MIB)
#define SECONDS_DEFAULT 20
#define SECONDS_LONG	300
#define DISK_RATE_MIN	(4 * MIB) /* of 16, on a machine that does other things too */
#define CHECKPOINTS	1000
#define DISK_BYTES	"128M"

static struct host a, b;

static int setup(void **state)
{
	place_clear(state);
	a = host_make("A");
	b = host_make("B");
	return 0;
}

static void start(const char *append, const char *ft)
{
	qemu_conf(at("g.conf"), append, ft, "");
	host_start(&a, at("g.conf"), "--set", "disk.root.size=" DISK_BYTES, NULL);
	wait_state(&a, "solo", START_MS);
	wait_tick(&a, 1, BOOT_MS);
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--set",
		   "disk.root.size=" DISK_BYTES, "--set", "console.log=B.console", "--set",
		   "console.socket=B.tty.sock", "--incoming", unix_uri("b.sock"), NULL);
	wait_state(&b, "standby", START_MS);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
}

/* What a process wrote to files. */
static uint64_t written(pid_t pid)
{
	const char *line;
	char path[64];
	uint64_t bytes = 0;

	snprintf(path, sizeof path, "/proc/%d/io", pid);
	line = strstr(file_text(path), "wchar:");
	assert_true(line && sscanf(line, "wchar: %lu", &bytes) == 1);
	return bytes;
}

static void within_bounds(void **state)
{
	const char *lasting = getenv("FT_LONG");
	uint64_t until, first, began, disk;
	unsigned long most_a = 0, most_b = 0, kib;
	Ctl__Reply *reply;
	int tick;

	(void)state;
	start("ft.dirty=10000:64 ft.write=16:/dev/vda:0", "");
	first = committed(&a);
	tick = last_tick(&a);
	disk = written(b.agent);
	began = now_ms();
	until = now_ms() + 1000ull * (lasting && *lasting == '1' ? SECONDS_LONG : SECONDS_DEFAULT);
	while (now_ms() < until) {
		kib = rss_kib(a.agent);
		most_a = kib > most_a ? kib : most_a;
		kib = rss_kib(b.agent);
		most_b = kib > most_b ? kib : most_b;
		assert_true(most_a <= (OTHER + STAGING + DELTA_BASE) / 1024);
		assert_true(most_b <= (RAM + STAGING + OTHER) / 1024);
		breathe(until + 1000, "bounds");
	}
	assert_state(&a, "protected");
	tick = last_tick(&a) - tick;
	disk = (written(b.agent) - disk) * 1000 / (now_ms() - began);
	reply = status_of(&a);
	printf("primary %lu MiB of %u, standby %lu MiB of %u; %lu checkpoints (%lu failed), pause "
	       "p50 %lu us p99 %lu us max %lu us, commit p50 %lu us, "
	       "dirty pages p50 %lu max %lu, sent/raw %.2f, overhead %.2f, %d ticks, disk %.1f "
	       "MiB/s\n",
	       most_a / 1024, (OTHER + STAGING + DELTA_BASE) / MIB, most_b / 1024,
	       (RAM + STAGING + OTHER) / MIB, reply->status->epoch_committed - first,
	       reply->status->checkpoints_failed, reply->status->pause_us->p50,
	       reply->status->pause_us->p99, reply->status->pause_us->max,
	       reply->status->commit_us->p50, reply->status->dirty_pages->p50,
	       reply->status->dirty_pages->max,
	       (double)reply->status->bytes_sent / (double)reply->status->bytes_raw,
	       reply->status->overhead, tick, (double)disk / MIB);
	assert_int_equal(reply->status->checkpoints_failed, 0);
	ctl__reply__free_unpacked(reply, NULL);
	assert_int_equal(host_lines(&a, "standby lost"), 0);
	assert_int_equal(host_lines(&a, "drop"), 0);
	assert_true(tick > 0);
	assert_true(disk >= DISK_RATE_MIN);
	ask_ok(&a, "verify", NULL);
	/* And over there it goes on, and is protected again, under the same load. */
	ask_ok(&a, "failover", NULL);
	wait_state(&b, "protected", PROTECT_MS);
	ticks_on(&b);
	ask_ok(&b, "verify", NULL);
	host_stop(&b);
	host_stop(&a);
	assert_int_equal(children(), 0);
}

static void thousand_checkpoints(void **state)
{
	unsigned fds_a, fds_b;
	unsigned long kib_a, kib_b;
	uint64_t first, until = now_ms() + 200000;

	(void)state;
	start("", "trigger = \"both\" interval_ms = 5 max_overhead = 0.9");
	first = committed(&a);
	while (committed(&a) < first + 100)
		breathe(until, "checkpoints");
	fds_a = descriptors(a.agent);
	fds_b = descriptors(b.agent);
	kib_a = rss_kib(a.agent);
	kib_b = rss_kib(b.agent);
	while (committed(&a) < first + 100 + CHECKPOINTS)
		breathe(until, "checkpoints");
	printf("A: %u descriptors (%u), %lu KiB (%lu); B: %u (%u), %lu KiB (%lu)\n",
	       descriptors(a.agent), fds_a, rss_kib(a.agent), kib_a, descriptors(b.agent), fds_b,
	       rss_kib(b.agent), kib_b);
	while (descriptors(a.agent) > fds_a || descriptors(b.agent) > fds_b)
		breathe(until, "descriptors");
	/* What the guest touches for the first time is in the delta base and in the image: bounded
	 * by the set that it touches. */
	assert_true(rss_kib(a.agent) <= kib_a + 8192);
	assert_true(rss_kib(b.agent) <= kib_b + 8192);
	ask_ok(&a, "verify", NULL);
	host_stop(&a);
	host_stop(&b);
	assert_int_equal(children(), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(within_bounds, setup, place_clear),
		cmocka_unit_test_setup_teardown(thousand_checkpoints, setup, place_clear),
	};
	int failed;

	need_qemu();
	place_open();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}
