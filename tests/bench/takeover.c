// SPDX-License-Identifier: Apache-2.0
// From the end of a host to the first answer that the standby's guest gives to a client who asks
// every millisecond. The hosts change places in each round.
//
//	takeover   the agent is killed; floor: QEMU's own time
//	silence    the host falls silent; floor: that, and the silence that is allowed
//
// QEMU's own time: a bare one that waits with `-incoming` is given the state, resumes, and its
// guest answers the same kind of client. To the answer and not to the RESUME event, because a guest
// under TCG begins with no translated code: that is in every answer, and no agent's.
#include <stdio.h>
#include <unistd.h>

#include "direct.h"
#include "ft/log.h"
#include "pair.h"

#define ANSWER_MS 20000

typedef int end_fn(struct pair *p, uint64_t *at_ns, struct ft_err *err);

static int round_once(struct pair *p, end_fn *end, struct samples *s, struct ft_err *err)
{
	struct samples warm = {0};
	double ms = 0;
	uint64_t at;
	int fd = net_udp(pair_client(p), GUEST_UDP_ECHO, err), rc = fd < 0 ? fd : 0;

	if (!rc) /* it answers now, and everybody knows where it is */
		rc = net_ping(fd, 20, 1000, &warm, err);
	samples_free(&warm);
	ft_debug("strike");
	if (!rc)
		rc = end(p, &at, err);
	if (!rc)
		rc = net_first_answer(fd, at, ANSWER_MS, &ms, err);
	ft_debug("first answer after %.1f ms", ms);
	if (!rc)
		samples_add(s, ms);
	if (fd >= 0)
		close(fd);
	if (!rc)
		rc = pair_heal(p, err);
	ft_debug("healed");
	return rc;
}

static int measure(struct bench *b, end_fn *end, struct bench_figure *f, struct ft_err *err)
{
	unsigned rounds = b->quick ? 3 : 9;
	struct samples s = {0};
	int rc = direct_load(b, err);

	if (!rc)
		rc = pair_up(b, err);
	for (unsigned i = 0; i < rounds && !rc; i++)
		rc = round_once(b->pair, end, &s, err);
	if (!rc) {
		f->value = samples_median(&s);
		f->floor += b->answer_ms;
		snprintf(f->note, sizeof f->note,
			 "strike to first answer, p50 of %zu, %.1f to %.1f; a bare QEMU loads in "
			 "%.1f and its guest answers after %.1f",
			 s.n, samples_quantile(&s, 0), samples_quantile(&s, 1), b->load_ms,
			 b->answer_ms);
		bench_report(f);
	}
	samples_free(&s);
	return rc;
}

int bench_takeover(struct bench *b, struct ft_err *err)
{
	struct bench_figure f = {.name = "takeover", .unit = "ms", .kind = BENCH_PLUS, .reach = 50};

	return measure(b, pair_strike, &f, err);
}

int bench_silence(struct bench *b, struct ft_err *err)
{
	struct bench_figure f = {.name = "silence",
				 .unit = "ms",
				 .kind = BENCH_PLUS,
				 .reach = 150,
				 .floor = PAIR_TAKEOVER_MS};

	return measure(b, pair_silence, &f, err);
}
