/* SPDX-License-Identifier: Apache-2.0 */
/* A small NBD client: fixed newstyle, simple replies, one request at a time, blocking with a
 * deadline. What a pocket machine's disk uses while it is behind a tap. Protocol:
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md */
#ifndef VMM_GLUE_POCKET_NBD_H
#define VMM_GLUE_POCKET_NBD_H

#include <stddef.h>
#include <stdint.h>

#include "ft/err.h"

#define POCKET_NBD_CONNECT_MS 2000 /* connection and handshake */
#define POCKET_NBD_REQUEST_MS                                                                      \
	30000 /* one request: as long as Linux gives a disk before it complains */

struct pocket_nbd;

/* Connects to the unix socket `path`, export "". *bytes: the export's size. */
int pocket_nbd_open(const char *path, struct pocket_nbd **out, uint64_t *bytes, struct ft_err *err);
/* 0 or -errno as the server said; -EIO for ever after the connection broke, a reply was not one or
 * a deadline passed. */
int pocket_nbd_read(struct pocket_nbd *n, uint64_t offset, uint8_t *data, size_t len);
int pocket_nbd_write(struct pocket_nbd *n, uint64_t offset, const uint8_t *data, size_t len);
int pocket_nbd_flush(struct pocket_nbd *n); /* nothing to do where the server does not offer it */
/* Makes a request that is under way on another thread fail at once. */
void pocket_nbd_abort(struct pocket_nbd *n);
/* Says goodbye and frees. Accepts NULL. */
void pocket_nbd_close(struct pocket_nbd *n);

#endif
