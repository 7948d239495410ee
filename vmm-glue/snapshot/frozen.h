/* SPDX-License-Identifier: Apache-2.0 */
/* RAM as it was at one moment, read while the guest runs on: a userfaultfd in synchronous mode
 * write-protects all of it, and who writes a page waits until the page was saved.
 *
 *     frozen_open()       all RAM is protected while the guest runs; who writes is let go at once,
 *                         and the page noted
 *     frozen_moment()     with the guest held: the noted pages, few, are protected again. From now
 *                         on a write waits for ops->fault()
 *     frozen_release()    pages were saved: writes to them go on
 *     frozen_thaw()       writes to any page go on; nothing is frozen any more
 *
 * Protecting beforehand is what keeps the pause short: protecting all takes 20 ms per GiB.
 *
 * Who writes through other page tables than the process's own is not seen (tracker.h). If this
 * process dies, the kernel releases everything. One that is stopped stops the guest at its next
 * write: see ops->alive. */
#ifndef VMM_GLUE_SNAPSHOT_FROZEN_H
#define VMM_GLUE_SNAPSHOT_FROZEN_H

#include <stddef.h>
#include <stdint.h>

#include "ft/err.h"
#include "vmm-glue/vmm.h"

#define FROZEN_ALIVE_MS 250

struct frozen;

/* All called on the thread that serves faults. */
struct frozen_ops {
	/* Somebody waits to write page pfn, until frozen_release() of it, by whoever saves it. */
	void (*fault)(void *ctx, uint64_t pfn);
	/* At least every FROZEN_ALIVE_MS, unless fault() blocks: this process is not stopped. May
	 * be NULL. */
	void (*alive)(void *ctx);
	void *ctx;
};

struct frozen_stats {
	uint64_t faults;		 /* served since the moment */
	uint64_t fault_ns, fault_ns_max; /* of our time: their sum, the longest */
};

/* Stops one thread of the VM's process for a moment (inject.h) and takes 20 ms per GiB. ops is
 * copied; *ram's descriptors are duplicated. -EPERM: that process may not have a userfaultfd for
 * faults of the kernel. */
int frozen_open(const struct vmm_ram *ram, const struct frozen_ops *ops, struct frozen **out,
		struct ft_err *err);
/* Nobody writes RAM meanwhile (vmm_save()'s held()). */
int frozen_moment(struct frozen *f, struct ft_err *err);
/* Copies n pages from pfn on. 1: they are a hole, that is zeroes, and `to` is as it was. -errno:
 * the process is gone. Any thread. */
int frozen_read(const struct frozen *f, uint64_t pfn, size_t n, uint8_t *to);
/* Any thread. */
int frozen_release(struct frozen *f, uint64_t pfn, size_t n);
/* Any thread, more than once. Takes 20 ms per GiB, in steps of 1 ms. */
void frozen_thaw(struct frozen *f);
void frozen_stats(const struct frozen *f, struct frozen_stats *stats);
/* Thaws. Accepts NULL. */
void frozen_close(struct frozen *f);

#endif
