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

static int read_record(struct agent *a, struct question *q, struct ft_err *err)
{
	a->arbiter->ops->read(a->arbiter, on_answer, q);
	if (await(a, q, err))
		return -err->code;
	if (q->answer == FT_ARBITER_GRANTED)
		return 0;
	return ft_err_set(err, EAGAIN,
			  "arbiter %s: does not answer (%s): another host may run the guest",
			  a->arbiter->ops->type, q->why);
}

/* A standby whose disks are whole, of the generation that the record calls in sync: who is granted
 * the guest by it cannot lose anything that was acknowledged. */
static bool is_whole_standby(struct agent *a, const struct ft_grant_record *now)
{
	if (!now->in_sync || strcmp(now->partner, a->host_id) || !a->config.disks_n)
		return false;
	for (unsigned i = 0; i < a->config.disks_n; i++)
		if (a->config.disks[i].mode != STORE_REPLICATED ||
		    !store_is_consistent(a->config.disks[i].image, now->generation))
			return false;
	return true;
}

/* The guest was protected when the last agent here ended. If its standby answers, is a standby
 * still, holds nothing (its host went down too) and has seen no newer generation than that of the
 * protection, it never had the guest and never will: our disk is the newest. */
static bool standby_is_empty(struct agent *a, const struct memory *m, char says[256])
{
	struct peer_answer peer;
	struct ft_err err = {0};

	if (!m->peer[0]) {
		snprintf(says, 256, "its address is not known here");
		return false;
	}
	if (peer_ask(a, m->peer, &peer, &err)) {
		snprintf(says, 256, "%.100s does not answer: %.100s", m->peer, err.text);
		return false;
	}
	if (peer.runs || !peer.waits || peer.committed || peer.generation > m->guarded) {
		snprintf(says, 256, "%.100s %s generation %" PRIu64 ", checkpoint %" PRIu64,
			 m->peer, peer.runs ? "runs it under" : "has", peer.generation,
			 peer.committed);
		return false;
	}
	ft_info("%s: the standby of before, %s, holds nothing: the copy here is the newest",
		a->config.name, m->peer);
	return true;
}

static int ask_record(struct agent *a, const struct memory *m, struct ft_err *err)
{
	const char *type = a->arbiter->ops->type;
	struct question q = {0};
	char says[256];
	int rc = read_record(a, &q, err);

	if (rc)
		return rc;
	if (!q.now.generation)
		return 0;
	a->right = STORE_RIGHT_GRANTED;
	if (is_whole_standby(a, &q.now)) {
		a->right = STORE_RIGHT_STANDBY;
		return claim(a, &q.now, err);
	}
	if (strcmp(q.now.holder, a->host_id))
		return ft_err_set(err, EPERM,
				  "arbiter %s: host %s holds the guest (generation %" PRIu64
				  "): start this one with --incoming and protect it from there, or "
				  "with --force from what is here",
				  type, q.now.holder, q.now.generation);
	if (m->elsewhere && q.now.in_sync && !standby_is_empty(a, m, says))
		return ft_err_set(err, EPERM,
				  "the guest was protected when the last agent here ended, and "
				  "standby %s may take over at any moment (%s): start with "
				  "--incoming, or `ftctl failover` there",
				  q.now.partner, says);
	return claim(a, &q.now, err);
}

/* The operator decides, and reads what is known to be elsewhere. The record is claimed all the
 * same: nobody else is granted the guest from now on. */
static int force(struct agent *a, const struct memory *m, struct ft_err *err)
{
	struct question q = {0};

	a->right = STORE_RIGHT_FORCE;
	if (m->elsewhere)
		ft_warn("%s: forced: the guest was protected when the last agent here ended "
			"(generation %" PRIu64 "): what its standby did since is lost",
			a->config.name, m->generation);
	if (a->config.arbiter.type == CONFIG_ARBITER_NONE)
		return 0;
	if (read_record(a, &q, err)) {
		if (err->code == EINTR)
			return -EINTR;
		ft_warn("%s: forced: %s", a->config.name, err->text);
		return 0;
	}
	if (q.now.generation && strcmp(q.now.holder, a->host_id))
		ft_warn("%s: forced: host %s holds the guest under generation %" PRIu64
			": what it did with it is lost",
			a->config.name, q.now.holder, q.now.generation);
	return q.now.generation ? claim(a, &q.now, err) : 0;
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
	char says[256];
	int rc = 0;

	memory_load(a->run_dir, a->config.name, &m);
	if (m.elsewhere)
		end_leftover(a, &m);
	a->right = STORE_RIGHT_NONE;
	if (a->force)
		rc = force(a, &m, err);
	else if (a->config.arbiter.type != CONFIG_ARBITER_NONE)
		rc = ask_record(a, &m, err);
	else if (m.elsewhere && standby_is_empty(a, &m, says))
		a->right = STORE_RIGHT_GRANTED;
	else if (m.elsewhere)
		rc = ft_err_set(
			err, EPERM,
			"the guest was protected when the last agent here ended, so its standby "
			"may run it (%s): start with --incoming and protect it from there, or, if "
			"it surely runs nowhere, with --force from what is here",
			says);
	if (rc)
		return rc;
	m.elsewhere = false;
	return memory_save(a->run_dir, a->config.name, &m, err);
}
