// SPDX-License-Identifier: Apache-2.0
// The table, line by line as figures come in, or one JSON object at the end.
#include "bench.h"

#include <assert.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#define FIGURES_MAX 48

static struct {
	struct bench_figure figure[FIGURES_MAX];
	unsigned n;
	struct {
		const char *name;
		char why[FT_ERR_TEXT_MAX];
		bool failed;
	} missing[FIGURES_MAX];
	unsigned missing_n;
	bool began;
} all;

bool bench_report_quiet;

static double ratio(const struct bench_figure *f)
{
	return f->floor > 0 ? f->value / f->floor : 0;
}

static bool is_ok(const struct bench_figure *f)
{
	switch (f->kind) {
	case BENCH_AT_MOST:
		return ratio(f) <= f->reach;
	case BENCH_AT_LEAST:
		return ratio(f) >= f->reach;
	case BENCH_PLUS:
		return f->value <= f->floor + f->reach;
	}
	return false;
}

static void reach_text(const struct bench_figure *f, char *out, size_t room)
{
	static const char *const forms[] = {"<= %.2f x", ">= %.2f x", "<= +%g"};

	snprintf(out, room, forms[f->kind], f->reach);
}

static void begin(void)
{
	if (!all.began && !bench_report_quiet)
		printf("%-18s %10s %10s  %-5s %7s  %-11s %-4s  %s\n", "figure", "here", "floor",
		       "unit", "ratio", "reach", "", "how");
	all.began = true;
}

void bench_report(const struct bench_figure *figure)
{
	const struct bench_figure *f = &all.figure[all.n];
	char reach[32];

	assert(all.n < FIGURES_MAX);
	all.figure[all.n++] = *figure;
	begin();
	if (bench_report_quiet)
		return;
	reach_text(f, reach, sizeof reach);
	printf("%-18s %10.3f %10.3f  %-5s %7.2f  %-11s %-4s  %s\n", f->name, f->value, f->floor,
	       f->unit, ratio(f), reach, is_ok(f) ? "ok" : "MISS", f->note);
	fflush(stdout);
}

void bench_report_samples(const char *name, const char *unit, const struct samples *value,
			  const struct samples *floor, enum bench_reach kind, double reach,
			  const char *what)
{
	struct bench_figure f = {.name = name,
				 .unit = unit,
				 .kind = kind,
				 .reach = reach,
				 .value = samples_median(value),
				 .floor = samples_median(floor)};
	double best = kind == BENCH_AT_LEAST ? 1 : 0;

	snprintf(f.note, sizeof f.note, "%s; p50 of %zu, best %.3f and %.3f", what, value->n,
		 samples_quantile(value, best), samples_quantile(floor, best));
	bench_report(&f);
}

static void missing(const char *name, const char *why, bool failed)
{
	assert(all.missing_n < FIGURES_MAX);
	all.missing[all.missing_n].name = name;
	all.missing[all.missing_n].failed = failed;
	snprintf(all.missing[all.missing_n].why, FT_ERR_TEXT_MAX, "%s", why);
	all.missing_n++;
	begin();
	if (!bench_report_quiet)
		printf("%-18s %s: %s\n", name, failed ? "could not be measured" : "skipped", why);
	fflush(stdout);
}

void bench_report_skipped(const char *name, const char *why)
{
	missing(name, why, false);
}

void bench_report_failed(const char *name, const char *why)
{
	missing(name, why, true);
}

static json_t *to_json(const struct bench_figure *f)
{
	static const char *const kinds[] = {"ratio-at-most", "ratio-at-least", "floor-plus"};

	return json_pack("{s:s, s:f, s:f, s:s, s:f, s:s, s:f, s:b, s:s}", "name", f->name, "value",
			 f->value, "floor", f->floor, "unit", f->unit, "ratio", ratio(f),
			 "reach_kind", kinds[f->kind], "reach", f->reach, "ok", is_ok(f), "how",
			 f->note);
}

static void print_json(const char *summary)
{
	json_t *figures = json_array(), *skipped = json_array(), *failed = json_array(), *root;

	for (unsigned i = 0; i < all.n; i++)
		json_array_append_new(figures, to_json(&all.figure[i]));
	for (unsigned i = 0; i < all.missing_n; i++)
		json_array_append_new(all.missing[i].failed ? failed : skipped,
				      json_pack("{s:s, s:s}", "name", all.missing[i].name, "why",
						all.missing[i].why));
	root = json_pack("{s:o, s:o, s:o, s:s}", "figures", figures, "skipped", skipped, "failed",
			 failed, "summary", summary);
	json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
	putchar('\n');
	json_decref(root);
}

int bench_report_end(bool json, double seconds)
{
	unsigned ok = 0, failed = 0;
	char summary[512];
	size_t at;

	for (unsigned i = 0; i < all.n; i++)
		ok += is_ok(&all.figure[i]);
	for (unsigned i = 0; i < all.missing_n; i++)
		failed += all.missing[i].failed;
	at = (size_t)snprintf(
		summary, sizeof summary,
		"ft-bench: %u of %u figures within reach, %u skipped, %u failed, %.0f s", ok, all.n,
		all.missing_n - failed, failed, seconds);
	for (unsigned i = 0, first = 1; i < all.n && at < sizeof summary; i++) {
		if (is_ok(&all.figure[i]))
			continue;
		at += (size_t)snprintf(summary + at, sizeof summary - at, "%s%s",
				       first ? "; missed: " : ", ", all.figure[i].name);
		first = 0;
	}
	if (json)
		print_json(summary);
	fflush(stdout);
	fprintf(json ? stderr : stdout, "%s\n", summary);
	return failed ? 2 : ok < all.n;
}
