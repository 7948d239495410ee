// SPDX-License-Identifier: Apache-2.0
/* The primary meets its peer: at the start, after a lost connection, or when a standby offers
 * itself. What the peer says of itself decides: it may have what we left it with, it may have come
 * back empty, or it may have the guest. */
#include "ft/engine_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "ft/log.h"

static void set_phase(struct ft_engine *e, enum primary_phase phase)
{
	e->primary.phase = phase;
	e->primary.deadline_ns = engine_now(e) + FT_SETUP_MAX_MS * NS_PER_MS;
}

void primary_offered(struct ft_engine *e)
{
	/* A returning peer: what this host wanted before, it wants now, without being told again.
	 */
	e->primary.auto_retry = true;
	if (e->primary.phase != PRIMARY_LOST)
		set_phase(e, PRIMARY_HELLO);
}

/* The peer still has this session's image and its last checkpoint, and nobody was granted anything:
 * go on as if nothing had been. */
static bool can_resume(const struct ft_engine *e)
{
	const struct ft_primary *p = &e->primary;

	return p->session && p->returned.session == p->session && p->first_commit_done &&
	       !p->returned.runs &&
	       (p->returned.committed == e->committed ||
		(p->ship.phase == SHIP_WAIT_ACK && p->returned.committed == p->ship.epoch));
}

static void resume(struct ft_engine *e)
{
	struct ft_primary *p = &e->primary;
	struct ft_err err = {0};

	if (p->returned.committed != e->committed) {
		/* It had acknowledged what was in flight, the answer was lost. A planned switch
		 * starts anew. */
		p->ship.handover = false;
		primary_committed(e, p->returned.committed);
	} else {
		primary_abort_checkpoint(e, "connection lost");
	}
	p->refused = 0;
	set_phase(e, PRIMARY_SETUP);
	if (primary_send_setup(e, true, &err))
		primary_peer_lost(e, err.text);
}

void primary_meet(struct ft_engine *e)
{
	struct ft_primary *p = &e->primary;
	char why[FT_REASON_MAX];

	if (p->phase != PRIMARY_LOST || !e->conns[CONN_DATA].greeted)
		return;
	if (!p->returned.runs && p->returned.session != p->session) {
		/* It is alive, runs nothing and holds nothing: there is no other history of the
		 * guest than ours. */
		if (strcmp(e->arbiter->ops->type, "none")) {
			arbitrate_primary_lost_peer(e); /* and only its grant ends the wait */
			return;
		}
		snprintf(why, sizeof why, "%.160s; the standby came back empty: goes on alone",
			 p->why);
		e->generation++;
		e->env->generation(e->env_ctx, e->generation);
		primary_end(e, p->auto_retry, why);
	} else if (!p->returned.runs && !p->first_commit_done && !e->asking) {
		/* The connection broke between the first checkpoint and its acknowledgement: too
		 * little to go on from. */
		snprintf(why, sizeof why, "%.200s", p->why);
		primary_leave(e, p->auto_retry, why);
	} else if (!e->asking && can_resume(e)) {
		/* While the arbiter is asked, its answer decides. */
		resume(e);
	}
}

void primary_peer_hello(struct ft_engine *e, const Ft__Hello *hello)
{
	struct ft_primary *p = &e->primary;

	if (p->phase == PRIMARY_LOST) {
		p->returned.session = hello->session;
		p->returned.committed = hello->committed;
		p->returned.runs = hello->runs;
		primary_meet(e);
		return;
	}
	if (p->phase != PRIMARY_HELLO)
		return;
	if (e->state.now == FT_SOLO)
		engine_set_state(e, FT_SYNCING, "the peer is back");
	arbitrate_claim(e);
}

static void refused_while_lost(struct ft_engine *e, const Ft__Refuse *refuse)
{
	/* Whoever knows a newer generation saw the guest go on elsewhere, even if it does not run
	 * there any more. */
	if (refuse->generation > e->generation) {
		engine_fence(e, refuse->what);
		return;
	}
	engine_drop(e, &e->conns[CONN_DATA]);
	e->primary.deadline_ns = engine_now(e) + FT_RETRY_MS * NS_PER_MS;
}

void primary_refused(struct ft_engine *e, const Ft__Refuse *refuse)
{
	struct ft_primary *p = &e->primary;
	struct ft_err err = {0};

	ft_err_set(&err, refuse->code && refuse->code < 4096 ? (int)refuse->code : EPROTO,
		   "standby: %.200s", refuse->what);
	if (refuse->runs && refuse->generation > e->generation && p->phase != PRIMARY_IDLE) {
		engine_fence(e, refuse->what);
		return;
	}
	switch (p->phase) {
	case PRIMARY_IDLE:
		break;
	case PRIMARY_LOST:
		refused_while_lost(e, refuse);
		break;
	case PRIMARY_RETRY:
		p->deadline_ns = engine_now(e) + FT_RETRY_MS * NS_PER_MS;
		break;
	case PRIMARY_HANDING:
		/* One that failed to take it refuses under our generation. A newer one was acted
		 * under, though it may not run there any more. */
		if (refuse->generation > e->generation)
			engine_fence(e, refuse->what);
		else if (p->vm_dead)
			primary_peer_lost(e, err.text);
		else
			switch_undone(e, &err, refuse->failed);
		break;
	case PRIMARY_DIALING:
	case PRIMARY_HELLO:
	case PRIMARY_SETUP:
	case PRIMARY_ROUNDS:
	case PRIMARY_RUNNING:
	case PRIMARY_LEAVING:
		/* Who may hold a checkpoint may take over, whatever it says. */
		if (p->sync_claimed)
			primary_peer_lost(e, err.text);
		else
			primary_setup_failed(e, &err);
		break;
	}
}
