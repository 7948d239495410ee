// SPDX-License-Identifier: Apache-2.0
#include "transport/outbuf.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

int outbuf_init(struct outbuf *b, size_t size)
{
	memset(b, 0, sizeof *b);
	b->mem = malloc(size);
	b->size = size;
	return b->mem ? 0 : -ENOMEM;
}

void outbuf_free(struct outbuf *b)
{
	free(b->mem);
	b->mem = NULL;
}

uint8_t *outbuf_at(const struct outbuf *b, uint64_t pos)
{
	return b->mem + pos % b->size;
}

static const struct outbuf_span *span(const struct outbuf *b, unsigned i)
{
	return &b->spans[(b->first + i) % OUTBUF_SPANS_MAX];
}

static uint64_t low(const struct outbuf *b)
{
	uint64_t pos = b->reserved.len ? b->reserved.pos : b->tail;

	for (unsigned i = 0; i < b->spans_n; i++)
		if (span(b, i)->pos < pos)
			pos = span(b, i)->pos;
	return pos;
}

/* When nothing waits, start over at the front: the same memory again and again stays in the cache.
 */
static void settle(struct outbuf *b)
{
	if (b->spans_n)
		return;
	b->tail = b->reserved.len ? b->reserved.pos + b->reserved.len : 0;
}

bool outbuf_room(struct outbuf *b, size_t len, uint64_t *pos)
{
	uint64_t at = b->tail;
	size_t offset = at % b->size;

	if (offset + len > b->size)
		at += b->size - offset;
	/* A reservation has a span coming to it. */
	if (b->spans_n + (b->reserved.len > 0) >= OUTBUF_SPANS_MAX || at + len - low(b) > b->size)
		return false;
	*pos = at;
	return true;
}

/* Adjacent to the last span, and not across the ring's end? Then it is the same span. */
static void append(struct outbuf *b, uint64_t pos, size_t len)
{
	struct outbuf_span *last =
		b->spans_n ? &b->spans[(b->first + b->spans_n - 1) % OUTBUF_SPANS_MAX] : NULL;

	b->queued += len;
	if (last && last->pos + last->len == pos && pos % b->size) {
		last->len += len;
		return;
	}
	assert(b->spans_n < OUTBUF_SPANS_MAX);
	b->spans[(b->first + b->spans_n++) % OUTBUF_SPANS_MAX] = (struct outbuf_span){pos, len};
}

void outbuf_commit(struct outbuf *b, uint64_t pos, size_t len)
{
	assert(len > 0);
	assert(pos >= b->tail);
	append(b, pos, len);
	b->tail = pos + len;
}

bool outbuf_reserve(struct outbuf *b, size_t len, uint64_t *pos)
{
	if (b->reserved.len && b->reserved.pos + b->reserved.len == b->tail)
		b->tail = b->reserved.pos;
	b->reserved.len = 0;
	settle(b);
	if (!outbuf_room(b, len, pos))
		return false;
	b->reserved = (struct outbuf_span){*pos, len};
	b->tail = *pos + len;
	return true;
}

void outbuf_commit_reserved(struct outbuf *b, uint64_t pos, size_t len)
{
	assert(pos >= b->reserved.pos);
	assert(pos + len <= b->reserved.pos + b->reserved.len);
	append(b, pos, len);
	if (b->reserved.pos + b->reserved.len == b->tail)
		b->tail = pos + len;
	b->reserved.len = 0;
}

bool outbuf_front(const struct outbuf *b, struct iovec *iov)
{
	if (!b->spans_n)
		return false;
	iov->iov_base = outbuf_at(b, span(b, 0)->pos);
	iov->iov_len = span(b, 0)->len;
	return true;
}

size_t outbuf_gather(const struct outbuf *b, uint8_t *out, size_t max)
{
	size_t done = 0;

	for (unsigned i = 0; i < b->spans_n && done < max; i++) {
		const struct outbuf_span *s = span(b, i);
		size_t n = s->len < max - done ? s->len : max - done;

		memcpy(out + done, outbuf_at(b, s->pos), n);
		done += n;
	}
	return done;
}

void outbuf_consume(struct outbuf *b, size_t len)
{
	assert(len <= b->queued);
	b->queued -= len;
	while (len) {
		struct outbuf_span *front = &b->spans[b->first];
		size_t n = len < front->len ? len : front->len;

		front->pos += n;
		front->len -= n;
		len -= n;
		if (front->len)
			break;
		b->first = (b->first + 1) % OUTBUF_SPANS_MAX;
		b->spans_n--;
	}
	settle(b);
}

bool outbuf_is_roomy(const struct outbuf *b)
{
	return b->tail - low(b) <= b->size / 2 && b->spans_n < OUTBUF_SPANS_MAX / 2;
}
