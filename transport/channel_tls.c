// SPDX-License-Identifier: Apache-2.0
// TLS around another channel. OpenSSL does its input and output through a small BIO whose calls are
// the inner channel's; so it works over anything, and no SIGPIPE is ever raised. After each OpenSSL
// call status() turns the three places in which an error may be (return value, BIO, error queue)
// into one channel_status. The error queue is per thread and must be empty before each call, or
// SSL_get_error() would judge by another connection's error.
#include "transport/channel.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "transport/tls_internal.h"

#define NAME_MAX_LEN 255
#define SEEN_MAX     192

#define RECORD_MAX (SSL3_RT_HEADER_LENGTH + SSL3_RT_MAX_TLS13_ENCRYPTED_LENGTH)

struct channel_tls {
	struct channel channel;
	struct channel *inner;
	SSL *ssl;
	bool open;
	bool broken;			  /* OpenSSL wants no further call but SSL_free */
	bool end;			  /* the inner channel's stream has ended */
	enum channel_status inner_status; /* of the last inner call that was not DONE */
	struct ft_err inner_err;
	char name[NAME_MAX_LEN + 1]; /* whom we expect; "" = anyone whom our CA signed */
	char seen[SEEN_MAX];	     /* names in a certificate that was for another */
	struct tls_config *callers;  /* accepting: who may connect */
};

static struct channel_tls *of(struct channel *c)
{
	return (struct channel_tls *)c;
}

/* ---- the BIO ---- */

/* 1 when the inner call was DONE, else 0 with the retry flags set. */
static int bio_result(BIO *bio, struct channel_tls *t, enum channel_status status)
{
	BIO_clear_retry_flags(bio);
	t->inner_status = status;
	if (status == CHANNEL_WANT_READ)
		BIO_set_retry_read(bio);
	else if (status == CHANNEL_WANT_WRITE)
		BIO_set_retry_write(bio);
	else if (status == CHANNEL_CLOSED)
		t->end = true;
	return status == CHANNEL_DONE;
}

static int bio_read(BIO *bio, char *buf, size_t len, size_t *done)
{
	struct channel_tls *t = BIO_get_data(bio);

	return bio_result(bio, t, t->inner->ops->read(t->inner, buf, len, done, &t->inner_err));
}

static int bio_write(BIO *bio, const char *buf, size_t len, size_t *done)
{
	struct channel_tls *t = BIO_get_data(bio);
	struct iovec iov = {(void *)buf, len};

	return bio_result(bio, t, t->inner->ops->write(t->inner, &iov, 1, done, &t->inner_err));
}

static long bio_ctrl(BIO *bio, int command, long number, void *pointer)
{
	struct channel_tls *t = BIO_get_data(bio);

	(void)number;
	(void)pointer;
	return command == BIO_CTRL_EOF ? t->end : command == BIO_CTRL_FLUSH;
}

static BIO_METHOD *bio_method;

static void bio_method_make(void)
{
	BIO_METHOD *m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "channel");

	if (m && BIO_meth_set_read_ex(m, bio_read) && BIO_meth_set_write_ex(m, bio_write) &&
	    BIO_meth_set_ctrl(m, bio_ctrl))
		bio_method = m;
}

static BIO *bio_make(struct channel_tls *t)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	BIO *bio;

	pthread_once(&once, bio_method_make);
	bio = bio_method ? BIO_new(bio_method) : NULL;
	if (bio) {
		BIO_set_data(bio, t);
		BIO_set_init(bio, 1);
	}
	return bio;
}

/* ---- the channel ---- */

static enum channel_status closed(struct channel_tls *t, struct ft_err *err)
{
	if (t->open)
		ft_err_set(err, EPIPE, "closed by the peer");
	else
		ft_err_set(err, EPIPE,
			   "closed by the peer during the TLS handshake "
			   "(it may not speak TLS, or not to us)");
	return CHANNEL_CLOSED;
}

/* What a call of OpenSSL that did not succeed means. */
static enum channel_status status(struct channel_tls *t, int ret, struct ft_err *err)
{
	switch (SSL_get_error(t->ssl, ret)) {
	case SSL_ERROR_WANT_READ:
		return CHANNEL_WANT_READ;
	case SSL_ERROR_WANT_WRITE:
		return CHANNEL_WANT_WRITE;
	case SSL_ERROR_ZERO_RETURN:
		return closed(t, err);
	case SSL_ERROR_SYSCALL:
		/* Our BIO failed; there may still be something to read, an alert for one. */
		ERR_clear_error();
		*err = t->inner_err;
		return CHANNEL_ERROR;
	default:
		t->broken = true;
		if (t->end &&
		    ERR_GET_REASON(ERR_peek_last_error()) == SSL_R_UNEXPECTED_EOF_WHILE_READING) {
			ERR_clear_error();
			return closed(t, err);
		}
		tls_explain(t->ssl, t->name, t->seen, err);
		return CHANNEL_ERROR;
	}
}

static enum channel_status broken(struct ft_err *err)
{
	ft_err_set(err, EPIPE, "TLS has failed before");
	return CHANNEL_ERROR;
}

static enum channel_status tls_open(struct channel *c, struct ft_err *err)
{
	struct channel_tls *t = of(c);
	enum channel_status inner;
	int ret;

	if (t->open)
		return CHANNEL_DONE;
	if (t->broken)
		return broken(err);
	inner = t->inner->ops->open(t->inner, err);
	if (inner != CHANNEL_DONE)
		return inner;
	c->doing = "TLS handshake";
	ERR_clear_error();
	ret = SSL_do_handshake(t->ssl);
	if (ret == 1) {
		t->open = true;
		return CHANNEL_DONE;
	}
	inner = status(t, ret, err);
	/* A stream that ends before it began is a failure, not an end. */
	return inner == CHANNEL_CLOSED ? CHANNEL_ERROR : inner;
}

static enum channel_status tls_read(struct channel *c, void *buf, size_t len, size_t *done,
				    struct ft_err *err)
{
	struct channel_tls *t = of(c);

	if (t->broken)
		return broken(err);
	ERR_clear_error();
	if (SSL_read_ex(t->ssl, buf, len, done) == 1)
		return CHANNEL_DONE;
	return status(t, 0, err);
}

/* One record a call (SSL_MODE_ENABLE_PARTIAL_WRITE): at most 16 KiB, and never of two iovecs. */
static enum channel_status tls_write(struct channel *c, const struct iovec *iov, int iov_n,
				     size_t *done, struct ft_err *err)
{
	struct channel_tls *t = of(c);

	assert(iov_n > 0);
	if (t->broken)
		return broken(err);
	ERR_clear_error();
	if (SSL_write_ex(t->ssl, iov[0].iov_base, iov[0].iov_len, done) == 1)
		return CHANNEL_DONE;
	return status(t, 0, err);
}

static bool tls_pending(const struct channel *c)
{
	const struct channel_tls *t = (const struct channel_tls *)c;

	return SSL_has_pending(t->ssl) || t->inner->ops->pending(t->inner);
}

static int tls_fd(const struct channel *c)
{
	const struct channel_tls *t = (const struct channel_tls *)c;

	return t->inner->ops->fd(t->inner);
}

static void tls_shutdown(struct channel *c)
{
	struct channel_tls *t = of(c);

	if (t->open && !t->broken) {
		ERR_clear_error();
		SSL_shutdown(t->ssl);
		ERR_clear_error();
	}
	t->inner->ops->shutdown(t->inner);
}

static void tls_close(struct channel *c)
{
	struct channel_tls *t = of(c);

	SSL_free(t->ssl);
	tls_config_free(t->callers);
	t->inner->ops->close(t->inner);
	free(t);
}

static void tls_wait(struct channel *c, bool on)
{
	of(c)->inner->ops->wait(of(c)->inner, on);
}

/* OpenSSL may have read all of a record but its last byte. */
static void tls_expect(struct channel *c, size_t bytes)
{
	struct channel *inner = of(c)->inner;

	if (inner->ops->expect)
		inner->ops->expect(inner, bytes > RECORD_MAX ? bytes - RECORD_MAX : 1);
}

static const struct channel_ops tls_ops = {
	.open = tls_open,
	.read = tls_read,
	.write = tls_write,
	.pending = tls_pending,
	.fd = tls_fd,
	.shutdown = tls_shutdown,
	.close = tls_close,
	.wait = tls_wait,
	.expect = tls_expect,
};

#define HOST_FLAGS (X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT)

static bool is_for(X509 *cert, const char *name)
{
	return X509_check_ip_asc(cert, name, 0) == 1 ||
	       X509_check_host(cert, name, 0, HOST_FLAGS, NULL) == 1;
}

/* Who connects to us must be one of those who were named, if any were. */
static bool may_connect(const struct channel_tls *t, X509 *cert)
{
	bool ok = t->callers->peers_n == 0;

	for (unsigned i = 0; i < t->callers->peers_n && !ok; i++)
		ok = is_for(cert, t->callers->peers[i]);
	return ok;
}

/* OpenSSL drops a certificate that does not verify, but people need to know whose it was. */
static int verify(int ok, X509_STORE_CTX *store)
{
	SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
	struct channel_tls *t = SSL_get_app_data(ssl);
	X509 *cert = X509_STORE_CTX_get0_cert(store);

	if (ok && X509_STORE_CTX_get_error_depth(store) == 0 && t->callers &&
	    !may_connect(t, cert)) {
		X509_STORE_CTX_set_error(store, X509_V_ERR_HOSTNAME_MISMATCH);
		ok = 0;
	}
	if (!ok && cert)
		tls_names(cert, t->seen, sizeof t->seen);
	return ok;
}

/* Subject common names count for nothing; a wildcard covers one whole label; the zone of an IPv6
 * address is no part of it. */
static int pin(struct channel_tls *t, const char *name)
{
	X509_VERIFY_PARAM *param = SSL_get0_param(t->ssl);
	unsigned char address[16];

	snprintf(t->name, sizeof t->name, "%.*s", (int)strcspn(name, "%"), name);
	name = t->name;
	if (inet_pton(AF_INET, name, address) == 1 || inet_pton(AF_INET6, name, address) == 1)
		return X509_VERIFY_PARAM_set1_ip_asc(param, name);
	X509_VERIFY_PARAM_set_hostflags(param, HOST_FLAGS);
	return X509_VERIFY_PARAM_set1_host(param, name, 0);
}

/* The configuration's owner may let go of it before the channel does. */
static void expect_callers(struct channel_tls *t, struct tls_config *config)
{
	size_t used = 0;

	t->callers = config;
	config->users++;
	for (unsigned i = 0; i < config->peers_n && used < sizeof t->name; i++)
		used += (size_t)snprintf(t->name + used, sizeof t->name - used, "%s%s",
					 i ? " or " : "", config->peers[i]);
}

struct channel *channel_tls_new(const struct tls_config *config, struct channel *inner,
				enum tls_role role, const char *name, struct ft_err *err)
{
	struct channel_tls *t = calloc(1, sizeof *t);
	BIO *bio;

	assert(role == TLS_ACCEPT || name);
	ERR_clear_error();
	if (!t || !(t->ssl = SSL_new(config->ctx)) || !(bio = bio_make(t)))
		goto fail;
	SSL_set_bio(t->ssl, bio, bio);
	if (role == TLS_CONNECT && (strlen(name) > NAME_MAX_LEN || !pin(t, name)))
		goto fail;
	if (role == TLS_ACCEPT)
		expect_callers(t, (struct tls_config *)(uintptr_t)config);
	SSL_set_app_data(t->ssl, t);
	SSL_set_verify(t->ssl, SSL_get_verify_mode(t->ssl), verify);
	if (role == TLS_CONNECT)
		SSL_set_connect_state(t->ssl);
	else
		SSL_set_accept_state(t->ssl);
	t->channel.ops = &tls_ops;
	t->channel.doing = inner->doing;
	t->inner = inner;
	return &t->channel;
fail:
	ERR_clear_error();
	ft_err_set(err, ENOMEM, "TLS: %s", strerror(ENOMEM));
	if (t)
		SSL_free(t->ssl);
	free(t);
	inner->ops->close(inner);
	return NULL;
}
