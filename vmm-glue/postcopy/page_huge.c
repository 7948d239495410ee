// SPDX-License-Identifier: Apache-2.0
// What the VM has mapped of a huge page that is not whole (its firmware was there) is taken from it
// by a hole in the file, which is filled again at once: its place is not reserved any more, and
// later there might be none. All others are reserved by whoever mapped the file.
#include "vmm-glue/postcopy/page_huge.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "vmm-glue/uffd.h"

#define PRESENT (UINT64_C(1) << 63) /* Linux, Documentation/admin-guide/mm/pagemap.rst */

static uint64_t bytes_of(const struct page_huge *h)
{
	return h->pages * VMM_PAGE_BYTES;
}

int page_huge_new(const struct vmm_ram *ram, struct page_huge **out, struct ft_err *err)
{
	struct page_huge *h;
	struct statfs fs;

	*out = NULL;
	if (fstatfs(ram->fd, &fs))
		return ft_err_set(err, errno, "RAM: %s", strerror(errno));
	if (fs.f_type != HUGETLBFS_MAGIC)
		return 0;
	if ((uint64_t)fs.f_bsize > PAGE_HUGE_PAGES * VMM_PAGE_BYTES)
		return ft_err_set(err, ENOTSUP,
				  "the guest's RAM here is in pages of %ld MiB: nobody can wait "
				  "for so much at once; 2 MiB is the most",
				  (long)fs.f_bsize >> 20);
	h = calloc(1, sizeof *h);
	if (!h)
		return ft_err_set(err, ENOMEM, "pages: out of memory");
	h->ram = *ram;
	h->pages = (uint64_t)fs.f_bsize / VMM_PAGE_BYTES;
	h->map = mmap(NULL, ram->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ram->fd,
		      (off_t)ram->offset);
	if (h->map == MAP_FAILED || ram->bytes % bytes_of(h) ||
	    ft_bitmap_init(&h->backed, ram->bytes / bytes_of(h))) {
		int code = h->map == MAP_FAILED ? errno : ENOMEM;

		h->map = h->map == MAP_FAILED ? NULL : h->map;
		page_huge_free(h);
		return ft_err_set(err, code, "mapping RAM in huge pages: %s", strerror(code));
	}
	*out = h;
	return 0;
}

static int back(struct page_huge *h, uint64_t huge)
{
	if (ft_bitmap_test(&h->backed, huge))
		return 0;
	if (fallocate(h->ram.fd, FALLOC_FL_KEEP_SIZE, (off_t)(h->ram.offset + huge * bytes_of(h)),
		      (off_t)bytes_of(h)))
		return -errno;
	ft_bitmap_set(&h->backed, huge);
	return 0;
}

/* Takes it out of the VM's page tables; what is in it stays. */
static int unmap_there(struct page_huge *h, uint64_t huge, uint8_t *copy)
{
	uint8_t *here = h->map + huge * bytes_of(h);
	int rc;

	memcpy(copy, here, bytes_of(h));
	if (fallocate(h->ram.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		      (off_t)(h->ram.offset + huge * bytes_of(h)), (off_t)bytes_of(h)))
		return -errno;
	rc = back(h, huge);
	if (!rc)
		memcpy(here, copy, bytes_of(h));
	return rc;
}

static int open_pagemap(pid_t pid, struct ft_err *err)
{
	char path[32] = "/proc/self/pagemap";
	int fd;

	if (pid)
		snprintf(path, sizeof path, "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd >= 0 ? fd : ft_err_set(err, errno, "%s: %s", path, strerror(errno));
}

static int hide(struct page_huge *h, const struct ft_bitmap *missing, int pagemap, uint8_t *copy)
{
	int rc = 0;

	for (uint64_t pfn = ft_bitmap_next(missing, 0); pfn < missing->bits && !rc;
	     pfn = ft_bitmap_next(missing, page_huge_first(h, pfn) + h->pages)) {
		uint64_t huge = pfn / h->pages, entry;
		uint64_t at = (h->ram.address + huge * bytes_of(h)) / VMM_PAGE_BYTES;

		if (pread(pagemap, &entry, sizeof entry, (off_t)(at * sizeof entry)) !=
		    sizeof entry)
			rc = -EIO;
		else if (entry & PRESENT)
			rc = unmap_there(h, huge, copy);
	}
	return rc;
}

int page_huge_hide(struct page_huge *h, const struct ft_bitmap *missing, struct ft_err *err)
{
	uint8_t *copy = malloc(bytes_of(h));
	int pagemap, rc;

	if (!copy)
		return ft_err_set(err, ENOMEM, "pages: out of memory");
	pagemap = open_pagemap(h->ram.pid, err);
	rc = pagemap < 0 ? pagemap : hide(h, missing, pagemap, copy);
	if (pagemap >= 0 && rc)
		ft_err_set(err, -rc, "postcopy: hiding huge pages: %s", strerror(-rc));
	if (pagemap >= 0)
		close(pagemap);
	free(copy);
	return rc;
}

uint8_t *page_huge_at(struct page_huge *h, uint64_t pfn)
{
	return back(h, pfn / h->pages) ? NULL : h->map + pfn * VMM_PAGE_BYTES;
}

bool page_huge_is_whole(const struct page_huge *h, const struct ft_bitmap *missing, uint64_t pfn)
{
	uint64_t first = page_huge_first(h, pfn);

	return ft_bitmap_next(missing, first) >= first + h->pages;
}

int page_huge_show(const struct page_huge *h, int uffd, uint64_t pfn)
{
	int rc = uffd_show(uffd, h->ram.address + page_huge_first(h, pfn) * VMM_PAGE_BYTES,
			   bytes_of(h));

	/* Not registered any more: all is there, and memory is ordinary again. */
	return rc == -ENOENT ? 0 : rc;
}

void page_huge_free(struct page_huge *h)
{
	if (!h)
		return;
	if (h->map)
		munmap(h->map, h->ram.bytes);
	ft_bitmap_free(&h->backed);
	free(h);
}
