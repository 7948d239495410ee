// SPDX-License-Identifier: Apache-2.0
// A disk of a snapshot into a guest's image. By reflink where the filesystem can, else piece by
// piece; holes stay holes.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "eventtap/block/image.h"
#include "eventtap/block/metadata.h"
#include "ft/log.h"
#include "ft/page.h"
#include "vmm-glue/snapshot/companions.h"

#define PIECE_BYTES (1u << 20)
/* QEMU's locks on an image (block/file-posix.c). */
#define QEMU_LOCKS_AT 100
#define QEMU_LOCKS    200

struct put {
	struct image from, to;
	const struct source *layered; /* in place of `from`; NULL: nothing lies over it */
	uint8_t *a, *b, *c;	      /* PIECE_BYTES each, and two pages */
};

static int from_extent(const struct put *p, uint64_t at, uint64_t len, uint64_t *extent, bool *hole)
{
	uint64_t pfn = at / FT_PAGE_BYTES, end = (at + len + FT_PAGE_BYTES - 1) / FT_PAGE_BYTES;

	if (!p->layered)
		return image_extent(&p->from, at, len, extent, hole);
	*hole = !source_has(p->layered, pfn);
	*extent = (pfn + source_run(p->layered, pfn, end - pfn)) * FT_PAGE_BYTES - at;
	*extent = *extent < len ? *extent : len;
	return 0;
}

/* At most PIECE_BYTES. Pages, of which the range need not be made. */
static int from_read(const struct put *p, uint8_t *to, uint64_t len, uint64_t at)
{
	uint64_t first = at / FT_PAGE_BYTES, end = (at + len + FT_PAGE_BYTES - 1) / FT_PAGE_BYTES;
	int rc = 0;

	if (!p->layered)
		return image_pread(&p->from, to, len, at);
	for (uint64_t pfn = first, n; pfn < end && !rc; pfn += n) {
		uint8_t *pages = p->c + (pfn - first) * FT_PAGE_BYTES;

		n = source_run(p->layered, pfn, end - pfn);
		if (source_has(p->layered, pfn))
			rc = source_read(p->layered, pfn, n, pages);
		else
			memset(pages, 0, n * FT_PAGE_BYTES);
	}
	memcpy(to, p->c + at % FT_PAGE_BYTES, len);
	return rc;
}

static bool is_zero(const uint8_t *bytes, uint64_t len)
{
	return !len || (!bytes[0] && !memcmp(bytes, bytes + 1, len - 1));
}

/* The next piece of both, alike in being a hole or not. */
static int next_piece(struct put *p, uint64_t at, uint64_t *len, bool *from_hole, bool *to_hole)
{
	uint64_t left = p->from.bytes - at, other;
	int rc;

	*from_hole = *to_hole = false;
	rc = from_extent(p, at, left, len, from_hole);
	if (!rc)
		rc = image_extent(&p->to, at, *len, &other, to_hole);
	if (!rc && other < *len)
		*len = other;
	if (*len > PIECE_BYTES && (!*from_hole || !*to_hole))
		*len = PIECE_BYTES;
	return rc;
}

/* What the image has: nothing but zeroes, what is wanted, or something else. */
static int look(struct put *p, bool *blank, bool *same)
{
	uint64_t len;
	int rc = 0;

	*blank = *same = true;
	for (uint64_t at = 0; at < p->from.bytes && (*blank || *same) && !rc; at += len) {
		bool from_hole, to_hole;

		rc = next_piece(p, at, &len, &from_hole, &to_hole);
		if (rc || (from_hole && to_hole))
			continue;
		rc = from_read(p, p->a, len, at);
		if (!rc)
			rc = image_pread(&p->to, p->b, len, at);
		*blank = *blank && is_zero(p->b, len);
		*same = *same && !memcmp(p->a, p->b, len);
	}
	return rc;
}

static int copy(struct put *p)
{
	uint64_t len;
	int rc = 0;

	for (uint64_t at = 0; at < p->from.bytes && !rc; at += len) {
		bool from_hole, to_hole;

		rc = next_piece(p, at, &len, &from_hole, &to_hole);
		if (rc || (from_hole && to_hole))
			continue;
		if (!from_hole)
			rc = from_read(p, p->a, len, at);
		if (!rc && !from_hole)
			rc = image_pwrite(&p->to, p->a, len, at);
		else if (!rc)
			rc = image_zero(&p->to, at, len, IMAGE_ZERO_UNMAP, false);
	}
	return rc;
}

static int fill(struct put *p)
{
	int rc = 0;

	if (p->layered || ioctl(p->to.fd, FICLONE, p->from.fd))
		rc = copy(p);
	return rc ? rc : image_flush(&p->to);
}

/* An image of another size is another disk; an empty file is none yet. */
static int fit(struct put *p, bool may, struct ft_err *err)
{
	struct stat st;

	if (fstat(p->to.fd, &st))
		return ft_err_set(err, errno, "%s", strerror(errno));
	if (!S_ISREG(st.st_mode) || !may)
		return ft_err_set(err, S_ISREG(st.st_mode) ? EEXIST : EFBIG,
				  "has %" PRIu64 " bytes, the disk in the snapshot has %" PRIu64
				  "%s",
				  p->to.bytes, p->from.bytes,
				  S_ISREG(st.st_mode) ? " (--force makes it that disk)" : "");
	p->to.bytes = p->from.bytes;
	return ftruncate(p->to.fd, (off_t)p->to.bytes)
		       ? ft_err_set(err, errno, "%s", strerror(errno))
		       : 0;
}

static int check_unused(const struct put *p, struct ft_err *err)
{
	struct flock locks = {.l_type = F_WRLCK,
			      .l_whence = SEEK_SET,
			      .l_start = QEMU_LOCKS_AT,
			      .l_len = QEMU_LOCKS};

	if (fcntl(p->to.fd, F_OFD_GETLK, &locks) || locks.l_type == F_UNLCK)
		return 0;
	return ft_err_set(err, EBUSY, "a QEMU has it open");
}

static int overwrite(struct put *p, struct metadata *meta, struct ft_err *err)
{
	struct metadata_record record = meta->record;
	int rc;

	record.state = STORE_INCONSISTENT;
	rc = metadata_write(meta, &record, err);
	if (rc)
		return rc;
	rc = fill(p);
	if (rc)
		return ft_err_set(err, -rc, "%s", strerror(-rc));
	record.state = STORE_UP_TO_DATE;
	return metadata_write(meta, &record, err);
}

static int open_image(struct put *p, const char *image, struct ft_err *err)
{
	int rc = image_open_or_create(image, true, p->from.bytes, &p->to, NULL);

	if (rc == -EFBIG)
		rc = image_open(image, true, &p->to, NULL);
	return rc ? ft_err_set(err, -rc, "%s", strerror(-rc)) : 0;
}

/* The image is open, and nobody else's. */
static int fill_if_it_may_be(struct put *p, const char *image, enum companions_how how,
			     struct metadata *meta, struct ft_err *err)
{
	bool blank = false, same = false;
	int rc;

	if (p->to.bytes != p->from.bytes) {
		rc = fit(p, how != COMPANIONS_REFUSE, err);
		return rc ? rc : overwrite(p, meta, err);
	}
	rc = look(p, &blank, &same);
	if (rc)
		return ft_err_set(err, -rc, "read: %s", strerror(-rc));
	if (same && meta->record.state == STORE_UP_TO_DATE)
		return 0;
	if (how == COMPANIONS_SPARE && !blank)
		return 0;
	rc = how == COMPANIONS_REFUSE ? metadata_startable(image, &meta->record, err) : 0;
	if (!rc && how == COMPANIONS_REFUSE && !blank && !same)
		rc = ft_err_set(err, EEXIST,
				"holds something else than the snapshot's disk: name another "
				"image, or --force overwrites it");
	return rc ? rc : overwrite(p, meta, err);
}

int companions_put(const struct companion *disk, const char *image, enum companions_how how,
		   struct ft_err *err)
{
	struct put p = {.from = {.fd = disk->fd, .bytes = disk->bytes},
			.to = {.fd = -1},
			.layered = disk->layered,
			.a = malloc(PIECE_BYTES),
			.b = malloc(PIECE_BYTES),
			.c = malloc(PIECE_BYTES + 2 * FT_PAGE_BYTES)};
	struct metadata meta = {.fd = -1};
	int rc = p.a && p.b && p.c ? metadata_open(image, &meta, err)
				   : ft_err_set(err, ENOMEM, "out of memory");

	if (!rc) {
		rc = open_image(&p, image, err);
		if (!rc && how != COMPANIONS_OVERWRITE)
			rc = check_unused(&p, err);
		if (!rc)
			rc = fill_if_it_may_be(&p, image, how, &meta, err);
		if (rc && meta.fresh && meta.record.state == STORE_UP_TO_DATE)
			(void)unlink(meta.path);
		metadata_close(&meta);
	}
	image_close(&p.to);
	free(p.a);
	free(p.b);
	free(p.c);
	return rc ? ft_err_context(err, "disk %s: %s", disk->id, image) : 0;
}
