/* SPDX-License-Identifier: Apache-2.0 */
/* A thread that waits on a tap's descriptors and calls back, one event at a time.
 *
 * One event is fetched, handled, and only then the next one: so no event is ever about a descriptor
 * that the one before it closed. The pump knows no locks. Whoever calls watch and close for a
 * source holds the lock that guards it, and ready() takes that lock and looks at source->fd first,
 * for the other side may have closed it in between. */
#ifndef EVENTTAP_PUMP_H
#define EVENTTAP_PUMP_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

#include "ft/err.h"

struct pump_source {
	int fd; /* -1: none */
	uint32_t watched;
	void (*ready)(void *ctx, struct pump_source *source,
		      uint32_t events); /* on the pump's thread */
	void *ctx;
};

struct pump {
	int epoll;
	pthread_t thread;
	atomic_bool stopping;
	struct pump_source wake;
	void (*woken)(void *ctx);
	void *ctx;
};

/* The thread runs when this returns. woken (may be NULL) answers pump_wake(). All signals stay with
 * the other threads. */
int pump_start(struct pump *p, void (*woken)(void *ctx), void *ctx, struct ft_err *err);
/* Returns when the thread has ended; sources stay open. */
void pump_stop(struct pump *p);
/* Any thread: woken() will be called, once or more. Never blocks. */
void pump_wake(struct pump *p);
/* events: of EPOLLIN and EPOLLOUT, level triggered; 0 = wait for nothing, not even a hang-up.
 * -errno only when a source that was not watched cannot be. */
int pump_watch(struct pump *p, struct pump_source *source, uint32_t events);
/* Closes source->fd if there is one. */
void pump_close(struct pump *p, struct pump_source *source);

/* One connection at a time is served, so few need to wait: one, and one more by the kernel's way of
 * counting. */
#define PUMP_BACKLOG 1

/* A listening unix socket, non-blocking; a socket file that is there already is replaced. The file
 * is ours alone (mode and owner by umask): when the VMM runs as another user, the owner of the tap
 * changes its owner. */
int pump_listen(const char *path, struct ft_err *err);
/* One connection, non-blocking, or -EAGAIN. Any other error is of our own making (descriptors used
 * up) and comes with *err. */
int pump_accept(int listener, struct ft_err *err);
/* A connection to a unix socket, non-blocking. Returns at once. */
int pump_connect(const char *path, struct ft_err *err);

#endif
