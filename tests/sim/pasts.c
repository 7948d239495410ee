// SPDX-License-Identifier: Apache-2.0
/* What standbys keep of the past (vmm-glue/snapshot/history.h): each of two hosts has a folder, to
 * which it adds checkpoints while it is the standby. One takes over, the other comes back as the
 * standby and goes on with its chain, whose end is of long ago. Hosts die at any call. Each point
 * of a chain is the checkpoint that it says, whole; the chain has no gaps, the newest that was
 * added, and not fewer than are to be kept. Worlds of their own, whose chance is the seed's. */
#include "tests/sim/memory.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/sim/files.h"
#include "vmm-glue/snapshot/history.h"

#define ADDED_MAX  16
#define EVENTS_MAX 8
#define STEPS_MAX  120 /* that adding takes */
#define KEEP_MAX   3

struct added {
	uint64_t generation, epoch;
	struct memory is;
};

/* A host's folder, and what must be in it. */
struct past {
	struct node *node;
	char dir[16];
	struct added added[ADDED_MAX];
	unsigned n;
	bool unsure; /* whether the last one is there, and stays if the power goes */
};

struct pair {
	struct world *world;
	struct past past[SIM_NODES];
	unsigned standby, keep;
	struct memory_guest guest;
	struct history *history; /* the standby's; NULL: closed */
	bool known;		 /* what was written since the newest */
	uint64_t generation, epoch;
};

static bool is_point(const struct history_point *point, const struct added *a)
{
	return point->generation == a->generation && point->epoch == a->epoch;
}

/* What nobody said was added, and is not there. */
static void drop_unsure(struct past *past, const struct history_point *points, unsigned n)
{
	if (!past->unsure || (n && is_point(&points[n - 1], &past->added[past->n - 1])))
		return;
	past->n--;
	past->unsure = false;
}

/* ---- adding ---- */

static int add(struct pair *p, struct added *next, struct ft_err *err)
{
	static char path[CHANGES_PATH_MAX], last[CHANGES_PATH_MAX];
	static struct changes_out to;
	static struct source from;
	struct changes_head head;
	struct disks_old none;
	int rc = history_next(p->history, &from, &none, &head, path, last, err);

	if (rc)
		return rc;
	head.generation = next->generation;
	head.epoch = next->epoch;
	rc = changes_create(&to, path, &head, err);
	if (!rc) {
		rc = memory_save(&p->guest, p->known && *last, &from, &to, &next->is, err);
		changes_close(&to, !rc);
	}
	disks_old_close(&none);
	source_close(&from);
	return rc ? rc : history_added(p->history, p->keep, 0, err);
}

static void close_history(struct pair *p)
{
	history_close(p->history);
	p->history = NULL;
	p->known = false;
}

/* A writer makes sure of what it goes on from. */
static int open_history(struct pair *p, struct ft_err *err)
{
	static struct history_point points[HISTORY_MAX];
	struct past *past = &p->past[p->standby];
	struct vmm_ram ram;
	int rc = history_open(past->dir, true, &p->history, err);

	memory_ram(&ram);
	if (!rc)
		rc = history_prepare(p->history, &ram, NULL, MEMORY_KIND, err);
	if (rc) {
		close_history(p);
		return rc;
	}
	drop_unsure(past, points, history_points(p->history, points));
	past->unsure = false;
	return 0;
}

/* ---- what is there ---- */

static void check_point(struct pair *p, const struct history *h, unsigned i, const struct added *a)
{
	static struct source s;
	struct ft_err err = {0};

	if (history_source(h, i, &s, &err)) {
		world_violation(p->world, "a point cannot be read: %s", err.text);
		return;
	}
	if (!memory_is(&a->is, &s))
		world_violation(p->world, "history: epoch %llu is not as it was",
				(unsigned long long)a->epoch);
	source_close(&s);
}

static void check_points(struct pair *p, struct past *past, const struct history *h)
{
	static struct history_point points[HISTORY_MAX];
	unsigned n = history_points(h, points), first;

	drop_unsure(past, points, n);
	if (n > past->n || n < (past->n < p->keep ? past->n : p->keep)) {
		world_violation(p->world, "history: %u points, of %u that were added", n, past->n);
		return;
	}
	first = past->n - n;
	for (unsigned i = 0; i < n && !p->world->violated; i++) {
		if (!is_point(&points[i], &past->added[first + i]))
			world_violation(p->world, "history: a point is missing");
		check_point(p, h, i, &past->added[first + i]);
	}
}

/* As a restore does it: a reader, who first completes what was begun. */
static void check(struct pair *p, struct past *past)
{
	struct ft_err err = {0};
	struct history *h;
	int rc = history_open(past->dir, false, &h, &err);

	if (rc && err.code == ENOENT && past->n <= past->unsure)
		return;
	if (rc) {
		world_violation(p->world, "cannot be opened: %s", err.text);
		return;
	}
	check_points(p, past, h);
	history_close(h);
}

/* ---- events ---- */

/* The host dies in the middle, and its process starts anew. */
static void after(struct pair *p, int rc, const struct ft_err *err)
{
	struct past *past = &p->past[p->standby];
	bool dying = past->node->dying;

	if (rc && !dying)
		world_violation(p->world, "nothing is wrong, and it fails: %s", err->text);
	if (dying || rc)
		close_history(p);
	if (memory_died(past->node))
		check(p, past);
}

static void commit(struct pair *p)
{
	struct past *past = &p->past[p->standby];
	struct added *next;
	struct ft_err err = {0};
	int rc = 0;

	memory_may_die(past->node, 35, STEPS_MAX);
	p->epoch++;
	if (!p->history)
		rc = open_history(p, &err);
	if (!rc && past->n < ADDED_MAX) {
		next = &past->added[past->n++];
		next->generation = p->generation;
		next->epoch = p->epoch;
		past->unsure = true;
		rc = add(p, next, &err);
		past->unsure = rc != 0;
		p->known = !rc;
	}
	after(p, rc, &err);
}

/* The standby has the guest now, and the other host comes back and is its standby. */
static void take_over(struct pair *p)
{
	close_history(p);
	check(p, &p->past[p->standby]);
	if (world_chance(p->world, 30))
		files_power_lost(p->past[p->standby].node);
	p->standby = 1 - p->standby;
	p->generation++;
}

void pasts_run(struct world *w, struct node *nodes)
{
	struct pair *p = calloc(1, sizeof *p);

	if (!p)
		abort();
	p->world = p->guest.world = w;
	p->keep = (unsigned)world_range(w, 1, KEEP_MAX);
	p->generation = 1;
	for (unsigned i = 0; i < SIM_NODES; i++) {
		p->past[i].node = &nodes[i];
		snprintf(p->past[i].dir, sizeof p->past[i].dir, "/sim/%c/h", 'A' + (int)i);
	}
	for (uint64_t i = world_range(w, 1, EVENTS_MAX); i && !w->violated; i--) {
		memory_run(&p->guest);
		if (world_chance(w, 20))
			take_over(p);
		else
			commit(p);
	}
	close_history(p);
	for (unsigned i = 0; i < SIM_NODES && !w->violated; i++)
		check(p, &p->past[i]);
	free(p);
}
