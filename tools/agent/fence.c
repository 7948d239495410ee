// SPDX-License-Identifier: Apache-2.0
/* The operator's fence program: PROGRAM GUEST HOST GENERATION, executed without a shell. Exit code
 * 0 says that HOST is surely off, or cut from the guest's storage; anything else, a program that
 * cannot be started and one that takes too long say that nothing is known. What it prints goes to
 * RUN/NAME.fence, anew each time, and its last line into the error. It has a session of its own, so
 * that what it started ends with it; as all that an agent starts it has no capabilities. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ft/log.h"
#include "tools/agent/agent.h"

/* Its wait status, -1 if nobody can tell. It has ended, or is left to init. */
static int reap(struct fence *f)
{
	int status = 0;
	bool known = process_status(&f->process, &status) == 0;

	process_close(&f->process);
	f->process.pid = 0;
	if (f->ended)
		event_free(f->ended);
	f->ended = NULL;
	evtimer_del(f->late);
	return known ? status : -1;
}

static void on_ended(evutil_socket_t fd, short events, void *ctx)
{
	struct agent *a = ctx;
	struct fence *f = &a->fence;
	char what[64] = "its exit code cannot be told", last[128] = "";
	struct ft_err err = {0};
	int status;

	(void)fd, (void)events;
	kill(-f->process.pid, SIGKILL); /* what it left behind; it waits for us to be reaped */
	status = reap(f);
	if (status == 0) {
		ft_info("%s: the fence program says that the old primary is off", a->config.name);
		ft_engine_fenced(a->engine, NULL);
		return;
	}
	if (f->killed)
		snprintf(what, sizeof what, "no end within %u ms, killed",
			 a->config.arbiter.fence_timeout_ms);
	else if (status >= 0)
		snprintf(what, sizeof what,
			 WIFEXITED(status) ? "exit code %d" : "killed by signal %d",
			 WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
	process_last_words(f->log, last, sizeof last);
	ft_err_set(&err, EPERM, "fence program: %s%s%s", what, *last ? ": " : "", last);
	ft_engine_fenced(a->engine, &err);
}

static void on_late(evutil_socket_t fd, short events, void *ctx)
{
	struct agent *a = ctx;
	struct fence *f = &a->fence;

	(void)fd, (void)events;
	if (f->process.pid) {
		f->killed = true;
		kill(-f->process.pid, SIGKILL);
	} else {
		ft_engine_fenced(a->engine, &f->err);
	}
}

static int run(struct agent *a, const char *host, uint64_t generation, struct ft_err *err)
{
	struct fence *f = &a->fence;
	char number[24], guest[CTL_NAME_MAX], name[FT_HOST_ID_MAX];
	char *argv[] = {a->config.arbiter.fence, guest, name, number, NULL};

	snprintf(guest, sizeof guest, "%s", a->config.name);
	snprintf(name, sizeof name, "%s", host);
	snprintf(number, sizeof number, "%" PRIu64, generation);
	unlink(f->log);
	f->killed = false;
	if (process_spawn(&f->process, argv, NULL, 0, f->log, err)) {
		f->process.pid = 0;
		return ft_err_set(err, err->code, "fence program: %s: %s", argv[0],
				  strerror(err->code));
	}
	f->ended = event_new(a->base, f->process.pidfd, EV_READ, on_ended, a);
	if (f->ended && !event_add(f->ended, NULL))
		return 0;
	kill(-f->process.pid, SIGKILL);
	reap(f);
	return ft_err_set(err, ENOMEM, "fence program: out of memory");
}

void fence_start(struct agent *a, const char *host, uint64_t generation)
{
	unsigned ms = a->config.arbiter.fence_timeout_ms;
	struct timeval limit = {.tv_sec = ms / 1000, .tv_usec = (suseconds_t)(ms % 1000 * 1000)};

	ft_warn("%s: fencing host %s: %s", a->config.name, host, a->config.arbiter.fence);
	/* Told from the loop, never from inside. */
	if (run(a, host, generation, &a->fence.err))
		limit = (struct timeval){0};
	evtimer_add(a->fence.late, &limit);
}

int fence_open(struct agent *a, struct ft_err *err)
{
	const char *program = a->config.arbiter.fence;

	if (*program && access(program, X_OK))
		return ft_err_set(err, errno, "arbiter.fence: %s: %s", program, strerror(errno));
	agent_path(a, a->fence.log, ".fence");
	a->fence.late = evtimer_new(a->base, on_late, a);
	return a->fence.late ? 0 : ft_err_set(err, ENOMEM, "event loop: out of memory");
}

void fence_close(struct agent *a)
{
	if (a->fence.process.pid) {
		kill(-a->fence.process.pid, SIGKILL);
		reap(&a->fence);
	}
	if (a->fence.late)
		event_free(a->fence.late);
	a->fence.late = NULL;
}
