// SPDX-License-Identifier: Apache-2.0
// The listener: one thread accepts, each connection has a thread in one of a fixed number of slots.
// A thread that ends marks its slot; the accepting thread joins it before it waits again, so no
// thread is ever detached.
//
// server->lock guards the slots' state and fd. The fd of a slot is closed by its own thread under
// the lock, so that nbd_server_free() never shuts a descriptor down that means something else by
// now.
#include "eventtap/block/nbd_server.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "eventtap/block/nbd_conn.h"
#include "ft/log.h"

#define ACCEPT_RETRY_MS 100

enum slot_state { SLOT_FREE, SLOT_RUNNING, SLOT_ENDED };

struct slot {
	struct nbd_server *server;
	enum slot_state state;
	pthread_t thread;
	int fd; // -1 once closed
};

struct nbd_server {
	struct nbd_export export;
	struct sockaddr_un address;
	int listen_fd;
	int wake_fd; // something ended, or the server is to stop
	pthread_t thread;
	pthread_mutex_t lock;
	bool stopping;
	struct slot slots[NBD_CONNECTIONS_MAX];
};

static void wake(struct nbd_server *server)
{
	uint64_t one = 1;
	ssize_t n = write(server->wake_fd, &one, sizeof(one));
	assert(n == sizeof(one));
}

static void log_drop(const struct nbd_server *server, const char *phase, int ret)
{
	if (ret == -EPIPE || ret == -ECONNRESET)
		ft_debug("nbd %s: client left during %s", server->export.name, phase);
	else
		ft_warn("nbd %s: client dropped during %s: %s", server->export.name, phase,
			strerror(-ret));
}

static void *connection_main(void *arg)
{
	struct slot *slot = arg;
	struct nbd_server *server = slot->server;
	struct nbd_conn conn = {.export = &server->export, .fd = slot->fd};
	int ret = nbd_handshake(&conn);
	if (ret < 0) {
		log_drop(server, "handshake", ret);
	} else if (ret == 0) {
		ret = nbd_requests(&conn);
		if (ret < 0)
			log_drop(server, "transmission", ret);
	}
	free(conn.buffer);
	pthread_mutex_lock(&server->lock);
	close(slot->fd);
	slot->fd = -1;
	slot->state = SLOT_ENDED;
	pthread_mutex_unlock(&server->lock);
	wake(server);
	return NULL;
}

// Joins the threads that have ended, or (all) every one, waiting for it.
static void reap(struct nbd_server *server, bool all)
{
	for (int i = 0; i < NBD_CONNECTIONS_MAX; i++) {
		struct slot *slot = &server->slots[i];
		pthread_mutex_lock(&server->lock);
		bool due = slot->state == SLOT_ENDED || (all && slot->state == SLOT_RUNNING);
		pthread_mutex_unlock(&server->lock);
		if (!due)
			continue;
		pthread_join(slot->thread, NULL);
		pthread_mutex_lock(&server->lock);
		slot->state = SLOT_FREE;
		pthread_mutex_unlock(&server->lock);
	}
}

// All signals stay with the threads that the program meant for them.
static int start_thread(pthread_t *thread, void *(*main)(void *), void *arg)
{
	sigset_t all, old;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	int ret = pthread_create(thread, NULL, main, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -ret;
}

// False when we are short of descriptors or memory: the client stays in the queue.
static bool accept_one(struct nbd_server *server)
{
	int fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0)
		return errno == ECONNABORTED || errno == EINTR;
	pthread_mutex_lock(&server->lock);
	struct slot *slot = NULL;
	for (int i = 0; i < NBD_CONNECTIONS_MAX && !slot; i++)
		if (server->slots[i].state == SLOT_FREE)
			slot = &server->slots[i];
	int ret = -EBUSY;
	if (slot && !server->stopping) {
		slot->server = server;
		slot->fd = fd;
		ret = start_thread(&slot->thread, connection_main, slot);
		if (ret == 0)
			slot->state = SLOT_RUNNING;
	}
	pthread_mutex_unlock(&server->lock);
	if (ret < 0) {
		ft_warn("nbd %s: connection refused: %s", server->export.name, strerror(-ret));
		close(fd);
	}
	return true;
}

static void *accept_main(void *arg)
{
	struct nbd_server *server = arg;
	struct pollfd fds[2] = {
		{.fd = server->wake_fd, .events = POLLIN},
		{.fd = server->listen_fd, .events = POLLIN},
	};
	bool able = true;
	for (;;) {
		if (poll(fds, able ? 2 : 1, able ? -1 : ACCEPT_RETRY_MS) < 0) {
			assert(errno == EINTR);
			continue;
		}
		if (fds[0].revents) {
			uint64_t count;
			ssize_t n = read(server->wake_fd, &count, sizeof(count));
			assert(n == sizeof(count));
		}
		reap(server, false);
		pthread_mutex_lock(&server->lock);
		bool stopping = server->stopping;
		pthread_mutex_unlock(&server->lock);
		if (stopping)
			return NULL;
		able = !able || !fds[1].revents || accept_one(server);
	}
}

// A socket that nobody listens on is what a dead process leaves behind.
static void remove_stale(const struct sockaddr_un *address)
{
	struct stat st;
	if (lstat(address->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode))
		return;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return;
	if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 &&
	    errno == ECONNREFUSED)
		unlink(address->sun_path);
	close(fd);
}

static int listen_on(struct nbd_server *server, struct ft_err *err)
{
	const char *path = server->address.sun_path;
	remove_stale(&server->address);
	server->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (server->listen_fd < 0)
		return ft_err_set(err, errno, "nbd: socket: %s", strerror(errno));
	if (bind(server->listen_fd, (struct sockaddr *)&server->address, sizeof(server->address)) <
		    0 ||
	    listen(server->listen_fd, NBD_CONNECTIONS_MAX) < 0) {
		int ret = ft_err_set(err, errno, "nbd: listen on %s: %s", path, strerror(errno));
		close(server->listen_fd);
		return ret;
	}
	return 0;
}

int nbd_server_start(const char *path, const struct nbd_export *export, struct nbd_server **out,
		     struct ft_err *err)
{
	assert(export->ops && strnlen(export->name, NBD_NAME_MAX) < NBD_NAME_MAX);
	if (strlen(path) >= sizeof(((struct sockaddr_un *)0)->sun_path))
		return ft_err_set(err, ENAMETOOLONG, "nbd: %s: too long for a unix socket", path);
	struct nbd_server *server = calloc(1, sizeof(*server));
	if (!server)
		return ft_err_set(err, ENOMEM, "nbd: out of memory");
	server->export = *export;
	server->address.sun_family = AF_UNIX;
	memcpy(server->address.sun_path, path, strlen(path) + 1);
	pthread_mutex_init(&server->lock, NULL);
	int ret = listen_on(server, err);
	if (ret < 0)
		goto fail;
	server->wake_fd = eventfd(0, EFD_CLOEXEC);
	if (server->wake_fd < 0) {
		ret = ft_err_set(err, errno, "nbd: eventfd: %s", strerror(errno));
		goto fail_listen;
	}
	ret = start_thread(&server->thread, accept_main, server);
	if (ret < 0) {
		ft_err_set(err, -ret, "nbd: thread: %s", strerror(-ret));
		goto fail_wake;
	}
	*out = server;
	return 0;

fail_wake:
	close(server->wake_fd);
fail_listen:
	close(server->listen_fd);
	unlink(path);
fail:
	pthread_mutex_destroy(&server->lock);
	free(server);
	return ret;
}

unsigned nbd_server_connections(struct nbd_server *server)
{
	unsigned n = 0;
	pthread_mutex_lock(&server->lock);
	for (int i = 0; i < NBD_CONNECTIONS_MAX; i++)
		n += server->slots[i].state == SLOT_RUNNING;
	pthread_mutex_unlock(&server->lock);
	return n;
}

void nbd_server_free(struct nbd_server *server)
{
	if (!server)
		return;
	pthread_mutex_lock(&server->lock);
	server->stopping = true;
	for (int i = 0; i < NBD_CONNECTIONS_MAX; i++)
		if (server->slots[i].state == SLOT_RUNNING)
			shutdown(server->slots[i].fd, SHUT_RDWR);
	pthread_mutex_unlock(&server->lock);
	wake(server);
	pthread_join(server->thread, NULL);
	reap(server, true);
	close(server->listen_fd);
	unlink(server->address.sun_path);
	close(server->wake_fd);
	pthread_mutex_destroy(&server->lock);
	free(server);
}
