// SPDX-License-Identifier: Apache-2.0
// Where the RAM is: the monitor translates one guest-physical address that is RAM on every PC (1
// MiB) into QEMU's own, and /proc/PID/maps must show memory for the whole block around it. How it
// is backed is the kernel's word, not the command line's.
#include "vmm-glue/qemu/ram.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#include "vmm-glue/vmm.h"

#define PROBE_GPA    0x100000u /* above the holes of the first MiB, below every other */
#define BATCH_IOVECS 512       /* the kernel takes 1024 */
#define PREFETCH     4	       /* pages: scattered reads are bound by memory latency */

/* The area of QEMU's that holds the start of the RAM. */
struct area {
	uint64_t start, end, offset, inode;
	dev_t dev;
	bool shared;
};

/* The areas from `hva` on for `bytes` must follow each other and be of one kind; *first is the
 * first of them. */
static int find_areas(pid_t pid, uint64_t hva, uint64_t bytes, struct area *first,
		      struct ft_err *err)
{
	uint64_t at = hva;
	char path[32], line[512];
	FILE *maps;

	snprintf(path, sizeof path, "/proc/%d/maps", pid);
	maps = fopen(path, "re");
	if (!maps)
		return ft_err_set(err, errno, "qemu: ram: %s: %s", path, strerror(errno));
	while (at < hva + bytes && fgets(line, sizeof line, maps)) {
		unsigned major, minor;
		struct area a;
		char perms[5];

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64, &a.start,
			   &a.end, perms, &a.offset, &major, &minor, &a.inode) != 7)
			continue;
		if (a.end <= at || a.start > at)
			continue;
		a.dev = makedev(major, minor);
		a.shared = perms[3] == 's';
		if (at == hva)
			*first = a;
		else if (a.inode != first->inode || a.dev != first->dev ||
			 a.shared != first->shared ||
			 (a.inode && a.offset - first->offset != a.start - first->start))
			break;
		at = a.end;
	}
	fclose(maps);
	if (at < hva + bytes)
		return ft_err_set(err, ENOTSUP,
				  "qemu: ram: its memory is not one piece in the process");
	return 0;
}

/* A descriptor of the file behind a shared area: its map_files entry (CAP_SYS_ADMIN or
 * CAP_CHECKPOINT_RESTORE), or one that QEMU itself holds. */
static int open_backing(pid_t pid, const struct area *a)
{
	char path[96];
	struct dirent *e;
	int fd;
	DIR *dir;

	snprintf(path, sizeof path, "/proc/%d/map_files/%" PRIx64 "-%" PRIx64, pid, a->start,
		 a->end);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		return fd;
	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	dir = opendir(path);
	while (dir && fd < 0 && (e = readdir(dir))) {
		struct stat st;

		if (fstatat(dirfd(dir), e->d_name, &st, 0) == 0 && st.st_ino == a->inode &&
		    st.st_dev == a->dev)
			fd = openat(dirfd(dir), e->d_name, O_RDONLY | O_CLOEXEC);
	}
	if (dir)
		closedir(dir);
	return fd;
}

static int map_shared(struct ram *r, const struct area *a, struct ft_err *err)
{
	int fd = open_backing(r->pid, a);
	void *map;

	if (fd < 0)
		return 0; /* readable as private memory, only dearer */
	r->file_offset = a->offset + (r->hva - a->start);
	map = mmap(NULL, r->bytes, PROT_READ, MAP_SHARED, fd, (off_t)r->file_offset);
	if (map == MAP_FAILED) {
		int saved = errno;

		close(fd);
		return ft_err_set(err, saved, "qemu: ram: mapping its backend: %s",
				  strerror(saved));
	}
	r->map = map;
	r->fd = fd;
	return 0;
}

static int ask_qemu(struct ram *r, struct qmp *q, struct ft_err *err)
{
	char line[32], *text;
	json_t *ret;
	int n, r2;

	r2 = qmp_call(q, &ret, err, "query-memory-size-summary", NULL);
	if (r2 < 0)
		return r2;
	r->bytes = (uint64_t)json_integer_value(json_object_get(ret, "base-memory"));
	json_decref(ret);
	snprintf(line, sizeof line, "gpa2hva 0x%x", PROBE_GPA);
	r2 = qmp_human(q, &text, err, line);
	if (r2 < 0)
		return r2;
	/* "Host virtual address for 0x100000 (pc.ram) is 0x7fde1ff00000" */
	n = sscanf(text, "Host virtual address for %*s (%63[^)]) is %" SCNx64, r->region, &r->hva);
	free(text);
	if (n != 2 || r->hva < PROBE_GPA || r->bytes <= PROBE_GPA || r->bytes % VMM_PAGE_BYTES ||
	    r->hva % VMM_PAGE_BYTES)
		return ft_err_set(
			err, ENOTSUP,
			"qemu: ram: no RAM at 1 MiB: not a PC, or a monitor without gpa2hva");
	r->hva -= PROBE_GPA;
	return 0;
}

int ram_find(struct ram *r, struct qmp *q, pid_t pid, struct ft_err *err)
{
	struct area a = {0};
	struct stat st;
	int r2;

	r->pid = pid;
	r2 = ask_qemu(r, q, err);
	if (r2 == 0)
		r2 = find_areas(pid, r->hva, r->bytes, &a, err);
	if (r2 == 0 && !r->map && a.shared)
		r2 = map_shared(r, &a, err);
	/* Of somebody else's file mincore(2) says that all of it is there. */
	r->tells = r->fd > 0 && fstat(r->fd, &st) == 0 && st.st_uid == geteuid();
	return r2;
}

void ram_unmap(struct ram *r)
{
	if (r->map)
		munmap(r->map, r->bytes);
	if (r->fd > 0)
		close(r->fd);
	r->map = NULL;
	r->fd = 0;
}

void ram_trim(struct ram *r)
{
	if (!r->map || r->touched < RAM_TOUCHED_MAX)
		return;
	/* Only our page table entries go; the pages are QEMU's. */
	madvise(r->map, r->bytes, MADV_DONTNEED);
	r->touched = 0;
}

static void copy_mapped(const struct ram *r, const uint64_t *pfns, size_t n, uint8_t *target)
{
	for (size_t i = 0; i < n; i++) {
		if (i + PREFETCH < n) {
			const uint8_t *next = r->map + pfns[i + PREFETCH] * VMM_PAGE_BYTES;

			for (unsigned at = 0; at < 512; at += 64)
				__builtin_prefetch(next + at);
		}
		memcpy(target + i * VMM_PAGE_BYTES, r->map + pfns[i] * VMM_PAGE_BYTES,
		       VMM_PAGE_BYTES);
	}
}

/* process_vm_readv may stop short at a page boundary; the rest is asked for again until nothing
 * moves. */
static int read_ranges(pid_t pid, struct iovec *remote, unsigned n, uint8_t *target, size_t bytes)
{
	while (bytes) {
		struct iovec local = {target, bytes};
		ssize_t got = process_vm_readv(pid, &local, 1, remote, n, 0);

		if (got <= 0)
			return -EIO;
		target += got;
		bytes -= (size_t)got;
		while (n && (size_t)got >= remote->iov_len) {
			got -= (ssize_t)remote->iov_len;
			remote++;
			n--;
		}
		if (n) {
			remote->iov_base = (uint8_t *)remote->iov_base + got;
			remote->iov_len -= (size_t)got;
		}
	}
	return 0;
}

static int copy_foreign(const struct ram *r, const uint64_t *pfns, size_t n, uint8_t *target)
{
	struct iovec remote[BATCH_IOVECS];

	for (size_t i = 0, first; i < n;) {
		unsigned k = 0;

		for (first = i; i < n; i++) {
			uint8_t *at = (uint8_t *)(uintptr_t)(r->hva + pfns[i] * VMM_PAGE_BYTES);

			if (k && (uint8_t *)remote[k - 1].iov_base + remote[k - 1].iov_len == at) {
				remote[k - 1].iov_len += VMM_PAGE_BYTES;
				continue;
			}
			if (k == BATCH_IOVECS)
				break;
			remote[k++] = (struct iovec){at, VMM_PAGE_BYTES};
		}
		if (read_ranges(r->pid, remote, k, target + first * VMM_PAGE_BYTES,
				(i - first) * VMM_PAGE_BYTES) < 0)
			return -EIO;
	}
	return 0;
}

int ram_copy(struct ram *r, const uint64_t *pfns, size_t n, uint8_t *target)
{
	for (size_t i = 0; i < n; i++)
		assert(pfns[i] < r->bytes / VMM_PAGE_BYTES);
	if (!r->map)
		return copy_foreign(r, pfns, n, target);
	copy_mapped(r, pfns, n, target);
	r->touched += n;
	return 0;
}

/* As many neighbours as there are, in one read. */
static int copy_file(const struct ram *r, const uint64_t *pfns, size_t n, uint8_t *target)
{
	for (size_t i = 0, run; i < n; i += run) {
		size_t got = 0;

		for (run = 1; i + run < n && pfns[i + run] == pfns[i] + run; run++)
			;
		while (got < run * VMM_PAGE_BYTES) {
			ssize_t k = pread(r->fd, target + i * VMM_PAGE_BYTES + got,
					  run * VMM_PAGE_BYTES - got,
					  (off_t)(r->file_offset + pfns[i] * VMM_PAGE_BYTES + got));

			if (k <= 0)
				return -EIO;
			got += (size_t)k;
		}
	}
	return 0;
}

int ram_copy_bulk(struct ram *r, const uint64_t *pfns, size_t n, uint8_t *target)
{
	for (size_t i = 0; i < n; i++)
		assert(pfns[i] < r->bytes / VMM_PAGE_BYTES);
	return r->fd > 0 ? copy_file(r, pfns, n, target) : ram_copy(r, pfns, n, target);
}

const uint8_t *ram_view(struct ram *r, uint64_t pfn, size_t n)
{
	unsigned char there[VMM_VIEW_MAX];
	uint8_t *at;

	assert(n <= VMM_VIEW_MAX && pfn + n <= r->bytes / VMM_PAGE_BYTES);
	if (!r->map || !r->tells)
		return NULL;
	at = r->map + pfn * VMM_PAGE_BYTES;
	if (mincore(at, n * VMM_PAGE_BYTES, there))
		return NULL;
	for (size_t i = 0; i < n; i++)
		if (!(there[i] & 1))
			return NULL;
	ram_trim(r);
	r->touched += n;
	return at;
}

/* The next part that is not a hole, from `at` on; false: none. What cannot tell has none. */
static bool next_data(const struct ram *r, uint64_t at, uint64_t *start, uint64_t *end)
{
	off_t data = -1, hole = -1;

	if (r->fd > 0) {
		data = lseek(r->fd, (off_t)(r->file_offset + at), SEEK_DATA);
		if (data < 0 && errno == ENXIO)
			return false;
	}
	if (data >= 0)
		hole = lseek(r->fd, data, SEEK_HOLE);
	*start = data < 0 ? at : (uint64_t)data - r->file_offset;
	*end = hole < 0 ? r->bytes : (uint64_t)hole - r->file_offset;
	if (*end > r->bytes)
		*end = r->bytes;
	return *start < *end;
}

/* Holes are zeroes, and reading one would fill it. */
static uint64_t digest_mapped(struct ram *r)
{
	uint64_t sum = 0, start, end;

	for (uint64_t at = 0; at < r->bytes && next_data(r, at, &start, &end); at = end)
		sum += vmm_pages_digest(r->map + start, start / VMM_PAGE_BYTES,
					(end - start) / VMM_PAGE_BYTES);
	r->touched = RAM_TOUCHED_MAX;
	return sum;
}

int ram_digest(struct ram *r, uint64_t *digest, struct ft_err *err)
{
	const size_t step = 1u << 20;
	uint8_t *buf;
	int rc = 0;

	if (r->map) {
		*digest = digest_mapped(r);
		return 0;
	}
	buf = malloc(step);
	if (!buf)
		return ft_err_set(err, ENOMEM, "qemu: ram: no memory");
	*digest = 0;
	for (uint64_t at = 0; at < r->bytes && rc == 0; at += step) {
		size_t len = r->bytes - at < step ? (size_t)(r->bytes - at) : step;
		struct iovec remote = {(void *)(uintptr_t)(r->hva + at), len};

		if (read_ranges(r->pid, &remote, 1, buf, len) < 0)
			rc = ft_err_set(err, EIO, "qemu: ram: process %d cannot be read", r->pid);
		else
			*digest += vmm_pages_digest(buf, at / VMM_PAGE_BYTES, len / VMM_PAGE_BYTES);
	}
	free(buf);
	return rc;
}
