/* SPDX-License-Identifier: Apache-2.0 */
/* One ft-agent of a guest and its files: the program that operators run, asked by the same
 * requests.
 */
#ifndef BENCH_HOST_H
#define BENCH_HOST_H

#include <sys/types.h>

#include "bench.h"
#include "tools/ctl/ctl.h"

struct host {
	struct bench *b;
	const char *guest; /* its name; a static string */
	unsigned number;
	char id[16];
	int ns; /* the network namespace that it runs in, -1: ours */
	char run_dir[BENCH_PATH_MAX];
	char file[BENCH_PATH_MAX + 16]; /* guest file; what differs between hosts is in it */
	char console[BENCH_PATH_MAX + 16], tty[BENCH_PATH_MAX + 16];
	pid_t agent; /* 0: none */
};

/* Names the files and makes the folder; h->number is the caller's. The id is `kind` and that
 * number; folder: in b->dir. */
int host_place(struct host *h, struct bench *b, const char *guest, const char *kind,
	       const char *folder, struct ft_err *err);
/* Starts the agent and waits until it is a standby (incoming: its URI) or solo (NULL). */
int host_start(struct host *h, const char *incoming, struct ft_err *err);
/* A good answer is the caller's to free; one that says no is an error. */
int host_ask(struct host *h, Ctl__Request *request, Ctl__Reply **reply, unsigned within_ms,
	     struct ft_err *err);
int host_wait(struct host *h, const char *state, struct ft_err *err);
/* Kills its agent, if there is one. */
void host_kill(struct host *h);

#endif
