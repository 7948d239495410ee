/* SPDX-License-Identifier: Apache-2.0 */
/* The images of a snapshot that is updated in place; the steps are update.c's (update.h). NULL: it
 * has none. */
#ifndef VMM_GLUE_SNAPSHOT_UPDATE_DISKS_H
#define VMM_GLUE_SNAPSHOT_UPDATE_DISKS_H

#include "vmm-glue/snapshot/update.h"

/* Room for what is new; they read as before. -errno: they are as they were. */
int update_disks_make_room(const struct update_disks *disks);
/* All changes, durable. -errno. */
int update_disks_put(const struct update_disks *disks);

#endif
