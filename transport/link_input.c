// SPDX-License-Identifier: Apache-2.0
// Input goes into one buffer for one frame. Only when a header is due do we read beyond it
// (READ_AHEAD), so that small frames come with few calls and of a large one at most READ_AHEAD
// bytes are ever moved. The header is verified before the rest of its frame is read.
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "transport/link_internal.h"

#define READ_AHEAD LINK_EARLY_MAX
/* A frame of this size is one of many. */
#define STREAM_BYTES (FT_PAYLOAD_MAX / 2)

static_assert(READ_AHEAD > FRAME_HEADER && READ_AHEAD <= FRAME_MAX,
	      "a header fits; the buffer holds it");

/* What is still to be read before something can be delivered or checked; 0: a whole frame is there.
 */
static size_t missing(const struct link *l)
{
	size_t have = l->in_end - l->in_start;
	size_t need = l->header_known ? frame_length(&l->header) : FRAME_HEADER;

	return have < need ? need - have : 0;
}

static bool check_header(struct link *l)
{
	/* The first frame is delivered in any case: the owner tells a stranger what is wrong. */
	const uint8_t *uuid = l->uuid_known && l->seq_in ? l->uuid : NULL;
	struct ft_err err = {0};

	if (frame_decode(l->in + l->in_start, &l->header, &err) ||
	    frame_check_place(&l->header, uuid, l->seq_in + 1, &err)) {
		link_fail(l, &err);
		return false;
	}
	l->seq_in++;
	l->header_known = true;
	return true;
}

/* The frame at in_start is whole. Returns its length, 0 when it was the last (corrupted, or the
 * owner closed). */
static size_t deliver(struct link *l)
{
	const struct frame_header *h = &l->header;
	const uint8_t *body = l->in + l->in_start + FRAME_HEADER, *payload = body + h->body_len;
	size_t len = frame_length(h);
	struct ft_err err = {0};
	struct ft_msg msg = {
		.type = h->type,
		.other_guest = l->uuid_known && memcmp(h->uuid, l->uuid, FRAME_UUID),
		.generation = h->generation,
		.epoch = h->epoch,
		.body = h->body_len ? body : NULL,
		.body_len = h->body_len,
		.payload = h->payload_len ? payload : NULL,
		.payload_len = h->payload_len,
	};

	if (frame_check_content(h, body, payload, &err)) {
		link_fail(l, &err);
		return 0;
	}
	l->in_start += len;
	l->header_known = false;
	l->stream = len >= STREAM_BYTES;
	l->base.events.message(l->base.events.ctx, &msg);
	return l->closed ? 0 : len;
}

static void read_failed(struct link *l, enum channel_status status, struct ft_err *err)
{
	if (status == CHANNEL_CLOSED && l->in_end > l->in_start)
		ft_err_set(err, EPIPE, "closed by the peer in the middle of a frame");
	link_fail(l, err);
}

/* false: nothing came. */
static bool read_some(struct link *l)
{
	size_t have = l->in_end - l->in_start, want = missing(l), done = 0;
	struct ft_err err = {0};
	enum channel_status status;

	if (l->in_start) {
		memmove(l->in, l->in + l->in_start, have);
		l->in_start = 0;
		l->in_end = have;
	}
	if (!l->header_known)
		want = READ_AHEAD - have;
	status = l->channel->ops->read(l->channel, l->in + l->in_end, want, &done, &err);
	l->in_end += done;
	if (status == CHANNEL_DONE)
		return true;
	if (status == CHANNEL_WANT_READ || status == CHANNEL_WANT_WRITE)
		l->read_wants = status;
	else
		read_failed(l, status, &err);
	return false;
}

/* Nothing came, but in a stream it soon will. What comes in drops is not worth it, nor what keeps
 * others from their turn: within its bound it is a whole frame, or the header that says how long.
 */
static bool read_awake(struct link *l)
{
	if (!l->stream || l->failed || !awake_begin(&l->awake))
		return false;
	while (!l->failed && awake_wait(&l->awake))
		if (read_some(l) && !missing(l))
			return awake_end(&l->awake, true);
	return awake_end(&l->awake, false);
}

void link_expect(struct link *l, size_t bytes)
{
	if (l->channel->ops->expect)
		l->channel->ops->expect(l->channel, bytes);
}

bool link_input(struct link *l)
{
	size_t frames = 0, bytes = 0, n;

	while (frames < LINK_TURN_FRAMES && bytes < LINK_TURN_BYTES) {
		if (missing(l)) {
			if (!read_some(l) && !read_awake(l)) {
				link_expect(l, l->header_known ? missing(l) : 1);
				return true;
			}
		} else if (!l->header_known) {
			if (!check_header(l))
				return true;
		} else {
			n = deliver(l);
			if (!n)
				return true;
			frames++;
			bytes += n;
		}
	}
	link_turn_again(l);
	return false;
}
