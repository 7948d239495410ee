// SPDX-License-Identifier: Apache-2.0
/* ft-sim SEED: draws everything from the seed, runs the phases (faults, then calm), says what
 * happened. Of many seeds only those that fail are told of. --mutant: a fault planted in the world,
 * which the checks must find. */
#include "tests/sim/world.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "ft/engine_internal.h" /* white box: its phase */
#include "ft/log.h"

#define FAULT_PHASE (3 * S)
#define CALM_MIN    (200 * MS)
#define CALM_MAX    (15 * S) /* by then the guest must be protected and served */

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
	[MUTANT_COMPARE_BLIND] = "compare-blind",
	[MUTANT_JOURNAL_HOLE] = "journal-hole",
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
};

const char *mutant_name(enum mutant m)
{
	return m < MUTANT_N ? mutant_names[m] : "hostile";
}

/* ---- options ---- */

static void draw_options(struct world *w, uint64_t seed)
{
	struct options *o = &w->options;

	o->seed = seed;
	w->rng = seed * 0x2545f4914f6cdd1dull + 1;
	w->side_rng = w->rng ^ 0x9e3779b97f4a7c15ull;
	o->shared = world_side_range(w, 0, 1);
	o->fence = o->shared && !world_side_range(w, 0, 3);
	o->arbiter_file = world_chance(w, 60);
	o->survivor = (enum ft_survivor)world_range(w, FT_SURVIVOR_STANDBY, FT_SURVIVOR_MANUAL);
	o->takeover_manual = world_chance(w, 15);
	o->trigger = (enum ft_trigger)world_range(w, FT_TRIGGER_OUTPUT, FT_TRIGGER_BOTH);
	o->latency_us_min = world_range(w, 10, 300);
	o->latency_us_max = o->latency_us_min + world_range(w, 0, 3000);
	o->bytes_per_ms = world_chance(w, 40) ? world_range(w, 2000, 200000) : 0;
	o->window = world_chance(w, 40) ? world_range(w, 300, world_chance(w, 50) ? 3000 : 100000)
					: 1u << 30;
	o->request_us = world_range(w, 2000, 20000);
	o->interval_ms = (unsigned)world_range(w, 5, 100);
	o->heartbeat_ms = (unsigned)world_range(w, 10, 50);
	o->takeover_ms = o->heartbeat_ms * (unsigned)world_range(w, 4, 10);
	o->faults = (unsigned)world_range(w, 0, 5);
	o->base_pages = world_chance(w, 80) ? 64 : 8;
	/* Small enough, sometimes, that a checkpoint does not fit. */
	o->staging_bytes = world_chance(w, 30) ? 4 * 4096 : 64 * 4096;
	o->durable = world_chance(w, 40);
}

/* ---- the client, who asks whoever runs ---- */

static void on_request(void *ctx, uint64_t arg)
{
	struct world *w = ctx;

	(void)arg;
	for (unsigned i = 0; i < SIM_NODES; i++) {
		struct node *n = &w->nodes[i];

		/* A frozen host's guest is frozen too. */
		if (!n->crashed && !n->frozen && n->machine && n->machine->running)
			machine_request(n->machine, world_random(w));
	}
	world_after(w, world_range(w, w->options.request_us / 2, w->options.request_us * 2) * US,
		    NULL, on_request, w, 0);
}

/* ---- one seed ---- */

/* The guest is gone for good when no host runs it or could: both died, or it died unprotected. That
 * is no violation. */
static bool guest_lost(struct world *w)
{
	for (unsigned i = 0; i < SIM_NODES; i++) {
		struct node *n = &w->nodes[i];

		if (!n->crashed && (n->frozen || (n->machine && !n->machine->dead)))
			return false;
	}
	return true;
}

static bool settled(struct world *w)
{
	struct node *p = world_runner(w);

	return guest_lost(w) ||
	       (w->now > w->calm_ns + CALM_MIN && w->last_answer_ns > w->calm_ns + CALM_MIN / 2 &&
		!p->crashed && ft_engine_state(p->engine) == FT_PROTECTED &&
		p->engine->primary.phase == PRIMARY_RUNNING);
}

static void check_end(struct world *w)
{
	struct node *p = world_runner(w);

	if (guest_lost(w) && w->must_survive)
		world_violation(w, "the guest was protected, met one fault, and is gone");
	for (uint64_t op = 1; op <= w->answered_max; op++)
		if (!w->seen_chain[op])
			world_violation(w, "answer %llu never left, and the client has answer %llu",
					(unsigned long long)op,
					(unsigned long long)w->answered_max);
	if (settled(w) || w->answered_max + 8 >= SIM_OPS_MAX)
		return;
	if (w->now - w->last_answer_ns > S)
		world_violation(w, "no answer for %llu ms although every fault has healed",
				(unsigned long long)((w->now - w->last_answer_ns) / MS));
	else
		world_violation(w, "%s is %s although every fault has healed: %s", p->name,
				ft_state_name(ft_engine_state(p->engine)),
				ft_engine_reason(p->engine));
}

static void world_free(struct world *w)
{
	for (unsigned i = 0; i < SIM_NODES; i++)
		if (!w->nodes[i].crashed)
			node_crash(&w->nodes[i], true);
	w->verbose = false;
	net_free(w);
	arbiter_forget_questions(w);
	free(w->heap);
	free(w->history);
}

static struct world *logged;

/* An assertion tells where, but not in which world. */
static char in_case_of_death[96];

static void on_abort(int number)
{
	(void)number;
	(void)!write(STDERR_FILENO, in_case_of_death, strlen(in_case_of_death));
}

static void to_timeline(enum ft_log_level level, const char *line)
{
	(void)level;
	world_log(logged, "%s", line);
}

static void say_options(struct world *w)
{
	const struct options *o = &w->options;

	world_log(w,
		  "seed %llu: arbiter %s, survivor %s, takeover %s, durability %s, trigger %d, "
		  "interval %u ms, latency %llu-%llu us, %llu bytes/ms, window %llu, "
		  "heartbeat %u ms, takeover %u ms, a request every %llu us, %u faults, staging "
		  "%llu%s%s",
		  (unsigned long long)o->seed, o->arbiter_file ? "file" : "none",
		  (const char *[]){"", "standby", "primary", "manual"}[o->survivor],
		  o->takeover_manual ? "manual" : "auto", o->durable ? "disk" : "memory",
		  (int)o->trigger, o->interval_ms, (unsigned long long)o->latency_us_min,
		  (unsigned long long)o->latency_us_max, (unsigned long long)o->bytes_per_ms,
		  (unsigned long long)o->window, o->heartbeat_ms, o->takeover_ms,
		  (unsigned long long)o->request_us, o->faults,
		  (unsigned long long)o->staging_bytes, o->shared ? ", shared disk" : "",
		  o->fence ? ", fenced" : "");
}

bool simulate(uint64_t seed, enum mutant mutant, bool verbose)
{
	struct world *w = calloc(1, sizeof *w);
	bool ok;

	if (!w)
		abort();
	w->verbose = verbose;
	logged = w;
	ft_log_sink_set(to_timeline);
	ft_log_level_set(verbose ? FT_LOG_DEBUG : FT_LOG_ERROR);
	w->mutant = mutant;
	snprintf(in_case_of_death, sizeof in_case_of_death, "\ndied in seed %llu, mutant %s\n",
		 (unsigned long long)seed, mutant_name(mutant));
	draw_options(w, seed);
	say_options(w);
	for (unsigned i = 0; i < SIM_NODES; i++) {
		w->nodes[i].world = w;
		w->nodes[i].id = i;
		snprintf(w->nodes[i].name, sizeof w->nodes[i].name, "host-%c", 'A' + (int)i);
		node_start(&w->nodes[i], i == 0);
	}
	world_after(w, 0, NULL, on_request, w, 0);
	operator_start(w);
	faults_draw(w);
	while (world_step(w, FAULT_PHASE))
		;
	faults_end(w);
	while (!settled(w) && world_step(w, FAULT_PHASE + CALM_MAX))
		;
	if (!w->violated)
		check_end(w);
	ok = !w->violated;
	w->verbose = false;
	if (verbose || (!ok && mutant != MUTANT_HOSTILE))
		printf("seed %llu%s%s: %s: %llu answers, %llu twice, %u takeovers, %u planned "
		       "switches%s%s\n",
		       (unsigned long long)seed, mutant ? ", mutant " : "",
		       mutant ? mutant_name(mutant) : "", ok ? "ok" : "VIOLATION",
		       (unsigned long long)w->answers, (unsigned long long)w->duplicates,
		       w->takeovers, w->switches, ok ? "" : ": ", ok ? "" : w->violation);
	world_free(w);
	free(w);
	return ok;
}

static int find_mutant(enum mutant m, uint64_t from, uint64_t count)
{
	for (uint64_t seed = from; seed < from + count; seed++) {
		if (simulate(seed, m, false))
			continue;
		printf("mutant %s: found by seed %llu\n", mutant_name(m), (unsigned long long)seed);
		return 0;
	}
	printf("mutant %s: NOT found within %llu seeds\n", mutant_name(m),
	       (unsigned long long)count);
	return 1;
}

/* ---- many seeds ---- */

#define TIMELINES_MAX                                                                              \
	2 /* of the first seeds that fail; the others only get the command that repeats them */

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static bool run_seed(uint64_t seed, unsigned *failed)
{
	if (simulate(seed, MUTANT_NONE, false))
		return true;
	if ((*failed)++ < TIMELINES_MAX)
		(void)simulate(seed, MUTANT_NONE, true);
	printf("repeat it with: ft-sim %llu\n", (unsigned long long)seed);
	return false;
}

/* Until count seeds or the time is over. */
static int run_seeds(uint64_t from, uint64_t count, double within_s)
{
	double start = seconds(), took;
	unsigned failed = 0;
	uint64_t done = 0;

	while (done < count && seconds() - start < within_s)
		(void)run_seed(from + done++, &failed);
	took = seconds() - start;
	printf("%llu seeds from %llu, %u violations, %.0f seeds/s\n", (unsigned long long)done,
	       (unsigned long long)from, failed, (double)done / (took > 0 ? took : 1));
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

static int run_mutants(const char *name, uint64_t count)
{
	int rc = 0;
	bool known = false;

	for (int m = 1; m < MUTANT_N; m++) {
		if (strcmp(name, "all") && strcmp(name, mutant_names[m]))
			continue;
		known = true;
		rc |= find_mutant((enum mutant)m, 1, count);
	}
	if (!known)
		fprintf(stderr, "ft-sim: no such mutant: %s\n", name);
	return known ? rc : 2;
}

/* Assertions and sanitizers are the judges. */
static int run_hostile(uint64_t from, uint64_t count)
{
	for (uint64_t seed = from; seed < from + count; seed++)
		(void)simulate(seed, MUTANT_HOSTILE, false);
	printf("%llu seeds against a hostile peer\n", (unsigned long long)count);
	return 0;
}

static void usage(void)
{
	puts("usage: ft-sim SEED                       one run, with its timeline\n"
	     "       ft-sim --seeds FROM COUNT         many, quietly\n"
	     "       ft-sim --fresh SECONDS [HASH]     as many as fit, from a commit's hash on, "
	     "else from the time on\n"
	     "       ft-sim --file FILE                those in the file\n"
	     "       ft-sim --hostile FROM COUNT       against a peer that makes no sense: nothing "
	     "may break\n"
	     "       ft-sim --mutant NAME|all [COUNT]  must be found within COUNT (2000) seeds");
}

int main(int argc, char **argv)
{
	signal(SIGABRT, on_abort);
	if (argc == 2 && argv[1][0] >= '0' && argv[1][0] <= '9')
		return simulate(strtoull(argv[1], NULL, 0), MUTANT_NONE, true) ? 0 : 1;
	if (argc == 4 && !strcmp(argv[1], "--seeds"))
		return run_seeds(strtoull(argv[2], NULL, 0), strtoull(argv[3], NULL, 0), 1e9);
	if (argc >= 3 && argc <= 4 && !strcmp(argv[1], "--fresh"))
		return run_fresh(strtod(argv[2], NULL), argc > 3 ? argv[3] : "");
	if (argc == 3 && !strcmp(argv[1], "--file"))
		return run_file(argv[2]);
	if (argc == 4 && !strcmp(argv[1], "--hostile"))
		return run_hostile(strtoull(argv[2], NULL, 0), strtoull(argv[3], NULL, 0));
	if (argc >= 3 && argc <= 4 && !strcmp(argv[1], "--mutant"))
		return run_mutants(argv[2], argc > 3 ? strtoull(argv[3], NULL, 0) : 2000);
	usage();
	return argc == 2 && !strcmp(argv[1], "--help") ? 0 : 2;
}
