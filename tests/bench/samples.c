// SPDX-License-Identifier: Apache-2.0
// Samples of one figure, and the clock that they are taken with.
#include "bench.h"

#include <assert.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

void samples_add(struct samples *s, double value)
{
	if (s->n == s->room) {
		s->room = s->room ? 2 * s->room : 64;
		s->v = realloc(s->v, s->room * sizeof *s->v);
		assert(s->v);
	}
	s->v[s->n++] = value;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

double samples_quantile(const struct samples *s, double q)
{
	double *sorted, at = q * (double)(s->n - 1), below;
	size_t i = (size_t)at;

	assert(s->n);
	sorted = malloc(s->n * sizeof *sorted);
	assert(sorted);
	memcpy(sorted, s->v, s->n * sizeof *sorted);
	qsort(sorted, s->n, sizeof *sorted, compare);
	below = sorted[i];
	if (i + 1 < s->n)
		below += (at - (double)i) * (sorted[i + 1] - below);
	free(sorted);
	return below;
}

void samples_free(struct samples *s)
{
	free(s->v);
	*s = (struct samples){0};
}

uint64_t bench_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void bench_idle_ms(unsigned ms)
{
	poll(NULL, 0, (int)ms);
}
