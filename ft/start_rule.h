/* SPDX-License-Identifier: Apache-2.0 */
/* May a guest be started on this host? A start is the one moment when two histories of a guest can
 * begin without any engine seeing it, so it is refused as soon as another host may have the guest.
 * Pure: the agent asks and obeys, the simulator's operators do too. */
#ifndef FT_START_RULE_H
#define FT_START_RULE_H

#include <stdbool.h>

#include "eventtap/store.h"
#include "ft/arbiter.h"
#include "ft/err.h"

/* What the standby of before says of itself (PROTOCOL.md, REFUSE). */
struct ft_start_standby {
	bool runs, waits; /* has the guest; is a standby */
	uint64_t generation, committed;
};

struct ft_start_question {
	const char *host_id;
	/* This host's memory: the guest was protected, or handed over, when the last agent here
	 * ended, under that generation. */
	bool elsewhere;
	uint64_t guarded;
	const char *peer; /* its standby then, "" = not known */
	/* The arbiter's record; NULL with arbiter none, and while there is no answer. */
	const char *arbiter; /* type */
	const struct ft_grant_record *record;
	const char *why; /* no answer: what the arbiter said */
	/* The disks here are all a standby's whole copies (Consistent), of this generation; 0: they
	 * are not. */
	uint64_t whole;
	/* Was that peer asked, and what did it answer? NULL: nothing, and standby_why says why. */
	bool asked;
	const struct ft_start_standby *standby;
	const char *standby_why;
	bool force; /* the operator gives up what else there may be */
};

enum ft_start {
	FT_START,
	/* The record must be claimed anew first, so that a standby of before can never be granted
	 * the guest any more. */
	FT_START_AFTER_CLAIM,
	/* The peer decides: ask it, and then the rule again. */
	FT_START_ASK_STANDBY
};

/* One of the above, or -EPERM (another host has or may have the guest) or -EAGAIN (the arbiter does
 * not answer), with what to do about it. Neither a question nor a refusal with force: then *err
 * says what is known to be lost, if anything is (err->code). *right: what may be made of the disks
 * here. */
int ft_start_rule(const struct ft_start_question *q, enum store_right *right, struct ft_err *err);
/* What the claim swaps the record to. */
struct ft_grant_record ft_start_claim(const struct ft_start_question *q);

#endif
