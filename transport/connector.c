// SPDX-License-Identifier: Apache-2.0
// resolve -> for each address: connect -> opening (connect's end, handshake) -> link. The latest
// failure is the one that is told.
#include "transport/connector.h"

#include <errno.h>
#include <event2/dns.h>
#include <event2/event.h>
#include <event2/util.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "transport/channel.h"
#include "transport/link.h"
#include "transport/opening.h"
#include "transport/sockaddr.h"

#define BUSY_RETRY_MS 20 /* a UNIX socket with a full backlog cannot be waited for */

struct address {
	struct sockaddr_storage addr;
	socklen_t len;
};

struct connector {
	struct event_base *base;
	const struct tls_config *tls;
	connector_fn *fn;
	void *ctx;
	struct uri uri;
	unsigned deadline_ms;
	uint64_t until_ms;	/* CLOCK_MONOTONIC */
	struct event *next;	/* tries the next address */
	struct event *deadline; /* of resolving; later steps have their share of it */
	struct evdns_base *dns;
	struct evdns_getaddrinfo_request *request;
	struct address addresses[CONNECTOR_ADDRESSES_MAX];
	unsigned addresses_n, tried;
	struct opening *opening;
	struct ft_err why; /* of the latest failure */
};

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static unsigned left_ms(const struct connector *c)
{
	uint64_t now = now_ms();

	return now < c->until_ms ? (unsigned)(c->until_ms - now) : 0;
}

static void arm(struct event *event, unsigned ms)
{
	struct timeval tv = {ms / 1000, (long)(ms % 1000) * 1000};

	event_add(event, &tv);
}

static void connector_free(struct connector *c)
{
	opening_cancel(c->opening);
	/* The cancelled request still calls resolved() later, with a ctx that it may not touch. */
	if (c->request)
		evdns_getaddrinfo_cancel(c->request);
	if (c->dns)
		evdns_base_free(c->dns, 0);
	if (c->next)
		event_free(c->next);
	if (c->deadline)
		event_free(c->deadline);
	free(c);
}

static void finish(struct connector *c, struct ft_link *link)
{
	connector_fn *fn = c->fn;
	void *ctx = c->ctx;
	struct ft_err why = c->why;
	char text[URI_TEXT_MAX + 1];

	if (!link)
		ft_err_context(&why, "connect to %s", uri_format(&c->uri, text, sizeof text));
	connector_free(c);
	fn(ctx, link, link ? NULL : &why);
}

/* ---- one address ---- */

static void opened(void *ctx, struct channel *channel, const struct ft_err *why)
{
	struct connector *c = ctx;
	struct ft_link *link = NULL;
	char text[URI_TEXT_MAX + 1];

	c->opening = NULL;
	if (channel)
		link = link_new(c->base, channel, uri_format(&c->uri, text, sizeof text), &c->why);
	else
		c->why = *why;
	if (link || c->tried == c->addresses_n)
		finish(c, link);
	else
		arm(c->next, 0);
}

static int start_connect(const struct address *a)
{
	int fd = socket(a->addr.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), code;

	if (fd < 0)
		return -errno;
	if (!connect(fd, (const struct sockaddr *)&a->addr, a->len) || errno == EINPROGRESS)
		return fd;
	code = errno;
	close(fd);
	return -code;
}

/* fd is taken. */
static int start_opening(struct connector *c, int fd)
{
	unsigned share = left_ms(c) / (c->addresses_n - c->tried + 1);
	struct channel *channel = channel_socket_new(fd, &c->why);

	if (channel && c->uri.scheme == URI_TLS)
		channel = channel_tls_new(c->tls, channel, TLS_CONNECT, c->uri.host, &c->why);
	if (!channel)
		return -c->why.code;
	c->opening = opening_start(c->base, channel, share, opened, c);
	return c->opening ? 0 : ft_err_set(&c->why, ENOMEM, "%s", strerror(ENOMEM));
}

static void try_next(evutil_socket_t unused, short what, void *arg)
{
	struct connector *c = arg;
	int fd;

	(void)unused;
	(void)what;
	while (c->tried < c->addresses_n) {
		fd = start_connect(&c->addresses[c->tried]);
		if (fd == -EAGAIN && left_ms(c) > BUSY_RETRY_MS) {
			arm(c->next, BUSY_RETRY_MS);
			return;
		}
		c->tried++;
		if (fd < 0)
			ft_err_set(&c->why, -fd, "connecting: %s",
				   fd == -EAGAIN ? "its backlog stays full" : strerror(-fd));
		else if (!start_opening(c, fd))
			return;
	}
	finish(c, NULL);
}

/* ---- resolving ---- */

static void resolved(int result, struct evutil_addrinfo *list, void *arg)
{
	struct connector *c = arg;

	if (result == EVUTIL_EAI_CANCEL) /* freed already */
		return;
	c->request = NULL;
	event_del(c->deadline);
	for (const struct evutil_addrinfo *ai = list; ai; ai = ai->ai_next) {
		struct address *a = &c->addresses[c->addresses_n];

		if (c->addresses_n == CONNECTOR_ADDRESSES_MAX)
			break;
		memcpy(&a->addr, ai->ai_addr, ai->ai_addrlen);
		a->len = (socklen_t)ai->ai_addrlen;
		c->addresses_n++;
	}
	if (list)
		evutil_freeaddrinfo(list);
	if (!c->addresses_n)
		ft_err_set(&c->why, EHOSTUNREACH, "host %s: %s", c->uri.host,
			   result ? evutil_gai_strerror(result) : "has no address");
	arm(c->next, 0);
}

static void expired(evutil_socket_t fd, short what, void *arg)
{
	struct connector *c = arg;

	(void)fd;
	(void)what;
	ft_err_set(&c->why, ETIMEDOUT, "host %s: no answer from DNS within %u ms", c->uri.host,
		   c->deadline_ms);
	finish(c, NULL);
}

static int resolve(struct connector *c)
{
	struct evutil_addrinfo hints = {.ai_family = AF_UNSPEC,
					.ai_socktype = SOCK_STREAM,
					.ai_flags = EVUTIL_AI_NUMERICSERV | EVUTIL_AI_NUMERICHOST};
	struct evutil_addrinfo *list = NULL;
	char port[8];

	snprintf(port, sizeof port, "%u", c->uri.port);
	/* The C library knows numeric addresses with zones, and asks nobody for them. */
	if (!evutil_getaddrinfo(c->uri.host, port, &hints, &list)) {
		resolved(0, list, c);
		return 0;
	}
	hints.ai_flags = EVUTIL_AI_NUMERICSERV;
	c->dns = evdns_base_new(c->base, EVDNS_BASE_DISABLE_WHEN_INACTIVE);
	if (!c->dns)
		return -ENOMEM;
	/* No resolv.conf is no error: /etc/hosts may do. */
	evdns_base_resolv_conf_parse(c->dns, DNS_OPTIONS_ALL, "/etc/resolv.conf");
	arm(c->deadline, c->deadline_ms);
	/* Answers from /etc/hosts at once; then resolved() has run and there is no request. */
	c->request = evdns_getaddrinfo(c->dns, c->uri.host, port, &hints, resolved, c);
	return 0;
}

static int check(const struct uri *uri, const struct tls_config *tls, struct ft_err *err)
{
	if (uri->scheme == URI_FILE)
		return ft_err_set(err, EINVAL, "nobody answers at a file");
	if (uri->scheme == URI_TLS && !tls)
		return ft_err_set(err, EINVAL, "no certificate is configured");
	return 0;
}

int connector_start(struct event_base *base, const struct uri *uri, const struct tls_config *tls,
		    unsigned deadline_ms, connector_fn *fn, void *ctx, struct connector **out,
		    struct ft_err *err)
{
	struct connector *c = NULL;
	char text[URI_TEXT_MAX + 1];
	int r = check(uri, tls, err);

	if (!r && !(c = calloc(1, sizeof *c)))
		r = ft_err_set(err, ENOMEM, "%s", strerror(ENOMEM));
	if (r || !c)
		return ft_err_context(err, "connect to %s", uri_format(uri, text, sizeof text));
	c->base = base;
	c->tls = tls;
	c->fn = fn;
	c->ctx = ctx;
	c->uri = *uri;
	c->deadline_ms = deadline_ms;
	c->until_ms = now_ms() + deadline_ms;
	c->next = evtimer_new(base, try_next, c);
	c->deadline = evtimer_new(base, expired, c);
	if (c->next && c->deadline && uri->scheme == URI_UNIX) {
		c->addresses[0].len = sockaddr_of_path(uri, &c->addresses[0].addr);
		c->addresses_n = 1;
		arm(c->next, 0);
	} else if (!c->next || !c->deadline || resolve(c)) {
		connector_free(c);
		ft_err_set(err, ENOMEM, "%s", strerror(ENOMEM));
		return ft_err_context(err, "connect to %s", uri_format(uri, text, sizeof text));
	}
	*out = c;
	return 0;
}

void connector_cancel(struct connector *c)
{
	if (c)
		connector_free(c);
}
