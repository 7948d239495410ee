// SPDX-License-Identifier: Apache-2.0
// What a scan finds goes into the set of every file: pages are protected again by it, and no later
// scan would find them.
#include "vmm-glue/snapshot/since.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "vmm-glue/snapshot/since_files.h"
#include "vmm-glue/tracker.h"

struct since {
	struct tracker *tracker;
	pid_t pid;
	uint64_t address, bytes;
	struct ft_bitmap found;
	struct since_files files;
};

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
	since_files_add(&s->files, &s->found);
	return rc;
}

int since_begin(struct since *s, const char *path, struct ft_bitmap *dirty, bool *known,
		struct ft_err *err)
{
	const struct ft_bitmap *written;
	int rc = scan(s, err);

	assert(dirty->bits == s->found.bits);
	written = since_files_find(&s->files, path);
	*known = written != NULL;
	ft_bitmap_clear_all(dirty);
	if (written)
		ft_bitmap_merge(dirty, written);
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
	since_files_saved(&s->files, path, s->found.bits);
}

void since_free(struct since *s)
{
	if (!s)
		return;
	tracker_close(s->tracker);
	ft_bitmap_free(&s->found);
	since_files_free(&s->files);
	free(s);
}
