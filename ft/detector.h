/* SPDX-License-Identifier: Apache-2.0 */
/* Failure detector: silence of the peer, told by heartbeats on a connection of their own. Pure:
 * time is an argument. Liveness only; safety never rests on it. */
#ifndef FT_DETECTOR_H
#define FT_DETECTOR_H

#include <stdbool.h>
#include <stdint.h>

struct ft_detector {
	uint64_t heartbeat_ns; /* we send this often */
	uint64_t silence_ns;   /* takeover_ms: silent for this long = suspected */
	uint64_t heard_ns;     /* last sign of life */
	uint64_t sent_ns;
	uint64_t checked_ns; /* last call of ft_detector_suspect() */
	uint64_t patient_ns; /* the peer asked not to be suspected before this time, 0 = it did not
			      */
};

void ft_detector_start(struct ft_detector *d, uint64_t now_ns, unsigned heartbeat_ms,
		       unsigned silence_ms);
void ft_detector_heard(struct ft_detector *d, uint64_t now_ns);
/* A heartbeat: asks for `patience_ns` of silence that is known in advance; 0 takes an earlier
 * request back. */
void ft_detector_beat(struct ft_detector *d, uint64_t now_ns, uint64_t patience_ns);
/* True when a heartbeat is due; the caller sends it. */
bool ft_detector_due(struct ft_detector *d, uint64_t now_ns);
/* True when the peer is suspected. A gap between calls (we were frozen, not the peer) of more than
 * half the silence restarts the silence: who was asleep may not accuse others before it has
 * listened again. */
bool ft_detector_suspect(struct ft_detector *d, uint64_t now_ns);
/* When to call due() and suspect() again at the latest. In the future of their last calls; a loop
 * that is late by up to a quarter of the silence is not taken for a frozen one. */
uint64_t ft_detector_wake(const struct ft_detector *d);

#endif
