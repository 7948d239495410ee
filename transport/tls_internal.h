/* SPDX-License-Identifier: Apache-2.0 */
/* What the TLS files share among themselves. Nothing outside transport/tls_*.c, channel_tls.c and
 * pki.c includes it. */
#ifndef TRANSPORT_TLS_INTERNAL_H
#define TRANSPORT_TLS_INTERNAL_H

#include <openssl/ssl.h>
#include <openssl/x509.h>

#include "ft/err.h"
#include "transport/tls_config.h"

struct tls_config {
	SSL_CTX *ctx;
	unsigned users;	  /* its owner, and channels that accept: all on one thread */
	unsigned peers_n; /* 0: anyone whom our CA signed may connect */
	char *peers[TLS_PEERS_MAX];
};

/* The names in a certificate, "DNS:a, IP:10.0.0.1", cut to size. Returns out. */
char *tls_names(X509 *cert, char *out, size_t size);
/* Why a handshake or a transfer failed, as one line. Empties OpenSSL's error queue of this thread.
 * expected: whom we wanted; seen: the names in a certificate that was for another. */
int tls_explain(SSL *ssl, const char *expected, const char *seen, struct ft_err *err);
/* The latest reason in OpenSSL's error queue, which it empties; "unknown error" if there is none.
 * Static storage or `buf`. */
const char *tls_queue_reason(char *buf, size_t size);

#endif
