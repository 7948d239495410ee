/* SPDX-License-Identifier: Apache-2.0 */
/* Dirty page tracker: a userfaultfd of the guest's address space (another process's, or our own) in
 * WP_ASYNC mode, harvested with the PAGEMAP_SCAN ioctl on /proc/PID/pagemap (Linux 6.7+:
 * Documentation/admin-guide/mm/pagemap.rst, userfaultfd.rst).
 *
 * For another process the userfaultfd is made by the process itself: one of its threads is stopped
 * with ptrace, executes userfaultfd(2) through a `syscall` instruction of its own text, and we take
 * the descriptor with pidfd_getfd(2) (inject.h). Its other threads run on meanwhile.
 *
 * Page numbers count from the start of the first region on through all regions. One thread at a
 * time.
 *
 * What counts is a write through the process's own page tables, by itself or by the kernel for it.
 * Three kinds of change are not seen. Writes to shared memory by other processes that map it
 * (vhost-user backends, ourselves). Pages given back with FALLOC_FL_PUNCH_HOLE or MADV_REMOVE, as a
 * balloon over a memfd does: they read as zeros, and are reported only when written again. Data
 * that arrives in a page after a scan when the page was pinned for it before (O_DIRECT reads,
 * VFIO): scan with the disks drained, or do without such disks. */
#ifndef VMM_GLUE_TRACKER_H
#define VMM_GLUE_TRACKER_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "ft/bitmap.h"
#include "ft/err.h"

#define TRACKER_REGIONS_MAX 16

struct tracker_region {
	uint64_t start; /* address in the tracked process, page aligned */
	uint64_t bytes;
};

struct tracker;

/* Can this kernel, with these privileges, track that process (0 = ourselves)? Touches nothing.
 * Errors are one line for an operator: kernel without PAGEMAP_SCAN (before 6.7), no CAP_SYS_PTRACE,
 * unprivileged userfaultfd, ptraced by somebody else. */
int tracker_check(pid_t pid, struct ft_err *err);
/* pidfd: of pid, so that a reused pid is never touched; ignored for pid 0. All pages are
 * write-protected when this returns; pages written from now on are dirty.
 * 10 ms per GiB, and up to INJECT_MS_MAX. -EBUSY: another userfaultfd has the memory already.
 * -ETIMEDOUT: no thread of the process could be stopped. */
int tracker_open(pid_t pid, int pidfd, const struct tracker_region *regions, unsigned regions_n,
		 struct tracker **out, struct ft_err *err);
/* dirty |= pages written since the last scan, and protects them again, atomically per page. *found
 * (may be NULL): pages of this scan; one that is written meanwhile may count twice. After an error
 * (-ESRCH: the process is gone) any page may have been missed, and the tracker is good for
 * tracker_close() only. */
int tracker_scan(struct tracker *t, struct ft_bitmap *dirty, uint64_t *found, struct ft_err *err);
/* Page faults that the process has had so far. A write to a protected page is one, whoever does it:
 * a thread of the process, the kernel on its behalf, or I/O that pins the page. So while two calls
 * give the same number, a scan that began after the first one has missed nothing, and need not be
 * repeated. 0: not known. Costs a few microseconds, whatever the size. */
uint64_t tracker_faults(const struct tracker *t);
/* min(pages that a scan would find, max); protects nothing. -errno. */
long tracker_peek(struct tracker *t, long max);
/* Takes the protection away: the process runs as if we had never been. Page faults of the process
 * wait for this: 10 to 20 ms per GiB. A process that is gone is fine. Accepts NULL. */
void tracker_close(struct tracker *t);

#endif
