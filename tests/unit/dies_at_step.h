/* SPDX-License-Identifier: Apache-2.0 */
/* A program that dies before its n-th write, or sync, of a file, as if it had been killed there.
 * Its linker options wrap file_write, image_pwrite, image_zero and fsync. Included once. */
#ifndef TEST_DIES_AT_STEP_H
#define TEST_DIES_AT_STEP_H

#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "eventtap/block/image.h"
#include "ft/file_io.h"

#define DIED 9 /* exit code */

/* A process for each step takes TSan minutes, and one that dies has no race to be found. */
#ifdef __SANITIZE_THREAD__
#define STEP_STRIDE 7
#else
#define STEP_STRIDE 1
#endif

static atomic_uint steps_left; /* 0: not counted */

static inline void step(void)
{
	if (steps_left && atomic_fetch_sub(&steps_left, 1) == 1)
		_exit(DIED);
}

int __real_file_write(int fd, const void *from, size_t bytes, uint64_t at);
int __wrap_file_write(int fd, const void *from, size_t bytes, uint64_t at);
int __real_image_pwrite(const struct image *i, const uint8_t *buf, uint64_t len, uint64_t offset);
int __wrap_image_pwrite(const struct image *i, const uint8_t *buf, uint64_t len, uint64_t offset);
int __real_image_zero(const struct image *i, uint64_t offset, uint64_t len, enum image_zero how,
		      bool fast);
int __wrap_image_zero(const struct image *i, uint64_t offset, uint64_t len, enum image_zero how,
		      bool fast);
int __real_fsync(int fd);
int __wrap_fsync(int fd);

int __wrap_file_write(int fd, const void *from, size_t bytes, uint64_t at)
{
	step();
	return __real_file_write(fd, from, bytes, at);
}

int __wrap_image_pwrite(const struct image *i, const uint8_t *buf, uint64_t len, uint64_t offset)
{
	step();
	return __real_image_pwrite(i, buf, len, offset);
}

int __wrap_image_zero(const struct image *i, uint64_t offset, uint64_t len, enum image_zero how,
		      bool fast)
{
	step();
	return __real_image_zero(i, offset, len, how, fast);
}

int __wrap_fsync(int fd)
{
	step();
	return __real_fsync(fd);
}

#endif
