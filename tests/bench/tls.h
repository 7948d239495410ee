/* SPDX-License-Identifier: Apache-2.0 */
/* Bare TLS over loopback TCP, blocking: the floor of everything that goes over the wire. */
#ifndef BENCH_TLS_H
#define BENCH_TLS_H

#include <openssl/ssl.h>

#include "bench.h"
#include "transport/channel.h"

#define TLS_NAME "localhost"

/* Certificates in b->dir/pki, for every host of a run: ca.pem, localhost.pem, localhost.key. */
int tls_files_make(struct bench *b, struct ft_err *err);
int tls_config_make(struct bench *b, struct tls_config **out, struct ft_err *err);
/* Two connected sockets. */
int tls_sockets(int fd[2], struct ft_err *err);
/* Shakes hands over fd. NULL: failed. */
SSL *tls_bare(const struct tls_config *config, enum tls_role role, int fd);

/* A connection to a thread that takes requests of any size and answers each with a short message,
 * as a standby acknowledges. */
struct tls_echo;
int tls_echo_start(struct bench *b, struct tls_echo **out, struct ft_err *err);
/* Milliseconds for `bytes` to get there and the answer to come back. */
int tls_echo_round(struct tls_echo *t, uint64_t bytes, double *ms, struct ft_err *err);
void tls_echo_stop(struct tls_echo *t); /* accepts NULL */

#endif
