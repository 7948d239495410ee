// SPDX-License-Identifier: Apache-2.0
// What a disk's bitmaps are made from: their file, the records of a checkpoint, and the map of
// changes beside the image. The first byte says which, and whether the rest is sealed as we would,
// for a fuzzer does not find a hash. Whatever is taken comes out again the same.
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "eventtap/block/bitmaps.h"
#include "eventtap/block/notes.h"
#include "tests/fuzz/beside.h"

#define DISK_BYTES ((2u << 20) + 5000)
#define FILE_MAX   8192

static struct bitmaps first, second;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	beside_open(NOTES_SUFFIX);
	return 0;
}

static void assert_same(void)
{
	struct bitmap_info a, b;
	uint8_t here[4096], there[4096];

	assert(bitmaps_count(&first) == bitmaps_count(&second));
	for (unsigned i = 0; bitmaps_info(&first, i, &a); i++) {
		assert(bitmaps_info(&second, i, &b));
		assert(!memcmp(&a, &b, sizeof a));
		assert(a.map_bytes <= sizeof here);
		assert(!bitmaps_read(&first, a.name, 0, here, a.map_bytes));
		assert(!bitmaps_read(&second, a.name, 0, there, a.map_bytes));
		assert(!memcmp(here, there, a.map_bytes));
	}
}

static int to_second(void *ctx, const struct tap_record *rec)
{
	(void)ctx;
	return bitmaps_apply(&second, rec);
}

/* As it would go to a standby. */
static void ship(void)
{
	assert(bitmaps_log(&first, 0, to_second, NULL) == 0);
	assert_same();
}

static void try_file(const uint8_t *data, size_t len, bool seal)
{
	uint8_t file[FILE_MAX + 8];
	bool in_use;

	len = len < FILE_MAX ? len : FILE_MAX;
	memcpy(file, data, len);
	if (seal) {
		uint64_t sum = XXH3_64bits(file, len);

		memcpy(file + len, &sum, sizeof sum);
		len += sizeof sum;
	}
	if (bitmaps_parse(&first, file, len, &in_use))
		assert(bitmaps_count(&first) == 0);
	else
		ship();
}

static void try_records(const uint8_t *data, size_t len)
{
	while (len >= 3) {
		struct tap_record rec = {
			.kind = TAP_DISK_BITMAP, .len = data[0], .arg = data[1] * 8u};

		data += 2;
		len -= 2;
		rec.len = rec.len < len ? rec.len : (uint32_t)len;
		rec.data = data;
		(void)bitmaps_apply(&first, &rec);
		data += rec.len;
		len -= rec.len;
		if (data[-1] & 1)
			bitmaps_mark(&first, data[-1] * 997u, 5000);
		if (data[-1] & 2)
			ship();
	}
	ship();
}

static void try_changes(const uint8_t *data, size_t len, bool seal)
{
	struct notes c;
	uint8_t head[56] = {0};
	uint64_t sum;
	int fd = open(beside_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert(fd >= 0);
	memcpy(head, data, len < 40 ? len : 40);
	if (seal && len >= 48) { /* the map is one word */
		memset(head + 24, 0, 16);
		sum = XXH3_64bits_withSeed(data + 40, 8, 0);
		memcpy(head + 40, &sum, 8);
		sum = XXH3_64bits(head, 48);
		memcpy(head + 48, &sum, 8);
	}
	assert(pwrite(fd, head, sizeof head, 0) == sizeof head);
	if (len > 40)
		assert(pwrite(fd, data + 40, len - 40, 4096) == (ssize_t)(len - 40));
	close(fd);
	assert(notes_open(&c, beside_image, DISK_BYTES, true) == 0);
	assert(notes_session(&c) || access(beside_path, F_OK));
	for (uint64_t at = 0, part; at < DISK_BYTES; at += part) {
		part = DISK_BYTES - at;
		(void)notes_at(&c, at, &part);
		assert(part > 0);
	}
	notes_mark(&c, 0, DISK_BYTES);
	notes_close(&c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	if (!len)
		return 0;
	bitmaps_init(&first, beside_image, DISK_BYTES);
	bitmaps_init(&second, beside_image, DISK_BYTES);
	switch (data[0] >> 1 & 3) {
	case 0:
		try_records(data + 1, len - 1);
		break;
	case 1:
		try_changes(data + 1, len - 1, data[0] & 1);
		break;
	default:
		try_file(data + 1, len - 1, data[0] & 1);
	}
	bitmaps_free(&first);
	bitmaps_free(&second);
	return 0;
}
