// SPDX-License-Identifier: Apache-2.0
/* The sequence of a drill. */
#include "tools/drill/drill.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "tools/drill/scene.h"

#define CALM_MS 700 /* of protection that the picture shows before the strike */

static const char *const kill_names[DRILL_KILLS_N] = {
	[DRILL_HOST] = "host",	   [DRILL_AGENT] = "agent", [DRILL_VMM] = "vmm",
	[DRILL_FREEZE] = "freeze", [DRILL_LINK] = "link",   [DRILL_STANDBY] = "standby",
	[DRILL_SWITCH] = "switch"};

static const char *const strikes[DRILL_KILLS_N] = {
	[DRILL_HOST] = "host lost: agent, VMM and keeper killed, links down",
	[DRILL_AGENT] = "agent killed",
	[DRILL_VMM] = "VMM killed",
	[DRILL_FREEZE] = "host frozen",
	[DRILL_LINK] = "replication link cut",
	[DRILL_STANDBY] = "standby host lost",
	[DRILL_SWITCH] = "planned switch"};

const char *drill_kill_name(enum drill_kill kill)
{
	return kill_names[kill];
}

int drill_kill_parse(const char *name)
{
	for (int i = 0; i < DRILL_KILLS_N; i++)
		if (!strcmp(kill_names[i], name))
			return i;
	return -EINVAL;
}

/* ---- signals ---- */

static int signals_take(struct drill *d, struct ft_err *err)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, &d->signals_before);
	d->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return d->signal_fd < 0 ? ft_err_set(err, errno, "signalfd: %s", strerror(errno)) : 0;
}

static void signals_give_back(struct drill *d)
{
	if (d->signal_fd >= 0)
		close(d->signal_fd);
	sigprocmask(SIG_SETMASK, &d->signals_before, NULL);
}

/* ---- a round ---- */

static bool time_has_come(struct drill *d, void *ctx)
{
	(void)d;
	return drill_now_ns() >= *(uint64_t *)ctx;
}

/* Under protection, undisturbed. */
static int look_calm(struct drill *d, struct round *r, struct ft_err *err)
{
	uint64_t until = drill_now_ns() + r->calm_ms * 1000000ull;
	int rc;

	d->round = r;
	rc = drill_wait(d, time_has_come, &until, DRILL_TAKEOVER_MS, "calm", err);
	if (!rc)
		rc = wait_answers(d, answers(d), DRILL_ANSWERS, DRILL_TAKEOVER_MS, err);
	r->pause_p50_us = d->now[d->primary].pause_p50_us;
	r->commit_p50_us = d->now[d->primary].commit_p50_us;
	r->before = answers(d);
	return rc;
}

static int verify(struct drill *d, struct round *r, struct ft_err *err)
{
	Ctl__Reply *reply = NULL;
	int rc = ask_agent(d, d->primary, "verify", NULL, DRILL_PROTECT_MS, &reply, err);

	if (rc)
		return rc;
	r->verified = true;
	r->digest = reply->digest;
	ctl__reply__free_unpacked(reply, NULL);
	return 0;
}

static bool is_protected(struct drill *d)
{
	struct seen seen;

	return ask_seen(d, d->primary, &seen) && !strcmp(seen.state, "protected");
}

int run_round(struct drill *d, struct round *r, struct ft_err *err)
{
	int rc = 0;

	/* A switch leaves the pair whole. */
	if (!is_protected(d)) {
		say(d, "%s comes up as the standby of %s", d->primary ? "host-a" : "host-b",
		    d->hosts[d->primary].id);
		rc = pair_protect(d, err);
	}
	if (rc)
		return rc;
	say(d, "protected; the client has %llu answers", (unsigned long long)answers(d));
	rc = verify(d, r, err);
	if (rc)
		return rc;
	say(d, "the standby's copy of RAM is equal (digest %016llx)",
	    (unsigned long long)r->digest);
	r->old_primary = d->primary;
	rc = look_calm(d, r, err);
	if (rc)
		return rc;
	say(d, "strike: %s: %s", d->hosts[r->kill == DRILL_STANDBY ? !d->primary : d->primary].id,
	    strikes[r->kill]);
	rc = strike(d, r, err);
	d->round = NULL;
	if (!rc)
		report_round(d, r);
	return rc || !d->o->give_back ? rc : homecoming(d, r, err);
}

static int run_rounds(struct drill *d, struct round *rounds, unsigned *done, struct ft_err *err)
{
	int rc = 0;

	for (unsigned i = 0; i < d->o->rounds && !rc; i++) {
		rounds[i].number = i + 1;
		rounds[i].kill = d->o->kill;
		rounds[i].calm_ms = CALM_MS;
		rc = run_round(d, &rounds[i], err);
		*done += !rc;
	}
	return rc;
}

/* ---- the whole ---- */

/* Off means off: a guest that was protected and let go again is theirs as before. */
static int try_letting_go(struct drill *d, struct ft_err *err)
{
	int rc = pair_protect(d, err);

	if (!rc)
		rc = attach_let_go(d, err);
	if (!rc)
		say(d, "attached, protected, and let go again: the guest runs on");
	return rc;
}

static int run_all(struct drill *d, struct round *rounds, unsigned *done, struct ft_err *err)
{
	struct client_counts counts;
	int rc;

	if (d->vmm == DRILL_VMM_QEMU)
		say(d, "two hosts, a client and a switch in network namespaces; a Linux guest in "
		       "QEMU");
	else
		say(d, "no QEMU guest (%s): the built-in machine pocket, over loopback",
		    d->why_pocket ? d->why_pocket : "as asked for");
	rc = pair_start_primary(d, err);
	if (!rc) {
		say(d, "%s runs the guest", d->hosts[d->primary].id);
		rc = pair_start_client(d, err);
	}
	if (!rc) {
		say(d, "the client is connected");
		if (d->o->attach)
			rc = try_letting_go(d, err);
	}
	if (!rc) {
		rc = (d->o->soak_s ? soak : run_rounds)(d, rounds, done, err);
	}
	if (!rc)
		rc = pair_compare(
			d, (d->o->kill == DRILL_SWITCH || d->o->give_back) && !d->o->soak_s, err);
	if (!d->client)
		return rc;
	/* Whatever else went wrong, this is what counts. */
	client_finish(d->client);
	client_counts(d->client, &counts);
	if (counts.wrong)
		rc = ft_err_set(err, EILSEQ, "client: wrong answer: %s", counts.why);
	return rc;
}

int drill_run(const struct drill_options *options, bool *reported, struct ft_err *err)
{
	struct drill *d;
	struct round *rounds;
	unsigned done = 0;
	int rc, ret;

	*reported = false;
	if (options->name)
		return rehearse(options, err);
	d = calloc(1, sizeof *d);
	rounds = calloc(options->soak_s ? SOAK_ROUNDS_MAX : options->rounds, sizeof *rounds);
	if (!d || !rounds) {
		free(d);
		free(rounds);
		ft_err_set(err, ENOMEM, "out of memory");
		return DRILL_FAILED;
	}
	d->o = options;
	d->start_ns = drill_now_ns();
	rc = signals_take(d, err);
	if (!rc)
		rc = pair_prepare(d, err);
	ret = rc == -ENOTSUP || rc == -EPERM ? DRILL_IMPOSSIBLE : DRILL_FAILED;
	if (!rc) {
		rc = run_all(d, rounds, &done, err);
		ret = rc ? DRILL_FAILED : DRILL_OK;
		(options->json ? report_json : report_text)(d, rounds, done, !rc, err);
		*reported = options->json;
		if (rc && rc != -EINTR)
			report_logs(d);
	}
	pair_end(d);
	signals_give_back(d);
	free(rounds);
	free(d);
	return ret;
}
