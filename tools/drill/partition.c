// SPDX-License-Identifier: Apache-2.0
/* Every partition of primary, standby and arbiter. The guest's network stays whole, so that a host
 * which lets out what it must not is heard by the client. Each case says which links are cut and
 * what must come of it; then all are healed, and whoever lost must know it and say so. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "tools/drill/scene.h"

#define HOLD_MS	 2500 /* longer than an arbiter may take to answer: nobody goes on meanwhile */
#define CALM_MS	 1000 /* of undisturbed protection, after a fault would have been noticed */
#define TAKEOVER 300  /* the product's takeover_ms, unless the operator has another one */

enum {
	CUT_PAIR = 1,		 /* primary and standby */
	CUT_PRIMARY_ARBITER = 2, /* this way round: what the host sends is lost */
	CUT_STANDBY_ARBITER = 4,
	MUTE_PRIMARY = 8, /* only what it sends to the other one is lost */
	MUTE_STANDBY = 16
};

enum outcome { EITHER_GOES_ON, STANDBY_GOES_ON, PRIMARY_GOES_ON, NOBODY_GOES_ON, NOTHING };

static const struct part {
	unsigned cuts;
	enum outcome outcome;
} parts[DRILL_KILLS_N] = {
	[DRILL_PART_PAIR] = {CUT_PAIR, EITHER_GOES_ON},
	[DRILL_PART_DEAF_PRIMARY] = {MUTE_STANDBY, EITHER_GOES_ON},
	[DRILL_PART_DEAF_STANDBY] = {MUTE_PRIMARY, EITHER_GOES_ON},
	[DRILL_PART_PRIMARY] = {CUT_PAIR | CUT_PRIMARY_ARBITER, STANDBY_GOES_ON},
	[DRILL_PART_STANDBY] = {CUT_PAIR | CUT_STANDBY_ARBITER, PRIMARY_GOES_ON},
	[DRILL_PART_ALL] = {CUT_PAIR | CUT_PRIMARY_ARBITER | CUT_STANDBY_ARBITER, NOBODY_GOES_ON},
	[DRILL_PART_PRIMARY_ARBITER] = {CUT_PRIMARY_ARBITER, NOTHING},
	[DRILL_PART_STANDBY_ARBITER] = {CUT_STANDBY_ARBITER, NOTHING},
	[DRILL_PART_ARBITER] = {CUT_PRIMARY_ARBITER | CUT_STANDBY_ARBITER, NOTHING}};

/* Cuts (up false) or heals them. */
static int links(struct drill *d, const struct round *r, unsigned cuts, bool up, struct ft_err *err)
{
	unsigned primary = r->old_primary;
	int rc = 0;

	if (cuts & CUT_PRIMARY_ARBITER)
		rc = field_arbiter_link(&d->field, primary, up, err);
	if (!rc && cuts & CUT_STANDBY_ARBITER)
		rc = field_arbiter_link(&d->field, !primary, up, err);
	if (!rc && cuts & CUT_PAIR)
		rc = field_replication(&d->hosts[primary], up, err);
	if (!rc && cuts & MUTE_PRIMARY)
		rc = field_mute(d->hosts, primary, !up, err);
	if (!rc && cuts & MUTE_STANDBY)
		rc = field_mute(d->hosts, !primary, !up, err);
	return rc;
}

static int heal(struct drill *d, const struct round *r, struct ft_err *err)
{
	say(d, "the partition is healed");
	return links(d, r, parts[r->kill].cuts, true, err);
}

/* ---- looking ---- */

struct look {
	struct round *r;
	bool alone;   /* the winner must have noticed: a protected one has not */
	bool waiting; /* both say that they cannot decide */
	struct seen seen[2];
	bool lead[2];
};

static void look(struct drill *d, struct look *l)
{
	for (unsigned i = 0; i < 2; i++)
		l->lead[i] = ask_seen(d, i, &l->seen[i]) && strike_leads(&l->seen[i]);
}

static bool one_goes_on(struct drill *d, void *ctx)
{
	struct look *l = ctx;

	look(d, l);
	if (l->lead[0] == l->lead[1])
		return false;
	l->r->winner = l->lead[1];
	return !l->alone || !strcmp(l->seen[l->r->winner].state, "solo");
}

/* The primary may have been granted the guest a moment after the standby's status was read: only
 * hosts that go on alone, both, are two histories. */
static int check_one(struct drill *d, struct ft_err *err)
{
	struct look l = {0};

	look(d, &l);
	return l.lead[0] && l.lead[1] && !strcmp(l.seen[0].state, "solo") &&
			       !strcmp(l.seen[1].state, "solo")
		       ? ft_err_set(err, EILSEQ, "both hosts go on with the guest")
		       : 0;
}

static bool nobody_decides(struct drill *d, void *ctx)
{
	struct look *l = ctx;

	look(d, l);
	return !l->lead[0] && !l->lead[1] && l->seen[0].deciding && l->seen[1].deciding &&
	       !strcmp(l->seen[0].arbiter, "unreachable") &&
	       !strcmp(l->seen[1].arbiter, "unreachable");
}

struct span {
	uint64_t until_ns;
	bool led;  /* somebody went on meanwhile */
	bool left; /* protection ended meanwhile */
};

static bool span_over(struct drill *d, void *ctx)
{
	struct span *s = ctx;
	struct look l = {0};

	look(d, &l);
	s->led |= l.lead[0] || l.lead[1];
	s->left |=
		strcmp(l.seen[d->primary].state, "protected") != 0 || l.seen[d->primary].deciding;
	return drill_now_ns() > s->until_ns;
}

static int watch(struct drill *d, struct span *s, unsigned ms, struct ft_err *err)
{
	*s = (struct span){.until_ns = drill_now_ns() + ms * 1000000ull};
	return drill_wait(d, span_over, s, (int)ms + DRILL_TAKEOVER_MS, "a while", err);
}

static unsigned takeover_ms(const struct drill *d)
{
	return d->o->takeover_ms ? d->o->takeover_ms : TAKEOVER;
}

/* ---- what must come of it ---- */

static bool knows_it_lost(struct drill *d, void *ctx)
{
	const unsigned *standby = ctx;
	struct seen seen;

	/* Without what it held, or in sync again: the winner looks for it. */
	return ask_seen(d, *standby, &seen) && !seen.deciding && !strcmp(seen.state, "standby");
}

/* A primary that lost is fenced; a standby forgets its checkpoint and can be one again. */
static int loser_knows(struct drill *d, const struct round *r, struct ft_err *err)
{
	unsigned loser = !r->winner;
	int rc;

	if (loser == r->old_primary)
		return wait_fenced(d, loser, err);
	rc = drill_wait(d, knows_it_lost, &loser, DRILL_TAKEOVER_MS, "the standby gives up", err);
	if (!rc)
		rc = wait_state(d, r->winner, "protected", DRILL_PROTECT_MS, err);
	if (!rc)
		say(d, "%s gave up what it held, and is the standby again", d->hosts[loser].id);
	return rc;
}

static int one_wins(struct drill *d, struct round *r, enum outcome outcome, struct ft_err *err)
{
	struct look l = {.r = r, .alone = true};
	int rc = drill_wait(d, one_goes_on, &l, DRILL_TAKEOVER_MS,
			    "one host goes on with the guest", err);
	unsigned wanted = outcome == STANDBY_GOES_ON ? !r->old_primary : r->old_primary;
	bool told;

	if (!rc && outcome != EITHER_GOES_ON && r->winner != wanted)
		rc = ft_err_set(err, EILSEQ, "%s goes on, not %s", d->hosts[r->winner].id,
				d->hosts[wanted].id);
	if (!rc)
		say(d, "%s goes on", d->hosts[r->winner].id);
	if (!rc)
		rc = strike_settle(d, r, err);
	/* The arbiter tells the loser, if it is in reach; else the winner will. */
	told = outcome == EITHER_GOES_ON && r->winner != r->old_primary;
	if (!rc && told)
		rc = wait_fenced(d, r->old_primary, err);
	if (!rc)
		rc = check_one(d, err);
	if (!rc)
		rc = heal(d, r, err);
	if (!rc && !told)
		rc = loser_knows(d, r, err);
	return rc ? rc : check_one(d, err);
}

/* Nothing may be heard of the guest until two of the three are together again. */
static int nobody_wins(struct drill *d, struct round *r, struct ft_err *err)
{
	struct look l = {.r = r};
	struct span span = {0};
	uint64_t before = 0;
	int rc = drill_wait(d, nobody_decides, &l, DRILL_TAKEOVER_MS,
			    "both hosts find nobody to ask", err);

	if (!rc) {
		say(d, "both hosts hold, and cannot decide");
		before = answers(d);
		rc = watch(d, &span, HOLD_MS, err);
	}
	if (!rc && (span.led || answers(d) != before))
		rc = ft_err_set(err, EILSEQ, "the guest was heard while nobody could decide");
	if (!rc)
		rc = heal(d, r, err);
	if (!rc)
		rc = drill_wait(d, one_goes_on, &l, DRILL_TAKEOVER_MS,
				"one host goes on with the guest", err);
	if (!rc)
		rc = strike_settle(d, r, err);
	if (!rc && r->winner != r->old_primary)
		rc = wait_fenced(d, r->old_primary, err);
	return rc ? rc : check_one(d, err);
}

/* An arbiter that is out of reach disturbs nobody while the pair is healthy. */
static int nothing_happens(struct drill *d, struct round *r, struct ft_err *err)
{
	struct span span;
	uint64_t before = answers(d);
	int rc = watch(d, &span, takeover_ms(d) + CALM_MS, err);

	if (!rc && (span.left || answers(d) == before))
		return ft_err_set(err, EILSEQ, "protection was disturbed: %s is %s (%s)",
				  d->hosts[d->primary].id, d->now[d->primary].state,
				  d->now[d->primary].reason);
	if (rc)
		return rc;
	say(d, "protection goes on, undisturbed");
	r->winner = r->old_primary;
	return strike_settle(d, r, err);
}

static bool standby_asks(struct drill *d, void *ctx)
{
	const struct round *r = ctx;
	struct seen seen;

	return ask_seen(d, !r->old_primary, &seen) && seen.deciding &&
	       !strcmp(seen.arbiter, "unreachable");
}

/* The primary dies while there is no arbiter: the standby must wait for it, however long. */
static int dies_without_arbiter(struct drill *d, struct round *r, struct ft_err *err)
{
	struct look l = {.r = r, .alone = true};
	struct span span;
	int rc;

	say(d, "strike: %s: host lost", d->hosts[r->old_primary].id);
	strike_host(d, r->old_primary);
	r->strike_ns = drill_now_ns();
	rc = drill_wait(d, standby_asks, r, DRILL_TAKEOVER_MS, "the standby asks the arbiter", err);
	if (!rc)
		rc = watch(d, &span, HOLD_MS, err);
	if (!rc && span.led)
		rc = ft_err_set(err, EILSEQ, "the standby went on without the arbiter's grant");
	if (!rc)
		say(d, "%s waits for the arbiter", d->hosts[!r->old_primary].id);
	if (!rc)
		rc = field_arbiter_link(&d->field, !r->old_primary, true, err);
	if (!rc)
		rc = drill_wait(d, one_goes_on, &l, DRILL_TAKEOVER_MS,
				"the standby goes on with the guest", err);
	return rc ? rc : strike_settle(d, r, err);
}

int partition(struct drill *d, struct round *r, struct ft_err *err)
{
	const struct part *part = &parts[r->kill];
	int rc;

	assert(part->cuts);
	/* Both agents live through it. */
	d->must_live[0] = d->must_live[1] = true;
	r->strike_ns = drill_now_ns();
	rc = links(d, r, part->cuts, false, err);
	if (rc)
		return rc;
	switch (part->outcome) {
	case NOBODY_GOES_ON:
		return nobody_wins(d, r, err);
	case NOTHING:
		rc = nothing_happens(d, r, err);
		if (!rc && r->kill == DRILL_PART_ARBITER)
			return dies_without_arbiter(d, r, err);
		return rc ? rc : heal(d, r, err);
	case EITHER_GOES_ON:
	case STANDBY_GOES_ON:
	case PRIMARY_GOES_ON:
		break;
	}
	return one_wins(d, r, part->outcome, err);
}
