// SPDX-License-Identifier: Apache-2.0
/* ft-sim SEED: draws everything from the seed, runs the phases (faults, then calm), says what happened.
 * ft-sim --seeds FROM COUNT: many. --mutant NAME|all: a fault planted in the world that the checks must find. */
#include "tests/sim/world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ft/log.h"

#define FAULT_PHASE  (4 * S)
#define CALM_PHASE   (9 * S)
#define SERVED_BOUND (5 * S) /* in calm, the last answer is never older */
#define RESTART_AFTER (800 * MS)

static const char *const mutant_names[MUTANT_N] = {"none",	  "release-early", "skip-scan", "forget-write", "grant-all",
						    "late-close", "abort-forgets", "no-replay", "state-old"};

const char *mutant_name(enum mutant m)
{
	return mutant_names[m];
}

/* ---- options ---- */

static void draw_options(struct world *w, uint64_t seed)
{
	struct options *o = &w->options;

	o->seed = seed;
	w->rng = seed * 0x2545f4914f6cdd1dull + 1;
	o->arbiter_file = world_chance(w, 60);
	o->survivor = world_chance(w, 50) ? FT_SURVIVOR_STANDBY : FT_SURVIVOR_PRIMARY;
	o->trigger = (enum ft_trigger)world_range(w, FT_TRIGGER_OUTPUT, FT_TRIGGER_BOTH);
	o->latency_us_min = world_range(w, 10, 300);
	o->latency_us_max = o->latency_us_min + world_range(w, 0, 3000);
	o->request_us = world_range(w, 2000, 20000);
	o->interval_ms = (unsigned)world_range(w, 5, 100);
	o->heartbeat_ms = (unsigned)world_range(w, 10, 50);
	o->takeover_ms = o->heartbeat_ms * (unsigned)world_range(w, 4, 10);
	o->faults = (unsigned)world_range(w, 0, 5);
	/* Small enough, sometimes, that a checkpoint does not fit. */
	o->staging_bytes = world_chance(w, 30) ? 4 * 4096 : 64 * 4096;
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
	world_after(w, world_range(w, w->options.request_us / 2, w->options.request_us * 2) * US, NULL, on_request, w, 0);
}

/* ---- faults ---- */

static void on_thaw(void *ctx, uint64_t incarnation)
{
	struct node *n = ctx;

	if (n->frozen && n->incarnation == incarnation)
		node_freeze(n, false);
}

static void on_heal(void *ctx, uint64_t what)
{
	struct world *w = ctx;

	if (what)
		w->arbiter_down = false;
	else
		w->link_cut = false;
	world_log(w, "%s is back", what ? "the arbiter" : "the link");
}

static void switched(void *ctx, const struct ft_err *err, uint64_t value)
{
	struct world *w = ctx;

	(void)value;
	if (!err)
		w->switches++;
}

static struct node *runner(struct world *w)
{
	for (unsigned i = 0; i < SIM_NODES; i++)
		if (!w->nodes[i].crashed && w->nodes[i].machine && w->nodes[i].machine->running)
			return &w->nodes[i];
	return &w->nodes[0];
}

static void on_fault(void *ctx, uint64_t arg)
{
	struct world *w = ctx;
	struct node *p = runner(w), *s = &w->nodes[1 - p->id];
	struct ft_err err = {0};

	(void)arg;
	switch (world_range(w, 0, 11)) {
	case 0:
		node_crash(p, false);
		break;
	case 1:
		node_crash(p, true);
		break;
	case 2:
		if (p->crashed || p->frozen)
			break;
		node_freeze(p, true);
		world_after(w, world_range(w, 20, 3000) * MS, NULL, on_thaw, p, p->incarnation);
		break;
	case 3:
		node_vm_dies(p);
		break;
	case 4:
		node_crash(s, world_chance(w, 50));
		break;
	case 5:
		if (s->crashed || s->frozen)
			break;
		node_freeze(s, true);
		world_after(w, world_range(w, 20, 3000) * MS, NULL, on_thaw, s, s->incarnation);
		break;
	case 6:
		world_log(w, "LINK CUT");
		w->link_cut = true;
		world_after(w, world_range(w, 5, 3000) * MS, NULL, on_heal, w, 0);
		break;
	case 7:
		world_log(w, "ARBITER DOWN");
		w->arbiter_down = true;
		world_after(w, world_range(w, 50, 4000) * MS, NULL, on_heal, w, 1);
		break;
	case 8:
		world_log(w, "CONNECTIONS RESET");
		net_reset_data(p);
		break;
	case 9:
		if (!p->crashed && !p->frozen && !ft_engine_failover(p->engine, switched, w, &err))
			world_log(w, "%s: planned switch", p->name);
		break;
	case 10:
		if (!p->crashed && !p->frozen && !ft_engine_cancel(p->engine, &err))
			world_log(w, "%s: cancelled", p->name);
		break;
	default:
		w->checkpoint_fails_next[p->id] = true;
	}
}

/* ---- the operator, who protects what is solo, restarts what crashed, and decides where the file says so ---- */

static bool waits(struct node *n)
{
	struct ft_engine_status s;

	if (n->crashed || n->frozen)
		return false;
	ft_engine_status(n->engine, &s);
	return s.waiting_for_decision;
}

static bool idle_standby(struct node *n)
{
	struct ft_engine_status s;

	if (n->crashed || n->frozen)
		return false;
	ft_engine_status(n->engine, &s);
	return s.state == FT_STANDBY && !s.epoch_committed;
}

static void decide(struct world *w, struct node *n, struct node *o)
{
	struct ft_err err = {0};

	/* Only when nobody else can have the guest, as an operator would make sure of. */
	if (!waits(n) || o->frozen || w->link_cut || (o->machine && o->machine->running) || w->now % (2 * S) > 200 * MS)
		return;
	if (ft_engine_state(n->engine) == FT_STANDBY) {
		if (!o->crashed && waits(o))
			return; /* the primary's side goes first */
		if (!ft_engine_failover(n->engine, NULL, NULL, &err))
			world_log(w, "%s: an operator says failover", n->name);
	} else if (o->crashed || !waits(o) || ft_engine_state(o->engine) == FT_STANDBY) {
		if (!ft_engine_cancel(n->engine, &err)) {
			world_log(w, "%s: an operator says cancel", n->name);
			/* and what the other side held is void */
			node_crash(o, true);
		}
	}
}

static void on_operator(void *ctx, uint64_t arg)
{
	struct world *w = ctx;

	(void)arg;
	for (unsigned i = 0; i < SIM_NODES; i++) {
		struct node *n = &w->nodes[i], *o = &w->nodes[1 - i];
		struct ft_err err = {0};
		bool over = !n->crashed && (ft_engine_state(n->engine) == FT_FENCED || ft_engine_state(n->engine) == FT_FAILED ||
					    ft_engine_state(n->engine) == FT_STOPPED);

		if (over && !n->frozen)
			node_crash(n, false);
		if (n->crashed && w->now - n->crashed_ns > RESTART_AFTER) {
			world_log(w, "%s: restarted as standby", n->name);
			node_start(n, false);
		} else if (!n->crashed && !n->frozen && ft_engine_state(n->engine) == FT_SOLO && idle_standby(o)) {
			if (!ft_engine_protect(n->engine, NULL, NULL, &err))
				world_log(w, "%s: protect", n->name);
		} else if (!w->options.arbiter_file) {
			decide(w, n, o);
		}
	}
	world_after(w, 100 * MS, NULL, on_operator, w, 0);
}

/* ---- one seed ---- */

/* The guest is gone for good when no host runs it or could: both died, or it died unprotected. That is no violation. */
static bool guest_lost(struct world *w)
{
	for (unsigned i = 0; i < SIM_NODES; i++) {
		struct node *n = &w->nodes[i];

		if (!n->crashed && (n->frozen || (n->machine && !n->machine->dead)))
			return false;
	}
	return true;
}

static void calm(struct world *w)
{
	w->link_cut = w->arbiter_down = false;
	for (unsigned i = 0; i < SIM_NODES; i++) {
		w->checkpoint_fails_next[i] = false;
		if (w->nodes[i].frozen)
			node_freeze(&w->nodes[i], false);
	}
	w->faults_over = true;
	world_log(w, "---- calm ----");
}

static void check_liveness(struct world *w)
{
	struct node *p = runner(w);

	if (guest_lost(w) || w->answered_max + 8 >= SIM_OPS_MAX)
		return;
	if (w->now - w->last_answer_ns > SERVED_BOUND)
		world_violation(w, "no answer for %llu ms although every fault has healed", (unsigned long long)((w->now - w->last_answer_ns) / MS));
	else if (!p->crashed && ft_engine_state(p->engine) != FT_PROTECTED)
		world_violation(w, "%s is %s, not protected, although every fault has healed: %s", p->name, ft_state_name(ft_engine_state(p->engine)),
				ft_engine_reason(p->engine));
}

static void world_free(struct world *w)
{
	for (unsigned i = 0; i < SIM_NODES; i++)
		if (!w->nodes[i].crashed)
			node_crash(&w->nodes[i], true);
	w->verbose = false;
	net_free(w);
	free(w->heap);
	free(w->history);
}

static struct world *logged;

static void to_timeline(enum ft_log_level level, const char *line)
{
	(void)level;
	world_log(logged, "%s", line);
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
	draw_options(w, seed);
	world_log(w, "seed %llu: arbiter %s, survivor %d, trigger %d, latency %llu-%llu us, takeover %u ms, %u faults, staging %llu",
		  (unsigned long long)seed, w->options.arbiter_file ? "file" : "none", (int)w->options.survivor, (int)w->options.trigger,
		  (unsigned long long)w->options.latency_us_min, (unsigned long long)w->options.latency_us_max, w->options.takeover_ms,
		  w->options.faults, (unsigned long long)w->options.staging_bytes);
	for (unsigned i = 0; i < SIM_NODES; i++) {
		w->nodes[i].world = w;
		w->nodes[i].id = i;
		snprintf(w->nodes[i].name, sizeof w->nodes[i].name, "host-%c", 'A' + (int)i);
		node_start(&w->nodes[i], i == 0);
	}
	world_after(w, 0, NULL, on_request, w, 0);
	world_after(w, 10 * MS, NULL, on_operator, w, 0);
	for (unsigned i = 0; i < w->options.faults; i++)
		world_after(w, world_range(w, 100 * MS, FAULT_PHASE), NULL, on_fault, w, 0);
	while (world_step(w, FAULT_PHASE))
		;
	calm(w);
	while (world_step(w, FAULT_PHASE + CALM_PHASE))
		;
	if (!w->violated)
		check_liveness(w);
	ok = !w->violated;
	if (verbose || !ok)
		printf("seed %llu%s%s: %s: %llu answers, %llu twice, %u takeovers, %u planned switches%s%s\n", (unsigned long long)seed,
		       mutant ? ", mutant " : "", mutant ? mutant_name(mutant) : "", ok ? "ok" : "VIOLATION", (unsigned long long)w->answers,
		       (unsigned long long)w->duplicates, w->takeovers, w->switches, ok ? "" : ": ", ok ? "" : w->violation);
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
	printf("mutant %s: NOT found within %llu seeds\n", mutant_name(m), (unsigned long long)count);
	return 1;
}

static int run_seeds(uint64_t from, uint64_t count)
{
	struct timespec a, b;
	uint64_t failed = 0;

	clock_gettime(CLOCK_MONOTONIC, &a);
	for (uint64_t seed = from; seed < from + count; seed++) {
		if (simulate(seed, MUTANT_NONE, false))
			continue;
		printf("repeat it with: ft-sim %llu\n", (unsigned long long)seed);
		failed++;
	}
	clock_gettime(CLOCK_MONOTONIC, &b);
	printf("%llu seeds from %llu, %llu violations, %.0f seeds/s\n", (unsigned long long)count, (unsigned long long)from,
	       (unsigned long long)failed, (double)count / ((double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) / 1e9));
	return failed ? 1 : 0;
}

static void usage(void)
{
	puts("usage: ft-sim SEED                       one run, with its timeline\n"
	     "       ft-sim --seeds FROM COUNT         many, quietly\n"
	     "       ft-sim --mutant NAME|all [COUNT]  must be found within COUNT (2000) seeds");
}

int main(int argc, char **argv)
{
	int rc = 0;

	if (argc == 2 && argv[1][0] != '-')
		return simulate(strtoull(argv[1], NULL, 0), MUTANT_NONE, true) ? 0 : 1;
	if (argc == 4 && !strcmp(argv[1], "--seeds"))
		return run_seeds(strtoull(argv[2], NULL, 0), strtoull(argv[3], NULL, 0));
	if (argc >= 3 && !strcmp(argv[1], "--mutant")) {
		uint64_t count = argc > 3 ? strtoull(argv[3], NULL, 0) : 2000;

		for (int m = 1; m < MUTANT_N; m++)
			if (!strcmp(argv[2], "all") || !strcmp(argv[2], mutant_names[m]))
				rc |= find_mutant((enum mutant)m, 1, count);
		return rc;
	}
	usage();
	return argc == 2 && !strcmp(argv[1], "--help") ? 0 : 2;
}
