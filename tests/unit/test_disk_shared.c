// SPDX-License-Identifier: Apache-2.0
// A shared disk, written to over NBD as a VMM would: reads are compared with a model in memory, and
// the image never has what was not released. Who may write is another host's business now and then.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libnbd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "eventtap/block/bitmaps.h"
#include "eventtap/block/metadata.h"
#include "tests/fixture/clock.h"
#include "tests/fixture/disk_lab.h"
#include "tests/fixture/disk_writers.h"

#define DEADLINE_MS 10000

static const uint8_t blank[DISK_LAB_BYTES];
static uint8_t scratch[4096], ours[DISK_LAB_BYTES], theirs[DISK_LAB_BYTES], model[DISK_LAB_BYTES];

static void expect_model(struct nbd_handle *nbd)
{
	assert_int_equal(nbd_pread(nbd, ours, DISK_LAB_BYTES, 0, 0), 0);
	assert_memory_equal(ours, model, DISK_LAB_BYTES);
}

static int zero_extents(void *ctx, const char *context, uint64_t offset, uint32_t *entries,
			size_t n, int *error)
{
	(void)context;
	(void)error;
	uint64_t *end = ctx;
	for (size_t i = 0; i < n; i += 2) {
		if (entries[i + 1] & LIBNBD_STATE_ZERO)
			assert_memory_equal(model + offset, blank, entries[i]);
		offset += entries[i];
	}
	*end = offset;
	return 0;
}

static void test_shared(void **state)
{
	(void)state;
	static uint8_t at_close[2][DISK_LAB_BYTES];
	disk_lab_image(lab.image, DISK_LAB_BYTES);
	disk_lab_open(true, DISK_TAP_LOG_BYTES);
	memset(model, 0, DISK_LAB_BYTES);
	disk_lab_add_bitmaps();
	struct writer *w = writers_new(99, DISK_LAB_BYTES);
	for (int i = 0; i < 50; i++)
		assert_int_equal(writer_op(w, model), 0);
	disk_lab_read(lab.image, ours);
	assert_memory_equal(ours, model, DISK_LAB_BYTES); // PASS
	disk_tap_mark_all_behind(lab.tap);
	assert_int_equal(disk_tap_behind_bytes(lab.tap), 0); // the peer has this very image
	tap_chain_set_mode(&lab.chain, TAP_HOLD);
	disk_lab_close_epoch(1);
	memcpy(at_close[1], model, DISK_LAB_BYTES);
	for (uint64_t epoch = 2; epoch <= 60; epoch++) {
		for (int i = 0; i < 30; i++)
			assert_int_equal(writer_op(w, model), 0);
		expect_model(w[1].nbd);
		disk_lab_read(lab.image, ours);
		assert_memory_equal(ours, at_close[1],
				    DISK_LAB_BYTES); // nothing of it has reached the image
		disk_lab_close_epoch(epoch);
		memcpy(at_close[0], model, DISK_LAB_BYTES);
		for (int i = 0; i < 5; i++)
			assert_int_equal(writer_op(w, model), 0);
		assert_int_equal(tap_chain_release(&lab.chain, epoch, &lab.err), 0);
		disk_lab_read(lab.image, ours);
		assert_memory_equal(ours, at_close[0], DISK_LAB_BYTES);
		memcpy(at_close[1], at_close[0], DISK_LAB_BYTES);
		expect_model(w[1].nbd);
		for (uint64_t offset = 0; offset < DISK_LAB_BYTES;) {
			nbd_extent_callback fn = {.callback = zero_extents, .user_data = &offset};
			assert_int_equal(
				nbd_block_status(w[0].nbd, DISK_LAB_BYTES - offset, offset, fn, 0),
				0);
		}
	}
	expect_model(w[2].nbd);
	tap_chain_set_mode(&lab.chain, TAP_PASS);
	disk_lab_expect_held(0);
	assert_int_equal(nbd_flush(w[0].nbd, 0), 0);
	disk_lab_read(lab.image, ours);
	assert_memory_equal(ours, model, DISK_LAB_BYTES);
	// What is not dirty is as it was.
	for (unsigned i = 0; i < 3; i++)
		for (uint64_t at = 0, len; at < DISK_LAB_BYTES; at += len) {
			bool dirty = true;
			len = DISK_LAB_BYTES - at;
			assert_int_equal(bitmaps_at(disk_tap_bitmaps(lab.tap), disk_lab_bitmaps[i],
						    at, &len, &dirty),
					 0);
			for (uint64_t byte = at; !dirty && byte < at + len; byte++)
				assert_int_equal(model[byte], 0);
		}
	writers_free(w);
}

// The descriptors that this process has of the image have these flags.
static unsigned image_descriptors(int flags)
{
	DIR *fds = opendir("/proc/self/fd");
	unsigned n = 0;
	for (struct dirent *e; (e = readdir(fds));) {
		char path[512], target[512];
		snprintf(path, sizeof(path), "/proc/self/fd/%s", e->d_name);
		ssize_t len = readlink(path, target, sizeof(target) - 1);
		target[len > 0 ? len : 0] = '\0';
		n += !strcmp(target, lab.image) &&
		     (fcntl(atoi(e->d_name), F_GETFL) & flags) == flags;
	}
	closedir(fds);
	return n;
}

// A lease that lapses in the middle: what was written is not written again, the rest later, and
// nothing is written without it. A write that has returned is on the storage.
static void test_gate(void **state)
{
	(void)state;
	enum { WRITES = 10 };
	static uint8_t block[4096];
	disk_lab_image(lab.image, DISK_LAB_BYTES);
	disk_lab_open(true, DISK_TAP_LOG_BYTES);
	assert_int_equal(image_descriptors(O_DSYNC), 1);
	tap_chain_set_mode(&lab.chain, TAP_HOLD);
	disk_lab_close_epoch(1);
	struct nbd_handle *nbd = disk_lab_connect();
	for (unsigned epoch = 2; epoch < 5; epoch++) {
		memset(block, (int)epoch, sizeof(block));
		for (unsigned i = 0; i < WRITES; i++)
			assert_int_equal(nbd_pwrite(nbd, block, sizeof(block), i * 8192, 0), 0);
		disk_lab_close_epoch(epoch);
		lab.gate.left = lab.gate.passed = 0;
		for (unsigned lapses = 0; lapses <= WRITES; lapses++) {
			disk_lab_read(lab.image, ours);
			for (unsigned i = 0; i < WRITES; i++)
				assert_int_equal(ours[i * 8192], i < lab.gate.passed ? epoch
								 : epoch == 2	     ? 0
										     : epoch - 1);
			int ret = tap_chain_release(&lab.chain, epoch, &lab.err);
			assert_int_equal(ret, lapses == WRITES ? 0 : -EAGAIN);
			lab.gate.left = 1;
		}
		assert_int_equal(lab.gate.passed, WRITES);
	}
	// Alone, by a grant: no lease is needed.
	lab.gate.left = 0;
	memset(block, 99, sizeof(block));
	assert_int_equal(nbd_pwrite(nbd, block, sizeof(block), 0, 0), 0);
	tap_chain_set_mode(&lab.chain, TAP_PASS);
	disk_lab_read(lab.image, ours);
	assert_int_equal(ours[0], 99);
	nbd_close(nbd);
}

static void checkpoint(uint64_t *epoch)
{
	disk_lab_close_epoch(++*epoch);
	assert_int_equal(tap_chain_release(&lab.chain, *epoch, &lab.err), 0);
}

// As many checkpoints as it takes: the log may be full of what the others wrote, and then a write
// is answered when it has been released, which nobody else here does.
static void write_through_checkpoints(struct nbd_handle *nbd, const uint8_t *buf, size_t len,
				      uint64_t offset, uint64_t *epoch)
{
	int64_t cookie = nbd_aio_pwrite(nbd, buf, len, offset, NBD_NULL_COMPLETION, 0);
	assert_true(cookie >= 0);
	uint64_t end = now_ms() + DEADLINE_MS;
	int done;
	while ((done = nbd_aio_command_completed(nbd, (uint64_t)cookie)) == 0) {
		assert_true(now_ms() < end);
		checkpoint(epoch);
		assert_true(nbd_poll(nbd, 0) >= 0);
	}
	assert_int_equal(done, 1);
}

// Readers and writers while epochs close and are released, in a log that is full again and again:
// every byte read is one that was written, none older than what was answered.
static void test_shared_race(void **state)
{
	(void)state;
	disk_lab_image(lab.image, DISK_LAB_BYTES);
	disk_lab_open(true, 512u << 10);
	tap_chain_set_mode(&lab.chain, TAP_HOLD);
	disk_lab_close_epoch(1);
	struct writer *w = writers_new(5, DISK_LAB_BYTES / 2);
	atomic_bool stop = false;
	writers_start(w, 0, &stop);
	struct nbd_handle *nbd = disk_lab_connect();
	uint64_t epoch = 1, end = now_ms() + 1000;
	uint8_t block[8192], back[8192];
	for (unsigned i = 0; now_ms() < end; i++) {
		memset(block, (int)i, sizeof(block));
		write_through_checkpoints(nbd, block, sizeof(block), DISK_LAB_BYTES - 65536,
					  &epoch);
		assert_int_equal(nbd_aio_pread(nbd, back, sizeof(back), DISK_LAB_BYTES - 65536,
					       NBD_NULL_COMPLETION, 0) >= 0,
				 1);
		checkpoint(&epoch);
		while (nbd_aio_in_flight(nbd) > 0)
			assert_true(nbd_poll(nbd, DEADLINE_MS) > 0);
		assert_memory_equal(back, block, sizeof(block));
		if (i % 16 == 15) {
			tap_chain_set_mode(&lab.chain, TAP_PASS);
			tap_chain_set_mode(&lab.chain, TAP_HOLD);
			disk_lab_close_epoch(++epoch);
		}
	}
	atomic_store(&stop, true);
	tap_chain_set_mode(&lab.chain, TAP_PASS); // or who waits for room is never done
	writers_join(w);
	assert_true(epoch > 20);
	assert_int_equal(nbd_pread(nbd, theirs, DISK_LAB_BYTES, 0, 0), 0);
	disk_lab_read(lab.image, ours);
	assert_memory_equal(ours, theirs, DISK_LAB_BYTES);
	nbd_close(nbd);
	writers_free(w);
}

static void test_yield(void **state)
{
	(void)state;
	struct metadata other;
	disk_lab_image(lab.image, DISK_LAB_BYTES);
	disk_lab_open(true, 4u << 20);
	assert_int_equal(disk_tap_set_protected(lab.tap, true, 3, &lab.err), 0);
	assert_int_equal(disk_tap_reclaim(lab.tap, 0, &lab.err), 0); // nothing to do
	assert_int_equal(metadata_open(lab.image, &other, &lab.err), -EBUSY);
	// The other host has it for the moment, but does not become its owner.
	assert_int_equal(disk_tap_yield(lab.tap, &lab.err), 0);
	assert_int_equal(metadata_open(lab.image, &other, &lab.err), 0);
	assert_int_equal(disk_tap_set_generation(lab.tap, 4, 0, &lab.err), -EBUSY);
	assert_int_equal(disk_tap_reclaim(lab.tap, 0, &lab.err), -EBUSY);
	metadata_close(&other);
	assert_int_equal(disk_tap_reclaim(lab.tap, 0, &lab.err), 0);
	assert_int_equal(metadata_open(lab.image, &other, &lab.err), -EBUSY);
	assert_int_equal(disk_tap_set_generation(lab.tap, 4, 0, &lab.err), 0);
	// It takes over, and runs the guest without holding the lock.
	assert_int_equal(disk_tap_yield(lab.tap, &lab.err), 0);
	struct store *s;
	assert_int_equal(
		store_open("root", lab.image, STORE_SHARED, DISK_LAB_BYTES, "", &s, &lab.err), 0);
	assert_int_equal(store_commit(s, 4, 9, &lab.err), 0);
	assert_int_equal(store_activate(s, 5, 9, true, &lab.err), 0);
	store_free(s);
	assert_int_equal(disk_tap_reclaim(lab.tap, 0, &lab.err), -EBUSY);
	assert_non_null(strstr(lab.err.text, "generation 5"));
	// However often it is asked.
	assert_int_equal(disk_tap_reclaim(lab.tap, 0, &lab.err), -EBUSY);
	assert_int_equal(disk_tap_reclaim(lab.tap, 6, &lab.err), -EBUSY);
	// It could not run the guest, and says so.
	assert_int_equal(disk_tap_reclaim(lab.tap, 5, &lab.err), 0);
	assert_int_equal(metadata_open(lab.image, &other, &lab.err), -EBUSY);
	assert_int_equal(disk_tap_set_generation(lab.tap, 6, 0, &lab.err), 0);
	assert_int_equal(disk_tap_yield(lab.tap, &lab.err), 0);
	assert_int_equal(disk_tap_reclaim(lab.tap, 5, &lab.err), 0);
	tap_chain_discard(&lab.chain);
	assert_int_equal(disk_tap_reclaim(lab.tap, 0, &lab.err), -ESHUTDOWN);
}

static void test_replay(void **state)
{
	(void)state;
	disk_lab_image(lab.image, DISK_LAB_BYTES);
	disk_lab_open(true, 4u << 20);
	memset(scratch, 9, 4096);
	struct tap_record rec = {
		.kind = TAP_DISK_WRITE, .device = 2, .arg = 512, .len = 4096, .data = scratch};
	assert_int_equal(tap_chain_replay(&lab.chain, &rec, &lab.err), 0);
	rec.arg = DISK_LAB_BYTES;
	assert_int_equal(tap_chain_replay(&lab.chain, &rec, &lab.err), -EPROTO);
	rec = (struct tap_record){.kind = TAP_DISK_FLUSH, .device = 2};
	assert_int_equal(tap_chain_replay(&lab.chain, &rec, &lab.err), 0);
	disk_lab_read(lab.image, ours);
	assert_int_equal(ours[512], 9);
	assert_int_equal(ours[4607], 9);
	assert_int_equal(ours[4608], 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_shared, disk_lab_setup, disk_lab_teardown),
		cmocka_unit_test_setup_teardown(test_gate, disk_lab_setup, disk_lab_teardown),
		cmocka_unit_test_setup_teardown(test_shared_race, disk_lab_setup,
						disk_lab_teardown),
		cmocka_unit_test_setup_teardown(test_yield, disk_lab_setup, disk_lab_teardown),
		cmocka_unit_test_setup_teardown(test_replay, disk_lab_setup, disk_lab_teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
