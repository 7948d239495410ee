/* SPDX-License-Identifier: Apache-2.0 */
/* What a TAP_DISK_* record means for an image. */
#ifndef EVENTTAP_BLOCK_RECORD_H
#define EVENTTAP_BLOCK_RECORD_H

#include <stdint.h>

#include "eventtap/block/image.h"
#include "eventtap/tap.h"

/* The bytes that a record changes; FLUSH, BITMAP: none. -EPROTO: no disk record, or not within a
 * disk of disk_bytes. Input is hostile. */
int record_range(const struct tap_record *rec, uint64_t disk_bytes, uint64_t *offset,
		 uint64_t *len);
/* Carries the record out; FLUSH is left to the caller, who may want to do it once for many, and so
 * is BITMAP. 0,
 * -EPROTO or what the image says. */
int record_apply(const struct image *image, const struct tap_record *rec);

#endif
