/* SPDX-License-Identifier: Apache-2.0 */
/* An NBD server for one export on one unix socket: fixed newstyle, structured replies, block
 * status. It knows the protocol and nothing of images, epochs or modes: those are behind the
 * backend.
 *
 *      client ---- nbd_server.c   the socket, a thread for each connection, start and stop
 *                  nbd_handshake.c   options, until the client says GO
 *                  nbd_requests.c    requests, answered one after the other ---- backend
 *
 * Clients are not trusted: every length is checked before memory is taken for it, and a client that
 * breaks the protocol gets the error that the protocol has for it, or is dropped, alone. */
#ifndef EVENTTAP_BLOCK_NBD_SERVER_H
#define EVENTTAP_BLOCK_NBD_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include "ft/err.h"

#define NBD_CONNECTIONS_MAX 16		/* QEMU has one, nbdcopy four; one more is hung up on */
#define NBD_REQUEST_MAX	    (32u << 20) /* bytes of one READ or WRITE, as the protocol recommends */
#define NBD_NAME_MAX	    64
#define NBD_HANDSHAKE_MS    10000 /* from connect to GO */
#define NBD_STALL_MS                                                                               \
	60000 /* a client that stops in mid-message for so long is dropped; between messages it    \
		 may be silent */

/* flags of zero() */
#define NBD_ZERO_FUA	 1u
#define NBD_ZERO_NO_HOLE 2u /* the range must stay allocated */
#define NBD_ZERO_FAST	 4u /* -ENOTSUP at once rather than writing zeroes */

/* state of an extent; values of the context base:allocation */
#define NBD_STATE_HOLE 1u
#define NBD_STATE_ZERO 2u

#define NBD_REFUSAL_MAX 160
#define NBD_CONTEXT_MAX 96 /* name of a metadata context, with its end */

/* Called by connection threads, several at a time; ranges are within the size and not empty. Each
 * returns 0 or -errno, which the client gets as the nearest NBD error. A success with fua, and
 * flush(), promise durability to all connections alike. */
struct nbd_backend_ops {
	int (*pread)(void *ctx, uint8_t *buf, uint32_t len, uint64_t offset);
	int (*pwrite)(void *ctx, const uint8_t *buf, uint32_t len, uint64_t offset, bool fua);
	int (*zero)(void *ctx, uint64_t offset, uint32_t len, unsigned flags);
	int (*trim)(void *ctx, uint64_t offset, uint32_t len, bool fua);
	int (*flush)(void *ctx);
	/* State of the range from offset on; *extent (1 .. len) bytes of it are alike. */
	int (*extent)(void *ctx, uint64_t offset, uint32_t len, uint32_t *extent, uint32_t *state);
	/* NULL: base:allocation is the only context. Else the name of the i-th other one, false:
	 * there are no more; and its state, as for extent. */
	bool (*context)(void *ctx, unsigned i, char name[NBD_CONTEXT_MAX]);
	/* NULL, or why a context of that name cannot be had now though there is one. */
	bool (*context_refused)(void *ctx, const char *name, char why[NBD_REFUSAL_MAX]);
	int (*context_extent)(void *ctx, const char *name, uint64_t offset, uint32_t len,
			      uint32_t *extent, uint32_t *state);
};

struct nbd_export {
	const struct nbd_backend_ops *ops;
	void *ctx;
	uint64_t bytes;
	bool read_only;
	char name[NBD_NAME_MAX]; /* the empty name is served too */
};

struct nbd_server;

/* Listens on `path` (a socket left there by a dead process is replaced; a living one: -EADDRINUSE).
 * The export is copied; its ctx must outlive the server. */
int nbd_server_start(const char *path, const struct nbd_export *export, struct nbd_server **out,
		     struct ft_err *err);
/* Connections being served now. Any thread. */
unsigned nbd_server_connections(struct nbd_server *server);
/* Hangs up on everyone, joins every thread, removes the socket. A backend call that is running is
 * waited for. NULL is fine. */
void nbd_server_free(struct nbd_server *server);

#endif
