/* SPDX-License-Identifier: Apache-2.0 */
/* A snapshot that is changed in place, and whole at any moment:
 *
 *     1  changes are in PATH.journal, sealed                    the snapshot is the old one
 *     2  room is made in PATH for what is new
 *     3  PATH is marked: it begins with KFTU and the journal's id. From here it is the new one
 *     4  the changes are put into PATH, in any order; fsync
 *     5  the mark is taken away; fsync; PATH.journal removed
 *
 * So a file without the mark is whole, whatever lies beside it, and one with it is refused by
 * everybody but who puts all of the journal's changes into it once more (4), which may be done any
 * number of times. Whoever opens a snapshot here does that first (source.h).
 *
 * Locks of the file itself, flock(): shared by who reads it, as long as he does; exclusive by who
 * updates it. */
#ifndef VMM_GLUE_SNAPSHOT_UPDATE_H
#define VMM_GLUE_SNAPSHOT_UPDATE_H

#include <stdbool.h>

#include "ft/err.h"
#include "vmm-glue/snapshot/changes_file.h"

#define UPDATE_SUFFIX ".journal"

/* PATH.journal. False: too long. */
bool update_journal_path(const char *path, char out[CHANGES_PATH_MAX]);
/* Of a file: is an update of it not complete? */
bool update_is_begun(int fd);
/* The file, read and write, for an update: nobody reads it, nobody else updates it, and an update
 * that was begun is complete. A descriptor, or -errno. -EBUSY: it is in use. -ENOENT. */
int update_open(const char *path, struct ft_err *err);
/* Steps 2 to 5, without removing the journal. fd: update_open()'s. -ENOSPC from step 2: the file is
 * as it was. After other errors it may be marked, and the next update_open() goes on. */
int update_apply(int fd, const char *path, const struct changes *changes, struct ft_err *err);
/* What a former snapshot of that name left beside it. */
void update_forget(const char *path);

#endif
