// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/snapshot/since_files.h"

#include <assert.h>
#include <string.h>

static bool identify(const char *path, struct since_identity *id)
{
	struct stat st;

	if (stat(path, &st))
		return false;
	*id = (struct since_identity){st.st_dev, st.st_ino, st.st_size, st.st_ctim};
	return true;
}

static bool same(const struct since_identity *a, const struct since_identity *b)
{
	return a->dev == b->dev && a->ino == b->ino && a->size == b->size &&
	       a->changed.tv_sec == b->changed.tv_sec && a->changed.tv_nsec == b->changed.tv_nsec;
}

static struct since_file *find(struct since_files *s, const char *path)
{
	for (unsigned i = 0; i < SINCE_FILES_MAX; i++)
		if (!strcmp(s->files[i].path, path))
			return &s->files[i];
	return NULL;
}

static struct since_file *oldest(struct since_files *s)
{
	struct since_file *f = &s->files[0];

	for (unsigned i = 1; i < SINCE_FILES_MAX; i++)
		if (s->files[i].used < f->used)
			f = &s->files[i];
	return f;
}

const struct ft_bitmap *since_files_find(struct since_files *s, const char *path)
{
	struct since_file *f = *path ? find(s, path) : NULL;
	struct since_identity id;

	return f && identify(path, &id) && same(&id, &f->identity) ? &f->dirty : NULL;
}

void since_files_add(struct since_files *s, const struct ft_bitmap *written)
{
	for (unsigned i = 0; i < SINCE_FILES_MAX; i++)
		if (s->files[i].path[0])
			ft_bitmap_merge(&s->files[i].dirty, written);
}

void since_files_saved(struct since_files *s, const char *path, uint64_t bits)
{
	struct since_file *f = find(s, path);

	assert(*path && strlen(path) < sizeof f->path);
	f = f ? f : oldest(s);
	f->path[0] = '\0';
	if ((!f->dirty.bits && ft_bitmap_init(&f->dirty, bits)) || !identify(path, &f->identity))
		return;
	ft_bitmap_clear_all(&f->dirty);
	memcpy(f->path, path, strlen(path) + 1);
	f->used = ++s->calls;
}

void since_files_forget(struct since_files *s)
{
	for (unsigned i = 0; i < SINCE_FILES_MAX; i++)
		s->files[i].path[0] = '\0';
}

void since_files_free(struct since_files *s)
{
	since_files_forget(s);
	for (unsigned i = 0; i < SINCE_FILES_MAX; i++)
		ft_bitmap_free(&s->files[i].dirty);
}
