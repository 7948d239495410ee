// SPDX-License-Identifier: Apache-2.0
/* Arbiter over a folder that both hosts mount (transport/grant_file.c), with a deadline. The folder
 * of a dead file server does not fail, it hangs, and nothing but a thread can be left hanging
 * there. So each request runs in a thread of its own, and the caller waits for the deadline and no
 * longer. A request that comes late may still change the record: that is what "nothing is known"
 * means. */
#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ft/arbiter.h"
#include "transport/grant_file.h"

/* One request, from its start to its answer. Belongs to the arbiter; to its thread once it is
 * orphaned. */
struct request {
	char dir[PATH_MAX];
	char guest[GRANT_FILE_GUEST_MAX];
	bool is_swap;
	uint64_t expected;
	struct ft_grant_record want;

	pthread_t thread;
	pthread_mutex_t lock; /* guards the two flags */
	pthread_cond_t ended;
	bool done, orphaned;

	/* The thread's until done, then the caller's. */
	enum ft_arbiter_answer answer;
	struct ft_grant_record now;
	struct ft_err why;
};

struct arbiter_file {
	struct ft_arbiter base;
	char dir[PATH_MAX];
	char guest[GRANT_FILE_GUEST_MAX];
	struct request *late; /* missed its deadline; perhaps it still hangs */
};

static void request_free(struct request *rq)
{
	pthread_cond_destroy(&rq->ended);
	pthread_mutex_destroy(&rq->lock);
	free(rq);
}

static void *request_thread(void *ctx)
{
	struct request *rq = ctx;
	bool orphaned;
	sigset_t all;

	/* The process's signals are for its main thread. */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	rq->answer = rq->is_swap ? grant_file_swap(rq->dir, rq->guest, rq->expected, &rq->want,
						   &rq->now, &rq->why)
				 : grant_file_read(rq->dir, rq->guest, &rq->now, &rq->why);
	pthread_mutex_lock(&rq->lock);
	rq->done = true;
	orphaned = rq->orphaned;
	pthread_cond_signal(&rq->ended);
	pthread_mutex_unlock(&rq->lock);
	if (orphaned)
		request_free(rq);
	return NULL;
}

static struct request *request_new(const struct arbiter_file *file)
{
	struct request *rq = calloc(1, sizeof *rq);
	pthread_condattr_t attr;

	if (!rq)
		return NULL;
	memcpy(rq->dir, file->dir, sizeof rq->dir);
	memcpy(rq->guest, file->guest, sizeof rq->guest);
	pthread_mutex_init(&rq->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&rq->ended, &attr);
	pthread_condattr_destroy(&attr);
	return rq;
}

/* True when it ended within wait_ms. */
static bool request_wait(struct request *rq, unsigned wait_ms)
{
	struct timespec until;
	bool done;
	int rc = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += (long)(wait_ms % 1000) * 1000000;
	until.tv_sec += wait_ms / 1000 + until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	pthread_mutex_lock(&rq->lock);
	while (!rq->done && rc == 0)
		rc = pthread_cond_timedwait(&rq->ended, &rq->lock, &until);
	done = rq->done;
	pthread_mutex_unlock(&rq->lock);
	return done;
}

static void request_reap(struct request *rq)
{
	pthread_join(rq->thread, NULL);
	request_free(rq);
}

static void unreachable(ft_arbiter_fn *fn, void *ctx, const char *why)
{
	struct ft_grant_record nothing = {0};

	fn(ctx, FT_ARBITER_UNREACHABLE, &nothing, why);
}

/* Runs rq (which may be NULL: out of memory) and answers. */
static void request_run(struct arbiter_file *file, struct request *rq, ft_arbiter_fn *fn, void *ctx)
{
	enum ft_arbiter_answer answer;
	struct ft_grant_record now;
	const char *failed = NULL;
	struct ft_err why;

	if (!rq) {
		unreachable(fn, ctx, "arbiter file: out of memory");
		return;
	}
	/* One that hangs is enough: until it ends nothing is known, and no thread joins it. */
	if (file->late && request_wait(file->late, 0)) {
		request_reap(file->late);
		file->late = NULL;
	}
	if (file->late)
		failed = "arbiter file: the folder hangs: an earlier request has not ended";
	else if (pthread_create(&rq->thread, NULL, request_thread, rq))
		failed = "arbiter file: cannot start a thread";
	if (failed) {
		request_free(rq);
		unreachable(fn, ctx, failed);
		return;
	}
	if (!request_wait(rq, FT_ARBITER_DEADLINE_MS)) {
		file->late = rq;
		unreachable(fn, ctx,
			    "arbiter file: the folder hangs: no answer within the deadline");
		return;
	}
	answer = rq->answer;
	now = rq->now;
	why = rq->why;
	request_reap(rq);
	if (answer == FT_ARBITER_UNREACHABLE)
		unreachable(fn, ctx, why.text);
	else
		fn(ctx, answer, &now, answer == FT_ARBITER_GRANTED ? "" : why.text);
}

static void file_read_op(struct ft_arbiter *a, ft_arbiter_fn *fn, void *ctx)
{
	struct arbiter_file *file = (struct arbiter_file *)a;

	request_run(file, request_new(file), fn, ctx);
}

static void file_swap_op(struct ft_arbiter *a, uint64_t expected_generation,
			 const struct ft_grant_record *want, ft_arbiter_fn *fn, void *ctx)
{
	struct arbiter_file *file = (struct arbiter_file *)a;
	struct request *rq = request_new(file);

	assert(want->generation > 0);
	assert(want->generation >= expected_generation);
	assert(want->generation - expected_generation <= 1);
	if (rq) {
		rq->is_swap = true;
		rq->expected = expected_generation;
		rq->want = *want;
	}
	request_run(file, rq, fn, ctx);
}

static void file_free_op(struct ft_arbiter *a)
{
	struct arbiter_file *file = (struct arbiter_file *)a;
	struct request *late = file->late;
	bool done = true;

	if (late) {
		/* A thread that hangs in the kernel cannot be ended; it frees its request if it
		 * ever returns. */
		pthread_mutex_lock(&late->lock);
		done = late->done;
		late->orphaned = !done;
		if (!done)
			pthread_detach(late->thread);
		pthread_mutex_unlock(&late->lock);
		if (done)
			request_reap(late);
	}
	free(file);
}

static const struct ft_arbiter_ops file_ops = {
	.type = "file",
	.read = file_read_op,
	.swap = file_swap_op,
	.free = file_free_op,
};

struct ft_arbiter *ft_arbiter_file_new(const char *dir, const char *guest, struct ft_err *err)
{
	struct arbiter_file *file;

	/* Hidden names are the temporaries'. */
	if (guest[0] == '\0' || guest[0] == '.' || strchr(guest, '/')) {
		ft_err_set(err, EINVAL, "arbiter file: guest name \"%s\": cannot be a file's name",
			   guest);
		return NULL;
	}
	if (strlen(guest) >= GRANT_FILE_GUEST_MAX || strlen(dir) >= PATH_MAX) {
		ft_err_set(err, ENAMETOOLONG, "arbiter file: %.64s of guest %.64s: name too long",
			   dir, guest);
		return NULL;
	}
	file = calloc(1, sizeof *file);
	if (!file) {
		ft_err_set(err, ENOMEM, "arbiter file: out of memory");
		return NULL;
	}
	file->base.ops = &file_ops;
	snprintf(file->dir, sizeof file->dir, "%s", dir);
	snprintf(file->guest, sizeof file->guest, "%s", guest);
	return &file->base;
}
