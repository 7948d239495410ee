/* SPDX-License-Identifier: Apache-2.0 */
/* A snapshot that is changed in place, and whole at any moment, over all its files:
 *
 *     1  changes of disks are in PATH.journal.disk0 and so on, sealed, then those of memory in
 *        PATH.journal, with the same id                         the snapshot is the old one
 *     2  room is made in PATH and in the disks' images for what is new
 *     3  PATH is marked: it begins with KFTU and the journal's id. From here it is the new one
 *     4  the changes are put into the images and PATH, in any order; fsync of all
 *     5  the mark is taken away; fsync; the journals are removed
 *
 * So a PATH without the mark is whole and its images are, whatever lies beside them, and one with
 * it is refused by everybody but who puts all of the journals' changes into the files once more
 * (4), which may be done any number of times. Whoever opens a snapshot here does that first
 * (source.h). The journal's device state names the images (companions.h), which are looked at by
 * way of PATH only.
 *
 * Locks of PATH itself, flock(): shared by who reads it or its images, as long as he does;
 * exclusive by who updates it. */
#ifndef VMM_GLUE_SNAPSHOT_UPDATE_H
#define VMM_GLUE_SNAPSHOT_UPDATE_H

#include <stdbool.h>

#include "ft/err.h"
#include "vmm-glue/snapshot/changes_file.h"

#define UPDATE_SUFFIX ".journal"

struct update_disks;

/* PATH.journal. False: too long. */
bool update_journal_path(const char *path, char out[CHANGES_PATH_MAX]);
/* Of a file: is an update of it not complete? */
bool update_is_begun(int fd);
/* The file, read and write, for an update: nobody reads it, nobody else updates it, and an update
 * that was begun is complete. A descriptor, or -errno. -EBUSY: it is in use. -ENOENT. */
int update_open(const char *path, struct ft_err *err);
/* The images that the changes' state names, in the folder of `path`, for writing, and their sealed
 * changes; `changes_path`: of the file of changes that they belong to. NULL: it names none.
 * -EBADMSG: they do not belong together. */
int update_disks_open(const char *path, const struct changes *changes, const char *changes_path,
		      struct update_disks **out, struct ft_err *err);
/* Accepts NULL. */
void update_disks_close(struct update_disks *disks);
/* Steps 2 to 5, without removing the journals. fd: update_open()'s. -ENOSPC from step 2: the files
 * are as they were. After other errors PATH may be marked, and the next update_open() goes on. */
int update_apply(int fd, const char *path, const struct changes *changes,
		 struct update_disks *disks, struct ft_err *err);
/* What a former snapshot of that name left beside it. */
void update_forget(const char *path);

#endif
