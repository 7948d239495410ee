// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/snapshot/frame.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "vmm-glue/snapshot/source.h"

#define BITMAP_WORDS 512 /* written at a time */

static int write_bitmap(const struct out_file *file, const struct mapped_ram_block *block,
			const _Atomic uint64_t *bitmap)
{
	uint64_t words = mapped_ram_words(block), le[BITMAP_WORDS];
	int rc = 0;

	for (uint64_t at = 0; at < words && !rc; at += BITMAP_WORDS) {
		uint64_t n = words - at < BITMAP_WORDS ? words - at : BITMAP_WORDS;

		for (uint64_t i = 0; i < n; i++)
			le[i] = htole64(bitmap[at + i]);
		rc = out_file_write(file, le, n * 8, block->bitmap_offset + at * 8, false);
	}
	return rc;
}

int frame_write(const struct out_file *file, const struct mapped_ram *layout,
		const _Atomic uint64_t *bitmap, const uint8_t *state, size_t state_len,
		struct ft_err *err)
{
	uint8_t bytes[MAPPED_RAM_HEAD_MAX];
	uint64_t at;
	size_t n = mapped_ram_head(layout, 0, &at, bytes);
	int rc = out_file_write(file, bytes, n, at, false);

	if (!rc)
		rc = write_bitmap(file, &layout->blocks[0], bitmap);
	n = mapped_ram_tail(bytes);
	if (!rc)
		rc = out_file_write(file, bytes, n, layout->tail_offset, false);
	if (!rc)
		rc = out_file_write(file, state, state_len, layout->state_offset, false);
	return rc ? ft_err_set(err, -rc, "%s: %s", file->path, strerror(-rc)) : 0;
}

int frame_verify(const struct out_file *file, uint64_t digest, struct ft_err *err)
{
	struct source source;
	uint64_t got = 0;
	int rc = source_open_fd(file->fd, file->path, &source, err);

	if (rc)
		return rc;
	rc = source_digest(&source, &got, err);
	source_close(&source);
	if (!rc && got != digest)
		rc = ft_err_set(err, EBADMSG,
				"verify: the file has digest %016" PRIx64 ", RAM had %016" PRIx64,
				got, digest);
	return rc;
}
