// SPDX-License-Identifier: Apache-2.0
/* Staging beyond its bound of memory: an unlinked temporary file in the run directory, one for each
 * stream, made when first needed. */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "tools/agent/agent.h"

static int spill_write(void *ctx, uint64_t at, const uint8_t *data, size_t len)
{
	struct spill *s = ctx;

	if (s->fd < 0)
		s->fd = open(s->dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (s->fd < 0)
		return -errno;
	while (len) {
		ssize_t n = pwrite(s->fd, data, len, (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -ENOSPC;
		data += n;
		at += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

static int spill_read(void *ctx, uint64_t at, uint8_t *out, size_t len)
{
	struct spill *s = ctx;

	while (len) {
		ssize_t n = pread(s->fd, out, len, (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		out += n;
		at += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

static void spill_reset(void *ctx)
{
	struct spill *s = ctx;

	if (s->fd >= 0)
		close(s->fd); /* unlinked: the space is free again */
	s->fd = -1;
}

const struct ft_overflow_ops spill_ops = {
	.write = spill_write, .read = spill_read, .reset = spill_reset};
