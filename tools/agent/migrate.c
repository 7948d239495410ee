// SPDX-License-Identifier: Apache-2.0
/* `ftctl migrate`: which peer, and whether it is to protect the guest or to have it. The engine
 * does both (ft/migrate.c). */
#include <errno.h>
#include <string.h>

#include "eventtap/block/disk_tap.h"
#include "tools/agent/agent.h"

/* NULL, or why the guest cannot go anywhere now. */
static const char *busy(const struct agent *a)
{
	return a->keeper_lost ? AGENT_KEEPER_LOST : snapshot_busy(a);
}

/* Of a guest that is only to be protected it goes on. */
static bool backup_on(const struct agent *a)
{
	for (unsigned i = 0; i < VMM_DISKS_MAX; i++)
		if (a->disk_taps[i] && disk_tap_backup_on(a->disk_taps[i]))
			return true;
	return false;
}

/* A guest that is slowed down, or in the last moments before the switch, stands still by our word:
 * an agent that is started after this one died has to know (guest.c). */
static void note_moving(const struct agent *a, bool on)
{
	memory_note_moving(a->run_dir, a->config.name, on);
}

static void moved(void *ctx, const struct ft_err *err, uint64_t value)
{
	struct agent_call *c = ctx;

	note_moving(c->agent, false);
	requests_done(c, err, value);
}

static void start(struct agent *a, struct ctl_call *call, const Ctl__Request *request)
{
	struct agent_call *c = requests_later(a, call, CALL_STATUS);
	struct ft_migrate how = {.throttle = request->throttle,
				 .postcopy = request->postcopy,
				 .demand_only = request->demand_only,
				 .rounds = request->rounds};
	struct ft_err err = {0};
	int rc;

	if (!c)
		return;
	increment_forget(a);
	rc = a->peer.kemari ? ft_engine_protect(a->engine, requests_done, c, &err)
			    : ft_engine_migrate(a->engine, &how, moved, c, &err);
	if (rc) {
		c->used = false;
		requests_fail(call, &err);
	} else if (!a->peer.kemari) {
		note_moving(a, true); /* long before it may stand still */
	}
}

/* The memory of a guest that runs elsewhere goes on. With a URI: by another way. */
static void recover(struct agent *a, struct ctl_call *call, const Ctl__Request *request)
{
	struct uri before = a->peer;
	struct agent_call *c;
	struct ft_err err = {0};

	if (request->uri[0] && peer_set(a, request->uri, &err)) {
		a->peer = before;
		ctl_reply_error(call, CTL_ERR_USAGE, "%s", err.text);
		return;
	}
	c = requests_later(a, call, CALL_STATUS);
	if (!c)
		return;
	if (ft_engine_recover(a->engine, request->demand_only, requests_done, c, &err)) {
		c->used = false;
		requests_fail(call, &err);
	}
}

void migrate_request(struct agent *a, struct ctl_call *call, const Ctl__Request *request)
{
	struct ft_err err = {0};
	struct uri before = a->peer;
	bool had = a->has_peer;

	if (request->recover) {
		recover(a, call, request);
		return;
	}
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
	if (!a->peer.kemari && backup_on(a)) {
		a->peer = before;
		a->has_peer = had;
		ctl_reply_error(call, CTL_ERR_BUSY,
				"migrate: a backup is under way: `ftctl "
				"backup end`");
		return;
	}
	start(a, call, request);
}

static void fill_pages(struct agent *a, const struct ft_engine_status *s,
		       struct migrate_status *out)
{
	Ctl__Migration *m = &out->migration;
	struct page_client_stats *p = &out->stats;
	double seconds;

	follow_stats(a, p);
	m->bytes_total = p->pages.pages * VMM_PAGE_BYTES;
	m->bytes_done = p->pages.pages_done * VMM_PAGE_BYTES;
	m->faults = p->pages.faults;
	m->cut = s->pages_cut;
	if (s->pages_given || !p->since_ns)
		return;
	out->fault_us = (Ctl__Figures)CTL__FIGURES__INIT;
	out->fault_us.last = p->fault_us.last;
	out->fault_us.p50 = p->fault_us.p50;
	out->fault_us.p99 = p->fault_us.p99;
	out->fault_us.max = p->fault_us.max;
	m->fault_us = &out->fault_us;
	m->n_fault_histogram = PAGE_CLIENT_BUCKETS;
	m->fault_histogram = p->histogram;
	seconds = (double)p->elapsed_ns / 1e9;
	if (seconds > 0) {
		m->bytes_per_s = (double)m->bytes_done / seconds;
		m->faults_per_s = (double)m->faults / seconds;
	}
}

bool migrate_fill_status(struct agent *a, const struct ft_engine_status *s,
			 struct migrate_status *out)
{
	Ctl__Migration *m = &out->migration;

	if (!*s->mode || !strcmp(s->mode, "ft"))
		return false;
	*m = (Ctl__Migration)CTL__MIGRATION__INIT;
	m->mode = (char *)(uintptr_t)s->mode;
	m->rounds = s->rounds;
	m->remaining = s->remaining_bytes;
	m->downtime_us = s->downtime_us;
	m->throttle = s->throttle_percent;
	if (!strcmp(s->mode, "postcopy"))
		fill_pages(a, s, out);
	return true;
}
