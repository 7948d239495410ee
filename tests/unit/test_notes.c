// SPDX-License-Identifier: Apache-2.0
// The map of changes beside an image: what it says after every kind of end.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "eventtap/block/notes.h"

#define BLOCKS 517
#define BYTES  ((uint64_t)BLOCKS * NOTES_BLOCK_BYTES - 1000) // its last block is not whole
#define HEADER 64

static char dir[64], image[96], file[128];
static struct notes c;

static int setup(void **state)
{
	(void)state;
	snprintf(dir, sizeof(dir), "/tmp/ft-notes-XXXXXX");
	assert_non_null(mkdtemp(dir));
	snprintf(image, sizeof(image), "%s/d.img", dir);
	snprintf(file, sizeof(file), "%s%s", image, NOTES_SUFFIX);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	notes_close(&c);
	unlink(file);
	return rmdir(dir);
}

static void again(bool known)
{
	notes_close(&c);
	assert_int_equal(notes_open(&c, image, BYTES, known), 0);
}

static void expect(const bool *model)
{
	for (uint64_t i = 0; i < BLOCKS; i++)
		assert_int_equal(ft_bitmap_test(&c.bits, i), model[i]);
	// The same in ranges, as it is told to the peer.
	uint64_t at = 0, len;
	for (; at < BYTES; at += len) {
		len = BYTES - at;
		bool set = notes_at(&c, at, &len);
		for (uint64_t b = at / NOTES_BLOCK_BYTES; b * NOTES_BLOCK_BYTES < at + len; b++)
			assert_int_equal(model[b], set);
	}
	assert_int_equal(at, BYTES);
}

static void test_model(void **state)
{
	(void)state;
	bool model[BLOCKS] = {0};
	srand(7);
	again(true);
	assert_int_equal(notes_session(&c), 0);
	notes_mark(&c, 0, BYTES); // nobody to note it for
	notes_begin(&c, 42, NULL);
	for (int round = 0; round < 400; round++) {
		uint64_t offset = (uint64_t)rand() * 977 % BYTES;
		uint64_t len = (uint64_t)rand() % (round % 50 ? 70000 : 5000000);
		if (len > BYTES - offset)
			len = BYTES - offset;
		notes_mark(&c, offset, len);
		for (uint64_t at = offset; at < offset + len; at++) {
			model[at / NOTES_BLOCK_BYTES] = true;
			if (at + NOTES_BLOCK_BYTES < offset + len)
				at += NOTES_BLOCK_BYTES - 1;
		}
		if (round % 37 == 0) // some are with the peer
			for (uint64_t b = 0; b < BLOCKS; b += 2)
				model[b] = false;
		if (round % 37 == 0) {
			struct ft_bitmap left;
			assert_int_equal(ft_bitmap_init(&left, BLOCKS), 0);
			for (uint64_t b = 0; b < BLOCKS; b++)
				if (model[b])
					ft_bitmap_set(&left, b);
			notes_replace(&c, &left);
			ft_bitmap_free(&left);
		}
		if (round % 10 == 0) { // the process dies
			again(true);
			assert_int_equal(notes_session(&c), 42);
			expect(model);
		}
	}
	notes_begin(&c, 43, NULL);
	memset(model, 0, sizeof(model));
	again(true);
	assert_int_equal(notes_session(&c), 43);
	expect(model);
}

static void flip(off_t at)
{
	uint8_t byte;
	int fd = open(file, O_RDWR);
	assert_int_equal(pread(fd, &byte, 1, at), 1);
	byte ^= 0x10;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	close(fd);
}

static void begin_marked(void)
{
	again(true);
	notes_begin(&c, 42, NULL);
	notes_mark(&c, 3 * NOTES_BLOCK_BYTES, 1);
}

// Another boot: in use it says nothing, sealed it holds, and once in use again it does not.
static void test_boots(void **state)
{
	(void)state;
	begin_marked();
	notes_close(&c);
	flip(24); // the boot identity
	again(true);
	assert_int_equal(notes_session(&c), 0);

	begin_marked();
	notes_seal(&c);
	again(true);
	assert_int_equal(notes_session(&c), 42);
	assert_int_equal(c.bits.count, 1);
	notes_close(&c);
	flip(24);
	again(true);
	assert_int_equal(notes_session(&c), 0);
	assert_int_not_equal(access(file, F_OK), 0);
}

static void make_image(void)
{
	int fd = open(image, O_WRONLY | O_CREAT | O_EXCL, 0600);
	assert_true(fd >= 0);
	close(fd);
}

// Somebody puts another file in the image's place, and does not know of the map.
static void test_other_image(void **state)
{
	(void)state;
	char kept[112];
	snprintf(kept, sizeof(kept), "%s.old", image);
	make_image();
	begin_marked();
	again(true);
	assert_int_equal(notes_session(&c), 42);
	notes_close(&c);
	assert_int_equal(rename(image, kept), 0);
	make_image();
	again(true);
	assert_int_equal(notes_session(&c), 0);
	assert_int_not_equal(access(file, F_OK), 0);
	unlink(kept);
	unlink(image);
}

static void test_damage(void **state)
{
	(void)state;
	for (off_t at = 0; at < HEADER; at++) {
		begin_marked();
		notes_seal(&c);
		notes_close(&c);
		flip(at);
		again(true);
		assert_int_equal(notes_session(&c), 0);
		assert_int_equal(c.bits.count, 0);
	}
	begin_marked();
	notes_seal(&c);
	notes_close(&c);
	flip(4096 + 8);
	again(true);
	assert_int_equal(notes_session(&c), 0);
	// A bit beyond the disk, a file that was cut, a disk of another size.
	begin_marked();
	notes_close(&c);
	flip(4096 + BLOCKS / 8 + 1);
	again(true);
	assert_int_equal(notes_session(&c), 0);
	begin_marked();
	notes_close(&c);
	assert_int_equal(truncate(file, 4096 + 8), 0);
	again(true);
	assert_int_equal(notes_session(&c), 0);
	begin_marked();
	notes_close(&c);
	assert_int_equal(notes_open(&c, image, BYTES - NOTES_BLOCK_BYTES, true), 0);
	assert_int_equal(notes_session(&c), 0);
}

static void test_ends(void **state)
{
	(void)state;
	begin_marked();
	again(false); // somebody else may have written
	assert_int_equal(notes_session(&c), 0);
	assert_int_not_equal(access(file, F_OK), 0);
	begin_marked();
	notes_end(&c);
	assert_int_not_equal(access(file, F_OK), 0);
	notes_mark(&c, 0, 1);
	begin_marked();
	notes_close(&c);
	notes_forget(image);
	notes_forget(image);
	again(true);
	assert_int_equal(notes_session(&c), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_model, setup, teardown),
		cmocka_unit_test_setup_teardown(test_boots, setup, teardown),
		cmocka_unit_test_setup_teardown(test_other_image, setup, teardown),
		cmocka_unit_test_setup_teardown(test_damage, setup, teardown),
		cmocka_unit_test_setup_teardown(test_ends, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
