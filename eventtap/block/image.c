// SPDX-License-Identifier: Apache-2.0
// Raw images. TRIM and zero are the same thing here, a range that reads as zeroes, so that two
// hosts which execute the same requests have the same bytes, whatever their filesystems can do.
#include "eventtap/block/image.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ZERO_BYTES (256u << 10)

static const uint8_t zeroes[ZERO_BYTES];

// Formats that are not raw, by what stands at `at`.
static const struct magic {
	const char *format;
	unsigned at, len;
	const char *bytes;
} magics[] = {
	{"qcow", 0, 4, "QFI\xfb"},
	{"qed", 0, 4, "QED\0"},
	{"vmdk", 0, 4, "KDMV"},
	{"vmdk", 0, 4, "COWD"},
	{"vmdk", 0, 21, "# Disk DescriptorFile"},
	{"vdi", 64, 4, "\x7f\x10\xda\xbe"},
	{"vhdx", 0, 8, "vhdxfile"},
	{"vpc (vhd)", 0, 8, "conectix"},
	{"parallels", 0, 16, "WithoutFreeSpace"},
	{"parallels", 0, 16, "WithouFreSpacExt"},
	{"luks", 0, 6, "LUKS\xba\xbe"},
	{"bochs", 0, 22, "Bochs Virtual HD Image"},
};

static int refuse_other_formats(const struct image *image, const char *path, struct ft_err *err)
{
	uint8_t head[128] = {0};
	ssize_t n = pread(image->fd, head, sizeof(head), 0);
	if (n < 0)
		return ft_err_set(err, errno, "disk image %s: read: %s", path, strerror(errno));
	for (unsigned i = 0; i < sizeof(magics) / sizeof(magics[0]); i++) {
		const struct magic *m = &magics[i];
		if (memcmp(head + m->at, m->bytes, m->len) != 0)
			continue;
		return ft_err_set(err, EMEDIUMTYPE,
				  "disk image %s: looks like %s, only raw images are supported "
				  "(convert it with qemu-img, or say that its format is raw)",
				  path, m->format);
	}
	return 0;
}

static int image_setup(struct image *image, const char *path, bool raw, struct ft_err *err)
{
	struct stat st;
	if (fstat(image->fd, &st) < 0)
		return ft_err_set(err, errno, "disk image %s: %s", path, strerror(errno));
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return ft_err_set(err, EMEDIUMTYPE,
				  "disk image %s: neither a file nor a block device", path);
	off_t end = lseek(image->fd, 0, SEEK_END);
	if (end < 0)
		return ft_err_set(err, errno, "disk image %s: size: %s", path, strerror(errno));
	image->bytes = (uint64_t)end;
	return raw ? 0 : refuse_other_formats(image, path, err);
}

static int open_checked(const char *path, int flags, bool raw, struct image *image,
			struct ft_err *err)
{
	// A FIFO in the image's place must not block us: O_NONBLOCK means nothing to files.
	image->fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | flags, 0600);
	if (image->fd < 0)
		return ft_err_set(err, errno, "disk image %s: open: %s", path, strerror(errno));
	int ret = image_setup(image, path, raw, err);
	if (ret < 0)
		image_close(image);
	return ret;
}

static int open_existing(const char *path, int flags, bool raw, struct image *image,
			 struct ft_err *err)
{
	int ret = open_checked(path, flags, raw, image, err);
	if (ret == 0 && image->bytes == 0) {
		image_close(image);
		ret = ft_err_set(err, EINVAL, "disk image %s: is empty", path);
	}
	return ret;
}

int image_open(const char *path, bool raw, struct image *image, struct ft_err *err)
{
	return open_existing(path, 0, raw, image, err);
}

// O_DSYNC and not O_DIRECT: the latter asks for alignment that a guest's requests need not have,
// and not every filesystem has it.
int image_open_through(const char *path, bool raw, struct image *image, struct ft_err *err)
{
	return open_existing(path, O_DSYNC, raw, image, err);
}

void image_forget(const struct image *image)
{
	(void)posix_fadvise(image->fd, 0, 0, POSIX_FADV_DONTNEED);
}

int image_open_or_create(const char *path, bool raw, uint64_t bytes, struct image *image,
			 struct ft_err *err)
{
	assert(bytes > 0);
	int ret = open_checked(path, O_CREAT, raw, image, err);
	if (ret < 0)
		return ret;
	if (image->bytes == 0) {
		if (ftruncate(image->fd, (off_t)bytes) < 0)
			ret = ft_err_set(err, errno, "disk image %s: make it %llu bytes: %s", path,
					 (unsigned long long)bytes, strerror(errno));
		image->bytes = bytes;
	} else if (image->bytes != bytes) {
		ret = ft_err_set(err, EFBIG,
				 "disk image %s: has %llu bytes, the guest's disk has %llu", path,
				 (unsigned long long)image->bytes, (unsigned long long)bytes);
	}
	if (ret < 0)
		image_close(image);
	return ret;
}

void image_close(struct image *image)
{
	if (image->fd >= 0)
		close(image->fd);
	image->fd = -1;
}

int image_pread(const struct image *image, uint8_t *buf, uint64_t len, uint64_t offset)
{
	while (len > 0) {
		ssize_t n = pread(image->fd, buf, len, (off_t)offset);
		if (n < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		if (n == 0)
			return -EIO; // somebody has made the file shorter under us
		buf += n;
		len -= (uint64_t)n;
		offset += (uint64_t)n;
	}
	return 0;
}

int image_pwrite(const struct image *image, const uint8_t *buf, uint64_t len, uint64_t offset)
{
	while (len > 0) {
		ssize_t n = pwrite(image->fd, buf, len, (off_t)offset);
		if (n < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		buf += n;
		len -= (uint64_t)n;
		offset += (uint64_t)n;
	}
	return 0;
}

int image_zero(const struct image *image, uint64_t offset, uint64_t len, enum image_zero how,
	       bool fast)
{
	int mode = how == IMAGE_ZERO_UNMAP ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
					   : FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
	int ret;
	do
		ret = fallocate(image->fd, mode, (off_t)offset, (off_t)len);
	while (ret < 0 && errno == EINTR);
	if (ret == 0)
		return 0;
	if (errno != EOPNOTSUPP && errno != ENODEV && errno != EINVAL)
		return -errno;
	if (fast)
		return -ENOTSUP;
	while (len > 0) {
		uint64_t part = len < ZERO_BYTES ? len : ZERO_BYTES;
		ret = image_pwrite(image, zeroes, part, offset);
		if (ret < 0)
			return ret;
		offset += part;
		len -= part;
	}
	return 0;
}

int image_flush(const struct image *image)
{
	return fdatasync(image->fd) < 0 ? -errno : 0;
}

int image_extent(const struct image *image, uint64_t offset, uint64_t len, uint64_t *extent,
		 bool *hole)
{
	off_t data = lseek(image->fd, (off_t)offset, SEEK_DATA);
	*extent = len;
	*hole = false;
	if (data < 0) {
		*hole = errno == ENXIO; // anything else: a file that cannot tell is all data
		return 0;
	}
	uint64_t end;
	if ((uint64_t)data > offset) {
		*hole = true;
		end = (uint64_t)data;
	} else {
		off_t next = lseek(image->fd, (off_t)offset, SEEK_HOLE);
		end = next > (off_t)offset ? (uint64_t)next : offset + len;
	}
	if (end - offset < len)
		*extent = end - offset;
	return 0;
}
