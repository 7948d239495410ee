// SPDX-License-Identifier: Apache-2.0
/* Hosts made of namespaces. The init is forked from the drill, does little and never allocates:
 * the drill may have threads by then. */
#include "tools/drill/host.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define COMMAND_MAX 8192 /* bytes of an agent's command line and its log's path */
#define READY_MS    10000
#define GONE_MS	    10000
#define IP_TEXT_MAX 256

static bool gone(int pidfd, int timeout_ms)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};

	return poll(&p, 1, timeout_ms) == 1;
}

/* ---- init ---- */

/* Unblocks what the drill has blocked: an agent's signals are its own business. */
static void signals_default(void)
{
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGCHLD, SIG_DFL);
	signal(SIGINT, SIG_DFL);
	signal(SIGPIPE, SIG_DFL);
}

static const char *init_prepare(bool isolated, const char *id)
{
	/* Of no terminal, and a group that can be killed as one. */
	setsid();
	if (!isolated)
		return NULL;
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("proc", "/proc", "proc", 0, NULL))
		return "cannot mount a /proc of its own";
	if (sethostname(id, strlen(id)))
		return "cannot set a host name of its own";
	return NULL;
}

/* command: the log's path, then the words of the command line, each with its NUL. */
static pid_t init_start(char *command, size_t len)
{
	char *argv[HOST_ARGS_MAX + 1];
	unsigned n = 0;
	pid_t pid = fork();
	int log;

	if (pid)
		return pid;
	signals_default();
	log = open(command, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (log < 0 || dup2(log, 1) < 0 || dup2(log, 2) < 0)
		_exit(127);
	for (char *at = command + strlen(command) + 1; at < command + len && n < HOST_ARGS_MAX;
	     at += strlen(at) + 1)
		argv[n++] = at;
	argv[n] = NULL;
	if (n)
		execv(argv[0], argv);
	_exit(127);
}

static _Noreturn void init_run(bool isolated, const char *id, int control, pid_t drill)
{
	char command[COMMAND_MAX];
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	const char *why;
	ssize_t n;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* In a namespace of its own getppid() is 0; elsewhere the drill may be gone already. */
	if (!isolated && getppid() != drill)
		_exit(1);
	prctl(PR_SET_NAME, id);
	signal(SIGINT, SIG_IGN);
	signal(SIGCHLD, SIG_IGN); /* nobody waits for orphans */
	for (int fd = 0; fd < 3; fd++)
		dup2(null, fd);
	/* The drill's descriptors would live on here: the client's connection, other hosts. */
	control = dup2(control, 3);
	close_range(4, ~0u, 0);
	fcntl(control, F_SETFD, FD_CLOEXEC);
	why = init_prepare(isolated, id);
	if (send(control, why ? why : "", why ? strlen(why) : 1, MSG_NOSIGNAL) < 0 || why)
		_exit(1);
	while ((n = recv(control, command, sizeof command, 0)) > 0) {
		pid_t pid = init_start(command, (size_t)n);

		(void)send(control, pid > 0 ? "" : "cannot fork", pid > 0 ? 1 : 11, MSG_NOSIGNAL);
	}
	kill(0, SIGKILL);
	_exit(1);
}

/* Waits for init's word: "" is well. */
static int init_answer(struct host *h, struct ft_err *err)
{
	struct pollfd p = {.fd = h->control, .events = POLLIN};
	char word[128] = "";
	ssize_t n = poll(&p, 1, READY_MS) == 1 ? recv(h->control, word, sizeof word - 1, 0) : -1;

	if (n <= 0)
		return ft_err_set(err, ECHILD, "%s: no answer from its first process", h->id);
	return word[0] ? ft_err_set(err, EPERM, "%s: %s", h->id, word) : 0;
}

/* ---- up, down ---- */

static int open_net(struct host *h, struct ft_err *err)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/ns/net", (int)h->init);
	h->net = open(path, O_RDONLY | O_CLOEXEC);
	return h->net < 0 ? ft_err_set(err, errno, "%s: %s", path, strerror(errno)) : 0;
}

int host_up(struct host *h, const char *id, bool isolated, struct ft_err *err)
{
	unsigned long flags =
		isolated ? CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWUTS : 0;
	pid_t drill = getpid();
	int pair[2], rc;

	*h = (struct host){
		.isolated = isolated, .init_fd = -1, .control = -1, .net = -1, .agent_fd = -1};
	snprintf(h->id, sizeof h->id, "%s", id);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return ft_err_set(err, errno, "%s: no socket: %s", id, strerror(errno));
	h->init = (pid_t)syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
	if (h->init == 0) {
		close(pair[0]);
		init_run(isolated, h->id, pair[1], drill);
	}
	rc = errno;
	close(pair[1]);
	h->control = pair[0];
	if (h->init < 0) {
		h->init = 0;
		close(h->control);
		return ft_err_set(err, rc, "%s: cannot make namespaces: %s", id, strerror(rc));
	}
	h->init_fd = pidfd_open(h->init, 0);
	rc = init_answer(h, err);
	if (!rc && isolated)
		rc = open_net(h, err);
	if (!rc && isolated)
		rc = host_link(h, "lo", true, err);
	if (rc)
		host_kill(h);
	return rc;
}

int host_can_isolate(struct ft_err *err)
{
	struct host h;
	int rc = host_up(&h, "try", true, err);

	if (!rc)
		host_kill(&h);
	return rc;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void host_kill(struct host *h)
{
	if (!h->init)
		return;
	kill(h->isolated ? h->init : -h->init, SIGKILL);
	/* A pid namespace's init is gone only when all the others are. */
	if (gone(h->init_fd, GONE_MS))
		waitpid(h->init, NULL, 0);
	if (!h->isolated && h->agent)
		(void)gone(h->agent_fd, GONE_MS);
	close_fd(&h->init_fd);
	close_fd(&h->control);
	close_fd(&h->net);
	close_fd(&h->agent_fd);
	h->init = h->agent = 0;
	h->frozen = false;
}

/* ---- processes ---- */

static unsigned add_children(pid_t pid, pid_t *pids, unsigned n)
{
	char path[64], task_path[sizeof path + 300];
	struct dirent *task;
	DIR *tasks;
	int child;

	snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
	tasks = opendir(path);
	while (tasks && (task = readdir(tasks))) {
		FILE *f;

		snprintf(task_path, sizeof task_path, "%s/%s/children", path, task->d_name);
		f = task->d_name[0] == '.' ? NULL : fopen(task_path, "re");
		while (f && n < HOST_MEMBERS_MAX && fscanf(f, "%d", &child) == 1)
			pids[n++] = child;
		if (f)
			fclose(f);
	}
	if (tasks)
		closedir(tasks);
	return n;
}

/* All below init, as we number them. */
static unsigned members(const struct host *h, pid_t pids[HOST_MEMBERS_MAX])
{
	unsigned n = h->init ? add_children(h->init, pids, 0) : 0;

	for (unsigned i = 0; i < n; i++)
		n = add_children(pids[i], pids, n);
	return n;
}

int host_run(struct host *h, const char *const *argv, struct ft_err *err)
{
	char command[COMMAND_MAX];
	pid_t before[HOST_MEMBERS_MAX], pids[HOST_MEMBERS_MAX];
	unsigned before_n = members(h, before), n;
	size_t len = (size_t)snprintf(command, sizeof command, "%s", h->log) + 1;
	int rc;

	for (unsigned i = 0; argv[i]; i++) {
		size_t word = strlen(argv[i]) + 1;

		if (len + word > sizeof command || i == HOST_ARGS_MAX)
			return ft_err_set(err, E2BIG, "%s: command line is too long", argv[0]);
		memcpy(command + len, argv[i], word);
		len += word;
	}
	if (send(h->control, command, len, MSG_NOSIGNAL) < 0)
		return ft_err_set(err, errno, "%s: is gone: %s", h->id, strerror(errno));
	rc = init_answer(h, err);
	if (rc)
		return rc;
	close_fd(&h->agent_fd);
	h->agent = 0;
	n = members(h, pids);
	for (unsigned i = 0; i < n && !h->agent; i++) {
		bool old = false;

		for (unsigned k = 0; k < before_n; k++)
			old |= before[k] == pids[i];
		h->agent = old ? 0 : pids[i];
	}
	if (h->agent)
		h->agent_fd = pidfd_open(h->agent, 0);
	if (h->agent_fd < 0) {
		char words[IP_TEXT_MAX];

		host_last_words(h, words, sizeof words);
		return ft_err_set(err, ECHILD, "%s: %s ended at once: %s", h->id, argv[0], words);
	}
	return 0;
}

bool host_agent_alive(const struct host *h)
{
	return h->init && h->agent_fd >= 0 && !gone(h->agent_fd, 0);
}

int host_freeze(struct host *h, struct ft_err *err)
{
	pid_t pids[HOST_MEMBERS_MAX];
	unsigned n = members(h, pids);

	for (unsigned i = 0; i < n; i++)
		if (kill(pids[i], SIGSTOP) && errno != ESRCH)
			return ft_err_set(err, errno, "%s: cannot stop process %d: %s", h->id,
					  (int)pids[i], strerror(errno));
	h->frozen = true;
	return n ? 0 : ft_err_set(err, ESRCH, "%s: has no process", h->id);
}

void host_thaw(struct host *h)
{
	pid_t pids[HOST_MEMBERS_MAX];
	unsigned n = members(h, pids);

	for (unsigned i = 0; i < n; i++)
		kill(pids[i], SIGCONT);
	h->frozen = false;
}

/* "NSpid: OUTER ... INNER": ours is the first, its own the last. */
static pid_t inner_of(pid_t pid)
{
	char path[64], line[256];
	int inner = 0;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof line, f))
		if (!strncmp(line, "NSpid:", 6) && strrchr(line, '\t'))
			inner = atoi(strrchr(line, '\t') + 1);
	if (f)
		fclose(f);
	return inner;
}

pid_t host_find(const struct host *h, pid_t inner)
{
	pid_t pids[HOST_MEMBERS_MAX];
	unsigned n = members(h, pids);

	for (unsigned i = 0; i < n; i++)
		if (inner_of(pids[i]) == inner)
			return pids[i];
	return 0;
}

void host_last_words(const struct host *h, char *out, unsigned room)
{
	char line[1024];
	FILE *f = fopen(h->log, "re");

	snprintf(out, room, "its log %s is empty", h->log);
	while (f && fgets(line, sizeof line, f)) {
		line[strcspn(line, "\n")] = 0;
		if (line[0])
			snprintf(out, room, "%.*s", (int)room - 1, line);
	}
	if (f)
		fclose(f);
}

/* ---- network ---- */

static _Noreturn void exec_ip(const struct host *h, int in, int out)
{
	signals_default();
	if (setns(h->net, CLONE_NEWNET) || dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0)
		_exit(126);
	execlp("ip", "ip", "-batch", "-", (char *)NULL);
	_exit(127);
}

int host_ip(const struct host *h, const char *lines, struct ft_err *err)
{
	int in = memfd_create("ip-in", MFD_CLOEXEC), out = memfd_create("ip-out", MFD_CLOEXEC);
	char said[IP_TEXT_MAX] = "";
	int status = -1;
	pid_t pid;

	if (in < 0 || out < 0 || write(in, lines, strlen(lines)) < 0 || lseek(in, 0, SEEK_SET) < 0)
		pid = -1;
	else
		pid = fork();
	if (pid == 0)
		exec_ip(h, in, out);
	if (pid > 0)
		waitpid(pid, &status, 0);
	if (pid > 0 && status && pread(out, said, sizeof said - 1, 0) >= 0)
		said[strcspn(said, "\n")] = 0;
	close_fd(&in);
	close_fd(&out);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
		return ft_err_set(err, ENOENT, "ip is not installed (package iproute2)");
	return status ? ft_err_set(err, EIO, "%s: network: %s", h->id,
				   said[0] ? said : "ip did not run")
		      : 0;
}

int host_socket(const struct host *h, int domain, int type)
{
	int home, fd, rc;

	if (!h->isolated) {
		fd = socket(domain, type | SOCK_CLOEXEC, 0);
		return fd < 0 ? -errno : fd;
	}
	home = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	if (home < 0 || setns(h->net, CLONE_NEWNET)) {
		rc = -errno;
		close_fd(&home);
		return rc;
	}
	fd = socket(domain, type | SOCK_CLOEXEC, 0);
	rc = fd < 0 ? -errno : fd;
	if (setns(home, CLONE_NEWNET))
		abort(); /* our own namespace, open: nothing else of the drill could be right */
	close(home);
	return rc;
}

int host_link(const struct host *h, const char *ifname, bool up, struct ft_err *err)
{
	struct ifreq ifr = {0};
	int fd = host_socket(h, AF_INET, SOCK_DGRAM), rc = fd < 0 ? fd : 0;

	snprintf(ifr.ifr_name, sizeof ifr.ifr_name, "%s", ifname);
	if (!rc && ioctl(fd, SIOCGIFFLAGS, &ifr) < 0)
		rc = -errno;
	ifr.ifr_flags = (short)(up ? ifr.ifr_flags | IFF_UP : ifr.ifr_flags & ~IFF_UP);
	if (!rc && ioctl(fd, SIOCSIFFLAGS, &ifr) < 0)
		rc = -errno;
	close_fd(&fd);
	return rc ? ft_err_set(err, -rc, "%s: interface %s: %s", h->id, ifname, strerror(-rc)) : 0;
}
