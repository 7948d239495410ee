// SPDX-License-Identifier: Apache-2.0
// A guest that moves to another host, beside the installed QEMU's own migration of the same guest
// under the same load, in turn: from the request to the answer, and from the source's STOP to the
// target's RESUME, on both sides by the word of the QEMU that has the guest.
//
// A demanded page is timed from when the fault was heard of to when the page was in its place, on
// both sides. Floor: a round trip of a page over the same kind of connection, and UFFDIO_COPY.
#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "direct.h"
#include "ft/codec.h"
#include "mover.h"
#include "tls.h"
#include "vmm-glue/uffd.h"

#define SETTLE_MS  300
#define ROUNDS	   7
#define FLOOR_N	   100 /* before each move */
#define FLOOR_COPY 512 /* pages */

struct side {
	struct samples total, downtime, p50, p99;
};

struct pair_of_sides {
	struct side ours, qemus;
};

static void side_free(struct side *s)
{
	samples_free(&s->total);
	samples_free(&s->downtime);
	samples_free(&s->p50);
	samples_free(&s->p99);
}

static int one_ours(struct mover *m, const struct move *how, struct side *s, struct ft_err *err)
{
	struct move move = *how;
	int rc;

	move.multifd = move.traced = false;
	bench_idle_ms(SETTLE_MS);
	rc = mover_move(m, &move, err);
	if (rc)
		return rc;
	samples_add(&s->total, move.total_ms);
	samples_add(&s->downtime, move.downtime_ms);
	if (move.postcopy && move.faults) {
		samples_add(&s->p50, move.fault_p50_us);
		samples_add(&s->p99, move.fault_p99_us);
	}
	return 0;
}

static int one_qemus(struct rival *r, const struct move *how, struct side *s, struct ft_err *err)
{
	struct move move = *how;
	int rc;

	bench_idle_ms(SETTLE_MS);
	rc = rival_move(r, &move, err);
	if (!rc && move.traced && move.faults_us.n) {
		samples_add(&s->p50, samples_median(&move.faults_us));
		samples_add(&s->p99, samples_quantile(&move.faults_us, 0.99));
	} else if (!rc && !move.traced) {
		samples_add(&s->total, move.total_ms);
		samples_add(&s->downtime, move.downtime_ms);
	}
	samples_free(&move.faults_us);
	return rc;
}

/* ---- the floor of a demanded page ---- */

static int copy_floor(double *us, struct ft_err *err)
{
	static uint8_t page[FT_PAGE_BYTES];
	uint64_t bytes = FLOOR_COPY * FT_PAGE_BYTES, start;
	uint8_t *to = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int uffd = uffd_own(0, err), rc = uffd < 0 ? uffd : uffd_api(uffd, 0, err);

	if (!rc)
		rc = uffd_register_missing(uffd, (uintptr_t)to, bytes, err);
	start = bench_now_ns();
	for (unsigned i = 0; i < FLOOR_COPY && !rc; i++)
		rc = uffd_fill(uffd, (uintptr_t)to + (uint64_t)i * FT_PAGE_BYTES, page,
			       FT_PAGE_BYTES);
	*us = bench_ms_since(start) * 1e3 / FLOOR_COPY;
	munmap(to, bytes);
	if (uffd >= 0)
		close(uffd);
	return rc;
}

struct floor {
	struct tls_echo *echo;
	double copy_us;
	struct samples us;
};

static int floor_open(struct bench *b, struct floor *f, struct ft_err *err)
{
	int rc = copy_floor(&f->copy_us, err);

	return rc ? rc : tls_echo_start(b, &f->echo, err);
}

static void floor_close(struct floor *f)
{
	tls_echo_stop(f->echo);
	samples_free(&f->us);
}

/* In turn with the moves. Both ends sleep in poll(2) or read(2) between two pages, as they do in
 * earnest. */
static int floor_measure(struct floor *f, struct ft_err *err)
{
	double ms = 0;
	int rc = 0;

	for (unsigned i = 0; i < FLOOR_N && !rc; i++) {
		rc = tls_echo_round(f->echo, FT_PAGE_BYTES, &ms, err);
		if (!rc)
			samples_add(&f->us, ms * 1e3 + f->copy_us);
	}
	return rc;
}

/* ---- in turn ---- */

static int measure(struct mover *m, struct rival *r, const struct move *how, unsigned rounds,
		   struct floor *floor, struct pair_of_sides *s, struct ft_err *err)
{
	struct move traced = *how;
	int rc = 0;

	traced.traced = true;
	for (unsigned i = 0; i < rounds && !rc; i++) {
		rival_freeze(r, true);
		if (floor)
			rc = floor_measure(floor, err);
		if (!rc)
			rc = one_ours(m, how, &s->ours, err);
		rival_freeze(r, false);
		mover_freeze(m, true);
		if (!rc)
			rc = one_qemus(r, how, &s->qemus, err);
		/* Traces cost time, so what they are not for is measured without. */
		if (!rc && how->postcopy)
			rc = one_qemus(r, &traced, &s->qemus, err);
		mover_freeze(m, false);
	}
	return rc;
}

static int precopy(struct bench *b, struct mover *m, struct rival *r, const struct move *how,
		   const char *const names[2], const char *what, struct ft_err *err)
{
	struct pair_of_sides s = {0};
	int rc = measure(m, r, how, b->quick ? 1 : ROUNDS, NULL, &s, err);

	if (!rc) {
		bench_report_samples(names[0], "ms", &s.ours.total, &s.qemus.total, BENCH_AT_MOST,
				     0.8, what);
		bench_report_samples(names[1], "ms", &s.ours.downtime, &s.qemus.downtime,
				     BENCH_AT_MOST, 0.8, what);
	}
	side_free(&s.ours);
	side_free(&s.qemus);
	return rc;
}

/* ---- postcopy ---- */

struct names {
	const char *down, *p50, *p99, *floor, *what;
};

static int postcopy(struct bench *b, struct mover *m, struct rival *r, const struct move *how,
		    const struct names *names, struct ft_err *err)
{
	struct floor floor = {0};
	struct pair_of_sides s = {0};
	int rc = floor_open(b, &floor, err);

	if (!rc)
		rc = measure(m, r, how, b->quick ? 1 : ROUNDS, &floor, &s, err);
	if (!rc && (!s.ours.p50.n || !s.qemus.p50.n))
		rc = ft_err_set(err, ENODATA, "postcopy: no page was demanded");
	if (!rc) {
		bench_report_samples(names->down, "ms", &s.ours.downtime, &s.qemus.downtime,
				     BENCH_AT_MOST, 0.7, names->what);
		bench_report_samples(names->p50, "us", &s.ours.p50, &s.qemus.p50, BENCH_AT_MOST,
				     0.7, names->what);
		bench_report_samples(names->p99, "us", &s.ours.p99, &s.qemus.p99, BENCH_AT_MOST,
				     0.7, names->what);
		bench_report_samples(names->floor, "us", &s.ours.p50, &floor.us, BENCH_AT_MOST, 3,
				     "TLS round trip of 4 KiB, UFFDIO_COPY");
	}
	floor_close(&floor);
	side_free(&s.ours);
	side_free(&s.qemus);
	return rc;
}

/* ---- groups ---- */

int bench_movers_begin(struct bench *b, struct ft_err *err)
{
	int rc;

	if (b->mover)
		return 0;
	rc = mover_start(b, &(struct mover_kind){.tag = "mover"}, &b->mover, err);
	return rc ? rc : rival_start(b, &(struct mover_kind){.tag = "rival"}, &b->rival, err);
}

static int ready(struct bench *b, struct ft_err *err)
{
	int rc = guest_available(b, err);

	if (!rc)
		rc = bench_movers_begin(b, err);
	if (rc || b->movers_ready)
		return rc;
	rc = mover_ready(b->mover, err);
	if (!rc)
		rc = rival_ready(b->rival, err);
	b->movers_ready = !rc;
	return rc;
}

void bench_movers_end(struct bench *b)
{
	mover_end(b->mover);
	rival_end(b->rival);
}

int bench_migrate(struct bench *b, struct ft_err *err)
{
	static const char *const plain[] = {"precopy", "precopy-down"},
				 *const tls[] = {"precopy-tls", "precopy-tls-down"},
				 *const multifd[] = {"precopy-multi", "precopy-mu-down"};
	int rc = ready(b, err);

	if (!rc)
		rc = precopy(b, b->mover, b->rival, &(struct move){0}, plain, "plain TCP", err);
	if (!rc)
		rc = precopy(b, b->mover, b->rival, &(struct move){.tls = true}, tls, "TLS", err);
	if (!rc && !b->quick)
		rc = precopy(b, b->mover, b->rival, &(struct move){.multifd = true}, multifd,
			     "plain TCP; QEMU: 2 channels", err);
	return rc;
}

int bench_postcopy(struct bench *b, struct ft_err *err)
{
	static const struct names names = {"postcopy-down", "fault-p50", "fault-p99", "fault-floor",
					   "TLS; a demanded page"};
	int rc = ready(b, err);

	return rc ? rc
		  : postcopy(b, b->mover, b->rival, &(struct move){.postcopy = true, .tls = true},
			     &names, err);
}

/* A pair of its own, both on QEMU 10, whose demanded pages have a connection of their own. */
int bench_preempt(struct bench *b, struct ft_err *err)
{
	static const struct names names = {"preempt-down", "preempt-p50", "preempt-p99",
					   "preempt-floor", "QEMU 10, preempt, TLS"};
	const struct move how = {.postcopy = true, .tls = true, .preempt = true};
	struct mover *m = NULL;
	struct rival *r = NULL;
	int rc = guest_available(b, err);

	if (!rc && !*direct_qemu10()) {
		ft_err_set(err, ENOENT, "no QEMU 10: tests/guest/qemu10 unpacks it");
		rc = BENCH_SKIPPED;
	}
	mover_freeze(b->mover, true);
	rival_freeze(b->rival, true);
	if (!rc)
		rc = mover_start(b, &(struct mover_kind){"mover10-", direct_qemu10()}, &m, err);
	if (!rc)
		rc = rival_start(b, &(struct mover_kind){"rival10-", direct_qemu10()}, &r, err);
	if (!rc)
		rc = mover_ready(m, err);
	if (!rc)
		rc = rival_ready(r, err);
	if (!rc)
		rc = postcopy(b, m, r, &how, &names, err);
	mover_end(m);
	rival_end(r);
	mover_freeze(b->mover, false);
	rival_freeze(b->rival, false);
	return rc;
}
