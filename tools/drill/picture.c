// SPDX-License-Identifier: Apache-2.0
/* The timeline of a round, a column for each few milliseconds:
 *
 *                           strike          takeover
 *   host-a  ━●━●●━●━●●━●━●━●✖
 *   host-b  ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄▲━━━━━━━━━━━━━━
 *   client  ▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪                ▪▪▪▪▪▪▪▪▪▪▪▪▪▪
 *                            |<-- 341 ms --->|                                    */
#include <langinfo.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "tools/drill/scene.h"

#define LABEL	      9 /* columns in front */
#define COLUMNS_MIN   40
#define COLUMNS_MAX   100
#define AROUND_NS     250000000ull /* shown before the strike and after the first answer, at least */
#define AROUND_MAX_NS 2000000000ull

enum sign { NOTHING, RUNS, CHECKPOINT, STRIKE, WAITS, TAKES_OVER, ANSWER, SIGNS_N };

struct canvas {
	unsigned columns;
	uint64_t from_ns, to_ns;
	bool utf8, colour;
	uint8_t rows[3][COLUMNS_MAX];
};

static const char *const utf8_signs[SIGNS_N] = {" ", "━", "●", "✖", "┄", "▲", "▪"};
static const char *const ascii_signs[SIGNS_N] = {" ", "-", "o", "X", ".", "^", "#"};
static const char *const colours[SIGNS_N] = {"",	"\033[32m",   "\033[32m", "\033[1;31m",
					     "\033[2m", "\033[1;33m", "\033[36m"};

static unsigned column(const struct canvas *c, uint64_t ns)
{
	if (ns <= c->from_ns)
		return 0;
	if (ns >= c->to_ns)
		return c->columns - 1;
	return (unsigned)((ns - c->from_ns) * c->columns / (c->to_ns - c->from_ns));
}

static void fill(struct canvas *c, unsigned row, uint64_t from, uint64_t to, enum sign sign)
{
	for (unsigned i = column(c, from); i <= column(c, to); i++)
		c->rows[row][i] = (uint8_t)sign;
}

uint64_t picture_around_ns(const struct round *r)
{
	uint64_t gap = r->gap_end_ns - r->gap_start_ns;

	if (gap > AROUND_MAX_NS)
		return AROUND_MAX_NS;
	return gap > AROUND_NS ? gap : AROUND_NS;
}

static void canvas_init(struct canvas *c, const struct round *r)
{
	uint64_t around = picture_around_ns(r);
	struct winsize size = {0};

	*c = (struct canvas){.from_ns = r->strike_ns - around, .to_ns = r->gap_end_ns + around};
	c->columns = ioctl(1, TIOCGWINSZ, &size) || !size.ws_col ? 80 : size.ws_col;
	c->columns = c->columns > COLUMNS_MAX + LABEL ? COLUMNS_MAX : c->columns - LABEL - 1;
	if (c->columns < COLUMNS_MIN || c->columns > COLUMNS_MAX)
		c->columns = COLUMNS_MIN;
	setlocale(LC_CTYPE, "");
	c->utf8 = !strcmp(nl_langinfo(CODESET), "UTF-8");
	c->colour = isatty(1) && !getenv("NO_COLOR");
}

static void draw_hosts(struct canvas *c, const struct round *r)
{
	unsigned old = r->old_primary, standby = !old;
	bool moved = r->winner != old;
	uint64_t takeover = r->takeover_ns && moved ? r->takeover_ns : r->gap_end_ns;

	if (takeover > r->gap_end_ns)
		takeover = r->gap_end_ns; /* we look every few ms only; it led before it answered */
	fill(c, old, c->from_ns, moved ? r->strike_ns : c->to_ns, RUNS);
	fill(c, standby, c->from_ns, moved ? takeover : r->strike_ns, WAITS);
	if (moved)
		fill(c, standby, takeover, c->to_ns, RUNS);
	if (moved && r->kill == DRILL_SWITCH)
		fill(c, old, takeover, c->to_ns, WAITS);
	for (unsigned i = 0; i < r->marks_n; i++)
		if (r->marks[i].ns >= c->from_ns && r->marks[i].ns <= c->to_ns)
			c->rows[r->marks[i].host][column(c, r->marks[i].ns)] = CHECKPOINT;
	c->rows[r->kill == DRILL_STANDBY ? standby : old][column(c, r->strike_ns)] = STRIKE;
	if (moved)
		c->rows[standby][column(c, takeover)] = TAKES_OVER;
}

static void draw_client(struct canvas *c, struct drill *d)
{
	static uint64_t times[DRILL_TIMES_MAX];
	size_t n = client_times(d->client, c->from_ns, times, DRILL_TIMES_MAX);

	for (size_t i = 0; i < n && times[i] <= c->to_ns; i++)
		c->rows[2][column(c, times[i])] = ANSWER;
}

static void print_row(const struct canvas *c, const char *label, const uint8_t *row)
{
	const char *now = "";

	printf("%-*s", LABEL, label);
	for (unsigned i = 0; i < c->columns; i++) {
		const char *colour = c->colour ? colours[row[i]] : "";

		if (strcmp(now, colour) != 0)
			printf("\033[0m%s", colour);
		now = colour;
		fputs((c->utf8 ? utf8_signs : ascii_signs)[row[i]], stdout);
	}
	puts(*now ? "\033[0m" : "");
}

static void print_gap(const struct canvas *c, const struct round *r)
{
	unsigned from = column(c, r->gap_start_ns), to = column(c, r->gap_end_ns), len;
	char text[32];

	len = (unsigned)snprintf(text, sizeof text, " %.0f ms ",
				 (double)(r->gap_end_ns - r->gap_start_ns) / 1e6);
	printf("%*s", LABEL + (int)from, "");
	if (to - from < len + 2) {
		printf("|%s\n", text);
		return;
	}
	putchar('|');
	for (unsigned i = from + 1; i < to; i++) {
		unsigned start = from + (to - from - len) / 2 + 1;

		putchar(i >= start && i < start + len ? text[i - start]
			: i == from + 1		      ? '<'
			: i == to - 1		      ? '>'
						      : '-');
	}
	puts("|");
}

void picture(struct drill *d, const struct round *r)
{
	struct canvas c;
	const char *const *signs;

	canvas_init(&c, r);
	signs = c.utf8 ? utf8_signs : ascii_signs;
	draw_hosts(&c, r);
	draw_client(&c, d);
	printf("\n%*s%-*s%.1f s in all\n", LABEL, "", (int)c.columns - 12,
	       r->kill == DRILL_SWITCH ? "planned switch" : "failover",
	       (double)(c.to_ns - c.from_ns) / 1e9);
	print_row(&c, "host-a", c.rows[0]);
	print_row(&c, "host-b", c.rows[1]);
	print_row(&c, "client", c.rows[2]);
	print_gap(&c, r);
	printf("%*s%s guest runs   %s checkpoint   %s strike   %s takeover   %s answer\n\n", LABEL,
	       "", signs[RUNS], signs[CHECKPOINT], signs[STRIKE], signs[TAKES_OVER], signs[ANSWER]);
}
