// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/snapshot/disk_source.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "eventtap/block/image.h"
#include "vmm-glue/snapshot/layers.h"

#define PIECE_PAGES 256

bool disk_changes_path(const char *path, unsigned i, char out[CHANGES_PATH_MAX])
{
	return snprintf(out, CHANGES_PATH_MAX, "%s" DISK_CHANGES_SUFFIX "%u", path, i) <
	       CHANGES_PATH_MAX;
}

/* Pages that are data, if only in part. */
static int find_data(struct source *s)
{
	struct image image = {.fd = s->fd, .bytes = s->disk_bytes};
	uint64_t extent = 0;
	int rc = 0;

	for (uint64_t at = 0; at < image.bytes && !rc; at += extent) {
		bool hole = false;

		rc = image_extent(&image, at, image.bytes - at, &extent, &hole);
		if (rc || hole)
			continue;
		for (uint64_t pfn = at / MAPPED_RAM_PAGE_BYTES;
		     pfn * MAPPED_RAM_PAGE_BYTES < at + extent; pfn++)
			s->bitmap[pfn / 64] |= UINT64_C(1) << (pfn % 64);
	}
	return rc;
}

static int open_checked(struct source *s, struct ft_err *err)
{
	struct mapped_ram_block *b = &s->layout.blocks[0];
	struct stat st;
	int rc;

	if (s->fd < 0 || fstat(s->fd, &st))
		return ft_err_set(err, errno, "%s", strerror(errno));
	if (!S_ISREG(st.st_mode) || !st.st_size)
		return ft_err_set(err, EBADMSG, "is no disk");
	if ((uint64_t)st.st_size > MAPPED_RAM_BYTES_MAX)
		return ft_err_set(err, EFBIG, "more than %llu TiB", MAPPED_RAM_BYTES_MAX >> 40);
	s->disk_bytes = (uint64_t)st.st_size;
	s->layout.blocks_n = 1;
	b->bytes = s->disk_bytes + MAPPED_RAM_PAGE_BYTES - 1;
	b->bytes -= b->bytes % MAPPED_RAM_PAGE_BYTES;
	s->ram = b;
	s->bitmap = calloc(mapped_ram_words(b), sizeof *s->bitmap);
	if (!s->bitmap)
		return ft_err_set(err, ENOMEM, "out of memory");
	rc = find_data(s);
	return rc ? ft_err_set(err, -rc, "%s", strerror(-rc)) : 0;
}

int disk_source_open(int fd, const char *path, struct source *s, struct ft_err *err)
{
	int rc;

	*s = (struct source){.fd = fcntl(fd, F_DUPFD_CLOEXEC, 3)};
	strncpy(s->path, path, sizeof s->path - 1);
	rc = open_checked(s, err);
	if (!rc)
		return 0;
	source_close(s);
	return ft_err_context(err, "%s", path);
}

int disk_source_add_layers(struct source *s, const struct source *like, unsigned disk,
			   struct ft_err *err)
{
	const char *path;
	int rc = 0;

	for (unsigned i = 0; !rc && (path = layers_path(like, i)); i++) {
		char changes[CHANGES_PATH_MAX];
		struct changes c;

		if (!disk_changes_path(path, disk, changes))
			return ft_err_set(err, ENAMETOOLONG, "%.64s...: path too long", path);
		rc = changes_open(changes, &c, err);
		if (!rc)
			rc = layers_add(s, &c, err);
	}
	return rc;
}

void disk_source_head(const struct source *s, uint32_t id, struct changes_head *head)
{
	*head = (struct changes_head){.id = id, .ram_bytes = s->ram->bytes};
}

int disk_source_digest(const struct source *s, uint64_t *digest, struct ft_err *err)
{
	uint64_t pages = mapped_ram_pages(s->ram);
	uint8_t *buffer = malloc(PIECE_PAGES * MAPPED_RAM_PAGE_BYTES);
	XXH3_state_t *state = XXH3_createState();
	int rc = buffer && state ? 0 : -ENOMEM;

	if (!rc)
		XXH3_64bits_reset(state);
	for (uint64_t pfn = 0, n; pfn < pages && !rc; pfn += n) {
		uint64_t left = pages - pfn, bytes = s->disk_bytes - pfn * MAPPED_RAM_PAGE_BYTES;

		n = source_run(s, pfn, left < PIECE_PAGES ? left : PIECE_PAGES);
		if (bytes > n * MAPPED_RAM_PAGE_BYTES)
			bytes = n * MAPPED_RAM_PAGE_BYTES;
		if (source_has(s, pfn))
			rc = source_read(s, pfn, n, buffer);
		else
			memset(buffer, 0, n * MAPPED_RAM_PAGE_BYTES);
		if (!rc)
			XXH3_64bits_update(state, buffer, bytes);
	}
	if (!rc)
		*digest = XXH3_64bits_digest(state);
	XXH3_freeState(state);
	free(buffer);
	return rc ? ft_err_set(err, -rc, "%s: %s", s->path, strerror(-rc)) : 0;
}
