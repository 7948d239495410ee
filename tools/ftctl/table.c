// SPDX-License-Identifier: Apache-2.0
/* A status for people: one line a guest, or one guest in full. */
#include "tools/ftctl/ftctl.h"

#include <inttypes.h>
#include <string.h>
#include <time.h>

/* 1.4K, 23M: three digits say enough. */
static const char *bytes_text(char out[16], uint64_t bytes)
{
	static const char units[] = "BKMGTP";
	double value = (double)bytes;
	int unit = 0;

	while (value >= 999.5 && units[unit + 1]) {
		value /= 1024;
		unit++;
	}
	snprintf(out, 16, unit && value < 9.95 ? "%.1f%c" : "%.0f%c", value, units[unit]);
	return out;
}

static const char *ms_text(char out[16], uint64_t us)
{
	snprintf(out, 16, us < 99950 ? "%.1f" : "%.0f", (double)us / 1000);
	return out;
}

static void guest_row(const Ctl__Status *s, FILE *to)
{
	static const Ctl__Figures none = CTL__FIGURES__INIT;
	const Ctl__Figures *pause = s->pause_us ? s->pause_us : &none,
			   *commit = s->commit_us ? s->commit_us : &none;
	char p50[16], p99[16], commit_p50[16], held[16], peer[64], state[16], role[16],
		name[CTL_NAME_MAX];

	fprintf(to, "%-16s %-10s %-8s %10" PRIu64 " %8s %8s %9s %7.1f%% %8s  %s\n",
		clean(name, sizeof name, s->name), clean(state, sizeof state, s->state),
		clean(role, sizeof role, s->role), s->epoch_committed, ms_text(p50, pause->p50),
		ms_text(p99, pause->p99), ms_text(commit_p50, commit->p50), 100 * s->overhead,
		bytes_text(held, s->held_bytes),
		*s->peer ? clean(peer, sizeof peer, s->peer) : "-");
}

void guests_table(const struct ftctl *ctl, const struct guests *guests, FILE *to)
{
	char line[FT_ERR_TEXT_MAX];

	if (!guests->n) {
		fprintf(to, "no guests in %s\n", ctl->run_dir);
		return;
	}
	fprintf(to, "%-16s %-10s %-8s %10s %8s %8s %9s %8s %8s  %s\n", "NAME", "STATE", "ROLE",
		"EPOCH", "PAUSE ms", "p99", "COMMIT ms", "OVERHEAD", "HELD", "PEER");
	for (unsigned i = 0; i < guests->n; i++) {
		const struct guest *g = &guests->guest[i];

		if (g->reply)
			guest_row(g->reply->status, to);
		else
			fprintf(to, "%-16s %-10s %s\n", g->name,
				!strcmp(g->word, CTL_ERR_NOT_RUNNING) ? "-" : "?",
				clean(line, sizeof line, g->err.text));
	}
}

static void text_line(FILE *to, const char *label, const char *text)
{
	char line[1024];

	if (*text)
		fprintf(to, "%-12s %s\n", label, clean(line, sizeof line, text));
}

static void figures_line(FILE *to, const char *label, const char *unit, const Ctl__Figures *f,
			 bool us)
{
	char last[24], p50[24], p99[24], max[24];

	if (!f)
		return;
	if (us) {
		ms_text(last, f->last), ms_text(p50, f->p50), ms_text(p99, f->p99),
			ms_text(max, f->max);
	} else {
		snprintf(last, sizeof last, "%" PRIu64, f->last);
		snprintf(p50, sizeof p50, "%" PRIu64, f->p50);
		snprintf(p99, sizeof p99, "%" PRIu64, f->p99);
		snprintf(max, sizeof max, "%" PRIu64, f->max);
	}
	fprintf(to, "%-12s last %s%s, p50 %s, p99 %s, max %s\n", label, last, unit, p50, p99, max);
}

static void since_line(FILE *to, uint64_t since_ms)
{
	time_t s = (time_t)(since_ms / 1000);
	struct tm tm;
	char text[64];

	if (since_ms && localtime_r(&s, &tm) &&
	    strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &tm))
		text_line(to, "since", text);
}

/* [64, 128) us: 12, [128, 256) us: 3 */
static void histogram_line(FILE *to, const Ctl__Migration *m)
{
	fprintf(to, "%-12s", "waits");
	for (size_t i = 0; i < m->n_fault_histogram && i < 63; i++)
		if (m->fault_histogram[i])
			fprintf(to, " %" PRIu64 " us: %" PRIu64 ",", UINT64_C(1) << i,
				m->fault_histogram[i]);
	fprintf(to, " each from there on\n");
}

static void migration_lines(FILE *to, const Ctl__Migration *m)
{
	char a[16], b[16], line[256];

	snprintf(line, sizeof line, "%.20s, %" PRIu64 " rounds, %s left, downtime %.1f ms", m->mode,
		 m->rounds, bytes_text(a, m->remaining), (double)m->downtime_us / 1000);
	text_line(to, "migration", line);
	if (m->throttle)
		fprintf(to, "%-12s %u%%\n", "throttle", m->throttle);
	if (m->bytes_total)
		fprintf(to, "%-12s %s of %s, %" PRIu64 " pages were waited for%s\n", "memory",
			bytes_text(a, m->bytes_done), bytes_text(b, m->bytes_total), m->faults,
			m->cut ? "; the link is lost" : "");
	if (m->bytes_per_s > 0)
		fprintf(to, "%-12s %s/s, %.1f pages a second were waited for\n", "rate",
			bytes_text(a, (uint64_t)m->bytes_per_s), m->faults_per_s);
	if (m->fault_us && m->faults) {
		figures_line(to, "waited", " ms", m->fault_us, true);
		histogram_line(to, m);
	}
}

void status_details(const Ctl__Status *s, FILE *to)
{
	char a[16], b[16], c[16], line[256];

	text_line(to, "guest", s->name);
	text_line(to, "uuid", s->uuid);
	text_line(to, "state", s->state);
	text_line(to, "reason", s->reason);
	since_line(to, s->since_ms);
	text_line(to, "role", s->role);
	text_line(to, "peer", *s->peer ? s->peer : "none");
	fprintf(to, "%-12s committed %" PRIu64 ", open %" PRIu64 ", generation %" PRIu64 "\n",
		"epoch", s->epoch_committed, s->epoch_open, s->generation);
	fprintf(to, "%-12s %" PRIu64 ", %" PRIu64 " failed\n", "checkpoints", s->checkpoints,
		s->checkpoints_failed);
	figures_line(to, "pause", " ms", s->pause_us, true);
	figures_line(to, "commit", " ms", s->commit_us, true);
	figures_line(to, "dirty pages", "", s->dirty_pages, false);
	fprintf(to, "%-12s %s raw, %s sent\n", "pages", bytes_text(a, s->bytes_raw),
		bytes_text(b, s->bytes_sent));
	fprintf(to, "%-12s %" PRIu64 " outputs, %s\n", "held", s->held_outputs,
		bytes_text(a, s->held_bytes));
	fprintf(to, "%-12s %.1f%%\n", "overhead", 100 * s->overhead);
	if (s->deciding)
		text_line(to, "waiting",
			  "the peer is lost and the arbiter has not decided; outputs are held");
	if (s->arbiter) {
		snprintf(line, sizeof line, "%.60s, %.60s, held by %.90s", s->arbiter->type,
			 s->arbiter->state, *s->arbiter->holder ? s->arbiter->holder : "nobody");
		text_line(to, "arbiter", line);
	}
	if (s->vmm) {
		snprintf(line, sizeof line, "%.60s, pid %" PRId64 ", %.60s", s->vmm->kind,
			 s->vmm->pid, s->vmm->status);
		text_line(to, "vmm", line);
	}
	for (size_t i = 0; i < s->n_disks; i++) {
		snprintf(line, sizeof line, "%.63s: %.30s, %.30s, %s behind", s->disks[i]->name,
			 s->disks[i]->mode, s->disks[i]->state,
			 bytes_text(a, s->disks[i]->bytes_behind));
		text_line(to, "disk", line);
	}
	if (s->disk_alike || s->disk_copied)
		fprintf(to, "%-12s %s were there already (%s noted, else compared), %s copied\n",
			"resync", bytes_text(a, s->disk_alike), bytes_text(c, s->disk_known),
			bytes_text(b, s->disk_copied));
	text_line(to, "home", s->home);
	if (s->migration)
		migration_lines(to, s->migration);
	if (s->snapshot) {
		snprintf(line, sizeof line, "%s, %s of %s: %.150s",
			 s->snapshot->restoring ? "restoring" : "saving",
			 bytes_text(a, s->snapshot->bytes_done + s->snapshot->disk_bytes_done),
			 bytes_text(b, s->snapshot->bytes_total + s->snapshot->disk_bytes_total),
			 s->snapshot->path);
		text_line(to, "snapshot", line);
	}
	text_line(to, "last error", s->last_error);
}
