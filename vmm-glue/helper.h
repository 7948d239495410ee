/* SPDX-License-Identifier: Apache-2.0 */
/* The helper: a process of the agent's own for the two things that the agent itself shall not be
 * able to do while it talks to the world:
 *   - execute a program (QEMU): the agent's system call filter would go with it, and an agent that
 *     was broken into could execute anything;
 *   - borrow a thread of QEMU's with ptrace (inject.h), which is a way into any process, and take
 *     copies of its tap interfaces' descriptors (tun.h), which needs the same right.
 * It is forked at the start, knows nothing of peers, guests and files, and ends with the agent.
 * What it executes runs without capabilities and cannot gain any.
 *
 * One per process: while there is one, process_spawn(), inject_uffd() and tun_fetch() go through
 * it, for a process that gave up its rights gave them up in every place. */
#ifndef VMM_GLUE_HELPER_H
#define VMM_GLUE_HELPER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "ft/err.h"

/* Start-up, single-threaded. keep: its capabilities (capabilities.h). */
int helper_start(uint64_t keep, struct ft_err *err);
bool helper_here(void);
/* Orderly end; what it started runs on. Nothing when there is none. */
void helper_stop(void);

/* Of those below: one thread at a time; -EPIPE: it was killed. */

/* argv is executed in a session of its own; its descriptors are /dev/null, log_fd twice, fds[0..n).
 * *pid and *pidfd are of the new process, which the helper reaps. <= 5 s */
int helper_spawn(char *const argv[], int log_fd, const int *fds, unsigned fds_n, pid_t *pid,
		 int *pidfd, struct ft_err *err);
/* The wait status of one that helper_spawn() gave and that has ended, as its pidfd says. -ECHILD:
 * it has not, or too long ago. <= 5 s */
int helper_status(pid_t pid, int *status, struct ft_err *err);
/* As inject_uffd(), without a report. */
int helper_uffd(pid_t pid, int pidfd, int flags, bool leave_open, int *uffd, struct ft_err *err);
/* As tun_fetch(). <= 1 s */
int helper_tun(pid_t pid, int pidfd, int number, int *fd, struct ft_err *err);

#endif
