// SPDX-License-Identifier: Apache-2.0
/* Locks of open files: one holder of an image or its metadata (F_OFD_SETLK), and a snapshot's many
 * readers or one writer (flock()). */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/file.h>

#include "tests/sim/files_internal.h"
#include "tests/sim/world.h"

static bool is_locked(const struct file *f)
{
	const struct world *w = f->owner->world;

	for (unsigned i = 0; i < FDS_MAX; i++)
		if (files[i].owner && files[i].locked && &files[i] != f &&
		    files[i].inode == f->inode && w->mutant != MUTANT_NO_LOCK &&
		    (files[i].owner == f->owner || !w->options.lockless))
			return true;
	return false;
}

int __real_fcntl(int fd, int cmd, ...);
int __wrap_fcntl(int fd, int cmd, ...);
int __wrap_fcntl(int fd, int cmd, ...)
{
	struct file *f = file_of(fd);
	va_list ap;
	void *arg;

	va_start(ap, cmd);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (!f)
		return __real_fcntl(fd, cmd, arg);
	if (cmd == F_DUPFD_CLOEXEC)
		return file_new(f->owner, f->inode, f->path);
	if (cmd == F_OFD_GETLK) {
		((struct flock *)arg)->l_type = is_locked(f) ? F_WRLCK : F_UNLCK;
		return 0;
	}
	assert(cmd == F_OFD_SETLK && ((struct flock *)arg)->l_type == F_WRLCK);
	if (f->owner->dying || f->owner->crashed)
		return call_fail(EIO);
	if (is_locked(f))
		return call_fail(EAGAIN);
	f->locked = true;
	return 0;
}

int __real_flock(int fd, int how);
int __wrap_flock(int fd, int how);
int __wrap_flock(int fd, int how)
{
	struct file *f = file_of(fd);

	if (!f)
		return __real_flock(fd, how);
	assert(how & LOCK_NB);
	how &= ~LOCK_NB;
	for (unsigned i = 0; i < FDS_MAX; i++)
		if (files[i].owner && files[i].inode == f->inode && &files[i] != f &&
		    files[i].flocked && (how == LOCK_EX || files[i].flocked == LOCK_EX))
			return call_fail(EWOULDBLOCK);
	f->flocked = how;
	return 0;
}
