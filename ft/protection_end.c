// SPDX-License-Identifier: Apache-2.0
/* How protection ends on the primary: the peer is lost, the operator cancels, the VM dies. In each
 * case exactly one question matters: may what is held leave? Only by agreement with the peer, by a
 * solo grant, or when no standby could be granted anyway. */
#include "ft/engine_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "ft/log.h"

#define FT_REDIAL_MS 1000 /* after protection was lost: how often the standby is looked for */

/* Might the standby be running the guest, or be granted it? */
static bool standby_may_have_it(const struct ft_primary *p)
{
	return p->sync_claimed;
}

/* The VM is no more. What it put out last, its disk writes above all, is the guest's history unless
 * a standby may go on with another one. */
static void vm_gone(struct ft_engine *e, const char *why)
{
	struct ft_err err = {.code = ESRCH}, pass = {0};
	bool shared = standby_may_have_it(&e->primary);

	snprintf(err.text, sizeof err.text, "%s", why);
	e->situation++;
	e->primary.phase = PRIMARY_IDLE;
	e->primary.move.on = false;
	e->primary.tracking = e->primary.taps_in = false;
	e->primary.sync_claimed = e->primary.first_commit_done = false;
	engine_hang_up(e);
	if (shared)
		tap_chain_discard(&e->chain);
	else if (engine_pass(e, &pass))
		engine_note_error(e, &pass);
	primary_abort_checkpoint(e, why);
	e->env->vm_end(e->env_ctx);
	primary_forget_waiting(e, &err);
	done_call(&e->primary.protect_done, &err, 0);
	done_call(&e->primary.switch_done, &err, 0);
}

/* The guest shut itself down, and the standby knows, or is not to be had. */
static void vm_off(struct ft_engine *e)
{
	e->primary.vm_off = false;
	/* First, for what is let go then is not under protection any more. */
	engine_set_state(e, FT_STOPPED, "%s", e->primary.why);
	vm_gone(e, e->primary.why);
}

/* Shared disks that were given up, for a switch or for want of a peer, come back first: as long as
 * another host has them the guest may not go on here, whoever said so. It stands still, and the
 * disks are asked for again. */
static bool disks_are_back(struct ft_engine *e, const char *why)
{
	struct ft_primary *p = &e->primary;
	struct ft_err err = {0};

	if (!p->stopped || !e->env->disks_reclaim(e->env_ctx, p->refused, &err))
		return true;
	engine_note_error(e, &err);
	p->phase = PRIMARY_LOST;
	p->deadline_ns = engine_now(e) + FT_RETRY_MS * NS_PER_MS;
	engine_set_state(e, e->state.now, "%.120s: the guest stands still: %.200s", why, err.text);
	return false;
}

void primary_end(struct ft_engine *e, bool retry, const char *why)
{
	struct ft_primary *p = &e->primary;
	struct ft_err err = {0}, reason = {.code = ECANCELED};

	if (!disks_are_back(e, why))
		return;
	snprintf(reason.text, sizeof reason.text, "%s", why);
	/* From here on the guest is this host's alone, whatever happens to this process. */
	(void)e->env->guard(e->env_ctx, false, NULL);
	if (p->vm_off) {
		p->sync_claimed = false;
		vm_off(e);
		return;
	}
	e->situation++;
	engine_hang_up(e);
	if (e->state.now != FT_SOLO)
		engine_set_state(e, FT_SOLO, "%s", reason.text);
	if (p->taps_in && engine_pass(e, &err))
		engine_note_error(e, &err);
	migrate_unthrottle(e);
	pages_close(e);
	p->move.on = false;
	if (p->stopped && vmm_cont(e->vmm, &err))
		engine_note_error(e, &err);
	p->stopped = p->stepped_back = false;
	if (p->tracking)
		vmm_track_stop(e->vmm);
	p->tracking = false;
	e->untap_ns = 0;
	if (p->taps_in)
		engine_untap(e);
	primary_abort_checkpoint(e, reason.text);
	p->session = 0;
	p->first_commit_done = p->sync_claimed = p->gave_away = false;
	p->refused = 0;
	p->want_switch = p->switch_asked = false;
	p->phase = retry ? PRIMARY_RETRY : PRIMARY_IDLE;
	p->deadline_ns = retry ? engine_now(e) + FT_REDIAL_MS * NS_PER_MS : 0;
	p->release_ns = 0;
	primary_forget_waiting(e, &reason);
	done_call(&p->protect_done, &reason, 0);
	done_call(&p->switch_done, &reason, 0);
	ft_engine_tick(e);
}

/* The standby's BYE is the proof that it cannot take over any more; a lost BYE would otherwise let
 * both hosts put out. */
void primary_leave(struct ft_engine *e, bool retry, const char *why)
{
	struct ft_primary *p = &e->primary;

	snprintf(p->why, sizeof p->why, "%s", why);
	p->leave_retry = retry;
	p->bye_sent = false;
	p->phase = PRIMARY_LEAVING;
	p->deadline_ns = engine_now(e) + FT_LEAVE_MAX_MS * NS_PER_MS;
	primary_leave_continue(e);
}

void primary_leave_continue(struct ft_engine *e)
{
	struct ft_primary *p = &e->primary;
	int rc;

	if (p->phase != PRIMARY_LEAVING || p->bye_sent)
		return;
	rc = engine_send(e, FT_MSG_BYE, e->committed, NULL, NULL, 0);
	if (!rc)
		p->bye_sent = true;
	else if (rc != -EAGAIN)
		primary_peer_lost(e, "cannot say BYE");
}

void primary_peer_lost(struct ft_engine *e, const char *why)
{
	struct ft_primary *p = &e->primary;
	struct ft_err err = {0};

	ft_err_set(&err, ENOTCONN, "standby lost: %s", why);
	if (p->phase == PRIMARY_IDLE || p->phase == PRIMARY_RETRY)
		return;
	if (p->phase == PRIMARY_LOST) {
		engine_drop(e, &e->conns[CONN_DATA]);
		return;
	}
	engine_note_error(e, &err);
	if (p->vm_dead) {
		/* Both are gone from here: the standby decides by itself. */
		vm_gone(e, err.text);
		engine_set_state(e, FT_FAILED, "the VM died and then the %s", err.text);
		return;
	}
	if (p->vm_off) {
		vm_off(e);
		return;
	}
	if (!standby_may_have_it(p)) {
		primary_end(e, p->auto_retry, err.text);
		return;
	}
	/* What is in flight is kept: if the peer turns out to hold it, nothing has happened.
	 * Heartbeats go on if they can, for a standby that has lost the data connection only (a
	 * frame was damaged) must not take this host for dead. */
	e->env->hang_up(e->env_ctx);
	engine_drop(e, &e->conns[CONN_DATA]);
	engine_watch(e, false);
	e->situation++;
	snprintf(p->why, sizeof p->why, "%.200s", err.text);
	p->refused = 0;
	p->switch_asked = false;
	if (p->phase == PRIMARY_LEAVING)
		p->auto_retry = p->leave_retry;
	p->phase = PRIMARY_LOST;
	p->deadline_ns = engine_now(e) + FT_RETRY_MS * NS_PER_MS;
	if (e->state.now == FT_PROTECTED)
		engine_set_state(e, FT_PROTECTED,
				 "%s: outputs are held until the arbiter or an operator decides",
				 err.text);
	else
		engine_set_state(e, FT_SYNCING,
				 "%s: outputs are held until the arbiter or an operator decides",
				 err.text);
	e->env->dial(e->env_ctx, false);
	arbitrate_primary_lost_peer(e);
	ft_engine_tick(e);
}

/* Shared disks: without a lease this host writes nothing any more, and a standby that is granted
 * the guest waits for their locks, perhaps for as long as the two cannot hear each other. So they
 * are given up, and the guest, which must not read what somebody else writes, stands still until it
 * is decided whose it is. */
static void step_back(struct ft_engine *e)
{
	struct ft_primary *p = &e->primary;
	struct ft_err err = {0};
	int rc;

	e->env->firing(e->env_ctx, true);
	rc = vmm_stop(e->vmm, &err);
	e->env->firing(e->env_ctx, false);
	if (rc) {
		engine_note_error(e, &err);
		return; /* with the next tick */
	}
	p->stopped = p->stepped_back = true;
	e->env->disks_yield(e->env_ctx);
	engine_set_state(e, e->state.now,
			 "%.200s: the guest stands still, its shared disks are free", p->why);
}

int primary_step_forward(struct ft_engine *e, struct ft_err *err)
{
	struct ft_primary *p = &e->primary;
	int rc = e->env->disks_reclaim(e->env_ctx, p->refused, err);

	if (rc)
		return rc;
	p->stopped = p->stepped_back = false;
	(void)primary_release(e);
	if (vmm_cont(e->vmm, err))
		engine_note_error(e, err);
	return 0;
}

uint64_t primary_lost_tick(struct ft_engine *e, uint64_t now)
{
	struct ft_primary *p = &e->primary;
	bool may_step_back = p->shared && !p->stopped && e->vmm;

	if (may_step_back && now >= p->lease.until_ns)
		step_back(e);
	if (now < p->deadline_ns)
		return may_step_back && p->lease.until_ns > now &&
				       p->lease.until_ns < p->deadline_ns
			       ? p->lease.until_ns
			       : p->deadline_ns;
	p->deadline_ns = now + FT_RETRY_MS * NS_PER_MS;
	arbitrate_primary_lost_peer(e);
	if (p->phase == PRIMARY_LOST && !engine_data(e))
		e->env->dial(e->env_ctx, false);
	return p->deadline_ns;
}

int ft_engine_cancel(struct ft_engine *e, struct ft_err *err)
{
	struct ft_primary *p = &e->primary;

	if (e->state.now == FT_STANDBY || e->state.now == FT_TAKEOVER)
		return ft_err_set(err, EINVAL,
				  "cancel: this is the standby: ask the primary's agent");
	if (p->phase == PRIMARY_IDLE)
		return ft_err_set(err, EALREADY, "cancel: the guest is not protected");
	if (p->phase == PRIMARY_LOST) {
		if (strcmp(e->arbiter->ops->type, "none")) {
			arbitrate_primary_lost_peer(e);
			if (p->phase == PRIMARY_LOST)
				return ft_err_set(err, EAGAIN,
						  "cancel: the peer is lost and arbiter %s has not "
						  "granted: the other host may run the guest",
						  e->arbiter->ops->type);
			return e->state.now == FT_SOLO
				       ? 0
				       : ft_err_set(err, EPERM, "cancel: %s", e->state.reason);
		}
		/* Without an arbiter the operator's word is the grant, but where disks are shared
		 * their locks know better. */
		if (p->stopped && e->env->disks_reclaim(e->env_ctx, p->refused, err))
			return ft_err_context(err, "cancel: the guest stays where its disks are");
		e->generation++;
		e->env->generation(e->env_ctx, e->generation);
		primary_end(e, false, "an operator decided: goes on alone");
		return 0;
	}
	if (p->phase == PRIMARY_HANDING || p->stopped)
		return ft_err_set(err, EBUSY, "cancel: a planned switch is under way");
	if (p->vm_dead)
		return ft_err_set(err, EBUSY, "cancel: the VM died and is being handed over");
	p->auto_retry = false;
	if (p->phase == PRIMARY_LEAVING) {
		p->leave_retry = false;
	} else if (p->sync_claimed && p->phase == PRIMARY_RUNNING) {
		primary_leave(e, false, "cancelled by an operator");
	} else if (p->sync_claimed) {
		primary_peer_lost(e, "cancelled by an operator before the connection was back");
	} else {
		if (engine_data(e) && e->conns[CONN_DATA].greeted) {
			(void)engine_send(e, FT_MSG_BYE, e->committed, NULL, NULL, 0);
			engine_data(e)->ops->drain(engine_data(e), 200);
		}
		primary_end(e, false, "cancelled by an operator");
	}
	ft_engine_tick(e);
	return 0;
}

static void vm_lost_protected(struct ft_engine *e, const char *why)
{
	struct ft_primary *p = &e->primary;

	/* What was captured is still here and goes out; then the standby takes over at once,
	 * without waiting for silence. */
	p->vm_dead = true;
	engine_set_state(e, FT_PROTECTED, "%s: handing over", why);
	if (p->ship.phase == SHIP_IDLE)
		switch_acked(e);
}

void ft_engine_vm_lost(struct ft_engine *e, bool by_guest, const char *why)
{
	struct ft_primary *p = &e->primary;

	switch (e->state.now) {
	case FT_STANDBY:
		/* The armed VM died: this standby holds nothing that could run. The primary sees
		 * the connection end. */
		ft_warn("%s: armed VM lost: %s", e->config.name, why);
		engine_hang_up(e);
		standby_reset(e);
		engine_set_state(e, FT_STANDBY, "the armed VM was lost (%s): waiting for a primary",
				 why);
		break;
	case FT_SOLO:
	case FT_SYNCING:
	case FT_PROTECTED:
		if (p->vm_dead || p->vm_off)
			return;
		p->stopped = p->stepped_back = false;
		if (!by_guest && p->phase == PRIMARY_RUNNING && p->first_commit_done) {
			vm_lost_protected(e, why);
			break;
		}
		if (by_guest && p->sync_claimed && p->phase == PRIMARY_RUNNING) {
			/* The standby must not bring back what wanted to end. */
			p->vm_off = true;
			primary_leave(e, false, why);
			break;
		}
		if (by_guest && !p->sync_claimed)
			(void)e->env->guard(e->env_ctx, false, NULL);
		vm_gone(e, why);
		engine_set_state(e, by_guest ? FT_STOPPED : FT_FAILED, "%s", why);
		break;
	case FT_TAKEOVER:
		vm_gone(e, why);
		engine_set_state(e, FT_FAILED, "%s", why);
		break;
	case FT_STARTING:
	case FT_FENCED:
	case FT_STOPPED:
	case FT_FAILED:
	case FT_STATE_MAX:
		break;
	}
	ft_engine_tick(e);
}

static bool enlist(struct ft_done *list, ft_done_fn *done, void *ctx)
{
	for (unsigned i = 0; i < FT_DONE_MAX; i++)
		if (done_set(&list[i], done, ctx))
			return true;
	return false;
}

int ft_engine_checkpoint(struct ft_engine *e, ft_done_fn *done, void *ctx, struct ft_err *err)
{
	if (e->state.now != FT_PROTECTED || e->primary.phase != PRIMARY_RUNNING)
		return ft_err_set(err, EINVAL, "checkpoint: the guest is not protected");
	if (!enlist(e->primary.waiting, done, ctx))
		return ft_err_set(err, EBUSY, "checkpoint: %d requests wait already", FT_DONE_MAX);
	e->primary.requested = true;
	ft_engine_tick(e);
	return 0;
}

int ft_engine_verify(struct ft_engine *e, ft_done_fn *done, void *ctx, struct ft_err *err)
{
	if (e->state.now != FT_PROTECTED || e->primary.phase != PRIMARY_RUNNING)
		return ft_err_set(err, EINVAL, "verify: the guest is not protected");
	if (!done_set(&e->primary.verify_done, done, ctx))
		return ft_err_set(err, EBUSY, "verify: one is under way");
	e->primary.want_digest = true;
	ft_engine_tick(e);
	return 0;
}
