/* SPDX-License-Identifier: Apache-2.0 */
/* Threads of postcopy: no signals, and the background gives way to those for whom a guest waits. */
#ifndef VMM_GLUE_POSTCOPY_THREAD_H
#define VMM_GLUE_POSTCOPY_THREAD_H

#include <pthread.h>

/* 0 or -errno. */
int thread_start(pthread_t *thread, void *(*main)(void *), void *ctx);
/* Of the calling thread, for good. */
void thread_in_background(void);

#endif
