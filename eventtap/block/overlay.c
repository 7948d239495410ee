// SPDX-License-Identifier: Apache-2.0
// Putting an extent cuts what it covers out of the others: at most one is split in two, so that an
// array of n extents has at most n + 2 afterwards.
#include "eventtap/block/overlay.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

int overlay_reserve(struct overlay *o)
{
	if (o->n + 2 <= o->room)
		return 0;
	size_t room = o->room ? o->room * 2 : 256;
	struct overlay_extent *extents = realloc(o->extents, room * sizeof(*extents));
	if (!extents)
		return -ENOMEM;
	o->extents = extents;
	o->room = room;
	return 0;
}

// Index of the first extent that ends after offset.
static size_t lower(const struct overlay *o, uint64_t offset)
{
	size_t from = 0, to = o->n;
	while (from < to) {
		size_t mid = from + (to - from) / 2;
		if (o->extents[mid].end > offset)
			to = mid;
		else
			from = mid + 1;
	}
	return from;
}

static struct overlay_extent tail_of(struct overlay_extent extent, uint64_t start)
{
	if (extent.data)
		extent.data += start - extent.start;
	extent.start = start;
	return extent;
}

void overlay_put(struct overlay *o, const struct overlay_extent *extent)
{
	assert(extent->start < extent->end);
	assert(o->n + 2 <= o->room);
	struct overlay_extent
		put[3]; // head of the first one cut, the new one, tail of the last one cut
	size_t puts = 0, first = lower(o, extent->start), last = first;
	while (last < o->n && o->extents[last].start < extent->end)
		last++;
	if (last > first && o->extents[first].start < extent->start) {
		put[puts] = o->extents[first];
		put[puts++].end = extent->start;
	}
	put[puts++] = *extent;
	if (last > first && o->extents[last - 1].end > extent->end)
		put[puts++] = tail_of(o->extents[last - 1], extent->end);
	memmove(o->extents + first + puts, o->extents + last,
		(o->n - last) * sizeof(o->extents[0]));
	memcpy(o->extents + first, put, puts * sizeof(put[0]));
	o->n = o->n - (last - first) + puts;
}

const struct overlay_extent *overlay_find(const struct overlay *o, uint64_t offset)
{
	size_t i = lower(o, offset);
	return i < o->n ? &o->extents[i] : NULL;
}

void overlay_drop(struct overlay *o, uint64_t seq)
{
	size_t kept = 0;
	for (size_t i = 0; i < o->n; i++)
		if (o->extents[i].seq > seq)
			o->extents[kept++] = o->extents[i];
	o->n = kept;
}

void overlay_free(struct overlay *o)
{
	free(o->extents);
	*o = (struct overlay){0};
}
