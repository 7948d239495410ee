// SPDX-License-Identifier: Apache-2.0
// One PAGEMAP_SCAN walks a region, reports what was written, and protects it again in the same
// step. It runs on the caller's thread alone: a second thread that took half of the RAM made scans
// slower at every size measured (up to 1 GiB), because both fight for the address space's lock and
// the wake-up alone costs as much as scanning 256 MiB.
#include "vmm-glue/tracker.h"

#include <assert.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "vmm-glue/inject.h"
#include "vmm-glue/uffd.h"
#include "vmm-glue/uffd_abi.h"

#define PAGE_BYTES 4096u
#define RANGES_MAX                                                                                 \
	16384 // taken from the kernel at a time: 384 KiB, which stays in the cache while we go over
	      // them
#define UFFD_FEATURES                                                                              \
	(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |                        \
	 UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC)

struct tracker {
	unsigned regions_n;
	struct tracker_region regions[TRACKER_REGIONS_MAX];
	uint64_t first_page[TRACKER_REGIONS_MAX]; // number of each region's first page
	uint64_t pages;
	unsigned registered_n; // regions that the userfaultfd has
	int uffd;
	int pagemap;
	int stat; // /proc/PID/stat, -1: cannot be read
	struct page_region ranges[RANGES_MAX];
};

static int open_pagemap(pid_t pid, struct ft_err *err)
{
	char path[64] = "/proc/self/pagemap";
	int fd;

	if (pid)
		snprintf(path, sizeof path, "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return ft_err_set(err, errno, "%s: %s", path, strerror(errno));
	return fd;
}

// Kernel and our own rights; needs nobody else.
static int check_kernel(struct ft_err *err)
{
	struct pm_scan_arg arg = {.size = sizeof arg,
				  .category_mask = PAGE_IS_WRITTEN,
				  .return_mask = PAGE_IS_WRITTEN};
	int fd, ret = 0;

	fd = open_pagemap(0, err);
	if (fd < 0)
		return fd;
	if (ioctl(fd, PAGEMAP_SCAN, &arg))
		ret = ft_err_set(err, ENOTSUP,
				 "kernel without PAGEMAP_SCAN: Linux 6.7 or newer is needed");
	close(fd);
	if (ret)
		return ret;
	fd = uffd_own(UFFD_USER_MODE_ONLY, err);
	if (fd < 0)
		return fd;
	ret = uffd_api(fd, UFFD_FEATURES, err);
	close(fd);
	return ret;
}

static int check_bits(pid_t pid, struct ft_err *err)
{
	unsigned char ident[EI_NIDENT] = {0};
	char path[64];
	int fd, ret = 0;

	snprintf(path, sizeof path, "/proc/%d/exe", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) // a kernel thread or a zombie has no program
		return ft_err_set(err, errno == ENOENT ? ESRCH : errno,
				  "process %d: its program: %s", pid, strerror(errno));
	if (read(fd, ident, sizeof ident) != sizeof ident || ident[EI_CLASS] != ELFCLASS64)
		ret = ft_err_set(err, ENOTSUP, "process %d: not a 64-bit program", pid);
	close(fd);
	return ret;
}

static int check_untraced(pid_t pid, struct ft_err *err)
{
	char path[64], line[128], name[32] = "?";
	int tracer = 0;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	f = fopen(path, "re");
	if (!f)
		return ft_err_set(err, ESRCH, "process %d: is gone", pid);
	while (!tracer && fgets(line, sizeof line, f))
		(void)sscanf(line, "TracerPid: %d", &tracer);
	fclose(f);
	if (!tracer)
		return 0;
	snprintf(path, sizeof path, "/proc/%d/comm", tracer);
	f = fopen(path, "re");
	if (f) {
		(void)!fscanf(f, "%31[^\n]", name);
		fclose(f);
	}
	return ft_err_set(err, EBUSY, "process %d: is traced by process %d (%s) already", pid,
			  tracer, name);
}

// Opening mem asks the kernel exactly what ptrace would ask, security modules included.
static int check_right(pid_t pid, struct ft_err *err)
{
	char path[64];
	int fd;

	snprintf(path, sizeof path, "/proc/%d/mem", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return ft_err_set(err, errno,
				  "process %d: no right to trace it, CAP_SYS_PTRACE is needed: %s",
				  pid, strerror(errno));
	close(fd);
	return 0;
}

int tracker_check(pid_t pid, struct ft_err *err)
{
	int ret = check_kernel(err);

	if (!ret && pid)
		ret = check_untraced(pid, err);
	if (!ret && pid)
		ret = check_right(pid, err);
	if (!ret && pid)
		ret = check_bits(pid, err);
	if (ret)
		ft_err_context(err, "dirty page tracker");
	return ret;
}

static int scan_failed(int code, struct ft_err *err)
{
	return ft_err_set(err, code, "dirty page tracker: scan: %s",
			  code == ESRCH ? "the process is gone" : strerror(code));
}

// A scan of an address space that is being torn down may find nothing and say so without an error.
// pread() of its pagemap gives nothing then; when it does give something after a scan, there was
// something to scan.
static int check_alive(const struct tracker *t, struct ft_err *err)
{
	uint64_t entry;
	off_t at = (off_t)(t->regions[0].start / PAGE_BYTES * sizeof entry);

	return pread(t->pagemap, &entry, sizeof entry, at) == sizeof entry
		       ? 0
		       : scan_failed(ESRCH, err);
}

static void set_regions(struct tracker *t, const struct tracker_region *regions, unsigned regions_n)
{
	assert(regions_n > 0 && regions_n <= TRACKER_REGIONS_MAX);
	t->regions_n = regions_n;
	for (unsigned i = 0; i < regions_n; i++) {
		assert(regions[i].start % PAGE_BYTES == 0);
		assert(regions[i].bytes % PAGE_BYTES == 0);
		assert(regions[i].bytes > 0);
		t->regions[i] = regions[i];
		t->first_page[i] = t->pages;
		t->pages += regions[i].bytes / PAGE_BYTES;
	}
}

// The process is asked for a userfaultfd of user mode faults only, because any process may have
// that one; asynchronous protection never waits for anybody, so faults of the kernel are tracked
// all the same.
static int open_process(struct tracker *t, pid_t pid, int pidfd, struct ft_err *err)
{
	char path[64] = "/proc/self/stat";
	int ret;

	t->pagemap = open_pagemap(pid, err);
	if (t->pagemap < 0)
		return t->pagemap;
	if (pid)
		snprintf(path, sizeof path, "/proc/%d/stat", pid);
	t->stat = open(path, O_RDONLY | O_CLOEXEC);
	if (pid) {
		// Verified after the pagemap was opened, so that both are the same process.
		ret = inject_verify(pid, pidfd, err);
		if (!ret)
			ret = inject_uffd(pid, pidfd, UFFD_USER_MODE_ONLY, false, &t->uffd, NULL,
					  err);
		return ret;
	}
	t->uffd = uffd_own(UFFD_USER_MODE_ONLY, err);
	return t->uffd < 0 ? t->uffd : 0;
}

static int protect(struct tracker *t, struct ft_err *err)
{
	int ret = uffd_api(t->uffd, UFFD_FEATURES, err);

	for (unsigned i = 0; i < t->regions_n && !ret; i++) {
		ret = uffd_register_wp(t->uffd, t->regions[i].start, t->regions[i].bytes, err);
		if (ret)
			break;
		t->registered_n++;
		ret = uffd_protect(t->uffd, t->regions[i].start, t->regions[i].bytes, err);
	}
	return ret;
}

int tracker_open(pid_t pid, int pidfd, const struct tracker_region *regions, unsigned regions_n,
		 struct tracker **out, struct ft_err *err)
{
	struct tracker *t = calloc(1, sizeof *t);
	int ret;

	if (!t)
		return ft_err_set(err, ENOMEM, "dirty page tracker: %s", strerror(ENOMEM));
	memset(t->ranges, 0xff, sizeof t->ranges); // touched now, not in the first pause
	t->uffd = t->pagemap = t->stat = -1;
	set_regions(t, regions, regions_n);
	ret = open_process(t, pid, pidfd, err);
	if (!ret)
		ret = protect(t, err);
	if (ret) {
		ft_err_context(err, "dirty page tracker");
		tracker_close(t);
		return ret;
	}
	*out = t;
	return 0;
}

static struct pm_scan_arg scan_arg(struct tracker *t, const struct tracker_region *r,
				   uint64_t flags)
{
	return (struct pm_scan_arg){
		.size = sizeof(struct pm_scan_arg),
		.flags = flags | PM_SCAN_CHECK_WPASYNC,
		.start = r->start,
		.end = r->start + r->bytes,
		.vec = (uintptr_t)t->ranges,
		.vec_len = RANGES_MAX,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
}

// How far a scan came. The kernel works in chunks of 512 ranges, and walk_end is left at the end of
// the last full one when it then reaches the end of the region; who goes on from there scans much
// of it twice. It stops early only when the vector is full, or max_pages are found.
static uint64_t scanned_to(const struct pm_scan_arg *arg, int n, bool found_max)
{
	return n < RANGES_MAX && !found_max ? arg->end : arg->walk_end;
}

static uint64_t range_pages(const struct page_region *range)
{
	return (range->end - range->start) / PAGE_BYTES;
}

// The ranges that a scan left in t->ranges go into the bitmap. Returns the number of pages.
static uint64_t take_ranges(const struct tracker *t, unsigned region, int n,
			    struct ft_bitmap *dirty)
{
	uint64_t start = t->regions[region].start, pages = 0;

	for (int i = 0; i < n; i++) {
		uint64_t first = t->first_page[region] + (t->ranges[i].start - start) / PAGE_BYTES;
		uint64_t count = range_pages(&t->ranges[i]);

		if (count == 1) // most are, when the guest writes here and there
			ft_bitmap_set(dirty, first);
		else
			ft_bitmap_set_range(dirty, first, count);
		pages += count;
	}
	return pages;
}

int tracker_scan(struct tracker *t, struct ft_bitmap *dirty, uint64_t *found, struct ft_err *err)
{
	uint64_t pages = 0;

	assert(dirty->bits >= t->pages);
	for (unsigned i = 0; i < t->regions_n; i++) {
		struct pm_scan_arg arg = scan_arg(t, &t->regions[i], PM_SCAN_WP_MATCHING);

		while (arg.start < arg.end) {
			int n = ioctl(t->pagemap, PAGEMAP_SCAN, &arg);

			if (n < 0)
				return scan_failed(errno, err);
			pages += take_ranges(t, i, n, dirty);
			arg.start = scanned_to(&arg, n, false);
		}
	}
	if (found)
		*found = pages;
	return check_alive(t, err);
}

uint64_t tracker_faults(const struct tracker *t)
{
	uint64_t minor, major;
	char text[512];
	const char *at;
	ssize_t n = t->stat < 0 ? 0 : pread(t->stat, text, sizeof text - 1, 0);

	text[n > 0 ? n : 0] = '\0';
	at = strrchr(text, ')'); // the name before may hold anything
	// Fields 10 and 12 of proc(5), sums over all threads, those that ended too.
	if (!at || sscanf(at + 1, " %*c %*d %*d %*d %*d %*d %*u %" SCNu64 " %*u %" SCNu64, &minor,
			  &major) != 2)
		return 0;
	return minor + major;
}

long tracker_peek(struct tracker *t, long max)
{
	long pages = 0;

	assert(max > 0);
	for (unsigned i = 0; i < t->regions_n && pages < max; i++) {
		struct pm_scan_arg arg = scan_arg(t, &t->regions[i], 0);

		while (arg.start < arg.end && pages < max) {
			int n;

			arg.max_pages = (uint64_t)(max - pages);
			n = ioctl(t->pagemap, PAGEMAP_SCAN, &arg);
			if (n < 0)
				return -errno;
			for (int k = 0; k < n; k++)
				pages += (long)range_pages(&t->ranges[k]);
			arg.start = scanned_to(&arg, n, pages >= max);
		}
	}
	return check_alive(t, NULL) ? -ESRCH : pages;
}

void tracker_close(struct tracker *t)
{
	if (!t)
		return;
	for (unsigned i = 0; i < t->registered_n; i++)
		uffd_unregister(t->uffd, t->regions[i].start, t->regions[i].bytes);
	if (t->uffd >= 0)
		close(t->uffd);
	if (t->pagemap >= 0)
		close(t->pagemap);
	if (t->stat >= 0)
		close(t->stat);
	free(t);
}
