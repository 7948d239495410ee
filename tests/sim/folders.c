// SPDX-License-Identifier: Apache-2.0
/* What snapshots ask of a filesystem beside files.c: lists of a folder's names, and streams. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/sim/files.h"

#define FOLDER_MAX  96
#define STREAMS_MAX 2

/* ---- names in a folder ---- */

/* One at a time is all that anybody needs. */
static struct {
	bool open;
	char path[FOLDER_MAX];
	unsigned next;
	struct dirent entry;
} folder;

static bool is_ours(const void *dir)
{
	return dir == &folder;
}

DIR *__real_opendir(const char *path);
DIR *__wrap_opendir(const char *path);
DIR *__wrap_opendir(const char *path)
{
	if (!files_is_simulated(path))
		return __real_opendir(path);
	if (folder.open)
		abort();
	folder.open = true;
	folder.next = 0;
	snprintf(folder.path, sizeof folder.path, "%s", path);
	return (DIR *)(void *)&folder;
}

struct dirent *__real_readdir(DIR *dir);
struct dirent *__wrap_readdir(DIR *dir);
struct dirent *__wrap_readdir(DIR *dir)
{
	size_t n = strlen(folder.path);
	const char *path;

	if (!is_ours(dir))
		return __real_readdir(dir);
	while (files_name(folder.next++, &path)) {
		if (!path || strncmp(path, folder.path, n) != 0 || path[n] != '/')
			continue;
		folder.entry.d_type = DT_REG;
		snprintf(folder.entry.d_name, sizeof folder.entry.d_name, "%s", path + n + 1);
		return &folder.entry;
	}
	return NULL;
}

int __real_closedir(DIR *dir);
int __wrap_closedir(DIR *dir);
int __wrap_closedir(DIR *dir)
{
	if (!is_ours(dir))
		return __real_closedir(dir);
	folder.open = false;
	return 0;
}

#define FOLDER_FD (1 << 21)

int __real_dirfd(DIR *dir);
int __wrap_dirfd(DIR *dir);
int __wrap_dirfd(DIR *dir)
{
	return is_ours(dir) ? FOLDER_FD : __real_dirfd(dir);
}

int __real_unlinkat(int fd, const char *name, int flags);
int __wrap_unlinkat(int fd, const char *name, int flags);
int __wrap_unlinkat(int fd, const char *name, int flags)
{
	char path[2 * FOLDER_MAX + 256];

	if (fd != FOLDER_FD)
		return __real_unlinkat(fd, name, flags);
	snprintf(path, sizeof path, "%s/%s", folder.path, name);
	return unlink(path);
}

int __real_mkdir(const char *path, mode_t mode);
int __wrap_mkdir(const char *path, mode_t mode);
int __wrap_mkdir(const char *path, mode_t mode)
{
	return files_is_simulated(path) ? 0 : __real_mkdir(path, mode);
}

/* ---- streams ---- */

struct stream {
	FILE *file; /* NULL: free */
	int fd;
	off_t at;
};

static struct stream streams[STREAMS_MAX];

static ssize_t stream_read(void *cookie, char *to, size_t len)
{
	struct stream *s = cookie;
	ssize_t n = pread(s->fd, to, len, s->at);

	s->at += n > 0 ? n : 0;
	return n;
}

static ssize_t stream_write(void *cookie, const char *from, size_t len)
{
	struct stream *s = cookie;
	ssize_t n = pwrite(s->fd, from, len, s->at);

	s->at += n > 0 ? n : 0;
	return n > 0 ? n : 0;
}

static int stream_close(void *cookie)
{
	struct stream *s = cookie;

	close(s->fd);
	*s = (struct stream){0};
	return 0;
}

FILE *__real_fopen(const char *path, const char *mode);
FILE *__wrap_fopen(const char *path, const char *mode);
FILE *__wrap_fopen(const char *path, const char *mode)
{
	cookie_io_functions_t io = {
		.read = stream_read, .write = stream_write, .close = stream_close};
	struct stream *s = streams;

	if (!files_is_simulated(path))
		return __real_fopen(path, mode);
	while (s < streams + STREAMS_MAX && s->file)
		s++;
	if (s == streams + STREAMS_MAX)
		abort();
	s->fd = open(path, *mode == 'w' ? O_RDWR | O_CREAT | O_TRUNC : O_RDONLY, 0600);
	s->file = s->fd < 0 ? NULL : fopencookie(s, *mode == 'w' ? "w" : "r", io);
	return s->file;
}

int __real_fileno(FILE *file);
int __wrap_fileno(FILE *file);
int __wrap_fileno(FILE *file)
{
	for (unsigned i = 0; i < STREAMS_MAX; i++)
		if (file && streams[i].file == file)
			return streams[i].fd;
	return __real_fileno(file);
}
