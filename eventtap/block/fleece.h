/* SPDX-License-Identifier: Apache-2.0 */
/* A disk image as it was at one moment, to be read while it is written on (QEMU calls this
 * fleecing). Who changes the image tells it before, and what was not saved yet is copied aside:
 *
 *      guest --- writes ---> fleece_before_change(): old content --> a file without a name
 *                                                                      |
 *      reader <--- fleece_read(): what was saved from there, all else from the image
 *
 * The file is beside the image, sparse, and at most as large as the disk. If it cannot be written
 * the view is broken and reads fail with the reason; the guest writes on as if nothing had been.
 *
 * The moment is that of fleece_new(); no change of the image may be under way then, nor when the
 * view is freed. Otherwise all functions may be called by any thread. */
#ifndef EVENTTAP_BLOCK_FLEECE_H
#define EVENTTAP_BLOCK_FLEECE_H

#include <stdbool.h>
#include <stdint.h>

#include "eventtap/block/image.h"
#include "ft/err.h"

#define FLEECE_BLOCK_BYTES (64u << 10) /* what is saved at a time */

struct fleece;

/* image: read through its own descriptor as long as the view is there; path: beside which old
 * content is put. */
int fleece_new(const struct image *image, const char *path, struct fleece **out,
	       struct ft_err *err);
void fleece_free(struct fleece *f); /* NULL is fine */

/* The range is about to change: returns when that may happen. */
void fleece_before_change(struct fleece *f, uint64_t offset, uint64_t len);

/* The range is within the disk. 0 or -errno: of the image, or why the view is broken. */
int fleece_read(struct fleece *f, uint8_t *buf, uint32_t len, uint64_t offset);
/* *hole: the range from offset on was a hole; *extent (1 .. len) bytes of it are alike. */
int fleece_extent(struct fleece *f, uint64_t offset, uint64_t len, uint64_t *extent, bool *hole);
uint64_t fleece_saved_bytes(struct fleece *f);

#endif
