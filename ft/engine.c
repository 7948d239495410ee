// SPDX-License-Identifier: Apache-2.0
/* Time, state and life of the engine; what its parts have in common. */
#include "ft/engine_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ft/log.h"

uint64_t engine_now(struct ft_engine *e)
{
	return e->env->now_ns(e->env_ctx);
}

void engine_set_state(struct ft_engine *e, enum ft_state to, const char *fmt, ...)
{
	char why[FT_REASON_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, sizeof why, fmt, ap);
	va_end(ap);
	if (e->state.now == to && !strcmp(e->state.reason, why))
		return;
	ft_state_set(&e->state, to, engine_now(e), "%s", why);
	e->env->changed(e->env_ctx);
}

void engine_note_error(struct ft_engine *e, const struct ft_err *err)
{
	/* The same trouble again, as when a peer is away for hours, is not news. */
	if (strcmp(e->last_error, err->text))
		ft_warn("%s: %s", e->config.name, err->text);
	snprintf(e->last_error, sizeof e->last_error, "%s", err->text);
}

void done_call(struct ft_done *done, const struct ft_err *err, uint64_t value)
{
	struct ft_done d = *done;

	memset(done, 0, sizeof *done);
	if (d.fn)
		d.fn(d.ctx, err, value);
}

bool done_set(struct ft_done *done, ft_done_fn *fn, void *ctx)
{
	if (done->fn)
		return false;
	done->fn = fn;
	done->ctx = ctx;
	return true;
}

/* ---- time ---- */

void engine_watch(struct ft_engine *e, bool on)
{
	if (on && !e->watching) {
		ft_detector_start(&e->detector, engine_now(e), e->config.heartbeat_ms,
				  e->config.takeover_ms);
		if (!e->conns[CONN_BEAT].greeted)
			e->detector.heard_ns += FT_BEAT_GRACE_MS * NS_PER_MS;
	}
	e->watching = on;
}

static void send_beat(struct ft_engine *e, unsigned patience_ms)
{
	Ft__Beat beat = FT__BEAT__INIT;

	e->beat_ns = beat.sent_ns = engine_now(e);
	beat.patience_ms = patience_ms;
	if (e->state.now == FT_STANDBY && e->standby.grant.echo_ns) {
		beat.echo_ns = e->standby.grant.echo_ns;
		beat.lease_ms = e->config.lease_ms;
	}
	(void)ft_msg_send(engine_beat_link(e), FT_MSG_BEAT, e->generation, e->committed, &beat.base,
			  NULL, 0);
}

void engine_beat(struct ft_engine *e)
{
	if (e->conns[CONN_BEAT].greeted && ft_detector_due(&e->detector, engine_now(e)))
		send_beat(e, 0);
}

void engine_ask_patience(struct ft_engine *e, unsigned ms)
{
	if (e->conns[CONN_BEAT].greeted)
		send_beat(e, ms);
}

uint64_t ft_engine_may_write_ns(struct ft_engine *e)
{
	engine_beat(e);
	return e->primary.sync_claimed ? ft_lease_left(&e->primary.lease, engine_now(e))
				       : UINT64_MAX;
}

static uint64_t tick_strangers(struct ft_engine *e, uint64_t now)
{
	uint64_t wake = UINT64_MAX;

	for (unsigned i = 0; i < ENGINE_CONNS; i++) {
		struct engine_conn *conn = &e->conns[i];
		uint64_t until = conn->since_ns + STRANGER_HELLO_MAX_MS * NS_PER_MS;

		if (!conn->link || conn->greeted)
			continue;
		if (now < until) {
			wake = min_u64(wake, until);
			continue;
		}
		ft_warn("%s: dropped %s: no HELLO within %d ms", e->config.name, conn->link->peer,
			STRANGER_HELLO_MAX_MS);
		engine_drop(e, conn);
		if (i == CONN_DATA && engine_is_standby(e))
			standby_link_closed(e, true, "no HELLO");
		else if (i == CONN_DATA)
			primary_peer_lost(e, "no HELLO");
		else if (i == CONN_BEAT && engine_data(e))
			e->env->dial(e->env_ctx, true);
	}
	return wake;
}

int engine_pass(struct ft_engine *e, struct ft_err *err)
{
	int rc = tap_chain_set_mode(&e->chain, TAP_PASS);

	return rc ? ft_err_set(err, -rc, "a shared disk does not take what was held: %s",
			       strerror(-rc))
		  : 0;
}

/* Taps that cannot be taken out go on passing through: the guest needs them. Those that still hold
 * something have the only copy of it. */
void engine_untap(struct ft_engine *e)
{
	struct ft_err err = {0};
	bool held = engine_pass(e, &err);

	if (held || e->env->taps_out(e->env_ctx, &err)) {
		engine_note_error(e, &err);
		e->untap_ns = engine_now(e) +
			      (held ? FT_RELEASE_RETRY_MS : FT_UNTAP_RETRY_MS) * NS_PER_MS;
		return;
	}
	e->primary.taps_in = false;
}

void ft_engine_tick(struct ft_engine *e)
{
	uint64_t now = engine_now(e), wake;

	if (e->stopped)
		return;
	wake = tick_strangers(e, now);
	if (e->conns[CONN_BEAT].greeted) {
		engine_beat(e);
		wake = min_u64(wake, ft_detector_wake(&e->detector));
	}
	if (e->watching && ft_detector_suspect(&e->detector, now)) {
		char why[64];

		snprintf(why, sizeof why, "silent for %u ms", e->config.takeover_ms);
		if (engine_is_standby(e))
			standby_silence(e, why);
		else
			primary_peer_lost(e, why);
	}
	if (e->untap_ns && now >= e->untap_ns) {
		e->untap_ns = 0;
		if (e->primary.taps_in && !e->primary.tracking && !engine_is_standby(e))
			engine_untap(e);
	} else if (e->untap_ns) {
		wake = min_u64(wake, e->untap_ns);
	}
	if (e->watching)
		wake = min_u64(wake, ft_detector_wake(&e->detector));
	wake = min_u64(wake, engine_is_standby(e) ? standby_tick(e, now) : primary_tick(e, now));
	e->env->wake_at(e->env_ctx, wake);
}

/* ---- life ---- */

int ft_engine_new(const struct ft_engine_config *config, const struct ft_env_ops *env,
		  void *env_ctx, struct ft_arbiter *arbiter, struct ft_engine **out,
		  struct ft_err *err)
{
	struct ft_engine *e = calloc(1, sizeof *e);
	int rc;

	if (!e)
		return ft_err_set(err, ENOMEM, "engine: out of memory");
	e->config = *config;
	e->env = env;
	e->env_ctx = env_ctx;
	e->arbiter = arbiter;
	e->generation = config->generation;
	snprintf(e->home, sizeof e->home, "%s", config->home);
	e->arbiter_state = "unused";
	e->mode = "";
	e->epoch = 1;
	e->state.now = FT_STARTING;
	for (unsigned i = 0; i < ENGINE_CONNS; i++)
		e->conns[i].e = e;
	ft_detector_start(&e->detector, engine_now(e), config->heartbeat_ms, config->takeover_ms);
	rc = standby_init(e, err);
	if (!rc)
		rc = primary_init(e, err);
	if (rc) {
		ft_engine_free(e);
		return rc;
	}
	*out = e;
	return 0;
}

void ft_engine_free(struct ft_engine *e)
{
	if (!e)
		return;
	for (unsigned i = 0; i < ENGINE_CONNS; i++)
		engine_drop(e, &e->conns[i]);
	primary_free(e);
	standby_free(e);
	free(e);
}

void ft_engine_remember(struct ft_engine *e, uint64_t generation)
{
	assert(e->state.now == FT_STARTING);
	e->generation = generation > e->generation ? generation : e->generation;
}

void ft_engine_start_solo(struct ft_engine *e, struct vmm *vmm)
{
	e->vmm = vmm;
	if (!e->home[0])
		snprintf(e->home, sizeof e->home, "%s", e->config.host_id);
	ft_overhead_start(&e->overhead, engine_now(e));
	engine_set_state(e, FT_SOLO, "guest runs, unprotected");
}

void ft_engine_start_standby(struct ft_engine *e)
{
	engine_set_state(e, FT_STANDBY, "waiting for a primary");
	ft_engine_tick(e);
}

void ft_engine_set_vmm(struct ft_engine *e, struct vmm *vmm)
{
	e->vmm = vmm;
}

struct tap_chain *ft_engine_chain(struct ft_engine *e)
{
	return &e->chain;
}

void engine_fence(struct ft_engine *e, const char *why)
{
	struct ft_err err = {.code = EPERM};

	/* A target says so when its HANDED was lost: this is what was wanted. */
	if (e->primary.move.on && e->primary.gave_away) {
		migrate_handed(e, e->generation + 1);
		return;
	}
	snprintf(err.text, sizeof err.text, "fenced: %s", why);
	/* Nothing of what is held may ever leave: the other side's history is the guest's history
	 * now. */
	e->situation++;
	tap_chain_discard(&e->chain);
	engine_hang_up(e);
	primary_abort_checkpoint(e, why);
	if (!strcmp(e->arbiter_holder, e->config.host_id))
		e->arbiter_holder[0] = '\0'; /* the peer said that it is not so any more */
	e->primary.move.on = false;
	e->primary.phase = PRIMARY_IDLE;
	e->primary.tracking = e->primary.taps_in = e->primary.sync_claimed =
		e->primary.first_commit_done = false;
	e->untap_ns = 0;
	e->env->vm_end(e->env_ctx);
	engine_set_state(e, FT_FENCED, "%s", why);
	done_call(&e->primary.protect_done, &err, 0);
	done_call(&e->primary.switch_done, &err, 0);
	done_call(&e->primary.verify_done, &err, 0);
}

void ft_engine_stop(struct ft_engine *e, const char *why)
{
	struct ft_err err = {.code = ECANCELED};

	snprintf(err.text, sizeof err.text, "stopped: %s", why);
	if (e->state.now == FT_STANDBY) {
		/* Else a BYE would be a promise that the arbiter's answer can break. */
		if (e->asking != QUESTION_TAKEOVER)
			standby_leave(e);
	} else if (engine_data(e) && e->state.now != FT_TAKEOVER) {
		/* In a takeover the arbiter has answered: a primary that heard BYE would go on
		 * under a generation that is over. */
		(void)engine_send(e, FT_MSG_BYE, e->committed, NULL, NULL, 0);
		engine_data(e)->ops->drain(engine_data(e), 200);
	}
	/* A BYE that is lost lets the standby take over: what it could put out again differently
	 * must not leave here. */
	if (e->primary.sync_claimed)
		tap_chain_discard(&e->chain);
	else if (e->primary.phase != PRIMARY_IDLE && e->state.now != FT_FENCED)
		primary_end(e, false, why);
	e->situation++;
	engine_hang_up(e);
	done_call(&e->primary.protect_done, &err, 0);
	done_call(&e->standby.failover_done, &err, 0);
	if (e->state.now != FT_STOPPED && e->state.now != FT_FAILED)
		engine_set_state(e, FT_STOPPED, "%s", why);
	e->stopped = true;
}

/* What the arbiter said last; else a guest that runs is its host's, and a standby has it from its
 * primary. */
static const char *holder(const struct ft_engine *e)
{
	if (e->arbiter_holder[0] || e->state.now == FT_FENCED)
		return e->arbiter_holder;
	return engine_is_standby(e) ? e->standby.primary_host : e->config.host_id;
}

void ft_engine_status(struct ft_engine *e, struct ft_engine_status *s)
{
	uint64_t now = engine_now(e);

	memset(s, 0, sizeof *s);
	s->state = e->state.now;
	s->reason = e->state.reason;
	s->state_since_ns = e->state.since_ns;
	s->is_primary = !engine_is_standby(e);
	s->waiting_for_decision = e->primary.phase == PRIMARY_LOST || e->standby.suspicious;
	s->epoch_open = engine_is_standby(e) ? e->standby.stage.epoch : e->epoch;
	s->epoch_committed = engine_is_standby(e) ? e->standby.committed : e->committed;
	s->generation = e->generation;
	ft_series_figure(&e->pause_us, &s->pause_us);
	ft_series_figure(&e->commit_us, &s->commit_us);
	ft_series_figure(&e->dirty_pages, &s->dirty_pages);
	s->bytes_raw = e->bytes_raw;
	s->bytes_sent = e->bytes_sent +
			(engine_data(e) ? engine_data(e)->ops->bytes_sent(engine_data(e)) : 0);
	s->checkpoints = e->checkpoints;
	s->checkpoints_failed = e->checkpoints_failed;
	tap_chain_stats(&e->chain, &s->taps);
	s->overhead = ft_overhead_share(&e->overhead, now);
	s->rounds = e->primary.round.rounds;
	s->mode = e->mode;
	s->downtime_us = e->downtime_us;
	s->throttle_percent = e->primary.move.throttle.percent;
	s->pages_given = e->pages.giving;
	s->pages_missing = e->pages.taking;
	s->pages_cut = e->pages.cut;
	s->pages_here = e->pages.here;
	s->moved = e->moved;
	if (e->primary.phase == PRIMARY_ROUNDS)
		s->remaining_bytes = e->primary.pending.count * VMM_PAGE_BYTES +
				     e->env->disks_behind(e->env_ctx);
	s->disk_bytes_alike = e->primary.disk_bytes_alike;
	s->disk_bytes_known = e->primary.disk_bytes_known;
	s->disk_bytes_copied = e->primary.disk_bytes_copied;
	s->session = e->primary.session;
	s->home = e->home;
	s->peer = engine_data(e) ? engine_data(e)->peer : "";
	s->arbiter_state = e->arbiter_state;
	s->arbiter_holder = holder(e);
	s->last_error = e->last_error;
}

enum ft_state ft_engine_state(const struct ft_engine *e)
{
	return e->state.now;
}

const char *ft_engine_reason(const struct ft_engine *e)
{
	return e->state.reason;
}
