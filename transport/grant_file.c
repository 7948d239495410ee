// SPDX-License-Identifier: Apache-2.0
/* Generation G of guest NAME is the file NAME.G; the highest is the record. It is small text that
 * people can read too:
 *
 *      kemari grant 1
 *      generation 7
 *      holder alpha
 *      in_sync yes
 *      partner beta
 *      check 0f1e2d3c4b5a6978        XXH3-64 of the lines above
 *
 * Only the text that we would write ourselves is accepted, so a torn, edited or foreign file is
 * seen as such, and nothing is granted over it: the generation before is not the truth any more.
 *
 * Why two hosts cannot both win: generation G + 1 is born by link(2), which one of them does first.
 * A host that slept after its look at G, so long that G + 1 was made and cleaned away again, may
 * create it once more; but then a higher one is there, and it looks for one after the link and
 * withdraws. */
#include "transport/grant_file.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#define TEXT_MAX       512 /* two ids and six keywords */
#define NAME_SIZE      (GRANT_FILE_GUEST_MAX + 32)
#define GENERATION_MAX (UINT64_MAX / 2) /* far from where + 1 overflows */
#define NAME_TRIES     16		/* for a temporary; a second one is rare */

_Static_assert(2 * FT_HOST_ID_MAX + 200 < TEXT_MAX, "every record fits");
_Static_assert(NAME_SIZE <= NAME_MAX, "every file name fits");

/* One look into the folder. */
struct folder {
	const char *dir, *guest;
	int fd;
	struct ft_err *why;
};

/* ---- text of a record ---- */

static size_t record_format(const struct ft_grant_record *rec, char text[TEXT_MAX])
{
	const char *in_sync = rec->in_sync ? "yes" : "no";
	int n;

	n = snprintf(text, TEXT_MAX,
		     "kemari grant 1\ngeneration %llu\nholder %s\nin_sync %s\npartner %s\n",
		     (unsigned long long)rec->generation, rec->holder, in_sync, rec->partner);
	n += snprintf(text + n, TEXT_MAX - (size_t)n, "check %016llx\n",
		      (unsigned long long)XXH3_64bits(text, (size_t)n));
	assert(n < TEXT_MAX);
	return (size_t)n;
}

/* Reads "KEY VALUE\n" at *at; the value may be empty. */
static bool line_read(const char **at, const char *key, char *value, size_t value_size)
{
	const char *end = strchr(*at, '\n'), *start;
	size_t len;

	if (!end || strncmp(*at, key, strlen(key)) != 0)
		return false;
	start = *at + strlen(key) + 1;
	if (start > end)
		return false;
	len = (size_t)(end - start);
	if (len >= value_size)
		return false;
	memcpy(value, start, len);
	value[len] = '\0';
	*at = end + 1;
	return true;
}

static bool record_parse(const char *text, size_t len, struct ft_grant_record *rec)
{
	char version[8], generation[24], in_sync[4], canonical[TEXT_MAX];
	const char *at = text;

	memset(rec, 0, sizeof *rec);
	if (!line_read(&at, "kemari grant", version, sizeof version) ||
	    !line_read(&at, "generation", generation, sizeof generation) ||
	    !line_read(&at, "holder", rec->holder, sizeof rec->holder) ||
	    !line_read(&at, "in_sync", in_sync, sizeof in_sync) ||
	    !line_read(&at, "partner", rec->partner, sizeof rec->partner))
		return false;
	rec->generation = strtoull(generation, NULL, 10);
	rec->in_sync = !strcmp(in_sync, "yes");
	/* Whatever was read loosely, the version and the check too, is held against what we would
	 * have written. */
	return record_format(rec, canonical) == len && !memcmp(canonical, text, len);
}

/* ---- names ---- */

static void generation_name(const struct folder *f, uint64_t generation, char name[NAME_SIZE])
{
	snprintf(name, NAME_SIZE, "%s.%llu", f->guest, (unsigned long long)generation);
}

/* The generation that a file of this name holds, 0 if it is none of this guest's. */
static uint64_t name_generation(const struct folder *f, const char *name)
{
	size_t len = strlen(f->guest);
	char canonical[NAME_SIZE];
	uint64_t generation;

	if (strncmp(name, f->guest, len) != 0 || name[len] != '.')
		return 0;
	generation = strtoull(name + len + 1, NULL, 10);
	if (generation > GENERATION_MAX)
		return 0;
	generation_name(f, generation, canonical);
	return strcmp(name, canonical) ? 0 : generation;
}

static int fail(const struct folder *f, const char *name, int code)
{
	return ft_err_set(f->why, code, "arbiter file: %s/%s: %s", f->dir, name, strerror(code));
}

/* ---- looking ---- */

/* Calls visit() with every generation of the guest. */
static int generations_visit(const struct folder *f,
			     void (*visit)(const struct folder *f, uint64_t generation, void *ctx),
			     void *ctx)
{
	/* A descriptor of its own: each look reads the folder anew, from its start. */
	int fd = openat(f->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), code;
	struct dirent *entry;
	DIR *dir;

	if (fd < 0)
		return fail(f, ".", errno);
	dir = fdopendir(fd);
	if (!dir) {
		code = errno;
		close(fd);
		return fail(f, ".", code);
	}
	while ((errno = 0, entry = readdir(dir))) {
		uint64_t generation = name_generation(f, entry->d_name);

		if (generation)
			visit(f, generation, ctx);
	}
	code = errno;
	closedir(dir);
	return code ? fail(f, ".", code) : 0;
}

static void visit_highest(const struct folder *f, uint64_t generation, void *ctx)
{
	uint64_t *highest = ctx;

	(void)f;
	if (generation > *highest)
		*highest = generation;
}

static int highest_find(const struct folder *f, uint64_t *highest)
{
	*highest = 0;
	return generations_visit(f, visit_highest, highest);
}

static int file_read(const struct folder *f, uint64_t generation, struct ft_grant_record *rec)
{
	char name[NAME_SIZE], text[TEXT_MAX + 1];
	size_t len = 0;
	ssize_t n;
	int fd, code;

	generation_name(f, generation, name);
	fd = openat(f->fd, name, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return fail(f, name, errno);
	while ((n = read(fd, text + len, TEXT_MAX - len)) > 0)
		len += (size_t)n;
	code = errno;
	close(fd);
	if (n < 0)
		return fail(f, name, code);
	text[len] = '\0';
	if (record_parse(text, len, rec) && rec->generation == generation)
		return 0;
	return ft_err_set(f->why, EBADMSG,
			  "arbiter file: %s/%s: not a whole grant record: nobody is granted until "
			  "an operator has set it right",
			  f->dir, name);
}

/* The record, all zero when there is none. */
static int record_read(const struct folder *f, struct ft_grant_record *rec)
{
	uint64_t generation, before = 0;
	int rc;

	for (;;) {
		memset(rec, 0, sizeof *rec);
		rc = highest_find(f, &generation);
		if (rc < 0 || generation == 0)
			return rc;
		rc = file_read(f, generation, rec);
		/* One that vanishes under the look was cleaned away by changes: then a higher one
		 * is there now. */
		if (rc != -ENOENT || generation <= before)
			return rc;
		before = generation;
	}
}

/* ---- changing ---- */

/* A temporary with the wanted record in it, safely on the disk. Returns its descriptor. */
static int temporary_make(const struct folder *f, const struct ft_grant_record *want,
			  char name[NAME_SIZE])
{
	char text[TEXT_MAX];
	size_t len = record_format(want, text);
	struct timespec ts;
	int fd = -1, code;

	/* Any name will do that nobody has: O_EXCL says so. */
	clock_gettime(CLOCK_REALTIME, &ts);
	for (unsigned i = 0; i < NAME_TRIES && fd < 0; i++) {
		snprintf(name, NAME_SIZE, ".%.64s.%x.%lx", f->guest, (unsigned)getpid(),
			 (unsigned long)ts.tv_nsec + i);
		fd = openat(f->fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
		if (fd < 0 && errno != EEXIST)
			break;
	}
	if (fd < 0)
		return fail(f, name, errno);
	errno = ENOSPC; /* of a short write */
	if (write(fd, text, len) == (ssize_t)len && fsync(fd) == 0)
		return fd;
	code = errno;
	close(fd);
	unlinkat(f->fd, name, 0);
	return fail(f, name, code);
}

/* link(2) over NFS may say EEXIST of its own success, when the first answer got lost: the link
 * count tells. */
static bool linked_after_all(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 && st.st_nlink == 2;
}

/* Puts the wanted record where it belongs. 1: done, 0: somebody else was first. */
static int record_put(const struct folder *f, const struct ft_grant_record *want, bool is_new)
{
	char temporary[NAME_SIZE], name[NAME_SIZE];
	int fd, rc, code;

	fd = temporary_make(f, want, temporary);
	if (fd < 0)
		return fd;
	generation_name(f, want->generation, name);
	rc = is_new ? linkat(f->fd, temporary, f->fd, name, 0)
		    : renameat(f->fd, temporary, f->fd, name);
	code = errno;
	if (rc < 0 && is_new && linked_after_all(fd))
		rc = 0;
	close(fd);
	if (rc < 0 || is_new)
		unlinkat(f->fd, temporary, 0);
	if (rc == 0)
		return 1;
	return is_new && code == EEXIST ? 0 : fail(f, name, code);
}

/* After our change: is it still the record? 1: yes. 0: it was overtaken, and what we made is
 * withdrawn. */
static int record_stands(const struct folder *f, uint64_t generation, bool is_new)
{
	char name[NAME_SIZE];
	uint64_t highest;
	int rc = highest_find(f, &highest);

	if (rc < 0)
		return rc;
	if (highest == generation)
		return 1;
	if (is_new) {
		generation_name(f, generation, name);
		unlinkat(f->fd, name, 0);
	}
	return 0;
}

/* Keeps the record (*ctx) and the one before it. What cannot be removed is left to the next change.
 */
static void visit_old(const struct folder *f, uint64_t generation, void *ctx)
{
	const uint64_t *record = ctx;
	char name[NAME_SIZE];

	if (generation + 1 >= *record)
		return;
	generation_name(f, generation, name);
	unlinkat(f->fd, name, 0);
}

static enum ft_arbiter_answer lost(const struct folder *f, const struct ft_grant_record *now,
				   const char *what)
{
	ft_err_set(f->why, ESTALE, "arbiter file: %s: generation %llu is held by \"%s\": %s",
		   f->guest, (unsigned long long)now->generation, now->holder, what);
	return FT_ARBITER_LOST;
}

static enum ft_arbiter_answer folder_swap(const struct folder *f, uint64_t expected,
					  const struct ft_grant_record *want,
					  struct ft_grant_record *now)
{
	bool is_new = want->generation > expected;
	uint64_t generation = want->generation;
	int rc;

	if (record_read(f, now) < 0)
		return FT_ARBITER_UNREACHABLE;
	if (now->generation != expected)
		return lost(f, now, "another generation was expected");
	if (!is_new && strcmp(want->holder, now->holder) != 0)
		return lost(f, now, "only its holder may change it");
	rc = record_put(f, want, is_new);
	if (rc > 0)
		rc = record_stands(f, generation, is_new);
	if (rc < 0)
		return FT_ARBITER_UNREACHABLE;
	if (rc == 0)
		return record_read(f, now) < 0 ? FT_ARBITER_UNREACHABLE
					       : lost(f, now, "it was first");
	if (fsync(f->fd) < 0) {
		fail(f, ".", errno);
		return FT_ARBITER_UNREACHABLE;
	}
	*now = *want;
	(void)generations_visit(f, visit_old, &generation);
	return FT_ARBITER_GRANTED;
}

static int folder_open(struct folder *f)
{
	f->fd = open(f->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return f->fd < 0 ? fail(f, "", errno) : 0;
}

enum ft_arbiter_answer grant_file_read(const char *dir, const char *guest,
				       struct ft_grant_record *now, struct ft_err *why)
{
	struct folder f = {.dir = dir, .guest = guest, .why = why};
	int rc;

	if (folder_open(&f) < 0)
		return FT_ARBITER_UNREACHABLE;
	rc = record_read(&f, now);
	close(f.fd);
	return rc < 0 ? FT_ARBITER_UNREACHABLE : FT_ARBITER_GRANTED;
}

enum ft_arbiter_answer grant_file_swap(const char *dir, const char *guest, uint64_t expected,
				       const struct ft_grant_record *want,
				       struct ft_grant_record *now, struct ft_err *why)
{
	struct folder f = {.dir = dir, .guest = guest, .why = why};
	enum ft_arbiter_answer answer;

	assert(want->generation >= expected);
	assert(want->generation - expected <= 1);
	if (!ft_grant_record_ok(want)) {
		ft_err_set(why, EINVAL, "arbiter file: %s: a host id is not one line of text",
			   guest);
		return FT_ARBITER_UNREACHABLE;
	}
	if (folder_open(&f) < 0)
		return FT_ARBITER_UNREACHABLE;
	answer = folder_swap(&f, expected, want, now);
	close(f.fd);
	return answer;
}
