// SPDX-License-Identifier: Apache-2.0
// Speed of the way to the standby over TLS on loopback, one thread each side, against bare
// SSL_write/SSL_read of the same bytes.
//
//	ship-link   payloads that are ready: framing, hashes, event loop
//	ship        pages that no codec can shrink: encoded, framed, sent, verified, staged
#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "ft/codec.h"
#include "ft/spool.h"
#include "tls.h"
#include "transport/link.h"
#include "transport/tls_config.h"

#define ROUND_PAGES 32768u
#define ROUND_BYTES ((uint64_t)ROUND_PAGES * FT_PAGE_BYTES)
#define POOL_PAGES  4096u /* different ones, used in turn */
#define BASES_BYTES (64u << 20)
#define STAGE_BYTES (160u << 20)

enum how { BARE, LINK, PAGES };

struct shipping {
	struct tls_config *config;
	uint8_t *pool;
	struct ft_codec *codec;
	struct ft_spool spool;
};

struct side {
	struct shipping *s;
	enum how how;
	enum tls_role role;
	int fd;
	uint64_t done, page; /* bytes through, next page to encode */
	struct event_base *base;
	struct ft_link *link;
	struct ft_err err;
	double cpu_s;
};

static const uint8_t *pool_page(const struct side *s, uint64_t i)
{
	return s->s->pool + i % POOL_PAGES * FT_PAGE_BYTES;
}

/* ---- bare ---- */

static void bare(struct side *s)
{
	SSL *ssl = tls_bare(s->s->config, s->role, s->fd);
	uint8_t *buf = malloc(FT_PAYLOAD_MAX);
	size_t n;

	assert(buf);
	while (ssl && s->done < ROUND_BYTES) {
		const uint8_t *from = pool_page(s, s->done / FT_PAGE_BYTES);
		int ok = s->role == TLS_CONNECT ? SSL_write_ex(ssl, from, FT_PAYLOAD_MAX, &n)
						: SSL_read_ex(ssl, buf, FT_PAYLOAD_MAX, &n);

		if (!ok)
			break;
		s->done += n;
	}
	if (s->done < ROUND_BYTES)
		ft_err_set(&s->err, EIO, "bare TLS: the connection broke");
	free(buf);
	SSL_free(ssl);
	close(s->fd);
}

/* ---- over links ---- */

static int send_ready(struct side *s)
{
	struct ft_msg msg = {
		.type = 1, .payload = pool_page(s, s->page), .payload_len = FT_PAYLOAD_MAX};
	int rc = s->link->ops->send(s->link, &msg);

	if (!rc)
		s->page += FT_PAYLOAD_MAX / FT_PAGE_BYTES;
	return rc;
}

/* As ft/ship.c does it. */
static int send_pages(struct side *s)
{
	uint8_t *out = s->link->ops->reserve(s->link, FT_PAYLOAD_MAX);
	struct ft_msg msg = {.type = 1, .payload = out};

	if (!out)
		return -EAGAIN;
	while (s->page < ROUND_PAGES && msg.payload_len + FT_PAGE_RECORD_MAX <= FT_PAYLOAD_MAX) {
		msg.payload_len += (uint32_t)ft_codec_encode(
			s->s->codec, 1, s->page, pool_page(s, s->page), out + msg.payload_len);
		s->page++;
	}
	return s->link->ops->send(s->link, &msg);
}

static void ship(void *ctx)
{
	struct side *s = ctx;

	while (s->page < ROUND_PAGES)
		if ((s->how == PAGES ? send_pages : send_ready)(s))
			return;
	if (link_queued(s->link) == 0)
		event_base_loopbreak(s->base);
}

/* As ft/standby.c does it: look at every record, then keep the frame. */
static void stage(struct side *s, const struct ft_msg *msg)
{
	struct ft_page_record rec;
	int n = 0;

	for (uint32_t at = 0; at < msg->payload_len && n >= 0; at += (uint32_t)n) {
		n = ft_page_record_parse(msg->payload + at, msg->payload_len - at, ROUND_PAGES,
					 &rec, &s->err);
		if (n <= 0)
			n = ft_err_set(&s->err, EPROTO, "a record is malformed");
		else
			s->done += FT_PAGE_BYTES;
	}
	if (ft_spool_append(&s->s->spool, msg->payload, msg->payload_len))
		ft_err_set(&s->err, ENOSPC, "staging is full");
}

static void received(void *ctx, const struct ft_msg *msg)
{
	struct side *s = ctx;

	if (s->how == PAGES)
		stage(s, msg);
	else
		s->done += msg->payload_len;
	if (s->done >= ROUND_BYTES || s->err.code)
		event_base_loopbreak(s->base);
}

static void closed(void *ctx, const struct ft_err *why)
{
	struct side *s = ctx;

	if (s->page < ROUND_PAGES && s->done < ROUND_BYTES)
		s->err = *why;
	event_base_loopbreak(s->base);
}

static void over_links(struct side *s)
{
	struct channel *c = channel_socket_new(s->fd, &s->err);

	s->base = event_base_new();
	c = channel_tls_new(s->s->config, c, s->role, TLS_NAME, &s->err);
	while (c && c->ops->open(c, &s->err) != CHANNEL_DONE)
		if (s->err.code)
			return;
	s->link = link_new(s->base, c, "bench", &s->err);
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
	struct timespec ts;

	if (s->how == BARE)
		bare(s);
	else
		over_links(s);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	s->cpu_s = (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
	return NULL;
}

/* ---- rounds ---- */

/* From the first handshake message to the last byte taken: MiB/s. *cpu: seconds a GiB of the side
 * that needs more, which is what the speed would be if nobody else were about. */
static int run_round(struct shipping *s, enum how how, double *speed, double *cpu,
		     struct ft_err *err)
{
	struct side a = {.s = s, .how = how, .role = TLS_CONNECT},
		    b = {.s = s, .how = how, .role = TLS_ACCEPT};
	pthread_t thread[2];
	int fd[2], rc = tls_sockets(fd, err);
	uint64_t start;

	if (rc)
		return rc;
	a.fd = fd[0];
	b.fd = fd[1];
	ft_codec_reset(s->codec);
	ft_spool_reset(&s->spool);
	start = bench_now_ns();
	pthread_create(&thread[0], NULL, run_side, &a);
	pthread_create(&thread[1], NULL, run_side, &b);
	pthread_join(thread[1], NULL);
	*speed = (double)ROUND_BYTES / (1 << 20) / (bench_ms_since(start) / 1e3);
	pthread_join(thread[0], NULL);
	*cpu = (a.cpu_s > b.cpu_s ? a.cpu_s : b.cpu_s) * (double)(1u << 30) / (double)ROUND_BYTES;
	if (a.err.code || b.err.code) {
		*err = a.err.code ? a.err : b.err;
		return -err->code;
	}
	return 0;
}

static int start(struct bench *b, struct shipping *s, struct ft_err *err)
{
	s->pool = malloc((size_t)(POOL_PAGES + FT_PAYLOAD_MAX / FT_PAGE_BYTES) * FT_PAGE_BYTES);
	s->codec = ft_codec_new(ROUND_PAGES, BASES_BYTES);
	if (!s->pool || !s->codec || ft_spool_init(&s->spool, STAGE_BYTES, NULL, NULL))
		return ft_err_set(err, ENOMEM, "no memory");
	for (unsigned i = 0; i < POOL_PAGES * FT_PAGE_BYTES / 256; i++)
		if (getrandom(s->pool + (size_t)i * 256, 256, 0) != 256)
			return ft_err_set(err, EIO, "no random bytes");
	/* A payload may begin anywhere in the pool. */
	memcpy(s->pool + (size_t)POOL_PAGES * FT_PAGE_BYTES, s->pool, FT_PAYLOAD_MAX);
	return tls_config_make(b, &s->config, err);
}

static void report(const char *name, const char *what, const struct samples speed[3],
		   const struct samples cpu[3], enum how how)
{
	char text[96];

	snprintf(text, sizeof text, "%s; CPU s/GiB %.2f and %.2f", what, samples_median(&cpu[how]),
		 samples_median(&cpu[BARE]));
	bench_report_samples(name, "MiB/s", &speed[how], &speed[BARE], BENCH_AT_LEAST, 0.7, text);
}

int bench_ship(struct bench *b, struct ft_err *err)
{
	struct samples speed[3] = {0}, cpu[3] = {0};
	struct shipping s = {0};
	unsigned rounds = b->quick ? 4 : 40;
	int rc = start(b, &s, err);

	for (unsigned i = 0; i < rounds + 1 && !rc; i++)
		for (int how = BARE; how <= PAGES && !rc; how++) {
			double mib_s = 0, cpu_s = 0;

			rc = run_round(&s, (enum how)how, &mib_s, &cpu_s, err);
			if (rc || i == 0) /* the first warms up */
				continue;
			samples_add(&speed[how], mib_s);
			samples_add(&cpu[how], cpu_s);
		}
	if (!rc) {
		report("ship-link", "ready payloads", speed, cpu, LINK);
		report("ship", "random pages, encoded and staged", speed, cpu, PAGES);
	}
	for (int how = BARE; how <= PAGES; how++) {
		samples_free(&speed[how]);
		samples_free(&cpu[how]);
	}
	tls_config_free(s.config);
	ft_codec_free(s.codec);
	ft_spool_free(&s.spool);
	free(s.pool);
	return rc;
}
