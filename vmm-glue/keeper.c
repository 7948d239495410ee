// SPDX-License-Identifier: Apache-2.0
// Two processes share a page: the agent writes what it is doing, the keeper reads it when something
// happens.
//
// The keeper needs no polling for a hold to be seen in time. It looks when a hold could be overdue
// at the earliest: hold_max after it last looked if there was no hold, for one that begins later is
// overdue later; and hold_max after the begin of the one it saw. Everything else it learns from
// descriptors: the agent's pidfd (death, at once) and a socket for the two requests that need an
// answer. The end of that socket means nothing, since a dying process closes its descriptors before
// it is dead.
//
// It is a child in a session of its own with all signals blocked, so that what stops the agent (a
// terminal, a service manager that signals every process of the unit) does not stop it first.
// Between fork and _exit it calls only async-signal-safe functions.
#include "vmm-glue/keeper.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "vmm-glue/capabilities.h"

#define ANSWER_MS_MAX 100  // to keeper_watch() and keeper_stop()
#define START_MS_MAX  1000 // fork to first answer, on a machine that is busy booting guests
#define LOOK_AGAIN_MS 5
#define FD_LAST	      (~0u)

// Answered by the same message; the answer to STOP is that the keeper ends.
struct message {
	enum { MESSAGE_READY, MESSAGE_WATCH, MESSAGE_FORGET, MESSAGE_STOP } what;
	uint32_t serial; // tells an answer from a late one to a request that was given up
};

struct page {
	_Atomic uint64_t hold_since_ns; // CLOCK_MONOTONIC, 0: no hold
	_Atomic uint64_t deadline_ns;	// CLOCK_BOOTTIME, 0: none
	_Atomic bool is_protected;
};

struct keeper {
	struct page *page;
	uint64_t hold_max_ns;
	int socket;
	uint32_t serial; // of the last message
	int pidfd;	 // the keeper process's
	pid_t pid;
};

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

// ---- messages, perhaps with a descriptor ----

static int send_message(int socket, struct message message, int fd)
{
	struct iovec iov = {&message, sizeof message};
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;

	if (fd >= 0) {
		struct cmsghdr *c;

		msg.msg_control = control.bytes;
		msg.msg_controllen = sizeof control.bytes;
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof fd);
		memcpy(CMSG_DATA(c), &fd, sizeof fd);
	}
	do
		n = sendmsg(socket, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	return n == sizeof message ? 0 : -errno;
}

// False at the end; *fd is -1 when none came along.
static bool receive_message(int socket, struct message *message, int *fd)
{
	struct iovec iov = {message, sizeof *message};
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control.bytes,
			     .msg_controllen = sizeof control.bytes};
	struct cmsghdr *c;

	*fd = -1;
	if (recvmsg(socket, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) != sizeof *message)
		return false;
	c = CMSG_FIRSTHDR(&msg);
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
	    c->cmsg_len == CMSG_LEN(sizeof *fd))
		memcpy(fd, CMSG_DATA(c), sizeof *fd);
	return true;
}

// ---- the keeper process ----

struct watch {
	const struct page *page;
	uint64_t hold_max_ns;
	int agent, vmm; // pidfds; vmm -1: none
	int stat;	// the agent's /proc/PID/stat
	int socket;	// -1 after its end
};

// The agent's standard error is the only place left to say why something died. Nobody waits for it:
// it comes after the deed.
static void say(const char *text)
{
	(void)!write(STDERR_FILENO, text, strlen(text));
}

static void close_others(const int *keep, unsigned n)
{
	unsigned from = STDERR_FILENO + 1;

	(void)close(STDIN_FILENO);
	(void)close(STDOUT_FILENO);
	for (;;) {
		unsigned next = FD_LAST;

		for (unsigned i = 0; i < n; i++)
			if ((unsigned)keep[i] >= from && (unsigned)keep[i] < next)
				next = (unsigned)keep[i];
		if (next > from)
			(void)close_range(from, next == FD_LAST ? FD_LAST : next - 1, 0);
		if (next == FD_LAST)
			return;
		from = next + 1;
	}
}

static void handle_message(struct watch *w)
{
	struct message message;
	int fd;

	if (!receive_message(w->socket, &message, &fd)) {
		close(w->socket);
		w->socket = -1;
		return;
	}
	if (message.what == MESSAGE_STOP)
		_exit(0);
	if (w->vmm >= 0)
		close(w->vmm);
	w->vmm = fd; // none when it is to be forgotten
	(void)send_message(w->socket, message, -1);
}

static _Noreturn void agent_died(const struct watch *w)
{
	if (w->page->is_protected && w->vmm >= 0 && !pidfd_send_signal(w->vmm, SIGKILL, NULL, 0))
		say("keeper: agent died while the guest was protected: killed the guest's VMM\n");
	_exit(0);
}

// Kills an agent that froze. Returns how long to sleep until the next look.
static uint64_t look_at_hold(const struct watch *w)
{
	uint64_t since = w->page->hold_since_ns, now = now_ns();

	if (!since || since > now)
		return w->hold_max_ns;
	if (now - since < w->hold_max_ns)
		return w->hold_max_ns - (now - since);
	if (!pidfd_send_signal(w->agent, SIGKILL, NULL, 0))
		say("keeper: agent froze while it held the guest: killed the agent\n");
	return w->hold_max_ns;
}

// In a system call that nothing interrupts, a write for one: its main thread's state is "D", behind
// the name in parentheses.
static bool agent_in_kernel(const struct watch *w)
{
	char text[128];
	ssize_t n = pread(w->stat, text, sizeof text - 1, 0);
	char *end;

	text[n > 0 ? n : 0] = '\0';
	end = strrchr(text, ')');
	return end && !strncmp(end, ") D", 3);
}

// A deadline that is set after this look is not over before the next one. An agent that waits for a
// slow disk cannot be called back; it is looked at again soon, for it may wait for something else
// first.
static uint64_t look_at_deadline(const struct watch *w)
{
	const uint64_t look_ns = KEEPER_LOOK_MS * 1000000ull;
	uint64_t until = w->page->deadline_ns, now = clock_ns(CLOCK_BOOTTIME);

	if (until > now)
		return until - now < look_ns ? until - now : look_ns;
	if (until && agent_in_kernel(w))
		return LOOK_AGAIN_MS * 1000000ull;
	if (until && !pidfd_send_signal(w->agent, SIGKILL, NULL, 0))
		say("keeper: agent froze while it wrote to a shared disk: killed the agent\n");
	return look_ns;
}

static _Noreturn void keep(struct watch *w)
{
	(void)send_message(w->socket, (struct message){.what = MESSAGE_READY}, -1);
	for (;;) {
		struct pollfd p[] = {{.fd = w->agent, .events = POLLIN},
				     {.fd = w->socket, .events = POLLIN}};
		uint64_t hold_ns = look_at_hold(w), deadline_ns = look_at_deadline(w);
		uint64_t sleep_ns = hold_ns < deadline_ns ? hold_ns : deadline_ns;
		struct timespec ts = {.tv_sec = (time_t)(sleep_ns / 1000000000u),
				      .tv_nsec = (long)(sleep_ns % 1000000000u)};

		if (ppoll(p, 2, &ts, NULL) < 0)
			continue;
		if (p[0].revents)
			agent_died(w);
		if (p[1].revents)
			handle_message(w);
	}
}

// ---- the agent's side ----

static int wait_answer(const struct keeper *k, struct message expected, unsigned within_ms)
{
	uint64_t until = now_ns() + within_ms * 1000000ull;

	for (;;) {
		struct pollfd p = {.fd = k->socket, .events = POLLIN};
		uint64_t now = now_ns();
		struct message message;
		int fd, n = poll(&p, 1, now < until ? (int)((until - now + 999999) / 1000000) : 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -ETIMEDOUT;
		if (!receive_message(k->socket, &message, &fd))
			return -ESRCH;
		if (message.what == expected.what && message.serial == expected.serial)
			return 0;
	}
}

// Forks. All that the child needs was made before.
static int fork_keeper(struct keeper *k, int sockets[2], int agent, int stat)
{
	sigset_t all, before;
	pid_t pid;

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &before);
	pid = fork();
	if (!pid) {
		struct watch w = {.page = k->page,
				  .hold_max_ns = k->hold_max_ns,
				  .agent = agent,
				  .vmm = -1,
				  .stat = stat,
				  .socket = sockets[1]};

		(void)setsid();
		(void)prctl(PR_SET_NAME, "ft-keeper");
		close_others((const int[]){agent, stat, sockets[1]}, 3);
		/* To end a QEMU of another user's. */
		(void)capabilities_keep(CAPABILITY(CAP_KILL));
		keep(&w);
	}
	sigprocmask(SIG_SETMASK, &before, NULL);
	if (pid < 0)
		return -errno;
	k->pid = pid;
	k->pidfd = pidfd_open(pid, 0); // our child, not reaped: the number is its own
	return k->pidfd < 0 ? -errno : 0;
}

// Asked first, because an agent that gave up privileges may not kill its keeper any more; then
// killed, which does no harm, as it only acts when the agent dies.
static void end_process(struct keeper *k)
{
	struct pollfd p = {.fd = k->pidfd, .events = POLLIN};
	bool ended;

	(void)send_message(k->socket, (struct message){.what = MESSAGE_STOP}, -1);
	while (poll(&p, 1, ANSWER_MS_MAX) < 0 && errno == EINTR)
		;
	ended = p.revents || !kill(k->pid, SIGKILL);
	while (waitpid(k->pid, NULL, ended ? 0 : WNOHANG) < 0 && errno == EINTR)
		;
}

static void keeper_free(struct keeper *k)
{
	if (k->pid > 0)
		end_process(k);
	if (k->page)
		munmap(k->page, sizeof *k->page);
	if (k->socket >= 0)
		close(k->socket);
	if (k->pidfd >= 0)
		close(k->pidfd);
	free(k);
}

int keeper_start(unsigned hold_max_ms, struct keeper **out, struct ft_err *err)
{
	struct keeper *k = calloc(1, sizeof *k);
	int sockets[2] = {-1, -1}, agent = -1, stat = -1, ret;

	assert(hold_max_ms > 0);
	if (!k)
		return ft_err_set(err, ENOMEM, "keeper: start: %s", strerror(ENOMEM));
	k->socket = k->pidfd = -1;
	k->hold_max_ns = hold_max_ms * 1000000ull;
	k->page = mmap(NULL, sizeof *k->page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		       -1, 0);
	if (k->page == MAP_FAILED) {
		k->page = NULL;
		ret = -errno;
		goto fail;
	}
	agent = pidfd_open(getpid(), 0);
	stat = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
	if (agent < 0 || stat < 0 ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets)) {
		ret = -errno;
		goto fail;
	}
	k->socket = sockets[0];
	ret = fork_keeper(k, sockets, agent, stat);
	if (!ret)
		ret = wait_answer(k, (struct message){.what = MESSAGE_READY}, START_MS_MAX);
fail:
	if (sockets[1] >= 0)
		close(sockets[1]);
	if (agent >= 0)
		close(agent);
	if (stat >= 0)
		close(stat);
	if (ret) {
		keeper_free(k);
		return ft_err_set(err, -ret, "keeper: start: %s", strerror(-ret));
	}
	*out = k;
	return 0;
}

int keeper_watch(struct keeper *k, pid_t vmm_pid, struct ft_err *err)
{
	struct message message = {.what = vmm_pid ? MESSAGE_WATCH : MESSAGE_FORGET,
				  .serial = ++k->serial};
	int pidfd = -1, ret = 0;

	assert(vmm_pid >= 0);
	if (vmm_pid) {
		pidfd = pidfd_open(vmm_pid, 0);
		// Signal 0 proves that the keeper, which is who we are, may kill it when it must.
		if (pidfd < 0 || pidfd_send_signal(pidfd, 0, NULL, 0))
			ret = -errno;
	}
	if (!ret)
		ret = send_message(k->socket, message, pidfd);
	if (!ret)
		ret = wait_answer(k, message, ANSWER_MS_MAX);
	if (pidfd >= 0)
		close(pidfd);
	if (ret)
		return ft_err_set(err, -ret, "keeper: watch process %d: %s", vmm_pid,
				  strerror(-ret));
	return 0;
}

void keeper_set_protected(struct keeper *k, bool is_protected)
{
	k->page->is_protected = is_protected;
}

void keeper_hold_begin(struct keeper *k)
{
	k->page->hold_since_ns = now_ns();
}

void keeper_hold_end(struct keeper *k)
{
	k->page->hold_since_ns = 0;
}

void keeper_deadline(struct keeper *k, uint64_t at_ns)
{
	k->page->deadline_ns = at_ns;
}

bool keeper_alive(const struct keeper *k)
{
	struct pollfd p = {.fd = k->pidfd, .events = POLLIN};

	return poll(&p, 1, 0) == 0;
}

void keeper_stop(struct keeper *k)
{
	if (k)
		keeper_free(k);
}
