/* SPDX-License-Identifier: Apache-2.0 */
/* Reads and writes of whole ranges, and what makes a name durable. 0 or -errno. Any thread. */
#ifndef FT_FILE_IO_H
#define FT_FILE_IO_H

#include <stddef.h>
#include <stdint.h>

/* -EIO: the file ends before. */
int file_read(int fd, void *to, size_t bytes, uint64_t at);
int file_write(int fd, const void *from, size_t bytes, uint64_t at);
/* The folder of `path`: names made and removed in it. */
int file_sync_folder(const char *path);

#endif
