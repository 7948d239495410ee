/* SPDX-License-Identifier: Apache-2.0 */
/* Which threads of a snapshot's come first. A nice value says little: where the kernel groups
 * threads by session or by unit, as it does by default, it counts among the threads of one process
 * only, while the guest's are in another. */
#ifndef VMM_GLUE_SNAPSHOT_URGENCY_H
#define VMM_GLUE_SNAPSHOT_URGENCY_H

#include <pthread.h>

#define URGENCY_PRIORITY 1 /* of real time: what RLIMIT_RTPRIO has to allow */

/* The calling thread is one whom the guest waits for: before everything that is not real time,
 * whoever runs; without the right to that, before its own process's threads; else as before. It
 * must never run for long. */
void urgency_guest_waits(void);
/* The calling thread gives way. */
void urgency_background(void);
/* A lock whose holder runs as soon as the most urgent who waits for it would. */
void urgency_lock_init(pthread_mutex_t *lock);

#endif
