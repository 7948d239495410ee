// SPDX-License-Identifier: Apache-2.0
// How far a guest that only computes comes while it is protected, checkpoints every 100 ms, and how
// far the same guest comes alone; in turn, by the guest's own count.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pair.h"

#define START_SPIN "payload spin 99"
#define STOP_SPIN  GUEST_END("spin")

static int count(int fd, uint64_t *n, struct ft_err *err)
{
	if (send(fd, "?", 1, MSG_NOSIGNAL) == 1 && recv(fd, n, sizeof *n, MSG_WAITALL) == sizeof *n)
		return 0;
	return ft_err_set(err, ETIMEDOUT, "the guest does not say how far it is");
}

/* Counts by microsecond. The answer tells how far the guest was when it was asked, so the time is
 * taken before. */
static int window(int fd, unsigned ms, struct samples *s, struct ft_err *err)
{
	uint64_t first, last, start, ns;
	int rc;

	start = bench_now_ns();
	rc = count(fd, &first, err);
	bench_idle_ms(ms);
	ns = bench_now_ns() - start;
	if (!rc)
		rc = count(fd, &last, err);
	if (!rc)
		samples_add(s, (double)(last - first) / ((double)ns / 1e3));
	return rc;
}

static int measure(struct pair *p, int fd, unsigned rounds, unsigned ms, struct ft_err *err)
{
	struct samples alone = {0}, guarded = {0};
	int rc = 0;

	for (unsigned i = 0; i < rounds && !rc; i++) {
		for (unsigned k = 0; k < 3 && !rc; k++)
			rc = window(fd, ms, &guarded, err);
		if (!rc)
			rc = pair_cancel(p, err);
		for (unsigned k = 0; k < 3 && !rc; k++)
			rc = window(fd, ms, &alone, err);
		if (!rc)
			rc = pair_protect(p, err);
	}
	if (!rc)
		bench_report_samples("progress", "1/us", &guarded, &alone, BENCH_AT_LEAST, 0.85,
				     "interval_ms = 100");
	samples_free(&alone);
	samples_free(&guarded);
	return rc;
}

int bench_progress(struct bench *b, struct ft_err *err)
{
	int fd = -1, rc = pair_up(b, err);

	if (rc)
		return rc;
	rc = pair_type(b->pair, START_SPIN, err);
	/* The console and the network are two ways into the guest. */
	for (uint64_t start = bench_now_ns(); !rc && fd < 0 && bench_ms_since(start) < 10000;) {
		fd = net_tcp(pair_client(b->pair), GUEST_SPIN, err);
		if (fd < 0)
			bench_idle_ms(20);
	}
	if (fd < 0)
		return rc ? rc : fd;
	rc = measure(b->pair, fd, b->quick ? 1 : 4, b->quick ? 500 : 1500, err);
	close(fd);
	if (pair_type(b->pair, STOP_SPIN, rc ? NULL : err) && !rc)
		rc = -err->code;
	return rc;
}
