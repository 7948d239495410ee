// SPDX-License-Identifier: Apache-2.0
/* One seed: draws everything from it, runs the phases (faults, then calm), says what happened. */
#include "tests/sim/world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "ft/engine_internal.h" /* white box: its phase */
#include "ft/log.h"
#include "tests/sim/files.h"

#define FAULT_PHASE (3 * S)
#define CALM_MIN    (200 * MS)
#define CALM_MAX    (15 * S) /* by then the guest must be protected and served */
#define HOME_MAX    (15 * S) /* an operator may have to ask again after FT_HANDOVER_MAX_MS */
#define HOME_EVERY  3	     /* seeds */
#define PASTS_EVERY 4	     /* likewise */
/* One crash at a given step, in a short life: protected, then handed over. */
#define STEPS_PHASE    (400 * MS)
#define STEPS_FAILOVER (150 * MS)

#define RUN_SECONDS_MAX 20 /* of the processor, sanitizers and all */

/* ---- options ---- */

static void draw_options(struct world *w, uint64_t seed)
{
	struct options *o = &w->options;
	uint64_t own = seed * 0x9e3779b97f4a7c15ull >> 40;

	o->seed = seed;
	w->rng = seed * 0x2545f4914f6cdd1dull + 1;
	o->arbiter_file = world_chance(w, 60);
	o->survivor = (enum ft_survivor)world_range(w, FT_SURVIVOR_STANDBY, FT_SURVIVOR_MANUAL);
	o->takeover_manual = world_chance(w, 15);
	o->trigger = (enum ft_trigger)world_range(w, FT_TRIGGER_OUTPUT, FT_TRIGGER_BOTH);
	o->latency_us_min = world_range(w, 10, 300);
	o->latency_us_max = o->latency_us_min + world_range(w, 0, 3000);
	o->bytes_per_ms = world_chance(w, 40) ? world_range(w, 100000, 400000) : 0;
	o->window = world_chance(w, 40) ? world_range(w, 300, world_chance(w, 50) ? 3000 : 100000)
					: 1u << 30;
	o->request_us = world_range(w, 4000, 20000);
	o->interval_ms = (unsigned)world_range(w, 5, 100);
	o->heartbeat_ms = (unsigned)world_range(w, 10, 50);
	o->takeover_ms = o->heartbeat_ms * (unsigned)world_range(w, 4, 10);
	o->faults = (unsigned)world_range(w, 0, 5);
	o->base_pages = world_chance(w, 80) ? 64 : 8;
	/* Small enough, sometimes, that a checkpoint does not fit. */
	o->staging_bytes = world_chance(w, 30) ? 4 * 4096 : 64 * 4096;
	o->disks = (unsigned)world_range(w, 1, SIM_DISKS);
	for (unsigned i = 0; i < SIM_DISKS; i++)
		o->disk_shared[i] = world_chance(w, 35);
	for (unsigned i = 0; i < o->disks; i++)
		o->shared |= o->disk_shared[i];
	o->lockless = o->shared && world_chance(w, 40);
	o->fence = o->shared && world_chance(w, 25);
	o->disk_log_bytes = world_chance(w, 30) ? 8192 : 1u << 20;
	o->durable = world_chance(w, 40);
	o->journal_bytes = world_chance(w, 50) ? 8192 : 1u << 20;
	o->compare = world_chance(w, 75);
	/* Not drawn: the other seeds' worlds stay what they were. */
	o->track = own & 1;
	o->bitmaps = own / 2 % 5 < 2;
	o->migrations = seed % 8 == 5 ||
			(w->mutant >= MUTANT_STALE_PAGE && w->mutant <= MUTANT_SOURCE_RESUMES);
}

/* ---- the client, who asks whoever runs ---- */

/* Requests that a client has under way before it waits for an answer. */
#define CLIENT_WINDOW 48

static bool client_waits(struct node *n)
{
	struct tap_stats stats = {0};

	if (!n->net_tap || n->world->mutant == MUTANT_QUEUE_UNBOUNDED)
		return false;
	n->net_tap->ops->stats(n->net_tap, &stats);
	return stats.held_outputs >= CLIENT_WINDOW;
}

static void on_request(void *ctx, uint64_t arg)
{
	struct world *w = ctx;

	(void)arg;
	for (unsigned i = 0; i < SIM_NODES; i++) {
		struct node *n = &w->nodes[i];

		/* A frozen host's guest is frozen too. */
		if (!n->crashed && !n->frozen && n->machine && n->machine->running &&
		    !client_waits(n))
			machine_run(n->machine, world_random(w));
	}
	world_after(w, world_range(w, w->options.request_us / 2, w->options.request_us * 2) * US,
		    NULL, on_request, w, 0);
}

/* ---- one seed ---- */

static bool settled(struct world *w)
{
	struct node *p = world_runner(w), *o = node_other(p);

	return w->now > w->calm_ns + CALM_MIN && w->last_answer_ns > w->calm_ns + CALM_MIN / 2 &&
	       !p->crashed && ft_engine_state(p->engine) == FT_PROTECTED &&
	       p->engine->primary.phase == PRIMARY_RUNNING && !o->crashed &&
	       ft_engine_state(o->engine) == FT_STANDBY && o->engine->standby.committed;
}

static void check_end(struct world *w)
{
	struct node *p = world_runner(w);

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
				p->crashed ? "down" : ft_state_name(ft_engine_state(p->engine)),
				p->crashed ? "" : ft_engine_reason(p->engine));
}

static void world_free(struct world *w)
{
	for (unsigned i = 0; i < SIM_NODES; i++)
		if (!w->nodes[i].crashed)
			node_crash(&w->nodes[i], true);
	for (unsigned i = 0; i < SIM_NODES; i++)
		maps_free(&w->nodes[i]);
	net_free(w);
	files_free(w);
	arbiter_forget_questions(w);
	free(w->heap);
	free(w->history);
}

static struct world *logged;

/* An assertion tells where, but not in which world. */
static char in_case_of_death[96];

void run_died(int number)
{
	(void)number;
	(void)!write(STDERR_FILENO, in_case_of_death, strlen(in_case_of_death));
}

void run_hangs(int number)
{
	static const char what[] = "\na run that does not end";

	(void)number;
	(void)!write(STDERR_FILENO, what, sizeof what - 1);
	abort(); /* and run_died() says which */
}

/* Of this process's own time; a run takes some milliseconds. */
static void watch(unsigned seconds)
{
	setitimer(ITIMER_VIRTUAL, &(struct itimerval){.it_value.tv_sec = seconds}, NULL);
}

static void to_timeline(enum ft_log_level level, const char *line)
{
	(void)level;
	world_log(logged, "%s", line);
}

static void say_options(struct world *w)
{
	const struct options *o = &w->options;

	world_log(
		w,
		"seed %llu: %u disk%s (%s%s)%s, log %llu, durability %s, journal %llu, compare %s, "
		"arbiter %s, survivor %s, takeover %s, "
		"trigger %d, interval %u ms, "
		"latency %llu-%llu us, %llu bytes/ms, window %llu, "
		"heartbeat %u ms, takeover %u ms, a request every %llu us, %u faults, staging %llu",
		(unsigned long long)o->seed, o->disks, o->disks > 1 ? "s" : "",
		o->disk_shared[0] ? "shared" : "replicated",
		o->disks < 2	    ? ""
		: o->disk_shared[1] ? ", shared"
				    : ", replicated",
		o->bitmaps ? ", with bitmaps"
		: o->track ? ", tracked"
			   : "",
		(unsigned long long)o->disk_log_bytes, o->durable ? "disk" : "memory",
		(unsigned long long)o->journal_bytes, o->compare ? "yes" : "no",
		o->arbiter_file ? "file" : "none",
		(const char *[]){"", "standby", "primary", "manual"}[o->survivor],
		o->takeover_manual ? "manual" : "auto", (int)o->trigger, o->interval_ms,
		(unsigned long long)o->latency_us_min, (unsigned long long)o->latency_us_max,
		(unsigned long long)o->bytes_per_ms, (unsigned long long)o->window, o->heartbeat_ms,
		o->takeover_ms, (unsigned long long)o->request_us, o->faults,
		(unsigned long long)o->staging_bytes);
}

static void world_make(struct world *w)
{
	w->ran_last = w->spoke = &w->nodes[0];
	files_init(w);
	seams_init(w);
	for (unsigned i = 0; i < SIM_NODES; i++) {
		struct node *n = &w->nodes[i];

		n->world = w;
		n->id = i;
		snprintf(n->name, sizeof n->name, "host-%c", 'A' + (int)i);
		n->clock_ahead_ns = (int64_t)(world_range(w, 1, 1000000) * MS);
		n->clock_ppm = (int)world_range(w, 0, 1000) - 500;
	}
	for (unsigned i = 0; i < SIM_NODES; i++) {
		disks_init(&w->nodes[i]);
		maps_init(&w->nodes[i]);
	}
	for (unsigned i = 0; i < SIM_NODES; i++)
		(void)node_start(&w->nodes[i], i == 0 ? WITH_GUEST : AS_STANDBY);
}

/* Files of the past, on hosts that have nothing else: gone before the world is made. */
static void keep_pasts(struct world *w)
{
	uint64_t before = w->rng;

	if (w->run->crash_step)
		return;
	w->rng = w->options.seed;
	files_init(w);
	seams_init(w);
	for (unsigned i = 0; i < SIM_NODES; i++) {
		w->nodes[i].world = w;
		w->nodes[i].id = i;
	}
	if (w->options.seed % PASTS_EVERY == 0)
		increments_run(w, &w->nodes[0]);
	if (w->options.seed % PASTS_EVERY == 1)
		pasts_run(w, w->nodes);
	for (unsigned i = 0; i < SIM_NODES; i++) {
		if (files_open_count(&w->nodes[i]))
			world_violation(w, "snapshot: a file is left open");
		w->nodes[i].steps = 0;
	}
	files_free(w);
	w->rng = before;
}

static void on_planned_failover(void *ctx, uint64_t arg)
{
	struct node *n = ctx;
	struct ft_err err = {0};

	(void)arg;
	if (!n->crashed)
		(void)ft_engine_failover(n->engine, NULL, NULL, &err);
}

/* The guest belongs where it was first protected: a planned switch brings it there. */
static void go_home(struct world *w)
{
	uint64_t until = w->now + HOME_MAX;

	operator_wants_home(w);
	while (!(operator_is_home(w) && settled(w)) && world_step(w, until))
		;
	if (!operator_is_home(w) && !w->violated && w->answered_max + 8 < SIM_OPS_MAX)
		world_violation(w, "the guest is not at home after %llu ms of calm",
				(unsigned long long)(HOME_MAX / MS));
}

static void live(struct world *w)
{
	uint64_t phase = w->run->crash_step ? STEPS_PHASE : FAULT_PHASE;

	world_after(w, 0, NULL, on_request, w, 0);
	operator_start(w);
	if (w->run->crash_step) {
		w->options.faults = 1; /* this one */
		world_after(w, STEPS_FAILOVER, NULL, on_planned_failover, &w->nodes[0], 0);
	} else {
		faults_draw(w);
		copies_start(w);
	}
	while (world_step(w, phase))
		;
	faults_end(w);
	while (!settled(w) && world_step(w, phase + CALM_MAX))
		;
	if (!w->violated && settled(w)) {
		operator_checks_home(w);
		if (w->options.seed % HOME_EVERY == 0)
			go_home(w);
	}
	if (!w->violated)
		check_end(w);
}

static void sum_up(struct world *w)
{
	const struct run *r = w->run;

	printf("seed %llu%s%s: %s: %llu answers, %llu twice, %u takeovers, %u planned switches, %u "
	       "moves, %u followed by their memory, %u boots%s%s\n",
	       (unsigned long long)r->seed, r->mutant ? ", mutant " : "",
	       r->mutant ? mutant_name(r->mutant) : "", w->violated ? "VIOLATION" : "ok",
	       (unsigned long long)w->answers, (unsigned long long)w->duplicates, w->takeovers,
	       w->switches, w->moves, w->followed, w->boots - 1, w->violated ? ": " : "",
	       w->violation);
}

bool simulate(struct run *r)
{
	struct world *w = calloc(1, sizeof *w);
	bool ok;

	if (!w)
		abort();
	w->run = r;
	w->mutant = r->mutant;
	logged = w;
	ft_log_sink_set(to_timeline);
	ft_log_level_set(r->timeline ? FT_LOG_DEBUG : FT_LOG_ERROR);
	snprintf(in_case_of_death, sizeof in_case_of_death, "\ndied in seed %llu, mutant %s\n",
		 (unsigned long long)r->seed, mutant_name(r->mutant));
	draw_options(w, r->seed);
	say_options(w);
	keep_pasts(w);
	world_make(w);
	watch(RUN_SECONDS_MAX);
	frozen_ram_run(w);
	live(w);
	watch(0);
	ok = !w->violated;
	world_log_end(w);
	if (r->timeline || r->summary)
		sum_up(w);
	snprintf(r->violation, sizeof r->violation, "%s", w->violation);
	for (unsigned i = 0; i < SIM_NODES; i++)
		r->steps[i] = w->nodes[i].steps;
	world_free(w);
	free(w);
	return ok;
}
