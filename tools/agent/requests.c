// SPDX-License-Identifier: Apache-2.0
/* What operators ask over the control socket, turned into calls of the engine; answers may come much later. */
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
	default:
		return CTL_ERR_FAILED;
	}
}

static struct agent_call *call_new(struct agent *a, struct ctl_call *call, bool verify)
{
	for (unsigned i = 0; i < AGENT_CALLS_MAX; i++) {
		if (a->calls[i].used)
			continue;
		a->calls[i] = (struct agent_call){.agent = a, .call = call, .used = true, .verify = verify};
		return &a->calls[i];
	}
	return NULL;
}

static void reply_verdict(struct ctl_call *call, uint64_t digest, uint64_t epoch)
{
	Ctl__Reply reply = CTL__REPLY__INIT;
	Ctl__Verdict verdict = CTL__VERDICT__INIT;

	verdict.epoch = epoch;
	verdict.primary = verdict.standby = digest;
	reply.verdict = &verdict;
	ctl_reply(call, &reply);
}

/* ft_done_fn */
static void on_done(void *ctx, const struct ft_err *err, uint64_t value)
{
	struct agent_call *c = ctx;
	struct ctl_call *call = c->call;
	struct ft_engine_status status;

	c->used = false;
	if (!call)
		return; /* the client did not wait */
	if (err) {
		ctl_reply_error(call, word_of(err->code), "%s", err->text);
	} else if (c->verify) {
		ft_engine_status(c->agent->engine, &status);
		reply_verdict(call, value, status.epoch_committed);
	} else {
		status_reply(c->agent, call);
	}
}

typedef int engine_fn(struct ft_engine *e, ft_done_fn *done, void *ctx, struct ft_err *err);

static void run_later(struct agent *a, struct ctl_call *call, engine_fn *fn)
{
	struct agent_call *c = call_new(a, call, fn == ft_engine_verify);
	struct ft_err err = {0};

	if (!c) {
		ctl_reply_error(call, CTL_ERR_BUSY, "%d requests are under way", AGENT_CALLS_MAX);
		return;
	}
	if (fn(a->engine, on_done, c, &err)) {
		c->used = false;
		ctl_reply_error(call, word_of(err.code), "%s", err.text);
	}
}

static void do_migrate(struct agent *a, struct ctl_call *call, const Ctl__Request *request)
{
	struct ft_err err = {0};
	struct uri before = a->peer;
	bool had = a->has_peer;

	if (ft_engine_state(a->engine) != FT_SOLO) {
		ctl_reply_error(call, CTL_ERR_STATE, "migrate: the guest is %s", ft_state_name(ft_engine_state(a->engine)));
		return;
	}
	if (peer_set(a, request->uri, &err)) {
		a->peer = before;
		a->has_peer = had;
		ctl_reply_error(call, CTL_ERR_USAGE, "%s", err.text);
		return;
	}
	run_later(a, call, ft_engine_protect);
}

static void do_cancel(struct agent *a, struct ctl_call *call)
{
	struct ft_err err = {0};

	if (ft_engine_cancel(a->engine, &err))
		ctl_reply_error(call, word_of(err.code), "%s", err.text);
	else
		status_reply(a, call);
}

static void on_request(void *ctx, struct ctl_call *call, const Ctl__Request *request)
{
	struct agent *a = ctx;
	const char *command = request->command;

	if (!strcmp(command, "status")) {
		status_reply(a, call);
	} else if (!strcmp(command, "migrate")) {
		do_migrate(a, call, request);
	} else if (!strcmp(command, "checkpoint")) {
		run_later(a, call, ft_engine_checkpoint);
	} else if (!strcmp(command, "verify")) {
		run_later(a, call, ft_engine_verify);
	} else if (!strcmp(command, "failover")) {
		run_later(a, call, ft_engine_failover);
	} else if (!strcmp(command, "cancel")) {
		do_cancel(a, call);
	} else if (!strcmp(command, "stop")) {
		status_reply(a, call);
		agent_stop(a, "stopped by an operator");
	} else {
		ctl_reply_error(call, CTL_ERR_USAGE, "%.32s: no such command", command);
	}
}

static void on_cancelled(void *ctx, struct ctl_call *call)
{
	struct agent *a = ctx;

	/* What was asked for goes on; only its answer has no reader. */
	for (unsigned i = 0; i < AGENT_CALLS_MAX; i++)
		if (a->calls[i].used && a->calls[i].call == call)
			a->calls[i].call = NULL;
}

const struct ctl_server_ops agent_ctl_ops = {.request = on_request, .cancelled = on_cancelled};
