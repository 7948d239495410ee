/* SPDX-License-Identifier: Apache-2.0 */
/* One connection of the NBD server; shared by nbd_*.c only. Everything here belongs to the
 * connection's thread. */
#ifndef EVENTTAP_BLOCK_NBD_CONN_H
#define EVENTTAP_BLOCK_NBD_CONN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "eventtap/block/nbd_proto.h"
#include "eventtap/block/nbd_server.h"

#define NBD_BUFFER_KEEP                                                                            \
	(2u << 20) /* what a connection keeps between requests; QEMU's usual largest transfer */
#define NBD_NO_DEADLINE	 (-1)
#define NBD_CONTEXTS_MAX 20 /* a client may have; a disk has fewer */

struct nbd_conn {
	const struct nbd_export *export;
	int fd;
	bool structured; /* structured replies were agreed on */
	/* agreed on; the place is the id */
	unsigned contexts_n;
	char contexts[NBD_CONTEXTS_MAX][NBD_CONTEXT_MAX];
	bool no_zeroes;	      /* no padding after EXPORT_NAME */
	uint64_t deadline_ns; /* of the handshake */
	uint8_t *buffer;      /* payloads; grows to NBD_REQUEST_MAX at most */
	size_t buffer_bytes;
};

uint64_t nbd_now_ns(void);

/* The whole of buf or an error: -EPIPE when the client closed, -ETIMEDOUT after timeout_ms
 * (NBD_NO_DEADLINE: as long as it takes). Whatever comes after the first byte has NBD_STALL_MS. */
int nbd_conn_read(struct nbd_conn *conn, void *buf, size_t len, int timeout_ms);
/* Reads and forgets. */
int nbd_conn_skip(struct nbd_conn *conn, uint64_t len);
/* All of iov (which it uses up) or an error. */
int nbd_conn_write(struct nbd_conn *conn, struct iovec *iov, int n);
/* At least len <= NBD_REQUEST_MAX bytes of conn->buffer, NULL when out of memory. */
uint8_t *nbd_conn_buffer(struct nbd_conn *conn, size_t len);
void nbd_conn_buffer_trim(struct nbd_conn *conn);

/* Transmission flags that this connection is offered. */
uint16_t nbd_conn_flags(const struct nbd_conn *conn);

/* 0: transmission may begin. 1: the client left in an orderly way. -errno: drop it. */
int nbd_handshake(struct nbd_conn *conn);
/* Answers requests until the client leaves (0) or must be dropped (-errno). */
int nbd_requests(struct nbd_conn *conn);

#endif
