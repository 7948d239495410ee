// SPDX-License-Identifier: Apache-2.0
/* The arbiter of type "file": one record, reached with latency. A request may be lost, or its
 * answer, or it may be late and take effect long after the asker gave up. Type "none" is the
 * production one. */
#include "tests/sim/world.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

struct question {
	struct node *from;
	bool swap, told;
	uint64_t expected;
	struct ft_grant_record want;
	ft_arbiter_fn *fn;
	void *ctx;
	unsigned uses;
	uint64_t incarnation;
	struct question *next, **link; /* all of the world */
};

static void question_done(struct question *q)
{
	if (--q->uses)
		return;
	*q->link = q->next;
	if (q->next)
		q->next->link = q->link;
	free(q);
}

void arbiter_forget_questions(struct world *w)
{
	while (w->questions) {
		struct question *q = w->questions;

		w->questions = q->next;
		free(q);
	}
}

static enum ft_arbiter_answer apply(struct question *q)
{
	struct world *w = q->from->world;
	bool same = q->want.generation == q->expected;

	if (!q->swap)
		return FT_ARBITER_GRANTED;
	if (w->mutant != MUTANT_GRANT_ALL && (w->arbiter.generation != q->expected ||
					      (same && strcmp(w->arbiter.holder, q->want.holder))))
		return FT_ARBITER_LOST;
	w->arbiter = q->want;
	check_granted(q->from, &w->arbiter);
	return FT_ARBITER_GRANTED;
}

static void tell(struct question *q, enum ft_arbiter_answer a)
{
	struct node *n = q->from;
	struct ft_grant_record now = n->world->arbiter;

	if (q->told || n->crashed || n->incarnation != q->incarnation)
		return;
	q->told = true;
	world_log(n->world, "%s: arbiter %s generation %llu: %s", n->name,
		  q->swap ? "swap to" : "read",
		  (unsigned long long)(q->swap ? q->want.generation : now.generation),
		  (const char *[]){"granted", "lost", "unreachable", "undecided"}[a]);
	q->fn(q->ctx, a, &now, a == FT_ARBITER_UNREACHABLE ? "no route" : "");
}

static void on_arrival(void *ctx, uint64_t answer_is_lost)
{
	struct question *q = ctx;
	enum ft_arbiter_answer a = apply(q);

	if (answer_is_lost && q->swap && a == FT_ARBITER_GRANTED)
		world_log(q->from->world,
			  "%s: arbiter swap to generation %llu happened, unanswered", q->from->name,
			  (unsigned long long)q->want.generation);
	if (!answer_is_lost)
		tell(q, a);
	question_done(q);
}

static void on_deadline(void *ctx, uint64_t arg)
{
	struct question *q = ctx;

	(void)arg;
	tell(q, FT_ARBITER_UNREACHABLE);
	question_done(q);
}

static void ask(struct ft_arbiter *a, bool swap, uint64_t expected,
		const struct ft_grant_record *want, ft_arbiter_fn *fn, void *ctx)
{
	struct node *n = (struct node *)((char *)a - offsetof(struct node, arbiter));
	struct world *w = n->world;
	struct question *q = calloc(1, sizeof *q);
	bool unreachable = w->arbiter_down || n->arbiter_cut,
	     arrives = !unreachable || world_chance(w, 40);
	uint64_t in = unreachable ? world_range(w, 1, 4000) * MS
				  : world_range(w, 100, world_chance(w, 95) ? 5000 : 1500000) * US;

	if (!q)
		abort();
	*q = (struct question){.from = n,
			       .swap = swap,
			       .expected = expected,
			       .fn = fn,
			       .ctx = ctx,
			       .uses = 1,
			       .incarnation = n->incarnation};
	if (want)
		q->want = *want;
	if (!node_step(n)) {
		free(q);
		return;
	}
	q->next = w->questions;
	q->link = &w->questions;
	if (q->next)
		q->next->link = &q->next;
	w->questions = q;
	/* The deadline is the asker's own, so it sleeps with it; the request does not. */
	world_wait(w, FT_ARBITER_DEADLINE_MS * MS, n, on_deadline, q);
	if (arrives) {
		q->uses++;
		world_after(w, in, NULL, on_arrival, q, unreachable);
	}
}

static void arbiter_read(struct ft_arbiter *a, ft_arbiter_fn *fn, void *ctx)
{
	ask(a, false, 0, NULL, fn, ctx);
}

static void arbiter_swap(struct ft_arbiter *a, uint64_t expected,
			 const struct ft_grant_record *want, ft_arbiter_fn *fn, void *ctx)
{
	ask(a, true, expected, want, fn, ctx);
}

static void arbiter_free(struct ft_arbiter *a)
{
	(void)a;
}

const struct ft_arbiter_ops sim_arbiter_ops = {
	.type = "file", .read = arbiter_read, .swap = arbiter_swap, .free = arbiter_free};
