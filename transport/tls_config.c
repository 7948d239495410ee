// SPDX-License-Identifier: Apache-2.0
// Decisions, and why:
//   - No session tickets and no resumption: a connection lives for days, and a full handshake
//   checks the certificates again.
//   - AES-128-GCM first: the fastest suite on anything with AES-NI by a fifth over AES-256; the
//   others stay for hosts without.
//   - SSL_MODE_RELEASE_BUFFERS stays off: it allocates and frees record buffers all the time, and
//   nothing on the checkpoint path allocates.
//   - Read ahead: a record is one call of the kernel and not two, one of them for five bytes.
//   - Partial writes, and a retry may come from another address: the link moves what did not go out
//   at once into its own buffer.
#include "transport/tls_config.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "transport/tls_internal.h"
#include "transport/uri.h"

#define TLS_SUITES "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384"
#define TLS_GROUPS "X25519:P-256"
#define CHAIN_MAX  8 /* certificates between a host's and its CA */

/* what: "CA file", path: as configured. The reason is the file system's if it refuses, else
 * OpenSSL's. */
static int file_error(const char *what, const char *path, struct ft_err *err)
{
	char buf[128];

	if (access(path, R_OK)) {
		int code = errno;

		ERR_clear_error();
		return ft_err_set(err, code, "TLS %s %s: %s", what, path, strerror(code));
	}
	return ft_err_set(err, EINVAL, "TLS %s %s: %s", what, path,
			  tls_queue_reason(buf, sizeof buf));
}

static int check_set(const struct tls_files *files, struct ft_err *err)
{
	const char *missing = !files->ca     ? "ca"
			      : !files->cert ? "cert"
			      : !files->key  ? "key"
					     : NULL;

	if (missing)
		return ft_err_set(err, EINVAL, "TLS: %s is not configured", missing);
	for (unsigned i = 0; files->peers && files->peers[i]; i++) {
		if (i == TLS_PEERS_MAX)
			return ft_err_set(err, E2BIG, "TLS: peer: more than %d names",
					  TLS_PEERS_MAX);
		if (!*files->peers[i] || strlen(files->peers[i]) > URI_HOST_MAX)
			return ft_err_set(err, EINVAL, "TLS: peer: must have 1 to %d characters",
					  URI_HOST_MAX);
	}
	return 0;
}

static int check_times(X509 *cert, const char *path, struct ft_err *err)
{
	if (X509_cmp_current_time(X509_get0_notAfter(cert)) < 0)
		return ft_err_set(err, EKEYEXPIRED, "TLS certificate %s: has expired", path);
	if (X509_cmp_current_time(X509_get0_notBefore(cert)) > 0)
		return ft_err_set(err, EINVAL,
				  "TLS certificate %s: is not valid yet (check the clock)", path);
	return 0;
}

/* What our peers will check, checked here first, where the operator still looks. */
static int check_chain(SSL_CTX *ctx, const struct tls_files *files, struct ft_err *err)
{
	X509_STORE_CTX *store = X509_STORE_CTX_new();
	STACK_OF(X509) *chain = NULL;
	int r = 0;

	SSL_CTX_get0_chain_certs(ctx, &chain);
	if (!store || !X509_STORE_CTX_init(store, SSL_CTX_get_cert_store(ctx),
					   SSL_CTX_get0_certificate(ctx), chain))
		r = ft_err_set(err, ENOMEM, "TLS certificate %s: %s", files->cert,
			       strerror(ENOMEM));
	else if (X509_verify_cert(store) != 1)
		r = ft_err_set(err, EINVAL,
			       "TLS certificate %s: does not verify with CA file %s: %s",
			       files->cert, files->ca,
			       X509_verify_cert_error_string(X509_STORE_CTX_get_error(store)));
	X509_STORE_CTX_free(store);
	ERR_clear_error();
	return r;
}

static int load_files(SSL_CTX *ctx, const struct tls_files *files, struct ft_err *err)
{
	int r;

	if (!SSL_CTX_load_verify_file(ctx, files->ca))
		return file_error("CA file", files->ca, err);
	if (!SSL_CTX_use_certificate_chain_file(ctx, files->cert))
		return file_error("certificate", files->cert, err);
	/* A key of another certificate is refused here already if it is of the same kind, below if
	 * not. */
	if (!SSL_CTX_use_PrivateKey_file(ctx, files->key, SSL_FILETYPE_PEM) &&
	    ERR_GET_REASON(ERR_peek_last_error()) != X509_R_KEY_VALUES_MISMATCH)
		return file_error("key", files->key, err);
	if (!SSL_CTX_check_private_key(ctx)) {
		ERR_clear_error();
		return ft_err_set(err, EINVAL, "TLS key %s: is not the key of certificate %s",
				  files->key, files->cert);
	}
	r = check_times(SSL_CTX_get0_certificate(ctx), files->cert, err);
	return r ? r : check_chain(ctx, files, err);
}

static int set_up(SSL_CTX *ctx)
{
	if (!SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) ||
	    !SSL_CTX_set_ciphersuites(ctx, TLS_SUITES) ||
	    !SSL_CTX_set1_groups_list(ctx, TLS_GROUPS) || !SSL_CTX_set_num_tickets(ctx, 0))
		return -ENOMEM;
	SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
	SSL_CTX_set_read_ahead(ctx, 1);
	SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	SSL_CTX_set_verify_depth(ctx, CHAIN_MAX);
	return 0;
}

static int copy_peers(struct tls_config *config, const char *const *peers)
{
	for (; peers && *peers; peers++) {
		config->peers[config->peers_n] = strdup(*peers);
		if (!config->peers[config->peers_n++])
			return -ENOMEM;
	}
	return 0;
}

int tls_config_load(const struct tls_files *files, struct tls_config **out, struct ft_err *err)
{
	struct tls_config *config;
	int r = check_set(files, err);

	if (r)
		return r;
	ERR_clear_error();
	config = calloc(1, sizeof *config);
	if (config)
		config->users = 1;
	if (!config || !(config->ctx = SSL_CTX_new(TLS_method())) || set_up(config->ctx) ||
	    copy_peers(config, files->peers)) {
		ERR_clear_error();
		r = ft_err_set(err, ENOMEM, "TLS: %s", strerror(ENOMEM));
	} else {
		r = load_files(config->ctx, files, err);
	}
	if (r) {
		tls_config_free(config);
		return r;
	}
	*out = config;
	return 0;
}

void tls_config_free(struct tls_config *config)
{
	if (!config || --config->users)
		return;
	SSL_CTX_free(config->ctx);
	for (unsigned i = 0; i < config->peers_n; i++)
		free(config->peers[i]);
	free(config);
}
