// SPDX-License-Identifier: Apache-2.0
#include "ft/start_rule.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Nobody to ask: only this host's memory knows. */
static int by_memory(const struct ft_start_question *q, struct ft_err *err)
{
	if (!q->elsewhere)
		return FT_START;
	return ft_err_set(err, EPERM,
			  "the guest was protected when the last agent here ended, so its standby "
			  "may run it: start with --incoming and protect it from there, "
			  "or remove %s if it surely runs nowhere",
			  q->memory);
}

int ft_start_rule(const struct ft_start_question *q, struct ft_err *err)
{
	const struct ft_grant_record *r = q->record;

	if (!strcmp(q->arbiter, "none"))
		return by_memory(q, err);
	if (!r)
		return ft_err_set(
			err, EAGAIN,
			"arbiter %s: does not answer (%s): another host may run the guest",
			q->arbiter, q->why);
	if (!r->generation)
		return FT_START;
	if (strcmp(r->holder, q->host_id))
		return ft_err_set(err, EPERM,
				  "arbiter %s: host %s holds the guest (generation %" PRIu64
				  "): start this one with --incoming and protect it from there",
				  q->arbiter, r->holder, r->generation);
	if (q->elsewhere && r->in_sync)
		return ft_err_set(err, EPERM,
				  "the guest was protected when the last agent here ended, and "
				  "standby %s may take over at any moment: start with --incoming, "
				  "or `ftctl failover` there",
				  r->partner);
	return FT_START_AFTER_CLAIM;
}

struct ft_grant_record ft_start_claim(const struct ft_start_question *q)
{
	struct ft_grant_record want = {.generation = q->record->generation + 1};

	snprintf(want.holder, sizeof want.holder, "%s", q->host_id);
	return want;
}
