// SPDX-License-Identifier: Apache-2.0
#include "ft/msg.h"

#include <assert.h>
#include <errno.h>

static const char *const names[FT_MSG_TYPE_MAX] = {
	[FT_MSG_HELLO] = "HELLO",	[FT_MSG_REFUSE] = "REFUSE", [FT_MSG_SETUP] = "SETUP",
	[FT_MSG_READY] = "READY",	[FT_MSG_PAGES] = "PAGES",   [FT_MSG_DISK] = "DISK",
	[FT_MSG_BEGIN] = "BEGIN",	[FT_MSG_STATE] = "STATE",   [FT_MSG_EVENTS] = "EVENTS",
	[FT_MSG_END] = "END",		[FT_MSG_ACK] = "ACK",	    [FT_MSG_DIGEST] = "DIGEST",
	[FT_MSG_HANDOVER] = "HANDOVER", [FT_MSG_HANDED] = "HANDED", [FT_MSG_BYE] = "BYE",
	[FT_MSG_BEAT] = "BEAT",		[FT_MSG_SUMS] = "SUMS",	    [FT_MSG_MISSING] = "MISSING",
	[FT_MSG_ASK] = "ASK",		[FT_MSG_ALL] = "ALL",	    [FT_MSG_ROUND] = "ROUND",
	[FT_MSG_STAYS] = "STAYS",	[FT_MSG_BITMAP] = "BITMAP",
};

const char *ft_msg_name(unsigned type)
{
	return type < FT_MSG_TYPE_MAX && names[type] ? names[type] : "unknown";
}

int ft_msg_send(struct ft_link *link, unsigned type, uint64_t generation, uint64_t epoch,
		const ProtobufCMessage *body, const uint8_t *payload, uint32_t payload_len)
{
	uint8_t small[FT_MSG_BODY_SMALL], large[FT_BODY_MAX];
	struct ft_msg msg = {.type = (uint16_t)type,
			     .generation = generation,
			     .epoch = epoch,
			     .payload = payload,
			     .payload_len = payload_len};

	if (!link)
		return -EPIPE;
	if (body) {
		size_t len = protobuf_c_message_get_packed_size(body);

		if (len > sizeof large)
			return -EMSGSIZE;
		/* Only a SETUP, with a command line inside, needs the large one. */
		msg.body = len <= sizeof small ? small : large;
		msg.body_len = (uint32_t)protobuf_c_message_pack(body, len <= sizeof small ? small
											   : large);
		assert(msg.body_len == len);
	}
	return link->ops->send(link, &msg);
}
