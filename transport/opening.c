// SPDX-License-Identifier: Apache-2.0
#include "transport/opening.h"

#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <stdlib.h>

struct opening {
	struct channel *channel;
	struct event *ready;	/* one shot, re-made for what the channel wants next */
	struct event *deadline; /* of the whole */
	unsigned deadline_ms;
	opening_fn *fn;
	void *ctx;
};

static void opening_free(struct opening *o)
{
	if (o->ready)
		event_free(o->ready);
	if (o->deadline)
		event_free(o->deadline);
	if (o->channel)
		o->channel->ops->close(o->channel);
	free(o);
}

static void finish(struct opening *o, const struct ft_err *why)
{
	struct channel *channel = o->channel;
	opening_fn *fn = o->fn;
	void *ctx = o->ctx;

	if (!why)
		o->channel = NULL;
	opening_free(o);
	fn(ctx, why ? NULL : channel, why);
}

static void step(evutil_socket_t fd, short what, void *arg)
{
	struct opening *o = arg;
	struct ft_err err = {0};
	short want = 0;

	(void)what;
	switch (o->channel->ops->open(o->channel, &err)) {
	case CHANNEL_DONE:
		finish(o, NULL);
		return;
	case CHANNEL_WANT_READ:
		want = EV_READ;
		break;
	case CHANNEL_WANT_WRITE:
		want = EV_WRITE;
		break;
	case CHANNEL_CLOSED:
	case CHANNEL_ERROR:
		ft_err_context(&err, "%s", o->channel->doing);
		finish(o, &err);
		return;
	}
	if (event_assign(o->ready, event_get_base(o->ready), fd, want, step, o) ||
	    event_add(o->ready, NULL)) {
		ft_err_set(&err, ENOMEM, "%s: event loop", o->channel->doing);
		finish(o, &err);
	}
}

static void expired(evutil_socket_t fd, short what, void *arg)
{
	struct opening *o = arg;
	struct ft_err err;

	(void)fd;
	(void)what;
	ft_err_set(&err, ETIMEDOUT, "%s: no answer within %u ms", o->channel->doing,
		   o->deadline_ms);
	finish(o, &err);
}

struct opening *opening_start(struct event_base *base, struct channel *channel,
			      unsigned deadline_ms, opening_fn *fn, void *ctx)
{
	struct timeval tv = {deadline_ms / 1000, (long)(deadline_ms % 1000) * 1000};
	struct opening *o = calloc(1, sizeof *o);

	if (!o) {
		channel->ops->close(channel);
		return NULL;
	}
	o->channel = channel;
	o->deadline_ms = deadline_ms;
	o->fn = fn;
	o->ctx = ctx;
	o->ready = event_new(base, channel->ops->fd(channel), EV_WRITE, step, o);
	o->deadline = evtimer_new(base, expired, o);
	/* A first step is due as soon as the loop runs, whatever the socket says: a connection may
	 * have failed already. */
	if (!o->ready || !o->deadline || event_add(o->deadline, &tv)) {
		opening_free(o);
		return NULL;
	}
	event_active(o->ready, EV_WRITE, 1);
	return o;
}

void opening_cancel(struct opening *o)
{
	if (o)
		opening_free(o);
}
