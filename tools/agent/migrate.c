// SPDX-License-Identifier: Apache-2.0
/* `ftctl migrate`: which peer, and whether it is to protect the guest or to have it. The engine
 * does both (ft/migrate.c). */
#include <errno.h>
#include <string.h>

#include "tools/agent/agent.h"

/* NULL, or why the guest cannot go anywhere now. */
static const char *busy(const struct agent *a)
{
	return a->keeper_lost ? AGENT_KEEPER_LOST : snapshot_busy(a);
}

static void start(struct agent *a, struct ctl_call *call, const Ctl__Request *request)
{
	struct agent_call *c = requests_later(a, call, CALL_STATUS);
	struct ft_migrate how = {.throttle = request->throttle};
	struct ft_err err = {0};
	int rc;

	if (!c)
		return;
	rc = a->peer.kemari ? ft_engine_protect(a->engine, requests_done, c, &err)
			    : ft_engine_migrate(a->engine, &how, requests_done, c, &err);
	if (rc) {
		c->used = false;
		requests_fail(call, &err);
	}
}

void migrate_request(struct agent *a, struct ctl_call *call, const Ctl__Request *request)
{
	struct ft_err err = {0};
	struct uri before = a->peer;
	bool had = a->has_peer;

	if (ft_engine_state(a->engine) != FT_SOLO) {
		ctl_reply_error(call, CTL_ERR_STATE, "migrate: the guest is %s",
				ft_state_name(ft_engine_state(a->engine)));
		return;
	}
	if (busy(a)) {
		ctl_reply_error(call, a->keeper_lost ? CTL_ERR_STATE : CTL_ERR_BUSY, "migrate: %s",
				busy(a));
		return;
	}
	if (peer_set(a, request->uri, &err)) {
		a->peer = before;
		a->has_peer = had;
		ctl_reply_error(call, CTL_ERR_USAGE, "%s", err.text);
		return;
	}
	start(a, call, request);
}

bool migrate_fill_status(struct agent *a, const struct ft_engine_status *s, Ctl__Migration *out)
{
	(void)a;
	if (!*s->mode || !strcmp(s->mode, "ft"))
		return false;
	out->mode = (char *)(uintptr_t)s->mode;
	out->rounds = s->rounds;
	out->remaining = s->remaining_bytes;
	out->downtime_us = s->downtime_us;
	out->throttle = s->throttle_percent;
	return true;
}
