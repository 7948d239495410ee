/* SPDX-License-Identifier: Apache-2.0 */
/* Where a peer or a snapshot is. The texts are those of the operator's interface:
 *
 *   kemari:tls:HOST:PORT   kemari:tcp:HOST:PORT   kemari:unix:PATH     protection
 *   tls:HOST:PORT          tcp:HOST:PORT          unix:PATH            migration
 *   file:PATH                                                          snapshot
 *
 * HOST is a name, an IPv4 address, or an IPv6 address in brackets (a zone as in [fe80::1%eth0] is
 * kept). */
#ifndef TRANSPORT_URI_H
#define TRANSPORT_URI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ft/err.h"

#define URI_HOST_MAX	  253  /* a DNS name in text */
#define URI_UNIX_PATH_MAX 107  /* sun_path and its final 0 */
#define URI_PATH_MAX	  4095 /* PATH_MAX and its final 0 */
#define URI_TEXT_MAX	  (URI_PATH_MAX + 16)

enum uri_scheme { URI_TLS = 1, URI_TCP, URI_UNIX, URI_FILE };

struct uri {
	enum uri_scheme scheme;
	bool kemari;		     /* protection rather than migration */
	char host[URI_HOST_MAX + 1]; /* tls, tcp: without brackets */
	uint16_t port; /* tls, tcp: 1 to 65535 (0 only to let a listener choose; never parsed) */
	char path[URI_PATH_MAX + 1]; /* unix, file */
};

/* Fills *uri, all of it. -EINVAL: the text names the part that is wrong and why. */
int uri_parse(const char *text, struct uri *uri, struct ft_err *err);
/* The inverse of uri_parse(). Returns out, cut (but always terminated) when size is short of
 * URI_TEXT_MAX + 1. */
char *uri_format(const struct uri *uri, char *out, size_t size);
bool uri_is_tcp_based(const struct uri *uri);

#endif
