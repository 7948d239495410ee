/* SPDX-License-Identifier: Apache-2.0 */
/* A disk's image as a source (source.h), so that a file of changes (ft/snapshot/changes.h) can be
 * compared with it, and lie over it. A page that is a hole is not in it; of a last one that the
 * disk has only in part the rest reads as zeroes. */
#ifndef VMM_GLUE_SNAPSHOT_DISK_SOURCE_H
#define VMM_GLUE_SNAPSHOT_DISK_SOURCE_H

#include "vmm-glue/snapshot/changes_file.h"
#include "vmm-glue/snapshot/source.h"

/* The changes of disk i that belong to a file of changes: FILE.disk0 and so on. */
#define DISK_CHANGES_SUFFIX ".disk"
/* False: too long. */
bool disk_changes_path(const char *path, unsigned i, char out[CHANGES_PATH_MAX]);

/* The descriptor is duplicated. -EFBIG: more than MAPPED_RAM_BYTES_MAX. */
int disk_source_open(int fd, const char *path, struct source *s, struct ft_err *err);
/* The changes that lie over another source lie over this one as well: those of disk i that belong
 * to them. */
int disk_source_add_layers(struct source *s, const struct source *like, unsigned i,
			   struct ft_err *err);
/* The frame of its changes. */
void disk_source_head(const struct source *s, uint32_t id, struct changes_head *head);
/* Digest of the disk as cow_digest() has it (eventtap/block/cow.h). */
int disk_source_digest(const struct source *s, uint64_t *digest, struct ft_err *err);

#endif
