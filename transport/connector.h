/* SPDX-License-Identifier: Apache-2.0 */
/* Makes a link to a peer: resolves, connects, shakes hands, all within one deadline, without ever
 * blocking. Thread of the event base.
 *
 * Names are looked up in /etc/hosts, then by DNS (libevent's resolver: other sources of
 * nsswitch.conf are not asked). The addresses of a name are tried in turn; each has its share of
 * the time that is left.
 *
 * With TLS 1.3 the connecting side is ready before the peer has checked its certificate: a refusal
 * arrives as the link's `closed`, and its text says so. */
#ifndef TRANSPORT_CONNECTOR_H
#define TRANSPORT_CONNECTOR_H

#include "ft/err.h"
#include "ft/link.h"
#include "transport/tls_config.h"
#include "transport/uri.h"

struct event_base;
struct connector;

#define CONNECTOR_ADDRESSES_MAX 8

/* Called once, from the loop; the connector is gone by then. link: the callee's, which sets
 * link->events before it returns; NULL: *why says what failed. */
typedef void connector_fn(void *ctx, struct ft_link *link, const struct ft_err *why);

/* tls: for tls URIs, else NULL; must live until fn is called. Errors here are the caller's (a file
 * URI, tls without certificates) or ENOMEM; everything else is told to fn. */
int connector_start(struct event_base *base, const struct uri *uri, const struct tls_config *tls,
		    unsigned deadline_ms, connector_fn *fn, void *ctx, struct connector **out,
		    struct ft_err *err);
/* fn is not called. Accepts NULL. */
void connector_cancel(struct connector *c);

#endif
