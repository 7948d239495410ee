// SPDX-License-Identifier: Apache-2.0
#include "ft/file_io.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>

int file_read(int fd, void *to, size_t bytes, uint64_t at)
{
	uint8_t *p = to;

	while (bytes) {
		ssize_t n = pread(fd, p, bytes, (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		p += n;
		at += (uint64_t)n;
		bytes -= (size_t)n;
	}
	return 0;
}

int file_write(int fd, const void *from, size_t bytes, uint64_t at)
{
	const uint8_t *p = from;

	while (bytes) {
		ssize_t n = pwrite(fd, p, bytes, (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		p += n;
		at += (uint64_t)n;
		bytes -= (size_t)n;
	}
	return 0;
}

int file_sync_folder(const char *path)
{
	char copy[PATH_MAX];
	int fd, rc = 0;

	if ((size_t)snprintf(copy, sizeof copy, "%s", path) >= sizeof copy)
		return -ENAMETOOLONG;
	fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (fsync(fd))
		rc = -errno;
	close(fd);
	return rc;
}
