/* SPDX-License-Identifier: Apache-2.0 */
/* Between struct uri and struct sockaddr, for listener and connector. */
#ifndef TRANSPORT_SOCKADDR_H
#define TRANSPORT_SOCKADDR_H

#include <sys/socket.h>

#include "transport/uri.h"

/* uri: scheme unix. */
socklen_t sockaddr_of_path(const struct uri *uri, struct sockaddr_storage *out);
/* The numeric URI of an address, scheme and prefix as in *like. A peer on a UNIX socket has no
 * address: *like itself. */
void sockaddr_to_uri(const struct sockaddr_storage *addr, const struct uri *like, struct uri *out);

#endif
