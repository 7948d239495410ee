/* SPDX-License-Identifier: Apache-2.0 */
/* What differs from an older snapshot, of RAM or of a disk, into a file of changes. One thread. */
#ifndef VMM_GLUE_SNAPSHOT_DIFFERING_H
#define VMM_GLUE_SNAPSHOT_DIFFERING_H

#include <stddef.h>
#include <stdint.h>

#include "vmm-glue/snapshot/changes_file.h"
#include "vmm-glue/snapshot/source.h"

#define DIFFERING_PAGES_MAX 64 /* at a time */

struct differing {
	struct changes_out *to;
	const struct source *than;
	uint8_t *buffer; /* room for DIFFERING_PAGES_MAX */
	uint64_t put;	 /* pages */
};

/* Puts those of n pages that differ, or were put before. -errno. */
int differing_put(struct differing *d, uint64_t pfn, size_t n, const uint8_t *pages);
/* The same where there are zeroes now, as many as you like; none was put before. */
int differing_put_zeroes(struct differing *d, uint64_t pfn, uint64_t n);

#endif
