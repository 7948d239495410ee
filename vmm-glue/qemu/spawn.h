/* SPDX-License-Identifier: Apache-2.0 */
/* A QEMU process: started in a session of its own, so that it outlives us and hears no terminal;
 * its standard error goes to a log. */
#ifndef VMM_GLUE_QEMU_SPAWN_H
#define VMM_GLUE_QEMU_SPAWN_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "ft/err.h"

#define SPAWN_FDS_MAX 12
#define SPAWN_FD_FIRST                                                                             \
	3 /* the child knows fds[i] as SPAWN_FD_FIRST + i, and no other descriptor of ours */

struct process {
	pid_t pid;
	int pidfd;
	bool child; /* ours to reap */
};

/* log: appended to. Through the helper where there is one (helper.h). Returns when the program has
 * been executed, not when it is ready. */
int process_spawn(struct process *p, char *const argv[], const int *fds, unsigned fds_n,
		  const char *log, struct ft_err *err);
/* The same, never through the helper (helper.h), with the log as a descriptor. */
int process_spawn_here(struct process *p, char *const argv[], const int *fds, unsigned fds_n,
		       int log_fd, struct ft_err *err);
/* A process that somebody else started. */
int process_open(struct process *p, pid_t pid, struct ft_err *err);
/* Has it ended? Waits at most within_ms. Reaps it. */
bool process_ended(struct process *p, unsigned within_ms);
/* The wait status of one that was spawned and has ended. -ECHILD: nobody can tell. */
int process_status(struct process *p, int *status);
void process_kill(struct process *p);
/* Forgets it; it runs on. */
void process_close(struct process *p);

/* The last line of a log that says something, without the program's name in front; "" when there is
 * none. */
void process_last_words(const char *log, char *line, size_t room);

#endif
