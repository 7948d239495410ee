// SPDX-License-Identifier: Apache-2.0
// What was marked goes into the set of every file, as it is forgotten by the marks.
#include "vmm-glue/snapshot/disks_since.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "eventtap/block/disk_tap.h"
#include "eventtap/block/marks.h"
#include "vmm-glue/snapshot/since_files.h"
#include "vmm-glue/vmm.h"

struct disks_since {
	struct {
		struct marks *marks; /* NULL: nobody marks */
		uint64_t bytes;
		struct ft_bitmap found;
		struct since_files files;
	} disks[VMM_DISKS_MAX];
};

struct disks_since *disks_since_new(void)
{
	return calloc(1, sizeof(struct disks_since));
}

/* Into all sets. False: nobody marks any more. */
static bool collect(struct disks_since *s, unsigned i)
{
	bool whole;

	if (!s->disks[i].marks)
		return false;
	ft_bitmap_clear_all(&s->disks[i].found);
	whole = marks_take(s->disks[i].marks, &s->disks[i].found);
	since_files_add(&s->disks[i].files, &s->disks[i].found);
	return whole;
}

static void forget(struct disks_since *s, unsigned i)
{
	marks_unref(s->disks[i].marks);
	s->disks[i].marks = NULL;
	ft_bitmap_free(&s->disks[i].found);
	since_files_free(&s->disks[i].files);
}

int disks_since_watch(struct disks_since *s, unsigned i, uint64_t bytes, struct tap *tap,
		      struct store *store, struct ft_err *err)
{
	assert(i < VMM_DISKS_MAX && !tap == !!store);
	if (s->disks[i].bytes == bytes && collect(s, i))
		return 0;
	forget(s, i);
	s->disks[i].bytes = bytes;
	s->disks[i].marks = marks_new(bytes);
	if (!s->disks[i].marks || ft_bitmap_init(&s->disks[i].found, marks_blocks(bytes))) {
		forget(s, i);
		return ft_err_set(err, ENOMEM, "out of memory");
	}
	if (tap)
		disk_tap_mark(tap, s->disks[i].marks);
	else
		store_mark(store, s->disks[i].marks);
	return 0;
}

bool disks_since_moment(struct disks_since *s, unsigned i, const char *path,
			struct ft_bitmap *blocks)
{
	const struct ft_bitmap *written =
		collect(s, i) ? since_files_find(&s->disks[i].files, path) : NULL;

	ft_bitmap_clear_all(blocks);
	if (written)
		ft_bitmap_merge(blocks, written);
	else
		ft_bitmap_set_all(blocks);
	return written != NULL;
}

void disks_since_saved(struct disks_since *s, unsigned i, const char *path)
{
	if (s->disks[i].marks)
		since_files_saved(&s->disks[i].files, path, s->disks[i].found.bits);
}

void disks_since_free(struct disks_since *s)
{
	if (!s)
		return;
	for (unsigned i = 0; i < VMM_DISKS_MAX; i++)
		forget(s, i);
	free(s);
}
