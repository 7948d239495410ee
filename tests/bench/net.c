// SPDX-License-Identifier: Apache-2.0
// Network namespaces without names: they are gone when the last process and descriptor in them is.
#include "bench.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define TRANSFER_S 10 /* deadline of one send or receive */

static int open_own(void)
{
	return open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
}

int net_new(struct ft_err *err)
{
	int before = open_own(), ns = -1;

	if (unshare(CLONE_NEWNET) == 0)
		ns = open_own();
	if (ns < 0)
		ft_err_set(err, errno, "network namespace: %s", strerror(errno));
	net_leave(before);
	return ns < 0 ? -err->code : ns;
}

int net_enter(int ns)
{
	int before = open_own();

	if (setns(ns, CLONE_NEWNET) < 0)
		abort(); /* it is our own descriptor */
	return before;
}

void net_leave(int before)
{
	if (setns(before, CLONE_NEWNET) < 0)
		abort();
	close(before);
}

int net_run(int ns, struct ft_err *err, const char *fmt, ...)
{
	int before = net_enter(ns), status;
	char line[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof line, fmt, ap);
	va_end(ap);
	status = system(line);
	net_leave(before);
	return status ? ft_err_set(err, EIO, "%.200s: failed", line) : 0;
}

int net_cable(int ns_a, const char *a, int ns_b, const char *b, struct ft_err *err)
{
	/* ip(8) takes a path for a namespace that has no name. */
	return net_run(ns_a, err, "ip link add %s type veth peer name %s netns /proc/%d/fd/%d", a,
		       b, getpid(), ns_b);
}

static int guest_socket(int ns, int type, unsigned port, struct ft_err *err)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	struct timeval limit = {.tv_sec = TRANSFER_S};
	int before = net_enter(ns), fd = socket(AF_INET, type | SOCK_CLOEXEC, 0), one = 1;

	net_leave(before);
	inet_pton(AF_INET, GUEST_ADDRESS, &to.sin_addr);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	if (type == SOCK_STREAM)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	if (connect(fd, (struct sockaddr *)&to, sizeof to) == 0)
		return fd;
	ft_err_set(err, errno, "port %u of the guest: %s", port, strerror(errno));
	close(fd);
	return -err->code;
}

int net_udp(int ns, unsigned port, struct ft_err *err)
{
	return guest_socket(ns, SOCK_DGRAM, port, err);
}

int net_tcp(int ns, unsigned port, struct ft_err *err)
{
	return guest_socket(ns, SOCK_STREAM, port, err);
}

/* Waits as a client would, to the microsecond. */
static void wait_us(unsigned us)
{
	struct timespec ts = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000l};

	if (us)
		ppoll(NULL, 0, &ts, NULL);
}

int net_ping(int fd, unsigned n, unsigned gap_us, struct samples *rtt, struct ft_err *err)
{
	static uint64_t serial = 1;

	for (unsigned i = 0; i < n; i++, serial++) {
		uint64_t start = bench_now_ns(), got = 0;
		ssize_t len = send(fd, &serial, sizeof serial, MSG_NOSIGNAL);

		while (len == sizeof serial && got != serial)
			len = recv(fd, &got, sizeof got, MSG_WAITALL);
		if (got != serial)
			return ft_err_set(err, ETIMEDOUT, "echo %u: no answer from the guest", i);
		samples_add(rtt, bench_ms_since(start));
		wait_us(gap_us);
	}
	return 0;
}

int net_first_answer(int fd, uint64_t since_ns, unsigned within_ms, double *ms, struct ft_err *err)
{
	static uint64_t serial = 1ull << 32;
	uint64_t first = serial, start = bench_now_ns(), got;

	while (bench_ms_since(start) < within_ms) {
		struct pollfd p = {.fd = fd, .events = POLLIN};

		/* Nobody may be there to take it, or to resolve its address. */
		if (send(fd, &serial, sizeof serial, MSG_NOSIGNAL | MSG_DONTWAIT) == sizeof serial)
			serial++;
		if (poll(&p, 1, 1) <= 0)
			continue;
		while (recv(fd, &got, sizeof got, MSG_DONTWAIT) == sizeof got) {
			if (got < first)
				continue; /* asked before */
			*ms = bench_ms_since(since_ns);
			return 0;
		}
	}
	return ft_err_set(err, ETIMEDOUT, "no answer from the guest within %u ms", within_ms);
}
