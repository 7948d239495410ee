/* SPDX-License-Identifier: Apache-2.0 */
/* What the engine needs from a connection to its peer: whole, verified messages in order, or a
 * close. transport/ implements it over TLS, TCP and UNIX sockets; the simulator over nothing.
 * Engine's thread only; no call blocks but ft_link_drain(). */
#ifndef FT_LINK_H
#define FT_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "ft/err.h"

#define FT_BODY_MAX (64u << 10) /* protobuf body of one frame */
/* Raw payload of one frame: large enough to amortise, small enough to interleave. */
#define FT_PAYLOAD_MAX (256u << 10)

struct ft_msg {
	uint16_t type;	  /* enum ft_msg_type, ft/msg.h */
	bool other_guest; /* received: the first message, about a guest of another uuid than ours */
	uint64_t generation;
	uint64_t epoch;
	const uint8_t *body; /* packed protobuf, NULL if body_len is 0 */
	uint32_t body_len;
	const uint8_t *payload; /* raw bytes; on receipt valid until the handler returns */
	uint32_t payload_len;
};

struct ft_link;
struct ft_link_ops {
	/* Queues one message; header, body and payload are copied into the link's bounded output
	 * buffer (payload directly from the caller's memory where the socket takes it at once).
	 * -EAGAIN: no room, nothing was queued, writable() will be called. -EPIPE: closed. */
	int (*send)(struct ft_link *link, const struct ft_msg *msg);
	/* Reserves room for a frame with up to payload_max bytes of payload and returns where the
	 * payload is to be written, or NULL (no room; writable() will be called). send() of a msg
	 * whose payload is that pointer then copies nothing. */
	uint8_t *(*reserve)(struct ft_link *link, uint32_t payload_max);
	/* Blocks until everything queued is with the kernel, at most deadline_ms. Used only while a
	 * guest is held. */
	int (*drain)(struct ft_link *link, unsigned deadline_ms);
	/* on: small messages wait for those that follow at once. off: what waits goes out, together
	 * as far as it is small. From within one call of the engine's only. NULL: messages never
	 * wait. */
	void (*cork)(struct ft_link *link, bool on);
	uint64_t (*bytes_sent)(struct ft_link *link);
	/* Closes; no callback comes after this returns. Frees the link. */
	void (*close)(struct ft_link *link);
};

struct ft_link_events {
	void (*message)(void *ctx, const struct ft_msg *msg);
	void (*writable)(void *ctx);
	/* Closed by the peer, by an error or by a frame that does not verify. The link is freed by
	 * the owner with close(). */
	void (*closed)(void *ctx, const struct ft_err *why);
	void *ctx;
};

struct ft_link {
	const struct ft_link_ops *ops;
	struct ft_link_events events; /* set by the owner */
	char peer[128];		      /* URI of the other end, for people */
};

static inline void ft_link_cork(struct ft_link *link, bool on)
{
	if (link->ops->cork)
		link->ops->cork(link, on);
}

#endif
