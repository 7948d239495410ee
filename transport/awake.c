// SPDX-License-Identifier: Apache-2.0
#include "transport/awake.h"

#include <time.h>

#define PAUSES 16

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void pause_cpu(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

bool awake_begin(struct awake *a)
{
	a->on = a->vain < AWAKE_VAIN_MAX || ++a->passed == AWAKE_EVERY;
	if (!a->on)
		return false;
	a->passed = 0;
	a->until_ns = now_ns() + AWAKE_MAX_US * 1000;
	return true;
}

bool awake_wait(struct awake *a)
{
	for (unsigned i = 0; i < PAUSES; i++)
		pause_cpu();
	return now_ns() < a->until_ns;
}

bool awake_end(struct awake *a, bool came)
{
	if (came)
		a->vain = 0;
	else if (a->on && a->vain < AWAKE_VAIN_MAX)
		a->vain++;
	a->on = false;
	return came;
}
