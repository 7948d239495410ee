/* SPDX-License-Identifier: Apache-2.0 */
/* The operator's limit on what a snapshot writes, one for all its threads. What is written because
 * the guest waits for it counts, but does not wait. Any thread. */
#ifndef VMM_GLUE_SNAPSHOT_PACE_H
#define VMM_GLUE_SNAPSHOT_PACE_H

#include <pthread.h>
#include <stdint.h>

struct pace {
	uint64_t bytes_per_s; /* 0: no limit */
	pthread_mutex_t lock; /* guards what follows */
	uint64_t next_ns;     /* CLOCK_MONOTONIC: not before */
};

void pace_init(struct pace *p, uint64_t bytes_per_s);
void pace_destroy(struct pace *p);
/* When the next write may begin, on CLOCK_MONOTONIC; 0: at any time. */
uint64_t pace_next_ns(struct pace *p);
void pace_pay(struct pace *p, uint64_t bytes);

#endif
