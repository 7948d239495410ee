// SPDX-License-Identifier: Apache-2.0
#include "transport/sockaddr.h"

#include <netdb.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

socklen_t sockaddr_of_path(const struct uri *uri, struct sockaddr_storage *out)
{
	struct sockaddr_un *un = (struct sockaddr_un *)out;

	memset(out, 0, sizeof *out);
	un->sun_family = AF_UNIX;
	memcpy(un->sun_path, uri->path, strnlen(uri->path, URI_UNIX_PATH_MAX));
	return sizeof *un;
}

void sockaddr_to_uri(const struct sockaddr_storage *addr, const struct uri *like, struct uri *out)
{
	socklen_t len = addr->ss_family == AF_INET6 ? sizeof(struct sockaddr_in6)
						    : sizeof(struct sockaddr_in);
	char port[8];

	*out = *like;
	if (addr->ss_family == AF_UNIX)
		return;
	if (!getnameinfo((const struct sockaddr *)addr, len, out->host, sizeof out->host, port,
			 sizeof port, NI_NUMERICHOST | NI_NUMERICSERV))
		out->port = (uint16_t)atoi(port);
}
