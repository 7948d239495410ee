// SPDX-License-Identifier: Apache-2.0
// The folder is read anew whenever it has changed: what is on the disk is what counts.
#include "vmm-glue/snapshot/history.h"

#include <assert.h>
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ft/file_io.h"
#include "vmm-glue/snapshot/disk_source.h"
#include "vmm-glue/snapshot/frame.h"
#include "vmm-glue/snapshot/layers.h"
#include "vmm-glue/snapshot/update.h"

#define SUFFIX	   ".changes"
#define DIR_MAX	   (CHANGES_PATH_MAX - 64)
#define LINKS_MAX  (HISTORY_MAX + 1) /* one more until the oldest has gone */
#define FIRST	   1ull
#define POINT_FORM "%" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64

struct history {
	char dir[DIR_MAX];
	bool write;
	int lock;
	bool has_base;
	struct history_point base; /* sequence 0: it is all zeroes, and no checkpoint */
	unsigned links_n;
	struct history_point links[LINKS_MAX];
};

static void path_of(const struct history *h, const char *name, char out[CHANGES_PATH_MAX])
{
	snprintf(out, CHANGES_PATH_MAX, "%s/%s", h->dir, name);
}

static void link_path(const struct history *h, uint64_t sequence, char out[CHANGES_PATH_MAX])
{
	snprintf(out, CHANGES_PATH_MAX, "%s/%020" PRIu64 SUFFIX, h->dir, sequence);
}

static uint64_t blocks_of(const char *path)
{
	struct stat st;

	return stat(path, &st) ? 0 : (uint64_t)st.st_blocks * 512;
}

/* The file, and those of the disks that belong to it. */
static uint64_t blocks_of_all(const char *path)
{
	char disk[CHANGES_PATH_MAX];
	uint64_t sum = blocks_of(path);

	for (unsigned i = 0; i < VMM_DISKS_MAX && disk_changes_path(path, i, disk); i++)
		sum += blocks_of(disk);
	return sum;
}

// ---- which checkpoint base is

static int read_point(struct history *h)
{
	struct history_point *p = &h->base;
	char path[CHANGES_PATH_MAX];
	FILE *f;
	int n;

	path_of(h, "base.point", path);
	f = fopen(path, "re");
	if (!f)
		return -errno;
	n = fscanf(f, POINT_FORM, &p->sequence, &p->generation, &p->epoch, &p->time_ms);
	fclose(f);
	return n == 4 && p->sequence ? 0 : -EBADMSG;
}

static int write_point(struct history *h, const struct changes_head *p)
{
	char path[CHANGES_PATH_MAX], part[CHANGES_PATH_MAX];
	FILE *f;
	int rc = 0;

	path_of(h, "base.point", path);
	path_of(h, "base.point.part", part);
	f = fopen(part, "we");
	if (!f)
		return -errno;
	if (fprintf(f, "%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", p->sequence,
		    p->generation, p->epoch, p->time_ms) < 0 ||
	    fflush(f) || fsync(fileno(f)))
		rc = -EIO;
	if (fclose(f) || (!rc && rename(part, path)))
		rc = rc ? rc : -errno;
	return rc ? rc : file_sync_folder(path);
}

// ---- what is there

static void remove_all(struct history *h)
{
	DIR *d = opendir(h->dir);
	struct dirent *e;

	while (d && (e = readdir(d)))
		if (e->d_type == DT_REG && strcmp(e->d_name, "lock") != 0)
			unlinkat(dirfd(d), e->d_name, 0);
	if (d)
		closedir(d);
	h->has_base = false;
	h->links_n = 0;
	h->base = (struct history_point){0};
}

static bool is_interrupted(const struct history *h, char base[CHANGES_PATH_MAX],
			   char journal[CHANGES_PATH_MAX])
{
	path_of(h, "base", base);
	return update_journal_path(base, journal) && !access(journal, F_OK);
}

/* Also when base has all of it, and only its point is missing. */
static int apply_journal(struct history *h, const char *base, const char *journal,
			 struct ft_err *err)
{
	char link[CHANGES_PATH_MAX]; /* where it was: its disks' changes still are */
	struct update_disks *disks = NULL;
	struct changes c;
	int fd, rc = changes_open(journal, &c, err);

	if (rc)
		return rc;
	fd = open(base, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		rc = ft_err_set(err, errno, "%s: %s", base, strerror(errno));
	else if (flock(fd, LOCK_EX | LOCK_NB))
		rc = ft_err_set(err, EBUSY, "%s: a guest is being restored from it", h->dir);
	if (!rc)
		rc = changes_verify(&c, err);
	link_path(h, c.head.sequence, link);
	if (!rc)
		rc = update_disks_open(base, &c, link, &disks, err);
	if (!rc)
		rc = update_apply(fd, base, &c, disks, err);
	update_disks_close(disks);
	if (!rc && write_point(h, &c.head))
		rc = ft_err_set(err, EIO, "%s/base.point: cannot be written", h->dir);
	if (fd >= 0)
		close(fd);
	changes_end(&c);
	return rc;
}

/* The oldest changes were on their way into base. */
static int complete(struct history *h, struct ft_err *err)
{
	char base[CHANGES_PATH_MAX], journal[CHANGES_PATH_MAX];
	int rc;

	if (!is_interrupted(h, base, journal))
		return 0;
	rc = apply_journal(h, base, journal, err);
	if (!rc)
		unlink(journal);
	return rc;
}

static bool load_link(struct history *h, uint64_t sequence)
{
	struct history_point *p = &h->links[h->links_n];
	char path[CHANGES_PATH_MAX];
	struct changes c;

	link_path(h, sequence, path);
	if (h->links_n == LINKS_MAX || changes_open(path, &c, NULL))
		return false;
	*p = (struct history_point){.sequence = c.head.sequence,
				    .generation = c.head.generation,
				    .epoch = c.head.epoch,
				    .time_ms = c.head.time_ms,
				    .bytes = blocks_of_all(path)};
	changes_end(&c);
	if (p->sequence != sequence)
		return false;
	h->links_n++;
	return true;
}

/* N.changes, or that and .disk0 and so on. */
static bool is_link(const char *name, uint64_t *n)
{
	char *end;

	errno = 0;
	*n = strtoull(name, &end, 10);
	if (end == name || strncmp(end, SUFFIX, strlen(SUFFIX)) != 0)
		return false;
	end += strlen(SUFFIX);
	return !*end || !strncmp(end, DISK_CHANGES_SUFFIX, strlen(DISK_CHANGES_SUFFIX));
}

/* A writer removes what does not follow on the last good one, or is in base. */
static void remove_after(struct history *h, uint64_t sequence)
{
	DIR *d = opendir(h->dir);
	struct dirent *e;
	uint64_t n;

	while (d && (e = readdir(d)))
		if (is_link(e->d_name, &n) && (n > sequence || n <= h->base.sequence))
			unlinkat(dirfd(d), e->d_name, 0);
	if (d)
		closedir(d);
}

/* A writer that died may have written its last link, and not synced it: what follows on it would be
 * lost with it. */
static int sync_last(const struct history *h, struct ft_err *err)
{
	char path[CHANGES_PATH_MAX];
	int fd, rc = 0;

	if (!h->links_n)
		return 0;
	link_path(h, h->links[h->links_n - 1].sequence, path);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fsync(fd))
		rc = -errno;
	if (fd >= 0)
		close(fd);
	if (!rc)
		rc = file_sync_folder(path);
	return rc ? ft_err_set(err, -rc, "%s: %s", path, strerror(-rc)) : 0;
}

static int load(struct history *h, struct ft_err *err)
{
	char base[CHANGES_PATH_MAX];
	uint64_t next;
	int rc = h->write ? complete(h, err) : 0;

	h->links_n = 0;
	h->base = (struct history_point){0};
	path_of(h, "base", base);
	h->has_base = !access(base, F_OK);
	if (rc || !h->has_base)
		return rc;
	if (read_point(h) == -EBADMSG)
		return ft_err_set(err, EBADMSG, "%s/base.point: is damaged", h->dir);
	h->base.bytes = blocks_of_all(base);
	for (next = h->base.sequence ? h->base.sequence + 1 : FIRST; load_link(h, next); next++)
		;
	if (h->write)
		remove_after(h, next - 1);
	return 0;
}

// ---- opening

static int lock(struct history *h, struct ft_err *err)
{
	char path[CHANGES_PATH_MAX];

	path_of(h, "lock", path);
	h->lock = open(path, h->write ? O_RDWR | O_CREAT | O_CLOEXEC : O_RDONLY | O_CLOEXEC, 0600);
	if (h->lock < 0)
		return ft_err_set(err, errno, "%s: %s", h->dir, strerror(errno));
	if (flock(h->lock, (h->write ? LOCK_EX : LOCK_SH) | LOCK_NB))
		return ft_err_set(err, EBUSY, "%s: is in use by another agent", h->dir);
	return 0;
}

/* What a writer left half done is done first. */
static int complete_for_reader(struct history *h, struct ft_err *err)
{
	char base[CHANGES_PATH_MAX], journal[CHANGES_PATH_MAX];
	struct history *writer = NULL;
	int rc;

	if (h->write || !is_interrupted(h, base, journal))
		return 0;
	rc = history_open(h->dir, true, &writer, err);
	if (!rc)
		history_close(writer);
	return rc;
}

static int open_folder(struct history *h, struct ft_err *err)
{
	int rc = 0;

	if (h->write && mkdir(h->dir, 0700) && errno != EEXIST)
		rc = ft_err_set(err, errno, "%s: %s", h->dir, strerror(errno));
	if (!rc)
		rc = complete_for_reader(h, err);
	if (!rc)
		rc = lock(h, err);
	if (!rc)
		rc = load(h, err);
	return rc || !h->write ? rc : sync_last(h, err);
}

int history_open(const char *dir, bool write, struct history **out, struct ft_err *err)
{
	struct history *h = calloc(1, sizeof *h);
	int rc;

	if (!h)
		return ft_err_set(err, ENOMEM, "history: out of memory");
	h->lock = -1;
	h->write = write;
	rc = snprintf(h->dir, sizeof h->dir, "%s", dir) < (int)sizeof h->dir
		     ? open_folder(h, err)
		     : ft_err_set(err, ENAMETOOLONG, "%.64s...: path too long", dir);
	if (!rc) {
		*out = h;
		return 0;
	}
	history_close(h);
	return ft_err_context(err, "history");
}

void history_close(struct history *h)
{
	if (!h)
		return;
	if (h->lock >= 0)
		close(h->lock);
	free(h);
}

unsigned history_points(const struct history *h, struct history_point points[HISTORY_MAX])
{
	unsigned n = 0;

	if (h->has_base && h->base.sequence)
		points[n++] = h->base;
	for (unsigned i = 0; i < h->links_n && n < HISTORY_MAX; i++)
		points[n++] = h->links[i];
	return n;
}

// ---- reading

/* base and the first `links` changes. */
static int open_layers(const struct history *h, unsigned links, struct source *out,
		       struct ft_err *err)
{
	char path[CHANGES_PATH_MAX];
	int rc;

	path_of(h, "base", path);
	rc = source_open(path, out, err);
	for (unsigned i = 0; i < links && !rc; i++) {
		struct changes c;

		link_path(h, h->links[i].sequence, path);
		rc = changes_open(path, &c, err);
		if (!rc)
			rc = layers_add(out, &c, err);
	}
	if (rc)
		source_close(out);
	return rc;
}

int history_source(const struct history *h, unsigned i, struct source *out, struct ft_err *err)
{
	bool has_base = h->has_base && h->base.sequence;
	int rc;

	assert(i < h->links_n + has_base);
	rc = open_layers(h, has_base ? i : i + 1, out, err);
	return rc ? ft_err_context(err, "history") : 0;
}

// ---- writing

/* Empty ones. */
static int make_disks(struct history *h, struct companions *disks, struct ft_err *err)
{
	char base[CHANGES_PATH_MAX], path[CHANGES_PATH_MAX];
	struct out_file file;
	int rc = 0;

	path_of(h, "base", base);
	for (unsigned i = 0; i < disks->n && !rc; i++) {
		struct companion *d = &disks->disks[i];

		snprintf(d->file, sizeof d->file, "base" DISK_CHANGES_SUFFIX "%u", i);
		rc = companions_path(base, d, path, err);
		if (!rc)
			rc = out_file_open(&file, path, d->bytes, false, err);
		if (!rc)
			rc = out_file_commit(&file, err);
	}
	return rc;
}

static int describe(const struct companions *disks, uint8_t *tail, size_t *len, struct ft_err *err)
{
	char *text = disks->n ? companions_describe(disks) : NULL;

	if (disks->n && !text)
		return ft_err_set(err, ENOMEM, "out of memory");
	if (text)
		*len = mapped_ram_describe(tail, *len, text);
	free(text);
	return 0;
}

/* A file of nothing but zeroes; it comes last, for without it there is no history. */
static int make_base(struct history *h, const struct vmm_ram *ram, const struct companions *disks,
		     const char *kind, struct ft_err *err)
{
	struct mapped_ram m = {.blocks_n = 1};
	uint8_t state[MAPPED_RAM_TAIL_MAX + 64] = {0}, tail[2 * sizeof state + CHANGES_TEXT_MAX];
	struct companions own = {0};
	_Atomic uint64_t *bitmap;
	char path[CHANGES_PATH_MAX];
	struct out_file file;
	size_t len = mapped_ram_pack_state(kind, state, sizeof state, tail);
	int rc;

	if (disks)
		own = *disks;
	rc = make_disks(h, &own, err);
	if (!rc)
		rc = describe(&own, tail, &len, err);
	if (rc)
		return rc;

	memcpy(m.machine, ram->machine, sizeof ram->machine);
	memcpy(m.blocks[0].name, ram->block, sizeof ram->block);
	m.blocks[0].bytes = ram->bytes;
	mapped_ram_plan(&m);
	path_of(h, "base", path);
	bitmap = calloc(mapped_ram_words(&m.blocks[0]), sizeof *bitmap);
	if (!bitmap)
		return ft_err_set(err, ENOMEM, "out of memory");
	rc = out_file_open(&file, path, m.state_offset, false, err);
	if (!rc)
		rc = frame_write(&file, &m, bitmap, tail, len, err);
	if (!rc)
		rc = out_file_commit(&file, err);
	else
		out_file_discard(&file);
	free(bitmap);
	return rc ? rc : load(h, err);
}

static bool disks_fit(const struct source *base, const struct companions *disks)
{
	unsigned n = disks ? disks->n : 0;
	struct companions own;
	bool good;

	if (companions_open(base, &own, NULL))
		return false;
	good = own.n == n;
	for (unsigned i = 0; i < n && good; i++) {
		const struct companion *d = companions_find(&own, disks->disks[i].id);

		good = d && d->bytes == disks->disks[i].bytes;
	}
	companions_close(&own);
	return good;
}

static bool fits(const struct history *h, const struct vmm_ram *ram, const struct companions *disks)
{
	char path[CHANGES_PATH_MAX];
	struct source s;
	bool good;

	path_of(h, "base", path);
	if (!h->has_base || source_open(path, &s, NULL))
		return false;
	good = s.ram->bytes == ram->bytes && !strcmp(s.layout.machine, ram->machine) &&
	       !strcmp(s.ram->name, ram->block) && disks_fit(&s, disks);
	source_close(&s);
	return good;
}

int history_prepare(struct history *h, const struct vmm_ram *ram, const struct companions *disks,
		    const char *kind, struct ft_err *err)
{
	int rc;

	assert(h->write);
	if (fits(h, ram, disks))
		return 0;
	remove_all(h);
	rc = make_base(h, ram, disks, kind, err);
	return rc ? ft_err_context(err, "history") : 0;
}

static uint64_t newest(const struct history *h)
{
	return h->links_n ? h->links[h->links_n - 1].sequence : h->base.sequence;
}

int history_next(const struct history *h, struct source *from, struct disks_old *old,
		 struct changes_head *head, char path[CHANGES_PATH_MAX],
		 char last[CHANGES_PATH_MAX], struct ft_err *err)
{
	int rc = open_layers(h, h->links_n, from, err);

	if (rc)
		return ft_err_context(err, "history");
	link_path(h, newest(h) + 1, path);
	rc = disks_old_open(from, path, false, old, err);
	if (rc) {
		disks_old_close(old);
		source_close(from);
		return ft_err_context(err, "history");
	}
	*head = (struct changes_head){.sequence = newest(h) + 1,
				      .ram_bytes = from->ram->bytes,
				      .bitmap_offset = from->ram->bitmap_offset,
				      .pages_offset = from->ram->pages_offset,
				      .state_offset = from->layout.state_offset};
	while (!head->id)
		if (getrandom(&head->id, sizeof head->id, 0) != sizeof head->id)
			head->id = 0;
	last[0] = '\0';
	if (h->links_n)
		link_path(h, newest(h), last);
	else if (h->base.sequence)
		path_of(h, "base", last);
	return 0;
}

static int merge_oldest(struct history *h, struct ft_err *err)
{
	char from[CHANGES_PATH_MAX], base[CHANGES_PATH_MAX], journal[CHANGES_PATH_MAX];

	link_path(h, h->links[0].sequence, from);
	path_of(h, "base", base);
	if (!update_journal_path(base, journal) || rename(from, journal) ||
	    file_sync_folder(journal))
		return ft_err_set(err, errno, "%s: %s", from, strerror(errno));
	return load(h, err);
}

static bool too_much(const struct history *h, unsigned keep, uint64_t bytes)
{
	uint64_t sum = h->base.bytes;

	for (unsigned i = 0; i < h->links_n; i++)
		sum += h->links[i].bytes;
	return h->links_n + (h->base.sequence != 0) > keep || (bytes && sum > bytes);
}

int history_added(struct history *h, unsigned keep, uint64_t bytes, struct ft_err *err)
{
	uint64_t before = newest(h);
	int rc = load(h, err);

	if (!rc && newest(h) != before + 1)
		rc = ft_err_set(err, EIO, "%s: what was written is not there", h->dir);
	while (!rc && h->links_n && too_much(h, keep, bytes))
		rc = merge_oldest(h, err);
	return rc ? ft_err_context(err, "history") : 0;
}
