// SPDX-License-Identifier: Apache-2.0
/* A checkpoint is taken at the later of two times: when there is a reason for it, and when the
 * budget allows it. Both are absolute, so the verdict "not now" always knows when to ask again, and
 * that time is never past. */
#include "ft/policy.h"

#include <assert.h>

#define NS_PER_MS UINT64_C(1000000)
#define NEVER	  UINT64_MAX

/* Estimates of what the first pause copies; measured with a scattered working set (1.05 us a page)
 * and room to spare. */
#define COPY_NS_PER_PAGE      1500.0
#define PAGE_BYTES	      4096
#define COPY_NS_PER_DISK_BYTE (1e9 / (1 << 30))

/* Later than every clock means never. */
static uint64_t add_saturating(uint64_t a, uint64_t b)
{
	return a > NEVER - b ? NEVER : a + b;
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* How long the guest must have run after a pause so that it was paused for at most max_overhead of
 * the time. */
static uint64_t budget_ns(const struct ft_policy *policy, uint64_t pause_ns)
{
	double run = (double)pause_ns * (1.0 - policy->max_overhead) / policy->max_overhead;
	uint64_t whole;

	if (run >= 0x1p63) /* no longer fits; nor does anybody live that long */
		return NEVER;
	whole = (uint64_t)run;
	return whole + ((double)whole < run); /* rounded up, so that the share does not slip over */
}

/* When the next checkpoint has a reason. May be past; NEVER for none. */
static uint64_t reason_ns(const struct ft_policy *policy, const struct ft_policy_input *in)
{
	uint64_t at = NEVER;

	if (in->requested || in->pressure)
		return 0;
	if ((policy->trigger & FT_TRIGGER_OUTPUT) && in->output_ns != 0)
		at = in->output_ns;
	if (policy->trigger & FT_TRIGGER_INTERVAL)
		at = earlier(at, add_saturating(in->resumed_ns, policy->interval_ns));
	else
		at = earlier(at, add_saturating(in->resumed_ns, FT_IDLE_INTERVAL_MS * NS_PER_MS));
	return at;
}

struct ft_policy_verdict ft_policy_checkpoint(const struct ft_policy *policy,
					      const struct ft_policy_input *in)
{
	uint64_t allowed, reason, at;

	assert(policy->max_overhead > 0);
	assert(policy->max_overhead <= 1);
	assert(policy->trigger & FT_TRIGGER_BOTH);
	/* The acknowledgement asks again. */
	if (in->in_flight)
		return (struct ft_policy_verdict){.wake_ns = NEVER};

	allowed = add_saturating(in->resumed_ns, budget_ns(policy, in->pause_ns));
	reason = reason_ns(policy, in);
	at = reason > allowed ? reason : allowed;
	if (at <= in->now_ns)
		return (struct ft_policy_verdict){.checkpoint = true, .wake_ns = in->now_ns};
	return (struct ft_policy_verdict){.wake_ns = at};
}

bool ft_policy_switch_to_sync(const struct ft_policy *policy, const struct ft_round *round)
{
	double copy_ns = (double)round->dirty_pages * COPY_NS_PER_PAGE +
			 (double)round->disk_bytes_behind * COPY_NS_PER_DISK_BYTE;

	return copy_ns <= (double)policy->max_downtime_ns || round->rounds >= FT_ROUNDS_MAX;
}

bool ft_policy_switch_to_target(const struct ft_policy *policy, const struct ft_round *round,
				uint64_t bytes_per_s)
{
	uint64_t per_page = round->bytes_per_page ? round->bytes_per_page : PAGE_BYTES;
	double bytes =
		(double)round->dirty_pages * (double)per_page + (double)round->disk_bytes_behind;
	double ns = (double)round->dirty_pages * 2 * COPY_NS_PER_PAGE +
		    (double)round->disk_bytes_behind * 2 * COPY_NS_PER_DISK_BYTE +
		    bytes * 1e9 / (double)bytes_per_s;

	assert(bytes_per_s > 0);
	return ns <= (double)policy->max_downtime_ns;
}
