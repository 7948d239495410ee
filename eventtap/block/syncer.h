/* SPDX-License-Identifier: Apache-2.0 */
/* Makes an image durable behind the engine's back: one fdatasync at a time, on a thread, asked for
 * any number of times. What is asked while one runs is answered by the next. */
#ifndef EVENTTAP_BLOCK_SYNCER_H
#define EVENTTAP_BLOCK_SYNCER_H

#include <pthread.h>
#include <stdbool.h>

#include "eventtap/block/image.h"

struct syncer {
	const struct image *image;
	pthread_t thread;
	bool started;
	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t changed;
	bool wanted, stop;
	int error; /* the first one; 0 or -errno */
};

void syncer_init(struct syncer *y);
/* The image must stay open until syncer_stop(). All signals stay with the other threads. 0 or
 * -errno. */
int syncer_start(struct syncer *y, const struct image *image);
/* Never blocks. */
void syncer_want(struct syncer *y);
/* The first error of any run, 0 = none. */
int syncer_error(struct syncer *y);
/* Waits for a run that is under way; one that is only wanted does not happen. Fine if it was never
 * started. */
void syncer_stop(struct syncer *y);
void syncer_free(struct syncer *y);

#endif
