// SPDX-License-Identifier: Apache-2.0
/* Live migration: the guest ends up at the other side. It is protection cut short:
 *
 *   claim, SETUP (migrate), READY, async rounds        as for protection; the guest runs, outputs
 * pass the guest stops for good here; one checkpoint      the first of its session, and the last
 *   ACK                                                nothing was given away yet
 *   (the record says that the target may be granted)   an arbiter only
 *   HANDOVER ... HANDED                                the planned switch of protection
 *   this side ends                                     where protection makes it the new standby
 *
 * No output is ever held while the guest runs, and none leaves twice: those of the last moments,
 * between the tap's hold and the stop, go out at the target and nowhere else. There is no trial
 * load, for the guest stands still meanwhile: a target that cannot load it refuses, and the guest
 * goes on here.
 *
 * Until HANDOVER is sent (arbiter: until the record names the target) nobody else can have the
 * guest, so whatever fails ends the attempt and nothing else: the target forgets what it has when
 * the connection ends. Afterwards a lost connection is a lost peer as under protection
 * (PRIMARY_LOST): the arbiter decides, or (none) the target's own word; the guest stands still
 * until then.
 *
 * What travels beside RAM, state and disks has three places: what the target must know before
 * (SETUP, one entry a disk), what belongs to the moment of the switch (EVENTS of the last
 * checkpoint), and what may come when the guest runs there already (postcopy only: the page
 * connections). */
#include "ft/engine_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "ft/log.h"

/* Without a measurement: 1 Gbit/s. */
#define BYTES_PER_S_UNKNOWN (125u << 20)
/* A round that sent less says nothing about the link. */
#define MEASURE_BYTES_MIN (1u << 20)
/* Rounds before the first verdict that they do not converge. */
#define PATIENT_ROUNDS 3
/* So many rounds are made although less would do, as long as each leaves less than half of what the
 * one before left: a short round costs the guest nothing, and what it sends needs no downtime. */
#define SHRINK_ROUNDS 6
#define FEW_PAGES     64

int ft_engine_migrate(struct ft_engine *e, const struct ft_migrate *how, ft_done_fn *done,
		      void *ctx, struct ft_err *err)
{
	struct ft_move before = e->primary.move;
	int rc;

	if (how->postcopy && !e->env->pages_open)
		return ft_err_set(err, ENOTSUP, "migrate: postcopy is not to be had here");
	e->primary.move = (struct ft_move){.on = true, .how = *how, .pages_before = UINT64_MAX};
	rc = primary_begin(e, "migrate", done, ctx, err);
	if (rc)
		e->primary.move = before;
	return rc;
}

/* ---- rounds ---- */

static void hold(struct ft_engine *e, bool on)
{
	struct ft_err err = {0};
	int rc;

	e->env->firing(e->env_ctx, on);
	rc = on ? vmm_stop(e->vmm, &err) : vmm_cont(e->vmm, &err);
	if (on)
		e->env->firing(e->env_ctx, false);
	if (rc)
		engine_note_error(e, &err);
}

void migrate_unthrottle(struct ft_engine *e)
{
	struct ft_throttle *t = &e->primary.move.throttle;
	bool held = t->held;

	*t = (struct ft_throttle){0};
	if (held && e->vmm)
		hold(e, false);
}

uint64_t migrate_tick(struct ft_engine *e, uint64_t now)
{
	struct ft_throttle *t = &e->primary.move.throttle;
	bool held = t->held;

	if (!t->percent)
		return UINT64_MAX;
	if (ft_throttle_hold(t, now) != held)
		hold(e, !held);
	return t->until_ns;
}

/* What the guest would stand still for, if it stopped now. */
static bool fits(const struct ft_engine *e)
{
	const struct ft_primary *p = &e->primary;

	return ft_policy_switch_to_target(&e->config.policy, &p->round, p->move.bytes_per_s);
}

bool migrate_round_over(struct ft_engine *e)
{
	struct ft_move *m = &e->primary.move;

	if (!m->on)
		return true;
	/* What fills the link's buffers says nothing about what the target can take; and all of it
	 * would be in front of the last checkpoint. */
	if (!m->asked)
		m->asked = engine_send(e, FT_MSG_ROUND, 0, NULL, NULL, 0) == 0;
	return m->applied;
}

void migrate_applied(struct ft_engine *e)
{
	struct ft_move *m = &e->primary.move;

	if (e->primary.phase != PRIMARY_ROUNDS || !m->asked)
		return;
	m->applied = true;
	primary_writable(e);
}

bool migrate_pages_stay(const struct ft_engine *e)
{
	const struct ft_move *m = &e->primary.move;

	return m->on && m->how.postcopy && e->primary.round.rounds >= m->how.rounds;
}

bool migrate_waits(struct ft_engine *e)
{
	return migrate_pages_stay(e) && !e->pages.ready && !e->env->disks_behind(e->env_ctx);
}

/* Postcopy: only disks have to be (nearly) there; their rounds are bounded as those of protection.
 */
static bool postcopy_round(struct ft_engine *e)
{
	struct ft_round disks = e->primary.round;

	disks.dirty_pages = 0;
	return migrate_pages_stay(e) && e->pages.ready &&
	       ft_policy_switch_to_sync(&e->config.policy, &disks);
}

bool migrate_round(struct ft_engine *e)
{
	struct ft_primary *p = &e->primary;
	struct ft_move *m = &p->move;
	bool shrinks = p->round.dirty_pages < m->pages_before / 2;
	bool slower = p->round.rounds > PATIENT_ROUNDS && !shrinks;
	struct ft_err err = {0};

	m->asked = m->applied = false;
	if (m->how.postcopy)
		return postcopy_round(e);
	if (p->round.bytes >= MEASURE_BYTES_MIN || !m->bytes_per_s)
		m->bytes_per_s = p->round.bytes_per_s > m->bytes_per_s ? p->round.bytes_per_s
								       : m->bytes_per_s;
	if (!m->bytes_per_s)
		m->bytes_per_s = BYTES_PER_S_UNKNOWN;
	m->pages_before = p->round.dirty_pages;
	if (fits(e))
		return !shrinks || p->round.dirty_pages <= FEW_PAGES ||
		       p->round.rounds >= SHRINK_ROUNDS;
	if (p->round.rounds >= FT_ROUNDS_MAX) {
		ft_err_set(&err, ETIMEDOUT,
			   "migrate: the guest writes faster than it can be sent: after %u rounds "
			   "%llu MiB are "
			   "left, %s",
			   p->round.rounds,
			   (unsigned long long)((p->round.dirty_pages * VMM_PAGE_BYTES +
						 p->round.disk_bytes_behind) >>
						20),
			   m->how.throttle ? "though it was slowed down as far as it may be"
					   : "more than max_downtime_ms allows");
		migrate_failed(e, &err);
		return false;
	}
	if (slower && m->how.throttle) {
		ft_throttle_more(&m->throttle);
		ft_info("%s: round %u: %llu pages left: the guest is slowed down by %u %%",
			e->config.name, p->round.rounds, (unsigned long long)p->round.dirty_pages,
			m->throttle.percent);
	}
	return false;
}

/* ---- the switch ---- */

void migrate_sent(struct ft_engine *e)
{
	/* Before HANDOVER it must be durable that this host is no place to start the guest from:
	 * while the target is busy with what it got, which is when the guest stands still anyway.
	 */
	e->primary.move.captured_ns = e->primary.resumed_ns;
	engine_ask_patience(e, FT_GUARD_MAX_MS);
	(void)e->env->guard(e->env_ctx, true, &e->primary.ship.refused);
	engine_ask_patience(e, 0);
	e->primary.move.sent_ns = engine_now(e);
}

void migrate_acked(struct ft_engine *e)
{
	/* From here on the target may have it. */
	e->primary.move.acked_ns = engine_now(e);
	e->primary.sync_claimed = true;
	arbitrate_in_sync(e);
}

void migrate_granted(struct ft_engine *e)
{
	struct ft_primary *p = &e->primary;

	if (p->move.how.postcopy)
		e->env->pages_give(e->env_ctx, &p->pending);
	switch_acked(e);
}

void migrate_handed(struct ft_engine *e, uint64_t generation)
{
	struct ft_primary *p = &e->primary;

	e->downtime_us = (engine_now(e) - p->move.stopped_ns) / 1000;
	ft_debug("%s: downtime %llu us: captured after %llu, sent after %llu, acknowledged after "
		 "%llu",
		 e->config.name, (unsigned long long)e->downtime_us,
		 (unsigned long long)(p->move.captured_ns - p->move.stopped_ns) / 1000,
		 (unsigned long long)(p->move.sent_ns - p->move.stopped_ns) / 1000,
		 (unsigned long long)(p->move.acked_ns - p->move.stopped_ns) / 1000);
	e->situation++;
	tap_chain_discard(&e->chain);
	engine_hang_up(e);
	primary_abort_checkpoint(e, "moved");
	p->phase = PRIMARY_IDLE;
	p->tracking = p->taps_in = p->stopped = p->stepped_back = p->vm_dead = false;
	p->first_commit_done = p->sync_claimed = p->gave_away = p->move.on = false;
	e->generation = generation;
	e->env->generation(e->env_ctx, generation);
	e->arbiter_holder[0] = '\0';
	if (p->move.how.postcopy) {
		pages_handed(e);
		return;
	}
	p->session = 0;
	/* Who asked is told first; the VM that stands still here ends with this agent. */
	e->moved = true;
	engine_set_state(e, FT_STOPPED, "moved to %s: downtime %llu.%llu ms after %u rounds",
			 e->peer_host, (unsigned long long)e->downtime_us / 1000,
			 (unsigned long long)e->downtime_us % 1000 / 100, p->round.rounds);
	done_call(&p->protect_done, NULL, e->downtime_us);
}

void migrate_failed(struct ft_engine *e, const struct ft_err *why)
{
	struct ft_err copy = *why;

	engine_note_error(e, &copy);
	e->primary.gave_away = false;
	primary_end(e, false, copy.text);
}
