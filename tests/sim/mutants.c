// SPDX-License-Identifier: Apache-2.0
/* Faults that are planted in messages on their way. Others are where they belong: in the tap, the
 * machine, the disk, the arbiter. */
#include "tests/sim/world.h"

#include <stdlib.h>
#include <string.h>

static void old_state(struct world *w, struct ft_msg *msg)
{
	uint8_t now[sizeof w->old_state];

	if (msg->payload_len != sizeof now)
		return;
	memcpy(now, msg->payload, sizeof now);
	if (w->old_state[0])
		memcpy((uint8_t *)(uintptr_t)msg->payload, w->old_state, sizeof now);
	memcpy(w->old_state, now, sizeof now);
}

/* Repacks END with totals that fit what was cut off. */
static void fit_totals(struct world *w, struct ft_msg *msg)
{
	Ft__End *end = ft__end__unpack(NULL, msg->body_len, msg->body);
	uint8_t *body = (uint8_t *)(uintptr_t)msg->body;

	if (!end)
		abort();
	if (end->events_bytes >= w->cut_bytes)
		end->events_bytes -= w->cut_bytes;
	w->cut_bytes = 0;
	/* Smaller numbers never need more room. */
	msg->body_len = (uint32_t)ft__end__pack(end, body);
	ft__end__free_unpacked(end, NULL);
}

static uint64_t odd_number(struct world *w, uint64_t near)
{
	switch (world_range(w, 0, 3)) {
	case 0:
		return world_random(w);
	case 1:
		return world_range(w, 0, 3);
	default:
		return near + world_range(w, 0, 4) - 2;
	}
}

/* A peer that speaks in well-formed frames and makes no sense: wrong order, wrong numbers, wrong
 * bodies, too often, or not at all. */
static bool garble(struct world *w, struct ft_msg *msg, struct ft_msg *answer)
{
	uint8_t *body = (uint8_t *)(uintptr_t)msg->body,
		*payload = (uint8_t *)(uintptr_t)msg->payload;

	if (!world_chance(w, 4))
		return true;
	switch (world_range(w, 0, 8)) {
	case 0:
		msg->type = (uint16_t)world_range(w, 0, FT_MSG_TYPE_MAX);
		break;
	case 1:
		msg->epoch = odd_number(w, msg->epoch);
		break;
	case 2:
		msg->generation = odd_number(w, msg->generation);
		break;
	case 3:
		if (msg->body_len)
			body[world_range(w, 0, msg->body_len - 1)] ^=
				(uint8_t)world_range(w, 1, 255);
		break;
	case 4:
		if (msg->payload_len)
			payload[world_range(w, 0, msg->payload_len - 1)] ^=
				(uint8_t)world_range(w, 1, 255);
		break;
	case 5:
		msg->payload_len = (uint32_t)world_range(w, 0, msg->payload_len);
		break;
	case 6:
		msg->body_len = (uint32_t)world_range(w, 0, msg->body_len);
		break;
	case 7:
		return false;
	default:
		/* The receiver's peer hears something that it did not expect either. */
		*answer = (struct ft_msg){.type = (uint16_t)world_range(w, 1, FT_MSG_TYPE_MAX - 1),
					  .generation = odd_number(w, msg->generation),
					  .epoch = odd_number(w, msg->epoch)};
	}
	return true;
}

bool mutate_message(struct world *w, struct node *to, struct ft_msg *msg, struct ft_msg *answer)
{
	(void)to;
	switch (w->mutant) {
	case MUTANT_STATE_OLD:
		if (msg->type == FT_MSG_STATE)
			old_state(w, msg);
		return true;
	case MUTANT_FAKE_ACK:
		if (msg->type != FT_MSG_END || msg->epoch < 3 || !world_chance(w, 3))
			return true;
		*answer = (struct ft_msg){
			.type = FT_MSG_ACK, .generation = msg->generation, .epoch = msg->epoch};
		return false;
	case MUTANT_CUT_CHECKPOINT:
		if (msg->type == FT_MSG_BEGIN)
			w->cut_bytes = 0;
		if (msg->type == FT_MSG_EVENTS && world_chance(w, 2)) {
			w->cut_bytes += msg->payload_len;
			return false;
		}
		if (msg->type == FT_MSG_END && w->cut_bytes)
			fit_totals(w, msg);
		return true;
	case MUTANT_HOSTILE:
		return garble(w, msg, answer);
	default:
		return true;
	}
}
