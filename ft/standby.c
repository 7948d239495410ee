// SPDX-License-Identifier: Apache-2.0
/* The standby: its session with a primary, from SETUP to the end. What a checkpoint is here is in
 * stage.c. Frames were verified by the link; what is checked here is that messages come in order
 * and are well-formed and in range, before anything is kept. */
#include "ft/engine_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "ft/log.h"

int standby_init(struct ft_engine *e, struct ft_err *err)
{
	struct ft_standby *s = &e->standby;
	const struct ft_engine_config *c = &e->config;
	/* Half for pages, a quarter for the outputs of the staged epoch, a quarter for those of the
	 * committed one. */
	size_t events = c->staging_bytes / 4;

	s->scratch_max = FT_APPLY_WINDOW;
	s->scratch = mmap(NULL, s->scratch_max, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (s->scratch == MAP_FAILED) {
		s->scratch = NULL;
		return ft_err_set(err, ENOMEM, "staging: out of memory");
	}
	if (ft_spool_init(&s->stage.pages, c->staging_bytes / 2, c->overflow, c->overflow_ctx[0]) ||
	    ft_spool_init(&s->stage.events[0], events, c->overflow, c->overflow_ctx[1]) ||
	    ft_spool_init(&s->stage.events[1], events, c->overflow, c->overflow_ctx[2]))
		return ft_err_set(err, ENOMEM, "staging: cannot map %zu bytes", c->staging_bytes);
	for (unsigned i = 0; i < 2; i++) {
		s->stage.state[i] = malloc(VMM_STATE_BYTES_MAX);
		if (!s->stage.state[i])
			return ft_err_set(err, ENOMEM, "staging: out of memory");
	}
	return 0;
}

void standby_free(struct ft_engine *e)
{
	struct ft_standby *s = &e->standby;

	ft_bitmap_free(&s->missing);
	ft_spool_free(&s->stage.pages);
	for (unsigned i = 0; i < 2; i++) {
		ft_spool_free(&s->stage.events[i]);
		free(s->stage.state[i]);
	}
	if (s->scratch)
		munmap(s->scratch, s->scratch_max);
}

/* What is staged and not committed is given up. */
void standby_unstage(struct ft_engine *e)
{
	e->standby.stage.epoch = 0;
	e->standby.storing = 0;
}

void standby_reset(struct ft_engine *e)
{
	struct ft_standby *s = &e->standby;
	struct ft_err gone = {.code = ECANCELED,
			      .text = "failover: this standby holds no checkpoint any more"};

	done_call(&s->failover_done, &gone, 0);

	e->situation++;
	if (s->armed)
		e->env->disarm(e->env_ctx);
	if (s->postcopy)
		e->env->pages_close(e->env_ctx);
	ft_bitmap_free(&s->missing);
	s->armed = s->comparing = s->moving = s->postcopy = false;
	s->session = s->committed = 0;
	s->suspicious = s->handover = s->given = false;
	s->unlinked_ns = s->asked_ns = s->tell_ns = 0;
	s->fence = FENCE_TO_DO;
	s->grant.echo_ns = 0; /* of another clock, perhaps */
	standby_unstage(e);
	ft_spool_reset(&s->stage.pages);
	ft_spool_reset(&s->stage.events[0]);
	ft_spool_reset(&s->stage.events[1]);
}

void standby_refuse(struct ft_engine *e, const struct ft_err *err)
{
	struct ft_err copy = *err;

	engine_note_error(e, &copy);
	if (engine_data(e))
		engine_refuse(e, engine_data(e), &copy);
	engine_hang_up(e);
	standby_unstage(e);
	e->standby.beats = e->standby.handover = e->standby.given = false;
	e->standby.retry_ns = engine_now(e) + FT_RETRY_MS * NS_PER_MS;
	if (!e->standby.committed || e->standby.moving) {
		standby_reset(e);
		if (e->standby.offering) {
			e->standby.retry_ns = engine_now(e) + e->standby.offer_ms * NS_PER_MS;
			e->standby.offer_ms = e->standby.offer_ms * 2 < FT_OFFER_MAX_MS
						      ? e->standby.offer_ms * 2
						      : FT_OFFER_MAX_MS;
		}
		engine_set_state(e, FT_STANDBY, "waiting for a primary; the last one failed: %s",
				 copy.text);
	} else {
		e->standby.unlinked_ns = e->standby.retry_ns = engine_now(e);
	}
}

void standby_peer_hello(struct ft_engine *e, const Ft__Hello *hello)
{
	e->standby.unlinked_ns = 0;
	e->standby.beats = e->standby.suspicious = false;
	/* A frozen peer is noticed in the middle of a conversation, too. */
	if (e->standby.committed)
		engine_watch(e, true);
	snprintf(e->standby.primary_host, sizeof e->standby.primary_host, "%s", hello->host_id);
}

/* ---- set-up ---- */

static void send_ready(struct ft_engine *e)
{
	Ft__Ready ready = FT__READY__INIT;

	ready.committed = e->standby.committed;
	ready.compares = e->standby.comparing;
	(void)engine_send(e, FT_MSG_READY, e->standby.committed, &ready.base, NULL, 0);
}

bool setup_has_shared_disk(const Ft__Setup *setup)
{
	bool shared = false;

	for (size_t i = 0; i < setup->n_disks; i++)
		shared |= setup->disks[i]->shared;
	return shared;
}

/* It is kept in files and shown to people. */
static bool is_host_id(const char *text)
{
	size_t len = strlen(text);

	for (const char *p = text; *p; p++)
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			return false;
	return len > 0 && len < FT_HOST_ID_MAX;
}

static int prepare_postcopy(struct ft_engine *e, const Ft__Setup *setup, struct ft_err *err)
{
	struct ft_standby *s = &e->standby;

	if (!setup->migrate || !e->env->pages_prepare)
		return ft_err_set(err, ENOTSUP, "SETUP: postcopy is not to be had here");
	if (ft_bitmap_init(&s->missing, setup->ram_bytes / VMM_PAGE_BYTES))
		return ft_err_set(err, ENOMEM, "SETUP: out of memory");
	s->postcopy = true;
	return e->env->pages_prepare(e->env_ctx, s->primary_generation, err);
}

static void on_setup(struct ft_engine *e, const struct ft_msg *msg)
{
	struct ft_standby *s = &e->standby;
	Ft__Setup *setup = ft__setup__unpack(NULL, msg->body_len, msg->body);
	struct ft_err err = {0};

	if (!setup) {
		ft_err_set(&err, EPROTO, "SETUP: body does not parse");
		standby_refuse(e, &err);
		return;
	}
	if (msg->generation < e->generation) {
		ft_err_set(&err, ESTALE, "SETUP: generation %llu: this side knows %llu already",
			   (unsigned long long)msg->generation, (unsigned long long)e->generation);
		standby_refuse(e, &err);
		ft__setup__free_unpacked(setup, NULL);
		return;
	}
	if (!msg->generation || msg->generation > FT_COUNTER_MAX) {
		ft_err_set(&err, EPROTO, "SETUP: generation %llu: there is no such one",
			   (unsigned long long)msg->generation);
		standby_refuse(e, &err);
		ft__setup__free_unpacked(setup, NULL);
		return;
	}
	if (setup->resume) {
		if (!s->session || setup->session != s->session ||
		    msg->generation != s->primary_generation) {
			ft_err_set(&err, ESTALE,
				   "SETUP: resume of a session that this standby does not have");
			standby_refuse(e, &err);
		} else {
			standby_unstage(e);
			s->handover = s->given = false;
			send_ready(e);
			engine_watch(e, true);
			engine_set_state(e, FT_STANDBY, "in sync with %s again", s->primary_host);
		}
		ft__setup__free_unpacked(setup, NULL);
		return;
	}
	if (setup->takeover_ms != e->config.takeover_ms ||
	    setup->heartbeat_ms != e->config.heartbeat_ms)
		ft_warn("%s: heartbeat_ms %u, takeover_ms %u here, %u and %u at the primary: the "
			"same guest file should serve both",
			e->config.name, e->config.heartbeat_ms, e->config.takeover_ms,
			setup->heartbeat_ms, setup->takeover_ms);
	standby_reset(e);
	s->primary_generation = msg->generation;
	if (!e->config.home_is_fixed && is_host_id(setup->home))
		snprintf(e->home, sizeof e->home, "%s", setup->home);
	if (e->env->arm(e->env_ctx, setup, &err)) {
		ft_err_context(&err, "arm");
		standby_refuse(e, &err);
	} else if (setup->postcopy && prepare_postcopy(e, setup, &err)) {
		s->armed = true;
		standby_refuse(e, &err);
	} else {
		s->armed = true;
		s->session = setup->session;
		s->shared = setup_has_shared_disk(setup);
		s->comparing = setup->compare;
		s->moving = setup->migrate;
		e->mode = s->postcopy ? "postcopy" : s->moving ? "precopy" : "ft";
		engine_watch(
			e,
			true); /* or a primary that lost its power keeps this VM armed for ever */
		engine_set_state(e, FT_STANDBY, "receiving from %s", s->primary_host);
		send_ready(e);
	}
	ft__setup__free_unpacked(setup, NULL);
}

int ft_engine_committed_state(const struct ft_engine *e, const uint8_t **state, size_t *len,
			      struct ft_err *err)
{
	const struct ft_stage *g = &e->standby.stage;
	unsigned which = g->staging ^ 1;

	if (e->state.now != FT_STANDBY || !e->standby.committed || e->standby.suspicious)
		return ft_err_set(err, EINVAL, "the guest is %s and holds no checkpoint",
				  ft_state_name(e->state.now));
	*state = g->state[which];
	*len = g->state_len[which];
	return 0;
}

/* After a failed application the image is between two epochs: nothing that could run is left. */
static void image_broken(struct ft_engine *e, const struct ft_err *err)
{
	struct ft_err copy = *err;

	e->standby.committed = 0;
	standby_refuse(e, &copy);
}

static void conversation_failed(struct ft_engine *e, uint64_t committed_before,
				const struct ft_err *err)
{
	if (e->standby.committed != committed_before)
		image_broken(e, err);
	else
		standby_refuse(e, err);
}

void standby_leave(struct ft_engine *e)
{
	struct ft_err err = {0};

	/* The BYE is the primary's proof that what is held here will never run. Where the disks
	 * cannot be told so, there is none, and the primary goes on as from a standby that died. */
	bool proven = e->env->store_outdate(e->env_ctx, &err) == 0;

	if (!proven)
		engine_note_error(e, &err);
	standby_reset(e);
	if (proven && engine_data(e) && engine_send(e, FT_MSG_BYE, 0, NULL, NULL, 0) == 0)
		engine_data(e)->ops->drain(engine_data(e), 200);
	engine_hang_up(e);
}

static void on_bye(struct ft_engine *e)
{
	/* A BYE in answer would promise what the arbiter may just be undoing: its answer decides,
	 * and the primary hears of it from there. It is asked until it has answered. */
	if (e->asking == QUESTION_TAKEOVER) {
		engine_hang_up(e);
		engine_watch(e, false);
		e->standby.suspicious = true;
		e->standby.retry_ns = engine_now(e) + FT_RETRY_MS * NS_PER_MS;
		return;
	}
	/* Whoever offered itself is not wanted any more. */
	e->standby.offering = false;
	standby_leave(e);
	engine_set_state(e, FT_STANDBY, "the primary ended protection: waiting for a primary");
}

static void on_handover(struct ft_engine *e, const struct ft_msg *msg)
{
	struct ft_err err = {0};

	if (!e->standby.committed || msg->epoch != e->standby.committed) {
		ft_err_set(&err, EPROTO, "HANDOVER: epoch %llu: %llu is committed here",
			   (unsigned long long)msg->epoch,
			   (unsigned long long)e->standby.committed);
		standby_refuse(e, &err);
		return;
	}
	e->standby.handover = e->standby.given = true;
	arbitrate_standby_takeover(e);
}

/* What an operator asked for here does not happen. */
static int on_stays(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err)
{
	struct ft_standby *s = &e->standby;
	Ft__Stays *stays = ft__stays__unpack(NULL, msg->body_len, msg->body);
	struct ft_err why = {0};

	if (!stays)
		return ft_err_set(err, EPROTO, "STAYS: body does not parse");
	ft_err_set(&why, EAGAIN, "failover: the primary keeps the guest: %.200s", stays->what);
	ft__stays__free_unpacked(stays, NULL);
	s->asked_ns = 0;
	done_call(&s->failover_done, &why, 0);
	return 0;
}

void standby_message(struct ft_engine *e, const struct ft_msg *msg)
{
	struct ft_err err = {0};
	int rc = 0;

	if (e->state.now != FT_STANDBY)
		return; /* taking over: the primary has nothing more to say */
	if (msg->type == FT_MSG_SETUP) {
		on_setup(e, msg);
	} else if (msg->generation != e->standby.primary_generation || !e->standby.armed) {
		ft_err_set(&err, ESTALE, "%s: generation %llu: expected %llu",
			   ft_msg_name(msg->type), (unsigned long long)msg->generation,
			   (unsigned long long)e->standby.primary_generation);
		standby_refuse(e, &err);
	} else {
		uint64_t before = e->standby.committed;

		if (e->standby.storing && msg->type >= FT_MSG_PAGES && msg->type <= FT_MSG_END)
			rc = ft_err_set(&err, EPROTO, "%s: epoch %llu is not acknowledged yet",
					ft_msg_name(msg->type),
					(unsigned long long)e->standby.storing);
		switch (rc ? 0 : msg->type) {
		case 0:
			break;
		case FT_MSG_PAGES:
			rc = stage_pages(e, msg, &err);
			break;
		case FT_MSG_DISK:
			rc = stage_disk(e, msg, &err);
			break;
		case FT_MSG_BEGIN:
			rc = stage_begin(e, msg, &err);
			break;
		case FT_MSG_MISSING:
			rc = stage_missing(e, msg, &err);
			break;
		case FT_MSG_STATE:
			rc = stage_state(e, msg, &err);
			break;
		case FT_MSG_EVENTS:
			rc = stage_events(e, msg, &err);
			break;
		case FT_MSG_END:
			rc = stage_end(e, msg, &err);
			break;
		case FT_MSG_ROUND:
			/* What came before it has been applied. */
			if (e->standby.moving)
				(void)engine_send(e, FT_MSG_ROUND, 0, NULL, NULL, 0);
			else
				rc = ft_err_set(&err, EPROTO, "ROUND: not of a migration");
			break;
		case FT_MSG_BYE:
			on_bye(e);
			break;
		case FT_MSG_HANDOVER:
			on_handover(e, msg);
			break;
		case FT_MSG_STAYS:
			rc = on_stays(e, msg, &err);
			break;
		default:
			rc = ft_err_set(&err, EPROTO, "%s: not for a standby",
					ft_msg_name(msg->type));
		}
		if (rc)
			conversation_failed(e, before, &err);
	}
	ft_engine_tick(e);
}

void ft_engine_stored(struct ft_engine *e, uint64_t epoch, const struct ft_err *why)
{
	struct ft_standby *s = &e->standby;
	uint64_t before = s->committed;
	struct ft_err err = why ? *why : (struct ft_err){0};

	if (!s->storing || (!why && epoch != s->storing))
		return; /* a checkpoint that was given up */
	s->storing = 0;
	/* A journal that failed once takes nothing more: only a new session has a new one. */
	if (why)
		image_broken(e, &err);
	else if (stage_commit(e, &err))
		conversation_failed(e, before, &err);
	ft_engine_tick(e);
}
