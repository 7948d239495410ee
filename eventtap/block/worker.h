/* SPDX-License-Identifier: Apache-2.0 */
/* Work for a disk behind the engine's back: one piece at a time, on a thread of its own, asked for
 * any number of times. What is asked for while one runs is done by the next. */
#ifndef EVENTTAP_BLOCK_WORKER_H
#define EVENTTAP_BLOCK_WORKER_H

#include <pthread.h>
#include <stdbool.h>

/* On the thread. 0 or -errno. */
typedef int worker_fn(void *ctx);

struct worker {
	worker_fn *fn;
	void *ctx;
	pthread_t thread;
	bool started;
	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t changed;
	bool wanted, busy, stop;
	int error; /* the first one; 0 or -errno */
};

void worker_init(struct worker *w, worker_fn *fn, void *ctx);
/* All signals stay with the other threads. 0 or -errno. */
int worker_start(struct worker *w);
/* Never blocks. */
void worker_want(struct worker *w);
/* Nothing is wanted or under way. */
bool worker_idle(struct worker *w);
/* The first error of any run, 0 = none. */
int worker_error(struct worker *w);
/* Waits for a run that is under way; one that is only wanted does not happen. Fine if it was never
 * started. */
void worker_stop(struct worker *w);
void worker_free(struct worker *w);

#endif
