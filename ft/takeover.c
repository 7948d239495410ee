// SPDX-License-Identifier: Apache-2.0
/* From the last committed checkpoint to a running guest: by suspicion, by an operator's word, or by
 * agreement (planned switch, VM died). */
#include "ft/engine_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "ft/log.h"

#define TAKEOVER_RETRY_MS 50
#define FENCE_RETRY_MS	  2000 /* between runs of a fence program that fails */

static void takeover_continue(struct ft_engine *e);

/* ---- standby: the old primary ---- */

/* An old primary that is alive, or wakes up, is fenced by hearing of the new generation, and lets
 * go of its shared disks. If it does not know the way to us, we may know the way to it. */
static void tell_old_primary(struct ft_engine *e, uint64_t now)
{
	if (now < e->standby.tell_ns)
		return;
	e->standby.tell_ns = now + FT_RETRY_MS * NS_PER_MS;
	if (!engine_data(e))
		e->env->dial(e->env_ctx, false);
}

static bool must_fence(const struct ft_engine *e)
{
	const struct ft_standby *s = &e->standby;

	return e->config.fence && s->shared && !s->given && s->fence != FENCE_DONE;
}

static void ask_fence(struct ft_engine *e)
{
	struct ft_standby *s = &e->standby;

	if (s->fence == FENCE_ASKED)
		return;
	s->fence = FENCE_ASKED;
	engine_set_state(e, FT_TAKEOVER, "fencing %s", s->primary_host);
	e->env->fence(e->env_ctx, s->primary_host, e->generation);
}

void ft_engine_fenced(struct ft_engine *e, const struct ft_err *err)
{
	struct ft_standby *s = &e->standby;

	if (e->state.now != FT_TAKEOVER || s->fence != FENCE_ASKED)
		return;
	s->fence = err ? FENCE_TO_DO : FENCE_DONE;
	s->retry_ns = engine_now(e) + (err ? FENCE_RETRY_MS * NS_PER_MS : 0);
	if (err) {
		engine_note_error(e, err);
		engine_set_state(e, FT_TAKEOVER, "waiting until %s is fenced: %s", s->primary_host,
				 err->text);
	}
	ft_engine_tick(e);
}

/* ---- standby: suspicion ---- */

static void want_takeover(struct ft_engine *e, const char *why)
{
	struct ft_standby *s = &e->standby;

	if (!s->suspicious)
		ft_warn("%s: primary %s lost: %s", e->config.name, s->primary_host, why);
	s->suspicious = true;
	s->retry_ns = engine_now(e) + FT_RETRY_MS * NS_PER_MS;
	engine_watch(e, false);
	if (e->config.takeover_manual && !s->handover) {
		engine_set_state(e, FT_STANDBY,
				 "primary lost (%s): takeover is manual: `ftctl failover`", why);
		return;
	}
	arbitrate_standby_takeover(e);
}

void standby_link_closed(struct ft_engine *e, bool data, const char *why)
{
	struct ft_standby *s = &e->standby;

	if (e->state.now != FT_STANDBY)
		return; /* the guest is ours already */
	if (data && s->asked_ns) {
		struct ft_err err = {0};

		/* Whether the operator wants it from a primary that is lost, too, is another
		 * question. */
		ft_err_set(&err, ENOTCONN, "failover: the primary was lost meanwhile: %s", why);
		s->asked_ns = 0;
		done_call(&s->failover_done, &err, 0);
	}
	if (data) {
		standby_unstage(e);
		/* What was to move goes on where it was, unless it was given away. */
		if (!s->committed || (s->moving && !s->handover)) {
			engine_hang_up(e);
			s->retry_ns = engine_now(e) + FT_RETRY_MS * NS_PER_MS;
			if (s->armed) {
				standby_reset(e);
				engine_set_state(e, FT_STANDBY,
						 "waiting for a primary; the last one left: %s",
						 why);
			}
			return;
		}
		if (!s->unlinked_ns)
			s->unlinked_ns = s->retry_ns = engine_now(e);
	}
	/* Both gone at once is what a dead process looks like. Where heartbeats were still to come,
	 * it looks like a bad wire, which has takeover_ms to come back. */
	if (s->committed && s->beats && !engine_data(e) && !engine_beat_link(e))
		want_takeover(e, why);
}

void standby_silence(struct ft_engine *e, const char *why)
{
	engine_hang_up(e);
	standby_link_closed(e, true, why);
	if (e->state.now == FT_STANDBY && e->standby.committed && !e->standby.suspicious)
		want_takeover(e, why);
}

void takeover_refused(struct ft_engine *e, const char *why)
{
	struct ft_err err = {.code = EPERM};

	snprintf(err.text, sizeof err.text, "takeover not granted: %s", why);
	if (e->standby.suspicious && e->state.now == FT_STANDBY && e->standby.committed)
		engine_set_state(e, FT_STANDBY, "primary lost, %s", err.text);
	if (e->standby.handover && engine_data(e)) {
		engine_refuse(e, engine_data(e), &err);
		e->standby.handover = e->standby.given = false;
	}
	done_call(&e->standby.failover_done, &err, 0);
}

/* Who made the connection makes it again: the other side may not know the way. */
static uint64_t dial_again(struct ft_engine *e, uint64_t now)
{
	struct ft_standby *s = &e->standby;

	if (!s->dials || engine_data(e))
		return UINT64_MAX;
	if (now >= s->retry_ns) {
		/* It may not have noticed yet, and then refuses. */
		s->retry_ns = now + e->config.takeover_ms * NS_PER_MS / 4;
		e->env->dial(e->env_ctx, false);
	}
	return s->retry_ns;
}

uint64_t standby_tick(struct ft_engine *e, uint64_t now)
{
	struct ft_standby *s = &e->standby;
	uint64_t wake = UINT64_MAX;

	if (e->state.now == FT_TAKEOVER) {
		tell_old_primary(e, now);
		if (s->fence == FENCE_ASKED)
			return s->tell_ns;
		if (now < s->retry_ns)
			return min_u64(s->retry_ns, s->tell_ns);
		takeover_continue(e);
		return now;
	}
	/* Also when it was we who closed it, for a fault of the conversation: the primary has that
	 * long to come back. */
	if (s->committed && s->unlinked_ns && !e->conns[CONN_DATA].greeted && !s->suspicious) {
		uint64_t until = s->unlinked_ns + e->config.takeover_ms * NS_PER_MS;

		if (now >= until) {
			engine_hang_up(e);
			want_takeover(e, "its data connection did not come back");
		} else {
			wake = min_u64(until, dial_again(e, now));
		}
	}
	if (s->comparing && compare_send(e))
		wake = now;
	if (s->asked_ns && now >= s->asked_ns + FT_HANDOVER_MAX_MS * NS_PER_MS) {
		struct ft_err err = {0};

		ft_err_set(&err, ETIMEDOUT,
			   "failover: the primary is connected but did not hand over within %d ms",
			   FT_HANDOVER_MAX_MS);
		s->asked_ns = 0;
		done_call(&s->failover_done, &err, 0);
	} else if (s->asked_ns) {
		wake = min_u64(wake, s->asked_ns + FT_HANDOVER_MAX_MS * NS_PER_MS);
	}
	if (s->suspicious && !e->asking && (!e->config.takeover_manual || s->handover)) {
		if (now >= s->retry_ns) {
			s->retry_ns = now + FT_RETRY_MS * NS_PER_MS;
			arbitrate_standby_takeover(e);
		}
		wake = min_u64(wake, s->retry_ns);
	}
	/* After a planned switch this side offers itself until the new primary has it. */
	if (s->offering && !engine_data(e) && e->state.now == FT_STANDBY && !s->committed) {
		if (now >= s->retry_ns) {
			s->retry_ns = now + FT_SETUP_MAX_MS * NS_PER_MS;
			e->env->dial(e->env_ctx, false);
		}
		wake = min_u64(wake, s->retry_ns);
	}
	return wake;
}

/* ---- standby: run ---- */

static int replay(struct ft_engine *e, const struct tap_record *rec, struct ft_err *err)
{
	switch (rec->kind) {
	case TAP_DISK_WRITE:
	case TAP_DISK_ZERO:
	case TAP_DISK_TRIM:
	case TAP_DISK_FLUSH:
	case TAP_DISK_BITMAP:
		return 0; /* in the image already */
	default:
		/* One output that cannot be sent again must not keep back those behind it. */
		if (tap_chain_replay(&e->chain, rec, err))
			engine_note_error(e, err);
		return 0;
	}
}

/* The disks may say already that they are the guest's. */
static void takeover_failed(struct ft_engine *e, bool activated, const struct ft_err *err)
{
	struct ft_err copy = *err, not_proven = {0};

	ft_err_context(&copy, "takeover");
	engine_note_error(e, &copy);
	if (e->standby.postcopy)
		pages_forget(e);
	if (e->standby.handover && e->conns[CONN_DATA].greeted) {
		/* The guest does not run here, nor will anybody start it here: who handed it over
		 * may have it back. */
		e->standby.gave_up =
			(activated ? e->env->guard(e->env_ctx, true, &not_proven)
				   : e->env->store_outdate(e->env_ctx, &not_proven)) == 0;
		if (!e->standby.gave_up)
			engine_note_error(e, &not_proven);
		/* One that was late to answer must not begin to run. */
		if (activated)
			e->env->vm_end(e->env_ctx);
		else
			e->env->disarm(e->env_ctx);
		e->generation = e->standby.primary_generation;
		engine_set_state(e, FT_FAILED, "%s", copy.text);
		engine_refuse(e, engine_data(e), &copy);
	}
	engine_hang_up(e);
	engine_set_state(e, FT_FAILED, "%s", copy.text);
	done_call(&e->standby.failover_done, &copy, 0);
}

void takeover_run(struct ft_engine *e, uint64_t generation)
{
	struct ft_standby *s = &e->standby;

	engine_set_state(e, FT_TAKEOVER, "epoch %llu, generation %llu%s",
			 (unsigned long long)s->committed, (unsigned long long)generation,
			 s->handover ? ", by agreement" : "");
	engine_watch(e, false);
	standby_unstage(e);
	e->situation++;
	memcpy(e->arbiter_holder, e->config.host_id, sizeof e->arbiter_holder);
	e->generation = generation;
	e->env->generation(e->env_ctx, generation);
	s->takeover_ns = s->tell_ns = engine_now(e);
	takeover_continue(e);
}

static void takeover_continue(struct ft_engine *e)
{
	struct ft_standby *s = &e->standby;
	struct ft_stage *g = &s->stage;
	unsigned which = g->staging ^ 1;
	struct ft_err err = {0};
	bool agreed, activated,
		settled = s->given || s->fence == FENCE_DONE || engine_now(e) >= s->grant.over_ns;
	int rc;

	if (must_fence(e)) {
		ask_fence(e);
		ft_engine_tick(e);
		return;
	}
	/* A shared disk that the old primary still holds, or may still write to, dead or asleep: it
	 * must let go first, or its lease be over. The grant is ours, so this waits. */
	rc = e->env->store_activate(e->env_ctx, e->generation, s->committed, settled, &err);
	if (rc == -EBUSY) {
		engine_set_state(e, FT_TAKEOVER, "waiting for the old primary to let go: %s",
				 err.text);
		s->retry_ns = engine_now(e) + TAKEOVER_RETRY_MS * NS_PER_MS;
		ft_engine_tick(e);
		return;
	}
	activated = !rc;
	if (!rc && s->postcopy)
		rc = pages_begin(e, &err);
	if (rc || vmm_resume(e->vmm, g->state[which], g->state_len[which], &err)) {
		takeover_failed(e, activated, &err);
		return;
	}
	/* Whose memory is elsewhere yet must not outlive this process. */
	if (!e->pages.taking)
		(void)e->env->guard(e->env_ctx, false, NULL);
	/* What may not have left before the primary died leaves now: at worst a client sees it
	 * twice. */
	if (standby_each_event(e, &g->events[which], replay, &err))
		engine_note_error(e, &err);
	agreed = s->handover && e->conns[CONN_DATA].greeted;
	if (agreed) {
		(void)engine_send(e, FT_MSG_HANDED, s->committed, NULL, NULL, 0);
		engine_data(e)->ops->drain(engine_data(e), 200);
	}
	engine_hang_up(e);
	e->epoch = s->committed + 1;
	e->committed = s->committed;
	s->armed = s->postcopy = false;
	ft_bitmap_free(&s->missing);
	s->session = s->committed = 0;
	s->suspicious = s->handover = s->given = s->offering = false;
	s->asked_ns = 0;
	s->fence = FENCE_TO_DO;
	(void)tap_chain_set_mode(&e->chain, TAP_PASS); /* no disk is among them */
	/* A guest that moved has no standby. Else roles are exchanged: the old primary offers
	 * itself, or is looked for if this side knows where; should it wake up only now, it hears
	 * there that the guest is here. */
	e->primary.phase = s->moving ? PRIMARY_IDLE : PRIMARY_RETRY;
	e->primary.auto_retry = !s->moving;
	e->primary.deadline_ns = engine_now(e) + FT_RETRY_MS * NS_PER_MS;
	e->primary.taps_in =
		true; /* passing through; taken out when the replayed outputs are surely gone */
	e->primary.vm_dead = e->primary.stopped = e->primary.stepped_back = false;
	e->untap_ns = engine_now(e) + FT_PASS_SETTLE_MS * NS_PER_MS;
	ft_overhead_start(&e->overhead, engine_now(e));
	engine_set_state(e, FT_SOLO, "took over from %s at epoch %llu in %llu ms", s->primary_host,
			 (unsigned long long)e->committed,
			 (unsigned long long)((engine_now(e) - s->takeover_ns) / NS_PER_MS));
	done_call(&s->failover_done, NULL, e->committed);
	ft_engine_tick(e);
}

/* ---- operators ---- */

int ft_engine_failover(struct ft_engine *e, ft_done_fn *done, void *ctx, struct ft_err *err)
{
	struct ft_done *slot =
		e->state.now == FT_STANDBY ? &e->standby.failover_done : &e->primary.switch_done;
	int rc;

	if (e->state.now == FT_STANDBY && !e->standby.committed)
		return ft_err_set(err, EINVAL, "failover: this standby holds no checkpoint");
	if (e->state.now == FT_STANDBY && e->standby.moving)
		return ft_err_set(err, EINVAL, "failover: the guest is being migrated here");
	if (!done_set(slot, done, ctx))
		return ft_err_set(err, EBUSY, "failover: one is under way");
	if (e->state.now != FT_STANDBY) {
		rc = switch_start(e, err);
		if (rc)
			memset(slot, 0, sizeof *slot);
		return rc;
	}
	/* A primary that is there can hand over, and then nothing is lost and nobody has to be
	 * believed dead. */
	if (e->conns[CONN_DATA].greeted) {
		if (engine_send(e, FT_MSG_HANDOVER, e->standby.committed, NULL, NULL, 0)) {
			memset(slot, 0, sizeof *slot);
			return ft_err_set(err, EPIPE, "failover: cannot ask the primary");
		}
		e->standby.asked_ns = engine_now(e);
		ft_engine_tick(e);
		return 0;
	}
	/* Without an arbiter the operator's word is the grant; with one, it must still agree. */
	e->standby.handover = !strcmp(e->arbiter->ops->type, "none");
	e->standby.suspicious = true;
	e->standby.retry_ns = engine_now(e) + FT_RETRY_MS * NS_PER_MS;
	engine_hang_up(e);
	arbitrate_standby_takeover(e);
	return 0;
}

int ft_engine_failback(struct ft_engine *e, ft_done_fn *done, void *ctx, struct ft_err *err)
{
	bool standby = e->state.now == FT_STANDBY;
	const char *runs = standby ? e->standby.primary_host : e->config.host_id;
	const char *other = standby ? e->config.host_id : e->peer_host;

	if (standby ? !e->standby.committed || !e->conns[CONN_DATA].greeted
		    : e->state.now != FT_PROTECTED)
		return ft_err_set(err, EINVAL,
				  "failback: the guest is not protected by a standby at home "
				  "(%.64s)",
				  e->home);
	if (!strcmp(e->home, runs))
		return ft_err_set(err, EALREADY, "failback: the guest is at home on %.64s", runs);
	if (strcmp(e->home, other))
		return ft_err_set(err, EINVAL,
				  "failback: home is %.64s, the standby is %.64s: let %.64s be the "
				  "standby first",
				  e->home, other, e->home);
	return ft_engine_failover(e, done, ctx, err);
}
