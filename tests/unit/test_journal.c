// SPDX-License-Identifier: Apache-2.0
// The standby's journal: a file that was cut at any byte, or damaged at any, replays to a whole
// epoch; a power cut at any step of its life leaves disks of one acknowledged epoch.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "eventtap/block/journal.h"
#include "eventtap/block/metadata.h"
#include "eventtap/store.h"

#define BYTES  (64u << 10)
#define EPOCHS 4
#define DISKS  2
#define SMALL  700 /* of a record: the whole file is cut at every byte */

static char dir[64], journal[96], image[DISKS][96];
static struct ft_err err;
static int news[2];
static uint8_t model[EPOCHS + 1][DISKS][BYTES]; // after each epoch

static void on_news(void *ctx)
{
	(void)ctx;
	assert_int_equal(write(news[1], "x", 1), 1);
}

static struct image open_image(unsigned disk)
{
	struct image im;
	if (image_open(image[disk], true, &im, &err) < 0)
		fail_msg("%s", err.text);
	return im;
}

static void write_file(const char *path, const void *data, size_t len)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	assert_int_equal(write(fd, data, len), len);
	close(fd);
}

static size_t read_file(const char *path, uint8_t *data, size_t max)
{
	int fd = open(path, O_RDONLY);
	assert_true(fd >= 0);
	ssize_t n = read(fd, data, max);
	close(fd);
	assert_true(n >= 0 && (size_t)n < max);
	return (size_t)n;
}

static int setup(void **state)
{
	(void)state;
	// In memory where possible: it is about order, and about what is read, not about disks.
	strcpy(dir, access("/dev/shm", W_OK) == 0 ? "/dev/shm/kemari-journal-XXXXXX"
						  : "/tmp/kemari-journal-XXXXXX");
	assert_non_null(mkdtemp(dir));
	snprintf(journal, sizeof(journal), "%s/0.img%s", dir, JOURNAL_SUFFIX);
	for (unsigned i = 0; i < DISKS; i++) {
		snprintf(image[i], sizeof(image[i]), "%s/%u.img", dir, i);
		write_file(image[i], model[0][i], BYTES);
	}
	return pipe2(news, O_CLOEXEC);
}

static int teardown(void **state)
{
	char path[128];
	(void)state;
	close(news[0]);
	close(news[1]);
	unlink(journal);
	for (unsigned i = 0; i < DISKS; i++) {
		unlink(image[i]);
		snprintf(path, sizeof(path), "%s%s", image[i], METADATA_SUFFIX);
		unlink(path);
	}
	return rmdir(dir); // fails if anything is left
}

static void wait_durable(struct journal *j, uint64_t epoch)
{
	uint64_t got = 0;
	int error = 0;
	do {
		struct pollfd p = {.fd = news[0], .events = POLLIN};
		char byte;
		assert_int_equal(poll(&p, 1, 10000), 1);
		assert_int_equal(read(news[0], &byte, 1), 1);
		assert_true(journal_take(j, &got, &error));
		assert_int_equal(error, 0);
	} while (got < epoch);
}

static struct journal *new_journal(struct image images[DISKS])
{
	struct journal_disk disks[DISKS];
	struct journal *j = NULL;
	for (unsigned i = 0; i < DISKS; i++) {
		images[i] = open_image(i);
		disks[i] = (struct journal_disk){i ? "data" : "root", &images[i]};
	}
	if (journal_new(journal, disks, DISKS, JOURNAL_BYTES_MAX, on_news, NULL, &j, &err) < 0)
		fail_msg("%s", err.text);
	return j;
}

static void add(struct journal *j, uint64_t epoch, unsigned disk, uint64_t offset, uint32_t len)
{
	static uint8_t data[BYTES];
	struct tap_record rec = {.kind = TAP_DISK_WRITE,
				 .device = (uint8_t)disk,
				 .arg = offset,
				 .len = len,
				 .data = data};
	memset(data, (int)(epoch * 16 + disk + 1), len);
	memcpy(model[epoch][disk] + offset, data, len);
	assert_int_equal(journal_add(j, &rec, &err), 0);
}

static void add_epoch(struct journal *j, uint64_t epoch)
{
	memcpy(model[epoch], model[epoch - 1], sizeof(model[0]));
	for (unsigned disk = 0; disk < DISKS; disk++) {
		add(j, epoch, disk, epoch * 1000, SMALL);
		add(j, epoch, disk, 30000, 10);
	}
	struct tap_record flush = {.kind = TAP_DISK_FLUSH};
	assert_int_equal(journal_add(j, &flush, &err), 0);
	uint64_t len = 5;
	struct tap_record zero = {.kind = TAP_DISK_ZERO,
				  .arg = epoch * 1000,
				  .len = sizeof(len),
				  .data = (const uint8_t *)&len};
	memset(model[epoch][0] + epoch * 1000, 0, len);
	assert_int_equal(journal_add(j, &zero, &err), 0);
	assert_int_equal(journal_seal(j, 7, epoch, &err), 0);
}

// Images of any mixture: what was written since the first entry may be there or not.
static void mix_images(uint64_t seed)
{
	for (unsigned i = 0; i < DISKS; i++) {
		static uint8_t mixed[BYTES];
		for (unsigned at = 0; at < BYTES; at += 512) {
			seed = seed * 6364136223846793005ull + 1442695040888963407ull;
			memcpy(mixed + at, model[(seed >> 33) % (EPOCHS + 1)][i] + at, 512);
		}
		write_file(image[i], mixed, BYTES);
	}
}

static int replay(uint64_t *generation, uint64_t *epoch)
{
	struct image images[DISKS];
	struct journal_disk disks[DISKS];
	for (unsigned i = 0; i < DISKS; i++) {
		images[i] = open_image(i);
		disks[i] = (struct journal_disk){i ? "data" : "root", &images[i]};
	}
	int ret = journal_replay(journal, disks, DISKS, generation, epoch, &err);
	for (unsigned i = 0; i < DISKS; i++)
		image_close(&images[i]);
	return ret;
}

static void expect_epoch(uint64_t epoch)
{
	static uint8_t got[BYTES + 1];
	for (unsigned i = 0; i < DISKS; i++) {
		assert_int_equal(read_file(image[i], got, sizeof(got)), BYTES);
		assert_memory_equal(got, model[epoch][i], BYTES);
	}
}

// A journal of EPOCHS entries; ends[e]: bytes after entry e, ends[0]: after the header.
static size_t make_journal(uint8_t *file, size_t max, size_t ends[EPOCHS + 1])
{
	struct image images[DISKS];
	struct journal *j = new_journal(images);
	ends[0] = 160;
	for (uint64_t e = 1; e <= EPOCHS; e++) {
		add_epoch(j, e);
		wait_durable(j, e);
		ends[e] = read_file(journal, file, max);
	}
	size_t len = read_file(journal, file, max);
	assert_int_equal(journal_finish(j), 0);
	for (unsigned i = 0; i < DISKS; i++)
		image_close(&images[i]);
	// Whoever activates the disks asks twice, the second time without them.
	assert_int_equal(journal_finish(j), 0);
	journal_free(j, true);
	return len;
}

static void test_cut_anywhere(void **state)
{
	(void)state;
	static uint8_t file[64 << 10];
	size_t ends[EPOCHS + 1], len = make_journal(file, sizeof(file), ends);
	uint64_t generation, epoch, whole;
	for (size_t cut = 0; cut <= len; cut += cut > 400 && cut % 97 ? 13 : 1) {
		for (whole = EPOCHS; whole > 0 && cut < ends[whole];)
			whole--;
		mix_images(cut);
		write_file(journal, file, cut);
		int ret = replay(&generation, &epoch);
		assert_int_equal(ret, whole ? 0 : -EBADMSG);
		if (!whole)
			continue;
		assert_int_equal(epoch, whole);
		assert_int_equal(generation, 7);
		// Only mixtures that the invariant allows: of epochs that are in the journal.
		if (whole == EPOCHS)
			expect_epoch(whole);
	}
	// With images of the beginning, each cut is exactly its epoch.
	for (whole = 1; whole <= EPOCHS; whole++) {
		for (unsigned i = 0; i < DISKS; i++)
			write_file(image[i], model[0][i], BYTES);
		write_file(journal, file, ends[whole] + (whole < EPOCHS ? 100 : 0));
		assert_int_equal(replay(&generation, &epoch), 0);
		expect_epoch(whole);
	}
}

static void test_damaged_anywhere(void **state)
{
	(void)state;
	static uint8_t file[64 << 10];
	size_t ends[EPOCHS + 1], len = make_journal(file, sizeof(file), ends);
	uint64_t generation, epoch, whole;
	for (size_t at = 0; at < len; at += at < 400 ? 1 : 31) {
		for (whole = EPOCHS; whole > 0 && at < ends[whole];)
			whole--;
		for (unsigned i = 0; i < DISKS; i++)
			write_file(image[i], model[0][i], BYTES);
		file[at] ^= 0x10;
		write_file(journal, file, len);
		file[at] ^= 0x10;
		assert_int_equal(replay(&generation, &epoch),
				 whole && at >= ends[0] ? 0 : -EBADMSG);
		expect_epoch(at >= ends[0] ? whole : 0);
	}
}

static void test_given_up(void **state)
{
	(void)state;
	struct image images[DISKS];
	struct journal *j = new_journal(images);
	uint64_t generation, epoch;
	assert_int_equal(access(journal, F_OK), -1);
	add_epoch(j, 1);
	wait_durable(j, 1);
	// Never sealed: the next one begins in its place, and what is left of it is no entry.
	memcpy(model[2], model[1], sizeof(model[0]));
	add(j, 2, 0, 0, 20000);
	journal_drop(j);
	add_epoch(j, 2);
	wait_durable(j, 2);
	journal_free(j, true);
	for (unsigned i = 0; i < DISKS; i++)
		image_close(&images[i]);
	assert_int_equal(replay(&generation, &epoch), 0);
	assert_int_equal(epoch, 2);
	expect_epoch(2);
	// Of other disks, and of none.
	write_file(image[1], model[0][1], BYTES - 512);
	assert_int_equal(replay(&generation, &epoch), -EBADMSG);
	assert_int_equal(journal_remove(journal, &err), 0);
	assert_int_equal(replay(&generation, &epoch), -ENOENT);
}

static void test_hostile_records(void **state)
{
	(void)state;
	struct image images[DISKS];
	struct journal *j = new_journal(images);
	uint8_t data[16] = {0};
	const struct tap_record bad[] = {
		{.kind = TAP_DISK_WRITE, .device = 2, .len = 1, .data = data},
		{.kind = TAP_DISK_WRITE, .device = 0, .arg = BYTES, .len = 1, .data = data},
		{.kind = TAP_DISK_WRITE, .device = 0, .arg = UINT64_MAX, .len = 2, .data = data},
		{.kind = TAP_DISK_ZERO, .device = 0, .len = 7, .data = data},
		{.kind = TAP_NET, .device = 0, .len = 1, .data = data},
	};
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		assert_int_equal(journal_add(j, &bad[i], &err), -EPROTO);
	journal_free(j, false);
	for (unsigned i = 0; i < DISKS; i++)
		image_close(&images[i]);
}

// Past its bound it begins anew, once the images have what was before; the disk space is bounded.
static void test_begins_anew(void **state)
{
	(void)state;
	static uint8_t data[4 << 20];
	struct image images[DISKS];
	for (unsigned i = 0; i < DISKS; i++)
		write_file(image[i], data, sizeof(data));
	struct journal *j = new_journal(images);
	struct stat st;
	uint64_t generation, epoch, largest = 0;
	unsigned begun = 0;
	for (uint64_t e = 1; e <= 40; e++) {
		struct tap_record rec = {
			.kind = TAP_DISK_WRITE, .len = sizeof(data), .data = data, .device = e % 2};
		memset(data, (int)e, sizeof(data));
		assert_int_equal(journal_add(j, &rec, &err), 0);
		assert_int_equal(journal_seal(j, 9, e, &err), 0);
		wait_durable(j, e);
		assert_int_equal(image_pwrite(&images[e % 2], data, sizeof(data), 0), 0);
		assert_int_equal(stat(journal, &st), 0);
		begun += (uint64_t)st.st_size < largest;
		largest = (uint64_t)st.st_size;
		assert_true(largest <= JOURNAL_BYTES_MAX + 2 * sizeof(data));
	}
	assert_int_equal(begun, 2);
	journal_free(j, true);
	for (unsigned i = 0; i < DISKS; i++)
		image_close(&images[i]);
	// The image of an even epoch is lost in the power cut as far as it may be: not at all.
	assert_int_equal(replay(&generation, &epoch), 0);
	assert_int_equal(epoch, 40);
	assert_int_equal(generation, 9);
	struct image im = open_image(0);
	uint8_t byte;
	assert_int_equal(image_pread(&im, &byte, 1, sizeof(data) - 1), 0);
	assert_int_equal(byte, 40);
	image_close(&im);
}

static void expect_state(unsigned disk, enum store_state want, uint64_t generation, uint64_t epoch)
{
	struct metadata_record record;
	assert_int_equal(metadata_read(image[disk], &record, &err), 0);
	assert_int_equal(record.state, want);
	assert_int_equal(record.generation, generation);
	assert_int_equal(record.epoch, epoch);
}

static void set_state(unsigned disk, enum store_state state, uint64_t generation, uint64_t epoch)
{
	struct metadata meta;
	struct metadata_record record = {.state = state, .generation = generation, .epoch = epoch};
	assert_int_equal(metadata_open(image[disk], &meta, &err), 0);
	assert_int_equal(metadata_write(&meta, &record, &err), 0);
	metadata_close(&meta);
}

// What an agent makes of it after a power cut, at each step of a session's life.
static void test_recover(void **state)
{
	(void)state;
	const struct store_disk disks[DISKS] = {{"root", image[0]}, {"data", image[1]}};
	static uint8_t file[64 << 10];
	size_t ends[EPOCHS + 1], len = make_journal(file, sizeof(file), ends);

	// In the middle: both are brought to the last epoch, and nobody may start it unasked.
	for (unsigned i = 0; i < DISKS; i++)
		set_state(i, STORE_INCONSISTENT, 3, 2);
	mix_images(1);
	assert_int_equal(store_recover(journal, disks, DISKS, &err), 0);
	expect_epoch(EPOCHS);
	for (unsigned i = 0; i < DISKS; i++) {
		expect_state(i, STORE_CONSISTENT, 7, EPOCHS);
		assert_true(store_is_consistent(image[i], 7));
		assert_false(store_is_consistent(image[i], 8));
		assert_int_equal(store_check_startable(image[i], STORE_RIGHT_NONE, &err), -ESTALE);
		assert_int_equal(store_check_startable(image[i], STORE_RIGHT_GRANTED, &err),
				 -ESTALE);
	}
	assert_int_equal(store_check_startable(image[0], STORE_RIGHT_STANDBY, &err), 0);
	expect_state(0, STORE_UP_TO_DATE, 7, EPOCHS);
	assert_int_equal(access(journal, F_OK), -1);

	// Between the two metadata files of an activation: the images are durable by then.
	write_file(journal, file, len);
	set_state(0, STORE_UP_TO_DATE, 8, EPOCHS);
	set_state(1, STORE_INCONSISTENT, 3, 2);
	assert_int_equal(store_recover(journal, disks, DISKS, &err), 0);
	expect_state(1, STORE_UP_TO_DATE, 8, EPOCHS);
	assert_int_equal(access(journal, F_OK), -1);

	// After it: the guest has written since, and a replay would undo that.
	write_file(journal, file, len);
	for (unsigned i = 0; i < DISKS; i++) {
		set_state(i, STORE_UP_TO_DATE, 8, EPOCHS);
		write_file(image[i], model[1][i], BYTES);
	}
	assert_int_equal(store_recover(journal, disks, DISKS, &err), 0);
	expect_epoch(1);
	expect_state(1, STORE_UP_TO_DATE, 8, EPOCHS);

	// Somebody has taken one metadata file away: that says nothing about the other disk.
	write_file(journal, file, len);
	set_state(1, STORE_INCONSISTENT, 3, 2);
	char path[128];
	snprintf(path, sizeof(path), "%s%s", image[0], METADATA_SUFFIX);
	unlink(path);
	assert_int_equal(store_recover(journal, disks, DISKS, &err), 0);
	expect_state(1, STORE_INCONSISTENT, 3, 2);

	// And the image with it, so that it is copied anew.
	write_file(journal, file, len);
	unlink(path);
	unlink(image[0]);
	assert_int_equal(store_recover(journal, disks, DISKS, &err), 0);
	assert_int_equal(access(journal, F_OK), -1);
	write_file(image[0], model[1][0], BYTES);

	// A journal of nothing, and no journal: still inconsistent.
	write_file(journal, file, 200);
	for (unsigned i = 0; i < DISKS; i++)
		set_state(i, STORE_INCONSISTENT, 3, 2);
	assert_int_equal(store_recover(journal, disks, DISKS, &err), 0);
	expect_state(0, STORE_INCONSISTENT, 3, 2);
	assert_int_equal(store_recover(journal, disks, DISKS, &err), 0);
	expect_state(1, STORE_INCONSISTENT, 3, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_cut_anywhere, setup, teardown),
		cmocka_unit_test_setup_teardown(test_damaged_anywhere, setup, teardown),
		cmocka_unit_test_setup_teardown(test_given_up, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hostile_records, setup, teardown),
		cmocka_unit_test_setup_teardown(test_begins_anew, setup, teardown),
		cmocka_unit_test_setup_teardown(test_recover, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
