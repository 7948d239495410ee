// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/snapshot/update_disks.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "eventtap/block/image.h"
#include "vmm-glue/snapshot/companions.h"
#include "vmm-glue/snapshot/disk_source.h"

#define PAGE MAPPED_RAM_PAGE_BYTES

struct update_disks {
	unsigned n;
	struct update_disk {
		struct image image; /* -1: not open */
		struct changes changes;
	} all[VMM_DISKS_MAX];
};

// ---- the steps

/* Of [pfn, pfn + n) what the disk has: it may end in the middle of a page. */
static uint64_t bytes_of(const struct update_disk *d, uint64_t pfn, uint64_t n)
{
	uint64_t left = d->image.bytes - pfn * PAGE;

	return left < n * PAGE ? left : n * PAGE;
}

static int is_hole(const struct update_disk *d, uint64_t pfn, bool *hole)
{
	uint64_t bytes = bytes_of(d, pfn, 1), extent = 0;
	int rc = image_extent(&d->image, pfn * PAGE, bytes, &extent, hole);

	*hole = *hole && extent == bytes;
	return rc;
}

/* Room that was promised reads as a hole still, so one that does not get it gives back all. */
static void give_back(const struct update_disk *d, uint64_t pages)
{
	uint64_t hash;

	for (uint64_t i = 0; i < pages; i++) {
		uint64_t pfn = changes_page(d->changes.index, i, &hash);
		bool hole = false;

		if (!is_hole(d, pfn, &hole) && hole)
			(void)fallocate(d->image.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					(off_t)(pfn * PAGE), PAGE);
	}
}

static int reserve(const struct update_disk *d, uint64_t pfn)
{
	bool hole = false;
	int rc = is_hole(d, pfn, &hole);

	if (rc || !hole)
		return rc;
	/* A filesystem that cannot promise room does without. */
	if (!fallocate(d->image.fd, FALLOC_FL_KEEP_SIZE, (off_t)(pfn * PAGE), PAGE) ||
	    errno == EOPNOTSUPP)
		return 0;
	return -errno;
}

static int make_room(const struct update_disk *d)
{
	uint64_t i = 0, hash;
	int rc = 0;

	for (; i < d->changes.head.pages_n && !rc; i++)
		rc = reserve(d, changes_page(d->changes.index, i, &hash));
	if (rc)
		give_back(d, i);
	return rc;
}

int update_disks_make_room(const struct update_disks *disks)
{
	int rc = 0;

	for (unsigned i = 0; disks && i < disks->n && !rc; i++) {
		rc = make_room(&disks->all[i]);
		for (unsigned before = 0; rc && before < i; before++)
			give_back(&disks->all[before], disks->all[before].changes.head.pages_n);
	}
	return rc;
}

static int put(const struct update_disk *d)
{
	const struct changes *c = &d->changes;
	uint8_t pages[CHANGES_RUN_PAGES * PAGE];
	int rc = 0;

	for (uint64_t i = 0, n; i < c->head.pages_n && !rc; i += n) {
		uint64_t hash, pfn = changes_page(c->index, i, &hash);

		n = changes_run(c, i, CHANGES_RUN_PAGES);
		rc = changes_read(c, i, n, pages);
		if (!rc)
			rc = image_pwrite(&d->image, pages, bytes_of(d, pfn, n), pfn * PAGE);
	}
	for (uint64_t i = 0; i < c->head.zeroes_n && !rc; i++) {
		uint64_t pfn = changes_zero(&c->head, c->index, i);

		rc = image_zero(&d->image, pfn * PAGE, bytes_of(d, pfn, 1), IMAGE_ZERO_UNMAP,
				false);
	}
	return rc ? rc : image_flush(&d->image);
}

int update_disks_put(const struct update_disks *disks)
{
	int rc = 0;

	for (unsigned i = 0; disks && i < disks->n && !rc; i++)
		rc = put(&disks->all[i]);
	return rc;
}

// ---- opening

static int open_image(struct update_disk *d, const char *folder, const struct companion *name,
		      struct ft_err *err)
{
	char path[CHANGES_PATH_MAX];
	struct stat st;

	if (snprintf(path, sizeof path, "%s/%s", folder, name->file) >= (int)sizeof path)
		return ft_err_set(err, ENAMETOOLONG, "%.64s...: path too long", folder);
	d->image.fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
	if (d->image.fd < 0 || fstat(d->image.fd, &st))
		return ft_err_set(err, errno, "disk %s: %s: %s", name->id, path, strerror(errno));
	d->image.bytes = name->bytes;
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != name->bytes)
		return ft_err_set(err, EBADMSG,
				  "disk %s: %s: is not the file of %llu bytes that "
				  "belongs to it",
				  name->id, path, (unsigned long long)name->bytes);
	return 0;
}

static int open_changes(struct update_disk *d, unsigned i, const struct changes *of,
			const char *changes_path, struct ft_err *err)
{
	uint64_t pages = (d->image.bytes + PAGE - 1) / PAGE;
	char path[CHANGES_PATH_MAX];
	int rc;

	if (!disk_changes_path(changes_path, i, path))
		return ft_err_set(err, ENAMETOOLONG, "%.64s...: path too long", changes_path);
	rc = changes_open(path, &d->changes, err);
	if (rc)
		return rc;
	if (d->changes.head.id != of->head.id || d->changes.head.pages_offset ||
	    d->changes.head.ram_bytes != pages * PAGE)
		return ft_err_set(err, EBADMSG, "%s: is of another update", path);
	return changes_verify(&d->changes, err);
}

static int open_all(struct update_disks *disks, const char *path, const struct companions *names,
		    const struct changes *of, const char *changes_path, struct ft_err *err)
{
	char copy[CHANGES_PATH_MAX], *folder;
	int rc = 0;

	snprintf(copy, sizeof copy, "%s", path);
	folder = dirname(copy);
	while (disks->n < names->n && !rc) {
		struct update_disk *d = &disks->all[disks->n];

		d->image.fd = d->changes.fd = -1;
		disks->n++;
		rc = open_image(d, folder, &names->disks[disks->n - 1], err);
		if (!rc)
			rc = open_changes(d, disks->n - 1, of, changes_path, err);
	}
	return rc;
}

int update_disks_open(const char *path, const struct changes *of, const char *changes_path,
		      struct update_disks **out, struct ft_err *err)
{
	struct companions names = {0};
	size_t len;
	const uint8_t *text = mapped_ram_description(changes_state(of), of->head.state_bytes, &len);
	int rc = text ? companions_parse((const char *)text, len, &names, err) : 0;

	*out = NULL;
	if (rc || !names.n)
		return rc;
	*out = calloc(1, sizeof **out);
	if (!*out)
		return ft_err_set(err, ENOMEM, "out of memory");
	rc = open_all(*out, path, &names, of, changes_path, err);
	if (rc) {
		update_disks_close(*out);
		*out = NULL;
	}
	return rc;
}

void update_disks_close(struct update_disks *disks)
{
	if (!disks)
		return;
	for (unsigned i = 0; i < disks->n; i++) {
		image_close(&disks->all[i].image);
		changes_end(&disks->all[i].changes);
	}
	free(disks);
}
