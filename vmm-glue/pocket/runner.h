/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a machine: a thread that executes step after step and sleeps in ppoll() when there is
 * nothing to do. It can be paused between any two steps; whoever has paused it owns the machine
 * until it is let go. A manual machine has no thread and steps when told.
 *
 * The virtual clock follows the host's while the machine runs and stands still while it is paused.
 */
#ifndef VMM_GLUE_POCKET_RUNNER_H
#define VMM_GLUE_POCKET_RUNNER_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm-glue/pocket/io.h"
#include "vmm-glue/pocket/machine.h"

struct runner {
	/* set before start, then read-only */
	struct machine *machine;   /* owned by the thread while it is busy, by the one who paused it
				      while it is paused */
	struct pocket_io *io;	   /* likewise, while the thread is parked */
	void (*halted)(void *ctx); /* on the thread, once: the guest gave up */
	void *ctx;
	bool manual;
	int wake_fd;
	/* under lock */
	pthread_mutex_t lock;
	pthread_cond_t change;
	bool paused, ended;
	bool busy;   /* the thread is in a step; it never becomes busy while paused */
	bool parked; /* the thread waits here and not in ppoll() */
	/* owner of the machine */
	uint64_t clock_ns; /* host time up to which virtual time has run */
	bool clock_stale;  /* take the next host time as it is: the machine was paused */
	bool told;	   /* halted() was called */
	pthread_t thread;
	bool has_thread;
};

int runner_init(struct runner *r, struct ft_err *err);
void runner_free(struct runner *r);
/* The machine runs from now on. */
int runner_start(struct runner *r, struct ft_err *err);
/* Returns between two steps; -ETIMEDOUT: the step did not end in time (a disk that does not
 * answer), the machine runs on. Paused already: 0. */
int runner_pause(struct runner *r, unsigned within_ms);
/* Besides, the thread touches no descriptor. */
int runner_park(struct runner *r, unsigned within_ms);
void runner_go(struct runner *r);
/* Ends the thread after the step that it is in. Idempotent. */
void runner_end(struct runner *r);
/* Manual. */
bool runner_step(struct runner *r, uint64_t now_ns, uint64_t *wake_ns);

#endif
