// SPDX-License-Identifier: Apache-2.0
/* The faults, and what must come of each. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/drill/scene.h"

static int kill_vmm(struct drill *d, unsigned which, struct ft_err *err)
{
	struct host *h = &d->hosts[which];
	struct seen seen;
	pid_t pid;

	if (d->vmm == DRILL_VMM_POCKET) /* it lives in its agent */
		return kill(h->agent, SIGKILL) ? ft_err_set(err, errno, "cannot kill the agent")
					       : 0;
	if (!ask_seen(d, which, &seen))
		return ft_err_set(err, EIO, "%s: does not answer", h->id);
	pid = seen.vmm_pid ? host_find(h, seen.vmm_pid) : 0;
	if (!pid || kill(pid, SIGKILL))
		return ft_err_set(err, ESRCH, "%s: cannot find its QEMU", h->id);
	return 0;
}

void strike_host(struct drill *d, unsigned which)
{
	struct host *h = &d->hosts[which];

	d->must_live[which] = false;
	if (h->isolated)
		field_cut(h);
	kill(h->isolated ? h->init : -h->init, SIGKILL);
}

static int do_it(struct drill *d, struct round *r, struct ft_err *err)
{
	unsigned primary = r->old_primary;
	struct host *h = &d->hosts[primary];
	int rc = 0;

	d->must_live[primary] =
		r->kill == DRILL_LINK || r->kill == DRILL_STANDBY || r->kill == DRILL_SWITCH;
	r->strike_ns = drill_now_ns();
	switch (r->kill) {
	case DRILL_HOST:
		strike_host(d, primary);
		break;
	case DRILL_AGENT:
		kill(h->agent, SIGKILL);
		break;
	case DRILL_VMM:
		rc = kill_vmm(d, primary, err);
		break;
	case DRILL_FREEZE:
		rc = host_freeze(h, err);
		break;
	case DRILL_LINK:
		rc = field_replication(h, false, err);
		d->must_live[!primary] = false; /* it has lost, and may end */
		break;
	case DRILL_STANDBY:
		strike_host(d, !primary);
		break;
	case DRILL_SWITCH:
		rc = ask_agent(d, primary, "failover", NULL, DRILL_TAKEOVER_MS, NULL, err);
		break;
	default: /* partition.c */
		abort();
	}
	return rc;
}

/* ---- what comes of it ---- */

bool strike_leads(const struct seen *s)
{
	return !strcmp(s->role, "primary") && !s->deciding &&
	       (!strcmp(s->state, "solo") || !strcmp(s->state, "protected"));
}

static bool must_win_standby(const struct round *r)
{
	return r->kill != DRILL_LINK && r->kill != DRILL_STANDBY;
}

/* Exactly one leads. A host that is frozen or dead is not asked, and cannot. */
static bool decided(struct drill *d, void *ctx)
{
	struct round *r = ctx;
	struct seen seen[2];
	bool lead[2];

	for (unsigned i = 0; i < 2; i++)
		lead[i] = (d->must_live[i] || i != r->old_primary) && ask_seen(d, i, &seen[i]) &&
			  strike_leads(&seen[i]);
	if (lead[0] == lead[1])
		return false;
	/* Protected by a standby that is cut off or dead: it has not noticed yet. */
	if (!must_win_standby(r) && !strcmp(seen[lead[1]].state, "protected"))
		return false;
	/* Nor has a primary without a VM. */
	if (must_win_standby(r) && lead[r->old_primary])
		return false;
	r->winner = lead[1];
	return true;
}

/* The longest silence that ended after the strike. */
static void measure_gap(struct drill *d, struct round *r)
{
	static uint64_t times[DRILL_TIMES_MAX];
	size_t n = client_times(d->client, r->strike_ns - 1000000000, times, DRILL_TIMES_MAX);

	for (size_t i = 1; i < n; i++) {
		if (times[i] < r->strike_ns ||
		    times[i] - times[i - 1] <= r->gap_end_ns - r->gap_start_ns)
			continue;
		r->gap_start_ns = times[i - 1];
		r->gap_end_ns = times[i];
	}
}

static bool shown(struct drill *d, void *ctx)
{
	(void)d;
	return drill_now_ns() > *(uint64_t *)ctx;
}

static bool wants_to_take_over(struct drill *d, void *ctx)
{
	unsigned *standby = ctx;
	struct seen seen;

	return ask_seen(d, *standby, &seen) && strcmp(seen.state, "standby") != 0;
}

/* A write that a frozen host has handed to its kernel may still reach a disk that both hosts share,
 * so the standby waits until the other one lets go of it. Operators have fencing for that. */
static int fence(struct drill *d, struct round *r, struct ft_err *err)
{
	unsigned standby = !r->old_primary;
	int rc = drill_wait(d, wants_to_take_over, &standby, DRILL_TAKEOVER_MS,
			    "the standby notices", err);

	if (rc)
		return rc;
	say(d, "shared disk: %s is fenced (switched off)", d->hosts[r->old_primary].id);
	strike_host(d, r->old_primary);
	return 0;
}

/* A frozen host wakes up and finds that the world went on: nothing of it may be heard. */
static int thaw(struct drill *d, struct round *r, struct ft_err *err)
{
	struct seen seen;
	uint64_t since;
	int rc;

	say(d, "%s wakes up again", d->hosts[r->old_primary].id);
	since = answers(d);
	r->thawed_ns = drill_now_ns();
	host_thaw(&d->hosts[r->old_primary]);
	rc = wait_answers(d, since, DRILL_ANSWERS, DRILL_TAKEOVER_MS, err);
	if (!rc && ask_seen(d, r->old_primary, &seen) && strike_leads(&seen))
		return ft_err_set(err, EILSEQ, "%s woke up and leads the guest too (%s)",
				  d->hosts[r->old_primary].id, seen.state);
	/* An arbiter tells it why. */
	if (!rc && d->o->arbiter != DRILL_ARBITER_NONE)
		rc = wait_fenced(d, r->old_primary, err);
	return rc;
}

int strike_settle(struct drill *d, struct round *r, struct ft_err *err)
{
	uint64_t until;
	int rc;

	d->primary = r->winner;
	rc = wait_answers(d, answers(d), DRILL_ANSWERS, DRILL_TAKEOVER_MS, err);
	if (rc)
		return rc;
	measure_gap(d, r);
	/* What comes after it is part of the picture. */
	until = r->gap_end_ns + picture_around_ns(r);
	rc = drill_wait(d, shown, &until, DRILL_TAKEOVER_MS, "the picture", err);
	r->after = answers(d) - r->before;
	return rc;
}

int strike(struct drill *d, struct round *r, struct ft_err *err)
{
	bool fenced = r->kill == DRILL_FREEZE && d->o->shared_disk;
	int rc;

	rc = do_it(d, r, err);
	if (!rc && fenced)
		rc = fence(d, r, err);
	if (!rc)
		rc = drill_wait(d, decided, r, DRILL_TAKEOVER_MS, "one host goes on with the guest",
				err);
	if (!rc && d->o->arbiter == DRILL_ARBITER_NONE && r->winner != r->old_primary &&
	    !must_win_standby(r))
		rc = ft_err_set(err, EILSEQ, "%s goes on, not %s", d->hosts[r->winner].id,
				d->hosts[!r->winner].id);
	if (!rc)
		rc = strike_settle(d, r, err);
	/* A switch is complete when the guest is protected the other way round. */
	if (!rc && r->kill == DRILL_SWITCH)
		rc = wait_state(d, d->primary, "protected", DRILL_PROTECT_MS, err);
	if (!rc && r->kill == DRILL_FREEZE && !fenced)
		rc = thaw(d, r, err);
	return rc;
}
