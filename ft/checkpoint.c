// SPDX-License-Identifier: Apache-2.0
/* One checkpoint of a protected guest, from the hold to its commit: capture with the guest paused,
 * acknowledgement, release of what waited for it; and what a failed one leaves behind, which is
 * nothing but pages that are still owed. Its way over the wire is in ship.c. */
#include "ft/engine_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "ft/log.h"

struct hold {
	struct ft_engine *e;
	struct ft_err err;
	int rc;
	bool closed;
};

static void on_stopped(void *ctx)
{
	struct hold *h = ctx;

	h->rc = tap_chain_close_epoch(&h->e->chain, h->e->epoch, &h->err);
	h->closed = true;
}

/* A slow disk is no silence. */
static void on_waiting(void *ctx)
{
	struct hold *h = ctx;

	engine_beat(h->e);
}

static int on_full(void *ctx, struct vmm_capture *capture)
{
	struct hold *h = ctx;

	return ship_full(h->e, capture);
}

void primary_abort_checkpoint(struct ft_engine *e, const char *why)
{
	struct ft_primary *p = &e->primary;
	struct ft_err err = {.code = EIO};

	if (p->codec)
		ft_codec_abort(p->codec);
	memset(&p->ship, 0, sizeof p->ship);
	snprintf(err.text, sizeof err.text, "checkpoint: %s", why);
	for (unsigned i = 0; i < FT_DONE_MAX; i++)
		done_call(&p->in_flight[i], &err, 0);
	p->want_digest = false;
	p->digest_epoch = 0;
	done_call(&p->verify_done, &err, 0);
}

void primary_forget_waiting(struct ft_engine *e, const struct ft_err *why)
{
	for (unsigned i = 0; i < FT_DONE_MAX; i++)
		done_call(&e->primary.waiting[i], why, 0);
}

static void checkpoint_failed(struct ft_engine *e, bool closed, const struct ft_err *err)
{
	struct ft_primary *p = &e->primary;
	struct ft_err copy = *err;

	e->checkpoints_failed++;
	if (closed)
		e->epoch++; /* its outputs stay held and go with the next checkpoint */
	ft_err_context(&copy, "checkpoint %llu", (unsigned long long)e->epoch);
	engine_note_error(e, &copy);
	primary_abort_checkpoint(e, copy.text);
	switch_off(e, &copy);
	if (p->move.on) {
		migrate_failed(e, &copy);
		return;
	}
	p->requested = true; /* outputs wait: again as soon as the budget allows */
	if (++p->failures < FT_CHECKPOINT_TRIES || p->vm_dead)
		return;
	/* The standby is there: it lets go by agreement, and protection starts anew with rounds. */
	if (p->sync_claimed && p->phase == PRIMARY_RUNNING && engine_data(e))
		primary_leave(e, p->auto_retry, copy.text);
	else
		primary_peer_lost(e, copy.text);
}

static int capture(struct ft_engine *e, bool keep_stopped, struct hold *hold)
{
	struct ft_primary *p = &e->primary;
	struct vmm_hold_hooks hooks = {
		.stopped = on_stopped, .full = on_full, .waiting = on_waiting, .ctx = hold};
	int rc;

	/* A failed checkpoint that used it left bits: those pages are pending again, so a clean
	 * start is right. */
	if (p->overflow.count)
		ft_bitmap_clear_all(&p->overflow);
	memset(&p->ship, 0, sizeof p->ship);
	p->capture.pages_n = 0;
	p->capture.no_pages = p->move.on && p->move.how.postcopy;
	e->env->firing(e->env_ctx, true);
	rc = vmm_checkpoint(e->vmm, &p->pending, &p->capture, &hooks, keep_stopped, &hold->err);
	e->env->firing(e->env_ctx, false);
	/* The epoch did not close: this checkpoint is void, and the guest was to stay stopped for
	 * it. */
	if (!rc && hold->rc && keep_stopped)
		(void)vmm_cont(e->vmm, NULL);
	return rc ? rc : hold->rc;
}

static void take_digest(struct ft_engine *e, struct hold *hold)
{
	struct vmm_info info;

	vmm_info(e->vmm, &info);
	/* 1 GiB takes 0.3 s here; say so before, or a careful standby takes over. */
	engine_ask_patience(e, (unsigned)(1000 + info.ram_bytes / (1u << 20)));
	hold->rc = vmm_ram_digest(e->vmm, &e->primary.digest, &hold->err);
	if (vmm_cont(e->vmm, hold->rc ? NULL : &hold->err))
		hold->rc = -EIO;
	e->primary.digest_epoch = e->epoch;
}

static void verify_comes_too_late(struct ft_engine *e)
{
	struct ft_err err = {0};

	ft_err_set(&err, ECANCELED, "verify: the guest is being handed over");
	done_call(&e->primary.verify_done, &err, 0);
}

void primary_checkpoint(struct ft_engine *e, bool keep_stopped)
{
	struct ft_primary *p = &e->primary;
	struct hold hold = {.e = e};
	uint64_t started = engine_now(e);
	bool digest = p->want_digest && !keep_stopped;
	int rc;

	assert(p->ship.phase == SHIP_IDLE);
	if (p->want_digest && keep_stopped)
		verify_comes_too_late(e);
	p->output_ns = 0;
	p->pressure = p->requested = p->want_digest = false;
	memcpy(p->in_flight, p->waiting, sizeof p->in_flight);
	memset(p->waiting, 0, sizeof p->waiting);
	rc = capture(e, keep_stopped || digest, &hold);
	if (!rc && digest) {
		take_digest(e, &hold);
		rc = hold.rc;
	}
	p->resumed_ns = engine_now(e);
	if (rc) {
		checkpoint_failed(e, hold.closed, &hold.err);
		return;
	}
	p->last_pause_ns = p->capture.pause_ns;
	p->failures = 0;
	p->stopped = keep_stopped;
	p->ship.started_ns = started;
	p->ship.trial = !p->first_commit_done;
	p->ship.digest = digest;
	p->verify_until_ns = digest ? p->resumed_ns + FT_ACK_MAX_MS * NS_PER_MS : 0;
	p->ship.handover = keep_stopped;
	ft_overhead_add(&e->overhead, p->resumed_ns, p->last_pause_ns);
	ft_series_add(&e->pause_us, p->last_pause_ns / 1000);
	ship_start(e, e->epoch);
	ft_series_add(&e->dirty_pages, p->ship.pages);
	e->epoch++;
	ship_continue(e);
}

/* What the standby has is no longer owed. No harvest happened since the capture: one checkpoint is
 * in flight at most. */
static void forget_owed(struct ft_primary *p)
{
	if (p->overflow.count) {
		for (uint64_t i = ft_bitmap_next(&p->overflow, 0); i < p->overflow.bits;
		     i = ft_bitmap_next(&p->overflow, i + 1))
			ft_bitmap_clear(&p->pending, i);
	}
	for (size_t i = 0; i < p->capture.pages_n; i++)
		ft_bitmap_clear(&p->pending, p->capture.pfns[i]);
}

static void done_in_flight(struct ft_engine *e)
{
	for (unsigned i = 0; i < FT_DONE_MAX; i++)
		done_call(&e->primary.in_flight[i], NULL, e->committed);
}

/* A shared disk that does not take what is committed: until it does there is no next epoch, for the
 * standby keeps its copy only until then. */
bool primary_release(struct ft_engine *e)
{
	struct ft_err err = {0};

	e->primary.release_ns = 0;
	if (tap_chain_release(&e->chain, e->committed, &err)) {
		if (err.code != EAGAIN) /* waiting for the lease is no error */
			engine_note_error(e, &err);
		e->primary.release_ns = engine_now(e) + FT_RELEASE_RETRY_MS * NS_PER_MS;
		return false;
	}
	done_in_flight(e);
	return true;
}

void primary_committed(struct ft_engine *e, uint64_t epoch)
{
	struct ft_primary *p = &e->primary;
	bool handover = p->ship.handover;
	struct ft_err err = p->ship.refused;
	int rc;

	forget_owed(p);
	ft_codec_commit(p->codec, epoch);
	e->committed = epoch;
	e->checkpoints++;
	e->bytes_raw += p->ship.raw_bytes + p->ship.events_bytes;
	ft_series_add(&e->commit_us, (engine_now(e) - p->ship.started_ns) / 1000);
	memset(&p->ship, 0, sizeof p->ship);
	if (handover) {
		/* the standby sends this epoch's outputs: we do not run again */
		if (err.code)
			migrate_failed(e, &err);
		else if (p->move.on)
			migrate_acked(e);
		else
			switch_acked(e);
		return;
	}
	if (!p->first_commit_done) {
		/* From here on the standby may be granted, so the record must say so before the
		 * first output goes. */
		p->sync_claimed = true;
		/* Marks are written to disks, which may be slow. */
		engine_ask_patience(e, FT_GUARD_MAX_MS);
		rc = e->env->guard(e->env_ctx, true, &err);
		engine_ask_patience(e, 0);
		if (rc) {
			engine_note_error(e, &err);
			primary_leave(e, p->auto_retry, err.text);
			return;
		}
		e->env->changed(e->env_ctx);
		arbitrate_in_sync(e);
		return;
	}
	if (p->vm_dead)
		done_in_flight(e);
	else if (!primary_release(e))
		return;
	e->env->changed(e->env_ctx);
	if (p->vm_dead)
		switch_acked(e);
}

void primary_in_sync(struct ft_engine *e, enum ft_arbiter_answer answer, const char *why)
{
	struct ft_primary *p = &e->primary;
	struct ft_err err = {0};

	if (p->phase != PRIMARY_RUNNING || p->first_commit_done)
		return;
	if (answer != FT_ARBITER_GRANTED) {
		/* "Unreachable" may still become true later: the standby must forget what it has
		 * before the guest goes on without it. */
		ft_err_set(&err, EAGAIN,
			   "arbiter %s: cannot record that the standby is in sync: %s",
			   e->arbiter->ops->type, why);
		engine_note_error(e, &err);
		primary_leave(e, p->auto_retry, err.text);
		return;
	}
	if (p->move.on) {
		migrate_granted(e);
		return;
	}
	p->first_commit_done = true;
	p->auto_retry = true;
	engine_watch(e, true);
	engine_set_state(e, FT_PROTECTED, "standby %s has checkpoint %llu", e->peer_host,
			 (unsigned long long)e->committed);
	(void)primary_release(e);
	done_call(&p->protect_done, NULL, e->committed);
}

void primary_acked(struct ft_engine *e, const struct ft_msg *msg)
{
	struct ft_ship *s = &e->primary.ship;

	/* Late acknowledgements of a lost session or an aborted epoch are no news. */
	if (e->primary.phase != PRIMARY_RUNNING || s->phase != SHIP_WAIT_ACK ||
	    msg->epoch != s->epoch || msg->generation != e->generation) {
		ft_debug("%s: ACK of epoch %llu ignored", e->config.name,
			 (unsigned long long)msg->epoch);
		return;
	}
	primary_committed(e, msg->epoch);
}
