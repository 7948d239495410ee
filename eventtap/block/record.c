// SPDX-License-Identifier: Apache-2.0
// One reading of the disk records for the primary's tap and the standby's store.
#include "eventtap/block/record.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

int record_range(const struct tap_record *rec, uint64_t disk_bytes, uint64_t *offset, uint64_t *len)
{
	*offset = rec->arg;
	*len = rec->len;
	switch (rec->kind) {
	case TAP_DISK_WRITE:
		break;
	case TAP_DISK_ZERO:
	case TAP_DISK_TRIM:
		if (rec->len != sizeof(*len))
			return -EPROTO;
		memcpy(len, rec->data, sizeof(*len));
		*len = le64toh(*len);
		break;
	case TAP_DISK_FLUSH:
	case TAP_DISK_BITMAP:
		*offset = 0;
		*len = 0;
		return rec->len == 0 || rec->kind == TAP_DISK_BITMAP ? 0 : -EPROTO;
	default:
		return -EPROTO;
	}
	return *len > 0 && *len <= disk_bytes && *offset <= disk_bytes - *len ? 0 : -EPROTO;
}

int record_apply(const struct image *image, const struct tap_record *rec)
{
	uint64_t offset, len;
	int ret = record_range(rec, image->bytes, &offset, &len);
	if (ret < 0 || len == 0)
		return ret;
	if (rec->kind == TAP_DISK_WRITE)
		return image_pwrite(image, rec->data, len, offset);
	return image_zero(image, offset, len,
			  rec->kind == TAP_DISK_TRIM ? IMAGE_ZERO_UNMAP : IMAGE_ZERO_ALLOCATED,
			  false);
}
