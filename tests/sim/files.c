// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/files.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "eventtap/block/journal.h"
#include "tests/sim/inode.h"
#include "tests/sim/world.h"
#include "vmm-glue/snapshot/update.h"

#define PREFIX	   "/sim/"
#define PATH_BYTES 96
#define FD_BASE	   (1 << 20)
#define FDS_MAX	   64
#define FILES_MAX  64 /* names at one time */

/* now and durable may differ after a rename, a creation or a removal. */
struct name {
	char path[PATH_BYTES];
	struct inode *now, *durable;
	struct name *other; /* of a rename that is not durable: both names or neither */
};

struct file {
	struct node *owner; /* NULL: free */
	struct inode *inode;
	bool folder, locked, through;
	int flocked; /* LOCK_SH, LOCK_EX, or 0 */
	char path[PATH_BYTES];
};

static struct world *world;
static struct name names[FILES_MAX];
static struct file files[FDS_MAX];
static unsigned open_files[SIM_NODES];

/* ---- names ---- */

static struct name *find(const char *path)
{
	for (unsigned i = 0; i < FILES_MAX; i++)
		if ((names[i].now || names[i].durable) && !strcmp(names[i].path, path))
			return &names[i];
	return NULL;
}

static struct name *find_or_make(const char *path)
{
	struct name *n = find(path);

	for (unsigned i = 0; !n && i < FILES_MAX; i++)
		if (!names[i].now && !names[i].durable)
			n = &names[i];
	if (!n)
		abort();
	snprintf(n->path, sizeof n->path, "%s", path);
	return n;
}

/* Whose path it is, and what it is called in the world: shared storage has one name. */
static struct node *resolve(const char *path, char out[PATH_BYTES])
{
	struct node *n;

	if (!world || strncmp(path, PREFIX, strlen(PREFIX)))
		return NULL;
	assert(path[5] >= 'A' && path[5] < 'A' + SIM_NODES);
	n = &world->nodes[path[5] - 'A'];
	if (!strncmp(path + 6, "/shared", 7))
		snprintf(out, PATH_BYTES, "%s", path + 6);
	else
		snprintf(out, PATH_BYTES, "%s", path);
	return n;
}

/* ---- descriptors ---- */

static struct file *file_of(int fd)
{
	if (fd < FD_BASE || fd >= FD_BASE + FDS_MAX)
		return NULL;
	assert(files[fd - FD_BASE].owner); /* used after close() */
	return &files[fd - FD_BASE];
}

static int fail(int error)
{
	errno = error;
	return -1;
}

/* Everything with an effect passes here: a host may die at it, a disk may fail at it. */
static int step(struct node *n, bool *dies)
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

static void let_go(struct file *f)
{
	open_files[f->owner->id]--;
	inode_drop(f->inode);
	*f = (struct file){0};
}

int __real_open(const char *path, int flags, mode_t mode);
int __wrap_open(const char *path, int flags, ...);

static int open_file(struct node *n, struct inode *inode, const char *path)
{
	int fd = 0;

	while (fd < FDS_MAX && files[fd].owner)
		fd++;
	if (fd == FDS_MAX) {
		world_violation(world, "more than %d files are open", FDS_MAX);
		return fail(EMFILE);
	}
	files[fd] = (struct file){.owner = n, .inode = inode_hold(inode)};
	snprintf(files[fd].path, sizeof files[fd].path, "%s", path);
	open_files[n->id]++;
	return FD_BASE + fd;
}

static int sim_open(struct node *n, const char *path, int flags)
{
	struct name *name = find(path);
	struct inode *inode = name ? name->now : NULL;
	bool dies, folder = flags & O_DIRECTORY;
	int rc, fd;

	if (!folder && !inode && !(flags & O_CREAT))
		return fail(ENOENT);
	if (inode && (flags & O_EXCL))
		return fail(EEXIST);
	if (!folder && inode && (flags & O_TRUNC)) {
		/* What was there before is there again if the power goes too early. */
		inode_set(&name->now, NULL);
		inode = NULL;
	}
	if (!folder && !inode) {
		rc = step(n, &dies);
		if (rc && !dies)
			return fail(rc);
		inode = inode_new();
		inode_set(&find_or_make(path)->now, inode);
		if (dies)
			return fail(EIO);
	}
	fd = open_file(n, inode, path);
	if (fd >= 0) {
		file_of(fd)->folder = folder;
		file_of(fd)->through = flags & O_DSYNC;
	}
	return fd;
}

int __wrap_open(const char *path, int flags, ...)
{
	char known[PATH_BYTES];
	struct node *n = resolve(path, known);
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
		int rc = step(n, &dies);

		return rc ? fail(rc) : memfd_create("spill", MFD_CLOEXEC);
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
	rc = step(f->owner, &dies);
	if (rc && (dies || !f->owner->dying) && len > SECTOR)
		inode_put(f->inode, f->owner->id, (uint64_t)at, buf, torn(len));
	if (rc)
		return fail(rc);
	inode_put(f->inode, f->owner->id, (uint64_t)at, buf, len);
	if (f->through && world->mutant != MUTANT_RELEASE_UNSYNCED)
		inode_through(f->inode, (uint64_t)at, len);
	return (ssize_t)len;
}

static bool in_folder(const char *path, const char *folder)
{
	size_t n = strlen(folder);

	return !strncmp(path, folder, n) && path[n] == '/' && !strchr(path + n + 1, '/');
}

/* What it is now gets to the disk, or is lost. */
static void settle(struct name *n, bool reached)
{
	if (reached)
		inode_set(&n->durable, n->now);
	else
		inode_set(&n->now, n->durable);
	n->other = NULL;
}

static void sync_names(const char *folder)
{
	for (unsigned i = 0; i < FILES_MAX; i++)
		if ((names[i].now || names[i].durable) && in_folder(names[i].path, folder))
			settle(&names[i], true);
}

static bool is_metadata(const struct file *f)
{
	size_t n = strlen(f->path);

	return n > 4 && !strcmp(f->path + n - 4, ".tmp");
}

static bool is_journal(const char *path)
{
	return strstr(path, JOURNAL_SUFFIX) != NULL;
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
	int rc = step(f->owner, &dies);

	if (rc) {
		if (dies && f->inode)
			inode_sync(f->inode, world, 50);
		return fail(rc);
	}
	if (f->folder) {
		if (m != MUTANT_NAME_UNSYNCED)
			sync_names(f->path);
	} else if (!(m == MUTANT_METADATA_UNSYNCED && is_metadata(f)) &&
		   !(m == MUTANT_JOURNAL_UNSYNCED && is_journal(f->path)) && !is_left_out(f)) {
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

int __real_ftruncate(int fd, off_t bytes);
int __wrap_ftruncate(int fd, off_t bytes);
int __wrap_ftruncate(int fd, off_t bytes)
{
	struct file *f = file_of(fd);
	bool dies;
	int rc;

	if (!f)
		return __real_ftruncate(fd, bytes);
	rc = step(f->owner, &dies);
	if (rc)
		return fail(rc);
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
		return fail(EOPNOTSUPP);
	assert(mode & FALLOC_FL_PUNCH_HOLE);
	rc = step(f->owner, &dies);
	if (rc)
		return fail(rc);
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
		return fail(ENXIO);
	for (x = (uint64_t)at / EXTENT; x * EXTENT < f->inode->bytes; x++)
		if (f->inode->written[x] == (whence == SEEK_DATA))
			return (off_t)(x * EXTENT > (uint64_t)at ? x * EXTENT : (uint64_t)at);
	return whence == SEEK_DATA ? fail(ENXIO) : (off_t)f->inode->bytes;
}

static void fill_stat(struct stat *st, const struct inode *i)
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
	fill_stat(st, f->inode);
	return 0;
}

int __real_stat(const char *path, struct stat *st);
int __wrap_stat(const char *path, struct stat *st);
int __wrap_stat(const char *path, struct stat *st)
{
	char known[PATH_BYTES];
	struct name *name;

	if (!resolve(path, known))
		return __real_stat(path, st);
	name = find(known);
	if (!name || !name->now)
		return fail(ENOENT);
	fill_stat(st, name->now);
	return 0;
}

int __real_access(const char *path, int mode);
int __wrap_access(const char *path, int mode);
int __wrap_access(const char *path, int mode)
{
	char known[PATH_BYTES];
	struct name *name;

	if (!resolve(path, known))
		return __real_access(path, mode);
	name = find(known);
	return name && name->now ? 0 : fail(ENOENT);
}

int __real_unlink(const char *path);
int __wrap_unlink(const char *path);
int __wrap_unlink(const char *path)
{
	char known[PATH_BYTES];
	struct node *n = resolve(path, known);
	struct name *name;
	bool dies;

	if (!n)
		return __real_unlink(path);
	name = find(known);
	if (!name || !name->now)
		return fail(ENOENT);
	if (step(n, &dies) && !dies)
		return fail(EIO);
	if (world->mutant != MUTANT_JOURNAL_KEPT || !is_journal(known))
		inode_set(&name->now, NULL);
	return dies ? fail(EIO) : 0;
}

/* The next one in the row, if there is one. */
static void skip_link(char path[PATH_BYTES])
{
	char next[PATH_BYTES], *number = strrchr(path, '/') + 1;
	int folder = (int)(number - path);
	struct name *name;

	snprintf(next, sizeof next, "%.*s%020llu.changes", folder, path,
		 strtoull(number, NULL, 10) + 1);
	name = find(next);
	if (name && name->now)
		memcpy(path, next, sizeof next);
}

int __real_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to)
{
	char a[PATH_BYTES], b[PATH_BYTES];
	struct node *n = resolve(from, a);
	struct name *source, *target;
	bool dies;
	int rc;

	if (!n)
		return __real_rename(from, to);
	(void)resolve(to, b);
	if (world->mutant == MUTANT_LINK_SKIPPED && strstr(b, "/base" UPDATE_SUFFIX))
		skip_link(a);
	source = find(a);
	if (!source || !source->now)
		return fail(ENOENT);
	rc = step(n, &dies);
	if (rc && (!dies || world_chance(world, 50)))
		return fail(rc);
	target = find_or_make(b);
	inode_set(&target->now, source->now);
	inode_set(&source->now, NULL);
	target->other = source;
	source->other = target;
	return rc ? fail(rc) : 0;
}

int __real_posix_fadvise(int fd, off_t at, off_t len, int advice);
int __wrap_posix_fadvise(int fd, off_t at, off_t len, int advice);
int __wrap_posix_fadvise(int fd, off_t at, off_t len, int advice)
{
	return file_of(fd) ? 0 : __real_posix_fadvise(fd, at, len, advice);
}

static bool is_locked(const struct file *f)
{
	for (unsigned i = 0; i < FDS_MAX; i++)
		if (files[i].owner && files[i].locked && &files[i] != f &&
		    files[i].inode == f->inode && world->mutant != MUTANT_NO_LOCK &&
		    (files[i].owner == f->owner || !world->options.lockless))
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
		return open_file(f->owner, f->inode, f->path);
	if (cmd == F_OFD_GETLK) {
		((struct flock *)arg)->l_type = is_locked(f) ? F_WRLCK : F_UNLCK;
		return 0;
	}
	assert(cmd == F_OFD_SETLK && ((struct flock *)arg)->l_type == F_WRLCK);
	if (f->owner->dying || f->owner->crashed)
		return fail(EIO);
	if (is_locked(f))
		return fail(EAGAIN);
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
			return fail(EWOULDBLOCK);
	f->flocked = how;
	return 0;
}

/* ---- the world's side ---- */

void files_init(struct world *w)
{
	world = w;
	memset(names, 0, sizeof names);
	memset(files, 0, sizeof files);
	memset(open_files, 0, sizeof open_files);
}

void files_free(struct world *w)
{
	(void)w;
	for (unsigned i = 0; i < FDS_MAX; i++)
		if (files[i].owner)
			let_go(&files[i]);
	for (unsigned i = 0; i < FILES_MAX; i++) {
		inode_set(&names[i].now, NULL);
		inode_set(&names[i].durable, NULL);
	}
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
	for (unsigned i = 0; i < FILES_MAX; i++) {
		struct name *name = &names[i];
		char own[8];

		if (!name->now && !name->durable)
			continue;
		snprintf(own, sizeof own, PREFIX "%c/", 'A' + (int)n->id);
		if (!strncmp(name->path, own, strlen(own)) && name->now != name->durable) {
			struct name *other = name->other;
			bool reached = world_chance(world, 50);

			if (other && other->other == name)
				settle(other, reached);
			settle(name, reached);
		}
		if (name->now)
			inode_lose(name->now, world, n->id);
	}
}

bool files_exists(const char *path)
{
	char known[PATH_BYTES];
	struct name *name = resolve(path, known) ? find(known) : NULL;

	return name && name->now;
}

void files_peek(const char *path, uint64_t offset, uint8_t *out, size_t len, bool durable)
{
	char known[PATH_BYTES];
	struct name *name = resolve(path, known) ? find(known) : NULL;
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
	if (!resolve(path, known))
		abort();
	name = find_or_make(known);
	inode_grow(i, bytes);
	i->durable_bytes = bytes;
	inode_set(&name->now, i);
	inode_set(&name->durable, i);
}

bool files_is_simulated(const char *path)
{
	return world && !strncmp(path, PREFIX, strlen(PREFIX));
}

bool files_name(unsigned i, const char **path)
{
	if (i >= FILES_MAX)
		return false;
	*path = names[i].now ? names[i].path : NULL;
	return true;
}

unsigned files_open_count(struct node *n)
{
	return open_files[n->id];
}
