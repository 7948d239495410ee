// SPDX-License-Identifier: Apache-2.0
// What a returning host is sent: a primary's disk tap and a standby's store compare their images,
// and only what differs is behind. Both images are real files with holes.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "eventtap/block/disk_sums.h"
#include "eventtap/block/disk_tap.h"
#include "eventtap/store.h"

#define GIB   (1ull << 30)
#define BLOCK DISK_TAP_BLOCK_BYTES
#define SUMS  32
#define SEED  0x5eedull

static char dir[64];
static struct ft_err err;
static struct tap *tap;
static struct store *store;

static const char *at(const char *name)
{
	static char path[2][128];
	static unsigned turn;
	snprintf(path[++turn % 2], sizeof(path[0]), "%s/%s", dir, name);
	return path[turn % 2];
}

static void make_image(const char *name, uint64_t bytes)
{
	int fd = open(at(name), O_RDWR | O_CREAT | O_EXCL, 0600);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
	close(fd);
}

static void put(const char *name, uint64_t offset, uint8_t value, size_t len)
{
	uint8_t *data = malloc(len);
	int fd = open(at(name), O_RDWR);
	memset(data, value, len);
	assert_int_equal(pwrite(fd, data, len, (off_t)offset), len);
	close(fd);
	free(data);
}

static int setup(void **state)
{
	(void)state;
	strcpy(dir, "/tmp/kemari-resync-XXXXXX");
	assert_non_null(mkdtemp(dir));
	return 0;
}

static int teardown(void **state)
{
	static const char *const names[] = {"a.img",	    "b.img", "a.img.kemari",
					    "b.img.kemari", "nbd",   "empty.img"};
	(void)state;
	if (tap)
		tap->ops->free(tap);
	store_free(store);
	tap = NULL;
	store = NULL;
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		unlink(at(names[i]));
	return rmdir(dir);
}

static void open_both(uint64_t bytes)
{
	struct disk_tap_config config = {.id = "d0",
					 .image = at("a.img"),
					 .format_raw = true,
					 .log_bytes_max = 8u << 20,
					 .spill_dir = dir};
	char socket[128];
	snprintf(socket, sizeof(socket), "%s", at("nbd"));
	config.image = at("a.img");
	config.socket = socket;
	if (disk_tap_open(&config, &tap, &err) < 0)
		fail_msg("%s", err.text);
	tap->ops->set_mode(tap, TAP_TRACK);
	if (store_open("d0", at("b.img"), STORE_REPLICATED, bytes, "", &store, &err) < 0)
		fail_msg("%s", err.text);
	disk_tap_mark_all_behind(tap);
}

// What would go over the wire for the comparison, and in how many messages.
static uint64_t compare(uint64_t *alike, unsigned *messages)
{
	uint8_t sums[SUMS * DISK_SUM_BYTES];
	uint64_t from = 0, offset = 0, part, wire = 0;
	struct store_sums_range range;
	*alike = *messages = 0;
	for (int ret; (ret = store_sums(store, SEED, &from, SUMS, &range, sums, &err));
	     offset += range.bytes) {
		assert_int_equal(ret, 1);
		assert_int_equal(from, offset + range.bytes);
		ret = range.unchanged ? disk_tap_unchanged(tap, offset, range.bytes, &part, &err)
				      : disk_tap_compare(tap, SEED, offset, range.bytes,
							 range.zero ? NULL : sums, &part, &err);
		if (ret < 0)
			fail_msg("%s", err.text);
		*alike += part;
		wire += range.zero || range.unchanged
				? 0
				: (range.bytes + BLOCK - 1) / BLOCK * DISK_SUM_BYTES;
		++*messages;
	}
	return wire;
}

// Sends what is behind. Returns its bytes.
static uint64_t copy(void)
{
	static uint8_t buf[256u << 10];
	uint64_t offset, sent = 0;
	uint32_t len;
	bool zero;
	for (int ret; (ret = disk_tap_sync_next(tap, buf, sizeof(buf), &offset, &len, &zero, &err));
	     sent += zero ? 0 : len) {
		assert_int_equal(ret, 1);
		assert_int_equal(
			store_sync_write(store, offset, zero ? NULL : buf, len, zero, &err), 0);
	}
	return sent;
}

static void expect_equal(uint64_t bytes)
{
	static uint8_t a[1u << 20], b[1u << 20];
	int fa = open(at("a.img"), O_RDONLY), fb = open(at("b.img"), O_RDONLY);
	for (uint64_t i = 0; i < bytes; i += sizeof(a)) {
		ssize_t n = pread(fa, a, sizeof(a), (off_t)i);
		assert_int_equal(pread(fb, b, sizeof(b), (off_t)i), n);
		assert_memory_equal(a, b, (size_t)n);
	}
	close(fa);
	close(fb);
}

// 1 GiB, a quarter of it in use; then 1 % of it, in places all over it, differs.
static void test_one_percent(void **state)
{
	(void)state;
	uint64_t alike, wire, sent, changed = 0;
	unsigned messages;
	make_image("a.img", GIB);
	make_image("b.img", GIB);
	for (uint64_t i = 0; i < GIB; i += 4 << 20) {
		put("a.img", i, (uint8_t)(i >> 22), 1 << 20);
		put("b.img", i, (uint8_t)(i >> 22), 1 << 20);
	}
	for (uint64_t i = 0; i < GIB / 100; i += BLOCK, changed += BLOCK)
		put("a.img", (i * 97) % GIB / BLOCK * BLOCK + 100, 0xaa, 4096);
	open_both(GIB);
	wire = compare(&alike, &messages);
	sent = copy();
	print_message("1 GiB, 256 MiB in use, %.1f MiB of blocks changed: %llu KiB of sums in %u "
		      "messages, %.1f MiB sent\n",
		      (double)changed / (1 << 20), (unsigned long long)wire >> 10, messages,
		      (double)sent / (1 << 20));
	assert_true(sent >= changed && sent <= changed + (1 << 20));
	assert_true(wire <= 128 << 10);
	assert_int_equal(alike + sent, GIB);
	expect_equal(GIB);
}

// Whatever either side wrote on its own, in data, in holes and at an end that is no whole block.
static void test_any_difference(void **state)
{
	(void)state;
	const uint64_t bytes = (8u << 20) + 5000;
	uint64_t alike;
	unsigned messages;
	make_image("a.img", bytes);
	make_image("b.img", bytes);
	put("a.img", 0, 1, 3 << 20);
	put("b.img", 0, 1, 3 << 20);
	put("b.img", 1 << 20, 7, 1);	      // the old primary's own write
	put("a.img", (2 << 20) + 77, 8, 100); // the survivor's
	put("b.img", 5 << 20, 9, 70000);      // where the survivor has a hole
	put("a.img", 6 << 20, 9, 70000);      // where the old primary has one
	put("a.img", bytes - 1, 3, 1);
	open_both(bytes);
	compare(&alike, &messages);
	assert_true(alike > (6u << 20));
	assert_true(disk_tap_behind_bytes(tap) <= 7 * BLOCK);
	assert_int_equal(copy(), 7 * BLOCK - 2 * BLOCK - BLOCK + 5000);
	expect_equal(bytes);
}

// A store that was just made has nothing: no byte of the other image is read for that.
static void test_empty(void **state)
{
	(void)state;
	uint64_t alike;
	unsigned messages;
	make_image("a.img", 64u << 20);
	put("a.img", 10u << 20, 5, 1u << 20);
	open_both(64u << 20);
	assert_int_equal(compare(&alike, &messages), 0);
	assert_int_equal(messages, 1);
	assert_int_equal(alike, 63u << 20);
	assert_int_equal(copy(), 1u << 20);
	expect_equal(64u << 20);
}

static void test_hostile_ranges(void **state)
{
	(void)state;
	uint8_t sums[SUMS * DISK_SUM_BYTES] = {0};
	uint64_t alike;
	make_image("a.img", 1u << 20);
	make_image("b.img", 1u << 20);
	open_both(1u << 20);
	static const uint64_t bad[][2] = {
		{0, 0},		 {0, UINT64_MAX},     {BLOCK / 2, BLOCK},
		{0, BLOCK / 2},	 {1u << 20, BLOCK},   {0, 2u << 20},
		{UINT64_MAX, 1}, {BLOCK, UINT64_MAX}, {BLOCK, 1u << 20},
	};
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		assert_int_equal(
			disk_tap_compare(tap, SEED, bad[i][0], bad[i][1], sums, &alike, &err),
			-EPROTO);
	assert_int_equal(disk_tap_behind_bytes(tap), 1u << 20);
	// Sums of another seed say nothing.
	uint8_t block[BLOCK] = {0};
	disk_sum(block, sizeof(block), SEED + 1, sums);
	put("a.img", 0, 0, BLOCK);
	assert_int_equal(disk_tap_compare(tap, SEED, 0, BLOCK, sums, &alike, &err), 0);
	assert_int_equal(alike, 0);
	disk_sum(block, sizeof(block), SEED, sums);
	assert_int_equal(disk_tap_compare(tap, SEED, 0, BLOCK, sums, &alike, &err), 0);
	assert_int_equal(alike, BLOCK);
	// Twice is once.
	assert_int_equal(disk_tap_compare(tap, SEED, 0, BLOCK, sums, &alike, &err), 0);
	assert_int_equal(alike, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_one_percent, setup, teardown),
		cmocka_unit_test_setup_teardown(test_any_difference, setup, teardown),
		cmocka_unit_test_setup_teardown(test_empty, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hostile_ranges, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
