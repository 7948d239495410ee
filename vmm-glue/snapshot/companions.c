// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/snapshot/companions.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm-glue/snapshot/disk_source.h"
#include "vmm-glue/snapshot/layers.h"

#define KEY "kemari-disks"

// ---- the description

char *companions_describe(const struct companions *c)
{
	json_t *list = json_array(), *all;
	char *text;

	for (unsigned i = 0; i < c->n; i++)
		json_array_append_new(list, json_pack("{s:s, s:I, s:s}", "id", c->disks[i].id,
						      "bytes", (json_int_t)c->disks[i].bytes,
						      "file", c->disks[i].file));
	all = json_pack("{s:O}", KEY, list);
	text = all && json_array_size(list) == c->n ? json_dumps(all, JSON_COMPACT) : NULL;
	json_decref(all);
	json_decref(list);
	return text;
}

static bool is_name(const char *text, size_t max)
{
	size_t n = strlen(text);

	if (!n || n >= max || *text == '.' || strchr(text, '/'))
		return false;
	for (; *text; text++)
		if (*text < 0x20 || *text > 0x7e)
			return false;
	return true;
}

static bool get_disk(json_t *item, struct companions *c)
{
	struct companion *d = &c->disks[c->n];
	const char *id, *file;
	json_int_t bytes;

	if (c->n == VMM_DISKS_MAX ||
	    json_unpack(item, "{s:s, s:I, s:s}", "id", &id, "bytes", &bytes, "file", &file) ||
	    !is_name(file, sizeof d->file) || strlen(id) >= sizeof d->id || !*id || bytes <= 0)
		return false;
	for (unsigned i = 0; i < c->n; i++)
		if (!strcmp(c->disks[i].id, id) || !strcmp(c->disks[i].file, file))
			return false;
	*d = (struct companion){.bytes = (uint64_t)bytes, .fd = -1};
	memcpy(d->id, id, strlen(id));
	memcpy(d->file, file, strlen(file));
	c->n++;
	return true;
}

int companions_parse(const char *text, size_t len, struct companions *c, struct ft_err *err)
{
	json_t *all = json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL),
	       *list = json_object_get(all, KEY), *item;
	bool good = !list || json_is_array(list);
	size_t i;

	c->n = 0;
	json_array_foreach(list, i, item) good = good && get_disk(item, c);
	json_decref(all);
	return good ? 0
		    : ft_err_set(err, EBADMSG, "what it says of the guest's disks makes no sense");
}

// ---- the files

int companions_path(const char *path, const struct companion *d, char out[CHANGES_PATH_MAX],
		    struct ft_err *err)
{
	char copy[CHANGES_PATH_MAX];

	snprintf(copy, sizeof copy, "%s", path);
	if (snprintf(out, CHANGES_PATH_MAX, "%s/%s", dirname(copy), d->file) < CHANGES_PATH_MAX)
		return 0;
	return ft_err_set(err, ENAMETOOLONG, "%.64s...: path too long", path);
}

static int open_one(const struct source *s, struct companion *d, struct ft_err *err)
{
	char path[CHANGES_PATH_MAX];
	struct stat st;
	int rc = companions_path(s->path, d, path, err);

	if (rc)
		return rc;
	d->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
	if (d->fd < 0)
		return ft_err_set(err, errno, "disk %s: %s: %s", d->id, path, strerror(errno));
	/* Against the writer of the next set, who removes this one. */
	if (flock(d->fd, LOCK_SH | LOCK_NB) || fstat(d->fd, &st))
		return ft_err_set(err, errno, "disk %s: %s: %s", d->id, path, strerror(errno));
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != d->bytes)
		return ft_err_set(err, EBADMSG,
				  "disk %s: %s: is not the file of %" PRIu64
				  " bytes that belongs to it",
				  d->id, path, d->bytes);
	return 0;
}

/* What lies over disk i. */
static int open_layers(const struct source *s, unsigned i, struct companion *d, struct ft_err *err)
{
	int rc;

	if (!s->layers)
		return 0;
	d->layered = malloc(sizeof *d->layered);
	if (!d->layered)
		return ft_err_set(err, ENOMEM, "out of memory");
	rc = disk_source_open(d->fd, d->file, d->layered, err);
	if (!rc)
		rc = disk_source_add_layers(d->layered, s, i, err);
	return rc ? ft_err_context(err, "disk %s", d->id) : 0;
}

static int read_description(const struct source *s, struct companions *c, struct ft_err *err)
{
	uint64_t at = s->layout.state_offset + s->layout.state_bytes;
	char text[6 + COMPANIONS_TEXT_MAX];
	ssize_t n;

	if (s->layers) {
		size_t len;
		const uint8_t *newest = layers_description(s, &len);

		return newest ? companions_parse((const char *)newest, len, c, err) : 0;
	}
	n = pread(s->fd, text, sizeof text, (off_t)at);
	if (n < 0)
		return ft_err_set(err, errno, "read: %s", strerror(errno));
	/* 06 u32, then JSON. One that is longer is QEMU's own, which says nothing of disks. */
	if (n <= 5 || n == (ssize_t)sizeof text)
		return 0;
	return companions_parse(text + 5, (size_t)n - 5, c, err);
}

int companions_open(const struct source *s, struct companions *c, struct ft_err *err)
{
	int rc;

	c->n = 0;
	rc = read_description(s, c, err);
	for (unsigned i = 0; i < c->n && !rc; i++) {
		rc = open_one(s, &c->disks[i], err);
		if (!rc)
			rc = open_layers(s, i, &c->disks[i], err);
	}
	if (!rc)
		return 0;
	companions_close(c);
	return ft_err_context(err, "snapshot %.512s", s->path);
}

void companions_close(struct companions *c)
{
	for (unsigned i = 0; i < c->n; i++) {
		if (c->disks[i].fd >= 0)
			close(c->disks[i].fd);
		if (c->disks[i].layered)
			source_close(c->disks[i].layered);
		free(c->disks[i].layered);
	}
	c->n = 0;
}

const struct companion *companions_find(const struct companions *c, const char *id)
{
	for (unsigned i = 0; i < c->n; i++)
		if (!strcmp(c->disks[i].id, id))
			return &c->disks[i];
	return NULL;
}
