/* SPDX-License-Identifier: Apache-2.0 */
/* A non-blocking stream of bytes to one peer: a socket, or TLS around any other channel. Whoever
 * uses a channel does not know which.
 *
 *      link / opening  --->  channel_tls  --->  channel_socket  --->  kernel
 *
 * Each call that would block says what to wait for on fd(); TLS may want to write in order to read.
 * One thread at a time. Errors in *err are one line without the peer's name, which the caller puts
 * in front. */
#ifndef TRANSPORT_CHANNEL_H
#define TRANSPORT_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/uio.h>

#include "ft/err.h"

enum channel_status {
	CHANNEL_DONE,
	CHANNEL_WANT_READ,  /* nothing happened; call again when the descriptor is readable */
	CHANNEL_WANT_WRITE, /* likewise, writable */
	CHANNEL_CLOSED,	    /* read: the peer ended the stream; *err is set */
	CHANNEL_ERROR, /* *err is set; only shutdown() and close() make sense now, after an error of
			  write() read() as well */
};

struct channel;
struct channel_ops {
	/* Connects or shakes hands, as far as it goes. DONE: read and write may be used; keeps
	 * returning DONE. */
	enum channel_status (*open)(struct channel *c, struct ft_err *err);
	/* DONE: *done > 0 bytes are in buf. len > 0. */
	enum channel_status (*read)(struct channel *c, void *buf, size_t len, size_t *done,
				    struct ft_err *err);
	/* DONE: *done > 0 bytes were taken from the front of iov. Not necessarily all: call again
	 * with the rest. After WANT_*, or with a rest, the next write must begin with the same
	 * bytes (in the same place or another), at least as many as the first iovec had: TLS may
	 * have encrypted them already. No iovec is empty. */
	enum channel_status (*write)(struct channel *c, const struct iovec *iov, int iov_n,
				     size_t *done, struct ft_err *err);
	/* Are there bytes for read() that the descriptor knows nothing of? */
	bool (*pending)(const struct channel *c);
	int (*fd)(const struct channel *c);
	/* Says goodbye as far as the kernel takes it at once. */
	void (*shutdown)(struct channel *c);
	/* Closes the descriptor and frees the channel. */
	void (*close)(struct channel *c);
	/* On: read() and write() wait in the kernel for what they would else return WANT_* for, and
	 * do that only when nothing has moved for CHANNEL_WAIT_MS. shutdown(2) of fd() by another
	 * thread ends it. For an open channel with a thread of its own; may change with every call.
	 */
	void (*wait)(struct channel *c, bool on);
	/* A hint: the descriptor need not become readable before `bytes` more can be read, for the
	 * caller has no use for fewer. Holds until the next call; 1 as long as there was none.
	 * NULL: takes no hints. */
	void (*expect)(struct channel *c, size_t bytes);
};

/* As long as the kernel goes on by itself (TCP_USER_TIMEOUT, channel_socket.c). */
#define CHANNEL_WAIT_MS 10000

struct channel {
	const struct channel_ops *ops;
	const char *doing; /* what open() waits for, for people: "connecting" */
};

/* Socket of family AF_INET, AF_INET6 or AF_UNIX, connected, or connecting (connect(2) gave
 * EINPROGRESS). Takes fd in any case and makes it non-blocking. NULL: -ENOMEM or a socket option
 * was refused, in *err. */
struct channel *channel_socket_new(int fd, struct ft_err *err);

struct tls_config;
enum tls_role {
	TLS_CONNECT, /* the peer's certificate must be for `name` */
	TLS_ACCEPT,  /* the peer's certificate must be for one of tls_files.peers, if there are any
		      */
};
/* TLS 1.3 around `inner`, which it takes in any case. name: DNS name or IP address, TLS_CONNECT
 * only. config may be freed after this. */
struct channel *channel_tls_new(const struct tls_config *config, struct channel *inner,
				enum tls_role role, const char *name, struct ft_err *err);

#endif
