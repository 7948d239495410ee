/* SPDX-License-Identifier: Apache-2.0 */
/* What names.c, files.c and locks.c have of each other. */
#ifndef TESTS_SIM_FILES_INTERNAL_H
#define TESTS_SIM_FILES_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "tests/sim/inode.h"

#define PATH_BYTES 96
#define FDS_MAX	   64

struct world;
struct node;

/* ---- names.c ---- */
/* now and durable may differ after a rename, a creation or a removal. */
struct name {
	char path[PATH_BYTES];
	struct inode *now, *durable;
	struct name *other; /* of a rename that is not durable: both names or neither */
};
void names_init(struct world *w);
void names_free(void);
/* A path of this world's. */
bool names_is_ours(const char *path);
/* Whose path it is, and what it is called in the world: shared storage has one name. NULL: it is
 * not ours. */
struct node *names_resolve(const char *path, char out[PATH_BYTES]);
/* By what names_resolve() called it. NULL: there is none. */
struct name *names_find(const char *path);
struct name *names_make(const char *path);
/* Of all the i-th, in use or not. NULL: there are no more. */
const struct name *names_at(unsigned i);
/* A folder's names are durable. */
void names_sync(const char *folder);
/* What this host had not made durable got there, or is lost: names, and bytes. */
void names_power_lost(struct node *n);

/* ---- files.c ---- */
struct file {
	struct node *owner; /* NULL: free */
	struct inode *inode;
	bool folder, locked, through;
	int flocked; /* LOCK_SH, LOCK_EX, or 0 */
	char path[PATH_BYTES];
};
extern struct file files[FDS_MAX];
/* NULL: not ours. */
struct file *file_of(int fd);
/* Returns the descriptor. */
int file_new(struct node *n, struct inode *inode, const char *path);
void file_stat(struct stat *st, const struct inode *i);
/* Everything with an effect passes here: a host may die at it, a disk may fail at it. Returns 0 or
 * an errno; *dies: right now, in the middle of it. */
int call_step(struct node *n, bool *dies);
/* errno, and the -1 that goes with it. */
int call_fail(int error);

#endif
