/* SPDX-License-Identifier: Apache-2.0 */
/* The agent's end of the control socket (tools/ctl/ctl.h, proto/ctl.proto): RUN_DIR/NAME.sock, mode
 * 0600, for root and whoever the agent runs as: nobody else is listened to, whatever the modes on
 * the way say.
 *
 * A client asks one thing at a time; an answer may come much later. `wait` is answered here, by the
 * agent's changes of state; everything else is handed on. What clients may cost is bounded: their
 * number, the size of a request, how long they may be silent in their turn. A client that breaks
 * the rules is told so and dropped; it can disturb nobody else.
 *
 * Everything happens on the thread of the event base. */
#ifndef TOOLS_AGENT_CTL_SERVER_H
#define TOOLS_AGENT_CTL_SERVER_H

#include <event2/event.h>

#include "ft/err.h"
#include "ft/state.h"
#include "tools/ctl/ctl.h"

#define CTL_CLIENTS_MAX	   16
#define CTL_CLIENT_IDLE_MS 10000 /* silence in the middle of a request, or instead of one */
#define CTL_WAIT_MAX_MS	   (1000u * 60 * 60 * 24)

struct ctl_server;

/* One request that is not answered yet. Valid until ctl_reply() or ctl_reply_error(), or until
 * cancelled() returns. */
struct ctl_call;

struct ctl_server_ops {
	/* A request, other than `wait`. It belongs to the server and is gone when this returns; its
	 * strings are not NULL, but hostile. Answer now or later, exactly once. May not free the
	 * server. */
	void (*request)(void *ctx, struct ctl_call *call, const Ctl__Request *request);
	/* The client went away before the answer: forget the call. Whether what it asked for goes
	 * on is up to the command. */
	void (*cancelled)(void *ctx, struct ctl_call *call);
	void *ctx;
};

/* Creates run_dir (the last component only, 0700) if it is absent; one that others own or may write
 * to is refused (-EPERM), for they could put a socket of theirs in the place of ours. Takes the
 * name: a second agent for the guest gets -EADDRINUSE, a socket that a dead one left is replaced.
 * ops is copied. The state is `starting`. Other errors: -errno of the system. */
int ctl_server_new(struct event_base *base, const char *run_dir, const char *name,
		   const struct ctl_server_ops *ops, struct ctl_server **out, struct ft_err *err);

/* Sends the answer and ends the call. *reply stays the caller's. */
void ctl_reply(struct ctl_call *call, const Ctl__Reply *reply);
/* word: CTL_ERR_* or another one without blanks. */
void ctl_reply_error(struct ctl_call *call, const char *word, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Answers those who wait for `now`, and those who wait for a state that cannot be reached any more.
 * Fits struct ft_state_var's callback. */
void ctl_server_state_changed(struct ctl_server *server, enum ft_state now, const char *reason);

/* Cancels what is under way, sends what is already answered as far as it can be without waiting,
 * closes and removes the socket. Accepts NULL. */
/* Answers go out as far as they can at once: something that takes long comes next. */
void ctl_server_flush(struct ctl_server *server);
void ctl_server_free(struct ctl_server *server);

#endif
