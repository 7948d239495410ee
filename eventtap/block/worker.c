// SPDX-License-Identifier: Apache-2.0
// An fdatasync may take longer than an epoch, so whoever needs one has a thread for it.
#include "eventtap/block/worker.h"

#include <signal.h>

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	pthread_mutex_lock(&w->lock);
	for (;;) {
		while (!w->wanted && !w->stop)
			pthread_cond_wait(&w->changed, &w->lock);
		if (w->stop)
			break;
		w->wanted = false;
		w->busy = true;
		pthread_mutex_unlock(&w->lock);
		int ret = w->fn(w->ctx);
		pthread_mutex_lock(&w->lock);
		w->busy = false;
		if (ret < 0 && w->error == 0)
			w->error = ret;
	}
	pthread_mutex_unlock(&w->lock);
	return NULL;
}

void worker_init(struct worker *w, worker_fn *fn, void *ctx)
{
	*w = (struct worker){.fn = fn, .ctx = ctx};
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->changed, NULL);
}

int worker_start(struct worker *w)
{
	sigset_t all, old;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	int ret = pthread_create(&w->thread, NULL, worker_main, w);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	w->started = ret == 0;
	return -ret;
}

void worker_want(struct worker *w)
{
	pthread_mutex_lock(&w->lock);
	w->wanted = true;
	pthread_cond_signal(&w->changed);
	pthread_mutex_unlock(&w->lock);
}

bool worker_idle(struct worker *w)
{
	pthread_mutex_lock(&w->lock);
	bool idle = !w->wanted && !w->busy;
	pthread_mutex_unlock(&w->lock);
	return idle;
}

int worker_error(struct worker *w)
{
	pthread_mutex_lock(&w->lock);
	int error = w->error;
	pthread_mutex_unlock(&w->lock);
	return error;
}

void worker_stop(struct worker *w)
{
	if (!w->started)
		return;
	pthread_mutex_lock(&w->lock);
	w->stop = true;
	pthread_cond_signal(&w->changed);
	pthread_mutex_unlock(&w->lock);
	pthread_join(w->thread, NULL);
	w->started = false;
}

void worker_free(struct worker *w)
{
	worker_stop(w);
	pthread_mutex_destroy(&w->lock);
	pthread_cond_destroy(&w->changed);
}
