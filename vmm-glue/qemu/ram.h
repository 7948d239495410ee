/* SPDX-License-Identifier: Apache-2.0 */
/* The guest's RAM in QEMU's address space, and how we read it.
 *
 * One block, one range of addresses, whatever the guest-physical layout; page numbers
 * count from its start. A shared backend (memfd, file with share=on) is mapped here too; plain -m
 * memory and private backends are read with process_vm_readv(2). */
#ifndef VMM_GLUE_QEMU_RAM_H
#define VMM_GLUE_QEMU_RAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "ft/err.h"
#include "vmm-glue/qemu/qmp.h"

struct ram {
	pid_t pid;
	uint64_t hva; /* in QEMU */
	uint64_t bytes;
	uint8_t *map; /* here, NULL: private memory */
	int fd;	      /* of the file behind a shared backend, 0: none, or it is not ours to read */
	uint64_t file_offset;
	bool tells;	 /* the kernel tells us which of its pages are there */
	size_t touched;	 /* pages copied through the map since the last trim */
	char region[64]; /* QEMU's name: "pc.ram", "ram0" */
};

/* Asks QEMU and /proc where the RAM is, and maps it unless r->map is set already. */
int ram_find(struct ram *r, struct qmp *q, pid_t pid, struct ft_err *err);
void ram_unmap(struct ram *r);
/* Copies pages pfns[0..n) one after another to target. Never allocates. -EIO: the process is gone
 * or has other memory there. */
int ram_copy(struct ram *r, const uint64_t *pfns, size_t n, uint8_t *target);
/* The same for many pages that lie together, outside a pause: through the file where there is one,
 * for reading a hole through a mapping would fill it with zeroes, and the guest's memory with them.
 */
int ram_copy_bulk(struct ram *r, const uint64_t *pfns, size_t n, uint8_t *target);
/* Pages pfn to pfn + n - 1 in the map, n <= VMM_VIEW_MAX, if there is one and all of them are in
 * memory, so that to read them adds nothing to the guest's; else NULL. Good until the next call of
 * this or ram_trim(). Outside a pause. */
const uint8_t *ram_view(struct ram *r, uint64_t pfn, size_t n);
/* Pages read through the map count as this process's memory: gives them back when they have become
 * many. Outside a pause. */
#define RAM_TOUCHED_MAX 8192
void ram_trim(struct ram *r);
/* vmm_pages_digest() of all of it. -EIO, -ENOMEM. */
int ram_digest(struct ram *r, uint64_t *digest, struct ft_err *err);

#endif
