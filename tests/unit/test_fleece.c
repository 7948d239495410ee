// SPDX-License-Identifier: Apache-2.0
/* The view of a disk as it was: whatever is written meanwhile, by however many, is not seen in it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "eventtap/block/fleece.h"

#define BLOCK FLEECE_BLOCK_BYTES
#define BYTES (8u * BLOCK + 4096) /* the last block is a short one */

static char folder[] = "/tmp/ft-fleece-XXXXXX", path[64];
static struct image image;
static uint8_t then[BYTES];
static struct fleece *view;
static struct ft_err err;

static int setup(void **state)
{
	(void)state;
	int fd = open(path, O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, BYTES), 0);
	close(fd);
	assert_int_equal(image_open(path, true, &image, &err), 0);
	for (size_t i = 0; i < sizeof(then); i++)
		then[i] = (uint8_t)(i / 512 * 7 + 1);
	memset(then + 2 * BLOCK, 0, 2 * BLOCK); // a hole
	assert_int_equal(image_pwrite(&image, then, 2 * BLOCK, 0), 0);
	assert_int_equal(
		image_pwrite(&image, then + 4 * BLOCK, BYTES - 4 * BLOCK, 4 * (uint64_t)BLOCK), 0);
	assert_int_equal(fleece_new(&image, path, &view, &err), 0);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	fleece_free(view);
	image_close(&image);
	return unlink(path);
}

static void overwrite(uint64_t offset, uint32_t len, uint8_t with)
{
	uint8_t *data = malloc(len);
	assert_non_null(data);
	memset(data, with, len);
	fleece_before_change(view, offset, len);
	assert_int_equal(image_pwrite(&image, data, len, offset), 0);
	free(data);
}

static void assert_view(uint64_t offset, uint32_t len)
{
	uint8_t *data = malloc(len);
	assert_non_null(data);
	assert_int_equal(fleece_read(view, data, len, offset), 0);
	assert_memory_equal(data, then + offset, len);
	free(data);
}

static void test_old_content(void **state)
{
	(void)state;
	assert_view(0, BYTES);
	assert_int_equal(fleece_saved_bytes(view), 0);
	overwrite(100, 10, 0xee);
	overwrite(BLOCK - 1, 2, 0xee);
	overwrite(3 * BLOCK, 4096, 0xee);
	overwrite(BYTES - 1, 1, 0xee);
	overwrite(100, 10, 0xdd);
	assert_view(0, BYTES);
	assert_view(99, 12);
	assert_view(BLOCK + 5, 3 * BLOCK);
	assert_int_equal(fleece_saved_bytes(view), 4 * BLOCK);
}

static bool hole_at(uint64_t offset, uint64_t len, uint64_t *extent)
{
	bool hole = false;
	assert_int_equal(fleece_extent(view, offset, len, extent, &hole), 0);
	assert_true(*extent >= 1);
	assert_true(*extent <= len);
	return hole;
}

static void test_extents(void **state)
{
	uint64_t extent;
	(void)state;
	// What is a hole now was none then, and the other way round.
	overwrite(2 * BLOCK, 4096, 1);
	fleece_before_change(view, 5 * BLOCK, BLOCK);
	assert_int_equal(image_zero(&image, 5 * BLOCK, BLOCK, IMAGE_ZERO_UNMAP, false), 0);
	assert_false(hole_at(0, BYTES, &extent));
	assert_true(hole_at(2 * BLOCK, BLOCK, &extent));
	assert_true(hole_at(3 * BLOCK, BLOCK, &extent));
	assert_false(hole_at(5 * BLOCK, BLOCK, &extent));
	assert_view(0, BYTES);
}

static atomic_bool stop;

static void *writer(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;
	// Each has bytes of its own in every block, as range locks see to it.
	uint64_t mine = seed * 512u;
	while (!atomic_load(&stop)) {
		uint64_t block = (uint64_t)(rand_r(&seed) % 8);
		uint8_t data[512];
		memset(data, rand_r(&seed), sizeof(data));
		fleece_before_change(view, block * BLOCK + mine, sizeof(data));
		if (image_pwrite(&image, data, sizeof(data), block * BLOCK + mine))
			abort();
	}
	return NULL;
}

static void test_beside_writers(void **state)
{
	pthread_t threads[4];
	(void)state;
	for (unsigned round = 0; round < 20; round++) {
		atomic_store(&stop, false);
		for (uintptr_t i = 0; i < 4; i++)
			assert_int_equal(pthread_create(&threads[i], NULL, writer, (void *)(i + 1)),
					 0);
		for (unsigned i = 0; i < 20; i++)
			assert_view(0, BYTES);
		atomic_store(&stop, true);
		for (unsigned i = 0; i < 4; i++)
			pthread_join(threads[i], NULL);
		assert_view(0, BYTES);
		// The next view is of what they left.
		fleece_free(view);
		assert_int_equal(image_pread(&image, then, BYTES, 0), 0);
		assert_int_equal(fleece_new(&image, path, &view, &err), 0);
	}
}

// No room for old content: the writer goes on, the reader is told.
static void test_no_room(void **state)
{
	struct rlimit before, low = {.rlim_cur = BLOCK};
	uint8_t data[16];
	(void)state;
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
	low.rlim_max = before.rlim_max;
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
	fleece_before_change(view, 5 * BLOCK, 1);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
	assert_int_equal(fleece_read(view, data, sizeof(data), 0), -EFBIG);
	uint64_t extent;
	bool hole;
	assert_int_equal(fleece_extent(view, 0, 1, &extent, &hole), -EFBIG);
	fleece_before_change(view, 0, BYTES); // returns
	struct fleece *nowhere = NULL;
	assert_int_equal(fleece_new(&image, "/nonexistent/image", &nowhere, &err), -ENOENT);
	assert_non_null(strstr(err.text, "/nonexistent/image"));
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_old_content),
		T(test_extents),
		T(test_beside_writers),
		T(test_no_room),
	};
	if (!mkdtemp(folder))
		return 1;
	snprintf(path, sizeof(path), "%s/disk.img", folder);
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	rmdir(folder);
	return failed;
}
