/* SPDX-License-Identifier: Apache-2.0 */
/* Deadlines are points of CLOCK_MONOTONIC in nanoseconds. */
#ifndef VMM_GLUE_QEMU_CLOCK_H
#define VMM_GLUE_QEMU_CLOCK_H

#include <limits.h>
#include <stdint.h>
#include <time.h>

static inline uint64_t qemu_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

static inline uint64_t qemu_deadline_ns(unsigned ms)
{
	return qemu_now_ns() + ms * 1000000ull;
}

/* For poll(): rounded up, 0 when the deadline has passed. */
static inline int qemu_ms_left(uint64_t deadline_ns)
{
	uint64_t now = qemu_now_ns(),
		 left = deadline_ns > now ? (deadline_ns - now + 999999) / 1000000 : 0;

	return left > INT_MAX ? INT_MAX : (int)left;
}

#endif
