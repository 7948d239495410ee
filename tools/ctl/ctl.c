// SPDX-License-Identifier: Apache-2.0
/* The control socket: names, bounds, and the client, which is plain blocking code with one deadline
 * over all of its steps. */
#include "tools/ctl/ctl.h"

#include <ctype.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

bool ctl_name_ok(const char *name)
{
	size_t len = strlen(name);

	if (!len || len >= CTL_NAME_MAX || *name == '.' || *name == '-' || *name == '_')
		return false;
	return len ==
	       strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");
}

int ctl_socket_path(const char *run_dir, const char *name, struct sockaddr_un *addr,
		    struct ft_err *err)
{
	int n;

	*addr = (struct sockaddr_un){.sun_family = AF_UNIX};
	if (!ctl_name_ok(name))
		return ft_err_set(err, EINVAL, "'%s' is not a guest's name (%s)", name,
				  CTL_NAME_RULE);
	n = snprintf(addr->sun_path, sizeof addr->sun_path, "%s/%s.sock", run_dir, name);
	if (n >= (int)sizeof addr->sun_path)
		return ft_err_set(err, ENAMETOOLONG,
				  "%s/%s.sock: longer than %zu bytes, the bound of a unix socket",
				  run_dir, name, sizeof addr->sun_path - 1);
	return 0;
}

void ctl_put_length(uint8_t out[CTL_HEADER_BYTES], uint32_t length)
{
	for (int i = 0; i < CTL_HEADER_BYTES; i++)
		out[i] = (uint8_t)(length >> (8 * i));
}

uint32_t ctl_get_length(const uint8_t in[CTL_HEADER_BYTES])
{
	return in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 | (uint32_t)in[3] << 24;
}

const char *ctl_error_word(int code)
{
	switch (code) {
	case EINVAL:
	case ENAMETOOLONG:
		return CTL_ERR_USAGE;
	case ECONNREFUSED:
		return CTL_ERR_NOT_RUNNING;
	case ETIMEDOUT:
		return CTL_ERR_NO_ANSWER;
	case EPROTO:
		return CTL_ERR_PROTOCOL;
	default:
		return CTL_ERR_FAILED;
	}
}

struct conversation {
	const char *name;
	int fd;
	int64_t deadline_ms; /* CLOCK_MONOTONIC; -1 = none */
	struct ft_err *err;
};

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static int wait_for(struct conversation *c, short events)
{
	struct pollfd pfd = {.fd = c->fd, .events = events};

	for (;;) {
		int64_t left = c->deadline_ms < 0 ? -1 : c->deadline_ms - now_ms();
		int n = c->deadline_ms >= 0 && left <= 0 ? 0 : poll(&pfd, 1, (int)left);

		if (n > 0)
			return 0;
		if (!n)
			return ft_err_set(c->err, ETIMEDOUT,
					  "guest %s: its agent does not answer in time", c->name);
		if (errno != EINTR)
			return ft_err_set(c->err, errno, "poll: %s", strerror(errno));
	}
}

/* Not there, a socket that nobody listens on, or one that is full. */
static int try_connect(struct conversation *c, const struct sockaddr_un *addr)
{
	if (!connect(c->fd, (const struct sockaddr *)addr, sizeof *addr))
		return 0;
	switch (errno) {
	case ENOENT:
	case ECONNREFUSED:
		return ft_err_set(c->err, ECONNREFUSED, "guest %s: no agent is running here (%s)",
				  c->name, addr->sun_path);
	case EAGAIN:
		return ft_err_set(c->err, ETIMEDOUT,
				  "guest %s: its agent does not answer, too many wait for it",
				  c->name);
	default:
		return ft_err_set(c->err, errno, "%s: %s", addr->sun_path, strerror(errno));
	}
}

static int send_all(struct conversation *c, const uint8_t *data, size_t len)
{
	while (len) {
		ssize_t n = send(c->fd, data, len, MSG_NOSIGNAL);
		int ret;

		if (n >= 0) {
			data += n;
			len -= (size_t)n;
			continue;
		}
		if (errno == EPIPE || errno == ECONNRESET)
			return 0; /* its last word, "busy", may still be there to read */
		if (errno != EAGAIN && errno != EINTR)
			return ft_err_set(c->err, errno, "guest %s: send: %s", c->name,
					  strerror(errno));
		ret = wait_for(c, POLLOUT);
		if (ret)
			return ret;
	}
	return 0;
}

static int receive_all(struct conversation *c, uint8_t *data, size_t len)
{
	while (len) {
		ssize_t n;
		int ret = wait_for(c, POLLIN);

		if (ret)
			return ret;
		n = recv(c->fd, data, len, 0);
		if (n > 0) {
			data += n;
			len -= (size_t)n;
		} else if (!n || errno == ECONNRESET) {
			return ft_err_set(
				c->err, EPROTO,
				"guest %s: its agent closed the connection without an answer",
				c->name);
		} else if (errno != EAGAIN && errno != EINTR) {
			return ft_err_set(c->err, errno, "guest %s: receive: %s", c->name,
					  strerror(errno));
		}
	}
	return 0;
}

static int send_request(struct conversation *c, const Ctl__Request *request)
{
	size_t len = ctl__request__get_packed_size(request);
	uint8_t *buf;
	int ret;

	if (len > CTL_REQUEST_MAX)
		return ft_err_set(c->err, EINVAL, "arguments are longer than %u bytes",
				  CTL_REQUEST_MAX);
	buf = malloc(CTL_HEADER_BYTES + len);
	if (!buf)
		return ft_err_set(c->err, ENOMEM, "out of memory");
	ctl_put_length(buf, (uint32_t)len);
	ctl__request__pack(request, buf + CTL_HEADER_BYTES);
	ret = send_all(c, buf, CTL_HEADER_BYTES + len);
	free(buf);
	return ret;
}

static int receive_reply(struct conversation *c, Ctl__Reply **reply)
{
	uint8_t header[CTL_HEADER_BYTES], *buf;
	int ret = receive_all(c, header, sizeof header);
	uint32_t len;

	if (ret)
		return ret;
	len = ctl_get_length(header);
	if (len > CTL_REPLY_MAX)
		return ft_err_set(c->err, EPROTO, "guest %s: answer of %u bytes is longer than %u",
				  c->name, len, CTL_REPLY_MAX);
	buf = malloc(len ? len : 1);
	if (!buf)
		return ft_err_set(c->err, ENOMEM, "out of memory");
	ret = receive_all(c, buf, len);
	if (!ret) {
		*reply = ctl__reply__unpack(NULL, len, buf);
		if (!*reply)
			ret = ft_err_set(c->err, EPROTO, "guest %s: its agent's answer is garbage",
					 c->name);
	}
	free(buf);
	return ret;
}

int ctl_ask(const char *run_dir, const char *name, const Ctl__Request *request, int timeout_ms,
	    Ctl__Reply **reply, struct ft_err *err)
{
	struct conversation c = {.name = name,
				 .deadline_ms = timeout_ms < 0 ? -1 : now_ms() + timeout_ms,
				 .err = err};
	struct sockaddr_un addr;
	int ret = ctl_socket_path(run_dir, name, &addr, err);

	if (ret)
		return ret;
	c.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (c.fd < 0)
		return ft_err_set(err, errno, "socket: %s", strerror(errno));
	ret = try_connect(&c, &addr);
	if (!ret)
		ret = send_request(&c, request);
	if (!ret)
		ret = receive_reply(&c, reply);
	close(c.fd);
	return ret;
}
