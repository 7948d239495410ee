/* SPDX-License-Identifier: Apache-2.0 */
/* A host of the drill: processes, network, mounts and host name of its own, below one process, its
 * init. When the init dies the kernel kills all the others, and interfaces and namespaces go with
 * them: nothing has a name that could be left behind. When the drill itself dies, the inits do.
 *
 * Without privileges a host is only a process group (`isolated` false); it has no links then. */
#ifndef TOOLS_DRILL_HOST_H
#define TOOLS_DRILL_HOST_H

#include <stdbool.h>
#include <sys/types.h>

#include "ft/err.h"

#define HOST_ID_MAX	 16
#define HOST_PATH_MAX	 200
#define HOST_MEMBERS_MAX 64
#define HOST_ARGS_MAX	 48

struct host {
	char id[HOST_ID_MAX];
	bool isolated, frozen;
	pid_t init;   /* 0: the host is down */
	int init_fd;  /* pidfd */
	int control;  /* to init: the agent's command line */
	int net;      /* its network namespace; -1 unless isolated */
	pid_t agent;  /* 0: none was started */
	int agent_fd; /* pidfd */
	char run_dir[HOST_PATH_MAX], log[HOST_PATH_MAX];
};

/* Whether this process may make isolated hosts. */
int host_can_isolate(struct ft_err *err);
int host_up(struct host *h, const char *id, bool isolated, struct ft_err *err);
/* Starts a program as the host's agent; its output goes to h->log, appended. argv[0] is a path. */
int host_run(struct host *h, const char *const *argv, struct ft_err *err);
bool host_agent_alive(const struct host *h);
/* SIGKILL to all at once, and waits until they are gone. Does nothing when the host is down. */
void host_kill(struct host *h);
/* SIGSTOP / SIGCONT to all but init. */
int host_freeze(struct host *h, struct ft_err *err);
void host_thaw(struct host *h);
/* A process of this host by the id that its own processes know it by; 0: there is none. */
pid_t host_find(const struct host *h, pid_t inner);
/* The last line of the log that says why, for errors. */
void host_last_words(const struct host *h, char *out, unsigned room);

/* Runs ip(8) on these lines in the host's network. */
int host_ip(const struct host *h, const char *lines, struct ft_err *err);
/* A socket in the host's network. -errno. */
int host_socket(const struct host *h, int domain, int type);
/* Takes an interface up or down, at once. */
int host_link(const struct host *h, const char *ifname, bool up, struct ft_err *err);

#endif
