// SPDX-License-Identifier: Apache-2.0
/* The standby: receives, stages, verifies, acknowledges, applies.
 *
 * Async pages and disk chunks (epoch 0) go straight into the image, for nothing is committed yet. A
 * checkpoint is staged whole beside the image; END makes it committed if the totals are right, and
 * only then is it acknowledged and applied. Frames were verified by the link; what is checked here
 * is that records are well-formed and in range, before anything is kept. A checkpoint is applied
 * whole or not at all: a broken connection leaves the last committed one.
 *
 * The first checkpoint of a session is applied and tried in a throw-away VM before it is
 * acknowledged: a standby that cannot resume says so while the guest is still unprotected. */
#include "ft/engine_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "ft/log.h"

#define APPLY_WINDOW	   (4u << 20)
#define APPLY_BEAT_RECORDS 256

int standby_init(struct ft_engine *e, struct ft_err *err)
{
	struct ft_standby *s = &e->standby;
	const struct ft_engine_config *c = &e->config;
	/* Half for pages, a quarter for the outputs of the staged epoch, a quarter for those of the
	 * committed one. */
	size_t events = c->staging_bytes / 4;

	s->scratch_max = APPLY_WINDOW;
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

	ft_spool_free(&s->stage.pages);
	for (unsigned i = 0; i < 2; i++) {
		ft_spool_free(&s->stage.events[i]);
		free(s->stage.state[i]);
	}
	if (s->scratch)
		munmap(s->scratch, s->scratch_max);
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
	s->armed = false;
	s->session = s->committed = 0;
	s->suspicious = s->handover = s->given = false;
	s->unlinked_ns = s->asked_ns = s->tell_ns = 0;
	s->fence = FENCE_TO_DO;
	s->grant.echo_ns = 0; /* of another clock, perhaps */
	s->stage.epoch = 0;
	ft_spool_reset(&s->stage.pages);
	ft_spool_reset(&s->stage.events[0]);
	ft_spool_reset(&s->stage.events[1]);
}

/* A fault that ends the session: the primary is told, what is committed stays committed. */
static void refuse(struct ft_engine *e, const struct ft_err *err)
{
	struct ft_err copy = *err;

	engine_note_error(e, &copy);
	if (engine_data(e))
		engine_refuse(e, engine_data(e), &copy);
	engine_hang_up(e);
	e->standby.stage.epoch = 0;
	e->standby.handover = e->standby.given = false;
	e->standby.retry_ns = engine_now(e) + FT_RETRY_MS * NS_PER_MS;
	if (!e->standby.committed) {
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
	e->standby.suspicious = false;
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
	(void)engine_send(e, FT_MSG_READY, e->standby.committed, &ready.base, NULL, 0);
}

static bool has_shared_disk(const Ft__Setup *setup)
{
	bool shared = false;

	for (size_t i = 0; i < setup->n_disks; i++)
		shared |= setup->disks[i]->shared;
	return shared;
}

static void on_setup(struct ft_engine *e, const struct ft_msg *msg)
{
	struct ft_standby *s = &e->standby;
	Ft__Setup *setup = ft__setup__unpack(NULL, msg->body_len, msg->body);
	struct ft_err err = {0};

	if (!setup) {
		ft_err_set(&err, EPROTO, "SETUP: body does not parse");
		refuse(e, &err);
		return;
	}
	if (msg->generation < e->generation) {
		ft_err_set(&err, ESTALE, "SETUP: generation %llu: this side knows %llu already",
			   (unsigned long long)msg->generation, (unsigned long long)e->generation);
		refuse(e, &err);
		ft__setup__free_unpacked(setup, NULL);
		return;
	}
	if (!msg->generation || msg->generation > FT_COUNTER_MAX) {
		ft_err_set(&err, EPROTO, "SETUP: generation %llu: there is no such one",
			   (unsigned long long)msg->generation);
		refuse(e, &err);
		ft__setup__free_unpacked(setup, NULL);
		return;
	}
	if (setup->resume) {
		if (!s->session || setup->session != s->session ||
		    msg->generation != s->primary_generation) {
			ft_err_set(&err, ESTALE,
				   "SETUP: resume of a session that this standby does not have");
			refuse(e, &err);
		} else {
			s->stage.epoch = 0;
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
	if (e->env->arm(e->env_ctx, setup, &err)) {
		ft_err_context(&err, "arm");
		refuse(e, &err);
	} else {
		s->armed = true;
		s->session = setup->session;
		s->shared = has_shared_disk(setup);
		engine_watch(
			e,
			true); /* or a primary that lost its power keeps this VM armed for ever */
		engine_set_state(e, FT_STANDBY, "receiving from %s", s->primary_host);
		send_ready(e);
	}
	ft__setup__free_unpacked(setup, NULL);
}

/* ---- pages ---- */

/* Hands every record of buf to the image. */
static int apply_pages(struct ft_engine *e, const uint8_t *buf, size_t len, size_t *used,
		       struct ft_err *err)
{
	struct vmm_info info;
	uint8_t *image = vmm_image(e->vmm);
	size_t at = 0, records = 0;

	vmm_info(e->vmm, &info);
	while (at < len) {
		struct ft_page_record rec;
		int n = ft_page_record_parse(buf + at, len - at, info.ram_bytes / VMM_PAGE_BYTES,
					     &rec, err);
		int rc;

		/* One frame may have tens of thousands of empty pages, each of them a page to fault
		 * in. */
		if (++records % APPLY_BEAT_RECORDS == 0)
			engine_beat(e);
		if (n < 0)
			return n;
		if (n == 0)
			break;
		rc = ft_page_record_apply(&rec, image + rec.pfn * VMM_PAGE_BYTES, err);
		if (rc)
			return rc;
		at += (size_t)n;
	}
	*used = at;
	return 0;
}

static int check_pages(struct ft_engine *e, const uint8_t *buf, size_t len, struct ft_err *err)
{
	struct vmm_info info;
	size_t at = 0;

	vmm_info(e->vmm, &info);
	while (at < len) {
		struct ft_page_record rec;
		int n = ft_page_record_parse(buf + at, len - at, info.ram_bytes / VMM_PAGE_BYTES,
					     &rec, err);

		if (n <= 0)
			return n < 0 ? n
				     : ft_err_set(err, EPROTO,
						  "PAGES: a record is cut by the end of its frame");
		at += (size_t)n;
	}
	return 0;
}

static int on_pages(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err)
{
	struct ft_standby *s = &e->standby;
	size_t used;
	int rc;

	if (msg->epoch == 0) {
		if (s->committed)
			return ft_err_set(err, EPROTO, "PAGES: async pages onto a committed image");
		rc = apply_pages(e, msg->payload, msg->payload_len, &used, err);
		if (!rc && used != msg->payload_len)
			rc = ft_err_set(err, EPROTO,
					"PAGES: a record is cut by the end of its frame");
		return rc;
	}
	if (msg->epoch != s->stage.epoch)
		return ft_err_set(err, EPROTO, "PAGES: epoch %llu while %llu is staged",
				  (unsigned long long)msg->epoch,
				  (unsigned long long)s->stage.epoch);
	rc = check_pages(e, msg->payload, msg->payload_len, err);
	if (!rc && ft_spool_append(&s->stage.pages, msg->payload, msg->payload_len))
		rc = ft_err_set(err, ENOSPC, "staging: no room for pages");
	return rc;
}

static int on_disk(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err)
{
	Ft__DiskChunk *body = ft__disk_chunk__unpack(NULL, msg->body_len, msg->body);
	struct ft_disk_chunk chunk;
	int rc;

	if (!body)
		return ft_err_set(err, EPROTO, "DISK: body does not parse");
	chunk = (struct ft_disk_chunk){.disk = body->disk,
				       .offset = body->offset,
				       .bytes = body->bytes,
				       .zero = body->zero};
	ft__disk_chunk__free_unpacked(body, NULL);
	if (e->standby.committed)
		return ft_err_set(err, EPROTO, "DISK: initial copy onto a committed disk");
	if (!chunk.zero && chunk.bytes != msg->payload_len)
		return ft_err_set(err, EPROTO, "DISK: %u bytes announced, %u sent", chunk.bytes,
				  msg->payload_len);
	rc = e->env->store_sync(e->env_ctx, &chunk, msg->payload, err);
	return rc;
}

/* ---- a checkpoint ---- */

static int on_begin(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err)
{
	struct ft_standby *s = &e->standby;
	struct ft_stage *g = &s->stage;

	if (msg->epoch > FT_COUNTER_MAX)
		return ft_err_set(err, EPROTO, "BEGIN: epoch %llu: there is no such one",
				  (unsigned long long)msg->epoch);
	if (!msg->epoch || msg->epoch <= s->committed)
		return ft_err_set(err, EPROTO, "BEGIN: epoch %llu after %llu was committed",
				  (unsigned long long)msg->epoch, (unsigned long long)s->committed);
	/* The primary starts an epoch only after it released the one before. */
	e->env->store_released(e->env_ctx, s->committed);
	g->epoch = msg->epoch;
	ft_spool_reset(&g->pages);
	ft_spool_reset(&g->events[g->staging]);
	g->state_len[g->staging] = 0;
	return 0;
}

static int on_state(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err)
{
	struct ft_stage *g = &e->standby.stage;
	size_t *len = &g->state_len[g->staging];

	if (msg->epoch != g->epoch || !g->epoch)
		return ft_err_set(err, EPROTO, "STATE: epoch %llu is not being staged",
				  (unsigned long long)msg->epoch);
	if (msg->payload_len > VMM_STATE_BYTES_MAX - *len)
		return ft_err_set(err, EPROTO, "STATE: more than %u bytes", VMM_STATE_BYTES_MAX);
	if (msg->payload_len)
		memcpy(g->state[g->staging] + *len, msg->payload, msg->payload_len);
	*len += msg->payload_len;
	return 0;
}

static int on_events(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err)
{
	struct ft_stage *g = &e->standby.stage;

	if (msg->epoch != g->epoch || !g->epoch)
		return ft_err_set(err, EPROTO, "EVENTS: epoch %llu is not being staged",
				  (unsigned long long)msg->epoch);
	if (ft_spool_append(&g->events[g->staging], msg->payload, msg->payload_len))
		return ft_err_set(err, ENOSPC, "staging: no room for outputs");
	return 0;
}

int standby_each_event(struct ft_engine *e, struct ft_spool *spool,
		       int (*fn)(struct ft_engine *, const struct tap_record *, struct ft_err *),
		       struct ft_err *err)
{
	struct ft_standby *s = &e->standby;
	uint64_t at = 0;

	while (at < spool->len) {
		const uint8_t *window;
		struct tap_record rec;
		size_t need = 0;
		long have = ft_spool_window(spool, at, TAP_RECORD_HEADER, s->scratch,
					    s->scratch_max, &window),
		     n;
		int rc;

		if (have < 0)
			return ft_err_set(err, (int)-have, "staging: cannot read back outputs");
		n = tap_record_parse(window, (size_t)have, &rec, &need);
		if (n == 0 && need && need <= spool->len - at && (size_t)have < need) {
			/* Larger than the scratch only for giant disk writes that lie across the
			 * seam. */
			if (need > s->scratch_max) {
				uint8_t *larger =
					mremap(s->scratch, s->scratch_max, need, MREMAP_MAYMOVE);

				if (larger == MAP_FAILED)
					return ft_err_set(err, ENOMEM, "staging: out of memory");
				s->scratch = larger;
				s->scratch_max = need;
			}
			have = ft_spool_window(spool, at, need, s->scratch, s->scratch_max,
					       &window);
			if (have < 0)
				return ft_err_set(err, (int)-have,
						  "staging: cannot read back outputs");
			n = tap_record_parse(window, (size_t)have, &rec, NULL);
		}
		if (n <= 0)
			return ft_err_set(err, EPROTO, "EVENTS: malformed record");
		rc = fn(e, &rec, err);
		if (rc)
			return rc;
		at += (uint64_t)n;
		engine_beat(e);
	}
	return 0;
}

static int check_event(struct ft_engine *e, const struct tap_record *rec, struct ft_err *err)
{
	(void)e;
	(void)rec;
	(void)err;
	return 0; /* the walk itself checks the form */
}

static int apply_event(struct ft_engine *e, const struct tap_record *rec, struct ft_err *err)
{
	switch (rec->kind) {
	case TAP_DISK_WRITE:
	case TAP_DISK_ZERO:
	case TAP_DISK_TRIM:
	case TAP_DISK_FLUSH:
		return e->env->store_apply(e->env_ctx, rec, err);
	default:
		return 0; /* kept for the replay at takeover */
	}
}

static int apply_staged_pages(struct ft_engine *e, struct ft_err *err)
{
	struct ft_standby *s = &e->standby;
	uint64_t at = 0;

	while (at < s->stage.pages.len) {
		const uint8_t *window;
		size_t used = 0;
		long have = ft_spool_window(&s->stage.pages, at, FT_PAGE_RECORD_MAX, s->scratch,
					    s->scratch_max, &window);
		int rc;

		if (have < 0)
			return ft_err_set(err, (int)-have, "staging: cannot read back pages");
		/* A slice at a time: heartbeats go on while a large checkpoint is applied. */
		rc = apply_pages(e, window,
				 (size_t)have < APPLY_WINDOW ? (size_t)have : APPLY_WINDOW, &used,
				 err);
		if (rc)
			return rc;
		if (!used)
			return ft_err_set(err, EPROTO, "staging: cut page record");
		at += used;
		engine_beat(e);
	}
	return 0;
}

static int apply_disks(struct ft_engine *e, unsigned which, struct ft_err *err)
{
	int rc = standby_each_event(e, &e->standby.stage.events[which], apply_event, err);

	return rc ? rc : e->env->store_commit(e->env_ctx, e->generation, e->standby.committed, err);
}

/* From here on a takeover resumes this epoch. */
static void commit(struct ft_engine *e)
{
	struct ft_standby *s = &e->standby;

	s->committed = s->stage.epoch;
	s->stage.staging ^= 1;
	s->stage.epoch = 0;
	e->committed = s->committed;
	e->generation = s->primary_generation;
	e->checkpoints++;
}

static int first_commit(struct ft_engine *e, struct ft_err *err)
{
	struct ft_standby *s = &e->standby;
	unsigned staged = s->stage.staging;
	int rc = apply_staged_pages(e, err);

	if (!rc) {
		engine_ask_patience(e, FT_TRIAL_ACK_MAX_MS / 2);
		rc = vmm_trial(e->vmm, s->stage.state[staged], s->stage.state_len[staged], err);
		if (rc)
			ft_err_context(err, "trial load");
	}
	if (rc)
		return rc;
	commit(e);
	rc = apply_disks(e, staged, err);
	if (rc)
		return rc;
	e->env->generation(e->env_ctx, e->generation);
	if (engine_send(e, FT_MSG_ACK, s->committed, NULL, NULL, 0))
		return ft_err_set(err, EPIPE, "cannot acknowledge");
	engine_watch(e, true);
	engine_set_state(e, FT_STANDBY, "in sync with %s", s->primary_host);
	return 0;
}

static int later_commit(struct ft_engine *e, struct ft_err *err)
{
	struct ft_standby *s = &e->standby;
	unsigned staged = s->stage.staging;
	int rc;

	commit(e);
	/* A lost acknowledgement is the primary's problem: the takeover resumes this epoch either
	 * way. */
	(void)engine_send(e, FT_MSG_ACK, s->committed, NULL, NULL, 0);
	rc = apply_staged_pages(e, err);
	return rc ? rc : apply_disks(e, staged, err);
}

static int on_end(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err)
{
	struct ft_standby *s = &e->standby;
	struct ft_stage *g = &s->stage;
	Ft__End *end = ft__end__unpack(NULL, msg->body_len, msg->body);
	bool whole, digest;
	int rc;

	if (!end)
		return ft_err_set(err, EPROTO, "END: body does not parse");
	whole = g->epoch && msg->epoch == g->epoch && end->pages_bytes == g->pages.len &&
		end->state_bytes == g->state_len[g->staging] &&
		end->events_bytes == g->events[g->staging].len && end->state_bytes > 0;
	digest = end->digest;
	if (end->trial != !s->committed)
		whole = false;
	ft__end__free_unpacked(end, NULL);
	if (!whole)
		return ft_err_set(err, EPROTO,
				  "END: epoch %llu: totals do not match what was staged",
				  (unsigned long long)msg->epoch);
	rc = standby_each_event(e, &g->events[g->staging], check_event, err);
	if (rc)
		return rc;
	rc = s->committed ? later_commit(e, err) : first_commit(e, err);
	if (rc)
		return rc;
	if (digest) {
		Ft__Digest answer = FT__DIGEST__INIT;

		engine_ask_patience(e, FT_ACK_MAX_MS);
		rc = vmm_ram_digest(e->vmm, &answer.value, err);
		if (rc)
			return rc;
		engine_ask_patience(e, 0);
		(void)engine_send(e, FT_MSG_DIGEST, s->committed, &answer.base, NULL, 0);
	}
	return 0;
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
	refuse(e, &copy);
}

void standby_leave(struct ft_engine *e)
{
	struct ft_err err = {0};

	/* The BYE is the primary's proof that what is held here will never run. */
	if (e->env->store_outdate(e->env_ctx, &err))
		engine_note_error(e, &err);
	standby_reset(e);
	if (engine_data(e) && engine_send(e, FT_MSG_BYE, 0, NULL, NULL, 0) == 0)
		engine_data(e)->ops->drain(engine_data(e), 200);
	engine_hang_up(e);
}

static void on_bye(struct ft_engine *e)
{
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
		refuse(e, &err);
		return;
	}
	e->standby.handover = e->standby.given = true;
	arbitrate_standby_takeover(e);
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
		refuse(e, &err);
	} else {
		uint64_t before = e->standby.committed;

		switch (msg->type) {
		case FT_MSG_PAGES:
			rc = on_pages(e, msg, &err);
			break;
		case FT_MSG_DISK:
			rc = on_disk(e, msg, &err);
			break;
		case FT_MSG_BEGIN:
			rc = on_begin(e, msg, &err);
			break;
		case FT_MSG_STATE:
			rc = on_state(e, msg, &err);
			break;
		case FT_MSG_EVENTS:
			rc = on_events(e, msg, &err);
			break;
		case FT_MSG_END:
			rc = on_end(e, msg, &err);
			break;
		case FT_MSG_BYE:
			on_bye(e);
			break;
		case FT_MSG_HANDOVER:
			on_handover(e, msg);
			break;
		default:
			rc = ft_err_set(&err, EPROTO, "%s: not for a standby",
					ft_msg_name(msg->type));
		}
		if (rc && e->standby.committed != before)
			image_broken(e, &err);
		else if (rc)
			refuse(e, &err);
	}
	ft_engine_tick(e);
}
