// SPDX-License-Identifier: Apache-2.0
/* Asking agents, and waiting. All waits of a drill end in drill_wait(): it notices an interrupt, an
 * agent that died, a client that gave up. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "tools/ctl/ctl.h"
#include "tools/drill/scene.h"

#define STATUS_MS 500

/* ---- one status ---- */

static void copy_seen(struct seen *seen, const Ctl__Status *s)
{
	seen->answered = true;
	snprintf(seen->state, sizeof seen->state, "%s", s->state);
	snprintf(seen->role, sizeof seen->role, "%s", s->role);
	snprintf(seen->reason, sizeof seen->reason, "%s", s->reason);
	snprintf(seen->last_error, sizeof seen->last_error, "%s", s->last_error);
	seen->committed = s->epoch_committed;
	seen->checkpoints = s->checkpoints;
	seen->pause_p50_us = s->pause_us ? s->pause_us->p50 : 0;
	seen->commit_p50_us = s->commit_us ? s->commit_us->p50 : 0;
	seen->vmm_pid = s->vmm ? (pid_t)s->vmm->pid : 0;
	seen->deciding = s->deciding;
	snprintf(seen->arbiter, sizeof seen->arbiter, "%s", s->arbiter ? s->arbiter->state : "");
}

bool ask_seen(struct drill *d, unsigned which, struct seen *seen)
{
	Ctl__Request request = CTL__REQUEST__INIT;
	const struct host *h = &d->hosts[which];
	Ctl__Reply *reply = NULL;
	struct ft_err ignored;

	*seen = (struct seen){0};
	if (h->frozen || !host_agent_alive(h))
		return false;
	request.command = (char *)"status";
	if (ctl_ask(h->run_dir, DRILL_GUEST, &request, STATUS_MS, &reply, &ignored))
		return false;
	if (reply->status)
		copy_seen(seen, reply->status);
	ctl__reply__free_unpacked(reply, NULL);
	return seen->answered;
}

/* For the picture: when checkpoints were committed. */
static void sample(struct drill *d)
{
	uint64_t now = drill_now_ns();
	struct seen seen;

	if (!d->round || now - d->sampled_ns < DRILL_TICK_MS * 1000000ull / 2)
		return;
	d->sampled_ns = now;
	for (unsigned i = 0; i < 2; i++) {
		struct round *r = d->round;

		if (!ask_seen(d, i, &seen))
			continue;
		if (!strcmp(seen.role, "primary") && seen.checkpoints > d->now[i].checkpoints &&
		    r->marks_n < DRILL_MARKS_MAX)
			r->marks[r->marks_n++] = (struct mark){drill_now_ns(), i};
		if (r->strike_ns && !r->takeover_ns && i != r->old_primary &&
		    strcmp(seen.state, "standby") != 0)
			r->takeover_ns = drill_now_ns();
		d->now[i] = seen;
	}
}

/* ---- waiting ---- */

static int look(struct drill *d, struct ft_err *err)
{
	struct signalfd_siginfo info;
	struct client_counts counts;
	char words[256];

	if (read(d->signal_fd, &info, sizeof info) == sizeof info)
		return ft_err_set(err, EINTR, "interrupted");
	for (unsigned i = 0; i < 2; i++) {
		if (!d->must_live[i] || host_agent_alive(&d->hosts[i]))
			continue;
		host_last_words(&d->hosts[i], words, sizeof words);
		return ft_err_set(err, ECHILD, "the agent on %s died: %s", d->hosts[i].id, words);
	}
	if (d->client) {
		client_counts(d->client, &counts);
		if (counts.lost)
			return ft_err_set(err, EPIPE, "client: %s", counts.why);
		if (counts.wrong)
			return ft_err_set(err, EILSEQ, "client: wrong answer: %s", counts.why);
	}
	return 0;
}

int drill_wait(struct drill *d, bool (*done)(struct drill *d, void *ctx), void *ctx, int timeout_ms,
	       const char *what, struct ft_err *err)
{
	uint64_t deadline = drill_now_ns() + (uint64_t)timeout_ms * 1000000;
	int rc;

	while (!(rc = look(d, err))) {
		struct pollfd p[2] = {
			{.fd = d->signal_fd, .events = POLLIN},
			{.fd = d->client ? client_event(d->client) : -1, .events = POLLIN}};
		uint64_t n;

		sample(d);
		if (done(d, ctx))
			return 0;
		if (drill_now_ns() > deadline)
			return ft_err_set(err, ETIMEDOUT, "%s: not within %d s", what,
					  timeout_ms / 1000);
		if (poll(p, 2, DRILL_TICK_MS) > 0 && p[1].revents)
			(void)!read(p[1].fd, &n, sizeof n);
	}
	return rc;
}

struct wanted_state {
	unsigned which;
	const char *state;
	bool failed;
	struct seen seen;
};

static bool state_reached(struct drill *d, void *ctx)
{
	struct wanted_state *w = ctx;
	struct seen seen;

	if (!ask_seen(d, w->which, &seen))
		return false;
	w->seen = seen;
	w->failed = !strcmp(seen.state, "failed");
	return w->failed || !strcmp(seen.state, w->state);
}

int wait_state(struct drill *d, unsigned which, const char *state, int timeout_ms,
	       struct ft_err *err)
{
	struct wanted_state w = {.which = which, .state = state};
	char what[64];
	int rc;

	snprintf(what, sizeof what, "%s: %s", d->hosts[which].id, state);
	rc = drill_wait(d, state_reached, &w, timeout_ms, what, err);
	if (rc == -ETIMEDOUT && w.seen.answered)
		return ft_err_set(err, ETIMEDOUT, "%s: is %s (%s), not %s, after %d s",
				  d->hosts[which].id, w.seen.state, w.seen.reason, state,
				  timeout_ms / 1000);
	if (!rc && w.failed)
		return ft_err_set(err, EIO, "%s: failed: %s", d->hosts[which].id, w.seen.reason);
	return rc;
}

int wait_fenced(struct drill *d, unsigned which, struct ft_err *err)
{
	struct seen seen;
	int rc = wait_state(d, which, "fenced", DRILL_TAKEOVER_MS, err);

	if (!rc && ask_seen(d, which, &seen))
		say(d, "%s is fenced: %s", d->hosts[which].id, seen.reason);
	return rc;
}

uint64_t answers(struct drill *d)
{
	struct client_counts counts;

	client_counts(d->client, &counts);
	return counts.answers;
}

static bool answers_reached(struct drill *d, void *ctx)
{
	return answers(d) >= *(uint64_t *)ctx;
}

int wait_answers(struct drill *d, uint64_t since, unsigned n, int timeout_ms, struct ft_err *err)
{
	uint64_t wanted = since + n;
	char what[64];

	snprintf(what, sizeof what, "%u answers of the guest", n);
	return drill_wait(d, answers_reached, &wanted, timeout_ms, what, err);
}

/* ---- requests that take long ---- */

struct question {
	char run_dir[HOST_PATH_MAX];
	Ctl__Request request;
	int timeout_ms, rc;
	Ctl__Reply *reply;
	struct ft_err err;
	atomic_bool done;
};

static void *question_run(void *ctx)
{
	struct question *q = ctx;

	q->rc = ctl_ask(q->run_dir, DRILL_GUEST, &q->request, q->timeout_ms, &q->reply, &q->err);
	atomic_store(&q->done, true);
	return NULL;
}

static bool question_done(struct drill *d, void *ctx)
{
	struct question *q = ctx;

	(void)d;
	return atomic_load(&q->done);
}

int ask_agent(struct drill *d, unsigned which, const char *command, const char *uri, int timeout_ms,
	      Ctl__Reply **reply, struct ft_err *err)
{
	struct question q = {.request = CTL__REQUEST__INIT, .timeout_ms = timeout_ms};
	pthread_t thread;
	int rc;

	snprintf(q.run_dir, sizeof q.run_dir, "%s", d->hosts[which].run_dir);
	q.request.command = (char *)(uintptr_t)command;
	q.request.uri = (char *)(uintptr_t)(uri ? uri : "");
	if (pthread_create(&thread, NULL, question_run, &q))
		return ft_err_set(err, EAGAIN, "%s: cannot start a thread", command);
	rc = drill_wait(d, question_done, &q, timeout_ms + 1000, command, err);
	if (rc)
		host_kill(&d->hosts[which]); /* so that the answer does not come late, but never */
	pthread_join(thread, NULL);
	if (!rc && q.rc)
		rc = ft_err_set(err, -q.rc, "%s: %s: %s", d->hosts[which].id, command, q.err.text);
	if (!rc && q.reply->error[0])
		rc = ft_err_set(err, EIO, "%s: %s: %s", d->hosts[which].id, command,
				q.reply->message);
	if (!rc && reply)
		*reply = q.reply;
	else if (q.reply)
		ctl__reply__free_unpacked(q.reply, NULL);
	return rc;
}
