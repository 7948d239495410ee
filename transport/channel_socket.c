// SPDX-License-Identifier: Apache-2.0
// TCP and UNIX stream sockets. A dead peer host is noticed in seconds, not in the kernel's default
// quarter of an hour: by TCP_USER_TIMEOUT when we wait for an acknowledgement, by keepalive when we
// wait for nothing. Both are a last resort; heartbeats are faster.
#include "transport/channel.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define USER_TIMEOUT_MS	 CHANNEL_WAIT_MS
#define KEEPALIVE_IDLE_S 5
#define KEEPALIVE_EACH_S 1
#define KEEPALIVE_PROBES 5
#define EXPECT_MAX	 (256 << 10)

struct channel_socket {
	struct channel channel;
	int fd;
	bool open;
	bool blocks; /* the descriptor does; each call says whether it wants that */
	int flags;   /* for each call */
	size_t expected;
};

static struct channel_socket *of(struct channel *c)
{
	return (struct channel_socket *)c;
}

static enum channel_status failed(int code, struct ft_err *err)
{
	ft_err_set(err, code, "%s", code == EPIPE ? "closed by the peer" : strerror(code));
	return CHANNEL_ERROR;
}

/* connect(2) is over when the socket has a peer; until then SO_ERROR is 0 as well. */
static enum channel_status socket_open(struct channel *c, struct ft_err *err)
{
	struct channel_socket *s = of(c);
	struct sockaddr_storage peer;
	socklen_t len = sizeof peer;
	int code = 0;

	if (s->open)
		return CHANNEL_DONE;
	if (!getpeername(s->fd, (struct sockaddr *)&peer, &len)) {
		s->open = true;
		return CHANNEL_DONE;
	}
	len = sizeof code;
	if (getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &code, &len))
		code = errno;
	return code ? failed(code, err) : CHANNEL_WANT_WRITE;
}

static enum channel_status socket_read(struct channel *c, void *buf, size_t len, size_t *done,
				       struct ft_err *err)
{
	ssize_t n;

	do
		n = recv(of(c)->fd, buf, len, of(c)->flags);
	while (n < 0 && errno == EINTR);
	if (n > 0) {
		*done = (size_t)n;
		return CHANNEL_DONE;
	}
	if (n == 0) {
		ft_err_set(err, EPIPE, "closed by the peer");
		return CHANNEL_CLOSED;
	}
	if (errno == EAGAIN || errno == EWOULDBLOCK)
		return CHANNEL_WANT_READ;
	return failed(errno, err);
}

static enum channel_status socket_write(struct channel *c, const struct iovec *iov, int iov_n,
					size_t *done, struct ft_err *err)
{
	struct msghdr msg = {.msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)iov_n};
	ssize_t n;

	do
		n = sendmsg(of(c)->fd, &msg, of(c)->flags | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n > 0) {
		*done = (size_t)n;
		return CHANNEL_DONE;
	}
	if (n == 0 || errno == EAGAIN || errno == EWOULDBLOCK)
		return CHANNEL_WANT_WRITE;
	return failed(errno, err);
}

static bool socket_pending(const struct channel *c)
{
	(void)c;
	return false;
}

static int socket_fd(const struct channel *c)
{
	return ((const struct channel_socket *)c)->fd;
}

static void socket_shutdown(struct channel *c)
{
	shutdown(of(c)->fd, SHUT_WR);
}

static void socket_close(struct channel *c)
{
	close(of(c)->fd);
	free(c);
}

static void socket_wait(struct channel *c, bool on)
{
	static const struct timeval bound = {CHANNEL_WAIT_MS / 1000, 0};
	struct channel_socket *s = of(c);
	int flags;

	s->flags = on ? 0 : MSG_DONTWAIT;
	if (!on || s->blocks)
		return;
	flags = fcntl(s->fd, F_GETFL);
	s->blocks = flags >= 0 && !fcntl(s->fd, F_SETFL, flags & ~O_NONBLOCK) &&
		    !setsockopt(s->fd, SOL_SOCKET, SO_RCVTIMEO, &bound, sizeof bound) &&
		    !setsockopt(s->fd, SOL_SOCKET, SO_SNDTIMEO, &bound, sizeof bound);
	assert(s->blocks); /* else it is no socket */
}

/* Each wake-up costs both ends as much as a copy of many KiB. The kernel wakes us earlier when it
 * has no room for so much. */
static void socket_expect(struct channel *c, size_t bytes)
{
	struct channel_socket *s = of(c);
	int low = bytes < EXPECT_MAX ? (int)bytes : EXPECT_MAX;

	if (s->expected != (size_t)low &&
	    !setsockopt(s->fd, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low))
		s->expected = (size_t)low;
}

static const struct channel_ops socket_ops = {
	.open = socket_open,
	.read = socket_read,
	.write = socket_write,
	.pending = socket_pending,
	.fd = socket_fd,
	.shutdown = socket_shutdown,
	.close = socket_close,
	.wait = socket_wait,
	.expect = socket_expect,
};
static_assert(CHANNEL_WAIT_MS % 1000 == 0, "whole seconds");

static int set_option(int fd, int level, int option, int value)
{
	return setsockopt(fd, level, option, &value, sizeof value) ? -errno : 0;
}

static int set_options(int fd)
{
	int flags = fcntl(fd, F_GETFL), domain = 0, r = 0;
	socklen_t len = sizeof domain;

	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) || fcntl(fd, F_SETFD, FD_CLOEXEC) ||
	    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len))
		return -errno;
	if (domain == AF_UNIX)
		return 0;
	r = r ? r : set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	r = r ? r : set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, USER_TIMEOUT_MS);
	r = r ? r : set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
	r = r ? r : set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_EACH_S);
	r = r ? r : set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES);
	return r ? r : set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
}

struct channel *channel_socket_new(int fd, struct ft_err *err)
{
	struct channel_socket *s = calloc(1, sizeof *s);
	int r = s ? set_options(fd) : -ENOMEM;

	if (r) {
		ft_err_set(err, -r, "socket: %s", strerror(-r));
		free(s);
		close(fd);
		return NULL;
	}
	s->channel.ops = &socket_ops;
	s->channel.doing = "connecting";
	s->fd = fd;
	s->flags = MSG_DONTWAIT;
	s->expected = 1;
	return &s->channel;
}
