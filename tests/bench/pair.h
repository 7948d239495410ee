/* SPDX-License-Identifier: Apache-2.0 */
/* Two hosts and a client, each a network namespace, with a cable between the hosts and a switch
 * that all are on; on each host an ft-agent of the same guest.
 *
 *      host 0 ---- 10.8.0.1 === 10.8.0.2 ---- host 1         client: 10.9.0.1
 *         \_____________ switch ________________/ \___________/
 */
#ifndef BENCH_PAIR_H
#define BENCH_PAIR_H

#include "bench.h"

#define PAIR_TAKEOVER_MS 300

struct pair;

/* Starts the agents, and the guest to boot; errors come from pair_up(). */
void pair_begin(struct bench *b);
/* Makes b->pair at its first call: guest booted, protected over TLS. Later: protected, idle.
 * BENCH_SKIPPED when there is no guest. */
int pair_up(struct bench *b, struct ft_err *err);
void pair_end(struct pair *p);	       /* accepts NULL */
int pair_client(const struct pair *p); /* the client's namespace */

/* Requests to the agent that has the guest. */
int pair_checkpoint(struct pair *p, struct ft_err *err);
int pair_protect(struct pair *p, struct ft_err *err);
int pair_cancel(struct pair *p, struct ft_err *err);

struct pair_status {
	double pause_ms, commit_ms;	      /* medians over the agent's window */
	double pause_last_ms, commit_last_ms; /* of the latest checkpoint */
	uint64_t raw, sent, checkpoints;
};
int pair_status(struct pair *p, struct pair_status *out, struct ft_err *err);

/* Types a line into the guest's shell. */
int pair_type(struct pair *p, const char *line, struct ft_err *err);

/* The agent that has the guest is killed. *at_ns: just before. */
int pair_strike(struct pair *p, uint64_t *at_ns, struct ft_err *err);
/* Its host loses both cables, then everything on it is killed, so that nobody hears of it. */
int pair_silence(struct pair *p, uint64_t *at_ns, struct ft_err *err);
/* After either: waits until the survivor is solo; the other host comes back as its standby. */
int pair_heal(struct pair *p, struct ft_err *err);

#endif
