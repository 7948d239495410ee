// SPDX-License-Identifier: Apache-2.0
/* Times come from several places of the caller's loop, so one may be a little older than what was
 * noted already: that is no time elapsed, not nearly 2^64 ns. */
#include "ft/detector.h"

#include <assert.h>

#define NS_PER_MS UINT64_C(1000000)

static uint64_t elapsed(uint64_t now_ns, uint64_t since_ns)
{
	return now_ns > since_ns ? now_ns - since_ns : 0;
}

void ft_detector_start(struct ft_detector *d, uint64_t now_ns, unsigned heartbeat_ms,
		       unsigned silence_ms)
{
	assert(heartbeat_ms > 0);
	assert(silence_ms > 0);
	*d = (struct ft_detector){
		.heartbeat_ns = heartbeat_ms * NS_PER_MS,
		.silence_ns = silence_ms * NS_PER_MS,
		.heard_ns = now_ns,
		.sent_ns = now_ns,
		.checked_ns = now_ns,
	};
}

void ft_detector_heard(struct ft_detector *d, uint64_t now_ns)
{
	if (now_ns > d->heard_ns)
		d->heard_ns = now_ns;
}

void ft_detector_beat(struct ft_detector *d, uint64_t now_ns, uint64_t patience_ns)
{
	ft_detector_heard(d, now_ns);
	d->patient_ns = patience_ns ? now_ns + patience_ns : 0;
}

bool ft_detector_due(struct ft_detector *d, uint64_t now_ns)
{
	if (elapsed(now_ns, d->sent_ns) < d->heartbeat_ns)
		return false;
	d->sent_ns = now_ns;
	return true;
}

bool ft_detector_suspect(struct ft_detector *d, uint64_t now_ns)
{
	uint64_t gap = elapsed(now_ns, d->checked_ns);

	if (now_ns > d->checked_ns)
		d->checked_ns = now_ns;
	if (gap > d->silence_ns / 2)
		ft_detector_heard(d, now_ns);
	return now_ns >= d->patient_ns && elapsed(now_ns, d->heard_ns) >= d->silence_ns;
}

uint64_t ft_detector_wake(const struct ft_detector *d)
{
	uint64_t beat = d->sent_ns + d->heartbeat_ns;
	uint64_t end = d->heard_ns + d->silence_ns;
	/* Half of the gap that counts as sleep: being a little late must not look like having been
	 * frozen. */
	uint64_t wake = d->checked_ns + d->silence_ns / 4;

	if (beat < wake)
		wake = beat;
	/* Once the silence is over nothing new will come of looking at once again. */
	if (end < wake && end > d->checked_ns)
		wake = end;
	return wake;
}
