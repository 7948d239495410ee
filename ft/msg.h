/* SPDX-License-Identifier: Apache-2.0 */
/* Types of the messages between two agents; their order and meaning: proto/PROTOCOL.md. Bodies:
 * proto/ft.proto. */
#ifndef FT_MSG_H
#define FT_MSG_H

#include "ft/link.h"

#include "ft.pb-c.h"

enum ft_msg_type {
	FT_MSG_HELLO = 1, /* both ways, first on every connection */
	FT_MSG_REFUSE,	  /* either way: no, and why; the sender closes */
	FT_MSG_SETUP,	  /* primary: what the guest is */
	FT_MSG_READY,	  /* standby: armed */
	FT_MSG_PAGES,	  /* primary: page records; epoch 0: async, applied at once; else staged */
	FT_MSG_DISK,	  /* primary: initial copy of a disk, epoch 0 */
	FT_MSG_BEGIN,	  /* primary: a checkpoint starts */
	FT_MSG_STATE,	  /* primary: a piece of the device state */
	FT_MSG_EVENTS,	  /* primary: a piece of the records of the epoch's outputs */
	FT_MSG_END,	  /* primary: that was all; totals */
	FT_MSG_ACK,	  /* standby: the checkpoint is staged whole and verified */
	FT_MSG_DIGEST,	  /* standby: digest of its image at that epoch, when END asked for it */
	FT_MSG_HANDOVER,  /* primary: planned switch, take the guest */
	FT_MSG_HANDED,	  /* standby: it runs here, under this generation */
	FT_MSG_BYE,	  /* primary: protection ends by agreement; what you hold is outdated.
			     standby: so it is, and nothing of it will run (the answer, or because it is
			     stopped) */
	FT_MSG_BEAT,	  /* both ways, on the heartbeat connection */
	FT_MSG_SUMS,	  /* standby: what its copy of a disk has, so that only the rest is sent */
	FT_MSG_MISSING,	  /* postcopy: pages that the target lacks: at the switch, and after a lost
			     link */
	FT_MSG_ASK,	  /* postcopy, target: somebody waits for these pages */
	FT_MSG_ALL,	  /* postcopy, target: all pages are here, the source may forget them */
	FT_MSG_ROUND,	  /* migration: a round is over; the answer: and applied */
	FT_MSG_STAYS,	  /* primary: the hand-over that the standby asked for is off, and why */
	FT_MSG_BITMAP,	  /* postcopy: a piece of a named bitmap's map; target: where to go on */
	FT_MSG_TYPE_MAX
};

/* Generations and epochs begin at 1; one beyond this is refused, so that everybody's "the next one"
 * exists. */
#define FT_COUNTER_MAX (UINT64_C(1) << 62)

const char *ft_msg_name(unsigned type);

/* Packs `body` (a protobuf-c message, may be NULL) and sends it with the payload. Bodies are
 * bounded by FT_MSG_BODY_SMALL unless they are a SETUP; nothing is allocated. Returns what the
 * link's send() returned. */
#define FT_MSG_BODY_SMALL 512
int ft_msg_send(struct ft_link *link, unsigned type, uint64_t generation, uint64_t epoch,
		const ProtobufCMessage *body, const uint8_t *payload, uint32_t payload_len);

#endif
