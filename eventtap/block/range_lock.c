// SPDX-License-Identifier: Apache-2.0
// A table is enough: there are few threads, each with one range.
#include "eventtap/block/range_lock.h"

#include <assert.h>
#include <errno.h>
#include <time.h>

void monotonic_cond_init(pthread_cond_t *cond)
{
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(cond, &attr);
	pthread_condattr_destroy(&attr);
}

struct timespec monotonic_in_ms(unsigned ms)
{
	struct timespec at;
	clock_gettime(CLOCK_MONOTONIC, &at);
	at.tv_sec += ms / 1000;
	at.tv_nsec += (long)(ms % 1000) * 1000000;
	if (at.tv_nsec >= 1000000000) {
		at.tv_sec++;
		at.tv_nsec -= 1000000000;
	}
	return at;
}

void range_lock_init(struct range_lock *rl)
{
	*rl = (struct range_lock){0};
	monotonic_cond_init(&rl->changed);
}

void range_lock_destroy(struct range_lock *rl)
{
	pthread_cond_destroy(&rl->changed);
}

// Somebody who came earlier has or wants a part of it.
static bool must_wait(const struct range_lock *rl, int me)
{
	for (int i = 0; i < RANGE_LOCK_MAX; i++)
		if (rl->ranges[i].used && rl->ranges[i].ticket < rl->ranges[me].ticket &&
		    rl->ranges[i].start < rl->ranges[me].end &&
		    rl->ranges[me].start < rl->ranges[i].end)
			return true;
	return false;
}

int range_lock_take(struct range_lock *rl, pthread_mutex_t *mutex, uint64_t start, uint64_t end,
		    unsigned timeout_ms)
{
	assert(start < end);
	int me = 0;
	while (me < RANGE_LOCK_MAX && rl->ranges[me].used)
		me++;
	assert(me < RANGE_LOCK_MAX);
	rl->ranges[me].used = true;
	rl->ranges[me].start = start;
	rl->ranges[me].end = end;
	rl->ranges[me].ticket = rl->next_ticket++;
	if (!must_wait(rl, me))
		return me;
	struct timespec deadline = monotonic_in_ms(timeout_ms);
	while (must_wait(rl, me)) {
		if (pthread_cond_timedwait(&rl->changed, mutex, &deadline) == ETIMEDOUT &&
		    must_wait(rl, me)) {
			range_lock_give(rl, me);
			return -ETIMEDOUT;
		}
	}
	return me;
}

void range_lock_give(struct range_lock *rl, int number)
{
	assert(rl->ranges[number].used);
	rl->ranges[number].used = false;
	pthread_cond_broadcast(&rl->changed);
}
