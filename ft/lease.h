/* SPDX-License-Identifier: Apache-2.0 */
/* The lease under which a protected guest's primary writes to a *shared* disk. What the arbiter
 * cannot prevent is a write that a frozen primary was about to make, and makes when it wakes up,
 * after the standby took over. So it writes only while its lease lasts, and the standby touches the
 * disk only when the lease that it granted last is surely over. Outputs to the network need none:
 * late ones are repetitions.
 *
 *   primary                                                     standby
 *     s  BEAT sent_ns = s  ------------------------------------>  r >= s    notes s and r
 *        until s + L  <-------------------------- BEAT echo_ns = s, lease_ms = L
 *        may begin to write until s + L
 *                                                                 may touch from r + wait(L) on
 *
 * Each side reads its own clock only; none of them needs to be right, they only need to go about
 * equally fast. Both count suspended time (CLOCK_BOOTTIME). Margins:
 *   - the answer counts from the moment at which the primary *sent* the beat, the standby's wait
 *     from when it *received* it, which is later, whatever the network does to either;
 *   - a write that may begin has FT_WRITE_MAX_MS to reach the storage. Shared images are written
 *     through, so that a finished write is not in a cache of the host; an agent that freezes
 *     between looking at its lease and the write is killed by its keeper FT_WRITE_FREEZE_MS after
 *     the lease was over; the rest is for the keeper to be scheduled, and for the storage;
 *   - clocks may go wrong by FT_LEASE_DRIFT_PPM each, the primary's slow, the standby's fast:
 *
 *        wait(L) = (L + FT_WRITE_MAX_MS) * (10^6 + drift) / (10^6 - drift)
 *
 * What remains: a *host* that freezes as a whole between looking at its lease and the write (a
 * paused virtual machine, a stalled kernel) and wakes up later, and a write that the host's kernel
 * or the fabric holds back for longer than FT_WRITE_MAX_MS. Only fencing at the storage or the
 * power switch ends these (arbiter.fence). */
#ifndef FT_LEASE_H
#define FT_LEASE_H

#include <stdint.h>

#define FT_WRITE_FREEZE_MS 200
#define FT_WRITE_MAX_MS	   500
#define FT_LEASE_DRIFT_PPM 500
/* No side believes in more than this. */
#define FT_LEASE_MAX_MS 60000
_Static_assert(2 * FT_WRITE_FREEZE_MS < FT_WRITE_MAX_MS,
	       "the keeper, and then the kernel, need time");

/* The primary's. Zeroed: none. */
struct ft_lease {
	uint64_t until_ns;
};
/* The peer has answered the beat that was sent at sent_ns and grants lease_ms. Never shortens. */
void ft_lease_renew(struct ft_lease *l, uint64_t sent_ns, unsigned lease_ms);
/* For how long a write may still begin; 0: not now. */
uint64_t ft_lease_left(const struct ft_lease *l, uint64_t now_ns);

/* The standby's. Zeroed: nothing was granted. */
struct ft_grant {
	uint64_t echo_ns; /* the newest beat: goes into the next answer, 0 = none */
	uint64_t over_ns; /* when all that was granted is surely over */
};
/* A beat was received at now_ns and will be answered with lease_ms. */
void ft_grant_beat(struct ft_grant *g, uint64_t now_ns, uint64_t sent_ns, unsigned lease_ms);

#endif
