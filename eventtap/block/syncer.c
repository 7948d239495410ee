// SPDX-License-Identifier: Apache-2.0
// An fdatasync may take longer than an epoch and nothing waits for it, so it has a thread of its
// own.
#include "eventtap/block/syncer.h"

#include <signal.h>

static void *syncer_main(void *arg)
{
	struct syncer *y = arg;
	pthread_mutex_lock(&y->lock);
	for (;;) {
		while (!y->wanted && !y->stop)
			pthread_cond_wait(&y->changed, &y->lock);
		if (y->stop)
			break;
		y->wanted = false;
		pthread_mutex_unlock(&y->lock);
		int ret = image_flush(y->image);
		pthread_mutex_lock(&y->lock);
		if (ret < 0 && y->error == 0)
			y->error = ret;
	}
	pthread_mutex_unlock(&y->lock);
	return NULL;
}

void syncer_init(struct syncer *y)
{
	*y = (struct syncer){0};
	pthread_mutex_init(&y->lock, NULL);
	pthread_cond_init(&y->changed, NULL);
}

int syncer_start(struct syncer *y, const struct image *image)
{
	sigset_t all, old;
	y->image = image;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	int ret = pthread_create(&y->thread, NULL, syncer_main, y);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	y->started = ret == 0;
	return -ret;
}

void syncer_want(struct syncer *y)
{
	pthread_mutex_lock(&y->lock);
	y->wanted = true;
	pthread_cond_signal(&y->changed);
	pthread_mutex_unlock(&y->lock);
}

int syncer_error(struct syncer *y)
{
	pthread_mutex_lock(&y->lock);
	int error = y->error;
	pthread_mutex_unlock(&y->lock);
	return error;
}

void syncer_stop(struct syncer *y)
{
	if (!y->started)
		return;
	pthread_mutex_lock(&y->lock);
	y->stop = true;
	pthread_cond_signal(&y->changed);
	pthread_mutex_unlock(&y->lock);
	pthread_join(y->thread, NULL);
	y->started = false;
}

void syncer_free(struct syncer *y)
{
	syncer_stop(y);
	pthread_mutex_destroy(&y->lock);
	pthread_cond_destroy(&y->changed);
}
