// SPDX-License-Identifier: Apache-2.0
// From an operator's `checkpoint` to its answer that it is committed, idle guest, over TLS between
// two agents. Floor: the pause of that checkpoint, and a round trip over bare TLS of as many bytes
// as went over the wire.
#include <stdio.h>

#include "pair.h"
#include "tls.h"

#define GAP_MS 20

static int measure(struct pair *p, struct tls_echo *echo, unsigned rounds, struct ft_err *err)
{
	struct samples here = {0}, floor = {0}, engine = {0};
	struct pair_status before = {0}, after = {0};
	int rc = pair_status(p, &before, err);
	char what[96];

	for (unsigned i = 0; i < rounds + 2 && !rc; i++) {
		uint64_t start;
		double ms, round_trip = 0;

		bench_idle_ms(GAP_MS);
		start = bench_now_ns();
		rc = pair_checkpoint(p, err);
		ms = bench_ms_since(start);
		if (!rc)
			rc = pair_status(p, &after, err);
		if (!rc)
			rc = tls_echo_round(echo,
					    (after.sent - before.sent) /
						    (after.checkpoints - before.checkpoints + 1),
					    &round_trip, err);
		before = after;
		if (rc || i < 2)
			continue;
		samples_add(&here, ms);
		samples_add(&engine, after.commit_last_ms);
		samples_add(&floor, after.pause_last_ms + round_trip);
	}
	if (!rc) {
		snprintf(what, sizeof what, "ftctl to answer; the engine's own part %.3f",
			 samples_median(&engine));
		bench_report_samples("commit", "ms", &here, &floor, BENCH_AT_MOST, 1.5, what);
	}
	samples_free(&here);
	samples_free(&floor);
	samples_free(&engine);
	return rc;
}

int bench_commit(struct bench *b, struct ft_err *err)
{
	struct tls_echo *echo = NULL;
	int rc = pair_up(b, err);

	if (rc)
		return rc;
	rc = tls_echo_start(b, &echo, err);
	if (!rc)
		rc = measure(b->pair, echo, b->quick ? 60 : 300, err);
	tls_echo_stop(echo);
	return rc;
}
