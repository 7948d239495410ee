// SPDX-License-Identifier: Apache-2.0
/* A Linux guest moves, and its named bitmaps with it: of every granularity, with writes before the
 * switch, while it happens, and while the maps are on their way, they equal a model; and the backup
 * that was begun at one host is finished at the other. */
#include <openssl/evp.h>

#include "ft/msg.h"
#include "tests/agent/backups.h"
#include "tests/agent/proxy.h"

#define BLOCK	      4096u
#define GRANULARITIES 12 /* 512 bytes to 1 MiB */
#define LOOP_WRITES   60
#define LOOP_FROM     3000u
#define LOOP_STEP     37u

static struct host a, b;
static struct proxy *wire;
static bool model[DISK_BYTES / BLOCK], model_off[DISK_BYTES / BLOCK];

static const char *move_uri(const char *name)
{
	return unix_uri(name) + strlen("kemari:");
}

static int setup(void **state)
{
	(void)state;
	shell("rm -f %s %s %s", at("*.img"), at("*.kemari*"), at("*.console"));
	memset(model, 0, sizeof model);
	memset(model_off, 0, sizeof model_off);
	a = host_make("A");
	b = host_make("B");
	wire = NULL;
	return 0;
}

static int teardown(void **state)
{
	if (wire)
		proxy_stop(wire);
	return place_clear(state);
}

/* ---- the model ---- */

static void writes(const struct host *h, unsigned first, unsigned n)
{
	guest_writes(h, first, n);
	memset(model + first, true, n);
}

static void expected_digest(const bool *blocks, unsigned granularity, char out[65])
{
	static uint8_t map[DISK_BYTES / 512 / 8];
	size_t bytes = DISK_BYTES / granularity / 8;
	uint8_t raw[32];

	bytes = (bytes + 7) / 8 * 8;
	memset(map, 0, sizeof map);
	for (size_t i = 0; i < DISK_BYTES; i += granularity < BLOCK ? granularity : BLOCK)
		if (blocks[i / BLOCK])
			map[i / granularity / 8] |= (uint8_t)(1u << i / granularity % 8);
	assert_true(EVP_Digest(map, bytes, raw, NULL, EVP_sha256(), NULL));
	for (unsigned i = 0; i < sizeof raw; i++)
		snprintf(out + 2 * i, 3, "%02x", raw[i]);
}

static const char *name_of(unsigned granularity)
{
	static char name[16];

	snprintf(name, sizeof name, "g%u", granularity);
	return name;
}

static void expect_one(struct host *h, const char *name, const bool *blocks, unsigned granularity)
{
	char is[65], should[65];

	digest_of(h, name, is);
	expected_digest(blocks, granularity, should);
	if (strcmp(is, should) != 0)
		fail_msg("%s: bitmap %s is not what was written", h->id, name);
}

static void expect_model(struct host *h, const char *but)
{
	for (unsigned i = 0; i < GRANULARITIES; i++)
		if (!but || strcmp(but, name_of(512u << i)) != 0)
			expect_one(h, name_of(512u << i), model, 512u << i);
	expect_one(h, "off", model_off, BLOCK);
}

/* What the list says of each. */
static unsigned count(struct host *h, bool arriving, bool enabled)
{
	Ctl__Reply *reply = bitmap(h, "list", "", 0);
	unsigned n = 0;

	for (size_t i = 0; i < reply->n_bitmaps; i++) {
		const Ctl__Bitmap *bm = reply->bitmaps[i];

		assert_false(bm->inconsistent);
		n += arriving ? bm->arriving : !bm->busy && bm->enabled == enabled;
	}
	ctl__reply__free_unpacked(reply, NULL);
	return n;
}

/* ---- a move ---- */

/* The guest goes on with it whatever happens to it meanwhile. */
static void begin_loop(void)
{
	char line[300];

	snprintf(line, sizeof line,
		 "(i=0; while [ $i -lt %u ]; do dd if=/dev/urandom of=/dev/vda bs=4096 "
		 "seek=$((%u+%u*i)) count=1 conv=notrunc,fsync 2>/dev/null; i=$((i+1)); done; "
		 "echo LOOP-$((5))-OVER) &",
		 LOOP_WRITES, LOOP_FROM, LOOP_STEP);
	guest_type(&a, line);
	for (unsigned i = 0; i < LOOP_WRITES; i++)
		model[LOOP_FROM + LOOP_STEP * i] = true;
}

static void end_loop(const struct host *h)
{
	uint64_t until = now_ms() + BOOT_MS;

	while (!strstr(file_text(at("%s.console", h->id)), "LOOP-5-OVER"))
		breathe(until, "the guest's loop ends");
}

static void begin(void)
{
	qemu_conf(at("g.conf"), "", "", "");
	qemu_start(&a, at("g.conf"));
	for (unsigned i = 0; i < GRANULARITIES; i++)
		bitmap_ok(&a, "add", name_of(512u << i), 512u << i);
	bitmap_ok(&a, "add", "off", BLOCK);
	full_backup(&a, "backup.img");
	writes(&a, 100, 3);
	memcpy(model_off, model, sizeof model);
	bitmap_ok(&a, "disable", "off", 0);
	writes(&a, 700, 9);
	qemu_standby(&b, move_uri("b.sock"), NULL);
	wire = proxy_start(at("wire.sock"), at("b.sock"));
}

/* Postcopy; what becomes of it is seen at the hosts. */
static void migrate_async(void)
{
	Ctl__Request r = CTL__REQUEST__INIT;

	r.command = (char *)"migrate";
	r.uri = (char *)(uintptr_t)move_uri("wire.sock");
	r.postcopy = true;
	ask_any_async(&a, &r);
}

static void check_and_end(const char *but)
{
	assert_int_equal(count(&b, true, false), 0);
	assert_int_equal(count(&b, false, true), GRANULARITIES - (but ? 1 : 0));
	assert_int_equal(count(&b, false, false), 1);
	expect_model(&b, but);
	writes(&b, 12000, 4); /* "off" is off */
	expect_model(&b, but);
	incremental_backup(&b, "g4096", "backup.img");
	shell("cmp %s %s", at("backup.img"), at("B.img"));
	host_stop(&b);
	assert_int_equal(children(), 0);
}

static void precopy(void **state)
{
	(void)state;
	begin();
	begin_loop();
	ask_ok(&a, "migrate", move_uri("wire.sock"));
	assert_int_equal(host_reap(&a, START_MS), 0);
	wait_state(&b, "solo", GOES_ON_MS);
	end_loop(&b);
	writes(&b, 9000, 5);
	check_and_end(NULL);
}

/* The guest runs at B, its bitmaps are held on their way. */
static void move_and_hold(void)
{
	begin();
	begin_loop();
	proxy_hold(wire, FT_MSG_BITMAP);
	migrate_async();
	proxy_wait_held(wire, GOES_ON_MS);
	wait_state(&b, "solo", GOES_ON_MS);
	assert_int_equal(count(&b, true, false), GRANULARITIES + 1);
}

static void postcopy(void **state)
{
	char uri[300];

	(void)state;
	move_and_hold();
	end_loop(&b);
	writes(&b, 9000, 5);
	assert_int_equal(count(&b, true, false), GRANULARITIES + 1);
	bitmap_refused(&b, "sha256", "g4096", "still arriving");
	bitmap_refused(&b, "clear", "g4096", "migrated");
	bitmap_refused(&b, "remove", "g4096", "still arriving");
	/* No backup is made from half a bitmap. */
	export_of(&b, uri);
	shell("! nbdinfo --map=qemu:dirty-bitmap:g4096 '%s' > /dev/null 2>&1", uri);
	shell("! qemu-img map --image-opts driver=nbd,export=root,server.type=unix,server.path=%s,"
	      "x-dirty-bitmap=qemu:dirty-bitmap:g4096 > /dev/null 2>&1",
	      strstr(uri, "socket=") + 7);
	proxy_release(wire);
	assert_int_equal(host_reap(&a, START_MS), 0);
	check_and_end(NULL);
}

static void lost_and_recovered(void **state)
{
	Ctl__Request r = CTL__REQUEST__INIT;
	Ctl__Reply *reply;

	(void)state;
	move_and_hold();
	proxy_stop(wire);
	wait_migration_cut(&a);
	wait_migration_cut(&b);
	assert_int_equal(count(&b, true, false), GRANULARITIES + 1);
	bitmap_ok(&b, "remove", "g1024", 0); /* nobody has to wait for it */
	assert_int_equal(count(&b, true, false), GRANULARITIES);
	shell("rm -f %s", at("wire.sock"));
	wire = proxy_start(at("wire.sock"), at("b.sock"));
	r.command = (char *)"migrate";
	r.uri = (char *)"";
	r.recover = true;
	reply = ask_any(&a, &r);
	if (reply->error[0])
		fail_msg("A: %s", reply->message);
	ctl__reply__free_unpacked(reply, NULL);
	assert_int_equal(host_reap(&a, START_MS), 0);
	end_loop(&b);
	writes(&b, 9000, 5);
	check_and_end("g1024");
}

/* Nothing happened to the source's, and nothing is left at the target. */
static void failed(void **state)
{
	(void)state;
	begin();
	begin_loop();
	proxy_hold(wire, FT_MSG_MISSING); /* of the switch: the guest stands still */
	migrate_async();
	proxy_wait_held(wire, GOES_ON_MS);
	bitmap_refused(&a, "add", "more", "migrated");
	bitmap_refused(&a, "remove", "g512", "migrated");
	assert_int_equal(count(&a, false, true), 0);
	proxy_stop(wire);
	wire = NULL;
	wait_state(&a, "solo", GOES_ON_MS);
	end_loop(&a);
	writes(&a, 9000, 5);
	assert_int_equal(count(&a, false, true), GRANULARITIES);
	assert_int_equal(count(&a, false, false), 1);
	expect_model(&a, NULL);
	bitmap_ok(&a, "add", "more", 65536);
	host_stop(&b);
	assert_int_not_equal(access(at("B.img.kemari-bitmaps"), F_OK), 0);
	host_stop(&a);
	assert_int_equal(children(), 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(precopy),
		TEST(postcopy),
		TEST(lost_and_recovered),
		TEST(failed),
	};
	int failures;

	need_qemu();
	if (system("command -v nbdinfo > /dev/null && command -v qemu-img > /dev/null") != 0) {
		printf("skipped: nbdinfo or qemu-img is not installed\n");
		return 77;
	}
	place_open();
	failures = cmocka_run_group_tests(tests, NULL, NULL);
	return failures + place_close();
}
