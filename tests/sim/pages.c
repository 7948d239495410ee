// SPDX-License-Identifier: Apache-2.0
/* Memory that follows a guest (postcopy): production's choice of pages on both sides (ft/postcopy),
 * over a pair of connections that is one thing here: it is there or not, and what is on its way
 * when it breaks is lost. In production threads do what events do here.
 *
 * The promises: a page that the target believes to have is the source's; one that comes is the
 * source's too, and comes once, before anybody has written to it; a guest that touches a missing
 * page does nothing until that is there; and the source, whose guest stands still, never speaks
 * again (check_speaker()). */
#include "tests/sim/world.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ft/engine_internal.h" /* white box: whose pages are whose */

#define CONNECT_US_MAX 2000
#define PUSH_US_MAX    20000
#define PUSH_PAGES     3
#define NOTICE_MS_MAX  50 /* until a side sees that a connection is dead */
#define STUCK_MAX_MS   200
#define LINE_BREAKS    3 /* per cent of pages are the last of their connection, and are lost */

static struct node *source_of(struct node *target)
{
	return node_other(target);
}

static bool link_works(struct world *w)
{
	return !w->cut[0] && !w->cut[1] && !w->nodes[0].crashed && !w->nodes[1].crashed;
}

/* ---- the end of a connection ---- */

static void on_cut(void *ctx, uint64_t line)
{
	struct ft_err err = {.code = EPIPE, .text = "sim: the connection for pages broke"};
	struct node *n = ctx;

	if (n->line != line || !n->engine)
		return;
	n->line = 0;
	ft_engine_pages(n->engine, FT_PAGES_CUT, &err);
}

static void line_breaks(struct world *w, uint64_t line)
{
	for (unsigned i = 0; i < SIM_NODES; i++)
		if (w->nodes[i].line == line)
			world_after(w, world_range(w, 1, NOTICE_MS_MAX) * MS, &w->nodes[i], on_cut,
				    &w->nodes[i], line);
}

bool pages_line_good(struct node *n, uint64_t line)
{
	struct world *w = n->world;

	if (!line || n->line != line)
		return false;
	if (link_works(w) && node_other(n)->line == line && w->broken_line != line)
		return true;
	line_breaks(w, line);
	return false;
}

/* ---- pages to the target ---- */

static void check_page(struct node *t, unsigned page, const char *what)
{
	struct node *s = source_of(t);

	/* Its RAM stands still as long as it is needed. */
	if (s->machine && !s->crashed &&
	    memcmp(t->machine->ram + page * VMM_PAGE_BYTES, s->machine->ram + page * VMM_PAGE_BYTES,
		   VMM_PAGE_BYTES))
		world_violation(t->world, "%s: page %u %s is not the source's", t->name, page,
				what);
}

static void place(struct node *t, unsigned page, const uint8_t *bytes)
{
	struct machine *m = t->machine;
	bool twice = t->world->mutant == MUTANT_PAGE_TWICE;

	if (!ft_taker_wants(&t->taker, page) && !twice)
		return;
	if (!m->missing[page])
		world_violation(t->world, "%s: page %u was placed over one that is there", t->name,
				page);
	memcpy(m->ram + page * VMM_PAGE_BYTES, bytes, VMM_PAGE_BYTES);
	m->missing[page] = false;
	m->page_stale[page] = true;
	check_page(t, page, "that came");
	ft_taker_placed(&t->taker, page);
	pages_arrived(t);
}

struct delivery {
	struct node *to;
	uint64_t line;
	unsigned page;
	uint8_t bytes[VMM_PAGE_BYTES];
};

static void on_page(void *ctx, uint64_t arg)
{
	struct delivery *d = ctx;

	(void)arg;
	d->to->flying--;
	if (d->to->engine && d->to->machine && d->to->engine->pages.taking &&
	    pages_line_good(d->to, d->line))
		place(d->to, d->page, d->bytes);
	free(d);
}

static void send_page(struct node *s, uint64_t pfn)
{
	struct world *w = s->world;
	struct delivery *d = malloc(sizeof *d);

	if (!d)
		abort();
	d->to = node_other(s);
	d->line = s->line;
	d->page = (unsigned)pfn;
	memcpy(d->bytes, s->machine->ram + pfn * VMM_PAGE_BYTES, VMM_PAGE_BYTES);
	/* Not only with the hosts' own link: that is rare, and then much else breaks, too. */
	if (!w->faults_over && world_chance(w, LINE_BREAKS))
		w->broken_line = s->line;
	if (w->mutant == MUTANT_STALE_PAGE && world_chance(w, 10))
		memcpy(d->bytes, s->machine->shadow[pfn], sizeof s->machine->shadow[pfn]);
	d->to->flying++;
	/* A crash of the receiver must not drop it: it is freed on arrival. */
	world_after(w, world_range(w, w->options.latency_us_min, w->options.latency_us_max) * US,
		    NULL, on_page, d, 0);
}

/* ---- the source ---- */

static bool gives(const struct node *s, uint64_t line)
{
	return s->engine && s->machine && s->giving && s->line == line;
}

/* The source has sent all that it owes. */
static void check_none_forgotten(struct node *t)
{
	if (t->engine && t->machine && t->engine->pages.taking && !t->flying &&
	    t->taker.missing.count)
		world_violation(t->world, "%s: %llu pages of its guest are forgotten", t->name,
				(unsigned long long)t->taker.missing.count);
}

static void on_push(void *ctx, uint64_t line)
{
	uint64_t pfns[PUSH_PAGES];
	struct node *s = ctx;
	size_t n = 0;

	if (!gives(s, line) || !pages_line_good(s, line))
		return;
	if (s->background)
		n = ft_giver_next(&s->giver, pfns, PUSH_PAGES);
	if (s->background && !n)
		check_none_forgotten(node_other(s));
	for (size_t i = 0; i < n; i++)
		send_page(s, pfns[i]);
	maps_push(s);
	world_after(s->world, world_range(s->world, 100, PUSH_US_MAX) * US, s, on_push, s, line);
}

struct question {
	struct node *to;
	uint64_t line, pfn;
};

static void on_ask(void *ctx, uint64_t arg)
{
	struct question *q = ctx;

	(void)arg;
	if (gives(q->to, q->line) && pages_line_good(q->to, q->line)) {
		if (!ft_giver_asked(&q->to->giver, q->pfn))
			world_violation(q->to->world, "page %llu was asked for",
					(unsigned long long)q->pfn);
		send_page(q->to, q->pfn);
	}
	free(q);
}

static void on_all(void *ctx, uint64_t line)
{
	struct node *s = ctx;

	if (gives(s, line) && pages_line_good(s, line))
		ft_engine_pages(s->engine, FT_PAGES_ALL, NULL);
}

/* ---- the target ---- */

static void ask(struct node *t, uint64_t pfn)
{
	struct world *w = t->world;
	struct question *q;

	if (!pages_line_good(t, t->line))
		return;
	q = malloc(sizeof *q);
	if (!q)
		abort();
	*q = (struct question){.to = source_of(t), .line = t->line, .pfn = pfn};
	world_after(w, world_range(w, w->options.latency_us_min, w->options.latency_us_max) * US,
		    NULL, on_ask, q, 0);
}

bool pages_touch(struct machine *m, unsigned page)
{
	struct node *t = m->node;

	if (!m->missing[page])
		return true;
	switch (ft_taker_fault(&t->taker, page)) {
	case FT_TAKER_ASK:
		ask(t, page);
		break;
	case FT_TAKER_WAIT:
		break;
	case FT_TAKER_ZERO:
		world_violation(t->world, "%s: page %u is missing, and nobody knows", t->name,
				page);
		break;
	}
	m->waits = page + 1;
	return false;
}

bool pages_waits(struct machine *m)
{
	if (m->waits && !m->missing[m->waits - 1])
		m->waits = 0;
	return m->waits;
}

static void on_complete(void *ctx, uint64_t session)
{
	struct node *t = ctx;
	struct world *w = t->world;
	uint64_t line = t->line;

	if (!t->engine || !t->engine->pages.taking || t->engine->pages.session != session)
		return;
	if (pages_line_good(t, line))
		world_after(w,
			    world_range(w, w->options.latency_us_min, w->options.latency_us_max) *
				    US,
			    source_of(t), on_all, source_of(t), line);
	t->done_session = session;
	w->followed++;
	ft_engine_pages(t->engine, FT_PAGES_ALL, NULL);
}

static void on_here(void *ctx, uint64_t session)
{
	struct node *t = ctx;

	if (t->engine && t->engine->pages.taking && t->engine->pages.session == session &&
	    !t->engine->pages.here)
		ft_engine_pages(t->engine, FT_PAGES_HERE, NULL);
}

void pages_arrived(struct node *t)
{
	uint64_t session =
		t->engine->pages.taking ? t->engine->pages.session : t->engine->standby.session;

	if (!t->taker.missing.count)
		world_after(t->world, 0, t, maps_all(t) ? on_complete : on_here, t, session);
}

/* ---- a connection is made ---- */

/* After a lost link the target says what it lacks, and for what it waits. */
static void exchange(struct node *s, struct node *t)
{
	uint8_t body[FT_MSG_BODY_SMALL], words[SIM_PAGES / 8 + 8];
	struct ft_bitmap told = {0};
	struct ft_msg msg;
	uint64_t at = 0;
	bool last = false;

	if (ft_bitmap_init(&told, SIM_PAGES))
		abort();
	while (ft_missing_next(&t->taker.missing, &at, body, words, &msg))
		if (ft_missing_take(&told, &msg, &last, NULL))
			world_violation(s->world, "MISSING is not understood");
	if (!last)
		world_violation(s->world, "MISSING has no end");
	if (s->world->mutant != MUTANT_LACK_UNTOLD)
		ft_giver_owe(&s->giver, &told);
	ft_bitmap_free(&told);
	maps_exchange(s, t);
	for (at = ft_taker_waiting(&t->taker, 0);
	     at < SIM_PAGES && s->world->mutant != MUTANT_WAIT_UNTOLD;
	     at = ft_taker_waiting(&t->taker, at + 1))
		ask(t, at);
}

static void on_connected(void *ctx, uint64_t session)
{
	struct node *s = ctx, *t = node_other(s);
	struct ft_err err = {.code = ECONNREFUSED, .text = "sim: nobody takes pages there"};
	struct world *w = s->world;
	bool before, after;

	if (!s->engine || !s->engine->pages.open || s->engine->pages.session != session)
		return;
	before = link_works(w) && !t->frozen && t->engine->standby.postcopy &&
		 t->engine->standby.session == session;
	after = link_works(w) && !t->frozen && t->engine->pages.taking &&
		t->engine->pages.session == session;
	if (link_works(w) && t->done_session == session) {
		ft_engine_pages(s->engine, FT_PAGES_ALL, NULL);
		return;
	}
	if (!before && !after) {
		ft_engine_pages(s->engine, FT_PAGES_CUT, &err);
		return;
	}
	/* An older one that is not known to be dead yet ends with this. */
	s->line = t->line = ++w->seq;
	if (after) {
		exchange(s, t);
		ft_engine_pages(t->engine, FT_PAGES_READY, NULL);
	}
	if (s->giving)
		world_after(w, 0, s, on_push, s, s->line);
	ft_engine_pages(s->engine, FT_PAGES_READY, NULL);
}

/* ---- the environment ---- */

static int env_open(void *ctx, uint64_t session, struct ft_err *err)
{
	struct node *s = ctx;

	if (!node_step(s))
		return ft_err_set(err, EINTR, "dying");
	if (!s->giving) {
		ft_giver_free(&s->giver);
		if (ft_giver_init(&s->giver, SIM_PAGES))
			abort();
	}
	world_after(s->world, world_range(s->world, 100, CONNECT_US_MAX) * US, s, on_connected, s,
		    session);
	return 0;
}

static void env_give(void *ctx, const struct ft_bitmap *missing)
{
	struct node *s = ctx;

	if (!node_step(s))
		return;
	ft_giver_owe(&s->giver, missing);
	s->giving = true;
	s->background = false;
	world_after(s->world, 0, s, on_push, s, s->line);
}

static void env_push(void *ctx, bool on)
{
	struct node *s = ctx;

	s->background = on;
	s->maps_owed |= !s->handed;
	s->handed = true;
}

static int env_prepare(void *ctx, uint64_t generation, struct ft_err *err)
{
	(void)generation;
	return node_step(ctx) ? 0 : ft_err_set(err, EINTR, "dying");
}

static void env_link(void *ctx, struct ft_link *link, bool urgent)
{
	(void)ctx;
	(void)urgent;
	link->ops->close(link); /* connections for pages are not links here */
}

static int env_begin(void *ctx, const struct ft_bitmap *missing, struct ft_err *err)
{
	struct node *t = ctx;
	struct machine *m = t->machine;

	if (!node_step(t))
		return ft_err_set(err, EINTR, "dying");
	ft_taker_free(&t->taker);
	if (ft_taker_init(&t->taker, missing))
		abort();
	for (unsigned i = 0; i < SIM_PAGES; i++) {
		m->missing[i] = ft_bitmap_test(missing, i);
		if (m->missing[i])
			memset(m->ram + i * VMM_PAGE_BYTES, 0xee, VMM_PAGE_BYTES);
		else
			check_page(t, i, "that is not missing");
	}
	maps_begin(t);
	/* After rounds there may be nothing to follow. */
	pages_arrived(t);
	return 0;
}

static void env_close(void *ctx)
{
	pages_free(ctx);
}

void pages_free(struct node *n)
{
	ft_taker_free(&n->taker);
	ft_giver_free(&n->giver);
	n->giving = n->background = n->handed = false;
	maps_end(n);
	n->line = 0;
}

void pages_env(struct ft_env_ops *e)
{
	e->pages_open = env_open;
	e->pages_give = env_give;
	e->pages_push = env_push;
	e->pages_prepare = env_prepare;
	e->pages_link = env_link;
	e->pages_begin = env_begin;
	e->pages_close = env_close;
}

/* ---- people ---- */

/* A guest moves instead of being protected. */
bool pages_migrate(struct node *n)
{
	struct world *w = n->world;
	struct ft_migrate how = {.postcopy = world_chance(w, 70),
				 .throttle = world_chance(w, 30),
				 .rounds = (unsigned)world_range(w, 0, 2)};
	struct ft_err err = {0};

	how.demand_only = how.postcopy && world_chance(w, 20);
	n->knows_peer = true;
	if (ft_engine_migrate(n->engine, &how, NULL, NULL, &err))
		return false;
	world_log(w, "%s: migrate%s", n->name, how.postcopy ? ", postcopy" : "");
	return true;
}

/* Over a good connection the guest does not wait for ever.
 */
static void check_progress(struct node *t, struct node *s)
{
	struct world *w = t->world;
	uint64_t missing = t->taker.missing.count;
	bool stuck = s->giving && !s->frozen && !t->frozen && t->machine && s->line == t->line &&
		     pages_line_good(t, t->line) && pages_waits(t->machine);

	if (!stuck || t->stuck.line != t->line || t->stuck.missing != missing) {
		t->stuck.line = stuck ? t->line : 0;
		t->stuck.missing = missing;
		t->stuck.since = w->now;
	} else if (w->now - t->stuck.since > STUCK_MAX_MS * MS) {
		world_violation(w, "%s: %llu pages of its guest do not come", t->name,
				(unsigned long long)missing);
	}
}

/* True: the guest's memory is still between two hosts, and this one is looked after. */
bool pages_look_after(struct node *n, struct node *o)
{
	struct world *w = n->world;
	struct ft_err err = {0};

	if (n->engine->pages.giving) {
		/* Nobody needs it any more: the target is gone, and its guest with it. */
		if (o->crashed || !(o->engine->pages.taking || o->done_session)) {
			world_log(w, "%s: an operator gives up the pages", n->name);
			node_crash(n, false);
			return true;
		}
		if (w->mutant == MUTANT_SOURCE_RESUMES && n->engine->pages.cut && n->machine)
			n->machine->running = true;
		if (n->engine->pages.cut &&
		    !ft_engine_recover(n->engine, w->faults_over ? false : world_chance(w, 20),
				       NULL, NULL, &err)) {
			world_log(w, "%s: recover", n->name);
		}
		return true;
	}
	if (!n->engine->pages.taking)
		return false;
	/* What it has not got is gone with the source. */
	if (o->crashed || (!o->frozen && !o->engine->pages.giving &&
			   o->engine->primary.phase != PRIMARY_HANDING &&
			   o->engine->primary.phase != PRIMARY_LOST)) {
		if (n->engine->pages.here) {
			if (!maps_all(n))
				maps_give_up(n);
			return false;
		}
		world_log(w, "%s: an operator ends a guest whose memory is lost", n->name);
		node_crash(n, false);
		return true;
	}
	check_progress(n, o);
	/* For ever would be too long for a run. */
	if (w->faults_over && node_other(n)->giving)
		node_other(n)->background = true;
	return false;
}
