// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/ram_file.h"

#include <errno.h>
#include <fcntl.h>

int ram_file_write(int fd, uint64_t offset, struct iovec *iov, unsigned n)
{
	while (n) {
		ssize_t put = pwritev(fd, iov, (int)n, (off_t)offset);

		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0)
			return put < 0 ? -errno : -EIO;
		offset += (uint64_t)put;
		while (n && (size_t)put >= iov->iov_len) {
			put -= (ssize_t)iov->iov_len;
			iov++;
			n--;
		}
		if (n) {
			iov->iov_base = (uint8_t *)iov->iov_base + put;
			iov->iov_len -= (size_t)put;
		}
	}
	return 0;
}

int ram_file_empty(int fd, uint64_t offset, uint64_t bytes)
{
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
			 (off_t)bytes)
		       ? -errno
		       : 0;
}
