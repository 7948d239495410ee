/* SPDX-License-Identifier: Apache-2.0 */
/* A userfaultfd of another process's address space, made without that process's help: one of its
 * threads is borrowed for two or three system calls with ptrace (inject_thread.h) and the
 * descriptor fetched with pidfd_getfd(2). Needs the right to ptrace it.
 *
 * While this runs, SIGCHLD may be sent to us (ptrace does that); nobody in this process may wait
 * for "any child". */
#ifndef VMM_GLUE_INJECT_H
#define VMM_GLUE_INJECT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "ft/err.h"

#define INJECT_MS_MAX 800 /* longest time that inject_uffd() waits for the process's threads */

struct inject_report {
	pid_t tid;	     /* which thread it was */
	uint64_t stopped_ns; /* how long it stood */
	int remote_fd;	     /* the descriptor's number over there, -1 when closed */
};

/* 0 if pidfd is of process pid and that lives, else -ESRCH. */
int inject_verify(pid_t pid, int pidfd, struct ft_err *err);
/* Has process pid execute userfaultfd(flags | O_CLOEXEC | O_NONBLOCK); *uffd is ours then, the
 * caller's to close. leave_open: its own copy stays open, so that a fault waits for ever instead of
 * going on with zeros when we die (missing mode). report may be NULL. Where there is a helper it
 * does this (helper.h), without those two. -ETIMEDOUT: none of its threads could be stopped in
 * time. Whatever happens, the process goes on as if nothing had been. Any thread. */
int inject_uffd(pid_t pid, int pidfd, int flags, bool leave_open, int *uffd,
		struct inject_report *report, struct ft_err *err);

#endif
