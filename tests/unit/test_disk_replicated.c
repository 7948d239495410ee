// SPDX-License-Identifier: Apache-2.0
// A replicated disk, written to over NBD as a VMM would: what a standby makes of the copy and of
// the epochs is compared byte for byte with the primary's image, through failed checkpoints and
// lost standbys.
#include <errno.h>
#include <libnbd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cmocka.h>

#include "eventtap/block/bitmaps.h"
#include "eventtap/block/metadata.h"
#include "tests/fixture/clock.h"
#include "tests/fixture/disk_lab.h"
#include "tests/fixture/disk_writers.h"

#define EPOCHS 200

static uint8_t scratch[1 << 20], ours[DISK_LAB_BYTES], theirs[DISK_LAB_BYTES];

static void expect_identical(const char *when, uint64_t n)
{
	disk_lab_read(lab.image, ours);
	disk_lab_read(lab.copy, theirs);
	if (memcmp(ours, theirs, DISK_LAB_BYTES) == 0)
		return;
	for (uint64_t i = 0; i < DISK_LAB_BYTES; i++)
		if (ours[i] != theirs[i])
			fail_msg("%s %llu: byte %llu differs: %02x, copy %02x", when,
				 (unsigned long long)n, (unsigned long long)i, ours[i], theirs[i]);
}

static void read_map(struct bitmaps *s, unsigned i, uint8_t map[8192], struct bitmap_info *info)
{
	assert_true(bitmaps_info(s, i, info));
	assert_true(info->map_bytes <= 8192);
	assert_int_equal(bitmaps_read(s, info->name, 0, map, info->map_bytes), 0);
}

// The standby's are the tap's as of the epoch that was closed last.
static void expect_same_bitmaps(struct store *s, const char *when, uint64_t epoch)
{
	for (unsigned i = 0; i < 3; i++) {
		uint8_t here[8192], there[8192];
		struct bitmap_info a, b;
		read_map(disk_tap_bitmaps(lab.tap), i, here, &a);
		read_map(store_bitmaps(s), i, there, &b);
		if (memcmp(&a, &b, sizeof(a)) != 0 || memcmp(here, there, a.map_bytes) != 0)
			fail_msg("%s %llu: bitmap %s: %llu bytes dirty here, %llu there", when,
				 (unsigned long long)epoch, a.name,
				 (unsigned long long)a.dirty_bytes,
				 (unsigned long long)b.dirty_bytes);
	}
}

static void test_copy_under_writes(void **state)
{
	(void)state;
	disk_lab_image(lab.image, DISK_LAB_BYTES);
	disk_lab_open(false, DISK_TAP_LOG_BYTES);
	struct store *s = disk_lab_store();
	struct writer *w = writers_new(1, DISK_LAB_BYTES);
	writers_start(w, 100, NULL);
	writers_join(w);
	assert_int_equal(disk_tap_behind_bytes(lab.tap), 0); // PASS remembers nothing
	disk_tap_mark_all_behind(lab.tap);
	assert_int_equal(disk_tap_behind_bytes(lab.tap), DISK_LAB_BYTES);
	tap_chain_set_mode(&lab.chain, TAP_TRACK);
	atomic_bool stop = false;
	writers_start(w, 0, &stop);
	unsigned copied = 0;
	for (uint64_t end = now_ms() + 1000; now_ms() < end;)
		copied += disk_lab_sync(s, 20);
	atomic_store(&stop, true);
	writers_join(w);
	while (disk_lab_sync(s, 100))
		;
	assert_true(copied > DISK_LAB_BYTES / (256u << 10));
	assert_int_equal(disk_tap_behind_bytes(lab.tap), 0);
	expect_identical("copy", 0);
	// A range by hand; holes come as holes.
	disk_tap_mark_range_behind(lab.tap, 65536 * 3 - 1, 2);
	assert_int_equal(disk_tap_behind_bytes(lab.tap), 65536 * 2);
	assert_int_equal(nbd_trim(w[0].nbd, 65536 * 4, 0, 0), 0);
	uint64_t offset;
	uint32_t len;
	bool zero = false;
	assert_int_equal(
		disk_tap_sync_next(lab.tap, scratch, 65536, &offset, &len, &zero, &lab.err), 1);
	assert_true(zero);
	writers_free(w);
	store_free(s);
}

// Random writers on overlapping ranges, checkpoints that fail, protection that is lost and comes
// back.
static void test_epochs(void **state)
{
	(void)state;
	unsigned seed = 4711;
	disk_lab_image(lab.image, DISK_LAB_BYTES);
	disk_lab_open(false, DISK_TAP_LOG_BYTES);
	struct store *s = disk_lab_store();
	struct writer *w = writers_new(77, 1u << 20);
	disk_lab_add_bitmaps();
	disk_tap_mark_all_behind(lab.tap);
	tap_chain_set_mode(&lab.chain, TAP_TRACK);
	writers_start(w, 20, NULL);
	disk_lab_sync(s, 10);
	writers_join(w);
	tap_chain_set_mode(&lab.chain, TAP_HOLD);
	for (uint64_t epoch = 1; epoch <= EPOCHS; epoch++) {
		w[0].hot = w[1].hot = w[2].hot = epoch % 10 ? 1u << 20 : DISK_LAB_BYTES;
		writers_start(w, (unsigned)rand_r(&seed) % 8, NULL);
		writers_join(w);
		disk_lab_close_epoch(epoch);
		assert_int_equal(disk_tap_behind_bytes(lab.tap), 0);
		unsigned luck = (unsigned)rand_r(&seed) % 16;
		if (luck ==
		    0) { // the checkpoint failed: the same epoch again, with what came since
			writers_start(w, 3, NULL);
			writers_join(w);
			disk_lab_close_epoch(epoch);
		} else if (luck == 1) { // the standby is lost and comes back
			tap_chain_set_mode(&lab.chain, rand_r(&seed) % 2 ? TAP_TRACK : TAP_PASS);
			disk_lab_expect_held(0);
			tap_chain_set_mode(&lab.chain, TAP_TRACK);
			writers_start(w, 5, NULL);
			disk_lab_sync(s, 2);
			writers_join(w);
			tap_chain_set_mode(&lab.chain, TAP_HOLD);
			disk_lab_close_epoch(epoch);
		}
		disk_lab_ship(s, epoch, &seed);
		assert_int_equal(store_commit(s, 1, epoch, &lab.err), 0);
		expect_identical("epoch", epoch);
		expect_same_bitmaps(s, "epoch", epoch);
		if (epoch % 7 == 0)
			assert_int_equal(bitmaps_clear(disk_tap_bitmaps(lab.tap),
						       disk_lab_bitmaps[epoch % 3], &lab.err),
					 0);
		if (rand_r(&seed) % 4) {
			assert_int_equal(tap_chain_release(&lab.chain, epoch, &lab.err), 0);
			disk_lab_expect_held(0);
		}
	}
	assert_int_equal(lab.outputs, 0);
	assert_int_equal(store_activate(s, 2, EPOCHS, true, &lab.err), 0);
	expect_identical("activated", EPOCHS);
	writers_free(w);
	store_free(s);
}

static void test_full_disk(void **state)
{
	(void)state;
	if (mount("tmpfs", lab.dir, "tmpfs", 0, "size=4m") < 0) {
		print_message("needs to mount a tmpfs: %s\n", strerror(errno));
		skip();
	}
	disk_lab_image(lab.image, DISK_LAB_BYTES);
	snprintf(lab.copy, sizeof(lab.copy), "%s-copy.img", lab.dir);
	disk_lab_open(false, DISK_TAP_LOG_BYTES);
	struct store *s = disk_lab_store();
	disk_tap_mark_all_behind(lab.tap);
	tap_chain_set_mode(&lab.chain, TAP_TRACK);
	tap_chain_set_mode(&lab.chain, TAP_HOLD);
	disk_lab_close_epoch(1);
	unsigned seed = 3;
	disk_lab_ship(s, 1, &seed);
	struct nbd_handle *nbd = disk_lab_connect();
	memset(ours, 0xab, 6u << 20);
	assert_int_equal(nbd_pwrite(nbd, ours, 1u << 20, 0, 0), 0);
	assert_int_equal(nbd_pwrite(nbd, ours, 6u << 20, 1u << 20, 0), -1);
	assert_int_equal(nbd_get_errno(), ENOSPC);
	struct disk_tap_info info;
	disk_tap_info(lab.tap, &info);
	assert_int_equal(info.io_errors, 1);
	assert_non_null(strstr(info.last_error, "No space left"));
	// The part that was written is in the epoch all the same.
	assert_true(disk_tap_behind_bytes(lab.tap) > 0);
	disk_lab_close_epoch(2);
	assert_int_equal(disk_tap_behind_bytes(lab.tap), 0);
	disk_lab_ship(s, 2, &seed);
	assert_int_equal(store_commit(s, 1, 2, &lab.err), 0);
	expect_identical("full disk", 2);
	// The tap lives: there is room again.
	assert_int_equal(nbd_trim(nbd, 7u << 20, 0, 0), 0);
	assert_int_equal(nbd_pwrite(nbd, ours, 1u << 20, 7u << 20, LIBNBD_CMD_FLAG_FUA), 0);
	disk_lab_close_epoch(3);
	disk_lab_ship(s, 3, &seed);
	assert_int_equal(store_commit(s, 1, 3, &lab.err), 0);
	expect_identical("room again", 3);
	nbd_close(nbd);
	store_free(s);
	unlink(lab.copy);
	char path[128];
	snprintf(path, sizeof(path), "%s" METADATA_SUFFIX, lab.copy);
	unlink(path);
}

// No room for the log either: the bitmap remembers, and the epoch is whole once there is room.
static void test_no_spill(void **state)
{
	(void)state;
	disk_lab_image(lab.image, DISK_LAB_BYTES);
	disk_lab_open(false, 2u << 20);
	struct store *s = disk_lab_store();
	disk_tap_mark_all_behind(lab.tap);
	tap_chain_set_mode(&lab.chain, TAP_TRACK);
	while (disk_lab_sync(s, 100))
		;
	tap_chain_set_mode(&lab.chain, TAP_HOLD);
	disk_lab_close_epoch(1);
	disk_tap_firing(lab.tap, true);
	struct nbd_handle *nbd = disk_lab_connect();
	// Even root creates no file in a folder that is not there.
	char away[96];
	snprintf(away, sizeof(away), "%s-away", lab.dir);
	assert_int_equal(rename(lab.dir, away), 0);
	for (unsigned i = 0; i < 16; i++) {
		memset(scratch, (int)i + 1, 256u << 10);
		assert_int_equal(nbd_pwrite(nbd, scratch, 256u << 10, i * (256u << 10), 0), 0);
	}
	assert_true(disk_tap_behind_bytes(lab.tap) > 0);
	assert_true(tap_chain_close_epoch(&lab.chain, 2, &lab.err) < 0);
	assert_non_null(strstr(lab.err.text, "what the peer lacks"));
	assert_int_equal(rename(away, lab.dir), 0);
	disk_lab_close_epoch(2);
	assert_int_equal(disk_tap_behind_bytes(lab.tap), 0);
	unsigned seed = 8;
	disk_lab_ship(s, 2, &seed);
	assert_int_equal(store_commit(s, 1, 2, &lab.err), 0);
	expect_identical("no spill", 2);
	nbd_close(nbd);
	store_free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_copy_under_writes, disk_lab_setup,
						disk_lab_teardown),
		cmocka_unit_test_setup_teardown(test_epochs, disk_lab_setup, disk_lab_teardown),
		cmocka_unit_test_setup_teardown(test_full_disk, disk_lab_setup, disk_lab_teardown),
		cmocka_unit_test_setup_teardown(test_no_spill, disk_lab_setup, disk_lab_teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
