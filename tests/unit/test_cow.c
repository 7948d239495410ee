// SPDX-License-Identifier: Apache-2.0
// Copies of a disk as it was at one moment, while writers change it as fast as they can: through
// the tap over NBD (writes, zeroes, trims, of all sizes, several connections), and through a
// standby's store. Whatever goes wrong with the copy, the writers do not notice.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <libnbd.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "eventtap/block/cow.h"
#include "eventtap/block/disk_tap.h"
#include "eventtap/block/image.h"
#include "eventtap/store.h"
#include "tests/unit/snapshot_fixture.h"

#define BYTES	((16u << 20) + 12345) /* the last block is a short one, and no whole page */
#define HOLE_AT (4u << 20)	      /* and a hole in the middle, of 4 MiB */
#define WRITERS 3
#define OP_MAX	(192u << 10)
#define ROUNDS	20

static uint8_t before[BYTES], copy[BYTES], after[BYTES];
static char image[128], sock[128];
static struct tap *tap;

/* What the copy wrote: each byte once, and only what it had to. */
static struct target {
	atomic_uint writes;
	bool pages[BYTES / COW_PAGE_BYTES + 1];
	unsigned twice, unaligned;
	int fail_with;	    /* the next write fails */
	atomic_bool closed; /* writes wait */
} target;

static int write_copy(void *ctx, uint64_t offset, const uint8_t *data, size_t len)
{
	(void)ctx;
	while (target.closed)
		poll(NULL, 0, 1);
	if (target.fail_with)
		return target.fail_with;
	assert_true(offset + len <= BYTES);
	target.unaligned += offset % COW_PAGE_BYTES || (uintptr_t)data % COW_PAGE_BYTES ||
			    (len % COW_PAGE_BYTES && offset + len != BYTES);
	for (uint64_t at = offset; at < offset + len; at += COW_PAGE_BYTES) {
		target.twice += target.pages[at / COW_PAGE_BYTES];
		target.pages[at / COW_PAGE_BYTES] = true;
	}
	memcpy(copy + offset, data, len);
	target.writes++;
	return 0;
}

// ---- the narrow places, held open: before a block is read, and after a hole was seen

static atomic_bool slow;

int __real_image_pread(const struct image *i, uint8_t *buf, uint64_t len, uint64_t offset);
int __wrap_image_pread(const struct image *i, uint8_t *buf, uint64_t len, uint64_t offset);
int __real_image_extent(const struct image *i, uint64_t offset, uint64_t len, uint64_t *extent,
			bool *hole);
int __wrap_image_extent(const struct image *i, uint64_t offset, uint64_t len, uint64_t *extent,
			bool *hole);

int __wrap_image_pread(const struct image *i, uint8_t *buf, uint64_t len, uint64_t offset)
{
	if (slow)
		poll(NULL, 0, 1);
	return __real_image_pread(i, buf, len, offset);
}

int __wrap_image_extent(const struct image *i, uint64_t offset, uint64_t len, uint64_t *extent,
			bool *hole)
{
	int rc = __real_image_extent(i, offset, len, extent, hole);

	if (slow)
		poll(NULL, 0, 1);
	return rc;
}

static void read_image(uint8_t *to)
{
	int fd = open(image, O_RDONLY | O_CLOEXEC);

	assert_int_equal(pread(fd, to, BYTES, 0), BYTES);
	close(fd);
}

static struct cow_config config_of(unsigned pool_blocks, unsigned stall_max_ms)
{
	return (struct cow_config){.image = image,
				   .pool_blocks = pool_blocks,
				   .stall_max_ms = stall_max_ms,
				   .write = write_copy};
}

static int setup(void **state)
{
	struct disk_tap_config config = {.id = "root",
					 .image = image,
					 .format_raw = true,
					 .socket = sock,
					 .log_bytes_max = DISK_TAP_LOG_BYTES,
					 .spill_dir = fixture_dir};
	unsigned seed = 1;
	int fd;

	(void)state;
	fixture_folder();
	snprintf(image, sizeof image, "%s", fixture_path("disk.img"));
	snprintf(sock, sizeof sock, "%s", fixture_path("disk.sock"));
	for (size_t i = 0; i < BYTES; i++)
		before[i] = (uint8_t)rand_r(&seed);
	fd = open(image, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(pwrite(fd, before, HOLE_AT, 0), HOLE_AT);
	assert_int_equal(pwrite(fd, before, BYTES - 2 * HOLE_AT, 2 * HOLE_AT), BYTES - 2 * HOLE_AT);
	close(fd);
	assert_ok(disk_tap_open(&config, &tap, err));
	memset(&target, 0, sizeof target);
	memset(copy, 0, sizeof copy);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	tap->ops->free(tap);
	fixture_remove();
	return 0;
}

// ---- who writes the disk

static struct writer {
	pthread_t thread;
	struct nbd_handle *nbd;
	unsigned seed;
	uint8_t bytes[OP_MAX];
} writers[WRITERS];
static atomic_bool stop;
static atomic_uint changes, refused;
static _Atomic uint64_t longest_ms;

static int change(struct writer *w)
{
	unsigned what = (unsigned)rand_r(&w->seed) % 16, len = 512;
	uint64_t at = (uint64_t)rand_r(&w->seed) % (BYTES / 512) * 512;

	len = what < 8 ? 512 * (1 + (unsigned)rand_r(&w->seed) % 8)
		       : 512 * (1 + (unsigned)rand_r(&w->seed) % (OP_MAX / 512));
	if (len > BYTES - at)
		len = (unsigned)(BYTES - at);
	for (unsigned i = 0; i < len; i += 64)
		w->bytes[i] = (uint8_t)rand_r(&w->seed);
	if (what < 13)
		return nbd_pwrite(w->nbd, w->bytes, len, at, 0);
	return what < 15 ? nbd_zero(w->nbd, len, at, 0) : nbd_trim(w->nbd, len, at, 0);
}

static void *write_on(void *ctx)
{
	struct writer *w = ctx;

	while (!stop) {
		uint64_t began = fixture_now_ms(), took;

		refused += change(w) != 0;
		took = fixture_now_ms() - began;
		if (took > longest_ms)
			longest_ms = took;
		changes++;
	}
	return NULL;
}

static void writers_start(void)
{
	stop = false;
	changes = refused = 0;
	longest_ms = 0;
	for (unsigned i = 0; i < WRITERS; i++) {
		struct writer *w = &writers[i];

		w->seed = i + 1;
		w->nbd = nbd_create();
		nbd_set_strict_mode(w->nbd, 0);
		assert_int_equal(nbd_connect_unix(w->nbd, sock), 0);
		pthread_create(&w->thread, NULL, write_on, w);
	}
}

static void writers_stop(void)
{
	stop = true;
	for (unsigned i = 0; i < WRITERS; i++) {
		pthread_join(writers[i].thread, NULL);
		nbd_close(writers[i].nbd);
	}
	assert_int_equal(refused, 0);
}

static void wait_changes(unsigned n)
{
	uint64_t until = fixture_now_ms() + FIXTURE_WAIT_MS;

	for (unsigned from = changes; changes - from < n; poll(NULL, 0, 1))
		assert_true(fixture_now_ms() < until);
}

// ---- who writes the copy

/* every: the image's order goes on at every n-th step only, so that the writers come first. */
static void save(struct cow *c, unsigned every)
{
	uint64_t until = fixture_now_ms() + FIXTURE_WAIT_MS, paid;

	for (unsigned i = 0;; i++) {
		enum cow_step step = cow_step(c, i % every == 0, &paid);

		if (step == COW_DONE)
			return;
		if (step == COW_WAIT)
			cow_wait(c, 1);
		assert_true(fixture_now_ms() < until);
	}
}

static void assert_copy(const uint8_t *of)
{
	assert_int_equal(target.twice, 0);
	assert_int_equal(target.unaligned, 0);
	for (size_t i = 0; i < BYTES; i++)
		if (copy[i] != of[i])
			fail_msg("byte %zu (block %zu): %02x in the copy, was %02x", i,
				 i / COW_BLOCK_BYTES, copy[i], of[i]);
}

/* The moment: as in a guest's pause nobody writes, for the writers' locks are ours. */
static void every_copy_is_the_moment(void **state)
{
	uint64_t copied = 0;

	(void)state;
	for (unsigned round = 0; round < ROUNDS; round++) {
		struct cow_config config = config_of(round % 3 ? 0 : 2, 5000);
		struct cow_progress p;
		uint64_t digest, disk = 0;
		struct cow *c;

		memset(&target, 0, sizeof target);
		memset(copy, 0, sizeof copy);
		assert_ok(cow_new(&config, &c, err));
		assert_ok(disk_tap_watch(tap, c, err));
		assert_ok(cow_digest(c, &digest, err));
		read_image(before);
		writers_start();
		slow = round % 2;
		save(c, slow ? 1 : 1 + round % 4 * 8);
		slow = false;
		writers_stop();
		disk_tap_unwatch(tap);
		assert_ok(cow_error(c, err));
		cow_progress(c, &p);
		assert_int_equal(p.bytes, BYTES);
		assert_int_equal(p.bytes_done, BYTES);
		assert_copy(before);
		assert_true(digest == XXH3_64bits(copy, BYTES));
		for (size_t i = 0; i <= BYTES / COW_PAGE_BYTES; i++)
			disk += target.pages[i];
		assert_true(p.bytes_written <= disk * COW_PAGE_BYTES);
		copied += p.copied;
		cow_unref(c);
	}
	read_image(after);
	assert_memory_not_equal(before, after, BYTES);
	print_message("%d rounds, %llu blocks copied aside\n", ROUNDS, (unsigned long long)copied);
	assert_true(copied > 100);
}

/* Nothing of a hole, or of zeroes that take room, is written. */
static void zeroes_are_left_out(void **state)
{
	struct cow_config config = config_of(0, 1000);
	static const uint8_t zeroes[1 << 20];
	struct cow_progress p;
	struct cow *c;
	int fd = open(image, O_RDWR | O_CLOEXEC);

	(void)state;
	assert_int_equal(pwrite(fd, zeroes, sizeof zeroes, 0), sizeof zeroes);
	assert_int_equal(pwrite(fd, "x", 1, HOLE_AT + 12345), 1);
	close(fd);
	assert_ok(cow_new(&config, &c, err));
	read_image(before);
	save(c, 1);
	cow_progress(c, &p);
	assert_int_equal(p.bytes_written, BYTES - HOLE_AT - sizeof zeroes + COW_PAGE_BYTES);
	assert_copy(before);
	cow_unref(c);
}

/* The storage of the copy stands still: the writers wait once, for as long as they may. */
static void slow_target_is_given_up(void **state)
{
	struct cow_config config = config_of(4, 200);
	struct ft_err error = {0};
	struct cow *c;

	(void)state;
	assert_ok(cow_new(&config, &c, err));
	assert_ok(disk_tap_watch(tap, c, err));
	writers_start();
	/* Nobody calls cow_step(). */
	wait_changes(200);
	writers_stop();
	assert_int_equal(cow_error(c, &error), -ETIMEDOUT);
	assert_non_null(strstr(error.text, "longer than 200 ms"));
	assert_int_equal(cow_step(c, true, &(uint64_t){0}), COW_DONE);
	print_message("longest write: %llu ms\n", (unsigned long long)longest_ms);
	assert_true(longest_ms >= 100);
	disk_tap_unwatch(tap);
	cow_unref(c);
}

static void error_is_not_the_writers(void **state)
{
	struct cow_config config = config_of(4, 5000);
	struct ft_err error = {0};
	struct cow *c;

	(void)state;
	target.fail_with = -ENOSPC;
	assert_ok(cow_new(&config, &c, err));
	assert_ok(disk_tap_watch(tap, c, err));
	writers_start();
	save(c, 1);
	wait_changes(200);
	writers_stop();
	assert_int_equal(cow_error(c, &error), -ENOSPC);
	assert_non_null(strstr(error.text, "No space left"));
	disk_tap_unwatch(tap);
	cow_unref(c);
}

/* Let go of in the middle, by whoever comes: the tap that ends holds it for the last one. */
static void cancelled(void **state)
{
	struct cow_config config = config_of(1, 60000);
	struct ft_err why = {0}, error = {0};
	struct cow *c;

	(void)state;
	ft_err_set(&why, ECANCELED, "enough");
	assert_ok(cow_new(&config, &c, err));
	assert_ok(disk_tap_watch(tap, c, err));
	writers_start();
	/* All writers wait for the pool now, or soon. */
	poll(NULL, 0, 20);
	cow_cancel(c, &why);
	wait_changes(200);
	assert_int_equal(cow_error(c, &error), -ECANCELED);
	cow_unref(c);
	writers_stop();
}

static struct tap_record record_of(enum tap_kind kind, uint64_t at, const void *data, uint32_t len)
{
	return (struct tap_record){.kind = kind, .arg = at, .len = len, .data = data};
}

/* Epochs are applied while its copy is written: the copy is that of the epoch before. */
static void standbys_disk(void **state)
{
	struct cow_config config = config_of(0, 1000);
	char path[128];
	struct store *store;
	static uint8_t bytes[COW_BLOCK_BYTES];
	uint64_t zeroes = htole64(3 * COW_BLOCK_BYTES), paid;
	struct tap_record rec;
	struct cow_progress p;
	struct cow *c;

	(void)state;
	snprintf(path, sizeof path, "%s", fixture_path("standby.img"));
	config.image = path;
	assert_ok(store_open("root", path, STORE_REPLICATED, BYTES, NULL, &store, err));
	for (uint64_t at = 0; at + sizeof bytes <= BYTES; at += sizeof bytes) {
		memset(bytes, (int)(1 + at / sizeof bytes % 250), sizeof bytes);
		memcpy(before + at, bytes, sizeof bytes);
		assert_ok(store_sync_write(store, at, bytes, sizeof bytes, false, err));
	}
	memset(before + BYTES / sizeof bytes * sizeof bytes, 0, BYTES % sizeof bytes);
	assert_ok(cow_new(&config, &c, err));
	/* No checkpoint yet. */
	assert_int_equal(store_watch(store, c, &(struct ft_err){0}), -EAGAIN);
	assert_ok(store_commit(store, 1, 1, err));
	assert_ok(store_watch(store, c, err));
	for (unsigned i = 0; i < 40; i++) {
		memset(bytes, 0xff, sizeof bytes);
		rec = record_of(TAP_DISK_WRITE, (uint64_t)i * 5 * 65536 + 4096, bytes, 8192);
		assert_ok(store_apply(store, &rec, err));
		rec = record_of(TAP_DISK_TRIM, (uint64_t)i * 5 * 65536 + 65536, &zeroes, 8);
		assert_ok(store_apply(store, &rec, err));
		assert_ok(store_commit(store, 1, 2 + i, err));
		for (unsigned n = 0; n < 4; n++)
			(void)cow_step(c, n == 0, &paid);
	}
	save(c, 1);
	assert_ok(cow_error(c, err));
	assert_copy(before);
	cow_progress(c, &p);
	assert_true(p.copied > 20);
	store_unwatch(store);
	cow_unref(c);
	store_free(store);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(every_copy_is_the_moment, setup, teardown),
		cmocka_unit_test_setup_teardown(zeroes_are_left_out, setup, teardown),
		cmocka_unit_test_setup_teardown(slow_target_is_given_up, setup, teardown),
		cmocka_unit_test_setup_teardown(error_is_not_the_writers, setup, teardown),
		cmocka_unit_test_setup_teardown(cancelled, setup, teardown),
		cmocka_unit_test_setup_teardown(standbys_disk, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
