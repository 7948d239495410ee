/* SPDX-License-Identifier: Apache-2.0 */
/* A raw disk image: a file or a block device whose bytes are the guest's bytes. No locks of QEMU's
 * kind are taken, because a QEMU may have the same image open (metadata.h holds the lock that keeps
 * two agents apart). Calls may come from several threads; each returns 0 or -errno and does the
 * whole range or fails. */
#ifndef EVENTTAP_BLOCK_IMAGE_H
#define EVENTTAP_BLOCK_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "ft/err.h"

struct image {
	int fd;
	uint64_t bytes;
};

/* raw: the operator says that it is raw whatever it begins with. Otherwise an image that carries
 * the magic of another format is refused
 * (-EMEDIUMTYPE): treating it as raw would hand the guest the container instead of the disk. */
int image_open(const char *path, bool raw, struct image *image, struct ft_err *err);
/* Like image_open(), but a file that is absent or empty is made, sparse; one of another size is
 * refused (-EFBIG). */
int image_open_or_create(const char *path, bool raw, uint64_t bytes, struct image *image,
			 struct ft_err *err);
/* Like image_open(), but a write that has returned is on the storage and not in a cache of this
 * host, from where it could get there at any later time. */
int image_open_through(const char *path, bool raw, struct image *image, struct ft_err *err);
/* What this host has cached of it is dropped: another host has written to it. */
void image_forget(const struct image *image);
void image_close(struct image *image);

int image_pread(const struct image *image, uint8_t *buf, uint64_t len, uint64_t offset);
int image_pwrite(const struct image *image, const uint8_t *buf, uint64_t len, uint64_t offset);

enum image_zero { IMAGE_ZERO_UNMAP, IMAGE_ZERO_ALLOCATED };
/* The range reads as zeroes afterwards, on every filesystem: zeroes are written where there is no
 * better way, unless `fast`: then -ENOTSUP. */
int image_zero(const struct image *image, uint64_t offset, uint64_t len, enum image_zero how,
	       bool fast);
int image_flush(const struct image *image);
/* *hole: whether the range from offset on is a hole; *extent (1 .. len) bytes of it are alike. */
int image_extent(const struct image *image, uint64_t offset, uint64_t len, uint64_t *extent,
		 bool *hole);

#endif
