// SPDX-License-Identifier: Apache-2.0
// The standby's disk and the metadata file: who may start from what, what survives which end, and
// that damage is seen.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "eventtap/block/metadata.h"
#include "eventtap/store.h"

#define BYTES (4u << 20)
#define UUID  "00112233-4455-6677-8899-aabbccddeeff"

static char dir[] = "/tmp/kemari-store-XXXXXX";
static char image[PATH_MAX], meta[PATH_MAX + 16];
static struct ft_err err;

static int setup(void **state)
{
	(void)state;
	strcpy(strrchr(dir, '-'), "-XXXXXX");
	assert_non_null(mkdtemp(dir));
	snprintf(image, sizeof(image), "%s/disk.img", dir);
	snprintf(meta, sizeof(meta), "%s%s", image, METADATA_SUFFIX);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	unlink(image);
	unlink(meta);
	return rmdir(dir); // fails if anything, a temporary or a spill file, is left
}

static struct store *open_store(enum store_mode mode)
{
	struct store *s = NULL;
	int ret = store_open("d0", image, mode, BYTES, UUID, &s, &err);
	if (ret < 0)
		fail_msg("%s", err.text);
	return s;
}

static void expect_state(enum store_state state, uint64_t generation, uint64_t epoch)
{
	struct metadata_record record;
	assert_int_equal(metadata_read(image, &record, &err), 0);
	assert_int_equal(record.state, state);
	assert_int_equal(record.generation, generation);
	assert_int_equal(record.epoch, epoch);
}

static void expect_byte(uint64_t offset, uint8_t value)
{
	int fd = open(image, O_RDONLY);
	uint8_t byte;
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &byte, 1, (off_t)offset), 1);
	close(fd);
	assert_int_equal(byte, value);
}

static int apply(struct store *s, enum tap_kind kind, uint64_t offset, uint32_t len, uint8_t value)
{
	uint8_t *data = malloc(len + 8);
	uint64_t le = len;
	memset(data, value, len + 8);
	struct tap_record rec = {.kind = kind, .arg = offset, .len = len, .data = data};
	if (kind == TAP_DISK_ZERO || kind == TAP_DISK_TRIM) {
		memcpy(data, &le, 8);
		rec.len = 8;
	}
	int ret = store_apply(s, &rec, &err);
	free(data);
	return ret;
}

static void make_image(void)
{
	int fd = open(image, O_RDWR | O_CREAT | O_EXCL, 0600);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, BYTES), 0);
	close(fd);
}

static void test_replicated_life(void **state)
{
	(void)state;
	struct store *s = open_store(STORE_REPLICATED);
	assert_int_equal(store_state(s), STORE_INCONSISTENT);
	expect_state(STORE_INCONSISTENT, 0, 0);
	struct stat st;
	assert_int_equal(stat(image, &st), 0);
	assert_int_equal(st.st_size, BYTES);
	assert_int_equal(st.st_blocks, 0);

	uint8_t block[4096];
	memset(block, 7, sizeof(block));
	assert_int_equal(store_sync_write(s, 8192, block, sizeof(block), false, &err), 0);
	assert_int_equal(store_sync_write(s, 0, NULL, 1u << 20, true, &err), 0);
	expect_byte(8192, 0);
	assert_int_equal(store_activate(s, 1, 1, true, &err), -ESTALE);

	assert_int_equal(apply(s, TAP_DISK_WRITE, 100, 5000, 9), 0);
	assert_int_equal(apply(s, TAP_DISK_ZERO, 200, 50, 0), 0);
	assert_int_equal(apply(s, TAP_DISK_TRIM, 300, 50, 0), 0);
	assert_int_equal(apply(s, TAP_DISK_FLUSH, 0, 0, 0), 0);
	assert_int_equal(store_commit(s, 3, 17, &err), 0);
	assert_int_equal(store_state(s), STORE_UP_TO_DATE);
	expect_state(STORE_INCONSISTENT, 0, 0); // still a standby's
	assert_int_equal(store_check_startable(image, STORE_RIGHT_NONE, &err), -ESTALE);

	assert_int_equal(store_activate(s, 4, 17, true, &err), 0);
	expect_state(STORE_UP_TO_DATE, 4, 17);
	assert_int_equal(store_check_startable(image, STORE_RIGHT_NONE, &err), 0);
	expect_byte(100, 9);
	expect_byte(220, 0);
	expect_byte(320, 0);
	expect_byte(5099, 9);
	expect_byte(5100, 0);
	// Once more, as when another disk of the guest had to wait for its lock: nothing happens.
	assert_int_equal(store_activate(s, 4, 17, true, &err), 0);
	// The lock is free for the tap that follows.
	struct metadata again;
	assert_int_equal(metadata_open(image, &again, &err), 0);
	assert_string_equal(again.record.uuid, UUID);
	metadata_close(&again);
	store_free(s);
	expect_state(STORE_UP_TO_DATE, 4, 17);
}

static void test_ends_without_takeover(void **state)
{
	(void)state;
	struct store *s = open_store(STORE_REPLICATED);
	assert_int_equal(store_commit(s, 2, 5, &err), 0);
	assert_int_equal(store_outdate(s, &err), 0);
	expect_state(STORE_OUTDATED, 2, 5);
	assert_int_equal(store_check_startable(image, STORE_RIGHT_NONE, &err), -ESTALE);
	assert_non_null(strstr(err.text, "Outdated"));
	assert_non_null(strstr(err.text, "--force"));
	// The peer is back: a copy in progress is worse than an old one.
	uint8_t block[512] = {1};
	assert_int_equal(store_sync_write(s, 0, block, sizeof(block), false, &err), 0);
	expect_state(STORE_INCONSISTENT, 2, 5);
	assert_int_equal(store_activate(s, 3, 5, true, &err), -ESTALE);
	assert_int_equal(store_commit(s, 3, 9, &err), 0);
	store_free(s);
	expect_state(STORE_OUTDATED, 3, 9);

	// In the middle of an epoch: a mixture.
	s = open_store(STORE_REPLICATED);
	assert_int_equal(store_commit(s, 4, 1, &err), 0);
	assert_int_equal(apply(s, TAP_DISK_WRITE, 0, 512, 1), 0);
	assert_int_equal(store_activate(s, 4, 1, true, &err), -ESTALE);
	store_free(s);
	expect_state(STORE_INCONSISTENT, 3, 9);
	assert_int_equal(store_check_startable(image, STORE_RIGHT_NONE, &err), -ESTALE);
	assert_non_null(strstr(err.text, "Inconsistent"));
}

static void test_locked(void **state)
{
	(void)state;
	struct store *s = open_store(STORE_REPLICATED), *second;
	assert_int_equal(store_open("d0", image, STORE_REPLICATED, BYTES, UUID, &second, &err),
			 -EBUSY);
	assert_non_null(strstr(err.text, "locked"));
	// The lock survives that the file is replaced.
	assert_int_equal(store_commit(s, 1, 1, &err), 0);
	assert_int_equal(store_outdate(s, &err), 0);
	assert_int_equal(store_open("d0", image, STORE_REPLICATED, BYTES, UUID, &second, &err),
			 -EBUSY);
	store_free(s);
	s = open_store(STORE_REPLICATED);
	store_free(s);
}

static void test_refusals(void **state)
{
	(void)state;
	struct store *s = open_store(STORE_REPLICATED);
	assert_int_equal(apply(s, TAP_DISK_WRITE, BYTES - 10, 11, 1), -EPROTO);
	assert_int_equal(apply(s, TAP_DISK_WRITE, UINT64_MAX - 3, 11, 1), -EPROTO);
	assert_int_equal(apply(s, TAP_DISK_TRIM, BYTES, 1, 1), -EPROTO);
	assert_int_equal(apply(s, TAP_DISK_ZERO, 0, 0, 1), -EPROTO);
	assert_int_equal(apply(s, TAP_NET, 0, 8, 1), -EPROTO);
	uint8_t byte = 0;
	assert_int_equal(store_sync_write(s, BYTES, &byte, 1, false, &err), -EPROTO);
	assert_int_equal(store_sync_write(s, UINT64_MAX, NULL, 100, true, &err), -EPROTO);
	store_free(s);

	assert_int_equal(store_open("d0", image, STORE_REPLICATED, BYTES * 2, UUID, &s, &err),
			 -EFBIG);
	assert_non_null(strstr(err.text, "4194304 bytes"));
	assert_int_equal(
		store_open("d0", "/nonexistent/x.img", STORE_REPLICATED, BYTES, UUID, &s, &err),
		-ENOENT);
	assert_int_equal(
		store_open("d0", "/nonexistent/x.img", STORE_SHARED, BYTES, UUID, &s, &err),
		-ENOENT);
}

// Every truncation and every flipped bit of the metadata is noticed, and nobody starts from it.
static void test_torn_metadata(void **state)
{
	(void)state;
	struct store *s = open_store(STORE_REPLICATED);
	assert_int_equal(store_commit(s, 11, 12, &err), 0);
	assert_int_equal(store_activate(s, 11, 12, true, &err), 0);
	store_free(s);
	char good[METADATA_BYTES_MAX], bad[METADATA_BYTES_MAX];
	int fd = open(meta, O_RDWR);
	ssize_t len = read(fd, good, sizeof(good));
	assert_true(len > 60);
	struct metadata_record record;
	for (ssize_t cut = 1; cut < len; cut++) {
		assert_int_equal(ftruncate(fd, cut), 0);
		assert_int_equal(metadata_read(image, &record, &err), -EBADMSG);
		assert_int_equal(ftruncate(fd, 0), 0);
		assert_int_equal(pwrite(fd, good, (size_t)len, 0), len);
	}
	for (ssize_t i = 0; i < len * 8; i++) {
		memcpy(bad, good, sizeof(bad));
		bad[i / 8] = (char)(bad[i / 8] ^ (1 << (i % 8)));
		assert_int_equal(pwrite(fd, bad, (size_t)len, 0), len);
		assert_int_equal(metadata_read(image, &record, &err), -EBADMSG);
	}
	assert_int_equal(store_check_startable(image, STORE_RIGHT_NONE, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "damaged"));
	assert_int_equal(store_open("d0", image, STORE_REPLICATED, BYTES, UUID, &s, &err),
			 -EBADMSG);
	assert_int_equal(pwrite(fd, good, (size_t)len, 0), len);
	close(fd);
	expect_state(STORE_UP_TO_DATE, 11, 12);
	// What a crash between create and rename leaves behind does not stop the next write.
	char temporary[PATH_MAX + 32];
	snprintf(temporary, sizeof(temporary), "%s.tmp", meta);
	fd = open(temporary, O_CREAT | O_WRONLY, 0600);
	close(fd);
	s = open_store(STORE_REPLICATED);
	store_free(s);
	assert_int_equal(access(temporary, F_OK), -1);
}

// By an operator's word anything is started, and is the guest's disk from then on.
static void test_forced(void **state)
{
	(void)state;
	static const enum store_state states[] = {STORE_INCONSISTENT, STORE_OUTDATED,
						  STORE_PROTECTED, STORE_CONSISTENT};
	make_image();
	for (size_t i = 0; i < sizeof(states) / sizeof(*states); i++) {
		struct metadata m;
		struct metadata_record record = {
			.generation = 5, .epoch = 6, .state = states[i], .uuid = UUID};
		assert_int_equal(metadata_open(image, &m, &err), 0);
		assert_int_equal(metadata_write(&m, &record, &err), 0);
		metadata_close(&m);
		assert_int_equal(store_check_startable(image, STORE_RIGHT_NONE, &err), -ESTALE);
		assert_non_null(strstr(err.text, metadata_state_name(states[i])));
		assert_non_null(strstr(err.text, "generation 5 epoch 6"));
		assert_non_null(strstr(err.text, "--incoming"));
		assert_non_null(strstr(err.text, "--force"));
		assert_null(strchr(err.text, '\n'));
		assert_int_equal(store_check_startable(image, STORE_RIGHT_FORCE, &err), 0);
		expect_state(STORE_UP_TO_DATE, 5, 6);
	}
	int fd = open(meta, O_RDWR | O_TRUNC);
	assert_int_equal(write(fd, "nonsense", 8), 8);
	close(fd);
	assert_int_equal(store_check_startable(image, STORE_RIGHT_GRANTED, &err), -EBADMSG);
	assert_int_equal(store_check_startable(image, STORE_RIGHT_FORCE, &err), 0);
	assert_int_equal(access(meta, F_OK), -1);
}

static void test_shared(void **state)
{
	(void)state;
	make_image();
	// The primary's lock does not keep the standby from listening, but from taking over.
	struct metadata primary;
	assert_int_equal(metadata_open(image, &primary, &err), 0);
	struct store *s = open_store(STORE_SHARED);
	// A peer that copies it nevertheless makes no sense, and is told so.
	assert_int_equal(store_sync_write(s, 0, NULL, 4096, true, &err), -EPROTO);
	assert_int_equal(apply(s, TAP_DISK_WRITE, 0, 4096, 1), 0);
	assert_int_equal(store_commit(s, 1, 1, &err), 0);
	assert_int_equal(apply(s, TAP_DISK_WRITE, 4096, 3u << 20, 2), 0); // more than a segment
	assert_int_equal(apply(s, TAP_DISK_WRITE, 8192, 4096, 3), 0);
	assert_int_equal(apply(s, TAP_DISK_FLUSH, 0, 0, 0), 0);
	assert_int_equal(store_commit(s, 1, 2, &err), 0);
	store_drop_pending(s, 1);
	expect_byte(4096, 0);
	assert_int_equal(store_activate(s, 2, 2, true, &err), -EBUSY);
	metadata_close(&primary);
	assert_int_equal(store_activate(s, 2, 2, true, &err), 0);
	expect_byte(0, 0); // released: the primary's business
	expect_byte(4096, 2);
	expect_byte(8192, 3);
	expect_byte(12288, 2);
	expect_byte(4096 + (3u << 20) - 1, 2);
	expect_state(STORE_UP_TO_DATE, 2, 2);
	store_free(s);
	expect_state(STORE_UP_TO_DATE, 2, 2);
}

// A primary that may be frozen: a free lock says something only if it was seen held.
static void test_unsettled(void **state)
{
	(void)state;
	make_image();
	for (int seen = 0; seen < 2; seen++) {
		struct metadata primary;
		struct store *s = open_store(STORE_SHARED);
		assert_false(metadata_locked(image));
		if (seen) {
			assert_int_equal(metadata_open(image, &primary, &err), 0);
			assert_true(metadata_locked(image));
		}
		assert_int_equal(apply(s, TAP_DISK_WRITE, 0, 4096, (uint8_t)(seen + 1)), 0);
		assert_int_equal(store_commit(s, 1, 1, &err), 0);
		if (seen) {
			assert_int_equal(store_activate(s, 2, 1, false, &err), -EBUSY);
			assert_non_null(strstr(err.text, "locked"));
			metadata_close(&primary); // as a kernel does for the dead
		} else {
			assert_int_equal(store_activate(s, 2, 1, false, &err), -EBUSY);
			assert_non_null(strstr(err.text, "lease"));
			assert_false(metadata_locked(image));
			expect_byte(0, 0);
		}
		assert_int_equal(store_activate(s, 2, 1, !seen, &err), 0);
		expect_byte(0, (uint8_t)(seen + 1));
		store_free(s);
	}
}

// A host stopped while its guest had a standby: only an arbiter, or the operator, knows better.
static void test_protected(void **state)
{
	(void)state;
	struct metadata_record record = {.generation = 6, .state = STORE_PROTECTED};
	struct metadata m;
	make_image();
	assert_int_equal(store_generation(image), 0);
	assert_int_equal(metadata_open(image, &m, &err), 0);
	assert_int_equal(metadata_write(&m, &record, &err), 0);
	metadata_close(&m);
	assert_int_equal(store_generation(image), 6);
	assert_int_equal(store_check_startable(image, STORE_RIGHT_NONE, &err), -ESTALE);
	assert_non_null(strstr(err.text, "--incoming"));
	assert_int_equal(store_check_startable(image, STORE_RIGHT_GRANTED, &err), 0);
	expect_state(STORE_UP_TO_DATE, 6, 0);
	assert_int_equal(store_check_startable(image, STORE_RIGHT_NONE, &err), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_replicated_life, setup, teardown),
		cmocka_unit_test_setup_teardown(test_ends_without_takeover, setup, teardown),
		cmocka_unit_test_setup_teardown(test_locked, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refusals, setup, teardown),
		cmocka_unit_test_setup_teardown(test_torn_metadata, setup, teardown),
		cmocka_unit_test_setup_teardown(test_forced, setup, teardown),
		cmocka_unit_test_setup_teardown(test_shared, setup, teardown),
		cmocka_unit_test_setup_teardown(test_unsettled, setup, teardown),
		cmocka_unit_test_setup_teardown(test_protected, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
