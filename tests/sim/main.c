// SPDX-License-Identifier: Apache-2.0
/* ft-sim: one seed, many seeds, and what makes sure that it finds something: planted faults and a
 * crash at every step. Of many seeds only those that fail are told of. */
#include "tests/sim/world.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *const mutant_names[MUTANT_N] = {
	[MUTANT_NONE] = "none",
	[MUTANT_RELEASE_EARLY] = "release-early",
	[MUTANT_RELEASE_ON_LOSS] = "release-on-loss",
	[MUTANT_RELEASE_TWICE] = "release-twice",
	[MUTANT_RELEASE_BACKWARDS] = "release-backwards",
	[MUTANT_SKIP_SCAN] = "skip-scan",
	[MUTANT_FORGET_WRITE] = "forget-write",
	[MUTANT_FORGET_APPLY] = "forget-apply",
	[MUTANT_FORGET_PAGE] = "forget-page",
	[MUTANT_SYNC_HOLE] = "sync-hole",
	[MUTANT_GRANT_ALL] = "grant-all",
	[MUTANT_LATE_CLOSE] = "late-close",
	[MUTANT_ABORT_FORGETS] = "abort-forgets",
	[MUTANT_OLD_EPOCHS_FORGOTTEN] = "old-epochs-forgotten",
	[MUTANT_NO_REPLAY] = "no-replay",
	[MUTANT_STATE_OLD] = "state-old",
	[MUTANT_FAKE_ACK] = "fake-ack",
	[MUTANT_CUT_CHECKPOINT] = "cut-checkpoint",
	[MUTANT_FORGET_GENERATION] = "forget-generation",
	[MUTANT_LEASE_IGNORED] = "lease-ignored",
	[MUTANT_LEASE_NOT_AWAITED] = "lease-not-awaited",
	[MUTANT_STORE_UNSYNCED] = "store-unsynced",
	[MUTANT_RELEASE_UNSYNCED] = "release-unsynced",
	[MUTANT_METADATA_UNSYNCED] = "metadata-unsynced",
	[MUTANT_NAME_UNSYNCED] = "name-unsynced",
	[MUTANT_STALE_START] = "stale-start",
	[MUTANT_TORN_ACCEPTED] = "torn-accepted",
	[MUTANT_STORE_GENERATION] = "store-generation",
	[MUTANT_OVERLAY_THROUGH] = "overlay-through",
	[MUTANT_OVERLAY_FORGETS] = "overlay-forgets",
	[MUTANT_PENDING_DROPPED] = "pending-dropped",
	[MUTANT_DISK_SWAPPED] = "disk-swapped",
	[MUTANT_NO_LOCK] = "no-lock",
	[MUTANT_FLUSH_LIES] = "flush-lies",
	[MUTANT_COMPARE_BLIND] = "compare-blind",
	[MUTANT_JOURNAL_HOLE] = "journal-hole",
	[MUTANT_JOURNAL_UNSYNCED] = "journal-unsynced",
	[MUTANT_JOURNAL_KEPT] = "journal-kept",
	[MUTANT_MARK_FORGOTTEN] = "mark-forgotten",
	[MUTANT_MARKS_EARLY] = "marks-early",
	[MUTANT_BITMAP_FORGETS] = "bitmap-forgets",
	[MUTANT_BITMAP_STALE] = "bitmap-stale",
	[MUTANT_START_UNASKED] = "start-unasked",
	[MUTANT_RELEASE_FENCED] = "release-fenced",
	[MUTANT_GUARD_FORGOTTEN] = "guard-forgotten",
	[MUTANT_FAILED_UNPROVEN] = "failed-unproven",
	[MUTANT_HOME_FORGOTTEN] = "home-forgotten",
	[MUTANT_UPDATE_UNSYNCED] = "update-unsynced",
	[MUTANT_MARK_UNSYNCED] = "mark-unsynced",
	[MUTANT_WRITE_FORGOTTEN] = "write-forgotten",
	[MUTANT_CLEARED_LATE] = "cleared-late",
	[MUTANT_LINK_SKIPPED] = "link-skipped",
	[MUTANT_COW_FORGETS] = "cow-forgets",
	[MUTANT_COW_LATE] = "cow-late",
	[MUTANT_CLAIMED_TWICE] = "claimed-twice",
	[MUTANT_NEIGHBOUR_LET_GO] = "neighbour-let-go",
	[MUTANT_LET_GO_EARLY] = "let-go-early",
	[MUTANT_STALE_PAGE] = "stale-page",
	[MUTANT_MAP_UNMERGED] = "map-unmerged",
	[MUTANT_MAP_HOLE] = "map-hole",
	[MUTANT_MAP_ENABLED] = "map-enabled",
	[MUTANT_MAP_LATE] = "map-late",
	[MUTANT_PAGE_TWICE] = "page-twice",
	[MUTANT_LACK_UNTOLD] = "lack-untold",
	[MUTANT_WAIT_UNTOLD] = "wait-untold",
	[MUTANT_SOURCE_RESUMES] = "source-resumes",
	[MUTANT_QUEUE_UNBOUNDED] = "queue-unbounded",
};

const char *mutant_name(enum mutant m)
{
	return m < MUTANT_N ? mutant_names[m] : "hostile";
}

/* ---- many seeds ---- */

/* Of the first seeds that fail; the others only get the command that repeats them. */
#define TIMELINES_MAX 2

static double clock_of(clockid_t which)
{
	struct timespec t;

	clock_gettime(which, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static bool run_seed(uint64_t seed, unsigned *failed)
{
	struct run quiet = {.seed = seed}, told = {.seed = seed, .timeline = TIMELINE_ENDS};

	if (simulate(&quiet))
		return true;
	if ((*failed)++ < TIMELINES_MAX)
		(void)simulate(&told);
	else
		printf("seed %llu: VIOLATION: %s\n", (unsigned long long)seed, quiet.violation);
	printf("repeat it with: ft-sim %llu\n", (unsigned long long)seed);
	return false;
}

/* Until count seeds or the time is over. The rate is of this core's time, whoever else uses it. */
static int run_seeds(uint64_t from, uint64_t count, double within_s)
{
	double start = clock_of(CLOCK_MONOTONIC), used = clock_of(CLOCK_PROCESS_CPUTIME_ID);
	unsigned failed = 0;
	uint64_t done = 0;

	while (done < count && clock_of(CLOCK_MONOTONIC) - start < within_s)
		(void)run_seed(from + done++, &failed);
	used = clock_of(CLOCK_PROCESS_CPUTIME_ID) - used;
	printf("%llu seeds from %llu, %u violations, %.0f seeds/s of one core\n",
	       (unsigned long long)done, (unsigned long long)from, failed,
	       (double)done / (used > 0 ? used : 1));
	return failed ? 1 : 0;
}

/* A commit's hash gives every commit seeds of its own, and the same ones again; else the time does.
 */
static int run_fresh(double within_s, const char *hash)
{
	char digits[13];
	uint64_t from;

	snprintf(digits, sizeof digits, "%s", hash);
	from = strtoull(digits, NULL, 16);
	if (!from)
		from = (uint64_t)time(NULL);
	printf("fresh seeds from %llu on\n", (unsigned long long)from);
	return run_seeds(from, UINT64_MAX, within_s);
}

/* Lines: a seed, and behind it what it found. */
static int run_file(const char *path)
{
	FILE *file = fopen(path, "re");
	char line[512];
	unsigned failed = 0, n = 0;

	if (!file) {
		fprintf(stderr, "ft-sim: %s: %s\n", path, strerror(errno));
		return 2;
	}
	while (fgets(line, sizeof line, file)) {
		if (line[0] < '0' || line[0] > '9')
			continue;
		n++;
		if (!run_seed(strtoull(line, NULL, 10), &failed))
			printf("which found before: %s", line);
	}
	fclose(file);
	printf("%u seeds that found something before, %u violations\n", n, failed);
	return failed || !n ? 1 : 0;
}

/* ---- does it find anything? ---- */

static bool find_mutant(enum mutant m, uint64_t count)
{
	for (uint64_t seed = 1; seed <= count; seed++) {
		struct run r = {.seed = seed, .mutant = m};

		if (simulate(&r))
			continue;
		printf("%-22s %5llu  %s\n", mutant_name(m), (unsigned long long)seed, r.violation);
		return true;
	}
	printf("%-22s NOT found within %llu seeds\n", mutant_name(m), (unsigned long long)count);
	return false;
}

static int run_mutants(const char *name, uint64_t count)
{
	unsigned known = 0, found = 0;

	printf("%-22s %5s  %s\n", "mutant", "seeds", "found by");
	for (int m = 1; m < MUTANT_N; m++) {
		if (strcmp(name, "all") && strcmp(name, mutant_names[m]))
			continue;
		known++;
		found += find_mutant((enum mutant)m, count);
	}
	if (!known) {
		fprintf(stderr, "ft-sim: no such mutant: %s\n", name);
		return 2;
	}
	printf("%u of %u mutants found\n", found, known);
	return found == known ? 0 : 1;
}

static int run_one_mutant(const char *name, uint64_t seed)
{
	for (int m = 1; m < MUTANT_N; m++) {
		struct run r = {.seed = seed, .mutant = (enum mutant)m, .timeline = TIMELINE_WHOLE};

		if (!strcmp(name, mutant_names[m]))
			return simulate(&r) ? 0 : 1;
	}
	fprintf(stderr, "ft-sim: no such mutant: %s\n", name);
	return 2;
}

/* ---- a crash at every step ---- */

static bool crash_at(uint64_t seed, unsigned node, uint64_t step, bool powerless, bool tell)
{
	struct run r = {.seed = seed,
			.crash_step = step,
			.crash_node = node,
			.crash_powerless = powerless,
			.timeline = tell ? TIMELINE_WHOLE : TIMELINE_NONE};

	if (simulate(&r))
		return true;
	printf("seed %llu, host-%c %s at step %llu: VIOLATION: %s\n"
	       "repeat it with: ft-sim --step %llu %c %llu%s\n",
	       (unsigned long long)seed, 'A' + (int)node, powerless ? "loses power" : "crashes",
	       (unsigned long long)step, r.violation, (unsigned long long)seed, 'A' + (int)node,
	       (unsigned long long)step, powerless ? " power" : "");
	return false;
}

/* Of a short life without other faults; its length comes from a run whose crash never comes. */
static int run_steps(uint64_t from, uint64_t count)
{
	unsigned failed = 0;
	uint64_t runs = 0;

	for (uint64_t seed = from; seed < from + count; seed++) {
		struct run whole = {.seed = seed, .crash_step = UINT64_MAX};

		failed += !simulate(&whole);
		for (unsigned node = 0; node < SIM_NODES; node++)
			for (uint64_t step = 1; step <= whole.steps[node]; step++) {
				failed += !crash_at(seed, node, step, false, false);
				failed += !crash_at(seed, node, step, true, false);
				runs += 2;
			}
	}
	printf("%llu crashes, one at every step of %llu lives, %u violations\n",
	       (unsigned long long)runs, (unsigned long long)count, failed);
	return failed ? 1 : 0;
}

/* Assertions and sanitizers are the judges. */
static int run_hostile(uint64_t from, uint64_t count)
{
	for (uint64_t seed = from; seed < from + count; seed++)
		(void)simulate(&(struct run){.seed = seed, .mutant = MUTANT_HOSTILE});
	printf("%llu seeds against a hostile peer\n", (unsigned long long)count);
	return 0;
}

static void usage(void)
{
	puts("usage: ft-sim SEED                       one run, with its timeline\n"
	     "       ft-sim SEED NAME                  the same with a planted fault\n"
	     "       ft-sim --seeds FROM COUNT         many, quietly\n"
	     "       ft-sim --fresh SECONDS [HASH]     as many as fit, from a commit's hash on, "
	     "else from the time on\n"
	     "       ft-sim --file FILE                those in the file\n"
	     "       ft-sim --steps FROM COUNT         for each of these lives, a crash of each "
	     "host "
	     "at every step\n"
	     "       ft-sim --step SEED A|B STEP [power]  one of them, with its timeline\n"
	     "       ft-sim --hostile FROM COUNT       against a peer that makes no sense: nothing "
	     "may break\n"
	     "       ft-sim --mutant NAME|all [COUNT]  must be found within COUNT (2000) seeds");
}

static uint64_t number(const char *text)
{
	return strtoull(text, NULL, 0);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	signal(SIGABRT, run_died);    // NOLINT(bugprone-signal-handler): only write(2)
	signal(SIGVTALRM, run_hangs); // NOLINT(bugprone-signal-handler): only write(2), abort()
	if (argc == 2 && *what >= '0' && *what <= '9')
		return simulate(&(struct run){.seed = number(what), .timeline = TIMELINE_WHOLE})
			       ? 0
			       : 1;
	if (argc == 3 && *what >= '0' && *what <= '9')
		return run_one_mutant(argv[2], number(what));
	if (argc == 4 && !strcmp(what, "--seeds"))
		return run_seeds(number(argv[2]), number(argv[3]), 1e9);
	if (argc >= 3 && argc <= 4 && !strcmp(what, "--fresh"))
		return run_fresh(strtod(argv[2], NULL), argc > 3 ? argv[3] : "");
	if (argc == 3 && !strcmp(what, "--file"))
		return run_file(argv[2]);
	if (argc == 4 && !strcmp(what, "--steps"))
		return run_steps(number(argv[2]), number(argv[3]));
	if (argc >= 5 && argc <= 6 && !strcmp(what, "--step"))
		return crash_at(number(argv[2]), *argv[3] == 'B', number(argv[4]), argc > 5, true)
			       ? 0
			       : 1;
	if (argc == 4 && !strcmp(what, "--hostile"))
		return run_hostile(number(argv[2]), number(argv[3]));
	if (argc >= 3 && argc <= 4 && !strcmp(what, "--mutant"))
		return run_mutants(argv[2], argc > 3 ? number(argv[3]) : 2000);
	usage();
	return argc == 2 && !strcmp(what, "--help") ? 0 : 2;
}
