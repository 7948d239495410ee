/* SPDX-License-Identifier: Apache-2.0 */
/* A look at a guest's RAM beside its VMM, without filling its holes. Any thread. */
#ifndef VMM_GLUE_SNAPSHOT_RAM_READ_H
#define VMM_GLUE_SNAPSHOT_RAM_READ_H

#include <stddef.h>
#include <stdint.h>

#include "vmm-glue/vmm.h"

/* Copies n pages from pfn on. 1: they are a hole, that is zeroes, and `to` is as it was. -errno:
 * the process is gone. */
int ram_read(const struct vmm_ram *ram, uint64_t pfn, size_t n, uint8_t *to);
/* Copies the n pages that are listed, in one go: where they lie here and there this is several
 * times quicker. Fills holes. -errno. */
int ram_gather(const struct vmm_ram *ram, const uint64_t *pfns, size_t n, uint8_t *to);
/* Duplicates its descriptors, so that it outlives the VM's. -EMFILE, and it has none. */
int ram_keep(struct vmm_ram *ram);
/* Closes what ram_keep() made. */
void ram_drop(struct vmm_ram *ram);

#endif
