// SPDX-License-Identifier: Apache-2.0
// One request at a time over a socket of packets, with the descriptors that belong to it; one
// answer. A late answer to a request that was given up is known by its serial number and dropped,
// its descriptor too.
//
// The helper is single-threaded but for the borrowing of threads (inject.c). It waits for children
// of its own thread only, because a thread that traces waits for whom it traces.
#include "vmm-glue/helper.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vmm-glue/capabilities.h"
#include "vmm-glue/inject.h"
#include "vmm-glue/qemu/argv.h"
#include "vmm-glue/qemu/clock.h"
#include "vmm-glue/qemu/options.h"
#include "vmm-glue/qemu/spawn.h"
#include "vmm-glue/tun.h"

#define SPAWN_MS_MAX 5000
#define UFFD_MS_MAX  (INJECT_MS_MAX + 1000)
#define TUN_MS_MAX   1000
#define STOP_MS_MAX  1000
#define FDS_MAX	     (SPAWN_FDS_MAX + 1) /* its log in front */
#define FD_LAST	     (~0u)
#define ENDED_MAX    16 /* whose status is remembered for who may ask */

struct request {
	enum { REQUEST_READY, REQUEST_SPAWN, REQUEST_UFFD, REQUEST_TUN, REQUEST_STATUS } what;
	uint32_t serial;
	pid_t pid;	 /* uffd, tun, status */
	int flags;	 /* uffd */
	int number;	 /* tun */
	bool leave_open; /* uffd */
	uint32_t argc;	 /* spawn: so many words follow, each with its NUL */
};

struct answer {
	uint32_t serial;
	pid_t pid;	   /* spawn */
	int status;	   /* status */
	struct ft_err err; /* code 0: it worked */
};

static struct {
	int socket, pidfd;
	pid_t pid;
	uint32_t serial;
	bool here;
} helper = {.socket = -1, .pidfd = -1};

/* ---- packets ---- */

struct packet {
	struct iovec iov[2];
	int fds[FDS_MAX];
	unsigned fds_n;
};

static int packet_send(int socket, const struct packet *p)
{
	union {
		char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct msghdr msg = {.msg_iov = (struct iovec *)p->iov, .msg_iovlen = 2};
	ssize_t n;

	if (p->fds_n) {
		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(p->fds_n * sizeof(int));
		control.align = (struct cmsghdr){.cmsg_level = SOL_SOCKET,
						 .cmsg_type = SCM_RIGHTS,
						 .cmsg_len = CMSG_LEN(p->fds_n * sizeof(int))};
		memcpy(CMSG_DATA(&control.align), p->fds, p->fds_n * sizeof(int));
	}
	do
		n = sendmsg(socket, &msg, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}

/* Bytes received, 0 at the end. The descriptors are the caller's. */
static size_t packet_receive(int socket, struct packet *p)
{
	union {
		char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct msghdr msg = {.msg_iov = p->iov,
			     .msg_iovlen = 2,
			     .msg_control = control.bytes,
			     .msg_controllen = sizeof control.bytes};
	ssize_t n = recvmsg(socket, &msg, MSG_CMSG_CLOEXEC);
	struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL;

	p->fds_n = 0;
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
		p->fds_n = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(p->fds, CMSG_DATA(c), p->fds_n * sizeof(int));
	}
	return n > 0 ? (size_t)n : 0;
}

static void packet_close(struct packet *p)
{
	while (p->fds_n)
		close(p->fds[--p->fds_n]);
}

/* ---- the helper process ---- */

static void do_spawn(const struct request *r, char *words, size_t bytes, struct packet *in,
		     struct answer *a, int *fd)
{
	char *argv[ARGV_MAX + 1];
	struct process p;
	size_t at = 0;

	if (r->argc == 0 || r->argc > ARGV_MAX || in->fds_n == 0 || bytes == 0 ||
	    words[bytes - 1]) {
		ft_err_set(&a->err, EINVAL, "helper: not a request");
		return;
	}
	for (uint32_t i = 0; i < r->argc; i++) {
		if (at >= bytes) {
			ft_err_set(&a->err, EINVAL, "helper: not a request");
			return;
		}
		argv[i] = words + at;
		at += strlen(words + at) + 1;
	}
	argv[r->argc] = NULL;
	if (process_spawn_here(&p, argv, in->fds + 1, in->fds_n - 1, in->fds[0], &a->err) == 0) {
		a->pid = p.pid;
		*fd = p.pidfd;
	}
}

/* The last ones that ended, the newest at ended_n - 1. */
static struct {
	pid_t pid;
	int status;
} ended[ENDED_MAX];
static unsigned ended_n;

static void reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG | __WNOTHREAD)) > 0) {
		ended[ended_n % ENDED_MAX].pid = pid;
		ended[ended_n++ % ENDED_MAX].status = status;
	}
}

static void do_status(pid_t pid, struct answer *a)
{
	reap();
	for (unsigned i = ended_n, n = 0; i-- > 0 && n < ENDED_MAX; n++) {
		if (ended[i % ENDED_MAX].pid != pid)
			continue;
		a->status = ended[i % ENDED_MAX].status;
		return;
	}
	ft_err_set(&a->err, ECHILD, "helper: no process %d ended lately", (int)pid);
}

static void do_request(int socket)
{
	static char words[OPTIONS_BYTES_MAX];
	struct request r = {0};
	struct packet in = {.iov = {{&r, sizeof r}, {words, sizeof words}}};
	struct answer a = {0};
	struct packet out = {.iov = {{&a, sizeof a}}};
	size_t n = packet_receive(socket, &in);
	int fd = -1;

	if (n < sizeof r)
		_exit(0); /* the agent has ended */
	a.serial = r.serial;
	if (r.what == REQUEST_SPAWN)
		do_spawn(&r, words, n - sizeof r, &in, &a, &fd);
	else if (r.what == REQUEST_UFFD && in.fds_n == 1)
		(void)inject_uffd(r.pid, in.fds[0], r.flags, r.leave_open, &fd, NULL, &a.err);
	else if (r.what == REQUEST_TUN && in.fds_n == 1)
		(void)tun_fetch(r.pid, in.fds[0], r.number, &fd, &a.err);
	else if (r.what == REQUEST_STATUS)
		do_status(r.pid, &a);
	packet_close(&in);
	if (fd >= 0)
		out.fds[out.fds_n++] = fd;
	(void)packet_send(socket, &out);
	packet_close(&out);
}

static _Noreturn void help(int socket, uint64_t keep)
{
	struct pollfd p[2] = {{.fd = socket, .events = POLLIN}, {.events = POLLIN}};
	struct signalfd_siginfo info;
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	sigset_t all;

	/* Its end is that of the socket: what stops the agent does not stop it first. */
	(void)setsid();
	(void)prctl(PR_SET_NAME, "ft-helper");
	/* Not for QEMU. */
	(void)setrlimit(RLIMIT_RTPRIO, &(struct rlimit){0});
	helper.here = false;
	for (int i = STDIN_FILENO; i <= STDERR_FILENO; i++)
		dup2(null, i);
	if (socket > STDERR_FILENO + 1)
		(void)close_range(STDERR_FILENO + 1, (unsigned)socket - 1, 0);
	(void)close_range((unsigned)socket + 1, FD_LAST, 0);
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	p[1].fd = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
	if (p[1].fd < 0 || capabilities_keep(keep))
		_exit(1);
	for (;;) {
		if (poll(p, 2, -1) < 0)
			continue;
		if (p[1].revents && read(p[1].fd, &info, sizeof info) > 0)
			reap();
		if (p[0].revents)
			do_request(socket);
	}
}

/* ---- the agent's side ---- */

static int broken(int code, struct ft_err *err)
{
	return ft_err_set(err, code, "helper: %s",
			  code == ETIMEDOUT ? "does not answer" : "was killed; restart this agent");
}

/* *fd gets the descriptor that comes with the answer. */
static int wait_answer(uint32_t serial, unsigned within_ms, struct answer *a, int *fd,
		       struct ft_err *err)
{
	uint64_t deadline_ns = qemu_deadline_ns(within_ms);

	for (;;) {
		struct pollfd p = {.fd = helper.socket, .events = POLLIN};
		struct packet in = {.iov = {{a, sizeof *a}}};
		int n = poll(&p, 1, qemu_ms_left(deadline_ns));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return broken(ETIMEDOUT, err);
		if (packet_receive(helper.socket, &in) != sizeof *a)
			return broken(EPIPE, err);
		if (a->serial == serial && in.fds_n == (a->err.code == 0 && fd)) {
			if (in.fds_n)
				*fd = in.fds[0];
			break;
		}
		packet_close(&in);
	}
	if (a->err.code && err)
		*err = a->err;
	return -a->err.code;
}

static int ask(struct request *r, struct packet *out, unsigned within_ms, struct answer *a, int *fd,
	       struct ft_err *err)
{
	int rc;

	r->serial = ++helper.serial;
	rc = packet_send(helper.socket, out);
	return rc ? broken(-rc, err) : wait_answer(r->serial, within_ms, a, fd, err);
}

int helper_spawn(char *const argv[], int log_fd, const int *fds, unsigned fds_n, pid_t *pid,
		 int *pidfd, struct ft_err *err)
{
	struct request r = {.what = REQUEST_SPAWN};
	struct packet out = {.fds = {log_fd}, .fds_n = 1 + fds_n};
	struct answer a = {0};
	size_t bytes = 0;
	char *words;
	int rc;

	assert(helper.here && argv[0] && fds_n <= SPAWN_FDS_MAX);
	for (unsigned i = 0; i < fds_n; i++)
		out.fds[1 + i] = fds[i];
	for (; argv[r.argc]; r.argc++)
		bytes += strlen(argv[r.argc]) + 1;
	if (bytes > OPTIONS_BYTES_MAX || r.argc > ARGV_MAX)
		return ft_err_set(err, E2BIG,
				  "helper: command line: more than %u bytes or %d words",
				  OPTIONS_BYTES_MAX, ARGV_MAX);
	words = malloc(bytes);
	if (!words)
		return ft_err_set(err, ENOMEM, "helper: out of memory");
	bytes = 0;
	for (uint32_t i = 0; i < r.argc; i++) {
		size_t n = strlen(argv[i]) + 1;

		memcpy(words + bytes, argv[i], n);
		bytes += n;
	}
	out.iov[0] = (struct iovec){&r, sizeof r};
	out.iov[1] = (struct iovec){words, bytes};
	rc = ask(&r, &out, SPAWN_MS_MAX, &a, pidfd, err);
	free(words);
	if (!rc)
		*pid = a.pid;
	return rc;
}

int helper_uffd(pid_t pid, int pidfd, int flags, bool leave_open, int *uffd, struct ft_err *err)
{
	struct request r = {
		.what = REQUEST_UFFD, .pid = pid, .flags = flags, .leave_open = leave_open};
	struct packet out = {.iov = {{&r, sizeof r}}, .fds = {pidfd}, .fds_n = 1};
	struct answer a = {0};

	assert(helper.here);
	return ask(&r, &out, UFFD_MS_MAX, &a, uffd, err);
}

int helper_tun(pid_t pid, int pidfd, int number, int *fd, struct ft_err *err)
{
	struct request r = {.what = REQUEST_TUN, .pid = pid, .number = number};
	struct packet out = {.iov = {{&r, sizeof r}}, .fds = {pidfd}, .fds_n = 1};
	struct answer a = {0};

	assert(helper.here);
	return ask(&r, &out, TUN_MS_MAX, &a, fd, err);
}

int helper_status(pid_t pid, int *status, struct ft_err *err)
{
	struct request r = {.what = REQUEST_STATUS, .pid = pid};
	struct packet out = {.iov = {{&r, sizeof r}}};
	struct answer a = {0};
	int rc;

	assert(helper.here);
	rc = ask(&r, &out, SPAWN_MS_MAX, &a, NULL, err);
	if (!rc)
		*status = a.status;
	return rc;
}

int helper_start(uint64_t keep, struct ft_err *err)
{
	struct request r = {.what = REQUEST_READY};
	struct packet out = {.iov = {{&r, sizeof r}}};
	struct answer a = {0};
	int sockets[2], rc;

	assert(!helper.here);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets))
		return ft_err_set(err, errno, "helper: start: %s", strerror(errno));
	helper.pid = fork();
	if (helper.pid == 0) {
		close(sockets[0]);
		help(sockets[1], keep);
	}
	close(sockets[1]);
	if (helper.pid < 0) {
		rc = errno;
		close(sockets[0]);
		return ft_err_set(err, rc, "helper: start: %s", strerror(rc));
	}
	helper.pidfd = pidfd_open(helper.pid, 0); /* our child, not reaped: the number is its own */
	helper.socket = sockets[0];
	helper.here = true;
	rc = ask(&r, &out, SPAWN_MS_MAX, &a, NULL, err);
	if (rc) {
		helper_stop();
		return ft_err_context(err, "start");
	}
	return 0;
}

bool helper_here(void)
{
	return helper.here;
}

/* It ends by itself when the socket does; else it is ended, which needs no right: it has our user.
 */
void helper_stop(void)
{
	struct pollfd p = {.fd = helper.pidfd, .events = POLLIN};

	if (!helper.here)
		return;
	helper.here = false;
	close(helper.socket);
	if (poll(&p, 1, STOP_MS_MAX) != 1)
		kill(helper.pid, SIGKILL);
	while (waitpid(helper.pid, NULL, 0) < 0 && errno == EINTR)
		;
	close(helper.pidfd);
}
