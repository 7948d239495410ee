/* SPDX-License-Identifier: Apache-2.0 */
/* One thread of another process, stopped with ptrace, that executes system calls for us and never
 * learns of it.
 *
 *     stop --> syscall ... --> go
 *
 * ptrace belongs to threads: all calls come from one thread of ours, and when that thread ends, the
 * kernel lets the other one go. They block until the other thread stops, which has no bound (it may
 * sleep in the kernel); inject.c deals with that. */
#ifndef VMM_GLUE_INJECT_THREAD_H
#define VMM_GLUE_INJECT_THREAD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

#include "ft/err.h"

struct inject_thread {
	pid_t pid, tid;
	uint64_t insn;		       /* address of a `syscall` instruction */
	uint64_t mask;		       /* its signal mask, while we block all signals */
	struct user_regs_struct saved; /* its registers, as it gets them back */
	uint64_t since_ns;	       /* CLOCK_MONOTONIC when it was told to stop */
	bool used; /* has executed something: must be brought back to where it was */
};

/* The address of a `syscall` instruction in the text of process pid: its vdso has one, unless the
 * kernel was told to do without. Touches nothing. */
int inject_thread_find_syscall(pid_t pid, uint64_t *insn, struct ft_err *err);
/* Stops thread tid of process pid. -EAGAIN: at a point where it must not be disturbed, try again.
 * On error it runs on, or will as soon as the calling thread ends. */
int inject_thread_stop(struct inject_thread *t, pid_t pid, pid_t tid, uint64_t insn,
		       struct ft_err *err);
/* Executes system call nr(args...); *result is what the kernel returned, -errno on its failure. */
int inject_thread_syscall(struct inject_thread *t, long nr, const long args[3], long *result,
			  struct ft_err *err);
/* Puts text where a system call can find it: on the thread's stack, below what it may use itself.
 * One at a time. *address: in the other process. */
#define INJECT_TEXT_MAX 64
int inject_thread_put(struct inject_thread *t, const char *text, long *address, struct ft_err *err);
/* Everything is put back and the thread runs on; a system call that stop() interrupted goes on as
 * if nothing had happened. */
int inject_thread_go(struct inject_thread *t, struct ft_err *err);

#endif
