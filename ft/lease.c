// SPDX-License-Identifier: Apache-2.0
/* Arithmetic only; the reasons are in the header. Rounded so that the standby waits longer. */
#include "ft/lease.h"

#define NS_PER_MS UINT64_C(1000000)
#define MILLION	  UINT64_C(1000000)

static uint64_t bounded_ns(unsigned lease_ms)
{
	return (lease_ms < FT_LEASE_MAX_MS ? lease_ms : FT_LEASE_MAX_MS) * NS_PER_MS;
}

void ft_lease_renew(struct ft_lease *l, uint64_t sent_ns, unsigned lease_ms)
{
	uint64_t until = sent_ns + bounded_ns(lease_ms);

	if (until > l->until_ns)
		l->until_ns = until;
}

uint64_t ft_lease_left(const struct ft_lease *l, uint64_t now_ns)
{
	return l->until_ns > now_ns ? l->until_ns - now_ns : 0;
}

void ft_grant_beat(struct ft_grant *g, uint64_t now_ns, uint64_t sent_ns, unsigned lease_ms)
{
	uint64_t wait = bounded_ns(lease_ms) + FT_WRITE_MAX_MS * NS_PER_MS;
	uint64_t slow = MILLION - FT_LEASE_DRIFT_PPM, fast = MILLION + FT_LEASE_DRIFT_PPM;
	uint64_t over = now_ns + (wait * fast + slow - 1) / slow;

	g->echo_ns = sent_ns;
	if (over > g->over_ns)
		g->over_ns = over;
}
