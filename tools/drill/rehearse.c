// SPDX-License-Identifier: Apache-2.0
/* A drill on the operator's own pair, from the host that this runs on. We have no client of that
 * guest, so the report is what the agent here saw. Unless told otherwise nothing is broken: roles
 * are exchanged by a planned switch. */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tools/ctl/ctl.h"
#include "tools/drill/scene.h"

#define STATUS_MS 2000
#define SWITCH_MS 60000
#define GONE_MS	  10000

static int ask_here(const struct drill_options *o, const char *command, int timeout_ms,
		    Ctl__Reply **reply, struct ft_err *err)
{
	Ctl__Request request = CTL__REQUEST__INIT;
	int rc;

	request.command = (char *)(uintptr_t)command;
	rc = ctl_ask(o->run_dir, o->name, &request, timeout_ms, reply, err);
	if (rc)
		return rc;
	if ((*reply)->error[0]) {
		rc = ft_err_set(err, EIO, "%s: %s", command, (*reply)->message);
		ctl__reply__free_unpacked(*reply, NULL);
		*reply = NULL;
	}
	return rc;
}

/* The process at the other end of its control socket. */
static int agent_pid(const struct drill_options *o, pid_t *pid, struct ft_err *err)
{
	struct ucred peer = {0};
	socklen_t len = sizeof peer;
	struct sockaddr_un at;
	int rc = ctl_socket_path(o->run_dir, o->name, &at, err), fd;

	if (rc)
		return rc;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&at, sizeof at) ||
	    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len))
		rc = ft_err_set(err, errno, "%s: %s", o->name, strerror(errno));
	if (fd >= 0)
		close(fd);
	*pid = peer.pid;
	return rc;
}

static int kill_and_wait(pid_t pid, struct ft_err *err)
{
	struct pollfd p = {.fd = pid > 0 ? pidfd_open(pid, 0) : -1, .events = POLLIN};
	int rc = 0;

	if (p.fd < 0)
		return ft_err_set(err, ESRCH, "process %d: %s", (int)pid, strerror(errno));
	if (pidfd_send_signal(p.fd, SIGKILL, NULL, 0))
		rc = ft_err_set(err, errno, "process %d: cannot kill it: %s", (int)pid,
				strerror(errno));
	else if (poll(&p, 1, GONE_MS) != 1)
		rc = ft_err_set(err, ETIMEDOUT, "process %d: does not end", (int)pid);
	close(p.fd);
	return rc;
}

static int act(const struct drill_options *o, const Ctl__Status *before, struct ft_err *err)
{
	Ctl__Reply *reply = NULL;
	pid_t pid;
	int rc;

	if (o->kill == DRILL_SWITCH) {
		rc = ask_here(o, "failover", SWITCH_MS, &reply, err);
		if (!rc)
			ctl__reply__free_unpacked(reply, NULL);
		return rc;
	}
	if (o->kill == DRILL_VMM)
		return before->vmm && before->vmm->pid > 0
			       ? kill_and_wait((pid_t)before->vmm->pid, err)
			       : ft_err_set(err, EINVAL, "%s: its VMM is no process of its own",
					    o->name);
	rc = agent_pid(o, &pid, err);
	return rc ? rc : kill_and_wait(pid, err);
}

static void tell(const struct drill_options *o, uint64_t took_ns, uint64_t epoch)
{
	const char *what = drill_kill_name(o->kill);

	if (o->json)
		printf("{\"ok\": true, \"name\": \"%s\", \"kill\": \"%s\", \"took_ms\": %.1f, "
		       "\"epoch\": %" PRIu64 "}\n",
		       o->name, what, (double)took_ns / 1e6, epoch);
	else if (o->kill == DRILL_SWITCH)
		printf("%s: planned switch done in %.0f ms after epoch %" PRIu64
		       ": lost 0; this host is the standby now\n",
		       o->name, (double)took_ns / 1e6, epoch);
	else
		printf("%s: the %s here is dead, after epoch %" PRIu64
		       "; ask the other host: ftctl status %s\n",
		       o->name, what, epoch, o->name);
	fflush(stdout);
}

int rehearse(const struct drill_options *given, struct ft_err *err)
{
	struct drill_options o = *given;
	Ctl__Reply *before = NULL;
	uint64_t start;
	int rc;

	if (!o.kill_given)
		o.kill = DRILL_SWITCH;
	if (o.kill != DRILL_SWITCH && o.kill != DRILL_AGENT && o.kill != DRILL_VMM) {
		ft_err_set(err, EINVAL,
			   "on a pair of yours only switch, agent and vmm are possible, not %s",
			   drill_kill_name(o.kill));
		return DRILL_FAILED;
	}
	if (ask_here(&o, "status", STATUS_MS, &before, err) || !before)
		return DRILL_FAILED;
	if (!before->status || strcmp(before->status->state, "protected") != 0) {
		rc = ft_err_set(err, EINVAL,
				"%s is %s here: a drill needs the primary of a protected guest",
				o.name, before->status ? before->status->state : "unknown");
	} else {
		start = drill_now_ns();
		rc = act(&o, before->status, err);
		if (!rc)
			tell(&o, drill_now_ns() - start, before->status->epoch_committed);
	}
	ctl__reply__free_unpacked(before, NULL);
	return rc ? DRILL_FAILED : DRILL_OK;
}
