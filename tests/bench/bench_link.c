// SPDX-License-Identifier: Apache-2.0
// What does a link cost on top of TLS? One thread ships, another receives, over loopback TCP: once
// with bare SSL_write/SSL_read, once with links (framing, three hashes a frame, event loop). Rounds
// alternate and the best of each counts, so that a busy machine disturbs both alike. Prints one
// line a payload size; exit 1 when a ratio is below RATIO_MIN.
#include <event2/event.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "transport/channel.h"
#include "transport/link.h"
#include "transport/pki.h"
#include "transport/tls_config.h"
#include "transport/tls_internal.h"

#define RATIO_MIN   0.7
#define ROUND_BYTES (128u << 20)
#define ROUNDS	    20

enum how { BARE, SEND, RESERVE };
static const char *const how_names[] = {"bare", "send", "reserve"};

struct side {
	struct tls_config *config;
	int fd;
	enum how how;
	enum tls_role role;
	size_t size;
	uint64_t total, done;
	uint8_t *memory;
	double cpu_s;
	struct event_base *base;
	struct ft_link *link;
};

static void die(const char *what)
{
	fprintf(stderr, "bench_link: %s\n", what);
	exit(2);
}

static double now_s(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void tcp_pair(int fd[2])
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof in;
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	if (bind(listener, (struct sockaddr *)&in, sizeof in) || listen(listener, 1) ||
	    getsockname(listener, (struct sockaddr *)&in, &len))
		die("listen");
	fd[0] = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(fd[0], (struct sockaddr *)&in, sizeof in))
		die("connect");
	fd[1] = accept(listener, NULL, NULL);
	close(listener);
}

/* ---- bare ---- */

static void bare(struct side *s)
{
	SSL *ssl = SSL_new(s->config->ctx);
	int one = 1;

	setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	SSL_set_fd(ssl, s->fd);
	if ((s->role == TLS_CONNECT ? SSL_connect(ssl) : SSL_accept(ssl)) != 1)
		die("handshake");
	while (s->done < s->total) {
		size_t n, at = s->done % s->size;
		int ok = s->role == TLS_CONNECT
				 ? SSL_write_ex(ssl, s->memory + at, s->size - at, &n)
				 : SSL_read_ex(ssl, s->memory + at, s->size - at, &n);

		if (!ok)
			die("SSL_read or SSL_write");
		s->done += n;
	}
	SSL_free(ssl);
	close(s->fd);
}

/* ---- links ---- */

static void ship(void *ctx)
{
	struct side *s = ctx;

	while (s->done < s->total) {
		struct ft_msg msg = {
			.type = 1, .payload = s->memory, .payload_len = (uint32_t)s->size};

		if (s->how == RESERVE) {
			msg.payload = s->link->ops->reserve(s->link, (uint32_t)s->size);
			if (!msg.payload)
				return;
		}
		if (s->link->ops->send(s->link, &msg))
			return;
		s->done += s->size;
	}
	if (link_queued(s->link) == 0)
		event_base_loopbreak(s->base);
}

static void received(void *ctx, const struct ft_msg *msg)
{
	struct side *s = ctx;

	s->done += msg->payload_len;
	if (s->done >= s->total)
		event_base_loopbreak(s->base);
}

static void closed(void *ctx, const struct ft_err *why)
{
	struct side *s = ctx;

	if (s->done < s->total)
		die(why->text);
	event_base_loopbreak(s->base);
}

static void over_links(struct side *s)
{
	struct channel *c = channel_socket_new(s->fd, NULL);
	struct ft_err err = {0};

	s->base = event_base_new();
	c = channel_tls_new(s->config, c, s->role, "localhost", NULL);
	while (c->ops->open(c, &err) != CHANNEL_DONE)
		if (err.code)
			die(err.text);
	s->link = link_new(s->base, c, "bench", NULL);
	s->link->events = (struct ft_link_events){received, ship, closed, s};
	if (s->role == TLS_CONNECT)
		ship(s);
	event_base_dispatch(s->base);
	s->link->ops->close(s->link);
	event_base_free(s->base);
}

static void *run_side(void *arg)
{
	struct side *s = arg;

	if (s->how == BARE)
		bare(s);
	else
		over_links(s);
	s->cpu_s = now_s(CLOCK_THREAD_CPUTIME_ID);
	return NULL;
}

struct figures {
	double speed;		  /* bytes per second */
	double ship_s, receive_s; /* processor time */
};

static struct figures run(struct tls_config *config, enum how how, size_t size)
{
	struct side a = {.config = config, .how = how, .role = TLS_CONNECT, .size = size}, b = a;
	pthread_t thread[2];
	double start;
	int fd[2];

	tcp_pair(fd);
	a.fd = fd[0];
	b.fd = fd[1];
	b.role = TLS_ACCEPT;
	a.total = b.total = ROUND_BYTES;
	a.memory = malloc(size);
	b.memory = malloc(size);
	memset(a.memory, 0x5a, size);
	start = now_s(CLOCK_MONOTONIC);
	pthread_create(&thread[0], NULL, run_side, &a);
	pthread_create(&thread[1], NULL, run_side, &b);
	pthread_join(thread[1], NULL);
	start = now_s(CLOCK_MONOTONIC) - start;
	pthread_join(thread[0], NULL);
	free(a.memory);
	free(b.memory);
	return (struct figures){ROUND_BYTES / start, a.cpu_s, b.cpu_s};
}

static struct tls_config *make_config(void)
{
	char dir[] = "/tmp/ft-bench-XXXXXX", ca[64], cert[64], key[64], ca_key[64];
	struct tls_files files = {ca, cert, key, NULL};
	struct tls_config *config = NULL;
	struct ft_err err;

	if (!mkdtemp(dir))
		die("mkdtemp");
	snprintf(ca, sizeof ca, "%s/ca.pem", dir);
	snprintf(ca_key, sizeof ca_key, "%s/ca.key", dir);
	snprintf(cert, sizeof cert, "%s/localhost.pem", dir);
	snprintf(key, sizeof key, "%s/localhost.key", dir);
	if (pki_init(dir, &err) || pki_issue(dir, "localhost", NULL, 0, &err) ||
	    tls_config_load(&files, &config, &err))
		die(err.text);
	unlink(ca);
	unlink(ca_key);
	unlink(cert);
	unlink(key);
	rmdir(dir);
	return config;
}

static void keep_best(struct figures *best, const struct figures *f, bool first)
{
	best->speed = first || f->speed > best->speed ? f->speed : best->speed;
	best->ship_s = first || f->ship_s < best->ship_s ? f->ship_s : best->ship_s;
	best->receive_s = first || f->receive_s < best->receive_s ? f->receive_s : best->receive_s;
}

/* 0 or 1: a ratio is too low. */
static int compare(struct tls_config *config, size_t size)
{
	struct figures best[3];
	int bad = 0;

	for (int round = 0; round < ROUNDS; round++) {
		for (int how = BARE; how <= RESERVE; how++) {
			struct figures f = run(config, (enum how)how, size);

			keep_best(&best[how], &f, round == 0);
		}
	}
	for (int how = BARE; how <= RESERVE; how++) {
		double ratio = best[how].speed / best[BARE].speed;

		printf("payload %3zu KiB %-8s %5.0f MiB/s, ratio %.2f, cpu s/GiB: ship %.2f, "
		       "receive %.2f\n",
		       size >> 10, how_names[how], best[how].speed / (1 << 20), ratio,
		       best[how].ship_s * ((double)(1u << 30) / ROUND_BYTES),
		       best[how].receive_s * ((double)(1u << 30) / ROUND_BYTES));
		bad |= ratio < RATIO_MIN;
	}
	return bad;
}

int main(void)
{
	struct tls_config *config = make_config();
	int bad = 0;

	for (size_t size = 64 << 10; size <= FT_PAYLOAD_MAX; size *= 2)
		bad |= compare(config, size);
	tls_config_free(config);
	return bad;
}
