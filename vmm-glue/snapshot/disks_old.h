/* SPDX-License-Identifier: Apache-2.0 */
/* The disks of an older snapshot, which a newer one is told apart from (disks.h). */
#ifndef VMM_GLUE_SNAPSHOT_DISKS_OLD_H
#define VMM_GLUE_SNAPSHOT_DISKS_OLD_H

#include "ft/err.h"
#include "vmm-glue/snapshot/disk_target.h"
#include "vmm-glue/snapshot/source.h"
#include "vmm-glue/vmm.h"

struct disks_old {
	unsigned n;
	struct disk_old *all[VMM_DISKS_MAX];
	char *description; /* of the newer one too (companions.h); NULL: no disks */
};

/* Those of a snapshot's file. changes: the file of changes of memory that will be written;
 * in_place: they are put into that file then, else they stay where they are. To be closed, on error
 * too. */
int disks_old_open(const struct source *s, const char *changes, bool in_place,
		   struct disks_old *out, struct ft_err *err);
/* NULL: there is none with this id. */
const struct disk_old *disks_old_find(const struct disks_old *d, const char *id);
void disks_old_close(struct disks_old *d);

#endif
