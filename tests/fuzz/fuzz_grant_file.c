// SPDX-License-Identifier: Apache-2.0
// The record of arbiter file, in a folder that other hosts write to. The first byte seals the rest
// as we would (bit 0), and says which generation its name claims. A record that is not whole is
// never granted over; one that is grants its next generation once.
#include <assert.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "transport/grant_file.h"

#define GUEST	 "g"
#define TEXT_MAX 600

static char folder[] = "/dev/shm/fuzz-grant-XXXXXX";

static void forget(uint64_t generation)
{
	char path[64];

	snprintf(path, sizeof path, "%s/" GUEST ".%" PRIu64, folder, generation);
	unlink(path);
}

static void clean_up(void)
{
	rmdir(folder);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	assert(mkdtemp(folder));
	atexit(clean_up);
	return 0;
}

static void put(uint64_t generation, const uint8_t *data, size_t len, bool seal)
{
	char text[TEXT_MAX + 64], path[64];
	size_t n = len < TEXT_MAX ? len : TEXT_MAX;
	int fd;

	if (n)
		memcpy(text, data, n);
	if (seal)
		n += (size_t)snprintf(text + n, sizeof text - n, "check %016" PRIx64 "\n",
				      (uint64_t)XXH3_64bits(text, n));
	snprintf(path, sizeof path, "%s/" GUEST ".%" PRIu64, folder, generation);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert(fd >= 0 && write(fd, text, n) == (ssize_t)n);
	close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	unsigned how = len ? data[0] : 0;
	uint64_t generation = how & 2 ? UINT64_MAX / 2 : 1 + (how >> 2 & 7);
	struct ft_grant_record want = {.generation = generation + 1, .holder = "h"}, was, now;
	struct ft_err err = {0};

	put(generation, data + 1, len ? len - 1 : 0, how & 1);
	if (grant_file_read(folder, GUEST, &was, &err) == FT_ARBITER_GRANTED) {
		assert(was.generation == generation);
		assert(memchr(was.holder, 0, sizeof was.holder));
		assert(memchr(was.partner, 0, sizeof was.partner));
		if (!(how & 2)) {
			assert(grant_file_swap(folder, GUEST, generation, &want, &now, &err) ==
			       FT_ARBITER_GRANTED);
			assert(grant_file_swap(folder, GUEST, generation, &want, &now, &err) ==
			       FT_ARBITER_LOST);
		}
	} else if (!(how & 2)) {
		assert(err.text[0]);
		assert(grant_file_swap(folder, GUEST, generation, &want, &now, &err) ==
		       FT_ARBITER_UNREACHABLE);
	}
	for (unsigned i = 0; i < 2; i++)
		forget(generation + i);
	return 0;
}
