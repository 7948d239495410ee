// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/snapshot/pace.h"

#include <time.h>

#define NS_PER_S 1000000000ull
#define BURST_NS (NS_PER_S / 10) /* what may be caught up after a wait */

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

void pace_init(struct pace *p, uint64_t bytes_per_s)
{
	p->bytes_per_s = bytes_per_s;
	p->next_ns = 0;
	pthread_mutex_init(&p->lock, NULL);
}

void pace_destroy(struct pace *p)
{
	pthread_mutex_destroy(&p->lock);
}

uint64_t pace_next_ns(struct pace *p)
{
	uint64_t next;

	if (!p->bytes_per_s)
		return 0;
	pthread_mutex_lock(&p->lock);
	next = p->next_ns;
	pthread_mutex_unlock(&p->lock);
	return next;
}

void pace_pay(struct pace *p, uint64_t bytes)
{
	uint64_t now;

	if (!p->bytes_per_s)
		return;
	now = now_ns();
	pthread_mutex_lock(&p->lock);
	if (p->next_ns + BURST_NS < now)
		p->next_ns = now - BURST_NS;
	p->next_ns += (uint64_t)((unsigned __int128)bytes * NS_PER_S / p->bytes_per_s);
	pthread_mutex_unlock(&p->lock);
}
