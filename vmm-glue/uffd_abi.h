/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel's interface to asynchronous write protection, for C libraries whose headers are older
 * than Linux 6.7 (Debian 12 has 6.1's). Source: include/uapi/linux/fs.h (PAGEMAP_SCAN) and
 * include/uapi/linux/userfaultfd.h (feature bits) of Linux 6.7. */
#ifndef VMM_GLUE_UFFD_ABI_H
#define VMM_GLUE_UFFD_ABI_H

#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <stdint.h>

#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif

#ifndef PAGEMAP_SCAN
#define PAGE_IS_WRITTEN	      (1 << 1)
#define PM_SCAN_WP_MATCHING   (1 << 0)
#define PM_SCAN_CHECK_WPASYNC (1 << 1)

struct page_region {
	uint64_t start, end; /* addresses, end excluded */
	uint64_t categories;
};

struct pm_scan_arg {
	uint64_t size;
	uint64_t flags;
	uint64_t start, end;
	uint64_t walk_end; /* out: where the walk stopped, because vec is full or max_pages were
			      found */
	uint64_t vec, vec_len;
	uint64_t max_pages; /* 0: no limit */
	uint64_t category_inverted, category_mask, category_anyof_mask;
	uint64_t return_mask;
};

#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#endif

#endif
