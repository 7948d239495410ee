// SPDX-License-Identifier: Apache-2.0
// A channel does not block; here somebody wants to, so each WANT_* is a poll(2), with an eventfd
// beside it by which another thread ends the wait for good. A peer that takes or sends nothing is
// the owner's business: pages may be asked for after an hour.
#include "transport/wire.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "transport/channel.h"
#include "transport/frame.h"
#include "transport/link.h"

#define RECORD_BYTES (16u << 10) /* of one TLS record */

struct wire {
	struct ft_wire base;
	struct link_rest rest;
	int cut_fd;
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

static int wait_for(struct wire *w, enum channel_status wants, struct ft_err *err)
{
	struct pollfd p[2] = {{.fd = w->rest.channel->ops->fd(w->rest.channel),
			       .events = wants == CHANNEL_WANT_READ ? POLLIN : POLLOUT},
			      {.fd = w->cut_fd, .events = POLLIN}};

	while (!w->cut && poll(p, 2, -1) < 0 && errno == EINTR)
		;
	return w->cut ? ft_err_set(err, ECANCELED, "the connection was given up") : 0;
}

/* 1: *done bytes; 0: nothing now; -errno. */
static int outcome(enum channel_status status, const struct ft_err *why, struct ft_err *err)
{
	if (status == CHANNEL_DONE)
		return 1;
	if (status == CHANNEL_WANT_READ || status == CHANNEL_WANT_WRITE)
		return 0;
	*err = *why;
	return -(err->code ? err->code : EPIPE);
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

		if (w->cut)
			return ft_err_set(err, ECANCELED, "the connection was given up");
		status = w->rest.channel->ops->write(w->rest.channel, at, left, &done, &why);
		rc = outcome(status, &why, err);
		if (rc == 0)
			rc = wait_for(w, status, err);
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

static enum channel_status read_some(struct wire *w, size_t most, size_t *done, struct ft_err *err)
{
	size_t early = w->rest.early_n - w->early_at;

	if (!early)
		return w->rest.channel->ops->read(w->rest.channel, w->in + w->have, most, done,
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
			return ft_err_set(err, ECANCELED, "the connection was given up");
		status = read_some(w, need - w->have, &done, &why);
		w->have += done;
		rc = outcome(status, &why, err);
		if (rc == 0 && !wait)
			return 0;
		if (rc == 0)
			rc = wait_for(w, status, err);
		if (rc < 0)
			return rc;
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
	eventfd_write(w->cut_fd, 1);
	/* The peer hears of it now, not when the owner comes to close it. */
	shutdown(w->rest.channel->ops->fd(w->rest.channel), SHUT_RDWR);
}

static void wire_close(struct ft_wire *base)
{
	struct wire *w = of(base);

	w->rest.channel->ops->shutdown(w->rest.channel);
	w->rest.channel->ops->close(w->rest.channel);
	close(w->cut_fd);
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
	if (w)
		w->cut_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!w || !w->in || w->cut_fd < 0) {
		link->ops->close(link);
		if (w && w->cut_fd >= 0)
			close(w->cut_fd);
		if (w)
			free(w->in);
		free(w);
		return ft_err_set(err, ENOMEM, "wire: out of memory");
	}
	rc = link_leave(link, &w->rest, err);
	if (rc) {
		close(w->cut_fd);
		free(w->in);
		free(w);
		return rc;
	}
	w->base.ops = &wire_ops;
	*out = &w->base;
	return 0;
}
