/* SPDX-License-Identifier: Apache-2.0 */
/* One guest that moves between two ft-agents on this machine, and the same guest that moves between
 * two QEMUs by their own migration. Both over loopback TCP. */
#ifndef BENCH_MOVER_H
#define BENCH_MOVER_H

#include "bench.h"

#define MOVER_LOAD	  "payload dirty 1000 64" /* one word in each of so many pages a second */
#define MOVER_FILL_MIB	  80			  /* of memory that nothing can pack */
#define MOVER_DOWNTIME_MS 30			  /* what either may plan with */

struct move {
	/* in */
	bool tls, postcopy;
	bool multifd, preempt, traced; /* QEMU's only */
	/* out */
	double total_ms, downtime_ms;
	struct samples faults_us; /* QEMU's, traced */
	double fault_p50_us, fault_p99_us;
	uint64_t faults;
};

/* Which QEMU; more than one pair may be there. */
struct mover_kind {
	const char *tag;    /* of files */
	const char *binary; /* NULL: the installed one */
};

struct mover;
/* Boots the guest; mover_ready() when it has its load. */
int mover_start(struct bench *b, const struct mover_kind *kind, struct mover **out,
		struct ft_err *err);
int mover_ready(struct mover *m, struct ft_err *err);
int mover_move(struct mover *m, struct move *move, struct ft_err *err);
/* Its guest stands still, so that it does not disturb the other one. */
void mover_freeze(struct mover *m, bool on); /* accepts NULL */
void mover_end(struct mover *m);	     /* accepts NULL */

struct rival;
int rival_start(struct bench *b, const struct mover_kind *kind, struct rival **out,
		struct ft_err *err);
int rival_ready(struct rival *r, struct ft_err *err);
int rival_move(struct rival *r, struct move *move, struct ft_err *err);
void rival_freeze(struct rival *r, bool on); /* accepts NULL */
void rival_end(struct rival *r);	     /* accepts NULL */

/* The guest's shell, behind a unix socket: waits until it has filled its memory and started its
 * load. */
int mover_load(const char *tty, const char *console, struct ft_err *err);

#endif
