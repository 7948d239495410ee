// SPDX-License-Identifier: Apache-2.0
// A reader takes whole frames out of what it has read, in place; a writer sends them from where
// they lie in the queue.
#include "eventtap/net/frame_stream.h"

#include <endian.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define LENGTH_BYTES 4
// Of one sendmsg(2), two iovecs each.
#define WRITE_FRAMES_MAX 128
#define WRITE_BYTES_MAX	 (1u << 20)
_Static_assert(FRAME_READ_BYTES >= LENGTH_BYTES + TAP_NET_FRAME_MAX, "a frame fits the buffer");

bool frame_reader_is_within(const struct frame_reader *r)
{
	return r->n || r->skip;
}

void frame_reader_reset(struct frame_reader *r)
{
	r->n = r->skip = 0;
}

// Takes whole frames out of the buffer.
static int parse(struct frame_reader *r)
{
	size_t at = 0;
	uint32_t len;
	int rc = 1;

	for (;;) {
		if (r->skip) {
			size_t n = r->n - at < r->skip ? r->n - at : r->skip;

			at += n;
			r->skip -= (uint32_t)n;
		}
		if (r->n - at < LENGTH_BYTES)
			break;
		memcpy(&len, r->buf + at, LENGTH_BYTES);
		len = be32toh(len);
		if (len == 0) {
			rc = -EPROTO;
			break;
		}
		if (len > TAP_NET_FRAME_MAX) {
			at += LENGTH_BYTES;
			r->skip = len;
			r->giant(r->ctx, len);
			continue;
		}
		if (r->n - at < LENGTH_BYTES + len)
			break;
		r->frame(r->ctx, r->buf + at + LENGTH_BYTES, len);
		at += LENGTH_BYTES + len;
	}
	r->n -= at;
	memmove(r->buf, r->buf + at, r->n);
	return rc;
}

int frame_stream_read(struct frame_reader *r, int fd)
{
	ssize_t n = recv(fd, r->buf + r->n, sizeof r->buf - r->n, MSG_DONTWAIT);

	if (n < 0 && errno == EINTR)
		return 1;
	if (n < 0)
		return errno == EAGAIN ? 0 : -errno;
	if (n == 0)
		return -EPIPE;
	r->n += (size_t)n;
	return parse(r);
}

// Released frames without what the peer has of the first. Returns the number of iovecs.
static size_t gather(const struct frame_writer *w, const struct queue *q, struct iovec *iov,
		     uint32_t *lengths)
{
	struct tap_record rec;
	size_t at = 0, n = 0, skip = w->sent;

	for (int i = 0; i < WRITE_FRAMES_MAX && at < WRITE_BYTES_MAX; i++) {
		if (!queue_peek(q, &at, &rec))
			break;
		lengths[i] = htobe32(rec.len);
		if (skip < LENGTH_BYTES) {
			iov[n++] =
				(struct iovec){(uint8_t *)&lengths[i] + skip, LENGTH_BYTES - skip};
			skip = LENGTH_BYTES;
		}
		iov[n++] = (struct iovec){(void *)(rec.data + skip - LENGTH_BYTES),
					  rec.len + LENGTH_BYTES - skip};
		skip = 0;
	}
	return n;
}

static void sent(struct frame_writer *w, struct queue *q, size_t n)
{
	struct tap_record rec;

	w->sent += n;
	for (size_t at = 0; queue_peek(q, &at, &rec) && w->sent >= LENGTH_BYTES + rec.len; at = 0) {
		w->sent -= LENGTH_BYTES + rec.len;
		queue_pop(q);
	}
}

ssize_t frame_stream_write(struct frame_writer *w, int fd, struct queue *q)
{
	struct iovec iov[2 * WRITE_FRAMES_MAX];
	uint32_t lengths[WRITE_FRAMES_MAX];
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = gather(w, q, iov, lengths)};
	ssize_t n;

	if (!msg.msg_iovlen)
		return 0;
	n = sendmsg(fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n < 0)
		return -errno;
	sent(w, q, (size_t)n);
	return n;
}
