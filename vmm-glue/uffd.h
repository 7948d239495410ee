/* SPDX-License-Identifier: Apache-2.0 */
/* A userfaultfd, for write protection or for pages that are missing, and the few things one does
 * with it. The descriptor is of our
 * own address space (uffd_own) or of another process's (inject.h); what follows is the same for
 * both. Addresses are those of that process. Any thread. */
#ifndef VMM_GLUE_UFFD_H
#define VMM_GLUE_UFFD_H

#include <stddef.h>
#include <stdint.h>

#include "ft/err.h"

/* Where those may get one that lack CAP_SYS_PTRACE: Linux 6.1, Documentation/admin-guide/mm/
 * userfaultfd.rst. */
#define UFFD_DEVICE "/dev/userfaultfd"

/* userfaultfd(flags | O_CLOEXEC | O_NONBLOCK) of ourselves. The descriptor, the caller's, or
 * -errno. */
int uffd_own(int flags, struct ft_err *err);
/* The handshake, once per descriptor, before anything else: UFFD_FEATURE_* that are wanted.
 * -EINVAL: this kernel lacks one. */
int uffd_api(int uffd, uint64_t features, struct ft_err *err);
/* Write-protect mode for a mapped range. -EBUSY: it belongs to another userfaultfd already. */
int uffd_register_wp(int uffd, uint64_t start, uint64_t bytes, struct ft_err *err);
/* Every page of a registered range is write-protected when this returns: 10 ms per GiB. */
int uffd_protect(int uffd, uint64_t start, uint64_t bytes, struct ft_err *err);
/* Writes to these pages go on, and who waits for that wakes up. -errno: the process is gone. */
int uffd_release(int uffd, uint64_t start, uint64_t bytes);
/* The pages at which threads wait, at most n of them; 0: none now. -errno. */
int uffd_faults(int uffd, uint64_t *addresses, size_t n);
/* Missing mode for a mapped range: who touches a page that is not there waits. */
int uffd_register_missing(int uffd, uint64_t start, uint64_t bytes, struct ft_err *err);
/* Likewise for shared memory in huge pages (UFFD_FEATURE_MINOR_HUGETLBFS), and who touches one that
 * the file has, but that was not shown to that address space yet, waits, too. */
int uffd_register_unseen(int uffd, uint64_t start, uint64_t bytes, struct ft_err *err);
/* One huge page that the file has; wakes who waits. -errno: the process is gone, or the file has
 * none. */
int uffd_show(int uffd, uint64_t start, uint64_t bytes);
/* Puts whole pages there and wakes who waits for them; those that are there already are left as
 * they are. from NULL: zeroes. -errno: the process is gone. */
int uffd_fill(int uffd, uint64_t start, const void *from, uint64_t bytes);
/* Likewise, but who waits does not go on before uffd_wake(). */
int uffd_fill_quietly(int uffd, uint64_t start, const void *from, uint64_t bytes);
/* A process that is gone is fine. */
void uffd_wake(int uffd, uint64_t start, uint64_t bytes);
/* Undoes register and protect. A process that is gone is fine. */
void uffd_unregister(int uffd, uint64_t start, uint64_t bytes);

#endif
