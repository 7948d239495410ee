// SPDX-License-Identifier: Apache-2.0
// What protection adds to an echo over TCP: an answer waits for the checkpoint that holds it.
// Floor: the pause and the commit of such checkpoints, by the agent's own count.
#include <stdio.h>
#include <unistd.h>

#include "pair.h"

#define GAP_US                                                                                     \
	3000 /* as from a person or another service; longer than the budget's pause between two    \
		checkpoints */

static int measure(struct pair *p, unsigned n, struct ft_err *err)
{
	struct samples guarded = {0}, alone = {0};
	struct bench_figure f = {.name = "echo", .unit = "ms", .kind = BENCH_AT_MOST, .reach = 1.3};
	struct pair_status status = {0};
	int fd = net_tcp(pair_client(p), GUEST_TCP_ECHO, err), rc = fd < 0 ? fd : 0;

	if (!rc)
		rc = net_ping(fd, n, GAP_US, &guarded, err);
	if (!rc)
		rc = pair_status(p, &status, err);
	if (!rc)
		rc = pair_cancel(p, err);
	if (!rc)
		rc = net_ping(fd, n, GAP_US, &alone, err);
	if (!rc)
		rc = pair_protect(p, err);
	if (!rc)
		rc = net_ping(fd, n, GAP_US, &guarded, err);
	if (fd >= 0)
		close(fd);
	if (!rc) {
		f.value = samples_median(&guarded) - samples_median(&alone);
		f.floor = status.commit_ms;
		snprintf(
			f.note, sizeof f.note,
			"added to a round trip; %.3f solo, %.3f protected, p50 of %zu; pause %.3f, "
			"commit with it %.3f",
			samples_median(&alone), samples_median(&guarded), guarded.n,
			status.pause_ms, status.commit_ms);
		bench_report(&f);
	}
	samples_free(&guarded);
	samples_free(&alone);
	return rc;
}

int bench_echo(struct bench *b, struct ft_err *err)
{
	int rc = pair_up(b, err);

	return rc ? rc : measure(b->pair, b->quick ? 200 : 1500, err);
}
