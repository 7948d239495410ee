// SPDX-License-Identifier: Apache-2.0
/* Open files: descriptors, and the calls that go by one. Names are in names.c, locks in locks.c,
 * bytes in inode.c. */
#include "tests/sim/files.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "eventtap/block/journal.h"
#include "tests/sim/files_internal.h"
#include "tests/sim/world.h"
#include "vmm-glue/snapshot/update.h"

#define FD_BASE (1 << 20)

static struct world *world;
struct file files[FDS_MAX];
static unsigned open_files[SIM_NODES];

/* ---- of all calls ---- */

int call_fail(int error)
{
	errno = error;
	return -1;
}

int call_step(struct node *n, bool *dies)
{
	bool was = n->dying || n->crashed;

	*dies = false;
	if (!node_step(n)) {
		*dies = !was; /* right now, in the middle of it */
		return EIO;
	}
	if (n->disk_errors) {
		n->disk_errors--;
		world_log(world, "%s: disk: %s", n->name, strerror(n->disk_errno));
		return n->disk_errno;
	}
	return 0;
}

/* ---- descriptors ---- */

struct file *file_of(int fd)
{
	if (fd < FD_BASE || fd >= FD_BASE + FDS_MAX)
		return NULL;
	assert(files[fd - FD_BASE].owner); /* used after close() */
	return &files[fd - FD_BASE];
}

int file_new(struct node *n, struct inode *inode, const char *path)
{
	int fd = 0;

	while (fd < FDS_MAX && files[fd].owner)
		fd++;
	if (fd == FDS_MAX) {
		world_violation(world, "more than %d files are open", FDS_MAX);
		return call_fail(EMFILE);
	}
	files[fd] = (struct file){.owner = n, .inode = inode_hold(inode)};
	snprintf(files[fd].path, sizeof files[fd].path, "%s", path);
	open_files[n->id]++;
	return FD_BASE + fd;
}

static void let_go(struct file *f)
{
	open_files[f->owner->id]--;
	inode_drop(f->inode);
	*f = (struct file){0};
}

int __real_open(const char *path, int flags, mode_t mode);
int __wrap_open(const char *path, int flags, ...);

static int sim_open(struct node *n, const char *path, int flags)
{
	struct name *name = names_find(path);
	struct inode *inode = name ? name->now : NULL;
	bool dies, folder = flags & O_DIRECTORY;
	int rc, fd;

	if (!folder && !inode && !(flags & O_CREAT))
		return call_fail(ENOENT);
	if (inode && (flags & O_EXCL))
		return call_fail(EEXIST);
	if (!folder && inode && (flags & O_TRUNC)) {
		/* What was there before is there again if the power goes too early. */
		inode_set(&name->now, NULL);
		inode = NULL;
	}
	if (!folder && !inode) {
		rc = call_step(n, &dies);
		if (rc && !dies)
			return call_fail(rc);
		inode = inode_new();
		inode_set(&names_make(path)->now, inode);
		if (dies)
			return call_fail(EIO);
	}
	fd = file_new(n, inode, path);
	if (fd >= 0) {
		file_of(fd)->folder = folder;
		file_of(fd)->through = flags & O_DSYNC;
	}
	return fd;
}

int __wrap_open(const char *path, int flags, ...)
{
	char known[PATH_BYTES];
	struct node *n = names_resolve(path, known);
	mode_t mode = 0;
	va_list ap;

	va_start(ap, flags);
	if (flags & (O_CREAT | O_TMPFILE))
		mode = va_arg(ap, mode_t);
	va_end(ap);
	if (!n)
		return __real_open(path, flags, mode);
	/* A spill file ends with its process, so memory does. */
	if ((flags & O_TMPFILE) == O_TMPFILE) {
		bool dies;
		int rc = call_step(n, &dies);

		return rc ? call_fail(rc) : memfd_create("spill", MFD_CLOEXEC);
	}
	return sim_open(n, known, flags);
}

int __real_close(int fd);
int __wrap_close(int fd);
int __wrap_close(int fd)
{
	struct file *f = file_of(fd);

	if (!f)
		return __real_close(fd);
	let_go(f);
	return 0;
}

/* ---- bytes ---- */

ssize_t __real_pread(int fd, void *buf, size_t len, off_t at);
ssize_t __wrap_pread(int fd, void *buf, size_t len, off_t at);
ssize_t __wrap_pread(int fd, void *buf, size_t len, off_t at)
{
	struct file *f = file_of(fd);
	uint64_t offset = (uint64_t)at;

	if (!f)
		return __real_pread(fd, buf, len, at);
	if (offset >= f->inode->bytes)
		return 0;
	if (len > f->inode->bytes - offset)
		len = f->inode->bytes - offset;
	memcpy(buf, f->inode->now + offset, len);
	return (ssize_t)len;
}

/* Of a call that is cut short, whole sectors from the front are done. */
static size_t torn(size_t len)
{
	return world_range(world, 0, len / SECTOR) * SECTOR;
}

ssize_t __real_pwrite(int fd, const void *buf, size_t len, off_t at);
ssize_t __wrap_pwrite(int fd, const void *buf, size_t len, off_t at);
ssize_t __wrap_pwrite(int fd, const void *buf, size_t len, off_t at)
{
	struct file *f = file_of(fd);
	bool dies;
	int rc;

	if (!f)
		return __real_pwrite(fd, buf, len, at);
	rc = call_step(f->owner, &dies);
	if (rc && (dies || !f->owner->dying) && len > SECTOR)
		inode_put(f->inode, f->owner->id, (uint64_t)at, buf, torn(len));
	if (rc)
		return call_fail(rc);
	inode_put(f->inode, f->owner->id, (uint64_t)at, buf, len);
	if (f->through && world->mutant != MUTANT_RELEASE_UNSYNCED)
		inode_through(f->inode, (uint64_t)at, len);
	return (ssize_t)len;
}

int __real_ftruncate(int fd, off_t bytes);
int __wrap_ftruncate(int fd, off_t bytes);
int __wrap_ftruncate(int fd, off_t bytes)
{
	struct file *f = file_of(fd);
	bool dies;
	int rc;

	if (!f)
		return __real_ftruncate(fd, bytes);
	rc = call_step(f->owner, &dies);
	if (rc)
		return call_fail(rc);
	if ((uint64_t)bytes < f->inode->bytes)
		inode_shrink(f->inode, f->owner->id, (uint64_t)bytes);
	else
		inode_grow(f->inode, (uint64_t)bytes);
	f->inode->size_cached = (uint8_t)(1 + f->owner->id);
	return 0;
}

int __real_fallocate(int fd, int mode, off_t at, off_t len);
int __wrap_fallocate(int fd, int mode, off_t at, off_t len);
int __wrap_fallocate(int fd, int mode, off_t at, off_t len)
{
	struct file *f = file_of(fd);
	bool dies;
	int rc;

	if (!f)
		return __real_fallocate(fd, mode, at, len);
	/* As NFS and tmpfs; and room is not what fails here. */
	if (mode & FALLOC_FL_ZERO_RANGE || mode == FALLOC_FL_KEEP_SIZE)
		return call_fail(EOPNOTSUPP);
	assert(mode & FALLOC_FL_PUNCH_HOLE);
	rc = call_step(f->owner, &dies);
	if (rc)
		return call_fail(rc);
	inode_put(f->inode, f->owner->id, (uint64_t)at, NULL, (size_t)len);
	for (uint64_t x = inode_rounded((uint64_t)at, EXTENT) / EXTENT;
	     (x + 1) * EXTENT <= (uint64_t)at + (uint64_t)len; x++)
		f->inode->written[x] = 0;
	return 0;
}

int __real_posix_fallocate(int fd, off_t at, off_t len);
int __wrap_posix_fallocate(int fd, off_t at, off_t len);
int __wrap_posix_fallocate(int fd, off_t at, off_t len)
{
	/* Only spill files ask for it: whoever of the hosts it is, its disk may be full. */
	for (unsigned i = 0; world && i < SIM_NODES; i++)
		if (world->nodes[i].disk_errors)
			return world->nodes[i].disk_errno;
	return __real_posix_fallocate(fd, at, len);
}

off_t __real_lseek(int fd, off_t at, int whence);
off_t __wrap_lseek(int fd, off_t at, int whence);
off_t __wrap_lseek(int fd, off_t at, int whence)
{
	struct file *f = file_of(fd);
	uint64_t x;

	if (!f)
		return __real_lseek(fd, at, whence);
	if (whence == SEEK_END)
		return (off_t)f->inode->bytes + at;
	assert(whence == SEEK_DATA || whence == SEEK_HOLE);
	if ((uint64_t)at >= f->inode->bytes)
		return call_fail(ENXIO);
	for (x = (uint64_t)at / EXTENT; x * EXTENT < f->inode->bytes; x++)
		if (f->inode->written[x] == (whence == SEEK_DATA))
			return (off_t)(x * EXTENT > (uint64_t)at ? x * EXTENT : (uint64_t)at);
	return whence == SEEK_DATA ? call_fail(ENXIO) : (off_t)f->inode->bytes;
}

int __real_posix_fadvise(int fd, off_t at, off_t len, int advice);
int __wrap_posix_fadvise(int fd, off_t at, off_t len, int advice);
int __wrap_posix_fadvise(int fd, off_t at, off_t len, int advice)
{
	return file_of(fd) ? 0 : __real_posix_fadvise(fd, at, len, advice);
}

/* ---- attributes ---- */

void file_stat(struct stat *st, const struct inode *i)
{
	memset(st, 0, sizeof *st);
	st->st_mode = S_IFREG | 0600;
	st->st_ino = i->number;
	st->st_size = (off_t)i->bytes;
}

int __real_fstat(int fd, struct stat *st);
int __wrap_fstat(int fd, struct stat *st);
int __wrap_fstat(int fd, struct stat *st)
{
	struct file *f = file_of(fd);

	if (!f)
		return __real_fstat(fd, st);
	file_stat(st, f->inode);
	return 0;
}

/* ---- what is durable ---- */

static bool is_metadata(const struct file *f)
{
	size_t n = strlen(f->path);

	return n > 4 && !strcmp(f->path + n - 4, ".tmp");
}

/* Whether a mutant leaves this file of a snapshot's unsynced. */
static bool is_left_out(const struct file *f)
{
	size_t n = strlen(f->path);

	if (world->mutant == MUTANT_UPDATE_UNSYNCED)
		return n > 8 && !strcmp(f->path + n - 8, UPDATE_SUFFIX);
	return world->mutant == MUTANT_MARK_UNSYNCED && f->inode->bytes > CHANGES_MARK_BYTES &&
	       changes_marked(f->inode->now) && !changes_marked(f->inode->durable);
}

static int sim_sync(struct file *f)
{
	enum mutant m = world->mutant;
	bool dies;
	int rc = call_step(f->owner, &dies);

	if (rc) {
		if (dies && f->inode)
			inode_sync(f->inode, world, 50);
		return call_fail(rc);
	}
	if (f->folder) {
		if (m != MUTANT_NAME_UNSYNCED)
			names_sync(f->path);
	} else if (!(m == MUTANT_METADATA_UNSYNCED && is_metadata(f)) &&
		   !(m == MUTANT_JOURNAL_UNSYNCED && strstr(f->path, JOURNAL_SUFFIX)) &&
		   !is_left_out(f)) {
		inode_sync(f->inode, world, 100);
	}
	return 0;
}

int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __wrap_fsync(int fd)
{
	struct file *f = file_of(fd);

	return f ? sim_sync(f) : __real_fsync(fd);
}

int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __wrap_fdatasync(int fd)
{
	struct file *f = file_of(fd);

	return f ? sim_sync(f) : __real_fdatasync(fd);
}

/* ---- the world's side ---- */

void files_init(struct world *w)
{
	world = w;
	names_init(w);
	memset(files, 0, sizeof files);
	memset(open_files, 0, sizeof open_files);
}

void files_free(struct world *w)
{
	(void)w;
	for (unsigned i = 0; i < FDS_MAX; i++)
		if (files[i].owner)
			let_go(&files[i]);
	names_free();
	world = NULL;
}

void files_process_gone(struct node *n)
{
	for (unsigned i = 0; i < FDS_MAX; i++) {
		if (files[i].owner != n)
			continue;
		let_go(&files[i]);
	}
}

void files_power_lost(struct node *n)
{
	names_power_lost(n);
}

bool files_exists(const char *path)
{
	char known[PATH_BYTES];
	struct name *name = names_resolve(path, known) ? names_find(known) : NULL;

	return name && name->now;
}

void files_peek(const char *path, uint64_t offset, uint8_t *out, size_t len, bool durable)
{
	char known[PATH_BYTES];
	struct name *name = names_resolve(path, known) ? names_find(known) : NULL;
	struct inode *i = name ? durable ? name->durable : name->now : NULL;

	if (i && offset + len <= inode_rounded(i->bytes, EXTENT))
		memcpy(out, (durable ? i->durable : i->now) + offset, len);
	else
		memset(out, 0, len);
}

void files_make(struct world *w, const char *path, uint64_t bytes)
{
	char known[PATH_BYTES];
	struct inode *i = inode_new();
	struct name *name;

	assert(world == w);
	if (!names_resolve(path, known))
		abort();
	name = names_make(known);
	inode_grow(i, bytes);
	i->durable_bytes = bytes;
	inode_set(&name->now, i);
	inode_set(&name->durable, i);
}

bool files_is_simulated(const char *path)
{
	return names_is_ours(path);
}

bool files_name(unsigned i, const char **path)
{
	const struct name *name = names_at(i);

	if (!name)
		return false;
	*path = name->now ? name->path : NULL;
	return true;
}

unsigned files_open_count(struct node *n)
{
	return open_files[n->id];
}
