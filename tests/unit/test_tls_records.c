// SPDX-License-Identifier: Apache-2.0
// Two ends of TLS over a channel that stutters: a byte a call, and now and then nothing at all; or
// one that turns a bit.
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/fixture/tls_hosts.h"
#include "tests/fixture/transport.h"

struct stutter {
	struct channel channel;
	struct channel *inner;
	uint32_t seed;
	size_t chunk;
	uint64_t flip_at, read; /* the byte of the stream that is turned over, 0 none */
};

static bool stutters(struct stutter *s)
{
	s->seed = s->seed * 1664525 + 1013904223;
	return s->seed >> 30 == 0;
}

static enum channel_status stutter_open(struct channel *c, struct ft_err *err)
{
	struct stutter *s = (struct stutter *)c;

	return s->inner->ops->open(s->inner, err);
}

static enum channel_status stutter_read(struct channel *c, void *buf, size_t len, size_t *done,
					struct ft_err *err)
{
	struct stutter *s = (struct stutter *)c;
	enum channel_status status;

	if (stutters(s))
		return CHANNEL_WANT_READ;
	status = s->inner->ops->read(s->inner, buf, len < s->chunk ? len : s->chunk, done, err);
	if (status == CHANNEL_DONE) {
		if (s->flip_at && s->flip_at >= s->read && s->flip_at < s->read + *done)
			((uint8_t *)buf)[s->flip_at - s->read] ^= 4;
		s->read += *done;
	}
	return status;
}

static enum channel_status stutter_write(struct channel *c, const struct iovec *iov, int iov_n,
					 size_t *done, struct ft_err *err)
{
	struct stutter *s = (struct stutter *)c;
	struct iovec one = {iov[0].iov_base, iov[0].iov_len < s->chunk ? iov[0].iov_len : s->chunk};

	(void)iov_n;
	return stutters(s) ? CHANNEL_WANT_WRITE
			   : s->inner->ops->write(s->inner, &one, 1, done, err);
}

static bool stutter_pending(const struct channel *c)
{
	(void)c;
	return false;
}

static int stutter_fd(const struct channel *c)
{
	const struct stutter *s = (const struct stutter *)c;

	return s->inner->ops->fd(s->inner);
}

static void stutter_shutdown(struct channel *c)
{
	struct stutter *s = (struct stutter *)c;

	s->inner->ops->shutdown(s->inner);
}

static void stutter_close(struct channel *c)
{
	struct stutter *s = (struct stutter *)c;

	s->inner->ops->close(s->inner);
	free(s);
}

static void stutter_wait(struct channel *c, bool on)
{
	struct stutter *s = (struct stutter *)c;

	s->inner->ops->wait(s->inner, on);
}

static const struct channel_ops stutter_ops = {
	.open = stutter_open,
	.read = stutter_read,
	.write = stutter_write,
	.pending = stutter_pending,
	.fd = stutter_fd,
	.shutdown = stutter_shutdown,
	.close = stutter_close,
	.wait = stutter_wait,
};

static struct channel *over_stutter(int fd, enum tls_role role, size_t chunk, uint64_t flip_at)
{
	struct stutter *s = calloc(1, sizeof *s);
	struct channel *c;

	*s = (struct stutter){
		.channel.ops = &stutter_ops, .seed = 7, .chunk = chunk, .flip_at = flip_at};
	s->inner = channel_socket_new(fd, NULL);
	c = channel_tls_new(hosts.good, &s->channel, role, "localhost", NULL);
	assert_non_null(c);
	return c;
}

/* Both handshakes by turns: the sockets are a pair in this very thread. */
static void shake(struct channel *a, struct channel *b)
{
	enum channel_status sa, sb;
	struct ft_err err;

	for (int i = 0; i < 1000000; i++) {
		sa = a->ops->open(a, &err);
		sb = b->ops->open(b, &err);
		if (sa == CHANNEL_DONE && sb == CHANNEL_DONE)
			return;
		assert_true(sa < CHANNEL_CLOSED && sb < CHANNEL_CLOSED);
	}
	fail();
}

static void check_noise(struct end *end, const struct ft_msg *msg)
{
	(void)end;
	for (uint32_t i = 0; i < msg->payload_len; i++)
		if (msg->payload[i] != (uint8_t)(i * 13 + msg->type))
			fail_msg("byte %u of %u", i, msg->payload_len);
}

static void test_stutter(void **state)
{
	static const uint32_t sizes[] = {0, 1, 100, 16383, 16384, 16385, 70000, FT_PAYLOAD_MAX};
	static uint8_t noise[FT_PAYLOAD_MAX];

	(void)state;
	for (size_t chunk = 1; chunk < 10000; chunk = chunk * 9 + 1) {
		struct event_base *base = event_base_new();
		struct channel *a, *b;
		struct end ea = {0}, eb = {0};
		unsigned n = chunk == 1 ? 6 : 8;
		int fd[2];

		tcp_pair(fd);
		a = over_stutter(fd[0], TLS_CONNECT, chunk, 0);
		b = over_stutter(fd[1], TLS_ACCEPT, chunk, 0);
		shake(a, b);
		end_take(&ea, link_new(base, a, "a", NULL));
		end_take(&eb, link_new(base, b, "b", NULL));
		ea.on_message = eb.on_message = check_noise;
		for (unsigned i = 0; i < n; i++) {
			for (uint32_t k = 0; k < sizes[i]; k++)
				noise[k] = (uint8_t)(k * 13 + i);
			assert_int_equal(end_send(&ea, (uint16_t)i, noise, sizes[i]), 0);
			assert_int_equal(end_send(&eb, (uint16_t)i, noise, sizes[i]), 0);
		}
		run_until(base, ea.messages == n && eb.messages == n);
		assert_int_equal(ea.closes + eb.closes, 0);
		end_close(&ea);
		end_close(&eb);
		event_base_free(base);
	}
}

static void test_corrupted_record(void **state)
{
	struct event_base *base = event_base_new();
	struct channel *a, *b;
	struct end ea = {0}, eb = {0};
	struct stutter *s;
	int fd[2];

	(void)state;
	tcp_pair(fd);
	a = over_stutter(fd[0], TLS_CONNECT, 1000, 0);
	b = over_stutter(fd[1], TLS_ACCEPT, 1000, 0);
	shake(a, b);
	end_take(&ea, link_new(base, a, "a", NULL));
	end_take(&eb, link_new(base, b, "b", NULL));
	assert_int_equal(end_send(&ea, 1, "good", 4), 0);
	run_until(base, eb.messages == 1);
	s = *(struct stutter **)((char *)b + sizeof *b); /* the first field after the base: inner */
	s->flip_at = s->read + 50;
	assert_int_equal(end_send(&ea, 1, "bad", 3), 0);
	run_until(base, eb.closes);
	assert_int_equal(eb.messages, 1);
	assert_non_null(strstr(eb.why.text, "link to b: record was corrupted on the way"));
	end_close(&eb);
	run_until(base, ea.closes);
	end_close(&ea);
	event_base_free(base);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_stutter),
		cmocka_unit_test(test_corrupted_record),
	};

	return cmocka_run_group_tests(tests, tls_hosts_setup, tls_hosts_teardown);
}
