// SPDX-License-Identifier: Apache-2.0
// Hostile bytes into a link, in pieces of hostile sizes. The first byte of the input says how: bit
// 0 makes the hashes and magic of every header right first (or no fuzzer would ever get past them),
// the rest is the size of the pieces. What the link delivers is read to its last byte, for the
// address sanitizer to see.
#include <assert.h>
#include <event2/event.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "transport/frame.h"
#include "transport/link.h"

struct feed {
	struct channel channel;
	const uint8_t *data;
	size_t len, piece;
	int fd; /* always readable */
};

static enum channel_status feed_read(struct channel *c, void *buf, size_t len, size_t *done,
				     struct ft_err *err)
{
	struct feed *f = (struct feed *)c;
	size_t n = f->piece < f->len ? f->piece : f->len;

	if (n == 0) {
		ft_err_set(err, 32, "closed by the peer");
		return CHANNEL_CLOSED;
	}
	n = n < len ? n : len;
	memcpy(buf, f->data, n);
	f->data += n;
	f->len -= n;
	*done = n;
	return CHANNEL_DONE;
}

static enum channel_status feed_write(struct channel *c, const struct iovec *iov, int iov_n,
				      size_t *done, struct ft_err *err)
{
	(void)c;
	(void)err;
	(void)iov_n;
	*done = iov->iov_len;
	return CHANNEL_DONE;
}

static enum channel_status feed_open(struct channel *c, struct ft_err *err)
{
	(void)c;
	(void)err;
	return CHANNEL_DONE;
}

static bool feed_pending(const struct channel *c)
{
	(void)c;
	return false;
}

static int feed_fd(const struct channel *c)
{
	return ((const struct feed *)c)->fd;
}

static void feed_end(struct channel *c)
{
	(void)c;
}

static void feed_wait(struct channel *c, bool on)
{
	(void)c;
	(void)on;
}

static const struct channel_ops feed_ops = {
	.open = feed_open,
	.read = feed_read,
	.write = feed_write,
	.pending = feed_pending,
	.fd = feed_fd,
	.shutdown = feed_end,
	.close = feed_end,
	.wait = feed_wait,
};

struct seen {
	unsigned sum;
	bool closed;
};

static void message(void *ctx, const struct ft_msg *msg)
{
	struct seen *seen = ctx;

	assert(msg->body_len <= FT_BODY_MAX && msg->payload_len <= FT_PAYLOAD_MAX);
	for (uint32_t i = 0; i < msg->body_len; i++)
		seen->sum += msg->body[i];
	for (uint32_t i = 0; i < msg->payload_len; i++)
		seen->sum += msg->payload[i];
}

static void writable(void *ctx)
{
	(void)ctx;
}

static void closed(void *ctx, const struct ft_err *why)
{
	struct seen *seen = ctx;

	assert(why->code && why->text[0]);
	seen->closed = true;
}

/* Fields stay as the fuzzer chose them, what guards them is made right. */
static void seal(uint8_t *data, size_t len)
{
	struct frame_header h = {0};
	uint64_t seq = 0;

	while (len >= FRAME_HEADER) {
		uint32_t body = data[56] | data[57] << 8, payload = data[60] | data[61] << 8;

		h.type = data[12];
		h.seq = data[48] & 0x80 ? data[49] : ++seq;
		h.body_len = body < len - FRAME_HEADER ? body : 0;
		h.payload_len = payload < len - FRAME_HEADER - h.body_len ? payload : 0;
		h.body_hash = frame_hash(data + FRAME_HEADER, h.body_len);
		h.payload_hash = frame_hash(data + FRAME_HEADER + h.body_len, h.payload_len);
		frame_encode(&h, data);
		data += frame_length(&h);
		len -= frame_length(&h);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static struct event_base *base;
	struct feed feed = {.channel.ops = &feed_ops};
	struct seen seen = {0};
	struct ft_link *link;
	uint8_t *copy;

	if (len < 1)
		return 0;
	if (!base)
		base = event_base_new();
	copy = malloc(len);
	memcpy(copy, data + 1, len - 1);
	if (data[0] & 1)
		seal(copy, len - 1);
	feed.data = copy;
	feed.len = len - 1;
	feed.piece = 1 + (data[0] >> 1) * 7u;
	feed.fd = eventfd(1, EFD_CLOEXEC);
	link = link_new(base, &feed.channel, "fuzz", NULL);
	link->events = (struct ft_link_events){message, writable, closed, &seen};
	while (!seen.closed)
		event_base_loop(base, EVLOOP_ONCE);
	link->ops->close(link);
	close(feed.fd);
	free(copy);
	return 0;
}
