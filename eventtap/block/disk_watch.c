// SPDX-License-Identifier: Apache-2.0
// Who wants to know what is about to change: a copy of the disk as it was (cow.h), and the notes of
// what was written (marks.h). Both are held by a reference while they are told, so that they may be
// let go of at any time.
#include <assert.h>
#include <errno.h>

#include "eventtap/block/disk_tap_internal.h"

#define WATCH_WAIT_MS 2000 /* for the last writers: the VMM has drained them already */

void disk_before_change(struct disk_tap *d, uint64_t offset, uint64_t len)
{
	pthread_mutex_lock(&d->lock);
	struct cow *cow = d->cow ? cow_ref(d->cow) : NULL;
	struct marks *marks = d->marks ? marks_ref(d->marks) : NULL;
	struct fleece *fleece = d->fleece;
	pthread_mutex_unlock(&d->lock);
	if (marks)
		marks_add(marks, offset, len);
	marks_unref(marks);
	if (fleece)
		fleece_before_change(fleece, offset, len);
	if (cow)
		cow_before_change(cow, offset, len);
	cow_unref(cow);
}

int disk_tap_watch(struct tap *tap, struct cow *cow, struct ft_err *err)
{
	struct disk_tap *d = (struct disk_tap *)tap;
	pthread_mutex_lock(&d->lock);
	assert(!d->cow);
	int range = range_lock_take(&d->ranges, &d->lock, 0, d->image.bytes, WATCH_WAIT_MS);
	if (range >= 0) {
		d->cow = cow_ref(cow);
		range_lock_give(&d->ranges, range);
	}
	pthread_mutex_unlock(&d->lock);
	return range < 0
		       ? ft_err_set(err, -range, "disk %s: writes are still on their way", tap->id)
		       : 0;
}

void disk_tap_unwatch(struct tap *tap)
{
	struct disk_tap *d = (struct disk_tap *)tap;
	pthread_mutex_lock(&d->lock);
	struct cow *cow = d->cow;
	d->cow = NULL;
	pthread_mutex_unlock(&d->lock);
	cow_unref(cow);
}

void disk_tap_mark(struct tap *tap, struct marks *marks)
{
	struct disk_tap *d = (struct disk_tap *)tap;
	pthread_mutex_lock(&d->lock);
	struct marks *former = d->marks;
	d->marks = marks_ref(marks);
	pthread_mutex_unlock(&d->lock);
	if (former)
		marks_end(former);
	marks_unref(former);
}
