/* SPDX-License-Identifier: Apache-2.0 */
/* Locks on ranges of a disk, so that what changes a byte of the image and what takes notice of it
 * (log, bitmap, copier) happen as one. First come, first served: who waits for the whole disk is
 * not starved by writers. The structure itself is guarded by the caller's mutex, which take() gives
 * up while it waits. */
#ifndef EVENTTAP_BLOCK_RANGE_LOCK_H
#define EVENTTAP_BLOCK_RANGE_LOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define RANGE_LOCK_MAX 32 /* holders and waiters: the NBD connections and the engine's thread */

struct range_lock {
	pthread_cond_t changed;
	uint64_t next_ticket;
	struct {
		bool used;
		uint64_t start, end, ticket;
	} ranges[RANGE_LOCK_MAX];
};

void range_lock_init(struct range_lock *rl);
void range_lock_destroy(struct range_lock *rl);
/* [start, end). Returns a number for range_lock_give(), or -ETIMEDOUT. */
int range_lock_take(struct range_lock *rl, pthread_mutex_t *mutex, uint64_t start, uint64_t end,
		    unsigned timeout_ms);
void range_lock_give(struct range_lock *rl, int number);

/* A condition variable on CLOCK_MONOTONIC, and a point in time for it. */
void monotonic_cond_init(pthread_cond_t *cond);
struct timespec monotonic_in_ms(unsigned ms);

#endif
