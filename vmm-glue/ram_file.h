/* SPDX-License-Identifier: Apache-2.0 */
/* The file behind a VM's RAM, written as a file: whole pages that nobody has touched yet get there
 * without a page fault each, and without being cleared first; and zeroes take no room. */
#ifndef VMM_GLUE_RAM_FILE_H
#define VMM_GLUE_RAM_FILE_H

#include <stdint.h>
#include <sys/uio.h>

/* n whole pages, one an iovec, n <= IOV_MAX; iov is used up. 0 or -errno. */
int ram_file_write(int fd, uint64_t offset, struct iovec *iov, unsigned n);
/* [offset, offset + bytes) reads as zeroes. 0 or -errno. */
int ram_file_empty(int fd, uint64_t offset, uint64_t bytes);

#endif
