// SPDX-License-Identifier: Apache-2.0
/* Arbiter none: there is nobody to ask, so the operator's word in the guest file decides who
 * survives a silent link. What makes it safe is that both hosts read the same word and that at most
 * one of them is the side it names.
 *
 * The record is this agent's own: what it was granted last. It cannot know what the other side was
 * granted. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ft/arbiter.h"

struct arbiter_none {
	struct ft_arbiter base;
	enum ft_survivor survivor;
	enum ft_side side;
	struct ft_grant_record record;
};

static void none_read(struct ft_arbiter *a, ft_arbiter_fn *fn, void *ctx)
{
	struct arbiter_none *none = (struct arbiter_none *)a;
	struct ft_grant_record now = none->record;

	fn(ctx, FT_ARBITER_GRANTED, &now, "");
}

/* The primary of this generation hands the next one to somebody else. */
static bool gives_away(const struct arbiter_none *none, uint64_t expected,
		       const struct ft_grant_record *want)
{
	return none->side == FT_SIDE_PRIMARY && expected > 0 &&
	       expected == none->record.generation && want->generation > expected &&
	       strcmp(want->holder, none->record.holder) != 0;
}

/* May this side become, or stay, the only one that runs the guest? */
static enum ft_arbiter_answer decide(const struct arbiter_none *none, uint64_t expected,
				     const struct ft_grant_record *want)
{
	const struct ft_grant_record *record = &none->record;
	bool known = expected == record->generation;

	if (expected < record->generation)
		return FT_ARBITER_LOST;
	if (want->generation == expected)
		return !known || strcmp(want->holder, record->holder) == 0 ? FT_ARBITER_GRANTED
									   : FT_ARBITER_LOST;
	/* What a primary gives away it takes from nobody. */
	if (gives_away(none, expected, want))
		return FT_ARBITER_GRANTED;
	/* Nobody else may be granted: there is no guest yet, or no standby that is in sync. */
	if (none->side == FT_SIDE_PRIMARY && known && !record->in_sync)
		return FT_ARBITER_GRANTED;
	if (none->survivor == FT_SURVIVOR_STANDBY && none->side == FT_SIDE_STANDBY)
		return FT_ARBITER_GRANTED;
	if (none->survivor == FT_SURVIVOR_PRIMARY && none->side == FT_SIDE_PRIMARY)
		return FT_ARBITER_GRANTED;
	return FT_ARBITER_UNDECIDED;
}

static const char *survivor_text(enum ft_survivor survivor)
{
	switch (survivor) {
	case FT_SURVIVOR_STANDBY:
		return "arbiter none: survivor is the standby: this primary waits until someone "
		       "decides";
	case FT_SURVIVOR_PRIMARY:
		return "arbiter none: survivor is the primary: this standby waits until someone "
		       "decides";
	case FT_SURVIVOR_MANUAL:
		return "arbiter none: survivor is manual: an operator must decide";
	}
	return "";
}

static void none_swap(struct ft_arbiter *a, uint64_t expected_generation,
		      const struct ft_grant_record *want, ft_arbiter_fn *fn, void *ctx)
{
	struct arbiter_none *none = (struct arbiter_none *)a;
	struct ft_grant_record now;
	enum ft_arbiter_answer answer;
	const char *why = "";

	assert(want->generation > 0);
	assert(want->generation >= expected_generation);
	assert(want->generation - expected_generation <= 1);
	answer = decide(none, expected_generation, want);
	if (answer == FT_ARBITER_GRANTED && gives_away(none, expected_generation, want))
		none->side = FT_SIDE_STANDBY; /* so that it is not taken back as lightly */
	if (answer == FT_ARBITER_GRANTED)
		none->record = *want;
	else if (answer == FT_ARBITER_UNDECIDED)
		why = survivor_text(none->survivor);
	else
		why = "arbiter none: this agent's record has changed meanwhile";
	/* A copy: the callback may swap again. */
	now = none->record;
	fn(ctx, answer, &now, why);
}

static void none_free(struct ft_arbiter *a)
{
	free(a);
}

static const struct ft_arbiter_ops none_ops = {
	.type = "none",
	.read = none_read,
	.swap = none_swap,
	.free = none_free,
};

struct ft_arbiter *ft_arbiter_none_new(enum ft_survivor survivor, enum ft_side side)
{
	struct arbiter_none *none = calloc(1, sizeof *none);

	assert(survivor >= FT_SURVIVOR_STANDBY);
	assert(survivor <= FT_SURVIVOR_MANUAL);
	if (!none)
		return NULL;
	none->base.ops = &none_ops;
	none->survivor = survivor;
	ft_arbiter_none_set_side(&none->base, side);
	return &none->base;
}

void ft_arbiter_none_set_side(struct ft_arbiter *a, enum ft_side side)
{
	assert(a->ops == &none_ops);
	assert(side == FT_SIDE_PRIMARY || side == FT_SIDE_STANDBY);
	((struct arbiter_none *)a)->side = side;
}
