// SPDX-License-Identifier: Apache-2.0
/* Questions to the arbiter, and what each answer means. Safety rests here: who does not hold the generation releases nothing.
 *
 *   claim      the primary takes the next generation when protection starts: nobody else may run this guest from now on
 *   in sync    the primary lets the record say that the standby may be granted; before the first output is released under protection
 *   solo       the primary lost its peer and wants to go on alone
 *   takeover   the standby lost its primary and wants to run the guest
 *
 * One question at a time; an answer that comes after the situation changed is dropped by its number. With arbiter "none" the operator's
 * word decides (ft/arbiter_none.c), so a claim needs nobody. */
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
	e->env->generation(e->env_ctx, generation);
}

static void answered(struct ft_engine *e, enum ft_arbiter_answer answer)
{
	static const char *const words[] = {"held", "lost", "unreachable", "undecided"};

	e->asking = false;
	e->arbiter_state = words[answer];
}

static void ask(struct ft_engine *e)
{
	e->asking = true;
	e->arbiter_state = "asked";
}

/* ---- claim ---- */

static void on_claim(void *ctx, enum ft_arbiter_answer answer, const struct ft_grant_record *now, const char *why)
{
	struct ft_engine *e = ctx;

	answered(e, answer);
	if (answer == FT_ARBITER_GRANTED)
		set_generation(e, now->generation);
	primary_claimed(e, answer, why);
}

static void on_claim_read(void *ctx, enum ft_arbiter_answer answer, const struct ft_grant_record *now, const char *why)
{
	struct ft_engine *e = ctx;
	struct ft_grant_record w;

	if (answer != FT_ARBITER_GRANTED) {
		on_claim(e, answer, now, why);
		return;
	}
	/* A record of somebody else, newer than anything we held: the guest went on there while we were away. */
	if (now->generation > e->generation && now->holder[0] && strcmp(now->holder, e->config.host_id)) {
		char text[FT_ERR_TEXT_MAX];

		snprintf(text, sizeof text, "host %s holds generation %llu", now->holder, (unsigned long long)now->generation);
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
	ask(e);
	e->arbiter->ops->read(e->arbiter, on_claim_read, e);
}

/* ---- in sync ---- */

static void on_in_sync(void *ctx, enum ft_arbiter_answer answer, const struct ft_grant_record *now, const char *why)
{
	struct ft_engine *e = ctx;

	(void)now;
	answered(e, answer);
	primary_in_sync(e, answer, why);
}

void arbitrate_in_sync(struct ft_engine *e)
{
	struct ft_grant_record w = want(e, e->generation, true);

	if (is_none(e)) {
		primary_in_sync(e, FT_ARBITER_GRANTED, "");
		return;
	}
	ask(e);
	e->arbiter->ops->swap(e->arbiter, e->generation, &w, on_in_sync, e);
}

/* ---- solo ---- */

static void on_solo(void *ctx, enum ft_arbiter_answer answer, const struct ft_grant_record *now, const char *why)
{
	struct ft_engine *e = ctx;

	answered(e, answer);
	if (answer == FT_ARBITER_GRANTED)
		set_generation(e, now->generation);
	if (e->primary.phase != PRIMARY_LOST)
		return;
	switch (answer) {
	case FT_ARBITER_GRANTED:
		primary_end(e, e->primary.auto_retry, "peer lost: goes on alone, granted by the arbiter");
		return;
	case FT_ARBITER_LOST: {
		char text[FT_REASON_MAX];

		snprintf(text, sizeof text, "the standby has the guest: host %s holds generation %llu", now->holder,
			 (unsigned long long)now->generation);
		engine_fence(e, text);
		return;
	}
	case FT_ARBITER_UNREACHABLE:
	case FT_ARBITER_UNDECIDED:
		ft_warn("%s: outputs are held: the peer is lost and %s (%s); `ftctl cancel` lets the guest go on here", e->config.name,
			answer == FT_ARBITER_UNDECIDED ? "an operator must decide" : "the arbiter does not answer", why);
		return;
	}
}

void arbitrate_primary_lost_peer(struct ft_engine *e)
{
	struct ft_grant_record w = want(e, e->generation + 1, false);

	if (e->asking)
		return;
	ask(e);
	e->arbiter->ops->swap(e->arbiter, e->generation, &w, on_solo, e);
}

/* ---- takeover ---- */

static void on_takeover(void *ctx, enum ft_arbiter_answer answer, const struct ft_grant_record *now, const char *why)
{
	struct ft_engine *e = ctx;

	answered(e, answer);
	if (e->state.now != FT_STANDBY)
		return;
	if (answer == FT_ARBITER_GRANTED) {
		takeover_run(e, now->generation);
		return;
	}
	if (answer == FT_ARBITER_LOST) {
		char text[FT_REASON_MAX];

		/* The primary went on without us: what we hold is history, and nobody may start a guest from it. */
		snprintf(text, sizeof text, "not granted: host %s holds generation %llu", now->holder, (unsigned long long)now->generation);
		standby_reset(e);
		engine_set_state(e, FT_STANDBY, "%s", text);
		takeover_refused(e, text);
		return;
	}
	takeover_refused(e, why);
}

static void on_takeover_read(void *ctx, enum ft_arbiter_answer answer, const struct ft_grant_record *now, const char *why)
{
	struct ft_engine *e = ctx;
	struct ft_grant_record w;

	if (answer != FT_ARBITER_GRANTED) {
		on_takeover(e, answer, now, why);
		return;
	}
	if (now->generation != e->standby.primary_generation || !now->in_sync || strcmp(now->partner, e->config.host_id)) {
		on_takeover(e, FT_ARBITER_LOST, now, "the record does not name this host as in sync");
		return;
	}
	w = want(e, now->generation + 1, false);
	e->arbiter->ops->swap(e->arbiter, now->generation, &w, on_takeover, e);
}

void arbitrate_standby_takeover(struct ft_engine *e)
{
	struct ft_grant_record w = want(e, e->standby.primary_generation + 1, false);

	if (e->asking)
		return;
	/* A hand-over is the primary's own word; without an arbiter nobody else has one. */
	if (is_none(e) && e->standby.handover) {
		e->arbiter_state = "held";
		takeover_run(e, w.generation);
		return;
	}
	ask(e);
	if (is_none(e))
		e->arbiter->ops->swap(e->arbiter, e->standby.primary_generation, &w, on_takeover, e);
	else
		e->arbiter->ops->read(e->arbiter, on_takeover_read, e);
}
