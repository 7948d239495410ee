/* SPDX-License-Identifier: Apache-2.0 */
/* When to checkpoint, and when to go from async rounds to sync. Pure functions of their arguments:
 * no clock, no state of their own. */
#ifndef FT_POLICY_H
#define FT_POLICY_H

#include <stdbool.h>
#include <stdint.h>

enum ft_trigger { FT_TRIGGER_OUTPUT = 1, FT_TRIGGER_INTERVAL = 2, FT_TRIGGER_BOTH = 3 };

/* Even when nothing is put out, the guest is checkpointed this often with trigger = output, so that
 * the dirty set and the work lost by a failover stay small. */
#define FT_IDLE_INTERVAL_MS 1000

struct ft_policy {
	enum ft_trigger trigger;
	uint64_t interval_ns;
	uint64_t max_downtime_ns;
	double max_overhead; /* (0, 1]: share of time the guest may be paused */
};

struct ft_policy_input {
	uint64_t now_ns;
	uint64_t resumed_ns; /* when the guest last resumed from a checkpoint (or protection's
				start) */
	uint64_t pause_ns;   /* how long the last one paused it; expected cost of the next */
	bool in_flight;	     /* a checkpoint is not acknowledged yet: at most one is */
	uint64_t output_ns;  /* when the oldest output of the open epoch was held, 0 = none */
	bool pressure;	     /* a buffer is past its soft bound */
	bool requested;	     /* an operator asks: a reason now, within the budget like any other */
};

struct ft_policy_verdict {
	bool checkpoint;  /* now */
	uint64_t wake_ns; /* else: ask again at this time at the latest (UINT64_MAX: only when
			     something changes) */
};

/* Outputs that wait while a checkpoint is in flight are all released by the next one (coalescing).
 * The budget delays a checkpoint until pauses are within max_overhead: a pause of p is followed by
 * at least p * (1 - o) / o of running. Pressure does not lift the budget by itself: the caller
 * holds the guest instead when a hard bound comes near. */
struct ft_policy_verdict ft_policy_checkpoint(const struct ft_policy *policy,
					      const struct ft_policy_input *in);

struct ft_round {
	uint64_t dirty_pages;	 /* left to send */
	uint64_t bytes;		 /* on the wire, of the last round */
	uint64_t bytes_per_page; /* measured on the wire, 0 = unknown (taken as 4096) */
	uint64_t bytes_per_s;	 /* measured on the wire, 0 = unknown */
	uint64_t disk_bytes_behind;
	unsigned rounds; /* done so far */
};
/* A guest that never converges is switched all the same, with a longer first pause; the log says
 * so. */
#define FT_ROUNDS_MAX 30

/* True when a checkpoint of what is left would fit max_downtime, or FT_ROUNDS_MAX is reached. In
 * sync mode only copying is inside the pause, so the estimate counts copying (1.5 us a page, disk
 * at 1 GiB/s), not shipping. */
bool ft_policy_switch_to_sync(const struct ft_policy *policy, const struct ft_round *round);
/* The same for a guest that moves and stands still until it runs at the other side: everything that
 * is left is copied, sent at bytes_per_s (> 0) and applied meanwhile. No bound of rounds. */
bool ft_policy_switch_to_target(const struct ft_policy *policy, const struct ft_round *round,
				uint64_t bytes_per_s);

#endif
