// SPDX-License-Identifier: Apache-2.0
// A guest that moves to another host, beside the installed QEMU's own migration of the same guest
// under the same load, in turn. Ours: from the request to the answer, and from the stop at the
// source to the target's word that it runs, which is later than that it runs. QEMU's: likewise, and
// from STOP to RESUME.
//
// A demanded page is timed from when the fault was heard of to when the page was in its place, on
// both sides. Floor: a round trip of a page over the same kind of connection, and UFFDIO_COPY.
#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ft/codec.h"
#include "mover.h"
#include "tls.h"
#include "vmm-glue/uffd.h"

#define SETTLE_MS  300
#define FLOOR_N	   400
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

static int measure(struct mover *m, struct rival *r, const struct move *how, unsigned rounds,
		   struct pair_of_sides *s, struct ft_err *err)
{
	struct move traced = *how;
	int rc = 0;

	traced.traced = true;
	for (unsigned i = 0; i < rounds && !rc; i++) {
		rival_freeze(r, true);
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
	int rc = measure(m, r, how, b->quick ? 1 : 7, &s, err);

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

/* Both ends sleep in poll(2) or read(2) between two pages, as they do in earnest. */
static int floor_us(struct bench *b, struct samples *floor, struct ft_err *err)
{
	struct tls_echo *echo = NULL;
	double copy_us = 0, ms = 0;
	int rc = copy_floor(&copy_us, err);

	if (!rc)
		rc = tls_echo_start(b, &echo, err);
	for (unsigned i = 0; i < FLOOR_N && !rc; i++) {
		rc = tls_echo_round(echo, FT_PAGE_BYTES, &ms, err);
		if (!rc)
			samples_add(floor, ms * 1e3 + copy_us);
	}
	tls_echo_stop(echo);
	return rc;
}

static int postcopy(struct bench *b, struct mover *m, struct rival *r, struct ft_err *err)
{
	struct move how = {.postcopy = true, .tls = true};
	struct samples floor = {0};
	struct pair_of_sides s = {0};
	int rc = floor_us(b, &floor, err);

	if (!rc)
		rc = measure(m, r, &how, b->quick ? 1 : 7, &s, err);
	if (!rc && (!s.ours.p50.n || !s.qemus.p50.n))
		rc = ft_err_set(err, ENODATA, "postcopy: no page was demanded");
	if (!rc) {
		bench_report_samples("postcopy-down", "ms", &s.ours.downtime, &s.qemus.downtime,
				     BENCH_AT_MOST, 0.7, "TLS");
		bench_report_samples("fault-p50", "us", &s.ours.p50, &s.qemus.p50, BENCH_AT_MOST,
				     0.7, "TLS; a demanded page");
		bench_report_samples("fault-p99", "us", &s.ours.p99, &s.qemus.p99, BENCH_AT_MOST,
				     0.7, "TLS; a demanded page");
		bench_report_samples("fault-floor", "us", &s.ours.p50, &floor, BENCH_AT_MOST, 3,
				     "TLS round trip of 4 KiB, UFFDIO_COPY");
	}
	samples_free(&floor);
	side_free(&s.ours);
	side_free(&s.qemus);
	return rc;
}

/* ---- both groups ---- */

int bench_movers_begin(struct bench *b, struct ft_err *err)
{
	int rc;

	if (b->mover)
		return 0;
	rc = mover_start(b, &b->mover, err);
	return rc ? rc : rival_start(b, &b->rival, err);
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
	int rc = ready(b, err);

	return rc ? rc : postcopy(b, b->mover, b->rival, err);
}
