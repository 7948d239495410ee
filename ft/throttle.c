// SPDX-License-Identifier: Apache-2.0
#include "ft/throttle.h"

#include <assert.h>

#define PERIOD_NS (FT_THROTTLE_PERIOD_MS * UINT64_C(1000000))

void ft_throttle_more(struct ft_throttle *t)
{
	t->percent = t->percent ? t->percent + FT_THROTTLE_STEP : FT_THROTTLE_FIRST;
	if (t->percent > FT_THROTTLE_MAX)
		t->percent = FT_THROTTLE_MAX;
}

bool ft_throttle_hold(struct ft_throttle *t, uint64_t now_ns)
{
	uint64_t held_ns = PERIOD_NS / 100 * t->percent;

	assert(t->percent > 0);
	/* Halves begin when they are noticed: a caller that is late never owes several at once. */
	if (now_ns >= t->until_ns) {
		t->held = !t->held;
		t->until_ns = now_ns + (t->held ? held_ns : PERIOD_NS - held_ns);
	}
	return t->held;
}
