/* SPDX-License-Identifier: Apache-2.0 */
/* Names of the images beside a snapshot's memory, and the end of those that nobody refers to. */
#ifndef VMM_GLUE_SNAPSHOT_DISKS_FOLDER_H
#define VMM_GLUE_SNAPSHOT_DISKS_FOLDER_H

#include <limits.h>
#include <stdint.h>

#include "ft/err.h"
#include "vmm-glue/snapshot/out_file.h"

/* PATH.DISK.NUMBER.raw, as a path and without its folder; a disk whose id is no part of a file's
 * name is called after its place. -ENAMETOOLONG */
int disks_folder_name(const char *path, const char *id, unsigned place, uint64_t number,
		      char out[OUT_FILE_PATH_MAX], char file[NAME_MAX + 1], struct ft_err *err);
/* Removes the images of PATH that have another number, finished or not, but for those that somebody
 * has open: writes, or restores from. */
void disks_folder_clean(const char *path, uint64_t number);

#endif
