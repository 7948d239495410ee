// SPDX-License-Identifier: Apache-2.0
// An agent is up when its control socket is there and it says the state that it is to have.
#include "host.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define START_MS 20000 /* an agent and its QEMU */

int host_place(struct host *h, struct bench *b, const char *guest, const char *kind,
	       const char *folder, struct ft_err *err)
{
	h->b = b;
	h->guest = guest;
	h->ns = -1;
	h->agent = 0;
	snprintf(h->id, sizeof h->id, "%s%u", kind, h->number);
	snprintf(h->run_dir, sizeof h->run_dir, "%s/%s", b->dir, folder);
	snprintf(h->file, sizeof h->file, "%s/guest.conf", h->run_dir);
	snprintf(h->console, sizeof h->console, "%s/console", h->run_dir);
	snprintf(h->tty, sizeof h->tty, "%s/tty", h->run_dir);
	return mkdir(h->run_dir, 0700)
		       ? ft_err_set(err, errno, "%s: %s", h->run_dir, strerror(errno))
		       : 0;
}

static void exec_agent(struct host *h, const char *incoming)
{
	char program[BENCH_PATH_MAX + 16], log[BENCH_PATH_MAX + 16];
	const char *argv[] = {program,	     "--guest",	  h->file,	"--run-dir",
			      h->run_dir,    "--host-id", h->id,	"--foreground",
			      "--log-level", "info",	  "--incoming", incoming,
			      NULL};
	int fd;

	snprintf(program, sizeof program, "%s/ft-agent", h->b->bin);
	snprintf(log, sizeof log, "%s/agent.log", h->run_dir);
	if (!incoming)
		argv[10] = NULL;
	fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (h->ns >= 0)
		net_enter(h->ns);
	dup2(fd, STDOUT_FILENO);
	dup2(fd, STDERR_FILENO);
	execv(program, (char **)(uintptr_t)argv);
	_exit(127);
}

/* Until its control socket is there. */
static int wait_socket(struct host *h, const char *path, struct ft_err *err)
{
	uint64_t start = bench_now_ns();
	struct stat st;

	while (stat(path, &st)) {
		int status;

		if (waitpid(h->agent, &status, WNOHANG) == h->agent) {
			h->agent = 0;
			return ft_err_set(err, ECHILD, "%s: ft-agent ended with %d", h->id,
					  WEXITSTATUS(status));
		}
		if (bench_ms_since(start) > START_MS)
			return ft_err_set(err, ETIMEDOUT, "%s: no %s", h->id, path);
		bench_idle_ms(5);
	}
	return 0;
}

int host_start(struct host *h, const char *incoming, struct ft_err *err)
{
	char path[BENCH_PATH_MAX + 32];
	int rc;

	snprintf(path, sizeof path, "%s/%s.sock", h->run_dir, h->guest);
	unlink(path); /* of a killed agent */
	h->agent = fork();
	if (h->agent == 0)
		exec_agent(h, incoming);
	if (h->agent < 0)
		return ft_err_set(err, errno, "fork: %s", strerror(errno));
	rc = wait_socket(h, path, err);
	return rc ? rc : host_wait(h, incoming ? "standby" : "solo", err);
}

int host_ask(struct host *h, Ctl__Request *request, Ctl__Reply **reply, unsigned within_ms,
	     struct ft_err *err)
{
	int rc = ctl_ask(h->run_dir, h->guest, request, (int)within_ms, reply, err);

	if (!rc && (*reply)->error[0]) {
		rc = ft_err_set(err, EIO, "%s: %s: %s", h->id, request->command, (*reply)->message);
		ctl__reply__free_unpacked(*reply, NULL);
	}
	return rc;
}

int host_wait(struct host *h, const char *state, struct ft_err *err)
{
	Ctl__Request r = CTL__REQUEST__INIT;
	Ctl__Reply *reply;
	int rc;

	r.command = (char *)"wait";
	r.state = (char *)(uintptr_t)state;
	r.timeout_ms = START_MS;
	rc = host_ask(h, &r, &reply, START_MS, err);
	if (!rc)
		ctl__reply__free_unpacked(reply, NULL);
	return rc;
}

void host_kill(struct host *h)
{
	if (h->agent > 0) {
		kill(h->agent, SIGKILL);
		waitpid(h->agent, NULL, 0);
	}
	h->agent = 0;
}
