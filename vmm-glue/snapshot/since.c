// SPDX-License-Identifier: Apache-2.0
// What a scan finds goes into the set of every file: pages are protected again by it, and no later
// scan would find them.
#include "vmm-glue/snapshot/since.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "vmm-glue/tracker.h"

/* What of a file changes when anybody changes it. */
struct identity {
	dev_t dev;
	ino_t ino;
	off_t size;
	struct timespec changed;
};

struct file {
	char path[4096]; /* "": free */
	struct identity identity;
	struct ft_bitmap dirty;
	uint64_t used; /* when, in calls */
};

struct since {
	struct tracker *tracker;
	pid_t pid;
	uint64_t address, bytes, calls;
	struct ft_bitmap found;
	struct file files[SINCE_FILES_MAX];
};

static bool identify(const char *path, struct identity *id)
{
	struct stat st;

	if (stat(path, &st))
		return false;
	*id = (struct identity){st.st_dev, st.st_ino, st.st_size, st.st_ctim};
	return true;
}

static bool same(const struct identity *a, const struct identity *b)
{
	return a->dev == b->dev && a->ino == b->ino && a->size == b->size &&
	       a->changed.tv_sec == b->changed.tv_sec && a->changed.tv_nsec == b->changed.tv_nsec;
}

static struct file *find(struct since *s, const char *path)
{
	for (unsigned i = 0; i < SINCE_FILES_MAX; i++)
		if (!strcmp(s->files[i].path, path))
			return &s->files[i];
	return NULL;
}

static struct file *oldest(struct since *s)
{
	struct file *f = &s->files[0];

	for (unsigned i = 1; i < SINCE_FILES_MAX; i++)
		if (s->files[i].used < f->used)
			f = &s->files[i];
	return f;
}

int since_new(const struct vmm_ram *ram, struct since **out, struct ft_err *err)
{
	struct tracker_region region = {.start = ram->address, .bytes = ram->bytes};
	struct since *s = calloc(1, sizeof *s);
	int rc;

	if (!s)
		return ft_err_set(err, ENOMEM, "out of memory");
	s->pid = ram->pid;
	s->address = ram->address;
	s->bytes = ram->bytes;
	rc = ft_bitmap_init(&s->found, ram->bytes / VMM_PAGE_BYTES)
		     ? ft_err_set(err, ENOMEM, "out of memory")
		     : tracker_open(ram->pid, ram->pidfd, &region, 1, &s->tracker, err);
	if (rc)
		since_free(s);
	else
		*out = s;
	return rc;
}

bool since_is_of(const struct since *s, const struct vmm_ram *ram)
{
	return s->pid == ram->pid && s->address == ram->address && s->bytes == ram->bytes;
}

static int scan(struct since *s, struct ft_err *err)
{
	int rc;

	ft_bitmap_clear_all(&s->found);
	rc = tracker_scan(s->tracker, &s->found, NULL, err);
	for (unsigned i = 0; i < SINCE_FILES_MAX; i++)
		if (s->files[i].path[0])
			ft_bitmap_merge(&s->files[i].dirty, &s->found);
	return rc;
}

int since_begin(struct since *s, const char *path, struct ft_bitmap *dirty, bool *known,
		struct ft_err *err)
{
	struct file *f = find(s, path);
	struct identity id;
	int rc = scan(s, err);

	assert(dirty->bits == s->found.bits);
	*known = f && identify(path, &id) && same(&id, &f->identity);
	ft_bitmap_clear_all(dirty);
	if (*known)
		ft_bitmap_merge(dirty, &f->dirty);
	else
		ft_bitmap_set_all(dirty);
	return rc;
}

int since_more(struct since *s, struct ft_bitmap *dirty, struct ft_err *err)
{
	int rc = scan(s, err);

	ft_bitmap_merge(dirty, &s->found);
	return rc;
}

void since_saved(struct since *s, const char *path)
{
	struct file *f = find(s, path);

	assert(strlen(path) < sizeof f->path);
	f = f ? f : oldest(s);
	f->path[0] = '\0';
	if ((!f->dirty.bits && ft_bitmap_init(&f->dirty, s->found.bits)) ||
	    !identify(path, &f->identity))
		return; /* it will be compared whole */
	ft_bitmap_clear_all(&f->dirty);
	memcpy(f->path, path, strlen(path) + 1);
	f->used = ++s->calls;
}

void since_free(struct since *s)
{
	if (!s)
		return;
	tracker_close(s->tracker);
	ft_bitmap_free(&s->found);
	for (unsigned i = 0; i < SINCE_FILES_MAX; i++)
		ft_bitmap_free(&s->files[i].dirty);
	free(s);
}
