// SPDX-License-Identifier: Apache-2.0
// A thread that owns its connection waits in the call itself, not in a poll(2) before it: for who
// waits for a page each system call counts. cut() is a shutdown(2), which ends such a wait.
//
// Bounds: what is sent, and a frame that has begun to come, must move within CHANNEL_WAIT_MS. For a
// frame to begin there is none but the kernel's own (a peer that does not answer keepalive probes):
// a guest may touch its next page after an hour.
#include "transport/wire.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "transport/channel.h"
#include "transport/frame.h"
#include "transport/link.h"

#define RECORD_BYTES (16u << 10) /* of one TLS record */

struct wire {
	struct ft_wire base;
	struct link_rest rest;
	atomic_bool cut;
	size_t early_at; /* of rest.early: what was read is taken first */
	uint8_t *in;	 /* FRAME_MAX */
	uint8_t record[RECORD_BYTES];
	size_t have;
	struct frame_header
		header; /* of the frame that begins at in[0], once have >= FRAME_HEADER */
	bool header_known;
};

static struct wire *of(struct ft_wire *w)
{
	return (struct wire *)w;
}

static int given_up(struct ft_err *err)
{
	return ft_err_set(err, ECANCELED, "the connection was given up");
}

static struct channel *channel_of(struct wire *w, bool wait)
{
	w->rest.channel->ops->wait(w->rest.channel, wait);
	return w->rest.channel;
}

/* 1: *done bytes; 0: nothing now; -errno. */
static int outcome(struct wire *w, enum channel_status status, const struct ft_err *why,
		   struct ft_err *err)
{
	if (status == CHANNEL_DONE)
		return 1;
	if (w->cut)
		return given_up(err);
	if (status == CHANNEL_WANT_READ || status == CHANNEL_WANT_WRITE)
		return 0;
	*err = *why;
	return -(err->code ? err->code : EPIPE);
}

static int stalled(struct ft_err *err, const char *what)
{
	return ft_err_set(err, ETIMEDOUT, "%s for %u s", what, CHANNEL_WAIT_MS / 1000);
}

static int wire_send(struct ft_wire *base, const struct ft_msg *msg, struct ft_err *err)
{
	struct wire *w = of(base);
	uint8_t head[FRAME_HEADER];
	struct frame_header h = {.type = msg->type,
				 .generation = msg->generation,
				 .epoch = msg->epoch,
				 .seq = ++w->rest.seq_out,
				 .body_len = msg->body_len,
				 .payload_len = msg->payload_len,
				 .body_hash = frame_hash(msg->body, msg->body_len),
				 .payload_hash = frame_hash(msg->payload, msg->payload_len)};
	struct iovec iov[3] = {{head, FRAME_HEADER},
			       {(void *)(uintptr_t)msg->body, msg->body_len},
			       {(void *)(uintptr_t)msg->payload, msg->payload_len}};
	struct iovec *at = iov;
	size_t total = FRAME_HEADER + (size_t)msg->body_len + msg->payload_len;
	int left = 1, rc = 0;

	memcpy(h.uuid, w->rest.uuid, sizeof h.uuid);
	frame_encode(&h, head);
	for (int i = 1; i < 3; i++)
		if (iov[i].iov_len)
			iov[left++] = iov[i];
	/* One record of TLS, and one wake-up of the peer, for who waits for a page. */
	if (total <= RECORD_BYTES) {
		size_t n = 0;

		for (int i = 0; i < left; i++) {
			memcpy(w->record + n, iov[i].iov_base, iov[i].iov_len);
			n += iov[i].iov_len;
		}
		iov[0] = (struct iovec){w->record, n};
		left = 1;
	}
	while (left && rc >= 0) {
		struct ft_err why = {0};
		size_t done = 0;
		enum channel_status status;

		status = w->rest.channel->ops->write(channel_of(w, true), at, left, &done, &why);
		rc = outcome(w, status, &why, err);
		if (rc == 0)
			rc = stalled(err, "the peer has taken nothing");
		while (done && left) {
			size_t step = done < at->iov_len ? done : at->iov_len;

			at->iov_base = (uint8_t *)at->iov_base + step;
			at->iov_len -= step;
			done -= step;
			if (!at->iov_len) {
				at++;
				left--;
			}
		}
	}
	return rc < 0 ? rc : 0;
}

static int check_header(struct wire *w, struct ft_err *err)
{
	int rc = frame_decode(w->in, &w->header, err);

	if (!rc)
		rc = frame_check_place(&w->header, w->rest.uuid, w->rest.seq_in + 1, err);
	if (!rc) {
		w->rest.seq_in++;
		w->header_known = true;
	}
	return rc;
}

static int deliver(struct wire *w, struct ft_msg *msg, struct ft_err *err)
{
	const struct frame_header *h = &w->header;
	const uint8_t *body = w->in + FRAME_HEADER, *payload = body + h->body_len;
	int rc = frame_check_content(h, body, payload, err);

	*msg = (struct ft_msg){.type = h->type,
			       .generation = h->generation,
			       .epoch = h->epoch,
			       .body = h->body_len ? body : NULL,
			       .body_len = h->body_len,
			       .payload = h->payload_len ? payload : NULL,
			       .payload_len = h->payload_len};
	w->have = 0;
	w->header_known = false;
	return rc ? rc : 1;
}

static enum channel_status read_some(struct wire *w, size_t most, bool wait, size_t *done,
				     struct ft_err *err)
{
	size_t early = w->rest.early_n - w->early_at;

	if (!early)
		return w->rest.channel->ops->read(channel_of(w, wait), w->in + w->have, most, done,
						  err);
	*done = early < most ? early : most;
	memcpy(w->in + w->have, w->rest.early + w->early_at, *done);
	w->early_at += *done;
	return CHANNEL_DONE;
}

static int wire_receive(struct ft_wire *base, struct ft_msg *msg, bool wait, struct ft_err *err)
{
	struct wire *w = of(base);

	for (;;) {
		size_t need = w->header_known ? frame_length(&w->header) : FRAME_HEADER, done = 0;
		enum channel_status status;
		struct ft_err why = {0};
		int rc;

		if (w->have == need && w->header_known)
			return deliver(w, msg, err);
		if (w->have == need) {
			rc = check_header(w, err);
			if (rc)
				return rc;
			continue;
		}
		if (w->cut)
			return given_up(err);
		status = read_some(w, need - w->have, wait, &done, &why);
		w->have += done;
		rc = outcome(w, status, &why, err);
		if (rc < 0 || (rc == 0 && !wait))
			return rc;
		if (rc == 0 && w->have)
			return stalled(err, "nothing has come of the rest of a frame");
	}
}

static int wire_fd(const struct ft_wire *base)
{
	const struct wire *w = (const struct wire *)base;

	return w->rest.channel->ops->fd(w->rest.channel);
}

static void wire_cut(struct ft_wire *base)
{
	struct wire *w = of(base);

	w->cut = true;
	/* The peer hears of it now, too, not when the owner comes to close it. */
	shutdown(w->rest.channel->ops->fd(w->rest.channel), SHUT_RDWR);
}

static void wire_close(struct ft_wire *base)
{
	struct wire *w = of(base);

	w->rest.channel->ops->shutdown(channel_of(w, false));
	w->rest.channel->ops->close(w->rest.channel);
	free(w->in);
	free(w);
}

static const struct ft_wire_ops wire_ops = {
	.send = wire_send,
	.receive = wire_receive,
	.fd = wire_fd,
	.cut = wire_cut,
	.close = wire_close,
};

int wire_of_link(struct ft_link *link, struct ft_wire **out, struct ft_err *err)
{
	struct wire *w = calloc(1, sizeof *w);
	int rc;

	if (w)
		w->in = malloc(FRAME_MAX);
	if (!w || !w->in) {
		link->ops->close(link);
		free(w);
		return ft_err_set(err, ENOMEM, "wire: out of memory");
	}
	rc = link_leave(link, &w->rest, err);
	if (rc) {
		free(w->in);
		free(w);
		return rc;
	}
	w->base.ops = &wire_ops;
	*out = &w->base;
	return 0;
}
