// SPDX-License-Identifier: Apache-2.0
/* Roles are exchanged by agreement: the last checkpoint leaves the guest stopped, HANDOVER gives it
 * away, HANDED says that it runs there. The side that gives it, and what it does when the other one
 * does not take it. */
#include "ft/engine_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "ft/log.h"

int switch_start(struct ft_engine *e, struct ft_err *err)
{
	if (e->state.now != FT_PROTECTED || e->primary.phase != PRIMARY_RUNNING ||
	    !e->primary.first_commit_done || e->primary.vm_dead)
		return ft_err_set(err, EINVAL, "failover: the guest is not protected");
	e->primary.want_switch = true;
	ft_engine_tick(e);
	return 0;
}

void switch_acked(struct ft_engine *e)
{
	struct ft_err err = {0};

	/* What a shared disk still owes must be on it before the other side reads it; frames that
	 * are let go here never leave, for the VM does not run again. */
	if (tap_chain_release(&e->chain, e->committed, &err))
		engine_note_error(e, &err);
	e->env->disks_yield(e->env_ctx);
	e->primary.gave_away = true;
	e->primary.phase = PRIMARY_HANDING;
	e->primary.deadline_ns = engine_now(e) + FT_HANDOVER_MAX_MS * NS_PER_MS;
	engine_watch(e, false);
	if (engine_send(e, FT_MSG_HANDOVER, e->committed, NULL, NULL, 0))
		primary_peer_lost(e, "cannot hand over");
}

void switch_off(struct ft_engine *e, const struct ft_err *why)
{
	struct ft_primary *p = &e->primary;
	Ft__Stays stays = FT__STAYS__INIT;

	if (p->switch_asked && engine_data(e)) {
		stays.what = (char *)(uintptr_t)why->text;
		stays.code = (uint32_t)why->code;
		/* Who does not hear it waits for FT_HANDOVER_MAX_MS. */
		(void)engine_send(e, FT_MSG_STAYS, e->committed, &stays.base, NULL, 0);
	}
	p->switch_asked = false;
	done_call(&p->switch_done, why, 0);
}

/* A peer that holds nothing any more is good for whether it runs, but its grant may be in the
 * record, or may come to be there yet: before the guest goes on here the record must say that it is
 * here. */
static void take_back(struct ft_engine *e, const struct ft_err *why)
{
	struct ft_primary *p = &e->primary;
	struct ft_err copy = *why;

	p->gave_away = false;
	p->refused = e->generation + 1;
	snprintf(p->why, sizeof p->why, "%.200s", copy.text);
	engine_note_error(e, &copy);
	if (!strcmp(e->arbiter->ops->type, "none")) {
		e->generation = p->refused + 1;
		e->env->generation(e->env_ctx, e->generation);
		primary_end(e, p->auto_retry, p->why);
		return;
	}
	p->phase = PRIMARY_LOST;
	p->deadline_ns = engine_now(e) + FT_RETRY_MS * NS_PER_MS;
	e->situation++;
	engine_hang_up(e);
	engine_set_state(e, e->state.now, "%.160s: waiting for the arbiter's word that it is here",
			 p->why);
	arbitrate_primary_lost_peer(e);
}

void switch_undone(struct ft_engine *e, const struct ft_err *why, bool failed)
{
	struct ft_primary *p = &e->primary;
	struct ft_err err = {0};

	if (p->move.on || failed) {
		take_back(e, why);
		return;
	}
	p->stopped = p->gave_away = false;
	p->phase = PRIMARY_RUNNING;
	p->deadline_ns = 0;
	p->requested = true;
	engine_watch(e, true);
	/* Shared disks were given up for the other side. If it has them, the guest may not go on:
	 * outputs stay held, somebody must decide. */
	if (e->env->disks_reclaim(e->env_ctx, p->refused, &err)) {
		p->stopped = true;
		primary_peer_lost(e, err.text);
		return;
	}
	/* The hand-over's checkpoint is committed like any other. */
	(void)primary_release(e);
	if (vmm_cont(e->vmm, &err))
		engine_note_error(e, &err);
	engine_set_state(e, FT_PROTECTED, "planned switch failed: %s", why->text);
	switch_off(e, why);
}

void switch_handed(struct ft_engine *e, uint64_t generation)
{
	struct ft_primary *p = &e->primary;

	if (p->move.on) {
		migrate_handed(e, generation);
		return;
	}
	e->situation++;
	tap_chain_discard(&e->chain);
	engine_hang_up(e);
	primary_abort_checkpoint(e, "handed over");
	p->phase = PRIMARY_IDLE;
	p->tracking = p->taps_in = p->stopped = p->stepped_back = p->vm_dead = false;
	p->first_commit_done = p->sync_claimed = p->gave_away = p->switch_asked = false;
	p->session = 0;
	e->env->vm_end(e->env_ctx);
	e->generation = generation;
	e->env->generation(e->env_ctx, generation);
	standby_reset(e);
	e->arbiter_holder[0] = '\0';
	e->standby.offering = true;
	e->standby.offer_ms = FT_RETRY_MS;
	e->standby.retry_ns = engine_now(e);
	engine_set_state(e, FT_STANDBY, "handed over to %s: offering itself as standby",
			 e->peer_host);
	done_call(&p->switch_done, NULL, e->committed);
}
