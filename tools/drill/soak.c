// SPDX-License-Identifier: Apache-2.0
/* Strikes of all kinds in random order, at random moments, on one pair with one client: what single
 * drills miss is what one failover leaves behind for the next. The order comes from a seed; what
 * the machine makes of it does not. */
#include <errno.h>

#include "tools/drill/ledger.h"
#include "tools/drill/scene.h"

#define CALM_MAX_MS 1500

static uint64_t draw(uint64_t seed, unsigned round, unsigned what)
{
	return ledger_mix(ledger_mix(seed, round), what);
}

static enum drill_kill draw_kill(const struct drill *d, unsigned round)
{
	unsigned kinds = d->o->arbiter == DRILL_ARBITER_ETCD ? DRILL_KILLS_N : DRILL_PART_FIRST;
	enum drill_kill kill = (enum drill_kill)(draw(d->o->seed, round, 0) % kinds);

	/* Loopback has no link to cut. */
	return kill == DRILL_LINK && !d->isolated ? DRILL_HOST : kill;
}

int soak(struct drill *d, struct round *rounds, unsigned *done, struct ft_err *err)
{
	uint64_t end = drill_now_ns() + d->o->soak_s * 1000000000ull;
	int rc = 0;

	for (unsigned i = 0; !rc && drill_now_ns() < end; i++) {
		if (i == SOAK_ROUNDS_MAX)
			return ft_err_set(err, E2BIG, "soak: more than %u rounds", i);
		rounds[i].number = i + 1;
		rounds[i].kill = draw_kill(d, i);
		rounds[i].calm_ms = (unsigned)(draw(d->o->seed, i, 1) % CALM_MAX_MS);
		say(d, "round %u: %s", i + 1, drill_kill_name(rounds[i].kill));
		rc = run_round(d, &rounds[i], err);
		*done += !rc;
	}
	return rc;
}
