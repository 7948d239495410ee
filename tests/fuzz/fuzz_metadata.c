// SPDX-License-Identifier: Apache-2.0
// The metadata file beside a disk image: torn by a power cut, edited by hand, of another program.
// Bit 0 of the first byte seals the rest as we would, for a fuzzer does not find a hash. What is
// taken is what we write, to the byte.
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "eventtap/block/metadata.h"
#include "tests/fuzz/beside.h"

#define TEXT_MAX (2 * METADATA_BYTES_MAX)

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	beside_open(METADATA_SUFFIX);
	return 0;
}

static size_t file_text(char text[TEXT_MAX])
{
	int fd = open(beside_path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, TEXT_MAX);

	assert(n >= 0);
	close(fd);
	return (size_t)n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	char text[TEXT_MAX], again[TEXT_MAX];
	size_t n = len ? len - 1 : 0;
	struct metadata_record record;
	struct metadata meta;
	struct ft_err err = {0};
	int fd, ret;

	n = n < METADATA_BYTES_MAX ? n : METADATA_BYTES_MAX;
	if (n)
		memcpy(text, data + 1, n);
	if (len && data[0] & 1)
		n += (size_t)snprintf(text + n, sizeof text - n, "sum %016" PRIx64 "\n",
				      (uint64_t)XXH3_64bits(text, n));
	fd = open(beside_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert(fd >= 0 && write(fd, text, n) == (ssize_t)n);
	close(fd);
	ret = metadata_read(beside_image, &record, &err);
	/* An empty one is none, and one of a later version is not damaged. */
	assert(ret == 0 || ret == -EBADMSG || ret == -ENOTSUP || (ret == -ENOENT && !n));
	if (ret == 0)
		(void)metadata_startable(beside_image, &record, &err);
	if (n && metadata_open(beside_image, &meta, &err)) {
		assert(ret < 0 && err.code == -ret);
	} else if (n) {
		assert(ret == 0 && !memcmp(&meta.record, &record, sizeof record));
		assert(metadata_write(&meta, &record, &err) == 0);
		assert(file_text(again) == n && !memcmp(text, again, n));
		metadata_close(&meta);
	}
	return 0;
}
