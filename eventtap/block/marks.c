// SPDX-License-Identifier: Apache-2.0
#include "eventtap/block/marks.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

struct marks {
	atomic_uint refs;
	pthread_mutex_t lock; /* guards what follows */
	struct ft_bitmap bits;
	bool ended;
};

struct marks *marks_new(uint64_t disk_bytes)
{
	struct marks *m = calloc(1, sizeof *m);

	if (!m)
		return NULL;
	m->refs = 1;
	pthread_mutex_init(&m->lock, NULL);
	if (!ft_bitmap_init(&m->bits, marks_blocks(disk_bytes)))
		return m;
	marks_unref(m);
	return NULL;
}

struct marks *marks_ref(struct marks *m)
{
	m->refs++;
	return m;
}

void marks_unref(struct marks *m)
{
	if (!m || --m->refs)
		return;
	ft_bitmap_free(&m->bits);
	pthread_mutex_destroy(&m->lock);
	free(m);
}

void marks_add(struct marks *m, uint64_t offset, uint64_t len)
{
	uint64_t first = offset / MARKS_BLOCK_BYTES, end = marks_blocks(offset + len);

	assert(end <= m->bits.bits);
	if (!len)
		return;
	pthread_mutex_lock(&m->lock);
	ft_bitmap_set_range(&m->bits, first, end - first);
	pthread_mutex_unlock(&m->lock);
}

void marks_end(struct marks *m)
{
	pthread_mutex_lock(&m->lock);
	m->ended = true;
	pthread_mutex_unlock(&m->lock);
}

bool marks_take(struct marks *m, struct ft_bitmap *to)
{
	bool whole;

	pthread_mutex_lock(&m->lock);
	ft_bitmap_merge(to, &m->bits);
	ft_bitmap_clear_all(&m->bits);
	whole = !m->ended;
	pthread_mutex_unlock(&m->lock);
	return whole;
}
