// SPDX-License-Identifier: Apache-2.0
// The standby learns that an agent died from the end of its connections. But a dying process gives
// up its memory first and its descriptors after that, and to unmap a guest's RAM and staging takes
// some 10 ms, and 60 ms for 1 GiB: all that time the standby waits for a word that is already
// certain. So a second process shares the memory (CLONE_VM) and nothing else; the agent is then not
// the last one who uses it, its sockets are closed at once, and the memory is freed when this
// process goes, which it does as soon as the agent is dead.
//
// It also shares the thread-local storage of the thread that made it, errno among it. So it makes
// system calls only, through syscall(2), which is no cancellation point and writes errno only when
// a call fails; those here do not. All signals are blocked.
//
// Whoever got hold of the agent's memory has this process's stack too. So it has no more rights
// than the agent, and the strictest filter there is: read(2) and exit(2), which is all that it
// needs, for the end of a pipe tells it that the agent is dead.
#include "tools/agent/afterlife.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define STACK_BYTES (32u << 10)
#define FD_LAST	    (~0u)

struct afterlife {
	pid_t pid;
	int ends[2]; // a pipe: read there, held open here
	_Alignas(16) uint8_t stack[STACK_BYTES];
};

// No sanitizer knows this stack, nor that errno has two users.
__attribute__((no_sanitize("address", "thread", "undefined"))) static int outlive(void *arg)
{
	struct afterlife *l = arg;
	int agent = l->ends[0];
	char none;

	(void)syscall(SYS_setsid);
	(void)syscall(SYS_prctl, PR_SET_NAME, "ft-afterlife", 0, 0, 0);
	if (agent > 0)
		(void)syscall(SYS_close_range, 0, agent - 1, 0);
	(void)syscall(SYS_close_range, agent + 1, FD_LAST, 0);
	(void)syscall(SYS_prctl, PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0);
	while (syscall(SYS_read, agent, &none, sizeof none) > 0)
		;
	syscall(SYS_exit, 0);
	return 0;
}

int afterlife_start(struct afterlife **out, struct ft_err *err)
{
	struct afterlife *l = calloc(1, sizeof *l);
	sigset_t all, before;
	int saved;

	if (!l)
		return ft_err_set(err, ENOMEM, "afterlife: start: out of memory");
	if (pipe2(l->ends, O_CLOEXEC)) {
		saved = errno;
		free(l);
		return ft_err_set(err, saved, "afterlife: start: %s", strerror(saved));
	}
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &before);
	l->pid = clone(outlive, l->stack + STACK_BYTES, CLONE_VM | SIGCHLD, l);
	saved = errno;
	sigprocmask(SIG_SETMASK, &before, NULL);
	close(l->ends[0]);
	if (l->pid > 0) {
		*out = l;
		return 0;
	}
	close(l->ends[1]);
	free(l);
	return ft_err_set(err, saved, "afterlife: start: %s", strerror(saved));
}

void afterlife_stop(struct afterlife *l)
{
	if (!l)
		return;
	close(l->ends[1]);
	while (waitpid(l->pid, NULL, 0) < 0 && errno == EINTR)
		;
	free(l);
}
