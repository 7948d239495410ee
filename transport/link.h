/* SPDX-License-Identifier: Apache-2.0 */
/* struct ft_link (ft/link.h) over a channel and libevent. Frames are verified before they reach the
 * owner; output goes to the kernel at once when nothing is queued, else through a bounded buffer.
 * All memory is allocated by link_new(). Thread of the event base.
 *
 * Owners: set link->events before the loop runs again. Each callback may close the link. `closed`
 * and `writable` come from the loop, never from within a call of the owner. After `closed` nothing
 * comes any more, and only close() makes sense. What the peer had sent before it closed is
 * delivered first. Silence of the peer is the owner's business (ft/detector.h). */
#ifndef TRANSPORT_LINK_H
#define TRANSPORT_LINK_H

#include "ft/link.h"
#include "transport/channel.h"
#include "transport/frame.h"

struct event_base;

#define LINK_OUTPUT_BYTES (2u << 20) /* bound of what is queued */
/* Fairness: after this much in one turn of the loop, others have theirs. */
#define LINK_TURN_FRAMES 64
#define LINK_TURN_BYTES	 (1u << 20)

/* channel: open; taken in any case. peer: for people. NULL: out of memory, in *err. */
struct ft_link *link_new(struct event_base *base, struct channel *channel, const char *peer,
			 struct ft_err *err);
/* The guest that this link is about: goes into each frame from now on, and a frame about another
 * guest closes the link, but for the first, which is
 * delivered and marked. Until then frames go
 * out with uuid 0 and any is accepted. */
void link_set_uuid(struct ft_link *link, const uint8_t uuid[FRAME_UUID]);

/* What a link leaves behind (wire.h): its channel, where its frames are, and what has arrived and
 * was not delivered. -EPROTO: something of ours is queued. The link is closed in any case, and the
 * channel with it on error. */
#define LINK_EARLY_MAX 4096
struct link_rest {
	struct channel *channel;
	uint64_t seq_in, seq_out;
	uint8_t uuid[FRAME_UUID];
	uint8_t early[LINK_EARLY_MAX];
	size_t early_n;
};
int link_leave(struct ft_link *link, struct link_rest *rest, struct ft_err *err);

/* For uses without an engine (tests, benchmarks): bytes queued and not with the kernel yet. */
size_t link_queued(const struct ft_link *link);

#endif
