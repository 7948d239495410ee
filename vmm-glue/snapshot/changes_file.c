// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/snapshot/changes_file.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "ft/page.h"
#include "ft/file_io.h"

#define SLOT_ZERO  UINT32_MAX
#define ROOM_FIRST 1024

static int failed(const char *path, int rc, struct ft_err *err)
{
	return ft_err_set(err, -rc, "%s: %s", path, strerror(-rc));
}

static uint64_t place(uint64_t slot)
{
	return CHANGES_PAGES_AT + slot * MAPPED_RAM_PAGE_BYTES;
}

// ---- writing

/* Nobody else writes it, and what a dead writer left is cut off. */
static int open_new(struct changes_out *c, struct ft_err *err)
{
	struct stat st, named;

	c->fd = open(c->path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (c->fd < 0)
		return failed(c->path, -errno, err);
	if (flock(c->fd, LOCK_EX | LOCK_NB) || fstat(c->fd, &st) || stat(c->path, &named) ||
	    st.st_ino != named.st_ino || st.st_dev != named.st_dev) {
		close(c->fd);
		c->fd = -1; /* not ours to remove */
		return ft_err_set(err, EBUSY, "%s: is being written by somebody else", c->path);
	}
	return ftruncate(c->fd, 0) ? failed(c->path, -errno, err) : 0;
}

int changes_create(struct changes_out *c, const char *path, const struct changes_head *head,
		   struct ft_err *err)
{
	int rc;

	*c = (struct changes_out){.fd = -1, .head = *head};
	assert(head->ram_bytes / MAPPED_RAM_PAGE_BYTES < SLOT_ZERO);
	if (strlen(path) >= sizeof c->path)
		return ft_err_set(err, ENAMETOOLONG, "%.64s...: path too long", path);
	memcpy(c->path, path, strlen(path) + 1);
	c->head.pages_n = c->head.zeroes_n = 0;
	c->pages = head->ram_bytes / MAPPED_RAM_PAGE_BYTES;
	c->slots = calloc(c->pages, sizeof *c->slots);
	rc = c->slots ? open_new(c, err) : ft_err_set(err, ENOMEM, "%s: out of memory", path);
	if (rc)
		changes_close(c, false);
	return rc;
}

bool changes_has(const struct changes_out *c, uint64_t pfn)
{
	return c->slots[pfn] != 0;
}

static int make_room(struct changes_out *c, size_t n)
{
	uint64_t room = c->room ? c->room : ROOM_FIRST, *pfns, *hashes;

	if (c->head.pages_n + n <= c->room)
		return 0;
	while (room < c->head.pages_n + n)
		room *= 2;
	pfns = realloc(c->pfns, room * sizeof *pfns);
	if (pfns)
		c->pfns = pfns;
	hashes = pfns ? realloc(c->hashes, room * sizeof *hashes) : NULL;
	if (!hashes)
		return -ENOMEM;
	c->hashes = hashes;
	c->room = room;
	return 0;
}

/* The last page moves to a place that is not needed any more. */
static int free_slot(struct changes_out *c, uint64_t slot)
{
	uint64_t last = c->head.pages_n - 1;
	uint8_t page[MAPPED_RAM_PAGE_BYTES];
	int rc = 0;

	if (slot != last) {
		rc = file_read(c->fd, page, sizeof page, place(last));
		if (!rc)
			rc = file_write(c->fd, page, sizeof page, place(slot));
		if (rc)
			return rc;
		c->pfns[slot] = c->pfns[last];
		c->hashes[slot] = c->hashes[last];
		c->slots[c->pfns[slot]] = (uint32_t)slot + 1;
	}
	c->head.pages_n--;
	return 0;
}

static int put_zero(struct changes_out *c, uint64_t pfn)
{
	uint32_t slot = c->slots[pfn];
	int rc = slot && slot != SLOT_ZERO ? free_slot(c, slot - 1) : 0;

	if (rc)
		return rc;
	if (slot != SLOT_ZERO)
		c->head.zeroes_n++;
	c->slots[pfn] = SLOT_ZERO;
	return 0;
}

static int put_again(struct changes_out *c, uint64_t pfn, const uint8_t *page)
{
	uint64_t slot = c->slots[pfn] - 1;

	c->hashes[slot] = changes_page_hash(page);
	return file_write(c->fd, page, MAPPED_RAM_PAGE_BYTES, place(slot));
}

/* Pages that have no place yet, and are not zeroes. */
static int put_new(struct changes_out *c, uint64_t pfn, size_t n, const uint8_t *pages)
{
	int rc = make_room(c, n);

	if (!rc)
		rc = file_write(c->fd, pages, n * MAPPED_RAM_PAGE_BYTES, place(c->head.pages_n));
	for (size_t i = 0; i < n && !rc; i++) {
		uint64_t slot = c->head.pages_n++;

		c->hashes[slot] = changes_page_hash(pages + i * MAPPED_RAM_PAGE_BYTES);
		c->pfns[slot] = pfn + i;
		if (c->slots[pfn + i] == SLOT_ZERO)
			c->head.zeroes_n--;
		c->slots[pfn + i] = (uint32_t)slot + 1;
	}
	return rc;
}

static bool has_place(const struct changes_out *c, uint64_t pfn)
{
	return c->slots[pfn] && c->slots[pfn] != SLOT_ZERO;
}

int changes_put(struct changes_out *c, uint64_t pfn, size_t n, const uint8_t *pages)
{
	int rc = 0;

	assert(pfn + n <= c->pages);
	for (size_t at = 0, run; at < n && !rc; at += run) {
		const uint8_t *page = pages + at * MAPPED_RAM_PAGE_BYTES;

		run = 1;
		if (page_is_zero(page)) {
			rc = put_zero(c, pfn + at);
		} else if (has_place(c, pfn + at)) {
			rc = put_again(c, pfn + at, page);
		} else {
			while (at + run < n && !has_place(c, pfn + at + run) &&
			       !page_is_zero(page + run * MAPPED_RAM_PAGE_BYTES))
				run++;
			rc = put_new(c, pfn + at, run, page);
		}
	}
	return rc;
}

int changes_get(const struct changes_out *c, uint64_t pfn, uint8_t *page)
{
	uint32_t slot = c->slots[pfn];
	int rc;

	assert(slot);
	if (slot == SLOT_ZERO)
		return 0;
	rc = file_read(c->fd, page, MAPPED_RAM_PAGE_BYTES, place(slot - 1));
	return rc ? rc : 1;
}

/* Index and state, as the file has them. */
static uint8_t *make_index(const struct changes_out *c, const uint8_t *state)
{
	uint64_t bytes = changes_index_bytes(&c->head), *index, at = 0;

	index = malloc(bytes + c->head.state_bytes + 1); /* a disk's may be empty */
	if (!index)
		return NULL;
	for (uint64_t i = 0; i < c->head.pages_n; i++) {
		index[at++] = htole64(c->pfns[i]);
		index[at++] = htole64(c->hashes[i]);
	}
	for (uint64_t pfn = 0; pfn < c->pages; pfn++)
		if (c->slots[pfn] == SLOT_ZERO)
			index[at++] = htole64(pfn);
	assert(at * sizeof *index == bytes);
	if (c->head.state_bytes)
		memcpy((uint8_t *)index + bytes, state, c->head.state_bytes);
	return (uint8_t *)index;
}

static int write_head(struct changes_out *c)
{
	uint8_t head[CHANGES_HEAD_BYTES];
	int rc;

	changes_head_pack(&c->head, head);
	rc = file_write(c->fd, head, sizeof head, 0);
	if (!rc && fsync(c->fd))
		rc = -errno;
	return rc ? rc : file_sync_folder(c->path);
}

int changes_seal(struct changes_out *c, const uint8_t *state, size_t len, struct ft_err *err)
{
	uint64_t at = changes_index_at(&c->head), bytes;
	uint8_t *index;
	int rc;

	assert(len <= CHANGES_STATE_MAX);
	c->head.state_bytes = len;
	index = make_index(c, state);
	if (!index)
		return failed(c->path, -ENOMEM, err);
	bytes = changes_index_bytes(&c->head) + len;
	c->head.sum = XXH3_64bits(index, bytes);
	rc = file_write(c->fd, index, bytes, at);
	free(index);
	/* Pages that became zeroes may have left something behind. */
	if (!rc && (ftruncate(c->fd, (off_t)(at + bytes)) || fsync(c->fd)))
		rc = -errno;
	if (!rc)
		rc = write_head(c);
	return rc ? failed(c->path, rc, err) : 0;
}

void changes_close(struct changes_out *c, bool keep)
{
	if (c->fd >= 0 && !keep)
		unlink(c->path);
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
	free(c->slots);
	free(c->pfns);
	free(c->hashes);
	c->slots = NULL;
	c->pfns = c->hashes = NULL;
}

// ---- reading

static int load(struct changes *c, struct ft_err *err)
{
	uint64_t words = (c->head.ram_bytes / MAPPED_RAM_PAGE_BYTES + 63) / 64;
	uint64_t bytes = changes_index_bytes(&c->head) + c->head.state_bytes, *seen;
	int rc;

	c->index = malloc(bytes + 1); /* a disk's may be empty */
	seen = calloc(words, sizeof *seen);
	rc = c->index && seen ? 0 : ft_err_set(err, ENOMEM, "out of memory");
	if (!rc && file_read(c->fd, c->index, bytes, changes_index_at(&c->head)))
		rc = ft_err_set(err, EIO, "read: %s", strerror(EIO));
	if (!rc)
		rc = changes_check(&c->head, c->index, seen, err);
	free(seen);
	return rc;
}

static int open_checked(struct changes *c, struct ft_err *err)
{
	uint8_t head[CHANGES_HEAD_BYTES] = {0};
	struct stat st;
	int rc;

	if (fstat(c->fd, &st))
		return ft_err_set(err, errno, "%s", strerror(errno));
	if (!S_ISREG(st.st_mode))
		return ft_err_set(err, EBADMSG, "is no file");
	if (st.st_size >= CHANGES_HEAD_BYTES && file_read(c->fd, head, sizeof head, 0))
		return ft_err_set(err, EIO, "read: %s", strerror(EIO));
	rc = changes_head_parse(head, (uint64_t)st.st_size, &c->head, err);
	return rc ? rc : load(c, err);
}

int changes_open(const char *path, struct changes *c, struct ft_err *err)
{
	int rc;

	*c = (struct changes){.fd = -1};
	if (strlen(path) >= sizeof c->path)
		return ft_err_set(err, ENAMETOOLONG, "%.64s...: path too long", path);
	memcpy(c->path, path, strlen(path) + 1);
	c->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
	if (c->fd < 0)
		return failed(path, -errno, err);
	rc = open_checked(c, err);
	if (rc) {
		changes_end(c);
		return ft_err_context(err, "%s", path);
	}
	return 0;
}

int changes_read(const struct changes *c, uint64_t i, size_t n, uint8_t *pages)
{
	int rc = file_read(c->fd, pages, n * MAPPED_RAM_PAGE_BYTES, place(i));

	assert(i + n <= c->head.pages_n);
	for (size_t k = 0; k < n && !rc; k++) {
		uint64_t hash;

		(void)changes_page(c->index, i + k, &hash);
		if (changes_page_hash(pages + k * MAPPED_RAM_PAGE_BYTES) != hash)
			rc = -EBADMSG;
	}
	return rc;
}

size_t changes_run(const struct changes *c, uint64_t i, size_t max)
{
	uint64_t hash, pfn = changes_page(c->index, i, &hash);
	size_t n = 1;

	while (n < max && i + n < c->head.pages_n &&
	       changes_page(c->index, i + n, &hash) == pfn + n)
		n++;
	return n;
}

int changes_verify(const struct changes *c, struct ft_err *err)
{
	uint8_t pages[CHANGES_RUN_PAGES * MAPPED_RAM_PAGE_BYTES];
	int rc = 0;

	for (uint64_t i = 0, n; i < c->head.pages_n && !rc; i += n) {
		uint64_t left = c->head.pages_n - i;

		n = left < CHANGES_RUN_PAGES ? left : CHANGES_RUN_PAGES;
		rc = changes_read(c, i, n, pages);
	}
	return rc ? failed(c->path, rc, err) : 0;
}

void changes_end(struct changes *c)
{
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
	free(c->index);
	c->index = NULL;
}
