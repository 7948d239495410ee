/* SPDX-License-Identifier: Apache-2.0 */
/* A file that appears under its name only when it is whole and on the disk: written as NAME.part
 * beside it, fsynced, renamed, and the folder fsynced. A .part that a dead writer left is taken
 * over by the next one. */
#ifndef VMM_GLUE_SNAPSHOT_OUT_FILE_H
#define VMM_GLUE_SNAPSHOT_OUT_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ft/err.h"

#define OUT_FILE_PATH_MAX 4096

struct out_file {
	char path[OUT_FILE_PATH_MAX], part[OUT_FILE_PATH_MAX];
	int fd, direct_fd; /* direct_fd: past the page cache, whole pages only; -1: not asked for */
	int dir_fd;
};

/* Mode 0600, `bytes` long and all holes. -EBUSY: somebody writes it just now. -ENOTSUP: the
 * filesystem cannot do direct I/O, or has no holes. */
int out_file_open(struct out_file *o, const char *path, uint64_t bytes, bool direct,
		  struct ft_err *err);
/* All of it, at that place. direct: by direct_fd if there is one; place, length and address are
 * whole pages then. -errno. Any thread. */
int out_file_write(const struct out_file *o, const void *from, size_t bytes, uint64_t at,
		   bool direct);
/* The file is there when this returns 0. Else as discarded. */
int out_file_commit(struct out_file *o, struct ft_err *err);
/* Nothing is left. Idempotent. */
void out_file_discard(struct out_file *o);

#endif
