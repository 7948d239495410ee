/* SPDX-License-Identifier: Apache-2.0 */
/* A channel on its way to being usable: connects and shakes hands within a deadline. Listener and
 * connector both are made of these. Thread of the event base. */
#ifndef TRANSPORT_OPENING_H
#define TRANSPORT_OPENING_H

#include "ft/err.h"
#include "transport/channel.h"

struct event_base;
struct opening;

/* Called once, from the loop, never from within opening_start(); the opening is gone by then.
 * channel: ready, now the callee's; NULL: it failed and *why says so. */
typedef void opening_fn(void *ctx, struct channel *channel, const struct ft_err *why);

/* Takes the channel in any case. NULL: out of memory. */
struct opening *opening_start(struct event_base *base, struct channel *channel,
			      unsigned deadline_ms, opening_fn *fn, void *ctx);
/* Closes the channel; fn is not called. Accepts NULL. */
void opening_cancel(struct opening *o);

#endif
