// SPDX-License-Identifier: Apache-2.0
/* What a drill tells: progress as it goes, the outcome at its end; for people, or one JSON object.
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>

#include "tools/drill/scene.h"

#define LOG_LINES 12

static double ms(uint64_t from_ns, uint64_t to_ns)
{
	return to_ns > from_ns ? (double)(to_ns - from_ns) / 1e6 : 0;
}

void say(struct drill *d, const char *fmt, ...)
{
	va_list ap;

	if (d->o->json)
		return;
	printf("%6.1f s  ", (double)(drill_now_ns() - d->start_ns) / 1e9);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	fflush(stdout);
}

void report_round(struct drill *d, const struct round *r)
{
	if (d->o->json)
		return;
	say(d, "%s goes on with the guest; the client was without an answer for %.0f ms",
	    d->hosts[r->winner].id, ms(r->gap_start_ns, r->gap_end_ns));
	if (!d->o->soak_s) /* there are hundreds */
		picture(d, r);
}

static uint64_t lost(const struct client_counts *c)
{
	return c->sent - c->answers;
}

static void print_rounds(const struct round *rounds, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		printf("  round %u: gap %.0f ms; %" PRIu64 " answers before, %" PRIu64
		       " after; pause %.1f ms, commit %.1f ms (p50)\n",
		       rounds[i].number, ms(rounds[i].gap_start_ns, rounds[i].gap_end_ns),
		       rounds[i].before, rounds[i].after, (double)rounds[i].pause_p50_us / 1e3,
		       (double)rounds[i].commit_p50_us / 1e3);
}

/* Of a soak: what each kind of strike cost. */
static void print_kinds(const struct round *rounds, unsigned n)
{
	for (int kill = 0; kill < DRILL_KILLS_N; kill++) {
		unsigned struck = 0;
		double sum = 0, longest = 0;

		for (unsigned i = 0; i < n; i++) {
			double gap = ms(rounds[i].gap_start_ns, rounds[i].gap_end_ns);

			if ((int)rounds[i].kill != kill)
				continue;
			struck++;
			sum += gap;
			longest = gap > longest ? gap : longest;
		}
		if (struck)
			printf("  %-25s %u times; gap %.0f ms on average, %.0f ms at most\n",
			       drill_kill_name((enum drill_kill)kill), struck, sum / struck,
			       longest);
	}
}

void report_text(struct drill *d, const struct round *rounds, unsigned n, bool ok,
		 const struct ft_err *why)
{
	struct client_counts c = {0};
	double longest = 0, first = 0;

	if (d->client)
		client_counts(d->client, &c);
	for (unsigned i = 0; i < n; i++) {
		double gap = ms(rounds[i].gap_start_ns, rounds[i].gap_end_ns);

		if (gap < longest)
			continue;
		longest = gap;
		first = ms(rounds[i].strike_ns, rounds[i].gap_end_ns);
	}
	printf("\nWhat the client saw, on one %s%s:\n", d->talk_ops->connection,
	       d->vmm == DRILL_VMM_QEMU ? " to the Linux guest" : " to the guest");
	(d->o->soak_s ? print_kinds : print_rounds)(rounds, n);
	if (n)
		printf("  longest gap    %.0f ms (strike to first answer %.0f ms)\n", longest,
		       first);
	printf("  answers        %" PRIu64 ", each checked against guest RAM, disk and history\n"
	       "  lost           %" PRIu64 "\n  wrong          %" PRIu64 "\n"
	       "  connection     %s\n",
	       c.answers, lost(&c), c.wrong, c.lost || !c.answers ? "lost" : "kept");
	if (d->images)
		printf("  disk           %s: %" PRIu64 " MiB equal byte for byte to what was "
		       "acknowledged (%" PRIu64 " blocks written)\n",
		       d->images > 1 ? "both images" : d->hosts[d->primary].id,
		       d->image_bytes >> 20, d->image_blocks);
	if (!ok && why->text[0])
		printf("  FAILED         %s\n", why->text);
	if (d->o->keep || !ok)
		printf("  logs           %s%s\n", d->dir,
		       d->o->keep ? "" : " (kept only with --keep)");
	fflush(stdout);
}

static json_t *round_json(const struct round *r)
{
	char digest[20];

	snprintf(digest, sizeof digest, "%016" PRIx64, r->digest);
	return json_pack(
		"{s:i, s:s, s:s, s:s, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:s}",
		"round", (int)r->number, "kill", drill_kill_name(r->kill), "primary",
		r->old_primary ? "host-b" : "host-a", "winner", r->winner ? "host-b" : "host-a",
		"gap_ms", ms(r->gap_start_ns, r->gap_end_ns), "strike_to_answer_ms",
		ms(r->strike_ns, r->gap_end_ns), "before", (json_int_t)r->before, "after",
		(json_int_t)r->after, "pause_us_p50", (json_int_t)r->pause_p50_us, "commit_us_p50",
		(json_int_t)r->commit_p50_us, "disk_alike", (json_int_t)r->disk_alike, "disk_noted",
		(json_int_t)r->disk_noted, "disk_copied", (json_int_t)r->disk_copied, "home_gap_ms",
		r->home_gap_ms, "ram_digest", digest);
}

void report_json(struct drill *d, const struct round *rounds, unsigned n, bool ok,
		 const struct ft_err *why)
{
	struct client_counts c = {0};
	json_t *list = json_array(), *out;

	if (d->client)
		client_counts(d->client, &c);
	for (unsigned i = 0; i < n; i++)
		json_array_append_new(list, round_json(&rounds[i]));
	out = json_pack("{s:b, s:s, s:s, s:s, s:s, s:o, s:I, s:I, s:I, s:b, s:i, s:I}", "ok", ok,
			"vmm", d->vmm == DRILL_VMM_QEMU ? "qemu" : "pocket", "kill",
			d->o->soak_s ? "soak" : drill_kill_name(d->o->kill), "arbiter",
			drill_arbiter_name(d->o->arbiter), "disk",
			d->o->shared_disk ? "shared" : "replicated", "rounds", list, "answers",
			(json_int_t)c.answers, "lost", (json_int_t)lost(&c), "wrong",
			(json_int_t)c.wrong, "connection_kept", !c.lost && c.answers > 0,
			"images_compared", (int)d->images, "image_bytes",
			(json_int_t)d->image_bytes);
	if (out && !ok)
		json_object_set_new(
			out, "error",
			json_pack("{s:s, s:s}", "code", "failed", "message", why->text));
	if (out)
		json_dumpf(out, stdout, JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(6));
	putchar('\n');
	fflush(stdout);
	json_decref(out);
}

/* The end of what an agent said, on stderr: in CI it is all that is left of a failure. */
static void print_tail(const struct host *h)
{
	char lines[LOG_LINES][512];
	unsigned n = 0;
	FILE *f = h->log[0] ? fopen(h->log, "re") : NULL;

	while (f && fgets(lines[n % LOG_LINES], sizeof lines[0], f))
		n++;
	if (f)
		fclose(f);
	fprintf(stderr, "---- %s\n", h->id);
	for (unsigned i = n > LOG_LINES ? n - LOG_LINES : 0; i < n; i++)
		fputs(lines[i % LOG_LINES], stderr);
}

void report_logs(const struct drill *d)
{
	fflush(stdout);
	for (unsigned i = 0; i < 2; i++)
		print_tail(&d->hosts[i]);
}
