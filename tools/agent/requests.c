// SPDX-License-Identifier: Apache-2.0
/* What operators ask over the control socket, turned into calls of the engine; answers may come
 * much later. */
#include <errno.h>
#include <string.h>

#include "ft/log.h"
#include "tools/agent/agent.h"

static const char *word_of(int code)
{
	switch (code) {
	case EINVAL:
	case EALREADY:
		return CTL_ERR_STATE;
	case EBUSY:
		return CTL_ERR_BUSY;
	case ETIMEDOUT:
		return CTL_ERR_TIMEOUT;
	case EBADMSG:
		return "mismatch";
	default:
		return CTL_ERR_FAILED;
	}
}

struct agent_call *requests_later(struct agent *a, struct ctl_call *call, enum agent_answer what)
{
	for (unsigned i = 0; i < AGENT_CALLS_MAX; i++) {
		if (a->calls[i].used)
			continue;
		a->calls[i] =
			(struct agent_call){.agent = a, .call = call, .used = true, .what = what};
		return &a->calls[i];
	}
	ctl_reply_error(call, CTL_ERR_BUSY, "%d requests are under way", AGENT_CALLS_MAX);
	return NULL;
}

void requests_fail(struct ctl_call *call, const struct ft_err *err)
{
	ctl_reply_error(call, word_of(err->code), "%s", err->text);
}

void requests_done(void *ctx, const struct ft_err *err, uint64_t value)
{
	struct agent_call *c = ctx;
	struct ctl_call *call = c->call;
	Ctl__Reply reply = CTL__REPLY__INIT;

	c->used = false;
	if (!call)
		return; /* the client did not wait */
	if (err) {
		requests_fail(call, err);
	} else if (c->what == CALL_STATUS) {
		status_reply(c->agent, call);
	} else if (c->what == CALL_SNAPSHOT) {
		Ctl__Snapshot figures = CTL__SNAPSHOT__INIT;

		snapshot_fill_status(c->agent, &figures);
		reply.snapshot = &figures;
		reply.digest = value;
		ctl_reply(call, &reply);
	} else {
		if (c->what == CALL_VERIFY)
			reply.digest = value;
		else
			reply.epoch = value;
		ctl_reply(call, &reply);
	}
}

typedef int engine_fn(struct ft_engine *e, ft_done_fn *done, void *ctx, struct ft_err *err);

static void run_later(struct agent *a, struct ctl_call *call, engine_fn *fn, enum agent_answer what)
{
	struct agent_call *c = requests_later(a, call, what);
	struct ft_err err = {0};

	if (!c)
		return;
	if (fn(a->engine, requests_done, c, &err)) {
		c->used = false;
		requests_fail(call, &err);
	}
}

void requests_answer(struct agent_call **call, const struct ft_err *err)
{
	struct agent_call *c = *call;

	*call = NULL;
	if (c)
		requests_done(c, err,
			      c->what == CALL_SNAPSHOT ? c->agent->snapshot.last.digest : 0);
}

/* Keeps the call for requests_answer(). */
static bool keep(struct agent *a, struct ctl_call *call, struct agent_call **kept, const char *what)
{
	if (*kept) {
		ctl_reply_error(call, CTL_ERR_BUSY, "%s: one is under way", what);
		return false;
	}
	*kept = requests_later(a, call, CALL_STATUS);
	return *kept != NULL;
}

static void do_cancel(struct agent *a, struct ctl_call *call)
{
	struct ft_err err = {0};

	if (!keep(a, call, &a->cancel_call, "cancel"))
		return;
	if (snapshot_give_up(a, "cancelled by an operator"))
		return;
	if (ft_engine_cancel(a->engine, &err))
		requests_answer(&a->cancel_call, &err);
	else
		agent_left(a);
}

static void do_stop(struct agent *a, struct ctl_call *call)
{
	if (keep(a, call, &a->stop_call, "stop"))
		agent_stop(a, "stopped by an operator");
}

static void on_request(void *ctx, struct ctl_call *call, const Ctl__Request *request)
{
	struct agent *a = ctx;
	const char *command = request->command;

	if (!strcmp(command, "status")) {
		status_reply(a, call);
	} else if (!strcmp(command, "migrate")) {
		migrate_request(a, call, request);
	} else if (!strcmp(command, "checkpoint")) {
		run_later(a, call, ft_engine_checkpoint, CALL_EPOCH);
	} else if (!strcmp(command, "verify")) {
		run_later(a, call, ft_engine_verify, CALL_VERIFY);
	} else if (!strcmp(command, "failover")) {
		run_later(a, call, ft_engine_failover, CALL_STATUS);
	} else if (!strcmp(command, "failback")) {
		run_later(a, call, ft_engine_failback, CALL_STATUS);
	} else if (!strcmp(command, "snapshot")) {
		snapshot_request(a, call, request);
	} else if (!strcmp(command, "bitmap") || !strcmp(command, "backup")) {
		bitmap_request(a, call, request);
	} else if (!strcmp(command, "history")) {
		history_request(a, call);
	} else if (!strcmp(command, "cancel")) {
		do_cancel(a, call);
	} else if (!strcmp(command, "stop")) {
		do_stop(a, call);
	} else {
		ctl_reply_error(call, CTL_ERR_USAGE, "%.32s: no such command", command);
	}
}

static void on_cancelled(void *ctx, struct ctl_call *call)
{
	struct agent *a = ctx;

	/* What was asked for goes on, and only its answer has no reader; but a snapshot is its
	 * command's, so that an operator can interrupt it. */
	if (a->snapshot.call && a->snapshot.call->call == call)
		(void)snapshot_give_up(a, "interrupted");
	for (unsigned i = 0; i < AGENT_CALLS_MAX; i++)
		if (a->calls[i].used && a->calls[i].call == call)
			a->calls[i].call = NULL;
}

const struct ctl_server_ops agent_ctl_ops = {.request = on_request, .cancelled = on_cancelled};
