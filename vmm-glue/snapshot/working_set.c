// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/snapshot/working_set.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "ft/file_io.h"

#define MAGIC	   "KEMARIWS"
#define VERSION	   1
#define HEAD_BYTES 16
#define SUM_BYTES  8
#define BYTES_MAX  (HEAD_BYTES + WORKING_SET_MAX * 8 + SUM_BYTES)
#define PATH_ROOM  4200

struct head {
	char magic[8];
	uint32_t version, n;
};

_Static_assert(sizeof(struct head) == HEAD_BYTES, "no padding");

int working_set_init(struct working_set *ws, uint64_t pages)
{
	*ws = (struct working_set){.pfns = malloc(WORKING_SET_MAX * sizeof *ws->pfns)};
	if (ws->pfns &&
	    !ft_bitmap_init(&ws->in, (pages + WORKING_SET_PAGES - 1) / WORKING_SET_PAGES))
		return 0;
	working_set_free(ws);
	return -ENOMEM;
}

void working_set_free(struct working_set *ws)
{
	free(ws->pfns);
	ws->pfns = NULL;
	ft_bitmap_free(&ws->in);
}

bool working_set_add(struct working_set *ws, uint64_t pfn)
{
	uint64_t cluster = pfn / WORKING_SET_PAGES;

	if (cluster >= ws->in.bits || ws->n == WORKING_SET_MAX || ft_bitmap_test(&ws->in, cluster))
		return false;
	ft_bitmap_set(&ws->in, cluster);
	ws->pfns[ws->n++] = cluster * WORKING_SET_PAGES;
	return true;
}

static int bad(struct ft_err *err, const char *path, const char *what)
{
	return ft_err_set(err, EBADMSG, "%s" WORKING_SET_SUFFIX ": %s", path, what);
}

static int take(struct working_set *ws, const uint8_t *bytes, size_t len, const char *path,
		struct ft_err *err)
{
	struct head head;
	uint64_t sum, pfn;
	uint32_t n;

	memcpy(&head, bytes, sizeof head);
	n = le32toh(head.n);
	if (memcmp(head.magic, MAGIC, sizeof head.magic) != 0 || le32toh(head.version) != VERSION)
		return bad(err, path, "is no working set");
	if (n > WORKING_SET_MAX || len != HEAD_BYTES + (size_t)n * 8 + SUM_BYTES)
		return bad(err, path, "length");
	memcpy(&sum, bytes + len - SUM_BYTES, sizeof sum);
	if (le64toh(sum) != XXH3_64bits(bytes, len - SUM_BYTES))
		return bad(err, path, "is damaged");
	for (uint32_t i = 0; i < n; i++) {
		memcpy(&pfn, bytes + HEAD_BYTES + (size_t)i * 8, sizeof pfn);
		/* Pages that are not there are not added. */
		(void)working_set_add(ws, le64toh(pfn));
	}
	return 0;
}

static int load(struct working_set *ws, int fd, const char *path, struct ft_err *err)
{
	struct stat st;
	uint8_t *bytes;
	int rc;

	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size < HEAD_BYTES + SUM_BYTES ||
	    st.st_size > BYTES_MAX)
		return bad(err, path, "length");
	bytes = malloc((size_t)st.st_size);
	if (!bytes)
		return ft_err_set(err, ENOMEM, "%s" WORKING_SET_SUFFIX ": out of memory", path);
	rc = file_read(fd, bytes, (size_t)st.st_size, 0)
		     ? bad(err, path, "cannot be read")
		     : take(ws, bytes, (size_t)st.st_size, path, err);
	free(bytes);
	return rc;
}

int working_set_load(struct working_set *ws, const char *path, struct ft_err *err)
{
	char name[PATH_ROOM];
	int fd, rc;

	snprintf(name, sizeof name, "%s" WORKING_SET_SUFFIX, path);
	fd = open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
	if (fd < 0)
		return ft_err_set(err, errno, "%s: %s", name, strerror(errno));
	rc = load(ws, fd, path, err);
	close(fd);
	return rc;
}

static int write_all(const struct working_set *ws, int fd)
{
	size_t len = HEAD_BYTES + (size_t)ws->n * 8;
	struct head head = {.version = htole32(VERSION), .n = htole32(ws->n)};
	uint8_t *bytes = malloc(len + SUM_BYTES);
	uint64_t le;
	int rc;

	if (!bytes)
		return -ENOMEM;
	memcpy(head.magic, MAGIC, sizeof head.magic);
	memcpy(bytes, &head, sizeof head);
	for (uint32_t i = 0; i < ws->n; i++) {
		le = htole64(ws->pfns[i]);
		memcpy(bytes + HEAD_BYTES + (size_t)i * 8, &le, sizeof le);
	}
	le = htole64(XXH3_64bits(bytes, len));
	memcpy(bytes + len, &le, sizeof le);
	rc = file_write(fd, bytes, len + SUM_BYTES, 0);
	free(bytes);
	return rc;
}

int working_set_save(const struct working_set *ws, const char *path, struct ft_err *err)
{
	char name[PATH_ROOM], part[PATH_ROOM + 8];
	int fd, rc;

	snprintf(name, sizeof name, "%s" WORKING_SET_SUFFIX, path);
	snprintf(part, sizeof part, "%s.XXXXXX", name);
	/* A name of its own: clones may end at the same time. */
	fd = mkostemp(part, O_CLOEXEC);
	if (fd < 0)
		return ft_err_set(err, errno, "%s: %s", name, strerror(errno));
	rc = write_all(ws, fd);
	close(fd);
	if (!rc && rename(part, name))
		rc = -errno;
	if (rc)
		unlink(part);
	return rc ? ft_err_set(err, -rc, "%s: %s", name, strerror(-rc)) : 0;
}
