// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/snapshot/urgency.h"

#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WAITED_FOR_NICE (-10)
#define BACKGROUND_NICE 5
/* What it asks for at a time. Whoever wakes up and asks for less, as everybody does who asks for
 * nothing, goes first, also in another group. Kernels before 6.12 look at the nice value only. */
#define BACKGROUND_SLICE_NS 10000000

/* The kernel's struct sched_attr, whose header does not go with the C library's. */
struct attr {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime_ns, deadline_ns, period_ns;
};

static int set(const struct attr *attr)
{
	return (int)syscall(SYS_sched_setattr, 0, attr, 0);
}

void urgency_guest_waits(void)
{
	struct attr first = {
		.size = sizeof first, .policy = SCHED_RR, .priority = URGENCY_PRIORITY};
	struct attr among_ours = {
		.size = sizeof among_ours, .policy = SCHED_OTHER, .nice = WAITED_FOR_NICE};

	if (set(&first))
		(void)set(&among_ours);
}

void urgency_background(void)
{
	struct attr attr = {.size = sizeof attr,
			    .policy = SCHED_OTHER,
			    .nice = BACKGROUND_NICE,
			    .runtime_ns = BACKGROUND_SLICE_NS};

	(void)set(&attr);
}

void urgency_lock_init(pthread_mutex_t *lock)
{
	pthread_mutexattr_t attr;

	pthread_mutexattr_init(&attr);
	pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT);
	pthread_mutex_init(lock, &attr);
	pthread_mutexattr_destroy(&attr);
}
