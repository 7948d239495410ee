// SPDX-License-Identifier: Apache-2.0
/* Protection, the side where the guest runs: set-up with the peer, messages, time. Meeting the peer
 * is in meeting.c, the async rounds are in rounds.c, checkpoints in checkpoint.c and ship.c, the
 * end of protection in protection_end.c. */
#include "ft/engine_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "ft/log.h"

static void *map_buffer(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static void unmap_buffer(void *p, size_t bytes)
{
	if (p)
		munmap(p, bytes);
}

int primary_init(struct ft_engine *e, struct ft_err *err)
{
	struct ft_primary *p = &e->primary;

	/* Mapped, not touched: an unprotected guest pays nothing for buffers it does not use. */
	p->capture.pages_max = e->config.staging_bytes / VMM_PAGE_BYTES;
	p->capture.pages = map_buffer(p->capture.pages_max * VMM_PAGE_BYTES);
	p->capture.pfns = map_buffer(p->capture.pages_max * sizeof *p->capture.pfns);
	p->capture.state = map_buffer(VMM_STATE_BYTES_MAX);
	p->batch = map_buffer(FT_ROUND_BATCH * VMM_PAGE_BYTES);
	if (!p->capture.pages || !p->capture.pfns || !p->capture.state || !p->batch)
		return ft_err_set(err, ENOMEM, "staging: cannot map %zu bytes",
				  e->config.staging_bytes);
	return 0;
}

static void free_session(struct ft_engine *e)
{
	ft_bitmap_free(&e->primary.pending);
	ft_bitmap_free(&e->primary.overflow);
	ft_codec_free(e->primary.codec);
	e->primary.codec = NULL;
}

void primary_free(struct ft_engine *e)
{
	struct ft_primary *p = &e->primary;

	free_session(e);
	unmap_buffer(p->capture.pages, p->capture.pages_max * VMM_PAGE_BYTES);
	unmap_buffer(p->capture.pfns, p->capture.pages_max * sizeof *p->capture.pfns);
	unmap_buffer(p->capture.state, VMM_STATE_BYTES_MAX);
	unmap_buffer(p->batch, FT_ROUND_BATCH * VMM_PAGE_BYTES);
}

static void set_phase(struct ft_engine *e, enum primary_phase phase, unsigned deadline_ms)
{
	e->primary.phase = phase;
	e->primary.deadline_ns = deadline_ms ? engine_now(e) + deadline_ms * NS_PER_MS : 0;
}

/* ---- set-up ---- */

void primary_start_dial(struct ft_engine *e)
{
	set_phase(e, PRIMARY_DIALING, FT_SETUP_MAX_MS);
	e->env->dial(e->env_ctx, false);
}

int primary_begin(struct ft_engine *e, const char *what, ft_done_fn *done, void *ctx,
		  struct ft_err *err)
{
	int rc;

	if (e->state.now != FT_SOLO)
		return ft_err_set(err, EBUSY, "%s: the guest is %s", what,
				  ft_state_name(e->state.now));
	rc = pages_check(e, what, err);
	if (!rc)
		rc = vmm_check(e->vmm, err);
	if (rc)
		return ft_err_context(err, "%s", what);
	/* An attempt of our own to reach the last peer: the operator may mean another. */
	if (e->primary.phase != PRIMARY_IDLE)
		engine_hang_up(e);
	done_set(&e->primary.protect_done, done, ctx);
	e->primary.auto_retry = false;
	engine_set_state(e, FT_SYNCING, "connecting to the %s",
			 e->primary.move.on ? "target" : "standby");
	primary_start_dial(e);
	ft_engine_tick(e);
	return 0;
}

int ft_engine_protect(struct ft_engine *e, ft_done_fn *done, void *ctx, struct ft_err *err)
{
	return primary_begin(e, "protect", done, ctx, err);
}

void primary_dialed(struct ft_engine *e)
{
	if (e->primary.phase == PRIMARY_DIALING)
		set_phase(e, PRIMARY_HELLO, FT_SETUP_MAX_MS);
}

int primary_send_setup(struct ft_engine *e, bool resume, struct ft_err *err)
{
	Ft__Setup setup = FT__SETUP__INIT;
	int rc;

	setup.migrate = e->primary.move.on;
	setup.postcopy = e->primary.move.on && e->primary.move.how.postcopy;
	if (setup.postcopy)
		pages_announce(e);
	rc = e->env->describe(e->env_ctx, &setup, err);
	if (rc)
		return rc;
	e->primary.shared = setup_has_shared_disk(&setup);
	setup.session = e->primary.session;
	setup.resume = resume;
	setup.heartbeat_ms = e->config.heartbeat_ms;
	setup.takeover_ms = e->config.takeover_ms;
	setup.compare = !resume;
	setup.home = e->home;
	if (engine_send(e, FT_MSG_SETUP, 0, &setup.base, NULL, 0))
		return ft_err_set(err, EPIPE, "set-up: cannot send to %s", e->peer_host);
	return 0;
}

void primary_setup_failed(struct ft_engine *e, const struct ft_err *err)
{
	struct ft_err copy = *err;

	engine_note_error(e, &copy);
	primary_end(e, e->primary.auto_retry, copy.text);
}

void primary_claimed(struct ft_engine *e, enum ft_arbiter_answer answer, const char *why)
{
	struct ft_err err = {0};

	if (e->primary.phase != PRIMARY_HELLO)
		return;
	if (answer != FT_ARBITER_GRANTED) {
		ft_err_set(&err, EAGAIN, "arbiter %s: %s: %s", e->arbiter->ops->type,
			   answer == FT_ARBITER_LOST ? "the guest belongs to another host"
						     : "unreachable",
			   why);
		primary_setup_failed(e, &err);
		return;
	}
	do
		e->primary.session = e->env->random(e->env_ctx);
	while (!e->primary.session);
	e->mode = !e->primary.move.on		 ? "ft"
		  : e->primary.move.how.postcopy ? "postcopy"
						 : "precopy";
	snprintf(e->primary.partner, sizeof e->primary.partner, "%s", e->peer_host);
	e->primary.lease_from_ns = e->primary.lease.until_ns = engine_now(e);
	e->primary.lease_due_ns = e->primary.lease_from_ns + FT_ACK_MAX_MS * NS_PER_MS;
	set_phase(e, PRIMARY_SETUP, FT_SETUP_MAX_MS);
	if (primary_send_setup(e, false, &err))
		primary_setup_failed(e, &err);
}

static int begin_rounds(struct ft_engine *e, struct ft_err *err)
{
	struct ft_primary *p = &e->primary;
	struct vmm_info info;
	int rc;

	vmm_info(e->vmm, &info);
	p->refused = 0;
	p->switch_asked = false;
	free_session(e);
	/* A guest that moves is sent (nearly) once: bases would only be copies. */
	p->codec = ft_codec_new(info.ram_bytes / VMM_PAGE_BYTES,
				p->move.on ? 0 : e->config.delta_base_bytes);
	if (!p->codec || ft_bitmap_init(&p->pending, info.ram_bytes / VMM_PAGE_BYTES) ||
	    ft_bitmap_init(&p->overflow, info.ram_bytes / VMM_PAGE_BYTES))
		return ft_err_set(err, ENOMEM, "protect: out of memory");
	if (p->taps_in && !p->tracking) {
		/* Left from a takeover, passing through: they were made to replay, and there is no
		 * disk among them; or a disk does not take what was held. */
		rc = engine_pass(e, err);
		if (!rc)
			rc = e->env->taps_out(e->env_ctx, err);
		if (rc)
			return ft_err_context(err, "taps");
		p->taps_in = false;
	}
	if (!p->taps_in) {
		rc = e->env->taps_in(e->env_ctx, err);
		if (rc)
			return ft_err_context(err, "taps");
		p->taps_in = true;
	}
	e->untap_ns = 0;
	/* Marked first, so that a write between the two is never forgotten. */
	e->env->disks_all_behind(e->env_ctx);
	(void)tap_chain_set_mode(&e->chain, TAP_TRACK); /* new ones hold nothing */
	rc = vmm_track_start(e->vmm, err);
	if (rc)
		return ft_err_context(err, "tracker");
	p->tracking = true;
	ft_bitmap_set_all(&p->pending);
	if (p->move.on)
		ft_codec_pack(p->codec, false);
	p->first_commit_done = p->sync_claimed = false;
	p->failures = 0;
	memset(&p->round, 0, sizeof p->round);
	memset(&p->ship, 0, sizeof p->ship);
	p->round_at = 0;
	p->disk_bytes_alike = p->disk_bytes_known = p->disk_bytes_copied = 0;
	p->round_started_ns = engine_now(e);
	p->gave_away = p->solo_unsure = false;
	e->committed = e->epoch - 1;
	ft_overhead_start(&e->overhead, engine_now(e));
	return 0;
}

/* The session goes on. Outputs may be held, and a planned switch may have been cut short. */
static void resumed(struct ft_engine *e, const Ft__Ready *ready)
{
	struct ft_primary *p = &e->primary;
	struct ft_err err = {0};

	if (ready->committed != e->committed) {
		primary_peer_lost(e, "it resumes another checkpoint");
		return;
	}
	set_phase(e, PRIMARY_RUNNING, 0);
	p->requested = true;
	p->gave_away = false;
	engine_watch(e, true);
	engine_set_state(e, FT_PROTECTED, "the link is back: nothing was lost");
	p->retry_ns = engine_now(e);
	p->lease_due_ns = p->retry_ns + FT_ACK_MAX_MS * NS_PER_MS;
	if (p->stepped_back) {
		if (primary_step_forward(e, &err))
			primary_peer_lost(e, err.text);
	} else if (p->stopped) {
		ft_err_set(&err, ENOTCONN, "failover: the connection was lost meanwhile");
		switch_undone(e, &err, false);
	}
}

static void on_ready(struct ft_engine *e, const Ft__Ready *ready)
{
	struct ft_err err = {0};

	if (e->primary.phase != PRIMARY_SETUP)
		return;
	if (e->primary.first_commit_done) {
		resumed(e, ready);
		return;
	}
	if (begin_rounds(e, &err)) {
		primary_setup_failed(e, &err);
		return;
	}
	/* The heartbeat connection comes, or silence ends the attempt. */
	set_phase(e, PRIMARY_ROUNDS, FT_PROGRESS_MAX_MS);
	e->primary.comparing = ready->compares;
	if (e->primary.move.on && e->primary.move.how.postcopy)
		pages_open(e);
	engine_watch(e, true);
	engine_set_state(e, FT_SYNCING, "async rounds to %s", e->peer_host);
	primary_writable(e);
}

static void on_digest(struct ft_engine *e, const struct ft_msg *msg)
{
	Ft__Digest *digest = ft__digest__unpack(NULL, msg->body_len, msg->body);
	struct ft_err err = {0};

	if (!digest)
		return;
	/* Who asked has gone, or another was asked for since. */
	if (msg->epoch != e->primary.digest_epoch) {
		ft__digest__free_unpacked(digest, NULL);
		return;
	}
	e->primary.digest_epoch = 0;
	if (digest->value == e->primary.digest) {
		done_call(&e->primary.verify_done, NULL, digest->value);
	} else {
		ft_err_set(&err, EBADMSG,
			   "verify: epoch %llu: the standby's image differs: %016llx here, %016llx "
			   "there",
			   (unsigned long long)msg->epoch, (unsigned long long)e->primary.digest,
			   (unsigned long long)digest->value);
		engine_note_error(e, &err);
		done_call(&e->primary.verify_done, &err, digest->value);
	}
	ft__digest__free_unpacked(digest, NULL);
}

/* ---- messages, time ---- */

/* In order and of its own accord: it holds nothing any more, so nobody has to be asked. */
static void standby_left(struct ft_engine *e)
{
	static const char why[] = "the standby was stopped";

	if (e->primary.phase < PRIMARY_SETUP || e->primary.phase > PRIMARY_HANDING)
		return;
	if (e->primary.vm_dead)
		primary_peer_lost(e, why);
	else
		primary_end(e, e->primary.auto_retry, why);
}

void primary_message(struct ft_engine *e, const struct ft_msg *msg)
{
	switch (msg->type) {
	case FT_MSG_READY: {
		Ft__Ready *ready = ft__ready__unpack(NULL, msg->body_len, msg->body);

		if (ready) {
			on_ready(e, ready);
			ft__ready__free_unpacked(ready, NULL);
		}
		break;
	}
	case FT_MSG_ACK:
		primary_acked(e, msg);
		break;
	case FT_MSG_DIGEST:
		on_digest(e, msg);
		break;
	case FT_MSG_ROUND:
		migrate_applied(e);
		break;
	case FT_MSG_SUMS: {
		struct ft_err err = {0};

		if (compare_sums(e, msg, &err))
			primary_peer_lost(e, err.text);
		break;
	}
	case FT_MSG_HANDED:
		if (e->primary.phase == PRIMARY_HANDING && msg->generation > e->generation &&
		    msg->generation <= FT_COUNTER_MAX)
			switch_handed(e, msg->generation);
		break;
	case FT_MSG_HANDOVER: {
		struct ft_err err = {0};

		/* An operator asks on the other host: a planned switch like any other. */
		e->primary.switch_asked = true;
		if (switch_start(e, &err)) {
			engine_note_error(e, &err);
			switch_off(e, &err);
		}
		break;
	}
	case FT_MSG_BYE:
		if (e->primary.phase == PRIMARY_LEAVING)
			primary_end(e, e->primary.leave_retry, e->primary.why);
		else
			standby_left(e);
		break;
	default:
		ft_warn("%s: %s from a standby: ignored", e->config.name, ft_msg_name(msg->type));
	}
	ft_engine_tick(e);
}

static bool checkpoint_due(struct ft_engine *e, uint64_t now, uint64_t *wake)
{
	struct ft_primary *p = &e->primary;
	struct ft_policy_input in = {
		.now_ns = now,
		.resumed_ns = p->resumed_ns,
		.pause_ns = p->last_pause_ns,
		.in_flight = p->ship.phase != SHIP_IDLE,
		.output_ns = p->output_ns,
		.pressure = p->pressure,
		.requested = p->requested || p->want_digest,
	};
	struct ft_policy_verdict verdict = ft_policy_checkpoint(&e->config.policy, &in);

	*wake = verdict.wake_ns;
	return verdict.checkpoint;
}

/* When an unanswered question about the record is due again; its answer, when it is out, ticks by
 * itself. */
static uint64_t ask_again_ns(const struct ft_engine *e)
{
	return e->primary.solo_unsure && e->primary.first_commit_done && !e->asking
		       ? e->primary.retry_ns
		       : UINT64_MAX;
}

static uint64_t tick_running(struct ft_engine *e, uint64_t now)
{
	struct ft_primary *p = &e->primary;
	uint64_t wake = UINT64_MAX;

	if (now >= ask_again_ns(e)) {
		p->retry_ns = now + FT_RETRY_MS * NS_PER_MS;
		arbitrate_in_sync(e);
		return now;
	}
	if (p->ship.phase != SHIP_IDLE) {
		if (now >= p->ship.deadline_ns) {
			primary_peer_lost(e, p->ship.phase == SHIP_WAIT_ACK
						     ? "no acknowledgement in time"
						     : "takes no data");
			return now;
		}
		return min_u64(p->ship.deadline_ns, ask_again_ns(e));
	}
	if (p->verify_done.fn && p->verify_until_ns && now >= p->verify_until_ns) {
		struct ft_err err = {0};

		ft_err_set(&err, ETIMEDOUT,
			   "verify: the standby's digest did not come within %d ms", FT_ACK_MAX_MS);
		done_call(&p->verify_done, &err, 0);
	}
	if ((p->sync_claimed && !p->first_commit_done) || p->vm_dead)
		return wake; /* the arbiter or the hand-over answers */
	if (p->release_ns) {
		if (now >= p->lease_due_ns) {
			primary_peer_lost(e, "it grants no lease for the shared disks");
			return now;
		}
		if (now < p->release_ns)
			return p->release_ns;
		if (!primary_release(e))
			return p->release_ns;
	}
	if (p->want_switch && p->ship.phase == SHIP_IDLE) {
		p->want_switch = false;
		primary_checkpoint(e, true);
		return now;
	}
	if (checkpoint_due(e, now, &wake)) {
		primary_checkpoint(e, false);
		return now;
	}
	/* Idle time is the time to make the next pause short. */
	if (p->ship.phase == SHIP_IDLE)
		(void)vmm_checkpoint_prepare(e->vmm, NULL);
	return min_u64(wake, ask_again_ns(e));
}

uint64_t primary_tick(struct ft_engine *e, uint64_t now)
{
	struct ft_primary *p = &e->primary;
	bool late = p->deadline_ns && now >= p->deadline_ns;
	struct ft_err err = {0};
	uint64_t wake;

	switch (p->phase) {
	case PRIMARY_IDLE:
		return UINT64_MAX;
	case PRIMARY_DIALING:
	case PRIMARY_HELLO:
	case PRIMARY_SETUP:
		if (late) {
			ft_err_set(&err, ETIMEDOUT, "standby: no answer within %d ms",
				   FT_SETUP_MAX_MS);
			if (p->first_commit_done)
				primary_peer_lost(e, err.text);
			else
				primary_setup_failed(e, &err);
			return now;
		}
		return p->deadline_ns;
	case PRIMARY_ROUNDS:
		if (late) {
			primary_peer_lost(e, "takes no data");
			return now;
		}
		wake = migrate_tick(e, now);
		primary_writable(e);
		return p->phase == PRIMARY_ROUNDS && !p->round_more ? min_u64(p->deadline_ns, wake)
								    : now;
	case PRIMARY_RUNNING:
		return tick_running(e, now);
	case PRIMARY_LEAVING:
		if (late) {
			primary_peer_lost(e, "no answer to BYE");
			return now;
		}
		return p->deadline_ns;
	case PRIMARY_HANDING:
		if (late) {
			primary_peer_lost(e, "no answer to the hand-over");
			return now;
		}
		return p->deadline_ns;
	case PRIMARY_LOST:
		return primary_lost_tick(e, now);
	case PRIMARY_RETRY:
		if (late)
			primary_start_dial(e);
		return p->deadline_ns;
	}
	return UINT64_MAX;
}

void ft_engine_output(struct ft_engine *e)
{
	if (!e->primary.output_ns)
		e->primary.output_ns = engine_now(e);
	if (e->primary.phase == PRIMARY_RUNNING && e->primary.ship.phase == SHIP_IDLE)
		ft_engine_tick(e);
}

void ft_engine_pressure(struct ft_engine *e)
{
	e->primary.pressure = true;
	ft_engine_tick(e);
}
