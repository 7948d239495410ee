// SPDX-License-Identifier: Apache-2.0
// A disk tap whose log is full, and one that is fenced, of either kind of disk: who waits, who is
// answered, and what the metadata say afterwards.
#include <errno.h>
#include <libnbd.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "eventtap/block/metadata.h"
#include "tests/fixture/clock.h"
#include "tests/fixture/disk_lab.h"

#define DEADLINE_MS 10000

static uint8_t scratch[1 << 20];

struct filler {
	pthread_t thread;
	struct nbd_handle *nbd;
	unsigned n;
	atomic_uint done;
	int ret;
};

// n writes of 256 KiB.
static void *filler_main(void *arg)
{
	struct filler *f = arg;
	static uint8_t block[256u << 10];
	for (unsigned i = 0; i < f->n && f->ret == 0; i++) {
		f->ret = nbd_pwrite(f->nbd, block, sizeof(block), (i % 16) * sizeof(block), 0);
		atomic_fetch_add(&f->done, 1);
	}
	return NULL;
}

static void wait_waiting(unsigned n)
{
	struct disk_tap_info info;
	for (uint64_t end = now_ms() + DEADLINE_MS;; nap()) {
		disk_tap_info(lab.tap, &info);
		if (info.writers_waiting == n)
			return;
		if (now_ms() > end)
			fail_msg("%u writers wait, not %u", info.writers_waiting, n);
	}
}

static void wait_done(struct filler *f, unsigned n)
{
	for (uint64_t end = now_ms() + DEADLINE_MS; f->done != n; nap())
		if (now_ms() > end)
			fail_msg("%u writes are done, not %u", f->done, n);
}

static void test_bounds(void **state)
{
	(void)state;
	struct disk_tap_info info;
	bool shared = *(bool *)*state;
	disk_lab_image(lab.image, DISK_LAB_BYTES);
	disk_lab_open(shared, 4u << 20);
	tap_chain_set_mode(&lab.chain, TAP_HOLD);
	disk_lab_close_epoch(1);
	struct filler f = {.nbd = disk_lab_connect(), .n = 64};
	assert_int_equal(pthread_create(&f.thread, NULL, filler_main, &f), 0);
	wait_waiting(1);
	assert_int_equal(lab.pressures, 1);
	wait_done(&f, 8); // half of 4 MiB
	// Released: as many again.
	disk_lab_close_epoch(2);
	assert_int_equal(tap_chain_release(&lab.chain, 2, &lab.err), 0);
	wait_done(&f, 16);
	wait_waiting(1);
	assert_int_equal(lab.pressures, 2);
	// A checkpoint fires: the rest is answered, in memory and beyond it in the file.
	disk_tap_firing(lab.tap, true);
	pthread_join(f.thread, NULL);
	assert_int_equal(f.ret, 0);
	disk_tap_info(lab.tap, &info);
	assert_true(info.spilled_bytes >= 8u << 20);
	disk_lab_close_epoch(3);
	disk_tap_firing(lab.tap, false);
	unsigned seed = 1;
	assert_true(disk_lab_ship(NULL, 3, &seed) > 48 * (256u << 10));
	assert_int_equal(nbd_pread(f.nbd, scratch, sizeof(scratch), 0, 0), 0);
	assert_int_equal(tap_chain_release(&lab.chain, 3, &lab.err), 0);
	disk_tap_info(lab.tap, &info);
	assert_int_equal(info.spilled_bytes, 0);
	assert_int_equal(info.log_bytes, 0);
	// A tap that ends answers those who wait.
	f.done = 0;
	assert_int_equal(pthread_create(&f.thread, NULL, filler_main, &f), 0);
	wait_waiting(1);
	disk_tap_info(lab.tap, &info);
	assert_int_equal(info.writers_waiting, 1);
	tap_chain_free(&lab.chain);
	pthread_join(f.thread, NULL);
	assert_int_equal(f.ret, -1);
	nbd_close(f.nbd);
}

static void test_fenced(void **state)
{
	(void)state;
	bool shared = *(bool *)*state;
	struct metadata_record record;
	disk_lab_image(lab.image, DISK_LAB_BYTES);
	disk_lab_open(shared, 4u << 20);
	assert_int_equal(disk_tap_set_generation(lab.tap, 5, 6, &lab.err), 0);
	assert_int_equal(metadata_read(lab.image, &record, &lab.err), 0);
	assert_int_equal(record.generation, 5);
	assert_int_equal(record.state, STORE_UP_TO_DATE);
	assert_string_equal(record.uuid, "00112233-4455-6677-8899-aabbccddeeff");
	assert_int_equal(disk_tap_set_protected(lab.tap, true, 7, &lab.err), 0);
	assert_int_equal(disk_tap_set_generation(lab.tap, 8, 0, &lab.err), 0); // does not end it
	assert_int_equal(metadata_read(lab.image, &record, &lab.err), 0);
	assert_int_equal(record.state, STORE_PROTECTED);
	assert_int_equal(record.generation, 8);
	assert_int_equal(store_check_startable(lab.image, STORE_RIGHT_NONE, &lab.err), -ESTALE);
	assert_non_null(strstr(lab.err.text, "was protected by a standby"));
	assert_int_equal(disk_tap_set_protected(lab.tap, false, 8, &lab.err), 0);
	// Whoever else could start from it now: the lock says that a guest runs from it.
	assert_int_equal(store_check_startable(lab.image, STORE_RIGHT_NONE, &lab.err), -EBUSY);
	tap_chain_set_mode(&lab.chain, TAP_HOLD);
	disk_lab_close_epoch(1);
	struct filler f = {.nbd = disk_lab_connect(), .n = 64};
	assert_int_equal(pthread_create(&f.thread, NULL, filler_main, &f), 0);
	wait_waiting(1); // who waits is refused too
	tap_chain_discard(&lab.chain);
	pthread_join(f.thread, NULL);
	assert_int_equal(f.ret, -1);
	disk_lab_expect_held(0);
	assert_int_equal(nbd_pwrite(f.nbd, scratch, 512, 0, 0), -1);
	assert_int_equal(nbd_get_errno(), ESHUTDOWN);
	assert_int_equal(nbd_flush(f.nbd, 0), -1);
	assert_int_equal(tap_chain_release(&lab.chain, 1, &lab.err), -ESHUTDOWN);
	assert_int_equal(tap_chain_close_epoch(&lab.chain, 2, &lab.err), -ESHUTDOWN);
	tap_chain_set_mode(&lab.chain, TAP_PASS); // does not lift it
	assert_int_equal(nbd_zero(f.nbd, 512, 0, 0), -1);
	assert_int_equal(metadata_read(lab.image, &record, &lab.err), 0);
	assert_int_equal(record.state, shared ? STORE_UP_TO_DATE : STORE_OUTDATED);
	if (shared) { // untouched, and free for the other host
		struct metadata other;
		assert_int_equal(metadata_open(lab.image, &other, &lab.err), 0);
		metadata_close(&other);
		struct stat st;
		assert_int_equal(stat(lab.image, &st), 0);
		assert_int_equal(st.st_blocks, 0);
	}
	nbd_close(f.nbd);
	tap_chain_free(&lab.chain);
	if (!shared) {
		assert_int_equal(store_check_startable(lab.image, STORE_RIGHT_NONE, &lab.err),
				 -ESTALE);
		const struct disk_tap_config config = {.id = "root",
						       .image = lab.image,
						       .socket = lab.sock,
						       .log_bytes_max = 4u << 20,
						       .spill_dir = lab.dir};
		assert_int_equal(disk_tap_open(&config, &lab.tap, &lab.err), -ESTALE);
	}
}

int main(void)
{
	static bool yes = true, no = false;
	const struct CMUnitTest tests[] = {
		{"test_bounds replicated", test_bounds, disk_lab_setup, disk_lab_teardown, &no},
		{"test_bounds shared", test_bounds, disk_lab_setup, disk_lab_teardown, &yes},
		{"test_fenced replicated", test_fenced, disk_lab_setup, disk_lab_teardown, &no},
		{"test_fenced shared", test_fenced, disk_lab_setup, disk_lab_teardown, &yes},
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
