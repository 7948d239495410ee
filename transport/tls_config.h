/* SPDX-License-Identifier: Apache-2.0 */
/* The certificates of this host, loaded and checked once; channels are made from it. TLS 1.3 only,
 * both sides show a certificate that the same CA signed, no resumption. Start-up (reads files). */
#ifndef TRANSPORT_TLS_CONFIG_H
#define TRANSPORT_TLS_CONFIG_H

#include "ft/err.h"

struct tls_files {
	const char *ca;	  /* PEM, one or more CA certificates */
	const char *cert; /* PEM, this host's certificate and perhaps intermediates */
	const char *key;  /* PEM, its key, without passphrase */
	/* NULL: whoever our CA signed may connect to us. Else the names (DNS or IP address, at most
	 * TLS_PEERS_MAX, NULL-terminated) of which his certificate must bear one. */
	const char *const *peers;
};
#define TLS_PEERS_MAX 16

struct tls_config;

/* One line that names the file: missing, not PEM, key of another certificate, expired, not yet
 * valid, not signed by that CA. */
int tls_config_load(const struct tls_files *files, struct tls_config **out, struct ft_err *err);
/* Channels that were made from it live on. Accepts NULL. */
void tls_config_free(struct tls_config *config);

#endif
