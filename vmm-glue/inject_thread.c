// SPDX-License-Identifier: Apache-2.0
// The thread must come back exactly as it was. Four things could go wrong, and each has its answer
// here:
//  - The stop interrupts a system call. The kernel has then put -ERESTART* into rax and acts on it
//  when it leaves the signal path: nothing
//    must be lost on the way there. So the thread is detached out of a PTRACE_INTERRUPT stop, which
//    is inside the signal path, and never out of the stop after our own system call, which is not.
//    A few system calls give -EINTR where they could restart; they get the code of those that do
//    (restart_by_hand).
//  - A signal arrives while it works for us. All signals are blocked meanwhile; they are delivered
//  when the mask is put back.
//  - It is inside a restartable sequence (rseq). The kernel would see a foreign instruction
//  pointer, and forget to abort the sequence. Such
//    a thread is let go at once and asked again.
//  - A seccomp filter kills it for our call. Filters are suspended meanwhile; where we may not (it
//  takes CAP_SYS_ADMIN, and no filter of our own) we do not touch it, unless its filter is known:
//  QEMU's own (-sandbox) lists what it forbids, and our two calls are not among that.
#include "vmm-glue/inject_thread.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef __x86_64__
#error "system calls are injected on x86-64 only: registers, instruction and restart protocol differ elsewhere"
#endif

#define CS_USER_64 0x33 // arch/x86/include/asm/segment.h: __USER_CS
#define ERESTARTNOHAND                                                                             \
	514 // include/linux/errno.h: restart if no handler ran, else EINTR. Never seen by programs
#define STOPS_MAX	  256 // stops for other reasons (signals) before we give up
#define TEXT_SEARCH_BYTES (4u << 20)
#define CMDLINE_MAX	  (64u << 10) // of QEMU's command line

// System calls that may return -EINTR after any stop, though nothing has happened and they can
// simply be called again: signal(7), "Interruption of system calls and library functions by stop
// signals". Among them is all I/O on sockets with a time-out.
static const long restart_by_hand[] = {
	SYS_epoll_wait, SYS_epoll_pwait,  SYS_epoll_pwait2,  SYS_rt_sigtimedwait, SYS_semop,
	SYS_semtimedop, SYS_io_getevents, SYS_io_pgetevents, SYS_io_uring_enter,  SYS_read,
	SYS_readv,	SYS_write,	  SYS_writev,	     SYS_recvfrom,	  SYS_recvmsg,
	SYS_sendto,	SYS_sendmsg,	  SYS_accept,	     SYS_accept4,
};

static int fail(const struct inject_thread *t, int code, const char *what, struct ft_err *err)
{
	return ft_err_set(err, code, "thread %d of process %d: %s: %s", t->tid, t->pid, what,
			  strerror(code));
}

// One line "NAME:\tNUMBER" of the thread's status file; -1 if there is none.
static long status_number(const struct inject_thread *t, const char *name)
{
	char path[64], line[256];
	size_t len = strlen(name);
	long number = -1;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/task/%d/status", t->pid, t->tid);
	f = fopen(path, "re");
	if (!f)
		return -1;
	while (number < 0 && fgets(line, sizeof line, f))
		if (!strncmp(line, name, len) && line[len] == ':')
			(void)sscanf(line + len + 1, "%ld", &number);
	fclose(f);
	return number;
}

// The address of a `syscall` instruction (0f 05) in [start, end), or 0. Any two such bytes will do:
// we jump right there, and stop before whatever comes next.
static uint64_t search_text(int mem, uint64_t start, uint64_t end)
{
	uint8_t text[4096];

	for (uint64_t at = start; at < end && at - start < TEXT_SEARCH_BYTES;) {
		ssize_t n = pread(mem, text, sizeof text, (off_t)at);
		const uint8_t *found;

		if (n < 2)
			return 0;
		found = memmem(text, (size_t)n, "\x0f\x05", 2);
		if (found)
			return at + (uint64_t)(found - text);
		at += (uint64_t)n - 1; // the pair may lie across two blocks
	}
	return 0;
}

static uint64_t search_maps(FILE *maps, int mem, bool vdso)
{
	char line[512], perms[5];
	uint64_t start, end, found = 0;

	rewind(maps);
	while (!found && fgets(line, sizeof line, maps)) {
		bool text = vdso ? !!strstr(line, "[vdso]") : !strchr(line, '[');

		if (text && sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s", &start, &end, perms) == 3 &&
		    perms[2] == 'x')
			found = search_text(mem, start, end);
	}
	return found;
}

int inject_thread_find_syscall(pid_t pid, uint64_t *insn, struct ft_err *err)
{
	char path[64];
	FILE *maps;
	int mem;

	*insn = 0;
	snprintf(path, sizeof path, "/proc/%d/mem", pid);
	mem = open(path, O_RDONLY | O_CLOEXEC);
	if (mem < 0)
		return ft_err_set(err, errno, "%s: %s", path, strerror(errno));
	snprintf(path, sizeof path, "/proc/%d/maps", pid);
	maps = fopen(path, "re");
	if (maps) {
		*insn = search_maps(maps, mem, true);
		if (!*insn)
			*insn = search_maps(maps, mem, false);
		fclose(maps);
	}
	close(mem);
	return *insn ? 0
		     : ft_err_set(err, ENOTSUP, "process %d: no syscall instruction in its text",
				  pid);
}

// Waits for any stop; -ESRCH when the thread ended instead.
static int wait_stop(const struct inject_thread *t, int *status, struct ft_err *err)
{
	while (waitpid(t->tid, status, __WALL) < 0)
		if (errno != EINTR)
			return fail(t, ESRCH, "wait", err);
	if (!WIFSTOPPED(*status))
		return fail(t, ESRCH, "wait", err);
	return 0;
}

// Waits for the stop that PTRACE_INTERRUPT asked for. Signals that were on their way are passed on.
static int wait_interrupted(const struct inject_thread *t, struct ft_err *err)
{
	for (int i = 0; i < STOPS_MAX; i++) {
		int status, ret = wait_stop(t, &status, err);

		if (ret)
			return ret;
		if (status >> 16 == PTRACE_EVENT_STOP)
			return 0;
		if (ptrace(PTRACE_CONT, t->tid, 0, (long)WSTOPSIG(status)))
			return fail(t, errno, "continue", err);
	}
	return fail(t, EBUSY, "stop: nothing but signals", err);
}

// Runs to the next entry into or exit from a system call.
static int wait_syscall(const struct inject_thread *t, struct ft_err *err)
{
	for (int i = 0; i < STOPS_MAX; i++) {
		int status, ret;

		if (ptrace(PTRACE_SYSCALL, t->tid, 0, 0))
			return fail(t, errno, "continue", err);
		ret = wait_stop(t, &status, err);
		if (ret)
			return ret;
		if (WSTOPSIG(status) == (SIGTRAP | 0x80))
			return 0;
		if (status >> 16 != PTRACE_EVENT_STOP) // SIGSTOP or SIGCONT from outside may pass;
						       // all else is blocked
			return ft_err_set(
				err, EIO,
				"thread %d of process %d: signal %d instead of a system call",
				t->tid, t->pid, WSTOPSIG(status));
	}
	return fail(t, EBUSY, "system call: nothing but stops", err);
}

// Whether the thread was preempted while a restartable sequence is announced (linux/rseq.h: struct
// rseq.rseq_cs, offset 8).
static bool in_rseq(const struct inject_thread *t)
{
	struct __ptrace_rseq_configuration config;
	uint64_t cs = 0;

	if ((long)t->saved.orig_rax >= 0) // system calls are not allowed inside one
		return false;
	if (ptrace(PTRACE_GET_RSEQ_CONFIGURATION, t->tid, sizeof config, &config) < 0 ||
	    !config.rseq_abi_pointer)
		return false;
	struct iovec local = {&cs, sizeof cs},
		     remote = {(void *)(uintptr_t)(config.rseq_abi_pointer + 8), sizeof cs};

	return process_vm_readv(t->pid, &local, 1, &remote, 1, 0) != sizeof cs || cs;
}

static void restart_instead_of_eintr(struct user_regs_struct *regs)
{
	if ((long)regs->rax != -EINTR)
		return;
	for (size_t i = 0; i < sizeof restart_by_hand / sizeof *restart_by_hand; i++)
		if ((long)regs->orig_rax == restart_by_hand[i])
			regs->rax = (unsigned long long)-ERESTARTNOHAND;
}

/* A QEMU under -sandbox whose filters are its own one and at most those that we have, too: whoever
 * put them on both of us lets both make a userfaultfd, which the tracker has tried. */
static bool has_qemus_filter(const struct inject_thread *t)
{
	const struct inject_thread us = {.pid = getpid(), .tid = (pid_t)syscall(SYS_gettid)};
	char path[64], text[CMDLINE_MAX];
	bool sandbox = false;
	ssize_t n;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/cmdline", t->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? 0 : read(fd, text, sizeof text);
	if (fd >= 0)
		close(fd);
	if (n > 0)
		sandbox = memmem(text, (size_t)n, "\0-sandbox\0on", 12) != NULL;
	return sandbox &&
	       status_number(t, "Seccomp_filters") <= status_number(&us, "Seccomp_filters") + 1;
}

static int attach(struct inject_thread *t, struct ft_err *err)
{
	long options = PTRACE_O_TRACESYSGOOD, suspend = PTRACE_O_SUSPEND_SECCOMP;
	char path[64];
	int r;

	if (status_number(t, "Seccomp") > 0)
		options |= suspend;
	r = ptrace(PTRACE_SEIZE, t->tid, 0, options);
	if (r && errno == EPERM && options & suspend && has_qemus_filter(t))
		r = ptrace(PTRACE_SEIZE, t->tid, 0, options & ~suspend);
	if (r)
		return fail(t, errno,
			    options & PTRACE_O_SUSPEND_SECCOMP
				    ? "ptrace and suspend its seccomp filter"
				    : "ptrace",
			    err);
	// Traced threads keep their number, so what is true now stays true.
	snprintf(path, sizeof path, "/proc/%d/task/%d", t->pid, t->tid);
	if (access(path, F_OK))
		return fail(t, ESRCH, "ptrace", err);
	return 0;
}

int inject_thread_stop(struct inject_thread *t, pid_t pid, pid_t tid, uint64_t insn,
		       struct ft_err *err)
{
	uint64_t all = ~0ull;
	struct timespec ts;
	int ret;

	*t = (struct inject_thread){.pid = pid, .tid = tid, .insn = insn};
	ret = attach(t, err);
	if (ret)
		return ret;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	t->since_ns = (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
	if (ptrace(PTRACE_INTERRUPT, tid, 0, 0))
		return fail(t, errno, "interrupt", err);
	ret = wait_interrupted(t, err);
	if (ret)
		return ret;
	if (ptrace(PTRACE_GETREGS, tid, 0, &t->saved) ||
	    ptrace(PTRACE_GETSIGMASK, tid, sizeof t->mask, &t->mask))
		ret = fail(t, errno, "read registers", err);
	else if (t->saved.cs != CS_USER_64)
		ret = fail(t, ENOTSUP, "32-bit code", err);
	else if (in_rseq(t))
		ret = fail(t, EAGAIN, "restartable sequence", err);
	else if (ptrace(PTRACE_SETSIGMASK, tid, sizeof all, &all))
		ret = fail(t, errno, "block signals", err);
	if (ret)
		(void)ptrace(PTRACE_DETACH, tid, 0, 0);
	else
		restart_instead_of_eintr(&t->saved);
	return ret;
}

int inject_thread_syscall(struct inject_thread *t, long nr, long a0, long *result,
			  struct ft_err *err)
{
	struct user_regs_struct regs = t->saved;
	int ret;

	regs.rip = t->insn;
	regs.rax = (unsigned long long)nr;
	regs.rdi = (unsigned long long)a0;
	regs.rsi = regs.rdx = regs.r10 = regs.r8 = regs.r9 = 0;
	regs.orig_rax = (unsigned long long)-1; // "not in a system call": the kernel restarts
						// nothing on the way to ours
	t->used = true;
	if (ptrace(PTRACE_SETREGS, t->tid, 0, &regs))
		return fail(t, errno, "write registers", err);
	ret = wait_syscall(t, err);
	if (!ret)
		ret = wait_syscall(t, err);
	if (ret)
		return ret;
	if (ptrace(PTRACE_GETREGS, t->tid, 0, &regs))
		return fail(t, errno, "read registers", err);
	if ((long)regs.orig_rax != nr)
		return fail(t, EIO, "system call", err);
	*result = (long)regs.rax;
	return 0;
}

int inject_thread_go(struct inject_thread *t, struct ft_err *err)
{
	if (t->used) {
		int ret;

		if (ptrace(PTRACE_INTERRUPT, t->tid, 0, 0) || ptrace(PTRACE_CONT, t->tid, 0, 0))
			return fail(t, errno, "interrupt", err);
		ret = wait_interrupted(t, err);
		if (ret)
			return ret;
	}
	if (ptrace(PTRACE_SETREGS, t->tid, 0, &t->saved) ||
	    ptrace(PTRACE_SETSIGMASK, t->tid, sizeof t->mask, &t->mask) ||
	    ptrace(PTRACE_DETACH, t->tid, 0, 0))
		return fail(t, errno, "put back", err);
	return 0;
}
