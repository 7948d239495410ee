/* SPDX-License-Identifier: Apache-2.0 */
/* For each of a few files that hold what RAM, or a disk, was at some moment: a set of what was
 * written since. A file that was touched by somebody else since is not known any more. One thread
 * at a time. */
#ifndef VMM_GLUE_SNAPSHOT_SINCE_FILES_H
#define VMM_GLUE_SNAPSHOT_SINCE_FILES_H

#include <stdbool.h>
#include <sys/stat.h>
#include <time.h>

#include "ft/bitmap.h"

#define SINCE_FILES_MAX 4 /* the one that was not used for longest gives way */

/* What of a file changes when anybody changes it. */
struct since_identity {
	dev_t dev;
	ino_t ino;
	off_t size;
	struct timespec changed;
};

struct since_file {
	char path[4096]; /* "": free */
	struct since_identity identity;
	struct ft_bitmap dirty;
	uint64_t used; /* when, in calls */
};

struct since_files {
	struct since_file files[SINCE_FILES_MAX];
	uint64_t calls;
};

/* What was written since; NULL: the file is not known. */
const struct ft_bitmap *since_files_find(struct since_files *s, const char *path);
/* These were written now. */
void since_files_add(struct since_files *s, const struct ft_bitmap *written);
/* The file, as it is there, is what there is now; `bits`: of a set. If that cannot be kept, it is
 * not known. */
void since_files_saved(struct since_files *s, const char *path, uint64_t bits);
/* None is known any more. */
void since_files_forget(struct since_files *s);
void since_files_free(struct since_files *s);

#endif
