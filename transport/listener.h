/* SPDX-License-Identifier: Apache-2.0 */
/* Waits for peers on one tls, tcp or unix address and hands over links that are ready: over TLS the
 * peer's certificate has been checked. Thread of the event base. */
#ifndef TRANSPORT_LISTENER_H
#define TRANSPORT_LISTENER_H

#include "ft/err.h"
#include "ft/link.h"
#include "transport/tls_config.h"
#include "transport/uri.h"

struct event_base;
struct listener;

/* Who does not finish its handshake in time is dropped; while so many are at it, the next wait in
 * the kernel's backlog. */
#define LISTENER_HANDSHAKE_MS 5000
#define LISTENER_PENDING_MAX  16

struct listener_events {
	/* The link is the callee's; it sets link->events before it returns. */
	void (*accepted)(void *ctx, struct ft_link *link);
	/* Somebody came and failed; *why names who and what. For the log; strangers are no error of
	 * ours. */
	void (*refused)(void *ctx, const struct ft_err *why);
	void *ctx;
};

/* Start-up: resolves the host with getaddrinfo(3), which may block. tls: for tls URIs, else NULL;
 * must live as long as the listener. A port in use, a socket file on which somebody listens, a path
 * that is no socket: one clear line. A socket file left by a dead process is replaced; a new one is
 * accessible to our user only. Accepts from the next turn of the loop on. */
int listener_open(struct event_base *base, const struct uri *uri, const struct tls_config *tls,
		  const struct listener_events *events, struct listener **out, struct ft_err *err);
/* The address, with the port that the kernel chose if it was 0. */
const struct uri *listener_uri(const struct listener *l);
/* Drops handshakes in progress; links that were handed over live on. No callback comes after. May
 * be called in a callback. Accepts NULL. */
void listener_close(struct listener *l);

#endif
