// SPDX-License-Identifier: Apache-2.0
/* May the guest be started here? A start is the one moment when two histories of a guest can begin
 * without any engine seeing it, so it is refused as soon as another host may have the guest:
 *   - this host's memory says that the guest was protected, or handed over, when the last agent
 * here ended;
 *   - the arbiter's record names another host, or cannot be read.
 * If the record names this host it is claimed anew, so that a standby of before can never be
 * granted the guest any more. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "ft/log.h"
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

static int claim(struct agent *a, const struct ft_grant_record *now, struct ft_err *err)
{
	struct ft_grant_record want = {.generation = now->generation + 1};
	struct question q = {0};

	snprintf(want.holder, sizeof want.holder, "%s", a->host_id);
	a->arbiter->ops->swap(a->arbiter, now->generation, &want, on_answer, &q);
	if (await(a, &q, err))
		return -err->code;
	if (q.answer == FT_ARBITER_GRANTED)
		return 0;
	return ft_err_set(err, EAGAIN, "arbiter %s: the guest cannot be claimed: %s",
			  a->arbiter->ops->type, q.why);
}

static int ask_record(struct agent *a, bool elsewhere, struct ft_err *err)
{
	const char *type = a->arbiter->ops->type;
	struct question q = {0};

	a->arbiter->ops->read(a->arbiter, on_answer, &q);
	if (await(a, &q, err))
		return -err->code;
	if (q.answer != FT_ARBITER_GRANTED)
		return ft_err_set(
			err, EAGAIN,
			"arbiter %s: does not answer (%s): another host may run the guest", type,
			q.why);
	if (!q.now.generation)
		return 0;
	if (strcmp(q.now.holder, a->host_id))
		return ft_err_set(err, EPERM,
				  "arbiter %s: host %s holds the guest (generation %" PRIu64
				  "): start this one with --incoming and protect it from there",
				  type, q.now.holder, q.now.generation);
	if (elsewhere && q.now.in_sync)
		return ft_err_set(err, EPERM,
				  "the guest was protected when the last agent here ended, and "
				  "standby %s may take over at any moment: start with --incoming, "
				  "or `ftctl failover` there",
				  q.now.partner);
	return claim(a, &q.now, err);
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
	struct memory m;
	int rc = 0;

	memory_load(a->run_dir, a->config.name, &m);
	if (m.elsewhere)
		end_leftover(a, &m);
	if (a->config.arbiter.type != CONFIG_ARBITER_NONE)
		rc = ask_record(a, m.elsewhere, err);
	else if (m.elsewhere)
		rc = ft_err_set(
			err, EPERM,
			"the guest was protected when the last agent here ended, so its standby "
			"may run it: start with --incoming and protect it from there, "
			"or remove %s/%s.memory if it surely runs nowhere",
			a->run_dir, a->config.name);
	if (rc)
		return rc;
	m.elsewhere = false;
	return memory_save(a->run_dir, a->config.name, &m, err);
}
