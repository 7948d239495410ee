// SPDX-License-Identifier: Apache-2.0
// accept(2) is paused while LISTENER_PENDING_MAX handshakes are in progress or the host is out of
// descriptors: strangers can use up neither memory nor the processor, at worst they make others
// wait for LISTENER_HANDSHAKE_MS.
#include "transport/listener.h"

#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "transport/channel.h"
#include "transport/link.h"
#include "transport/opening.h"
#include "transport/sockaddr.h"

#define BACKLOG	       16
#define RETRY_PAUSE_MS 100 /* when the host is out of descriptors or memory */
#define PEER_MAX       128 /* as in struct ft_link */

struct pending {
	struct listener *listener;
	struct opening *opening; /* NULL: slot is free */
	char peer[PEER_MAX];
};

struct listener {
	struct event_base *base;
	const struct tls_config *tls;
	struct listener_events events;
	struct uri uri;
	int fd;
	struct stat socket_file; /* unix: ours, not a successor's, is removed at the end */
	struct event *ready, *retry;
	struct pending pending[LISTENER_PENDING_MAX];
	unsigned depth; /* callbacks in progress */
	bool closed;
};

/* ---- making the socket ---- */

static int bind_tcp_address(const struct addrinfo *ai)
{
	int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1,
	    code;

	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	/* [::] means IPv6 only, the same on every host, whatever its sysctl says. */
	if (ai->ai_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
	if (!bind(fd, ai->ai_addr, ai->ai_addrlen) && !listen(fd, BACKLOG))
		return fd;
	code = errno;
	close(fd);
	return -code;
}

static int open_tcp(const struct uri *uri, struct ft_err *err)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
				 .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
	struct addrinfo *list;
	char port[8];
	int fd, r;

	snprintf(port, sizeof port, "%u", uri->port);
	r = getaddrinfo(uri->host, port, &hints, &list);
	if (r)
		return ft_err_set(err, EADDRNOTAVAIL, "host %s: %s", uri->host, gai_strerror(r));
	fd = bind_tcp_address(list);
	freeaddrinfo(list);
	if (fd == -EADDRINUSE)
		return ft_err_set(err, EADDRINUSE, "port %u is in use", uri->port);
	if (fd == -EADDRNOTAVAIL)
		return ft_err_set(err, EADDRNOTAVAIL, "%s is no address of this host", uri->host);
	return fd < 0 ? ft_err_set(err, -fd, "%s", strerror(-fd)) : fd;
}

/* A socket file that nobody listens on is what a dead process left. */
static int remove_stale(const struct uri *uri, const struct sockaddr_storage *addr, socklen_t len,
			struct ft_err *err)
{
	struct stat st;
	int fd, code;

	if (lstat(uri->path, &st))
		return errno == ENOENT ? 0 : ft_err_set(err, errno, "%s", strerror(errno));
	if (!S_ISSOCK(st.st_mode))
		return ft_err_set(err, EEXIST, "the path exists and is no socket");
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return ft_err_set(err, errno, "%s", strerror(errno));
	code = connect(fd, (const struct sockaddr *)addr, len) ? errno : 0;
	close(fd);
	/* EAGAIN: its backlog is full, so there is one. */
	if (code == 0 || code == EAGAIN)
		return ft_err_set(err, EADDRINUSE, "another process listens there");
	if (code != ECONNREFUSED)
		return ft_err_set(err, code, "%s", strerror(code));
	if (unlink(uri->path) && errno != ENOENT)
		return ft_err_set(err, errno, "removing a stale socket: %s", strerror(errno));
	return 0;
}

static int open_unix(const struct uri *uri, struct stat *file, struct ft_err *err)
{
	struct sockaddr_storage addr;
	socklen_t len = sockaddr_of_path(uri, &addr);
	int fd, code, r = remove_stale(uri, &addr, len, err);

	if (r)
		return r;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	/* The file gets the mode of the socket: no moment in which others may connect, and no
	 * umask(2), which is the whole process's. */
	if (fd >= 0 && !fchmod(fd, S_IRUSR | S_IWUSR) &&
	    !bind(fd, (const struct sockaddr *)&addr, len) && !listen(fd, BACKLOG) &&
	    !lstat(uri->path, file))
		return fd;
	code = errno;
	if (fd >= 0)
		close(fd);
	return ft_err_set(err, code, "%s", strerror(code));
}

static void learn_port(struct listener *l)
{
	struct sockaddr_storage addr;
	socklen_t len = sizeof addr;
	struct uri actual;

	if (!uri_is_tcp_based(&l->uri) || getsockname(l->fd, (struct sockaddr *)&addr, &len))
		return;
	sockaddr_to_uri(&addr, &l->uri, &actual);
	l->uri.port = actual.port;
}

/* ---- accepting ---- */

static void destroy(struct listener *l)
{
	struct stat st;

	if (l->ready)
		event_free(l->ready);
	if (l->retry)
		event_free(l->retry);
	if (l->fd >= 0 && l->uri.scheme == URI_UNIX && !lstat(l->uri.path, &st) &&
	    st.st_ino == l->socket_file.st_ino && st.st_dev == l->socket_file.st_dev)
		unlink(l->uri.path);
	if (l->fd >= 0)
		close(l->fd);
	free(l);
}

static void refuse(struct listener *l, const char *peer, struct ft_err *why)
{
	ft_err_context(why, "peer %s", peer);
	l->depth++;
	l->events.refused(l->events.ctx, why);
	l->depth--;
}

static void leave(struct listener *l)
{
	if (l->closed && !l->depth)
		destroy(l);
}

static struct pending *free_slot(struct listener *l)
{
	for (unsigned i = 0; i < LISTENER_PENDING_MAX; i++)
		if (!l->pending[i].opening)
			return &l->pending[i];
	return NULL;
}

static void opened(void *ctx, struct channel *channel, const struct ft_err *why)
{
	struct pending *p = ctx;
	struct listener *l = p->listener;
	struct ft_link *link = NULL;
	struct ft_err err = {0};

	p->opening = NULL;
	event_add(l->ready, NULL);
	if (channel)
		link = link_new(l->base, channel, p->peer, &err);
	else
		err = *why;
	if (link) {
		l->depth++;
		l->events.accepted(l->events.ctx, link);
		l->depth--;
	} else {
		refuse(l, p->peer, &err);
	}
	leave(l);
}

/* Takes fd. */
static void start(struct listener *l, struct pending *p, int fd,
		  const struct sockaddr_storage *from)
{
	struct ft_err err = {0};
	struct channel *channel;
	struct uri peer;
	char text[URI_TEXT_MAX + 1];

	sockaddr_to_uri(from, &l->uri, &peer);
	snprintf(p->peer, sizeof p->peer, "%.*s", PEER_MAX - 1,
		 uri_format(&peer, text, sizeof text));
	channel = channel_socket_new(fd, &err);
	if (channel && l->uri.scheme == URI_TLS)
		channel = channel_tls_new(l->tls, channel, TLS_ACCEPT, NULL, &err);
	if (channel) {
		p->opening = opening_start(l->base, channel, LISTENER_HANDSHAKE_MS, opened, p);
		if (!p->opening)
			ft_err_set(&err, ENOMEM, "%s", strerror(ENOMEM));
	}
	if (!p->opening)
		refuse(l, p->peer, &err);
}

static void retry(evutil_socket_t fd, short what, void *arg)
{
	struct listener *l = arg;

	(void)fd;
	(void)what;
	event_add(l->ready, NULL);
}

static void ready(evutil_socket_t listen_fd, short what, void *arg)
{
	static const struct timeval pause = {0, RETRY_PAUSE_MS * 1000};
	struct listener *l = arg;
	struct sockaddr_storage from;
	socklen_t len = sizeof from;
	struct pending *p = free_slot(l);
	int fd;

	(void)what;
	if (!p) {
		event_del(l->ready);
		return;
	}
	memset(&from, 0, sizeof from);
	fd = accept4(listen_fd, (struct sockaddr *)&from, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd >= 0) {
		start(l, p, fd, &from);
		leave(l);
	} else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
		event_del(l->ready);
		event_add(l->retry, &pause);
	}
	/* Else the peer gave up before we came to it. */
}

static int open_socket(struct listener *l, struct ft_err *err)
{
	switch (l->uri.scheme) {
	case URI_TLS:
		if (!l->tls)
			return ft_err_set(err, EINVAL, "no certificate is configured");
		return open_tcp(&l->uri, err);
	case URI_TCP:
		return open_tcp(&l->uri, err);
	case URI_UNIX:
		return open_unix(&l->uri, &l->socket_file, err);
	case URI_FILE:
		break;
	}
	return ft_err_set(err, EINVAL, "nobody listens on a file");
}

int listener_open(struct event_base *base, const struct uri *uri, const struct tls_config *tls,
		  const struct listener_events *events, struct listener **out, struct ft_err *err)
{
	struct listener *l = calloc(1, sizeof *l);
	char text[URI_TEXT_MAX + 1];

	uri_format(uri, text, sizeof text);
	if (!l) {
		ft_err_set(err, ENOMEM, "%s", strerror(ENOMEM));
		return ft_err_context(err, "listen on %s", text);
	}
	l->base = base;
	l->tls = tls;
	l->events = *events;
	l->uri = *uri;
	for (unsigned i = 0; i < LISTENER_PENDING_MAX; i++)
		l->pending[i].listener = l;
	l->fd = open_socket(l, err);
	if (l->fd < 0) {
		free(l);
		return ft_err_context(err, "listen on %s", text);
	}
	l->ready = event_new(base, l->fd, EV_READ | EV_PERSIST, ready, l);
	l->retry = evtimer_new(base, retry, l);
	if (!l->ready || !l->retry || event_add(l->ready, NULL)) {
		destroy(l);
		ft_err_set(err, ENOMEM, "%s", strerror(ENOMEM));
		return ft_err_context(err, "listen on %s", text);
	}
	learn_port(l);
	*out = l;
	return 0;
}

const struct uri *listener_uri(const struct listener *l)
{
	return &l->uri;
}

void listener_close(struct listener *l)
{
	if (!l)
		return;
	assert(!l->closed);
	for (unsigned i = 0; i < LISTENER_PENDING_MAX; i++)
		opening_cancel(l->pending[i].opening);
	event_del(l->ready);
	event_del(l->retry);
	l->closed = true;
	leave(l);
}
