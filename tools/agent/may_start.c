// SPDX-License-Identifier: Apache-2.0
/* Asks what the rule of starting a guest (ft/start_rule.h) wants to know, and obeys it. */
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "ft/log.h"
#include "ft/start_rule.h"
#include "tools/agent/agent.h"

struct question {
	bool answered;
	enum ft_arbiter_answer answer;
	struct ft_grant_record now;
	char why[FT_ERR_TEXT_MAX];
};

static void on_answer(void *ctx, enum ft_arbiter_answer answer, const struct ft_grant_record *now,
		      const char *why)
{
	struct question *q = ctx;

	q->answered = true;
	q->answer = answer;
	q->now = *now;
	snprintf(q->why, sizeof q->why, "%s", why);
}

/* An arbiter answers in time, always (ft/arbiter.h). Other events have their turn too: who was
 * stopped meanwhile starts nothing any more. */
static int await(struct agent *a, const struct question *q, struct ft_err *err)
{
	while (!q->answered && !a->stop_why[0])
		event_base_loop(a->base, EVLOOP_ONCE);
	return q->answered ? 0
			   : ft_err_set(err, EINTR, "%s while the arbiter was asked", a->stop_why);
}

static int claim(struct agent *a, const struct ft_start_question *rule, struct ft_err *err)
{
	struct ft_grant_record want;
	struct question q = {0};

	assert(rule->record); /* else the rule claims nothing */
	want = ft_start_claim(rule);
	a->arbiter->ops->swap(a->arbiter, rule->record->generation, &want, on_answer, &q);
	if (await(a, &q, err))
		return -err->code;
	if (q.answer == FT_ARBITER_GRANTED) {
		ft_engine_remember(a->engine, want.generation); /* it runs under that one */
		return 0;
	}
	return ft_err_set(err, EAGAIN, "arbiter %s: the guest cannot be claimed: %s",
			  a->arbiter->ops->type, q.why);
}

/* All disks here are a standby's whole copies of that generation. */
static bool is_whole(struct agent *a, uint64_t generation)
{
	for (unsigned i = 0; i < a->config.disks_n; i++)
		if (a->config.disks[i].mode != STORE_REPLICATED ||
		    !store_is_consistent(a->config.disks[i].image, generation))
			return false;
	return a->config.disks_n > 0;
}

static bool ask_standby(struct agent *a, const char *uri, struct ft_start_standby *says,
			struct ft_err *why)
{
	struct peer_answer peer;

	if (peer_ask(a, uri, &peer, why))
		return false;
	*says = (struct ft_start_standby){.runs = peer.runs,
					  .waits = peer.waits,
					  .generation = peer.generation,
					  .committed = peer.committed};
	return true;
}

static int obey(struct agent *a, struct ft_start_question *rule, struct ft_start_standby *says,
		struct ft_err *why, struct ft_err *err)
{
	int rc = ft_start_rule(rule, &a->right, err);

	if (rc == FT_START_ASK_STANDBY) {
		rule->asked = true;
		if (ask_standby(a, rule->peer, says, why))
			rule->standby = says;
		rc = ft_start_rule(rule, &a->right, err);
		if (rc >= 0)
			ft_info("%s: the standby of before, %s, holds nothing: the copy here is "
				"the newest",
				a->config.name, rule->peer);
	}
	if (rule->force && err->code)
		ft_warn("%s: forced: %s", a->config.name, err->text);
	return rc == FT_START_AFTER_CLAIM ? claim(a, rule, err) : rc;
}

static int ask(struct agent *a, const struct memory *m, struct ft_err *err)
{
	struct question q = {0};
	struct ft_start_standby says;
	struct ft_err why = {0};
	struct ft_start_question rule = {.host_id = a->host_id,
					 .elsewhere = m->elsewhere,
					 .guarded = m->guarded,
					 .peer = m->peer,
					 .arbiter = a->arbiter->ops->type,
					 .why = q.why,
					 .standby_why = why.text,
					 .force = a->force};

	if (a->config.arbiter.type != CONFIG_ARBITER_NONE) {
		a->arbiter->ops->read(a->arbiter, on_answer, &q);
		if (await(a, &q, err))
			return -err->code;
		if (q.answer == FT_ARBITER_GRANTED)
			rule.record = &q.now;
	}
	if (rule.record && is_whole(a, q.now.generation))
		rule.whole = q.now.generation;
	return obey(a, &rule, &says, &why, err);
}

/* The keeper ends a protected guest's VM with its agent; should it have been killed too, this is
 * the last chance. */
static void end_leftover(struct agent *a, const struct memory *m)
{
	if (!memory_vmm_lives(m))
		return;
	ft_warn("%s: the last agent left a QEMU (pid %d) of a guest that its standby may run: "
		"ended",
		a->config.name, (int)m->vmm_pid);
	kill((pid_t)m->vmm_pid, SIGKILL);
}

int may_start(struct agent *a, struct ft_err *err)
{
	struct ft_engine_status s;
	struct memory m;
	int rc;

	memory_load(a->run_dir, a->config.name, &m);
	if (m.elsewhere)
		end_leftover(a, &m);
	rc = ask(a, &m, err);
	if (rc)
		return rc;
	ft_engine_status(a->engine, &s);
	m.generation = s.generation;
	m.elsewhere = false;
	return memory_save(a->run_dir, a->config.name, &m, err);
}
