/* SPDX-License-Identifier: Apache-2.0 */
/* Slowing a guest down from outside, so that it dirties less than the link carries: it stands still
 * for a share of each period. QEMU's own throttle runs only inside a migration of QEMU's own, and a
 * cgroup belongs to whoever made it; stop and cont work everywhere. Pure: time is an argument. */
#ifndef FT_THROTTLE_H
#define FT_THROTTLE_H

#include <stdbool.h>
#include <stdint.h>

#define FT_THROTTLE_PERIOD_MS 100
#define FT_THROTTLE_FIRST     20 /* per cent; what it begins with, ... */
#define FT_THROTTLE_STEP      10 /* ... what is added each time, ... */
#define FT_THROTTLE_MAX	      95 /* ... and where it ends: a guest that stands still is no guest */

/* Zeroed: off. */
struct ft_throttle {
	unsigned percent;
	bool held;	   /* the guest stands still now */
	uint64_t until_ns; /* then the other half of the period begins */
};

void ft_throttle_more(struct ft_throttle *t);
/* Should the guest stand still at this time? Only if it is on. t->until_ns: when to ask again. */
bool ft_throttle_hold(struct ft_throttle *t, uint64_t now_ns);

#endif
