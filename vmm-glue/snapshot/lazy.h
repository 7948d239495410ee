/* SPDX-License-Identifier: Apache-2.0 */
/* RAM that comes from a snapshot's file while the guest already runs: a userfaultfd in missing mode
 * makes who touches a page that is not there wait for it, and the rest follows in the background:
 * first what was touched the last time (working_set.h), then in the file's order. Pages that the
 * file does not have stay holes until they are touched.
 *
 * Until all is there nobody may look at this RAM but through the VM's own page tables: reading a
 * hole elsewhere fills it with zeroes. If this process dies before, the VM's process stops at the
 * next missing page for ever (it keeps a descriptor, which is inert afterwards): its owner's keeper
 * has to end it. */
#ifndef VMM_GLUE_SNAPSHOT_LAZY_H
#define VMM_GLUE_SNAPSHOT_LAZY_H

#include <stdint.h>

#include "ft/err.h"
#include "vmm-glue/snapshot/source.h"
#include "vmm-glue/vmm.h"

struct lazy;

struct lazy_stats {
	uint64_t pages, pages_done; /* of those in the file */
	uint64_t faults, fault_us_max;
	uint32_t ahead; /* clusters of pages that were touched first the last time: read ahead */
};

/* RAM of a VM that waits, with nothing in it (source_empty()). *source is taken over on success.
 * done: once, on a thread of ours, when lazy_end() will not block. -EPERM: as frozen_open(). */
int lazy_begin(struct source *source, const struct vmm_ram *ram, void (*done)(void *ctx), void *ctx,
	       struct lazy **out, struct ft_err *err);
/* Any thread. */
void lazy_stats(const struct lazy *l, struct lazy_stats *stats);
/* Soon: what is missing stays missing, so the VM must not run any more. Any thread. */
void lazy_cancel(struct lazy *l);
/* Waits for the end, and frees. 0: all RAM is there. Else the VM must not run. */
int lazy_end(struct lazy *l, struct ft_err *err);

#endif
