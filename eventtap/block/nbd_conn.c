// SPDX-License-Identifier: Apache-2.0
// Bytes in and out of a connection. Sockets are used without blocking flags but never block: a try
// first, because under load the bytes are there already, then poll with a deadline.
// nbd_server_free() ends any of these waits with shutdown(2).
#include "eventtap/block/nbd_conn.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

uint64_t nbd_now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int wait_for(struct nbd_conn *conn, short events, int timeout_ms)
{
	struct pollfd poll_fd = {.fd = conn->fd, .events = events};
	for (;;) {
		int n = poll(&poll_fd, 1, timeout_ms);
		if (n > 0)
			return 0;
		if (n == 0)
			return -ETIMEDOUT;
		if (errno != EINTR)
			return -errno;
	}
}

int nbd_conn_read(struct nbd_conn *conn, void *buf, size_t len, int timeout_ms)
{
	uint8_t *at = buf;
	while (len > 0) {
		ssize_t n = recv(conn->fd, at, len, MSG_DONTWAIT);
		if (n > 0) {
			at += n;
			len -= (size_t)n;
			if (timeout_ms == NBD_NO_DEADLINE)
				timeout_ms = NBD_STALL_MS;
			continue;
		}
		if (n == 0)
			return -EPIPE;
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return -errno;
		int ret = wait_for(conn, POLLIN, timeout_ms);
		if (ret < 0)
			return ret;
	}
	return 0;
}

int nbd_conn_skip(struct nbd_conn *conn, uint64_t len)
{
	uint8_t waste[4096];
	while (len > 0) {
		size_t part = len < sizeof(waste) ? (size_t)len : sizeof(waste);
		int ret = nbd_conn_read(conn, waste, part, NBD_STALL_MS);
		if (ret < 0)
			return ret;
		len -= part;
	}
	return 0;
}

int nbd_conn_write(struct nbd_conn *conn, struct iovec *iov, int n)
{
	while (n > 0) {
		if (iov->iov_len == 0) {
			iov++;
			n--;
			continue;
		}
		struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)n};
		ssize_t sent = sendmsg(conn->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (sent < 0) {
			if (errno == EINTR)
				continue;
			if (errno != EAGAIN)
				return -errno;
			int ret = wait_for(conn, POLLOUT, NBD_STALL_MS);
			if (ret < 0)
				return ret;
			continue;
		}
		while (n > 0 && (size_t)sent >= iov->iov_len) {
			sent -= (ssize_t)iov->iov_len;
			iov++;
			n--;
		}
		if (sent > 0) {
			iov->iov_base = (uint8_t *)iov->iov_base + sent;
			iov->iov_len -= (size_t)sent;
		}
	}
	return 0;
}

uint8_t *nbd_conn_buffer(struct nbd_conn *conn, size_t len)
{
	assert(len <= NBD_REQUEST_MAX);
	if (len <= conn->buffer_bytes)
		return conn->buffer;
	size_t bytes = 64u << 10;
	while (bytes < len)
		bytes *= 2;
	free(conn->buffer);
	conn->buffer = malloc(bytes);
	conn->buffer_bytes = conn->buffer ? bytes : 0;
	return conn->buffer;
}

void nbd_conn_buffer_trim(struct nbd_conn *conn)
{
	if (conn->buffer_bytes <= NBD_BUFFER_KEEP)
		return;
	free(conn->buffer);
	conn->buffer = NULL;
	conn->buffer_bytes = 0;
}

uint16_t nbd_conn_flags(const struct nbd_conn *conn)
{
	unsigned flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
			 NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_CAN_MULTI_CONN |
			 NBD_FLAG_SEND_CACHE | NBD_FLAG_SEND_FAST_ZERO;
	if (conn->export->read_only)
		flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY | NBD_FLAG_SEND_FLUSH |
			NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE;
	if (conn->structured)
		flags |= NBD_FLAG_SEND_DF;
	return (uint16_t)flags;
}
