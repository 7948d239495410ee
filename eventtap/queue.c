// SPDX-License-Identifier: Apache-2.0
// Positions are bytes since the ring was last empty and only grow; their address is their
// remainder. Because the ring is mapped twice in a row, a copy that begins anywhere in the first
// mapping may run on into the second one.
#include "eventtap/queue.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct span {
	uint64_t epoch;
	uint64_t begin, end;
};

struct queue {
	uint8_t *ring;
	size_t bytes_max;
	uint64_t first, released, closed, end;
	uint64_t records; // first .. end
	uint64_t epoch;	  // of the last close

	struct span spans[QUEUE_EPOCHS_MAX]; // released .. closed, oldest first; none is empty
	unsigned spans_first, spans_n;
};

static uint8_t *map_twice(size_t bytes)
{
	int fd = memfd_create("tap-queue", MFD_CLOEXEC);
	uint8_t *ring = MAP_FAILED;
	int saved;

	if (fd < 0)
		return MAP_FAILED;
	if (ftruncate(fd, (off_t)bytes) == 0)
		ring = mmap(NULL, 2 * bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			    -1, 0);
	for (int i = 0; i < 2 && ring != MAP_FAILED; i++)
		if (mmap(ring + (size_t)i * bytes, bytes, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
			saved = errno;
			munmap(ring, 2 * bytes);
			errno = saved;
			ring = MAP_FAILED;
		}
	saved = errno;
	close(fd);
	errno = saved;
	return ring;
}

int queue_new(size_t bytes_max, struct queue **out, struct ft_err *err)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	struct queue *q;

	if (!bytes_max || bytes_max > SIZE_MAX / 4)
		return ft_err_set(err, EINVAL, "queue: %zu bytes: no size for a queue", bytes_max);
	q = calloc(1, sizeof *q);
	if (!q)
		return ft_err_set(err, ENOMEM, "queue: out of memory");
	q->bytes_max = (bytes_max + page - 1) / page * page;
	q->ring = map_twice(q->bytes_max);
	if (q->ring == MAP_FAILED) {
		int rc = ft_err_set(err, errno, "queue: %zu bytes: %s", q->bytes_max,
				    strerror(errno));

		free(q);
		return rc;
	}
	*out = q;
	return 0;
}

void queue_free(struct queue *q)
{
	if (!q)
		return;
	munmap(q->ring, 2 * q->bytes_max);
	free(q);
}

static uint8_t *address(const struct queue *q, uint64_t position)
{
	return q->ring + position % q->bytes_max;
}

int queue_append(struct queue *q, const struct tap_record *rec, const uint8_t **copy)
{
	size_t whole = TAP_RECORD_HEADER + (size_t)rec->len;
	uint8_t *target = address(q, q->end);

	if (whole > q->bytes_max - (q->end - q->first))
		return -ENOBUFS;
	tap_record_put_header(target, rec);
	if (rec->len)
		memcpy(target + TAP_RECORD_HEADER, rec->data, rec->len);
	q->end += whole;
	q->records++;
	if (copy)
		*copy = target + TAP_RECORD_HEADER;
	return 0;
}

static struct span *span_at(const struct queue *q, unsigned i)
{
	return (struct span *)&q->spans[(q->spans_first + i) % QUEUE_EPOCHS_MAX];
}

int queue_close(struct queue *q, uint64_t epoch, struct ft_err *err)
{
	struct span *last = q->spans_n ? span_at(q, q->spans_n - 1) : NULL;

	assert(epoch >= q->epoch);
	if (q->end > q->closed) {
		if (last && last->epoch == epoch) {
			last->end = q->end;
		} else if (q->spans_n == QUEUE_EPOCHS_MAX) {
			return ft_err_set(
				err, ENOBUFS,
				"queue: close epoch %llu: %d epochs wait for their release",
				(unsigned long long)epoch, QUEUE_EPOCHS_MAX);
		} else {
			*span_at(q, q->spans_n) =
				(struct span){.epoch = epoch, .begin = q->closed, .end = q->end};
			q->spans_n++;
		}
	}
	q->closed = q->end;
	q->epoch = epoch;
	return 0;
}

size_t queue_export(const struct queue *q, uint64_t epoch, struct tap_cursor *cursor, uint8_t *out,
		    size_t room)
{
	for (unsigned i = 0; i < q->spans_n; i++) {
		const struct span *span = span_at(q, i);
		uint64_t left;

		if (span->epoch != epoch)
			continue;
		left = span->end - span->begin - cursor->at;
		if (room > left)
			room = left;
		memcpy(out, address(q, span->begin + cursor->at), room);
		cursor->at += room;
		return room;
	}
	return 0;
}

void queue_release(struct queue *q, uint64_t epoch)
{
	while (q->spans_n && span_at(q, 0)->epoch <= epoch) {
		q->released = span_at(q, 0)->end;
		q->spans_first = (q->spans_first + 1) % QUEUE_EPOCHS_MAX;
		q->spans_n--;
	}
}

void queue_release_all(struct queue *q)
{
	q->released = q->closed = q->end;
	q->spans_n = 0;
	q->epoch = 0;
}

// The record at a position; its length.
static size_t record_at(const struct queue *q, uint64_t position, struct tap_record *rec)
{
	long n = tap_record_parse(address(q, position), q->end - position, rec, NULL);

	assert(n > 0);
	return (size_t)n;
}

uint64_t queue_discard(struct queue *q)
{
	uint64_t dropped = 0;
	struct tap_record rec;

	for (uint64_t at = q->released; at < q->end; at += record_at(q, at, &rec))
		dropped++;
	q->records -= dropped;
	q->end = q->closed = q->released;
	q->spans_n = 0;
	q->epoch = 0;
	return dropped;
}

bool queue_peek(const struct queue *q, size_t *at, struct tap_record *rec)
{
	if (q->first + *at >= q->released)
		return false;
	*at += record_at(q, q->first + *at, rec);
	return true;
}

void queue_pop(struct queue *q)
{
	struct tap_record rec;

	assert(q->first < q->released);
	q->first += record_at(q, q->first, &rec);
	assert(q->first <= q->released);
	q->records--;
	// An empty ring starts anew, so that a short queue keeps to a few warm pages.
	if (q->first == q->end)
		q->first = q->released = q->closed = q->end = 0;
}

bool queue_open(const struct queue *q)
{
	return q->end > q->closed;
}

bool queue_holds(const struct queue *q)
{
	return q->end > q->released;
}

size_t queue_bytes_max(const struct queue *q)
{
	return q->bytes_max;
}

void queue_stats(const struct queue *q, struct tap_stats *stats)
{
	stats->held_outputs = q->records;
	stats->held_bytes = q->end - q->first;
}
