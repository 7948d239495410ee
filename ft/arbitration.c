// SPDX-License-Identifier: Apache-2.0
/* Questions to the arbiter, and what each answer means. Safety rests here: who does not hold the
 * generation releases nothing.
 *
 *   claim      the primary takes the next generation when protection starts: nobody else may run
 * this guest from now on in sync    the primary lets the record say that the standby may be
 * granted; before the first output is released under protection solo       the primary lost its
 * peer and wants to go on alone takeover   the standby lost its primary and wants to run the guest
 *
 * One question at a time; an answer that comes after the situation changed is dropped: each
 * question carries the number of the situation it was asked in. A swap whose answer is lost may
 * have happened, so a record in our own name is a grant whenever it is found. With arbiter "none"
 * the operator's word decides (ft/arbiter_none.c), so a claim needs nobody. */
#include "ft/engine_internal.h"

#include <stdio.h>
#include <string.h>

#include "ft/log.h"

static bool is_none(const struct ft_engine *e)
{
	return !strcmp(e->arbiter->ops->type, "none");
}

static struct ft_grant_record want(struct ft_engine *e, uint64_t generation, bool in_sync)
{
	struct ft_grant_record w = {.generation = generation, .in_sync = in_sync};

	snprintf(w.holder, sizeof w.holder, "%s", e->config.host_id);
	if (in_sync)
		snprintf(w.partner, sizeof w.partner, "%s", e->peer_host);
	return w;
}

static void set_generation(struct ft_engine *e, uint64_t generation)
{
	e->generation = generation;
	memcpy(e->arbiter_holder, e->config.host_id, sizeof e->arbiter_holder);
	e->env->generation(e->env_ctx, generation);
}

/* Whoever asks is bound to the situation in which it asks. */
static void ask(struct ft_engine *e, enum engine_question question)
{
	/* Some arbiters answer before they return. */
	engine_ask_patience(e, FT_ARBITER_DEADLINE_MS + 500);
	e->asking = question;
	e->asked_in = e->situation;
	/* Who is asked again and again is better known by how it failed. */
	if (strcmp(e->arbiter_state, "unreachable") != 0)
		e->arbiter_state = "asked";
}

/* A record that is gone was lost to nobody: it says nothing, as an arbiter that is out of reach. */
static bool is_gone(enum ft_arbiter_answer answer, const struct ft_grant_record *now)
{
	return answer == FT_ARBITER_LOST && !now->generation;
}

/* The answer is here. False: it belongs to a situation that is over; a generation that it granted
 * is ours all the same, and will be found in the record under our name. */
static bool answered(struct ft_engine *e, enum ft_arbiter_answer answer,
		     const struct ft_grant_record *now)
{
	static const char *const words[] = {"held", "lost", "unreachable", "undecided"};

	e->asking = QUESTION_NONE;
	if (is_gone(answer, now))
		answer = FT_ARBITER_UNREACHABLE;
	e->arbiter_state = words[answer];
	if (answer == FT_ARBITER_GRANTED || answer == FT_ARBITER_LOST)
		memcpy(e->arbiter_holder, now->holder, sizeof e->arbiter_holder);
	return e->asked_in == e->situation;
}

/* What an answer to a swap to this generation means. A swap whose answer was lost may have
 * happened: nobody but our own swap writes our name under the next generation. */
static enum ft_arbiter_answer meaning(struct ft_engine *e, enum ft_arbiter_answer answer,
				      const struct ft_grant_record *now, uint64_t generation)
{
	bool ours = answer == FT_ARBITER_LOST && now->generation == generation &&
		    !strcmp(now->holder, e->config.host_id);

	if (is_gone(answer, now))
		return FT_ARBITER_UNREACHABLE;
	return ours ? FT_ARBITER_GRANTED : answer;
}

static void start(struct ft_engine *e, enum engine_question question);

/* One question at a time: a second one waits for the first one's answer. */
static void request(struct ft_engine *e, enum engine_question question)
{
	if (e->asking) {
		e->ask_next = question;
		return;
	}
	start(e, question);
}

/* Last in the handling of every answer: what waits is asked, and deadlines that waited for the
 * answer count again. */
static void go_on(struct ft_engine *e)
{
	enum engine_question next = e->ask_next;

	e->ask_next = QUESTION_NONE;
	if (next && !e->asking)
		start(e, next);
	ft_engine_tick(e);
}

/* ---- claim ---- */

static void on_claim(void *ctx, enum ft_arbiter_answer answer, const struct ft_grant_record *now,
		     const char *why)
{
	struct ft_engine *e = ctx;

	if (answered(e, answer, now)) {
		if (answer == FT_ARBITER_GRANTED)
			set_generation(e, now->generation);
		primary_claimed(e, answer, why);
	}
	go_on(e);
}

static void on_claim_read(void *ctx, enum ft_arbiter_answer answer,
			  const struct ft_grant_record *now, const char *why)
{
	struct ft_engine *e = ctx;
	struct ft_grant_record w;

	if (answer != FT_ARBITER_GRANTED || e->asked_in != e->situation) {
		on_claim(e, answer, now, why);
		return;
	}
	/* A record of somebody else, newer than anything we held: the guest went on there while we
	 * were away. But a peer that is connected accepted our generation, so it never acted under
	 * a newer one: a grant that it gave up waiting for, and that came after all, is void. */
	if (now->generation > e->generation && now->holder[0] &&
	    strcmp(now->holder, e->config.host_id) &&
	    !(e->conns[CONN_DATA].greeted && !strcmp(now->holder, e->peer_host))) {
		char text[FT_ERR_TEXT_MAX];

		snprintf(text, sizeof text, "host %s holds generation %llu", now->holder,
			 (unsigned long long)now->generation);
		on_claim(e, FT_ARBITER_LOST, now, text);
		return;
	}
	w = want(e, now->generation + 1, false);
	e->arbiter->ops->swap(e->arbiter, now->generation, &w, on_claim, e);
}

void arbitrate_claim(struct ft_engine *e)
{
	if (is_none(e)) {
		set_generation(e, e->generation + 1);
		e->arbiter_state = "held";
		primary_claimed(e, FT_ARBITER_GRANTED, "");
		return;
	}
	request(e, QUESTION_CLAIM);
}

/* ---- in sync ---- */

static void solo_answered(struct ft_engine *e, enum ft_arbiter_answer answer,
			  const struct ft_grant_record *now, const char *why);

static void on_in_sync(void *ctx, enum ft_arbiter_answer answer, const struct ft_grant_record *now,
		       const char *why)
{
	struct ft_engine *e = ctx;
	bool again = e->primary.first_commit_done;

	if (again && is_gone(answer, now))
		answer = FT_ARBITER_UNREACHABLE;
	if (!answered(e, answer, now))
		again = false;
	else if (again && meaning(e, answer, now, e->generation + 1) == FT_ARBITER_GRANTED &&
		 now->generation > e->generation)
		solo_answered(
			e, answer, now,
			why); /* the swap that was given up did happen: alone, and protected anew */
	else if (again && answer == FT_ARBITER_LOST)
		e->primary.want_switch = true; /* the standby was granted the guest while it was
						  away: it shall have it */
	else
		primary_in_sync(e, answer, why);
	if (again && answer != FT_ARBITER_UNREACHABLE)
		e->primary.solo_unsure = false;
	go_on(e);
}

void arbitrate_in_sync(struct ft_engine *e)
{
	if (is_none(e))
		primary_in_sync(e, FT_ARBITER_GRANTED, "");
	else
		request(e, QUESTION_IN_SYNC);
}

/* ---- solo ---- */

/* What the peer was granted for a hand-over, before it said that it could not use it. */
static bool is_refused_grant(const struct ft_engine *e, const struct ft_grant_record *now)
{
	return e->primary.refused && now->generation == e->primary.refused &&
	       !strcmp(now->holder, e->primary.partner);
}

static void solo_answered(struct ft_engine *e, enum ft_arbiter_answer answer,
			  const struct ft_grant_record *now, const char *why)
{
	char text[FT_REASON_MAX];

	e->primary.solo_unsure |= answer == FT_ARBITER_UNREACHABLE;
	switch (meaning(e, answer, now, e->generation + 1)) {
	case FT_ARBITER_GRANTED:
		set_generation(e, now->generation);
		snprintf(text, sizeof text, "%.160s: goes on alone, granted by the arbiter",
			 e->primary.why);
		primary_end(e, e->primary.auto_retry, text);
		return;
	case FT_ARBITER_LOST:
		if (is_refused_grant(e, now)) {
			e->generation = now->generation;
			arbitrate_primary_lost_peer(e);
			return;
		}
		snprintf(text, sizeof text,
			 "the standby has the guest: host %s holds generation %llu", now->holder,
			 (unsigned long long)now->generation);
		engine_fence(e, text);
		return;
	case FT_ARBITER_UNREACHABLE:
	case FT_ARBITER_UNDECIDED:
		ft_warn("%s: outputs are held: the peer is lost and %s (%s); `ftctl cancel` lets "
			"the guest go on here",
			e->config.name,
			answer == FT_ARBITER_UNDECIDED ? "an operator must decide"
						       : "the arbiter does not answer",
			why);
		/* The peer may have come back while the arbiter was asked. */
		primary_meet(e);
		return;
	}
}

static void on_solo(void *ctx, enum ft_arbiter_answer answer, const struct ft_grant_record *now,
		    const char *why)
{
	struct ft_engine *e = ctx;

	if (answered(e, answer, now))
		solo_answered(e, answer, now, why);
	go_on(e);
}

void arbitrate_primary_lost_peer(struct ft_engine *e)
{
	/* The guest was given away, and without an arbiter only the peer itself can say that it did
	 * not take it. */
	if (is_none(e) && e->primary.gave_away) {
		e->arbiter_state = "undecided";
		return;
	}
	if (e->asking != QUESTION_SOLO)
		request(e, QUESTION_SOLO);
}

/* ---- takeover ---- */

static void takeover_answered(struct ft_engine *e, enum ft_arbiter_answer answer,
			      const struct ft_grant_record *now, const char *why)
{
	char text[FT_REASON_MAX];

	switch (answer) {
	case FT_ARBITER_GRANTED:
		takeover_run(e, now->generation);
		return;
	case FT_ARBITER_LOST:
		/* The primary went on without us: what we hold is history, and nobody may start a
		 * guest from it. */
		snprintf(text, sizeof text, "not granted: host %s holds generation %llu",
			 now->holder, (unsigned long long)now->generation);
		takeover_refused(e, text);
		standby_reset(e);
		engine_set_state(e, FT_STANDBY, "%s", text);
		return;
	case FT_ARBITER_UNREACHABLE:
	case FT_ARBITER_UNDECIDED:
		takeover_refused(e, why);
		return;
	}
}

static void on_takeover(void *ctx, enum ft_arbiter_answer answer, const struct ft_grant_record *now,
			const char *why)
{
	struct ft_engine *e = ctx;

	if (answered(e, answer, now))
		takeover_answered(e, meaning(e, answer, now, e->standby.primary_generation + 1),
				  now, why);
	go_on(e);
}

static void on_takeover_read(void *ctx, enum ft_arbiter_answer answer,
			     const struct ft_grant_record *now, const char *why)
{
	struct ft_engine *e = ctx;
	struct ft_grant_record w;

	if (answer != FT_ARBITER_GRANTED || e->asked_in != e->situation) {
		on_takeover(e, answer, now, why);
		return;
	}
	if (now->generation != e->standby.primary_generation || !now->in_sync ||
	    strcmp(now->partner, e->config.host_id)) {
		on_takeover(e, FT_ARBITER_LOST, now,
			    now->generation ? "the record does not name this host as in sync"
					    : "the arbiter has no record of this guest");
		return;
	}
	w = want(e, now->generation + 1, false);
	e->arbiter->ops->swap(e->arbiter, now->generation, &w, on_takeover, e);
}

void arbitrate_standby_takeover(struct ft_engine *e)
{
	/* A hand-over is the primary's own word; without an arbiter nobody else has one. */
	if (is_none(e) && e->standby.handover) {
		e->arbiter_state = "held";
		takeover_run(e, e->standby.primary_generation + 1);
		return;
	}
	request(e, QUESTION_TAKEOVER);
}

/* ---- all ---- */

static bool still_wanted(struct ft_engine *e, enum engine_question question)
{
	switch (question) {
	case QUESTION_NONE:
		return false;
	case QUESTION_CLAIM:
		return e->primary.phase == PRIMARY_HELLO && e->conns[CONN_DATA].greeted;
	case QUESTION_IN_SYNC:
		return e->primary.phase == PRIMARY_RUNNING && e->primary.sync_claimed &&
		       (!e->primary.first_commit_done || e->primary.solo_unsure);
	case QUESTION_SOLO:
		return e->primary.phase == PRIMARY_LOST;
	case QUESTION_TAKEOVER:
		return e->state.now == FT_STANDBY && e->standby.committed &&
		       (e->standby.suspicious || e->standby.handover);
	}
	return false;
}

static void start(struct ft_engine *e, enum engine_question question)
{
	const struct ft_arbiter_ops *ops = e->arbiter->ops;
	struct ft_grant_record w;

	if (!still_wanted(e, question))
		return;
	ask(e, question);
	switch (question) {
	case QUESTION_NONE:
		break;
	case QUESTION_CLAIM:
		ops->read(e->arbiter, on_claim_read, e);
		break;
	case QUESTION_IN_SYNC:
		w = want(e, e->generation, true);
		ops->swap(e->arbiter, e->generation, &w, on_in_sync, e);
		break;
	case QUESTION_SOLO:
		w = want(e, e->generation + 1, false);
		ops->swap(e->arbiter, e->generation, &w, on_solo, e);
		break;
	case QUESTION_TAKEOVER:
		w = want(e, e->standby.primary_generation + 1, false);
		if (is_none(e))
			ops->swap(e->arbiter, e->standby.primary_generation, &w, on_takeover, e);
		else
			ops->read(e->arbiter, on_takeover_read, e);
		break;
	}
}
