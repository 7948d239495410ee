// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/snapshot/update.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ft/file_io.h"
#include "vmm-glue/snapshot/disk_source.h"
#include "vmm-glue/snapshot/update_disks.h"
#include "vmm-glue/vmm.h"

bool update_journal_path(const char *path, char out[CHANGES_PATH_MAX])
{
	return snprintf(out, CHANGES_PATH_MAX, "%s" UPDATE_SUFFIX, path) < CHANGES_PATH_MAX;
}

static uint32_t mark_of(int fd)
{
	uint8_t opening[CHANGES_MARK_BYTES];

	return file_read(fd, opening, sizeof opening, 0) ? 0 : changes_marked(opening);
}

bool update_is_begun(int fd)
{
	return mark_of(fd) != 0;
}

// ---- the steps

/* The whole bitmap, as the file has it. */
static uint64_t *load_bitmap(int fd, const struct changes_head *h, size_t *bytes, int *rc)
{
	uint64_t *bitmap;

	*bytes = (h->ram_bytes / MAPPED_RAM_PAGE_BYTES + 63) / 64 * 8;
	bitmap = malloc(*bytes);
	*rc = bitmap ? file_read(fd, bitmap, *bytes, h->bitmap_offset) : -ENOMEM;
	return bitmap;
}

static uint64_t page_place(const struct changes_head *h, uint64_t pfn)
{
	return h->pages_offset + pfn * MAPPED_RAM_PAGE_BYTES;
}

static int reserve(int fd, uint64_t at, uint64_t bytes)
{
	/* A filesystem that cannot promise room does without. */
	if (!fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)bytes) || errno == EOPNOTSUPP)
		return 0;
	return -errno;
}

/* Room for pages that were zeroes so far; they read as such before and after. */
static int make_room(int fd, const struct changes *c, const uint64_t *bitmap)
{
	const struct changes_head *h = &c->head;
	int rc = reserve(fd, h->state_offset, h->state_bytes);
	uint64_t done = 0, hash;

	for (; done < h->pages_n && !rc; done++) {
		uint64_t pfn = changes_page(c->index, done, &hash);

		if (!(le64toh(bitmap[pfn / 64]) >> (pfn % 64) & 1))
			rc = reserve(fd, page_place(h, pfn), MAPPED_RAM_PAGE_BYTES);
	}
	for (uint64_t i = 0; i < done && rc; i++) {
		uint64_t pfn = changes_page(c->index, i, &hash);

		if (!(le64toh(bitmap[pfn / 64]) >> (pfn % 64) & 1))
			(void)fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					(off_t)page_place(h, pfn), MAPPED_RAM_PAGE_BYTES);
	}
	return rc;
}

static int write_opening(int fd, const uint8_t opening[CHANGES_MARK_BYTES])
{
	int rc = file_write(fd, opening, CHANGES_MARK_BYTES, 0);

	return rc || !fsync(fd) ? rc : -errno;
}

static int put_pages(int fd, const struct changes *c, uint64_t *bitmap)
{
	uint8_t pages[CHANGES_RUN_PAGES * MAPPED_RAM_PAGE_BYTES];
	uint64_t hash;
	int rc = 0;

	for (uint64_t i = 0, n; i < c->head.pages_n && !rc; i += n) {
		uint64_t first = changes_page(c->index, i, &hash);

		n = changes_run(c, i, CHANGES_RUN_PAGES);
		rc = changes_read(c, i, n, pages);
		if (!rc)
			rc = file_write(fd, pages, n * MAPPED_RAM_PAGE_BYTES,
					page_place(&c->head, first));
		for (uint64_t pfn = first; pfn < first + n; pfn++)
			bitmap[pfn / 64] |= htole64(UINT64_C(1) << (pfn % 64));
	}
	return rc;
}

/* A page that is not in the bitmap reads as zeroes. */
static int put_zeroes(int fd, const struct changes *c, uint64_t *bitmap)
{
	static const uint8_t zeroes[MAPPED_RAM_PAGE_BYTES];
	int rc = 0;

	for (uint64_t i = 0; i < c->head.zeroes_n && !rc; i++) {
		uint64_t pfn = changes_zero(&c->head, c->index, i);
		off_t at = (off_t)page_place(&c->head, pfn);

		if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at,
			      MAPPED_RAM_PAGE_BYTES))
			rc = file_write(fd, zeroes, sizeof zeroes, (uint64_t)at);
		bitmap[pfn / 64] &= ~htole64(UINT64_C(1) << (pfn % 64));
	}
	return rc;
}

static int put_all(int fd, const struct changes *c, uint64_t *bitmap, size_t bitmap_bytes)
{
	const struct changes_head *h = &c->head;
	int rc = put_pages(fd, c, bitmap);

	if (!rc)
		rc = put_zeroes(fd, c, bitmap);
	if (!rc)
		rc = file_write(fd, bitmap, bitmap_bytes, h->bitmap_offset);
	if (!rc)
		rc = file_write(fd, changes_state(c), h->state_bytes, h->state_offset);
	if (!rc && (ftruncate(fd, (off_t)(h->state_offset + h->state_bytes)) || fsync(fd)))
		rc = -errno;
	return rc;
}

static int check_frame(int fd, const char *path, const struct changes *c, struct ft_err *err)
{
	struct stat st;

	if (fstat(fd, &st))
		return ft_err_set(err, errno, "%s: %s", path, strerror(errno));
	if (!c->head.pages_offset || (uint64_t)st.st_size < c->head.state_offset)
		return ft_err_set(err, EBADMSG, "%s: is no snapshot of %" PRIu64 " bytes", path,
				  c->head.ram_bytes);
	return 0;
}

static int apply(int fd, const struct changes *c, struct update_disks *disks)
{
	uint8_t opening[CHANGES_MARK_BYTES];
	size_t bytes;
	int rc;
	uint64_t *bitmap = load_bitmap(fd, &c->head, &bytes, &rc);

	if (!rc && !update_is_begun(fd))
		rc = update_disks_make_room(disks);
	if (!rc && !update_is_begun(fd))
		rc = make_room(fd, c, bitmap);
	changes_mark(c->head.id, opening);
	if (!rc)
		rc = write_opening(fd, opening);
	if (!rc)
		rc = update_disks_put(disks);
	if (!rc)
		rc = put_all(fd, c, bitmap, bytes);
	changes_opening(opening);
	if (!rc)
		rc = write_opening(fd, opening);
	free(bitmap);
	return rc;
}

int update_apply(int fd, const char *path, const struct changes *c, struct update_disks *disks,
		 struct ft_err *err)
{
	int rc = check_frame(fd, path, c, err);

	if (rc)
		return rc;
	rc = apply(fd, c, disks);
	if (rc && update_is_begun(fd))
		return ft_err_set(err, -rc,
				  "%s: updating it: %s: keep %s%s; the update is completed when "
				  "the snapshot is used next",
				  path, strerror(-rc), path, UPDATE_SUFFIX);
	return rc ? ft_err_set(err, -rc, "%s: %s", path, strerror(-rc)) : 0;
}

// ---- opening

static void remove_journals(const char *journal)
{
	char path[CHANGES_PATH_MAX];

	unlink(journal);
	for (unsigned i = 0; i < VMM_DISKS_MAX; i++)
		if (disk_changes_path(journal, i, path))
			unlink(path);
}

static int complete(int fd, const char *path, struct ft_err *err)
{
	char journal[CHANGES_PATH_MAX];
	struct update_disks *disks = NULL;
	struct changes c;
	int rc;

	if (!update_journal_path(path, journal))
		return ft_err_set(err, ENAMETOOLONG, "%.64s...: path too long", path);
	rc = changes_open(journal, &c, err);
	if (rc)
		return ft_err_context(err,
				      "%s: an update of it was interrupted, and is to be "
				      "completed from its journal",
				      path);
	if (c.head.id != mark_of(fd))
		rc = ft_err_set(err, EBADMSG,
				"%s: an update of it was interrupted, and %s is of another one",
				path, journal);
	if (!rc)
		rc = changes_verify(&c, err);
	if (!rc)
		rc = update_disks_open(path, &c, journal, &disks, err);
	if (!rc)
		rc = update_apply(fd, path, &c, disks, err);
	update_disks_close(disks);
	changes_end(&c);
	if (!rc)
		remove_journals(journal);
	return rc;
}

/* Is what `path` names. */
static bool is_named(int fd, const char *path)
{
	struct stat st, named;

	return !fstat(fd, &st) && !stat(path, &named) && st.st_ino == named.st_ino &&
	       st.st_dev == named.st_dev;
}

int update_open(const char *path, struct ft_err *err)
{
	int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK), rc = 0;

	if (fd < 0)
		return ft_err_set(err, errno, "%s: %s", path, strerror(errno));
	if (flock(fd, LOCK_EX | LOCK_NB) || !is_named(fd, path))
		rc = ft_err_set(err, EBUSY,
				"%s: is in use: a guest is being restored from it, or it is being "
				"updated",
				path);
	if (!rc && update_is_begun(fd))
		rc = complete(fd, path, err);
	/* One who died may have taken the mark away and not synced that: if it came back with a
	 * loss of power, its journal must be there still, which the caller is about to replace. */
	else if (!rc && fsync(fd))
		rc = ft_err_set(err, errno, "%s: %s", path, strerror(errno));
	if (rc) {
		close(fd);
		return rc;
	}
	return fd;
}

void update_forget(const char *path)
{
	char journal[CHANGES_PATH_MAX];
	int fd;

	if (!update_journal_path(path, journal))
		return;
	/* Not that of somebody who writes it just now. */
	fd = open(journal, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
	if (fd < 0 && errno == ENOENT)
		remove_journals(journal); /* of disks: whoever writes those has the other */
	if (fd < 0)
		return;
	if (!flock(fd, LOCK_EX | LOCK_NB) && is_named(fd, journal))
		remove_journals(journal);
	close(fd);
}
