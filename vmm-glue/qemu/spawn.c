// SPDX-License-Identifier: Apache-2.0
// posix_spawn with a session of its own, a clean signal state and only the descriptors that were
// asked for, at known numbers: a descriptor that leaks into a guest's process would live as long as
// the guest.
#include "vmm-glue/qemu/spawn.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vmm-glue/helper.h"
#include "vmm-glue/qemu/clock.h"

#define LAST_WORDS_MAX 4096
#define FD_HIGH	       64 /* copies of ours go above every number that the child will see */

static int spawn_with(pid_t *pid, char *const argv[], const int *fds, unsigned fds_n, int log_fd)
{
	extern char **environ;
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	sigset_t none, all;
	int r;

	sigemptyset(&none);
	sigfillset(&all);
	posix_spawn_file_actions_init(&actions);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK |
						POSIX_SPAWN_SETSIGDEF);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setsigdefault(&attr, &all);
	r = posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
	r = r ? r : posix_spawn_file_actions_adddup2(&actions, log_fd, STDOUT_FILENO);
	r = r ? r : posix_spawn_file_actions_adddup2(&actions, log_fd, STDERR_FILENO);
	for (unsigned i = 0; i < fds_n && !r; i++)
		r = posix_spawn_file_actions_adddup2(&actions, fds[i], SPAWN_FD_FIRST + (int)i);
	r = r ? r : posix_spawn_file_actions_addclosefrom_np(&actions, SPAWN_FD_FIRST + (int)fds_n);
	r = r ? r : posix_spawnp(pid, argv[0], &actions, &attr, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attr);
	return r;
}

int process_spawn_here(struct process *p, char *const argv[], const int *fds, unsigned fds_n,
		       int log_fd, struct ft_err *err)
{
	int high[SPAWN_FDS_MAX + 1], r = 0;
	unsigned n;

	assert(fds_n <= SPAWN_FDS_MAX);
	*p = (struct process){.pidfd = -1};
	/* dup2() in the child must not overwrite a source that is still to be copied. */
	for (n = 0; n <= fds_n && !r; n++) {
		high[n] = fcntl(n ? fds[n - 1] : log_fd, F_DUPFD_CLOEXEC, FD_HIGH);
		r = high[n] < 0 ? errno : 0;
	}
	if (!r)
		r = spawn_with(&p->pid, argv, high + 1, fds_n, high[0]);
	while (n--)
		if (high[n] >= 0)
			close(high[n]);
	if (r)
		return ft_err_set(err, r, "qemu: %s: %s", argv[0], strerror(r));
	p->child = true;
	p->pidfd = pidfd_open(p->pid, 0);
	if (p->pidfd >= 0)
		return 0;
	r = errno;
	kill(p->pid, SIGKILL);
	waitpid(p->pid, NULL, 0);
	return ft_err_set(err, r, "qemu: pidfd_open: %s", strerror(r));
}

int process_spawn(struct process *p, char *const argv[], const int *fds, unsigned fds_n,
		  const char *log, struct ft_err *err)
{
	int log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600), r;

	*p = (struct process){.pidfd = -1};
	if (log_fd < 0)
		return ft_err_set(err, errno, "qemu: %s: %s", log, strerror(errno));
	if (helper_here())
		r = helper_spawn(argv, log_fd, fds, fds_n, &p->pid, &p->pidfd, err);
	else
		r = process_spawn_here(p, argv, fds, fds_n, log_fd, err);
	close(log_fd);
	return r;
}

int process_open(struct process *p, pid_t pid, struct ft_err *err)
{
	*p = (struct process){.pid = pid, .pidfd = pidfd_open(pid, 0)};
	return p->pidfd < 0 ? ft_err_set(err, errno, "qemu: process %d: %s", pid, strerror(errno))
			    : 0;
}

bool process_ended(struct process *p, unsigned within_ms)
{
	uint64_t deadline_ns = qemu_deadline_ns(within_ms);
	struct pollfd fd = {.fd = p->pidfd, .events = POLLIN};

	if (p->pidfd < 0)
		return true;
	while (poll(&fd, 1, qemu_ms_left(deadline_ns)) < 0 && errno == EINTR)
		;
	if (!fd.revents)
		return false;
	if (p->child)
		waitpid(p->pid, NULL, 0);
	p->child = false;
	return true;
}

int process_status(struct process *p, int *status)
{
	if (helper_here() && !p->child)
		return helper_status(p->pid, status, NULL);
	if (!p->child || waitpid(p->pid, status, WNOHANG) != p->pid)
		return -ECHILD;
	p->child = false;
	return 0;
}

void process_kill(struct process *p)
{
	if (p->pidfd >= 0)
		pidfd_send_signal(p->pidfd, SIGKILL, NULL, 0);
}

void process_close(struct process *p)
{
	if (p->pidfd >= 0)
		close(p->pidfd);
	p->pidfd = -1;
}

/* Cuts the line ends off and returns the start of the last line. */
static char *last_line(char *text)
{
	size_t n = strlen(text);
	char *at;

	while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == '\r'))
		text[--n] = '\0';
	at = strrchr(text, '\n');
	return at ? at + 1 : text;
}

void process_last_words(const char *log, char *line, size_t room)
{
	char text[LAST_WORDS_MAX + 1], *at;
	int fd = open(log, O_RDONLY | O_CLOEXEC);
	off_t size = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
	ssize_t n = fd < 0 ? 0
			   : pread(fd, text, LAST_WORDS_MAX,
				   size > LAST_WORDS_MAX ? size - LAST_WORDS_MAX : 0);

	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = '\0';
	at = last_line(text);
	/* QEMU's summary; what it sums up is better. */
	if (at > text && strstr(at, "load of migration failed")) {
		at[-1] = '\0';
		at = last_line(text);
	}
	if (!strncmp(at, "qemu-system-", 12) && strstr(at, ": "))
		at = strstr(at, ": ") + 2;
	snprintf(line, room, "%s", at);
}
