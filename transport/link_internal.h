/* SPDX-License-Identifier: Apache-2.0 */
/* A link's own: link.c has the turn and the output, link_input.c the input. */
#ifndef TRANSPORT_LINK_INTERNAL_H
#define TRANSPORT_LINK_INTERNAL_H

#include "transport/awake.h"
#include "transport/link.h"
#include "transport/outbuf.h"

struct event;

struct link {
	struct ft_link base;
	struct channel *channel;
	struct event *readable, *writable;
	struct event *again; /* a turn that no descriptor announces */
	bool readable_armed, writable_armed;
	enum channel_status read_wants, write_wants;

	struct outbuf out;
	uint8_t *record; /* RECORD_BYTES: small frames put together */
	bool corked;
	bool blocked; /* what is queued waits for the channel, not for being uncorked */
	uint64_t seq_out;
	uint64_t bytes_sent;
	bool starved; /* we said no: owner waits for writable() */

	uint8_t *in; /* FRAME_MAX bytes; [in_start, in_end) is not delivered yet */
	size_t in_start, in_end;
	struct frame_header header; /* of the frame at in_start, if header_known */
	bool header_known;
	bool stream;	    /* the frame before was a large one: the next is on its way */
	struct awake awake; /* waiting for it */
	uint64_t seq_in;

	uint8_t uuid[FRAME_UUID];
	bool uuid_known;

	bool write_failed;
	struct ft_err write_err;
	bool failed, reported;
	struct ft_err why;

	bool in_turn;
	bool closed; /* by the owner, in a callback: freed when the turn ends */
};

/* It has failed: the owner is told in the turn. The first reason counts. */
void link_fail(struct link *l, const struct ft_err *why);
/* A turn soon, but after the loop has looked at everybody's descriptors. */
void link_turn_again(struct link *l);

/* Reads and delivers. true: nothing more comes for now, or ever. false: others should have their
 * turn first; there is another one. */
bool link_input(struct link *l);
/* Of what use the next bytes are: wakes us when so many are there. */
void link_expect(struct link *l, size_t bytes);

#endif
