// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/snapshot/source.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <endian.h>

#include "ft/file_io.h"
#include "vmm-glue/snapshot/layers.h"
#include "vmm-glue/snapshot/update.h"

#if MAPPED_RAM_STATE_MAX > VMM_STATE_BYTES_MAX
#error "a file's device state must fit a VM's"
#endif

#define PIECE_PAGES 256 /* read at a time: 1 MiB */

/* mapped_ram_reader.read */
static int read_frame(void *ctx, uint64_t offset, void *to, size_t len)
{
	return file_read(((struct source *)ctx)->fd, to, len, offset);
}

/* What QEMU calls its ROMs: written by nobody, and made anew with every machine. */
static bool is_rom(const char *name)
{
	const char *base = strrchr(name, '/');
	size_t n = strlen(name);

	base = base ? base + 1 : name;
	return !strncmp(name, "/rom@", 5) || !strcmp(base, "pc.bios") || !strcmp(base, "pc.rom") ||
	       (n > 4 && !strcmp(name + n - 4, ".rom"));
}

static int find_ram(struct source *s, struct ft_err *err)
{
	for (unsigned i = 0; i < s->layout.blocks_n; i++) {
		const struct mapped_ram_block *b = &s->layout.blocks[i];

		if (is_rom(b->name))
			continue;
		if (s->ram)
			return ft_err_set(err, ENOTSUP,
					  "has memory besides RAM that the guest may write: %s or "
					  "%s",
					  b->name, s->ram->name);
		s->ram = b;
	}
	return s->ram ? 0 : ft_err_set(err, EBADMSG, "has no RAM");
}

static int load_bitmap(struct source *s, struct ft_err *err)
{
	uint64_t words = mapped_ram_words(s->ram);
	int rc;

	/* The file was seen to have that many bytes. */
	s->bitmap = malloc(words * sizeof *s->bitmap);
	if (!s->bitmap)
		return ft_err_set(err, ENOMEM, "out of memory");
	rc = file_read(s->fd, s->bitmap, words * sizeof *s->bitmap, s->ram->bitmap_offset);
	if (rc)
		return ft_err_set(err, -rc, "read: %s", strerror(-rc));
	for (uint64_t i = 0; i < words && !rc; i++) {
		s->bitmap[i] = le64toh(s->bitmap[i]);
		rc = mapped_ram_check_word(s->ram, i, s->bitmap[i], err);
	}
	return rc;
}

static int open_checked(struct source *s, struct ft_err *err)
{
	struct mapped_ram_reader reader = {.read = read_frame, .ctx = s};
	struct stat st;
	int rc;

	if (fstat(s->fd, &st))
		return ft_err_set(err, errno, "%s", strerror(errno));
	if (!S_ISREG(st.st_mode))
		return ft_err_set(err, EINVAL, "is no file");
	reader.bytes = (uint64_t)st.st_size;
	rc = mapped_ram_parse(&reader, &s->layout, err);
	if (!rc)
		rc = find_ram(s, err);
	return rc ? rc : load_bitmap(s, err);
}

int source_open_fd(int fd, const char *path, struct source *s, struct ft_err *err)
{
	int rc;

	*s = (struct source){.fd = fcntl(fd, F_DUPFD_CLOEXEC, 3)};
	strncpy(s->path, path, sizeof s->path - 1);
	rc = s->fd < 0 ? ft_err_set(err, errno, "%s", strerror(errno)) : open_checked(s, err);
	if (rc) {
		source_close(s);
		return ft_err_context(err, "snapshot %s", path);
	}
	return 0;
}

/* Completes an update that was interrupted. */
static int complete(const char *path, struct ft_err *err)
{
	int fd = update_open(path, err);

	if (fd >= 0)
		close(fd);
	return fd < 0 ? fd : 0;
}

/* The file, and nobody updates it as long as it is open here. */
static int open_shared(const char *path, struct ft_err *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		return ft_err_set(err, errno, "snapshot %s: %s", path, strerror(errno));
	if (!flock(fd, LOCK_SH | LOCK_NB) || errno != EWOULDBLOCK)
		return fd;
	close(fd);
	return ft_err_set(err, EBUSY, "snapshot %s: is being updated", path);
}

int source_open(const char *path, struct source *s, struct ft_err *err)
{
	int fd = open_shared(path, err), rc;

	if (fd >= 0 && update_is_begun(fd)) {
		close(fd);
		rc = complete(path, err);
		if (rc)
			return ft_err_context(err, "snapshot");
		fd = open_shared(path, err);
	}
	if (fd < 0)
		return fd;
	rc = source_open_fd(fd, path, s, err);
	close(fd);
	return rc;
}

void source_close(struct source *s)
{
	if (s->fd >= 0)
		close(s->fd);
	free(s->bitmap);
	layers_free(s->layers);
	s->layers = NULL;
	s->bitmap = NULL;
	s->fd = -1;
}

size_t source_run(const struct source *s, uint64_t pfn, size_t n)
{
	bool has = source_has(s, pfn);
	size_t run = 1;

	while (run < n && source_has(s, pfn + run) == has)
		run++;
	return run;
}

int source_read_file(const struct source *s, uint64_t pfn, size_t n, uint8_t *to)
{
	uint64_t at = s->ram->pages_offset + pfn * MAPPED_RAM_PAGE_BYTES, bytes, rest = 0;

	bytes = n * MAPPED_RAM_PAGE_BYTES;
	if (s->disk_bytes && at + bytes > s->disk_bytes)
		rest = at + bytes - s->disk_bytes;
	memset(to + bytes - rest, 0, rest);
	return file_read(s->fd, to, bytes - rest, at);
}

int source_read(const struct source *s, uint64_t pfn, size_t n, uint8_t *to)
{
	assert(pfn + n <= mapped_ram_pages(s->ram));
	return s->layers ? layers_read(s, pfn, n, to) : source_read_file(s, pfn, n, to);
}

int source_state(const struct source *s, const char *kind, uint8_t *state, size_t *len,
		 struct ft_err *err)
{
	uint8_t *packed;
	int rc;

	if (s->layers) {
		size_t bytes;
		const uint8_t *newest = layers_state(s, &bytes);

		return mapped_ram_unpack_state(kind, newest, bytes, state, len, err);
	}
	packed = malloc(s->layout.state_bytes);
	rc = packed ? file_read(s->fd, packed, s->layout.state_bytes, s->layout.state_offset)
		    : -ENOMEM;
	if (rc)
		ft_err_set(err, -rc, "snapshot %s: device state: %s", s->path, strerror(-rc));
	else
		rc = mapped_ram_unpack_state(kind, packed, s->layout.state_bytes, state, len, err);
	free(packed);
	return rc;
}

int source_digest(const struct source *s, uint64_t *digest, struct ft_err *err)
{
	uint64_t pages = mapped_ram_pages(s->ram);
	uint8_t *buffer = malloc(PIECE_PAGES * MAPPED_RAM_PAGE_BYTES);
	int rc = buffer ? 0 : -ENOMEM;

	*digest = 0;
	for (uint64_t pfn = 0, n; pfn < pages && !rc; pfn += n) {
		uint64_t left = pages - pfn;

		n = source_run(s, pfn, left < PIECE_PAGES ? left : PIECE_PAGES);
		if (!source_has(s, pfn))
			continue; /* zeroes */
		rc = source_read(s, pfn, n, buffer);
		if (!rc)
			*digest += vmm_pages_digest(buffer, pfn, n);
	}
	free(buffer);
	return rc ? ft_err_set(err, -rc, "snapshot %s: %s", s->path, strerror(-rc)) : 0;
}

int source_empty(const struct vmm_ram *ram, struct ft_err *err)
{
	assert(ram->fd >= 0);
	if (!fallocate(ram->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)ram->offset,
		       (off_t)ram->bytes))
		return 0;
	return ft_err_set(err, errno, "restore: emptying RAM: %s", strerror(errno));
}

// ---- all of it, by several threads

struct restore {
	const struct source *source;
	uint8_t *image;
	_Atomic uint64_t next; /* page that nobody reads yet */
	atomic_int rc;
};

static void *restore_pieces(void *ctx)
{
	struct restore *r = ctx;
	uint64_t pages = mapped_ram_pages(r->source->ram), piece;

	while (!r->rc && (piece = atomic_fetch_add(&r->next, PIECE_PAGES)) < pages) {
		uint64_t end = pages - piece < PIECE_PAGES ? pages : piece + PIECE_PAGES;

		for (uint64_t pfn = piece, n; pfn < end; pfn += n) {
			int rc = 0;

			n = source_run(r->source, pfn, end - pfn);
			if (source_has(r->source, pfn))
				rc = source_read(r->source, pfn, n,
						 r->image + pfn * MAPPED_RAM_PAGE_BYTES);
			if (rc)
				r->rc = rc;
		}
	}
	return NULL;
}

int source_restore(const struct source *s, uint8_t *image, unsigned jobs, struct ft_err *err)
{
	struct restore r = {.source = s, .image = image};
	pthread_t threads[SOURCE_JOBS_MAX];
	unsigned n = 0;

	assert(jobs > 0 && jobs <= SOURCE_JOBS_MAX);
	/* This thread is one of them. */
	while (n + 1 < jobs && !pthread_create(&threads[n], NULL, restore_pieces, &r))
		n++;
	(void)restore_pieces(&r);
	while (n)
		pthread_join(threads[--n], NULL);
	return r.rc ? ft_err_set(err, -r.rc, "snapshot %s: %s", s->path, strerror(-r.rc)) : 0;
}
