// SPDX-License-Identifier: Apache-2.0
// One turn of the loop: write what waits, read and deliver what came, then tell the owner what
// changed.
//
// Output: a large payload is written straight from the caller's memory when nothing is queued.
// Small frames that lie apart in the buffer are put together for one call and one TLS record: each
// would cost the peer a wake-up. A failed write does not end the link at once: what the peer said
// before it went (a Refuse, a TLS alert) is the better explanation, so we read to the end first.

#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "transport/link_internal.h"

/* A smaller frame is copied into the buffer and goes out in one call and one TLS record; a copy of
 * this size costs less than a call. */
#define COPY_MAX     (16u << 10)
#define RECORD_BYTES (16u << 10) /* of one TLS record: what one call takes at most */

static_assert(FRAME_MAX <= LINK_OUTPUT_BYTES / 4, "a roomy buffer takes any frame (outbuf.h)");
/* Spans that do not merge: one a reservation (each holds FT_BODY_MAX), as many between them, one
 * where the ring wraps. */
static_assert(2 * (LINK_OUTPUT_BYTES / FT_BODY_MAX) + 2 < OUTBUF_SPANS_MAX, "spans do not run out");

static struct link *of(struct ft_link *link)
{
	return (struct link *)link;
}

static const struct link *of_const(const struct ft_link *link)
{
	return (const struct link *)link;
}

static void destroy(struct link *l)
{
	if (l->readable)
		event_free(l->readable);
	if (l->writable)
		event_free(l->writable);
	if (l->again)
		event_free(l->again);
	outbuf_free(&l->out);
	free(l->record);
	free(l->in);
	if (l->channel)
		l->channel->ops->close(l->channel);
	free(l);
}

/* ---- events ---- */

static void arm(struct event *event, bool *armed, bool wanted)
{
	if (*armed == wanted)
		return;
	*armed = wanted;
	if (wanted)
		event_add(event, NULL);
	else
		event_del(event);
}

static void arm_events(struct link *l)
{
	bool alive = !l->failed;
	enum channel_status write_wants =
		l->blocked && l->out.spans_n ? l->write_wants : CHANNEL_DONE;

	arm(l->readable, &l->readable_armed,
	    alive && (l->read_wants == CHANNEL_WANT_READ || write_wants == CHANNEL_WANT_READ));
	arm(l->writable, &l->writable_armed,
	    alive && (l->read_wants == CHANNEL_WANT_WRITE || write_wants == CHANNEL_WANT_WRITE));
}

/* A turn soon, but after the loop has looked at everybody's descriptors: event_active() would come
 * before. */
void link_turn_again(struct link *l)
{
	static const struct timeval now;

	event_add(l->again, &now);
}

void link_fail(struct link *l, const struct ft_err *why)
{
	if (l->failed)
		return;
	l->failed = true;
	l->why = *why;
	ft_err_context(&l->why, "link to %s", l->base.peer);
}

/* ---- output ---- */

static void write_failed(struct link *l, const struct ft_err *err)
{
	l->write_failed = true;
	l->write_err = *err;
	link_turn_again(l);
}

/* One call of the channel. 0: it wants to wait or has failed. */
static size_t write_some(struct link *l, const struct iovec *iov, int iov_n)
{
	struct ft_err err = {0};
	size_t done = 0;
	enum channel_status status = l->channel->ops->write(l->channel, iov, iov_n, &done, &err);

	if (status == CHANNEL_DONE)
		l->bytes_sent += done;
	else if (status == CHANNEL_WANT_READ || status == CHANNEL_WANT_WRITE)
		l->write_wants = status;
	else
		write_failed(l, &err);
	l->blocked = status != CHANNEL_DONE;
	return done;
}

static void flush(struct link *l)
{
	struct iovec iov;
	size_t n;

	while (!l->write_failed && outbuf_front(&l->out, &iov)) {
		if (iov.iov_len < RECORD_BYTES && l->out.queued > iov.iov_len)
			iov = (struct iovec){l->record,
					     outbuf_gather(&l->out, l->record, RECORD_BYTES)};
		n = write_some(l, &iov, 1);
		if (!n)
			return;
		outbuf_consume(&l->out, n);
	}
}

static size_t put_head(struct link *l, const struct ft_msg *msg, uint8_t *out)
{
	struct frame_header h = {
		.type = msg->type,
		.generation = msg->generation,
		.epoch = msg->epoch,
		.seq = ++l->seq_out,
		.body_len = msg->body_len,
		.payload_len = msg->payload_len,
		.body_hash = frame_hash(msg->body, msg->body_len),
		.payload_hash = frame_hash(msg->payload, msg->payload_len),
	};

	memcpy(h.uuid, l->uuid, sizeof h.uuid);
	frame_encode(&h, out);
	if (msg->body_len)
		memcpy(out + FRAME_HEADER, msg->body, msg->body_len);
	return FRAME_HEADER + msg->body_len;
}

/* Nothing is queued: header and body from their place in the buffer, payload from the caller's
 * memory; what the channel does not take goes where the whole frame has room. */
static void send_direct(struct link *l, const struct ft_msg *msg, uint64_t pos)
{
	uint8_t *frame = outbuf_at(&l->out, pos);
	size_t head = put_head(l, msg, frame), total = head + msg->payload_len, sent = 0, n;

	do {
		struct iovec iov[2] = {{frame + sent, sent < head ? head - sent : 0},
				       {(void *)msg->payload, msg->payload_len}};
		bool skip = sent >= head;

		if (skip) {
			iov[1].iov_base = (uint8_t *)iov[1].iov_base + (sent - head);
			iov[1].iov_len = total - sent;
		}
		n = write_some(l, iov + skip, 2 - skip);
		sent += n;
	} while (n && sent < total);
	if (sent == total || l->write_failed)
		return;
	n = sent > head ? sent - head : 0; /* of the payload */
	memcpy(frame + head + n, msg->payload + n, msg->payload_len - n);
	outbuf_commit(&l->out, pos + sent, total - sent);
}

static void send_copied(struct link *l, const struct ft_msg *msg, uint64_t pos)
{
	uint8_t *frame = outbuf_at(&l->out, pos);
	size_t head = put_head(l, msg, frame);

	if (msg->payload_len)
		memcpy(frame + head, msg->payload, msg->payload_len);
	outbuf_commit(&l->out, pos, head + msg->payload_len);
}

/* The payload of a reservation has room for the largest head in front of it; the head goes right
 * before the payload. */
static uint64_t reserved_payload(const struct link *l)
{
	return l->out.reserved.pos + FRAME_HEADER + FT_BODY_MAX;
}

static bool is_reserved(const struct link *l, const struct ft_msg *msg)
{
	return l->out.reserved.len && msg->payload &&
	       msg->payload == outbuf_at(&l->out, reserved_payload(l));
}

static int link_send(struct ft_link *link, const struct ft_msg *msg)
{
	struct link *l = of(link);
	size_t head = FRAME_HEADER + msg->body_len;
	bool large = head + msg->payload_len > COPY_MAX && msg->payload_len;
	uint64_t pos;

	assert(msg->body_len <= FT_BODY_MAX);
	assert(msg->payload_len <= FT_PAYLOAD_MAX);
	assert(!l->closed);
	if (l->failed || l->write_failed)
		return -EPIPE;
	if (large && !l->blocked && l->out.spans_n)
		flush(l); /* what is corked goes before it */
	if (is_reserved(l, msg)) {
		pos = reserved_payload(l) - head;
		put_head(l, msg, outbuf_at(&l->out, pos));
		outbuf_commit_reserved(&l->out, pos, head + msg->payload_len);
	} else if (!outbuf_room(&l->out, head + msg->payload_len, &pos)) {
		l->starved = true;
		return -EAGAIN;
	} else if (large && !l->out.spans_n) {
		send_direct(l, msg, pos);
	} else {
		send_copied(l, msg, pos);
	}
	if (!l->blocked && (!l->corked || l->out.queued >= RECORD_BYTES))
		flush(l);
	arm_events(l);
	return l->write_failed ? -EPIPE : 0;
}

static void link_cork(struct ft_link *link, bool on)
{
	struct link *l = of(link);

	l->corked = on;
	if (on || l->blocked || l->failed)
		return;
	flush(l);
	arm_events(l);
}

static uint8_t *link_reserve(struct ft_link *link, uint32_t payload_max)
{
	struct link *l = of(link);
	uint64_t pos;

	assert(payload_max <= FT_PAYLOAD_MAX);
	assert(!l->closed);
	if (l->failed || l->write_failed)
		return NULL;
	if (!outbuf_reserve(&l->out, FRAME_HEADER + FT_BODY_MAX + (size_t)payload_max, &pos)) {
		l->starved = true;
		return NULL;
	}
	return outbuf_at(&l->out, reserved_payload(l));
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static int link_drain(struct ft_link *link, unsigned deadline_ms)
{
	struct link *l = of(link);
	uint64_t until = now_ms() + deadline_ms, now;
	struct pollfd pfd = {.fd = l->channel->ops->fd(l->channel)};
	int r;

	for (;;) {
		flush(l);
		if (l->failed || l->write_failed)
			return -EPIPE;
		if (!l->out.spans_n)
			break;
		now = now_ms();
		if (now >= until)
			return -ETIMEDOUT;
		pfd.events = l->write_wants == CHANNEL_WANT_READ ? POLLIN : POLLOUT;
		r = poll(&pfd, 1, (int)(until - now));
		if (r < 0 && errno != EINTR)
			return -errno;
	}
	if (l->starved)
		link_turn_again(l);
	return 0;
}

static uint64_t link_bytes_sent(struct ft_link *link)
{
	return of(link)->bytes_sent;
}

/* ---- the turn ---- */

/* What changed for the owner. Each callback may close the link. */
static void tell(struct link *l)
{
	if (l->failed && !l->reported) {
		l->reported = true;
		l->base.events.closed(l->base.events.ctx, &l->why);
		return;
	}
	if (l->starved && !l->failed && outbuf_is_roomy(&l->out)) {
		l->starved = false;
		l->base.events.writable(l->base.events.ctx);
	}
}

static bool is_due(enum channel_status wants, short what)
{
	return (what & EV_TIMEOUT) || (what & (wants == CHANNEL_WANT_READ ? EV_READ : EV_WRITE));
}

static void turn(evutil_socket_t fd, short what, void *arg)
{
	struct link *l = arg;

	(void)fd;
	assert(l->base.events.message && l->base.events.writable && l->base.events.closed);
	l->in_turn = true;
	if (!l->failed && is_due(l->write_wants, what))
		flush(l);
	if (!l->failed && (l->write_failed || is_due(l->read_wants, what)) && link_input(l) &&
	    l->write_failed)
		link_fail(l, &l->write_err);
	if (!l->closed)
		tell(l);
	l->in_turn = false;
	if (l->closed)
		destroy(l);
	else
		arm_events(l);
}

static void link_close(struct ft_link *link)
{
	struct link *l = of(link);

	assert(!l->closed);
	l->channel->ops->shutdown(l->channel);
	l->closed = true;
	if (!l->in_turn)
		destroy(l);
}

static const struct ft_link_ops link_ops = {
	.send = link_send,
	.reserve = link_reserve,
	.drain = link_drain,
	.cork = link_cork,
	.bytes_sent = link_bytes_sent,
	.close = link_close,
};

struct ft_link *link_new(struct event_base *base, struct channel *channel, const char *peer,
			 struct ft_err *err)
{
	struct link *l = calloc(1, sizeof *l);
	int fd = channel->ops->fd(channel);

	if (!l) {
		channel->ops->close(channel);
		ft_err_set(err, ENOMEM, "link to %s: %s", peer, strerror(ENOMEM));
		return NULL;
	}
	l->base.ops = &link_ops;
	snprintf(l->base.peer, sizeof l->base.peer, "%s", peer);
	l->channel = channel;
	l->read_wants = CHANNEL_WANT_READ;
	l->write_wants = CHANNEL_WANT_WRITE;
	l->in = malloc(FRAME_MAX);
	l->record = malloc(RECORD_BYTES);
	l->readable = event_new(base, fd, EV_READ | EV_PERSIST, turn, l);
	l->writable = event_new(base, fd, EV_WRITE | EV_PERSIST, turn, l);
	l->again = evtimer_new(base, turn, l);
	if (!l->in || !l->record || !l->readable || !l->writable || !l->again ||
	    outbuf_init(&l->out, LINK_OUTPUT_BYTES)) {
		destroy(l);
		ft_err_set(err, ENOMEM, "link to %s: %s", peer, strerror(ENOMEM));
		return NULL;
	}
	arm_events(l);
	/* TLS may have read beyond the handshake. */
	if (channel->ops->pending(channel))
		link_turn_again(l);
	return &l->base;
}

void link_set_uuid(struct ft_link *link, const uint8_t uuid[FRAME_UUID])
{
	struct link *l = of(link);

	memcpy(l->uuid, uuid, FRAME_UUID);
	l->uuid_known = true;
}

int link_leave(struct ft_link *link, struct link_rest *rest, struct ft_err *err)
{
	struct link *l = of(link);
	size_t early = l->in_end - l->in_start;

	if (l->failed || l->write_failed || l->out.spans_n || l->header_known ||
	    early > sizeof rest->early) {
		link_close(link);
		return ft_err_set(err, EPROTO, "link: in the middle of a conversation");
	}
	link_expect(l, 1);
	*rest = (struct link_rest){.channel = l->channel,
				   .seq_in = l->seq_in,
				   .seq_out = l->seq_out,
				   .early_n = early};
	memcpy(rest->uuid, l->uuid, sizeof rest->uuid);
	memcpy(rest->early, l->in + l->in_start, early);
	l->failed = l->reported = true; /* no events any more */
	arm_events(l);
	event_del(l->again);
	l->channel = NULL;
	l->closed = true;
	if (!l->in_turn)
		destroy(l);
	return 0;
}

size_t link_queued(const struct ft_link *link)
{
	return of_const(link)->out.queued;
}
