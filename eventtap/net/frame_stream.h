/* SPDX-License-Identifier: Apache-2.0 */
/* Frames over a stream socket, as QEMU's filters write and read them: be32 length, frame (QEMU:
 * net/filter-mirror.c). A connection may end anywhere in a frame; a reader and a writer each know
 * how far theirs is. Not locked: the tap's lock guards both. */
#ifndef EVENTTAP_NET_FRAME_STREAM_H
#define EVENTTAP_NET_FRAME_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "eventtap/queue.h"

/* Of one read, with room for the rest of a frame. */
#define FRAME_READ_BYTES (256u << 10)

struct frame_reader {
	/* A whole frame, until this returns. */
	void (*frame)(void *ctx, const uint8_t *frame, uint32_t len);
	/* One of more than TAP_NET_FRAME_MAX begins: it is skipped. */
	void (*giant)(void *ctx, uint32_t len);
	void *ctx;
	size_t n;      /* of buf: the beginning of a frame */
	uint32_t skip; /* bytes to come of a frame that is too long */
	uint8_t buf[FRAME_READ_BYTES];
};

/* Reads once, never blocks. 1: something was there, there may be more; 0: nothing for now; -EPROTO:
 * a frame of no bytes, which is none; -EPIPE or another -errno: the connection has ended. */
int frame_stream_read(struct frame_reader *r, int fd);
/* Half a frame is there. */
bool frame_reader_is_within(const struct frame_reader *r);
/* The next byte is of another connection. */
void frame_reader_reset(struct frame_reader *r);

struct frame_writer {
	size_t sent; /* bytes of the first released frame, its length included, that the peer has */
};

/* One sendmsg(2) of what the queue has released; what is sent whole is popped. Never blocks. Bytes
 * sent, 0: nothing was left to send, or -errno. */
ssize_t frame_stream_write(struct frame_writer *w, int fd, struct queue *q);

#endif
