// SPDX-License-Identifier: Apache-2.0
/* One question to the agent that was the standby once: who has the guest? A HELLO without a role,
 * which every agent answers with REFUSE and what it is. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "ft/msg.h"
#include "tools/agent/agent.h"

#define ASK_CONNECT_MS 2000
#define ASK_S	       4 /* for all of it */

struct asking {
	struct agent *agent;
	struct connector *connector;
	struct ft_link *link;
	bool done, answered;
	struct peer_answer answer;
	struct ft_err why;
};

static void end(struct asking *q, const struct ft_err *why)
{
	if (!q->done && why)
		q->why = *why;
	q->done = true;
}

static void on_message(void *ctx, const struct ft_msg *msg)
{
	struct asking *q = ctx;
	Ft__Refuse *refuse;

	if (msg->type != FT_MSG_REFUSE || q->done)
		return;
	refuse = ft__refuse__unpack(NULL, msg->body_len, msg->body);
	if (!refuse)
		return;
	q->answer = (struct peer_answer){.waits = refuse->waits,
					 .runs = refuse->runs,
					 .generation = refuse->generation,
					 .committed = refuse->committed};
	q->answered = true;
	ft__refuse__free_unpacked(refuse, NULL);
	end(q, NULL);
}

static void on_closed(void *ctx, const struct ft_err *why)
{
	end(ctx, why);
}

static void on_writable(void *ctx)
{
	(void)ctx;
}

static void on_connected(void *ctx, struct ft_link *link, const struct ft_err *why)
{
	struct asking *q = ctx;
	Ft__Hello hello = FT__HELLO__INIT;

	q->connector = NULL;
	q->link = link;
	if (!link) {
		end(q, why);
		return;
	}
	peer_link(q->agent, link);
	link->events = (struct ft_link_events){
		.message = on_message, .writable = on_writable, .closed = on_closed, .ctx = q};
	hello.name = q->agent->config.name;
	hello.host_id = q->agent->host_id;
	hello.role = FT__ROLE__ROLE_UNKNOWN;
	hello.version = (char *)(uintptr_t)FT_VERSION;
	(void)ft_msg_send(link, FT_MSG_HELLO, 0, 0, &hello.base, NULL, 0);
}

static void on_late(evutil_socket_t fd, short what, void *ctx)
{
	struct ft_err why = {.code = ETIMEDOUT, .text = "no answer"};

	(void)fd;
	(void)what;
	end(ctx, &why);
}

int peer_ask(struct agent *a, const char *uri, struct peer_answer *answer, struct ft_err *err)
{
	struct asking q = {.agent = a};
	struct event *late;
	int rc = peer_set(a, uri, err);

	a->has_peer = false; /* an operator names the next one */
	if (rc)
		return rc;
	late = evtimer_new(a->base, on_late, &q);
	if (!late || evtimer_add(late, &(struct timeval){.tv_sec = ASK_S}))
		rc = ft_err_set(err, ENOMEM, "out of memory");
	if (!rc)
		rc = connector_start(a->base, &a->peer, a->peer.scheme == URI_TLS ? a->tls : NULL,
				     ASK_CONNECT_MS, on_connected, &q, &q.connector, err);
	while (!rc && !q.done)
		event_base_loop(a->base, EVLOOP_ONCE);
	connector_cancel(q.connector);
	if (q.link)
		q.link->ops->close(q.link);
	if (late)
		event_free(late);
	*answer = q.answer;
	if (!rc && !q.answered) {
		*err = q.why;
		rc = err->code ? -err->code : -EPIPE;
	}
	return rc;
}
