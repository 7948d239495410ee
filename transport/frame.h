/* SPDX-License-Identifier: Apache-2.0 */
/* One message on the wire: this header, a protobuf body, raw payload. The header is outside
 * protobuf so that everything about a frame can be checked before anything of it is parsed or
 * stored. All numbers are little endian.
 *
 *   offset size
 *        0    8  magic "KEMARIFT"
 *        8    2  protocol version
 *       10    2  header length, 88
 *       12    2  message type (ft/msg.h)
 *       14    2  flags, 0
 *       16   16  guest uuid
 *       32    8  generation
 *       40    8  epoch
 *       48    8  sequence number: 1 for the first frame of a connection's direction, then +1
 *       56    4  body length,    at most FT_BODY_MAX
 *       60    4  payload length, at most FT_PAYLOAD_MAX
 *       64    8  XXH3-64 of the body
 *       72    8  XXH3-64 of the payload
 *       80    8  XXH3-64 of the 80 bytes before
 *
 * The hashes find accidents (a bad NIC, our own bugs), on any transport; against malice there is
 * TLS. Pure functions, any thread. */
#ifndef TRANSPORT_FRAME_H
#define TRANSPORT_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ft/err.h"
#include "ft/link.h"

#define FRAME_HEADER  88
#define FRAME_VERSION 1
#define FRAME_UUID    16
#define FRAME_MAX     (FRAME_HEADER + FT_BODY_MAX + FT_PAYLOAD_MAX)

struct frame_header {
	uint16_t type;
	uint8_t uuid[FRAME_UUID];
	uint64_t generation;
	uint64_t epoch;
	uint64_t seq;
	uint32_t body_len;
	uint32_t payload_len;
	uint64_t body_hash;
	uint64_t payload_hash;
};

/* Lengths within bounds are the caller's duty (asserted). */
void frame_encode(const struct frame_header *h, uint8_t out[FRAME_HEADER]);
/* Everything that can be told from the header alone: magic, version, length, hash, flags, bounds.
 * -EPROTO, or -EPROTONOSUPPORT for another version (its header cannot be verified, only its version
 * read). */
int frame_decode(const uint8_t in[FRAME_HEADER], struct frame_header *h, struct ft_err *err);
/* Does it belong here and now? uuid may be NULL: not known yet. -EPROTO. */
int frame_check_place(const struct frame_header *h, const uint8_t *uuid, uint64_t seq,
		      struct ft_err *err);
/* body_len and payload_len bytes, as the header says. -EBADMSG. */
int frame_check_content(const struct frame_header *h, const uint8_t *body, const uint8_t *payload,
			struct ft_err *err);

uint64_t frame_hash(const void *data, size_t len);
static inline size_t frame_length(const struct frame_header *h)
{
	return (size_t)FRAME_HEADER + h->body_len + h->payload_len;
}

#endif
