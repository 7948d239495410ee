/* SPDX-License-Identifier: Apache-2.0 */
/* May a guest be started on this host? A start is the one moment when two histories of a guest can
 * begin without any engine seeing it, so it is refused as soon as another host may have the guest.
 * Pure: the agent asks and obeys, the simulator's operators do too. */
#ifndef FT_START_RULE_H
#define FT_START_RULE_H

#include <stdbool.h>

#include "ft/arbiter.h"
#include "ft/err.h"

struct ft_start_question {
	const char *host_id;
	/* This host's memory: the guest was protected, or handed over, when the last agent here
	 * ended. */
	bool elsewhere;
	const char *memory; /* where that is remembered, for people */
	/* The arbiter's record; NULL with arbiter none, and while there is no answer. */
	const char *arbiter; /* type */
	const struct ft_grant_record *record;
	const char *why; /* no answer: what the arbiter said */
};

/* The record names this host: it must be claimed anew first, so that a standby of before can never
 * be granted the guest any more. */
enum ft_start { FT_START, FT_START_AFTER_CLAIM };

/* One of the above, or -EPERM (another host has or may have the guest) or -EAGAIN (the arbiter does
 * not answer), with what to do about it. */
int ft_start_rule(const struct ft_start_question *q, struct ft_err *err);
/* What the claim swaps the record to. */
struct ft_grant_record ft_start_claim(const struct ft_start_question *q);

#endif
