// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/snapshot/disk_target.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eventtap/block/cow.h"
#include "vmm-glue/snapshot/disk_source.h"
#include "vmm-glue/snapshot/layers.h"

#define PAGE MAPPED_RAM_PAGE_BYTES

_Static_assert(PAGE == COW_PAGE_BYTES, "pages of a copy are those of a file");

void disk_target_init(struct disk_target *t)
{
	*t = (struct disk_target){.lock_fd = -1,
				  .file = {.fd = -1, .direct_fd = -1, .dir_fd = -1},
				  .changes = {.fd = -1}};
}

int disk_target_open_image(struct disk_target *t, const char *path, uint64_t bytes, bool direct,
			   struct ft_err *err)
{
	return out_file_open(&t->file, path, bytes, direct, err);
}

int disk_target_open_changes(struct disk_target *t, const struct disk_old *old, uint32_t id,
			     struct ft_err *err)
{
	struct changes_head head;

	t->old = old;
	t->buffer = aligned_alloc(PAGE, (size_t)DIFFERING_PAGES_MAX * PAGE);
	if (!t->buffer)
		return ft_err_set(err, ENOMEM, "out of memory");
	t->differing =
		(struct differing){.to = &t->changes, .than = old->source, .buffer = t->buffer};
	disk_source_head(old->source, id, &head);
	return changes_create(&t->changes, old->changes, &head, err);
}

const char *disk_target_path(const struct disk_target *t)
{
	return t->old ? t->changes.path : t->file.path;
}

const char *disk_target_saved_as(const struct disk_target *t)
{
	return t->old ? t->old->saved_as : t->file.path;
}

/* The disk may end in the middle of its last page. */
static int put(struct disk_target *t, uint64_t offset, const uint8_t *data, size_t len)
{
	uint8_t last[PAGE] = {0};
	size_t whole = len / PAGE, part = len % PAGE;
	uint64_t pfn = offset / PAGE;
	int rc = 0;

	for (size_t at = 0, n; at < whole && !rc; at += n) {
		n = whole - at < DIFFERING_PAGES_MAX ? whole - at : DIFFERING_PAGES_MAX;
		rc = differing_put(&t->differing, pfn + at, n, data + at * PAGE);
	}
	if (rc || !part)
		return rc;
	memcpy(last, data + whole * PAGE, part);
	return differing_put(&t->differing, pfn + whole, 1, last);
}

int disk_target_write(struct disk_target *t, uint64_t offset, const uint8_t *data, size_t len)
{
	int rc;

	assert(offset % PAGE == 0);
	if (t->old)
		rc = put(t, offset, data, len);
	else
		rc = out_file_write(&t->file, data, len, offset, len % PAGE == 0);
	t->bytes_written = t->old ? t->differing.put * PAGE : t->bytes_written + len;
	return rc;
}

/* A new image has them already. */
int disk_target_zeroes(struct disk_target *t, uint64_t offset, uint64_t len)
{
	int rc;

	assert(offset % PAGE == 0);
	if (!t->old)
		return 0;
	rc = differing_put_zeroes(&t->differing, offset / PAGE, (len + PAGE - 1) / PAGE);
	t->bytes_written = t->differing.put * PAGE;
	return rc;
}

static int check(uint64_t is, const uint64_t *want, struct ft_err *err)
{
	if (is == *want)
		return 0;
	return ft_err_set(err, EBADMSG,
			  "verify: the file has digest %016" PRIx64 ", the disk had %016" PRIx64,
			  is, *want);
}

/* Of an image, or of what is old with its layers and the changes on top. */
static int digest_of(int fd, const char *path, const struct source *like, const char *changes,
		     uint64_t *digest, struct ft_err *err)
{
	struct source *s = malloc(sizeof *s);
	struct changes c;
	int rc = s ? disk_source_open(fd, path, s, err) : ft_err_set(err, ENOMEM, "out of memory");

	if (rc) {
		free(s);
		return rc;
	}
	if (like)
		rc = layers_copy(s, like, err);
	if (!rc && changes)
		rc = changes_open(changes, &c, err);
	if (!rc && changes)
		rc = layers_add(s, &c, err);
	if (!rc)
		rc = disk_source_digest(s, digest, err);
	source_close(s);
	free(s);
	return rc;
}

static int finish_image(struct disk_target *t, const uint64_t *digest, struct ft_err *err)
{
	uint64_t is = 0;
	int rc = digest ? digest_of(t->file.fd, t->file.part, NULL, NULL, &is, err) : 0;

	if (!rc && digest)
		rc = check(is, digest, err);
	t->lock_fd = fcntl(t->file.fd, F_DUPFD_CLOEXEC, 3);
	if (!rc)
		rc = out_file_commit(&t->file, err);
	t->named = !rc;
	return rc;
}

static int finish_changes(struct disk_target *t, const uint64_t *digest, struct ft_err *err)
{
	uint64_t is = 0;
	int rc = changes_seal(&t->changes, NULL, 0, err);

	if (!rc && digest)
		rc = digest_of(t->old->source->fd, t->old->source->path, t->old->source,
			       t->changes.path, &is, err);
	return rc || !digest ? rc : check(is, digest, err);
}

int disk_target_finish(struct disk_target *t, const uint64_t *digest, struct ft_err *err)
{
	return t->old ? finish_changes(t, digest, err) : finish_image(t, digest, err);
}

void disk_target_keep(struct disk_target *t)
{
	t->named = false; /* not ours to remove any more */
	t->keep = true;
}

void disk_target_close(struct disk_target *t)
{
	out_file_discard(&t->file);
	if (t->named)
		(void)unlink(t->file.path);
	if (t->lock_fd >= 0)
		close(t->lock_fd);
	changes_close(&t->changes, t->keep);
	free(t->buffer);
	disk_target_init(t);
}
