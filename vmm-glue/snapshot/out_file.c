// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/snapshot/out_file.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ft/file_io.h"

#define HOLES_SLACK (1u << 20) /* what a filesystem may need for an empty file */

static int failed(const struct out_file *o, int code, struct ft_err *err)
{
	return ft_err_set(err, code, "%s: %s", o->path, strerror(code));
}

static int open_folder(struct out_file *o, struct ft_err *err)
{
	char copy[OUT_FILE_PATH_MAX];

	memcpy(copy, o->path, sizeof copy);
	o->dir_fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return o->dir_fd < 0 ? failed(o, errno, err) : 0;
}

static int open_direct(struct out_file *o, struct ft_err *err)
{
	char self[32];

	snprintf(self, sizeof self, "/proc/self/fd/%d", o->fd);
	o->direct_fd = open(self, O_WRONLY | O_DIRECT | O_CLOEXEC);
	if (o->direct_fd >= 0)
		return 0;
	return errno == EINVAL
		       ? ft_err_set(err, ENOTSUP, "%s: this filesystem has no direct I/O", o->path)
		       : failed(o, errno, err);
}

/* Nobody else writes it, and what a dead writer left is cut off. */
static int open_part(struct out_file *o, uint64_t bytes, struct ft_err *err)
{
	struct stat st, named;

	o->fd = open(o->part, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (o->fd < 0)
		return failed(o, errno, err);
	/* By the time that we have the lock its owner may have given the file its name. */
	if (flock(o->fd, LOCK_EX | LOCK_NB) || fstat(o->fd, &st) || stat(o->part, &named) ||
	    st.st_ino != named.st_ino || st.st_dev != named.st_dev) {
		close(o->fd);
		o->fd = -1; /* not ours to remove */
		return ft_err_set(err, EBUSY, "%s: is being written by somebody else", o->path);
	}
	if (ftruncate(o->fd, 0) || ftruncate(o->fd, (off_t)bytes) || fstat(o->fd, &st))
		return failed(o, errno, err);
	if ((uint64_t)st.st_blocks * 512 > HOLES_SLACK && (uint64_t)st.st_blocks * 512 > bytes / 2)
		return ft_err_set(err, ENOTSUP,
				  "%s: this filesystem has no holes: empty memory would take room",
				  o->path);
	return 0;
}

int out_file_open(struct out_file *o, const char *path, uint64_t bytes, bool direct,
		  struct ft_err *err)
{
	struct stat st;
	int rc;

	*o = (struct out_file){.fd = -1, .direct_fd = -1, .dir_fd = -1};
	if (snprintf(o->part, sizeof o->part, "%s.part", path) >= (int)sizeof o->part)
		return ft_err_set(err, ENAMETOOLONG, "%.64s...: path too long", path);
	memcpy(o->path, path, strlen(path) + 1);
	if (!stat(path, &st) && !S_ISREG(st.st_mode))
		return ft_err_set(err, EINVAL, "%s: is there and no file", path);
	rc = open_folder(o, err);
	if (!rc)
		rc = open_part(o, bytes, err);
	if (!rc && direct)
		rc = open_direct(o, err);
	if (rc)
		out_file_discard(o);
	return rc;
}

int out_file_write(const struct out_file *o, const void *from, size_t bytes, uint64_t at,
		   bool direct)
{
	return file_write(direct && o->direct_fd >= 0 ? o->direct_fd : o->fd, from, bytes, at);
}

static void close_all(struct out_file *o)
{
	int *fds[] = {&o->direct_fd, &o->fd, &o->dir_fd};

	for (unsigned i = 0; i < sizeof fds / sizeof *fds; i++) {
		if (*fds[i] >= 0)
			close(*fds[i]);
		*fds[i] = -1;
	}
}

int out_file_commit(struct out_file *o, struct ft_err *err)
{
	if (fsync(o->fd) || rename(o->part, o->path) || fsync(o->dir_fd)) {
		failed(o, errno, err);
		out_file_discard(o);
		return -err->code;
	}
	close_all(o);
	return 0;
}

void out_file_discard(struct out_file *o)
{
	if (o->fd >= 0)
		unlink(o->part);
	close_all(o);
}
