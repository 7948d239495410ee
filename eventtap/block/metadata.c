// SPDX-License-Identifier: Apache-2.0
// A lock on a file that is replaced by rename(2): the lock belongs to the inode, so the new inode
// is locked before it gets the name, and who has locked an inode looks whether the name still means
// it.
#include "eventtap/block/metadata.h"
#include "ft/file_io.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#define LOCK_ATTEMPTS_MAX 16 /* renames that may happen between our open and our lock */

static const char *const state_names[] = {
	[STORE_INCONSISTENT] = "Inconsistent", [STORE_OUTDATED] = "Outdated",
	[STORE_UP_TO_DATE] = "UpToDate",       [STORE_PROTECTED] = "Protected",
	[STORE_CONSISTENT] = "Consistent",
};

const char *metadata_state_name(enum store_state state)
{
	assert(state >= STORE_INCONSISTENT && state <= STORE_CONSISTENT);
	return state_names[state];
}

static int set_path(char path[PATH_MAX], const char *image, struct ft_err *err)
{
	int n = snprintf(path, PATH_MAX, "%s" METADATA_SUFFIX, image);
	if (n >= PATH_MAX - (int)sizeof(".tmp"))
		return ft_err_set(err, ENAMETOOLONG, "disk metadata: %.64s...: name too long",
				  image);
	return 0;
}

static int format(char text[METADATA_BYTES_MAX], const struct metadata_record *record)
{
	int n = snprintf(text, METADATA_BYTES_MAX,
			 "kemari-disk 1\nuuid %s\ngeneration %" PRIu64 "\nepoch %" PRIu64
			 "\nstate %s\n",
			 record->uuid[0] ? record->uuid : "-", record->generation, record->epoch,
			 metadata_state_name(record->state));
	n += snprintf(text + n, (size_t)(METADATA_BYTES_MAX - n), "sum %016" PRIx64 "\n",
		      (uint64_t)XXH3_64bits(text, (size_t)n));
	assert(n < METADATA_BYTES_MAX);
	return n;
}

// A record is what format() would write, to the byte: that is the whole check.
static bool parse(const char *text, size_t len, struct metadata_record *record)
{
	char state[16], again[METADATA_BYTES_MAX];
	memset(record, 0, sizeof(*record));
	if (sscanf(text,
		   "kemari-disk 1\nuuid %36s\ngeneration %" SCNu64 "\nepoch %" SCNu64
		   "\nstate %15s\n",
		   record->uuid, &record->generation, &record->epoch, state) != 4)
		return false;
	if (strcmp(record->uuid, "-") == 0)
		record->uuid[0] = '\0';
	for (int i = STORE_INCONSISTENT; i <= STORE_CONSISTENT; i++)
		if (strcmp(state, state_names[i]) == 0)
			record->state = (enum store_state)i;
	return record->state && (size_t)format(again, record) == len &&
	       memcmp(text, again, len) == 0;
}

// Whatever else a later version says, it begins with its number and ends with its sum.
static bool is_later_version(const char *text, size_t len)
{
	uint64_t sum;
	int version;
	const char *last = text;
	for (const char *at = text; (at = strchr(at, '\n')) && at[1]; at++)
		last = at + 1;
	return len > 0 && sscanf(text, "kemari-disk %d\n", &version) == 1 &&
	       version > METADATA_VERSION && sscanf(last, "sum %" SCNx64 "\n", &sum) == 1 &&
	       sum == XXH3_64bits(text, (size_t)(last - text));
}

static int read_fd(int fd, const char *path, struct metadata_record *record, struct ft_err *err)
{
	char text[METADATA_BYTES_MAX];
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
	if (n < 0)
		return ft_err_set(err, errno, "disk metadata %s: read: %s", path, strerror(errno));
	text[n] = '\0';
	if (n == 0)
		return ft_err_set(err, ENOENT, "disk metadata %s: empty", path);
	if (is_later_version(text, (size_t)n))
		return ft_err_set(err, ENOTSUP,
				  "disk metadata %s: of a later version than this program knows "
				  "(%d)",
				  path, METADATA_VERSION);
	if (!parse(text, (size_t)n, record))
		return ft_err_set(
			err, EBADMSG,
			"disk metadata %s: damaged; if the image is surely the newest copy, "
			"start with --force, or remove this file",
			path);
	return 0;
}

int metadata_read(const char *image, struct metadata_record *record, struct ft_err *err)
{
	char path[PATH_MAX];
	int ret = set_path(path, image, err);
	if (ret < 0)
		return ret;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return ft_err_set(err, errno, "disk metadata %s: open: %s", path, strerror(errno));
	ret = read_fd(fd, path, record, err);
	close(fd);
	return ret;
}

static int lock(int fd)
{
	struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	if (fcntl(fd, F_OFD_SETLK, &whole) == 0)
		return 0;
	return errno == EACCES || errno == EAGAIN ? -EBUSY : -errno;
}

bool metadata_locked(const char *image)
{
	struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	char path[PATH_MAX];
	if (set_path(path, image, NULL) < 0)
		return false;
	int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return false;
	bool locked = fcntl(fd, F_OFD_GETLK, &whole) == 0 && whole.l_type != F_UNLCK;
	close(fd);
	return locked;
}

// Opens and locks what the name means; an empty file is one that somebody has just created.
static int open_locked(struct metadata *meta, struct ft_err *err)
{
	for (int i = 0; i < LOCK_ATTEMPTS_MAX; i++) {
		struct stat mine, named;
		meta->fd = open(meta->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0600);
		if (meta->fd < 0)
			return ft_err_set(err, errno, "disk metadata %s: open: %s", meta->path,
					  strerror(errno));
		int ret = lock(meta->fd);
		if (ret == 0 && fstat(meta->fd, &mine) == 0 && stat(meta->path, &named) == 0 &&
		    mine.st_ino == named.st_ino && mine.st_dev == named.st_dev) {
			meta->fresh = mine.st_size == 0;
			return 0;
		}
		close(meta->fd);
		meta->fd = -1;
		if (ret < 0 && ret != -EBUSY)
			return ft_err_set(err, -ret, "disk metadata %s: lock: %s", meta->path,
					  strerror(-ret));
		if (ret == -EBUSY)
			break;
	}
	return ft_err_set(err, EBUSY, "disk metadata %s: locked: another agent has this disk open",
			  meta->path);
}

int metadata_open(const char *image, struct metadata *meta, struct ft_err *err)
{
	meta->fd = -1;
	int ret = set_path(meta->path, image, err);
	if (ret == 0)
		ret = open_locked(meta, err);
	if (ret < 0)
		return ret;
	if (meta->fresh) {
		struct metadata_record record = {.state = STORE_UP_TO_DATE};
		ret = metadata_write(meta, &record, err);
		if (ret < 0)
			unlink(meta->path);
	} else {
		ret = read_fd(meta->fd, meta->path, &meta->record, err);
	}
	if (ret < 0)
		metadata_close(meta);
	return ret;
}

int metadata_write(struct metadata *meta, const struct metadata_record *record, struct ft_err *err)
{
	assert(meta->fd >= 0);
	char text[METADATA_BYTES_MAX], temporary[PATH_MAX + sizeof(".tmp")];
	int len = format(text, record);
	snprintf(temporary, sizeof(temporary), "%s.tmp", meta->path);
	// Only the holder of the lock writes here, so what a crash has left can go.
	unlink(temporary);
	int fd = open(temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return ft_err_set(err, errno, "disk metadata %s: create: %s", temporary,
				  strerror(errno));
	ssize_t n = pwrite(fd, text, (size_t)len, 0);
	int ret = n == len ? 0 : n < 0 ? -errno : -ENOSPC;
	if (ret == 0 && fsync(fd) < 0)
		ret = -errno;
	if (ret == 0)
		ret = lock(fd);
	if (ret == 0 && rename(temporary, meta->path) < 0)
		ret = -errno;
	if (ret < 0) {
		close(fd);
		unlink(temporary);
		return ft_err_set(err, -ret, "disk metadata %s: write: %s", meta->path,
				  strerror(-ret));
	}
	close(meta->fd);
	meta->fd = fd;
	meta->record = *record;
	ret = file_sync_folder(meta->path);
	if (ret < 0)
		return ft_err_set(err, -ret, "disk metadata %s: sync of its folder: %s", meta->path,
				  strerror(-ret));
	return 0;
}

void metadata_close(struct metadata *meta)
{
	if (meta->fd >= 0)
		close(meta->fd);
	meta->fd = -1;
}

// What starting it nevertheless costs, as far as it can be known here.
static int refuse(const char *image, const struct metadata_record *record, const char *what,
		  struct ft_err *err)
{
	return ft_err_set(err, ESTALE,
			  "disk %s: %s at generation %" PRIu64 " epoch %" PRIu64
			  ": %s; start the guest on the other host, or let this one be its standby "
			  "(--incoming); --force starts it from this copy all the same",
			  image, metadata_state_name(record->state), record->generation,
			  record->epoch, what);
}

int metadata_startable(const char *image, const struct metadata_record *record, struct ft_err *err)
{
	switch (record->state) {
	case STORE_UP_TO_DATE:
		return 0;
	case STORE_PROTECTED:
		return refuse(image, record,
			      "the guest was protected by a standby when its host stopped, and the "
			      "standby may have gone on",
			      err);
	case STORE_CONSISTENT:
		return refuse(image, record,
			      "a standby's whole copy of that epoch, but the primary may have gone "
			      "on",
			      err);
	case STORE_OUTDATED:
		return refuse(image, record, "the guest went on elsewhere since", err);
	case STORE_INCONSISTENT:
		return refuse(image, record,
			      "a standby's copy that was being written, a mixture of epochs", err);
	}
	assert(!"metadata state out of range");
	return -EINVAL;
}

const char *metadata_loss(const struct metadata_record *record)
{
	switch (record->state) {
	case STORE_UP_TO_DATE:
		return "nothing";
	case STORE_PROTECTED:
		return "what its standby did with the guest since, if it took over";
	case STORE_CONSISTENT:
		return "what the primary did with the guest after that epoch";
	case STORE_OUTDATED:
		return "everything that the guest did since";
	case STORE_INCONSISTENT:
		return "everything since an epoch that nobody knows; the filesystems on it may be "
		       "damaged";
	}
	assert(!"metadata state out of range");
	return "";
}
