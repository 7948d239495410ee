// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/snapshot/ram_read.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#define GATHER_PAGES 256 /* of one call; the kernel takes 1024 */

/* What `remote` lists, one behind the other. */
static int read_foreign(const struct vmm_ram *ram, const struct iovec *remote, size_t n,
			uint8_t *to, size_t bytes)
{
	struct iovec local = {to, bytes};
	ssize_t got = process_vm_readv(ram->pid ? ram->pid : getpid(), &local, 1, remote, n, 0);

	if (got == (ssize_t)bytes)
		return 0;
	return got < 0 ? -errno : -EIO;
}

static struct iovec range(const struct vmm_ram *ram, uint64_t pfn, size_t bytes)
{
	return (struct iovec){(void *)(uintptr_t)(ram->address + pfn * VMM_PAGE_BYTES), bytes};
}

int ram_gather(const struct vmm_ram *ram, const uint64_t *pfns, size_t n, uint8_t *to)
{
	struct iovec remote[GATHER_PAGES];
	int rc = 0;

	for (size_t at = 0, now; at < n && !rc; at += now) {
		now = n - at < GATHER_PAGES ? n - at : GATHER_PAGES;
		for (size_t i = 0; i < now; i++)
			remote[i] = range(ram, pfns[at + i], VMM_PAGE_BYTES);
		rc = read_foreign(ram, remote, now, to + at * VMM_PAGE_BYTES, now * VMM_PAGE_BYTES);
	}
	return rc;
}

int ram_read(const struct vmm_ram *ram, uint64_t pfn, size_t n, uint8_t *to)
{
	off_t at = (off_t)(ram->offset + pfn * VMM_PAGE_BYTES), data;
	size_t bytes = n * VMM_PAGE_BYTES;

	assert(pfn + n <= ram->bytes / VMM_PAGE_BYTES);
	if (ram->fd < 0)
		return read_foreign(ram, (struct iovec[]){range(ram, pfn, bytes)}, 1, to, bytes);
	/* Through the file: to read a hole through a mapping would fill it. */
	data = lseek(ram->fd, at, SEEK_DATA);
	if ((data < 0 && errno == ENXIO) || data >= at + (off_t)bytes)
		return 1;
	while (bytes) {
		ssize_t got = pread(ram->fd, to, bytes, at);

		if (got <= 0)
			return got < 0 ? -errno : -EIO;
		to += got;
		at += got;
		bytes -= (size_t)got;
	}
	return 0;
}

int ram_keep(struct vmm_ram *ram)
{
	int fd = ram->fd, pidfd = ram->pidfd;

	ram->fd = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 3);
	ram->pidfd = pidfd < 0 ? -1 : fcntl(pidfd, F_DUPFD_CLOEXEC, 3);
	if ((fd < 0 || ram->fd >= 0) && (pidfd < 0 || ram->pidfd >= 0))
		return 0;
	ram_drop(ram);
	return -EMFILE;
}

void ram_drop(struct vmm_ram *ram)
{
	if (ram->fd >= 0)
		close(ram->fd);
	if (ram->pidfd >= 0)
		close(ram->pidfd);
	ram->fd = ram->pidfd = -1;
}
