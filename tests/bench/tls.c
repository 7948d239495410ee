// SPDX-License-Identifier: Apache-2.0
// Bare OpenSSL with our certificates.
#include "tls.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "transport/frame.h"
#include "transport/pki.h"
#include "transport/tls_config.h"
#include "transport/tls_internal.h"

#define REQUEST_MAX (8u << 20)

int tls_files_make(struct bench *b, struct ft_err *err)
{
	static const char *const hosts[] = {TLS_NAME, "127.0.0.1", "10.8.0.1", "10.8.0.2"};
	char dir[BENCH_PATH_MAX], ca[BENCH_PATH_MAX + 8];
	int rc;

	snprintf(dir, sizeof dir, "%s/pki", b->dir);
	snprintf(ca, sizeof ca, "%s/ca.pem", dir);
	if (access(ca, F_OK) == 0)
		return 0;
	rc = pki_init(dir, err);
	return rc ? rc : pki_issue(dir, TLS_NAME, hosts, sizeof hosts / sizeof *hosts, err);
}

int tls_config_make(struct bench *b, struct tls_config **out, struct ft_err *err)
{
	char ca[BENCH_PATH_MAX], cert[BENCH_PATH_MAX], key[BENCH_PATH_MAX];
	struct tls_files files = {.ca = ca, .cert = cert, .key = key};
	int rc = tls_files_make(b, err);

	snprintf(ca, sizeof ca, "%s/pki/ca.pem", b->dir);
	snprintf(cert, sizeof cert, "%s/pki/" TLS_NAME ".pem", b->dir);
	snprintf(key, sizeof key, "%s/pki/" TLS_NAME ".key", b->dir);
	return rc ? rc : tls_config_load(&files, out, err);
}

int tls_sockets(int fd[2], struct ft_err *err)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof in;
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1, rc = 0;

	fd[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	fd[1] = -1;
	if (bind(listener, (struct sockaddr *)&in, sizeof in) || listen(listener, 1) ||
	    getsockname(listener, (struct sockaddr *)&in, &len) ||
	    connect(fd[0], (struct sockaddr *)&in, sizeof in) ||
	    (fd[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) < 0)
		rc = ft_err_set(err, errno, "loopback: %s", strerror(errno));
	close(listener);
	for (unsigned i = 0; i < 2; i++)
		setsockopt(fd[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	return rc;
}

SSL *tls_bare(const struct tls_config *config, enum tls_role role, int fd)
{
	SSL *ssl = SSL_new(config->ctx);

	if (!ssl || SSL_set_fd(ssl, fd) != 1 ||
	    (role == TLS_CONNECT ? SSL_connect(ssl) : SSL_accept(ssl)) != 1) {
		SSL_free(ssl);
		return NULL;
	}
	return ssl;
}

/* ---- request and answer ---- */

struct tls_echo {
	struct tls_config *config;
	int fd[2];
	SSL *ssl;
	uint8_t *request;
	pthread_t thread;
	bool running;
};

static bool read_all(SSL *ssl, uint8_t *to, size_t len)
{
	size_t n;

	for (; len; to += n, len -= n)
		if (!SSL_read_ex(ssl, to, len, &n))
			return false;
	return true;
}

/* One call writes one record (SSL_MODE_ENABLE_PARTIAL_WRITE). */
static bool write_all(SSL *ssl, const uint8_t *from, size_t len)
{
	size_t n;

	for (; len; from += n, len -= n)
		if (!SSL_write_ex(ssl, from, len, &n))
			return false;
	return true;
}

/* A request: u64 length, and that many bytes with it. */
static void *answer(void *arg)
{
	struct tls_echo *t = arg;
	SSL *ssl = tls_bare(t->config, TLS_ACCEPT, t->fd[1]);
	uint8_t *buf = malloc(REQUEST_MAX), ack[FRAME_HEADER] = {0};
	uint64_t len;
	size_t n;

	assert(buf);
	while (ssl && read_all(ssl, (uint8_t *)&len, sizeof len) && len <= REQUEST_MAX &&
	       read_all(ssl, buf, len - sizeof len) && SSL_write_ex(ssl, ack, sizeof ack, &n))
		;
	SSL_free(ssl);
	free(buf);
	return NULL;
}

int tls_echo_start(struct bench *b, struct tls_echo **out, struct ft_err *err)
{
	struct tls_echo *t = calloc(1, sizeof *t);
	int rc;

	*out = t;
	assert(t);
	t->fd[0] = t->fd[1] = -1;
	t->request = malloc(REQUEST_MAX);
	assert(t->request);
	memset(t->request, 0x5a, REQUEST_MAX);
	rc = tls_config_make(b, &t->config, err);
	if (!rc)
		rc = tls_sockets(t->fd, err);
	if (rc)
		return rc;
	t->running = pthread_create(&t->thread, NULL, answer, t) == 0;
	t->ssl = tls_bare(t->config, TLS_CONNECT, t->fd[0]);
	return t->ssl ? 0 : ft_err_set(err, EPROTO, "bare TLS: no handshake");
}

int tls_echo_round(struct tls_echo *t, uint64_t bytes, double *ms, struct ft_err *err)
{
	uint8_t ack[FRAME_HEADER];
	uint64_t start = bench_now_ns();

	bytes = bytes < sizeof bytes ? sizeof bytes : bytes > REQUEST_MAX ? REQUEST_MAX : bytes;
	memcpy(t->request, &bytes, sizeof bytes);
	if (!write_all(t->ssl, t->request, bytes) || !read_all(t->ssl, ack, sizeof ack))
		return ft_err_set(err, EIO, "bare TLS: the connection broke");
	*ms = bench_ms_since(start);
	return 0;
}

void tls_echo_stop(struct tls_echo *t)
{
	if (!t)
		return;
	if (t->fd[0] >= 0)
		shutdown(t->fd[0], SHUT_RDWR);
	if (t->running)
		pthread_join(t->thread, NULL);
	SSL_free(t->ssl);
	for (unsigned i = 0; i < 2; i++)
		if (t->fd[i] >= 0)
			close(t->fd[i]);
	tls_config_free(t->config);
	free(t->request);
	free(t);
}
