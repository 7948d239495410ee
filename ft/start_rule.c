// SPDX-License-Identifier: Apache-2.0
#include "ft/start_rule.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define SAYS_MAX 256

/* If the standby of before is one still, holds nothing (its host went down too) and has seen no
 * newer generation than that of the protection, it never had the guest and never will: the disk
 * here is the newest. */
static bool standby_is_empty(const struct ft_start_question *q, char says[SAYS_MAX])
{
	const struct ft_start_standby *s = q->standby;

	if (!q->peer[0])
		snprintf(says, SAYS_MAX, "its address is not known here");
	else if (!s)
		snprintf(says, SAYS_MAX, "%.100s does not answer: %.100s", q->peer, q->standby_why);
	else if (s->runs || !s->waits || s->committed || s->generation > q->guarded)
		snprintf(says, SAYS_MAX, "%.100s %s generation %" PRIu64 ", checkpoint %" PRIu64,
			 q->peer, s->runs ? "runs it under" : "has", s->generation, s->committed);
	else
		return true;
	return false;
}

static bool must_ask(const struct ft_start_question *q)
{
	return q->peer[0] && !q->asked;
}

/* Nobody to ask but that standby: only this host's memory knows. */
static int by_memory(const struct ft_start_question *q, enum store_right *right, struct ft_err *err)
{
	char says[SAYS_MAX];

	*right = STORE_RIGHT_NONE;
	if (!q->elsewhere)
		return FT_START;
	if (must_ask(q))
		return FT_START_ASK_STANDBY;
	*right = STORE_RIGHT_GRANTED;
	if (standby_is_empty(q, says))
		return FT_START;
	return ft_err_set(err, EPERM,
			  "the guest was protected when the last agent here ended, so its standby "
			  "may run it (%s): start with --incoming and protect it from there, or, "
			  "if it surely runs nowhere, with --force from what is here",
			  says);
}

static int by_record(const struct ft_start_question *q, enum store_right *right, struct ft_err *err)
{
	const struct ft_grant_record *r = q->record;
	char says[SAYS_MAX];

	/* Whoever is granted the guest by a copy that the record calls in sync cannot lose anything
	 * that was acknowledged. */
	*right = STORE_RIGHT_STANDBY;
	if (r->in_sync && !strcmp(r->partner, q->host_id) && q->whole == r->generation)
		return FT_START_AFTER_CLAIM;
	*right = STORE_RIGHT_GRANTED;
	if (strcmp(r->holder, q->host_id))
		return ft_err_set(err, EPERM,
				  "arbiter %s: host %s holds the guest (generation %" PRIu64
				  "): start this one with --incoming and protect it from there, or "
				  "with --force from what is here",
				  q->arbiter, r->holder, r->generation);
	if (!q->elsewhere || !r->in_sync)
		return FT_START_AFTER_CLAIM;
	if (must_ask(q))
		return FT_START_ASK_STANDBY;
	if (standby_is_empty(q, says))
		return FT_START_AFTER_CLAIM;
	return ft_err_set(err, EPERM,
			  "the guest was protected when the last agent here ended, and standby %s "
			  "may take over at any moment (%s): start with --incoming, or `ftctl "
			  "failover` there",
			  r->partner, says);
}

static int no_answer(const struct ft_start_question *q, struct ft_err *err)
{
	return ft_err_set(err, EAGAIN,
			  "arbiter %s: does not answer (%s): another host may run the guest",
			  q->arbiter, q->why);
}

/* The operator decides, and reads what is known to be elsewhere. The record is claimed all the
 * same: nobody else is granted the guest from now on. */
static int by_force(const struct ft_start_question *q, struct ft_err *err)
{
	const struct ft_grant_record *r = q->record;
	bool none = !strcmp(q->arbiter, "none");

	*err = (struct ft_err){0};
	if (!none && !r)
		(void)no_answer(q, err);
	else if (r && r->generation && strcmp(r->holder, q->host_id))
		ft_err_set(err, EPERM,
			   "host %s holds the guest under generation %" PRIu64
			   ": what it did with it is lost",
			   r->holder, r->generation);
	else if (q->elsewhere)
		ft_err_set(err, EPERM,
			   "the guest was protected when the last agent here ended (generation "
			   "%" PRIu64 "): what its standby did since is lost",
			   q->guarded);
	return r && r->generation ? FT_START_AFTER_CLAIM : FT_START;
}

int ft_start_rule(const struct ft_start_question *q, enum store_right *right, struct ft_err *err)
{
	*right = q->force ? STORE_RIGHT_FORCE : STORE_RIGHT_NONE;
	if (q->force)
		return by_force(q, err);
	if (!strcmp(q->arbiter, "none"))
		return by_memory(q, right, err);
	if (!q->record)
		return no_answer(q, err);
	return q->record->generation ? by_record(q, right, err) : FT_START;
}

struct ft_grant_record ft_start_claim(const struct ft_start_question *q)
{
	struct ft_grant_record want = {.generation = q->record->generation + 1};

	snprintf(want.holder, sizeof want.holder, "%s", q->host_id);
	return want;
}
