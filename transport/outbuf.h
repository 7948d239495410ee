/* SPDX-License-Identifier: Apache-2.0 */
/* The link's bounded output buffer: a ring in which every frame is contiguous, so that a payload
 * can be built where it will be sent from.
 *
 * Positions are 64-bit and only grow; position % size is the place in memory. Spans are what waits
 * to be written, in wire order. A reservation may be sent later than frames that were placed behind
 * it, so wire order is not memory order; memory is free before the lowest position that a span or
 * the reservation holds. */
#ifndef TRANSPORT_OUTBUF_H
#define TRANSPORT_OUTBUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* Neighbours in memory and wire order are one span, so spans are few: see the assert in link.c. */
#define OUTBUF_SPANS_MAX 128

struct outbuf_span {
	uint64_t pos;
	size_t len;
};

struct outbuf {
	uint8_t *mem;
	size_t size;
	uint64_t tail;				    /* where the next frame goes */
	struct outbuf_span reserved;		    /* len 0: none */
	struct outbuf_span spans[OUTBUF_SPANS_MAX]; /* ring of its own: spans_n from `first` on */
	unsigned first, spans_n;
	size_t queued; /* bytes in spans */
};

/* 0 or -ENOMEM. */
int outbuf_init(struct outbuf *b, size_t size);
void outbuf_free(struct outbuf *b);

/* len contiguous bytes at *pos; false: no room. Holds nothing until outbuf_commit() or
 * outbuf_reserve(). */
bool outbuf_room(struct outbuf *b, size_t len, uint64_t *pos);
uint8_t *outbuf_at(const struct outbuf *b, uint64_t pos);
/* [pos, pos + len), from outbuf_room() or inside the reservation, waits to be written, after all
 * that waits already. */
void outbuf_commit(struct outbuf *b, uint64_t pos, size_t len);
/* At most one reservation; a new one drops the one before. */
bool outbuf_reserve(struct outbuf *b, size_t len, uint64_t *pos);
/* The reservation becomes a span: only [pos, pos + len) of it. */
void outbuf_commit_reserved(struct outbuf *b, uint64_t pos, size_t len);

/* What is to be written first. false: nothing. */
bool outbuf_front(const struct outbuf *b, struct iovec *iov);
/* Copies what is to be written first, across spans, at most max bytes. Returns how many. */
size_t outbuf_gather(const struct outbuf *b, uint8_t *out, size_t max);
/* len bytes from the front on are written. */
void outbuf_consume(struct outbuf *b, size_t len);
/* Enough is free that a waiting producer is worth waking, and any request up to a quarter of the
 * size fits. */
bool outbuf_is_roomy(const struct outbuf *b);

#endif
