// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/pocket/sock.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

uint64_t psock_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

uint64_t psock_deadline(unsigned within_ms)
{
	return psock_now() + within_ms * 1000000ull;
}

static int address(const char *path, struct sockaddr_un *sa, struct ft_err *err)
{
	size_t len = strlen(path);

	*sa = (struct sockaddr_un){.sun_family = AF_UNIX};
	if (!len || len >= sizeof sa->sun_path)
		return ft_err_set(err, ENAMETOOLONG, "socket: %s: a path has 1 to %zu bytes", path,
				  sizeof sa->sun_path - 1);
	memcpy(sa->sun_path, path, len);
	return 0;
}

int psock_connect(const char *path, struct ft_err *err)
{
	struct sockaddr_un sa;
	int fd, rc = address(path, &sa, err);

	if (rc)
		return rc;
	// Non-blocking from the start: a unix listener whose queue is full answers EAGAIN instead
	// of keeping us.
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return ft_err_set(err, errno, "socket: %s: %s", path, strerror(errno));
	if (connect(fd, (struct sockaddr *)&sa, sizeof sa)) {
		rc = ft_err_set(err, errno, "connect: %s: %s", path, strerror(errno));
		close(fd);
		return rc;
	}
	return fd;
}

// A socket file that nobody listens on is what a dead process leaves behind.
static void remove_stale(const char *path)
{
	struct stat st;
	int fd;

	if (lstat(path, &st) || !S_ISSOCK(st.st_mode))
		return;
	fd = psock_connect(path, NULL);
	if (fd >= 0)
		close(fd);
	else if (fd == -ECONNREFUSED)
		unlink(path);
}

int psock_listen(const char *path, struct ft_err *err)
{
	struct sockaddr_un sa;
	int fd, rc = address(path, &sa, err);

	if (rc)
		return rc;
	remove_stale(path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return ft_err_set(err, errno, "socket: %s: %s", path, strerror(errno));
	if (bind(fd, (struct sockaddr *)&sa, sizeof sa) || listen(fd, 1)) {
		rc = ft_err_set(err, errno, "listen: %s: %s", path, strerror(errno));
		close(fd);
		return rc;
	}
	return fd;
}

// Waits for what the socket needs next; sockets here are non-blocking.
static int wait_for(int fd, short events, uint64_t deadline)
{
	uint64_t now = psock_now();
	struct pollfd p = {.fd = fd, .events = events};
	struct timespec ts;
	uint64_t left;
	int n;

	if (errno != EAGAIN && errno != EINTR)
		return -errno;
	if (now >= deadline)
		return -ETIMEDOUT;
	left = deadline - now;
	ts = (struct timespec){.tv_sec = (time_t)(left / 1000000000u),
			       .tv_nsec = (long)(left % 1000000000u)};
	n = ppoll(&p, 1, &ts, NULL);
	return n < 0 && errno != EINTR ? -errno : 0;
}

int psock_write_all(int fd, const uint8_t *data, size_t len, uint64_t deadline)
{
	while (len) {
		ssize_t n = send(fd, data, len, MSG_NOSIGNAL);

		if (n >= 0) {
			data += n;
			len -= (size_t)n;
			continue;
		}
		n = wait_for(fd, POLLOUT, deadline);
		if (n)
			return (int)n;
	}
	return 0;
}

int psock_read_all(int fd, uint8_t *data, size_t len, uint64_t deadline)
{
	while (len) {
		ssize_t n = recv(fd, data, len, 0);

		if (n > 0) {
			data += n;
			len -= (size_t)n;
			continue;
		}
		if (n == 0)
			return -EPIPE;
		n = wait_for(fd, POLLIN, deadline);
		if (n)
			return (int)n;
	}
	return 0;
}
