// SPDX-License-Identifier: Apache-2.0
#include "eventtap/pump.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static void wake_ready(void *ctx, struct pump_source *source, uint32_t events)
{
	struct pump *p = ctx;
	uint64_t n;

	(void)events;
	(void)!read(source->fd, &n, sizeof n);
	if (p->woken && !atomic_load(&p->stopping))
		p->woken(p->ctx);
}

static void *run(void *arg)
{
	struct pump *p = arg;

	while (!atomic_load(&p->stopping)) {
		struct epoll_event event;
		int n = epoll_wait(p->epoll, &event, 1, -1);

		if (n == 1) {
			struct pump_source *source = event.data.ptr;

			source->ready(source->ctx, source, event.events);
		} else {
			assert(n < 0 && errno == EINTR);
		}
	}
	return NULL;
}

static int start_thread(struct pump *p)
{
	sigset_t all, before;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&p->thread, NULL, run, p);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return -rc;
}

int pump_start(struct pump *p, void (*woken)(void *ctx), void *ctx, struct ft_err *err)
{
	int rc;

	*p = (struct pump){.woken = woken, .ctx = ctx, .wake = {.ready = wake_ready, .ctx = p}};
	p->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (p->epoll < 0)
		return ft_err_set(err, errno, "pump: epoll_create1: %s", strerror(errno));
	p->wake.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (p->wake.fd < 0) {
		rc = ft_err_set(err, errno, "pump: eventfd: %s", strerror(errno));
		goto no_eventfd;
	}
	rc = pump_watch(p, &p->wake, EPOLLIN);
	if (!rc)
		rc = start_thread(p);
	if (!rc)
		return 0;
	ft_err_set(err, -rc, "pump: start: %s", strerror(-rc));
	close(p->wake.fd);
no_eventfd:
	close(p->epoll);
	return rc;
}

void pump_stop(struct pump *p)
{
	atomic_store(&p->stopping, true);
	pump_wake(p);
	pthread_join(p->thread, NULL);
	close(p->wake.fd);
	close(p->epoll);
	p->epoll = -1;
}

void pump_wake(struct pump *p)
{
	// A full counter fails, and is awake anyway.
	(void)!write(p->wake.fd, &(uint64_t){1}, sizeof(uint64_t));
}

int pump_watch(struct pump *p, struct pump_source *source, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.ptr = source};
	int op = !source->watched ? EPOLL_CTL_ADD : events ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;

	assert(source->fd >= 0);
	if (events == source->watched)
		return 0;
	if (epoll_ctl(p->epoll, op, source->fd, &event)) {
		assert(op == EPOLL_CTL_ADD);
		return -errno;
	}
	source->watched = events;
	return 0;
}

void pump_close(struct pump *p, struct pump_source *source)
{
	if (source->fd < 0)
		return;
	// A descriptor leaves epoll only with its last copy, and a child may have one for a moment.
	if (p->epoll >= 0)
		pump_watch(p, source, 0);
	close(source->fd);
	source->fd = -1;
	source->watched = 0;
}

static int address(struct sockaddr_un *sun, const char *path, struct ft_err *err)
{
	*sun = (struct sockaddr_un){.sun_family = AF_UNIX};
	if (!*path || strlen(path) >= sizeof sun->sun_path)
		return ft_err_set(err, ENAMETOOLONG, "%s: a socket's path has 1 to %zu characters",
				  path, sizeof sun->sun_path - 1);
	memcpy(sun->sun_path, path, strlen(path) + 1);
	return 0;
}

int pump_listen(const char *path, struct ft_err *err)
{
	struct sockaddr_un sun;
	struct stat st;
	int rc = address(&sun, path, err);
	int fd;

	if (rc)
		return rc;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return ft_err_set(err, errno, "%s: socket: %s", path, strerror(errno));
	if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode))
		unlink(path);
	if (bind(fd, (struct sockaddr *)&sun, sizeof sun) == 0 && listen(fd, PUMP_BACKLOG) == 0)
		return fd;
	rc = ft_err_set(err, errno, "%s: listen: %s", path, strerror(errno));
	close(fd);
	return rc;
}

int pump_accept(int listener, struct ft_err *err)
{
	int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (fd >= 0)
		return fd;
	if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
		return -EAGAIN;
	return ft_err_set(err, errno, "accept: %s", strerror(errno));
}

int pump_connect(const char *path, struct ft_err *err)
{
	struct sockaddr_un sun;
	int rc = address(&sun, path, err);
	int fd;

	if (rc)
		return rc;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return ft_err_set(err, errno, "%s: socket: %s", path, strerror(errno));
	if (connect(fd, (struct sockaddr *)&sun, sizeof sun) == 0)
		return fd;
	rc = ft_err_set(err, errno, "%s: connect: %s", path, strerror(errno));
	close(fd);
	return rc;
}
