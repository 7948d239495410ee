/* SPDX-License-Identifier: Apache-2.0 */
/* Unix stream sockets with deadlines: the machine's thread may wait for a tap, but never for ever.
 * Deadlines are CLOCK_MONOTONIC ns. */
#ifndef VMM_GLUE_POCKET_SOCK_H
#define VMM_GLUE_POCKET_SOCK_H

#include <stddef.h>
#include <stdint.h>

#include "ft/err.h"

uint64_t psock_now(void);
uint64_t psock_deadline(unsigned within_ms);
/* A non-blocking, connected socket, or -errno. */
int psock_connect(const char *path, struct ft_err *err);
/* A non-blocking listener with room for one waiting client; a socket left there by somebody who
 * died is replaced. -errno. */
int psock_listen(const char *path, struct ft_err *err);
/* All of it, or -errno: -ETIMEDOUT, -EPIPE (the other end is gone). */
int psock_write_all(int fd, const uint8_t *data, size_t len, uint64_t deadline);
int psock_read_all(int fd, uint8_t *data, size_t len, uint64_t deadline);

#endif
