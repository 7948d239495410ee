// SPDX-License-Identifier: Apache-2.0
/* Connections to the other agent: the listener of a standby, and dials. The engine gets ready links
 * only. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "ft/log.h"
#include "tools/agent/agent.h"
#include "transport/link.h"

#define DIAL_MAX_MS 3000

static int check_uri(struct agent *a, const char *text, struct uri *uri, struct ft_err *err)
{
	int rc = uri_parse(text, uri, err);

	if (rc)
		return rc;
	if (uri->scheme == URI_FILE)
		return ft_err_set(err, EINVAL, "%s: a file is no peer", text);
	if (uri->scheme == URI_TCP && !a->config.tls.insecure)
		return ft_err_set(
			err, EPERM,
			"%s: plaintext: refused unless the guest file says tls { insecure = true }",
			text);
	if (uri->scheme == URI_TLS && !a->tls)
		return ft_err_set(err, EINVAL, "%s: the guest file has no tls { ca, cert, key }",
				  text);
	return 0;
}

/* The same on both hosts, for it comes from the name unless the guest file gives one. */
void peer_link(const struct agent *a, struct ft_link *link)
{
	uint8_t uuid[FRAME_UUID];
	unsigned n = 0, byte;

	for (const char *p = a->config.uuid; *p && n < sizeof uuid; p += 2) {
		p += *p == '-';
		if (sscanf(p, "%2x", &byte) != 1)
			break;
		uuid[n++] = (uint8_t)byte;
	}
	assert(n == sizeof uuid); /* config.c checked its form */
	link_set_uuid(link, uuid);
}

static void on_accepted(void *ctx, struct ft_link *link)
{
	struct agent *a = ctx;

	peer_link(a, link);
	ft_engine_accepted(a->engine, link);
}

static void on_refused(void *ctx, const struct ft_err *why)
{
	struct agent *a = ctx;

	ft_warn("%s: %s", a->config.name, why->text);
}

int peer_listen(struct agent *a, const char *text, struct ft_err *err)
{
	struct listener_events events = {.accepted = on_accepted, .refused = on_refused, .ctx = a};
	struct uri uri;
	int rc = check_uri(a, text, &uri, err);

	if (rc)
		return ft_err_context(err, "--incoming");
	a->target = !uri.kemari;
	return listener_open(a->base, &uri, uri.scheme == URI_TLS ? a->tls : NULL, &events,
			     &a->listener, err);
}

int peer_set(struct agent *a, const char *text, struct ft_err *err)
{
	struct uri uri;
	int rc = check_uri(a, text, &uri, err);

	if (rc)
		return rc;
	a->peer = uri;
	a->has_peer = true;
	return 0;
}

static void on_dialed(void *ctx, struct ft_link *link, const struct ft_err *why)
{
	struct agent_dial *d = ctx;

	d->connector = NULL;
	if (link)
		peer_link(d->agent, link);
	ft_engine_dialed(d->agent->engine, d->heartbeat, link, why);
}

static void on_dial_failed(evutil_socket_t fd, short what, void *ctx)
{
	struct agent_dial *d = ctx;

	(void)fd;
	(void)what;
	ft_engine_dialed(d->agent->engine, d->heartbeat, NULL, &d->why);
}

void peer_dial(struct agent *a, bool heartbeat)
{
	struct agent_dial *d = &a->dials[heartbeat];
	int rc = 0;

	if (d->connector || (d->soon && event_pending(d->soon, EV_TIMEOUT, NULL)))
		return;
	d->agent = a;
	d->heartbeat = heartbeat;
	if (!a->has_peer)
		rc = ft_err_set(&d->why, EDESTADDRREQ,
				"no peer is known: `ftctl migrate %s URI` names one",
				a->config.name);
	else
		rc = connector_start(a->base, &a->peer, a->peer.scheme == URI_TLS ? a->tls : NULL,
				     DIAL_MAX_MS, on_dialed, d, &d->connector, &d->why);
	if (rc) {
		struct timeval now = {0};

		if (!d->soon)
			d->soon = evtimer_new(a->base, on_dial_failed, d);
		if (d->soon)
			evtimer_add(d->soon, &now);
	}
}

void peer_hang_up(struct agent *a)
{
	for (unsigned i = 0; i < 2; i++) {
		connector_cancel(a->dials[i].connector);
		a->dials[i].connector = NULL;
		if (a->dials[i].soon)
			evtimer_del(a->dials[i].soon);
	}
}
