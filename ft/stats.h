/* SPDX-License-Identifier: Apache-2.0 */
/* Figures that operators see: last, p50, p99 and max over a window of recent samples. */
#ifndef FT_STATS_H
#define FT_STATS_H

#include <stdint.h>

#define FT_SAMPLES 1024

struct ft_series {
	uint32_t samples[FT_SAMPLES]; /* ring */
	uint64_t n;		      /* ever */
};

struct ft_figure {
	uint64_t last, p50, p99, max;
};

void ft_series_add(struct ft_series *s, uint64_t value);
/* Sorts a copy of the window: for status, not for the checkpoint path. */
void ft_series_figure(const struct ft_series *s, struct ft_figure *out);

/* Share of the last ten seconds that the guest was paused, in 1-second buckets. */
#define FT_OVERHEAD_SECONDS 10
struct ft_overhead {
	uint64_t second[FT_OVERHEAD_SECONDS];
	uint64_t paused_ns[FT_OVERHEAD_SECONDS];
	uint64_t start_ns; /* of the accounting */
};
void ft_overhead_start(struct ft_overhead *o, uint64_t now_ns);
void ft_overhead_add(struct ft_overhead *o, uint64_t now_ns, uint64_t paused_ns);
double ft_overhead_share(const struct ft_overhead *o, uint64_t now_ns);

#endif
