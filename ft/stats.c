// SPDX-License-Identifier: Apache-2.0
#include "ft/stats.h"

#include <stdlib.h>
#include <string.h>

#define NS_PER_S 1000000000ull

void ft_series_add(struct ft_series *s, uint64_t value)
{
	s->samples[s->n++ % FT_SAMPLES] = value > UINT32_MAX ? UINT32_MAX : (uint32_t)value;
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

void ft_series_figure(const struct ft_series *s, struct ft_figure *out)
{
	uint32_t sorted[FT_SAMPLES];
	size_t n = s->n < FT_SAMPLES ? (size_t)s->n : FT_SAMPLES;

	memset(out, 0, sizeof *out);
	if (!n)
		return;
	memcpy(sorted, s->samples, n * sizeof *sorted);
	qsort(sorted, n, sizeof *sorted, by_value);
	out->last = s->samples[(s->n - 1) % FT_SAMPLES];
	out->p50 = sorted[n / 2];
	out->p99 = sorted[n * 99 / 100];
	out->max = sorted[n - 1];
}

void ft_overhead_start(struct ft_overhead *o, uint64_t now_ns)
{
	memset(o, 0, sizeof *o);
	o->start_ns = now_ns;
}

void ft_overhead_add(struct ft_overhead *o, uint64_t now_ns, uint64_t paused_ns)
{
	uint64_t second = now_ns / NS_PER_S;
	unsigned slot = (unsigned)(second % FT_OVERHEAD_SECONDS);

	if (o->second[slot] != second) {
		o->second[slot] = second;
		o->paused_ns[slot] = 0;
	}
	o->paused_ns[slot] += paused_ns;
}

double ft_overhead_share(const struct ft_overhead *o, uint64_t now_ns)
{
	uint64_t span = FT_OVERHEAD_SECONDS * NS_PER_S, paused = 0, second = now_ns / NS_PER_S;

	if (!o->start_ns || now_ns <= o->start_ns)
		return 0;
	for (unsigned i = 0; i < FT_OVERHEAD_SECONDS; i++)
		if (o->second[i] + FT_OVERHEAD_SECONDS > second)
			paused += o->paused_ns[i];
	if (now_ns - o->start_ns < span)
		span = now_ns - o->start_ns;
	return (double)paused / (double)span;
}
