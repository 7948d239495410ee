// SPDX-License-Identifier: Apache-2.0
// Two links, back to back: order, back-pressure, reservations, corks, and what a callback may do.
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/fixture/link_pair.h"

static uint32_t random32(uint32_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 17;
	return *seed ^= *seed << 5;
}

/* What frame number i of a stream holds follows from i, so that the receiver can check it. */
struct stream {
	unsigned sent, total;
	uint32_t seed_out, seed_in;
	bool use_reserve, use_cork;
	uint8_t *memory; /* payloads are made here when not reserved */
};

static void make_msg(uint32_t *seed, struct ft_msg *msg)
{
	uint32_t r = random32(seed);

	memset(msg, 0, sizeof *msg);
	msg->type = (uint16_t)(r & 0xff);
	msg->generation = r;
	msg->epoch = ~(uint64_t)r;
	/* Mostly small ones, some of every size up to both bounds. */
	msg->body_len = r % 7 ? random32(seed) % 200 : random32(seed) % (FT_BODY_MAX + 1);
	msg->payload_len = r % 5 ? random32(seed) % 3000 : random32(seed) % (FT_PAYLOAD_MAX + 1);
	if (r % 11 == 0)
		msg->payload_len = FT_PAYLOAD_MAX;
	if (r % 13 == 0)
		msg->body_len = 0;
}

/* Bodies and payloads are pieces of one block of noise, by generation. */
static uint8_t noise[FT_PAYLOAD_MAX + 2 * 65536];

static const uint8_t *body_of(const struct ft_msg *msg)
{
	return noise + 65536 + (msg->generation & 0xffff);
}

static const uint8_t *payload_of(const struct ft_msg *msg)
{
	return noise + (msg->generation >> 8 & 0xffff);
}

static void stream_frames(struct end *end)
{
	struct stream *s = end->user;

	while (s->sent < s->total) {
		uint32_t seed = s->seed_out;
		struct ft_msg msg;
		uint8_t *payload = s->memory;
		int r;

		make_msg(&seed, &msg);
		if (s->use_reserve && s->sent % 2) {
			payload = end->link->ops->reserve(end->link, FT_PAYLOAD_MAX);
			if (!payload)
				return;
		}
		memcpy(payload, payload_of(&msg), msg.payload_len);
		msg.body = body_of(&msg);
		msg.payload = payload;
		r = end->link->ops->send(end->link, &msg);
		if (r == -EAGAIN)
			return;
		assert_int_equal(r, 0);
		s->seed_out = seed;
		s->sent++;
	}
}

static void stream_more(struct end *end)
{
	struct stream *s = end->user;

	if (s->use_cork)
		ft_link_cork(end->link, true);
	stream_frames(end);
	if (s->use_cork)
		ft_link_cork(end->link, false);
}

static void stream_check(struct end *end, const struct ft_msg *msg)
{
	struct stream *s = end->user;
	struct ft_msg want;

	make_msg(&s->seed_in, &want);
	assert_int_equal(msg->type, want.type);
	assert_int_equal(msg->generation, want.generation);
	assert_int_equal(msg->epoch, want.epoch);
	assert_int_equal(msg->body_len, want.body_len);
	assert_int_equal(msg->payload_len, want.payload_len);
	if (want.body_len)
		assert_memory_equal(msg->body, body_of(&want), want.body_len);
	if (want.payload_len)
		assert_memory_equal(msg->payload, payload_of(&want), want.payload_len);
}

static void random_frames_both_ways(bool cork)
{
	struct link_pair t;
	struct stream a = {
		.total = 5000, .seed_out = 1, .seed_in = 2, .use_reserve = true, .use_cork = cork};
	struct stream b = {.total = 5000, .seed_out = 2, .seed_in = 1};
	uint32_t seed = 99;

	for (size_t i = 0; i < sizeof noise; i += 4)
		memcpy(noise + i, &(uint32_t){random32(&seed)}, 4);
	link_pair_ours(&t);
	a.memory = malloc(FT_PAYLOAD_MAX);
	b.memory = malloc(FT_PAYLOAD_MAX);
	t.a.on_message = t.b.on_message = stream_check;
	t.a.on_writable = t.b.on_writable = stream_more;
	t.a.user = &a;
	t.b.user = &b;
	stream_more(&t.a);
	stream_more(&t.b);
	run_until(t.base, t.a.messages == b.total && t.b.messages == a.total);
	assert_true(t.a.writables > 0 && t.b.writables > 0);
	assert_int_equal(t.a.closes + t.b.closes, 0);
	assert_int_equal(link_queued(t.a.link), 0);
	free(a.memory);
	free(b.memory);
	link_pair_free(&t);
}

static void test_random_frames_both_ways(void **state)
{
	(void)state;
	random_frames_both_ways(false);
}

static void test_random_frames_corked(void **state)
{
	(void)state;
	random_frames_both_ways(true);
}

static void test_backpressure(void **state)
{
	static uint8_t payload[FT_PAYLOAD_MAX];
	struct link_pair t;
	unsigned sent = 0;
	int r;

	(void)state;
	link_pair_ours(&t);
	while (!(r = end_send(&t.a, 1, payload, sizeof payload)))
		assert_true(++sent < 1000);
	assert_int_equal(r, -EAGAIN);
	assert_true(link_queued(t.a.link) <= LINK_OUTPUT_BYTES);
	assert_true(link_queued(t.a.link) > LINK_OUTPUT_BYTES / 2);
	assert_null(t.a.link->ops->reserve(t.a.link, FT_PAYLOAD_MAX));
	assert_int_equal(t.a.writables, 0);
	/* A peer that does not read: drain gives up in time. */
	assert_int_equal(t.a.link->ops->drain(t.a.link, 20), -ETIMEDOUT);
	run_until(t.base, t.a.writables);
	assert_non_null(t.a.link->ops->reserve(t.a.link, FT_PAYLOAD_MAX));
	run_until(t.base, t.b.messages == sent);
	assert_int_equal(t.a.writables, 1);
	assert_true(t.a.link->ops->bytes_sent(t.a.link) ==
		    sent * (uint64_t)(FRAME_HEADER + FT_PAYLOAD_MAX));
	link_pair_free(&t);
}

static void order_check(struct end *end, const struct ft_msg *msg)
{
	assert_int_equal(msg->type, end->messages);
	assert_int_equal(msg->payload[0], msg->type);
	assert_int_equal(msg->payload[msg->payload_len - 1], msg->type);
}

/* Small frames wait, wherever they lie; what is large takes them along, in order. */
static void test_cork(void **state)
{
	static uint8_t small[100], large[50000];
	struct link_pair t;
	uint8_t *p;

	(void)state;
	link_pair_ours(&t);
	t.b.on_message = order_check;
	ft_link_cork(t.a.link, true);
	memset(small, 1, sizeof small);
	assert_int_equal(end_send(&t.a, 1, small, sizeof small), 0);
	p = t.a.link->ops->reserve(t.a.link, FT_PAYLOAD_MAX);
	assert_non_null(p);
	memset(p, 2, sizeof small);
	assert_int_equal(end_send(&t.a, 2, p, sizeof small), 0);
	assert_true(link_queued(t.a.link) == 2 * (FRAME_HEADER + sizeof small));
	assert_true(t.a.link->ops->bytes_sent(t.a.link) == 0);
	memset(large, 3, sizeof large);
	assert_int_equal(end_send(&t.a, 3, large, sizeof large), 0);
	assert_true(t.a.link->ops->bytes_sent(t.a.link) > 0);
	memset(small, 4, sizeof small);
	assert_int_equal(end_send(&t.a, 4, small, sizeof small), 0);
	ft_link_cork(t.a.link, false);
	run_until(t.base, t.b.messages == 4);
	/* A cork that held nothing back sends nothing. */
	ft_link_cork(t.a.link, true);
	ft_link_cork(t.a.link, false);
	assert_int_equal(link_queued(t.a.link), 0);
	link_pair_free(&t);
}

/* Others may be sent between a reservation and its use, and a reservation may be given up. */
static void test_reservation_keeps(void **state)
{
	static uint8_t other[20000];
	struct link_pair t;
	uint8_t *p;

	(void)state;
	link_pair_ours(&t);
	t.b.on_message = order_check;
	assert_non_null(t.a.link->ops->reserve(t.a.link, 1000));
	p = t.a.link->ops->reserve(t.a.link, FT_PAYLOAD_MAX);
	assert_non_null(p);
	memset(p, 0xff, FT_PAYLOAD_MAX);
	for (uint16_t i = 1; i <= 50; i++) {
		memset(other, i, sizeof other);
		assert_int_equal(end_send(&t.a, i, other, i % 2 ? 20000 : 100), 0);
	}
	assert_int_equal(p[0], 0xff);
	assert_int_equal(p[FT_PAYLOAD_MAX - 1], 0xff);
	memset(p, 51, FT_PAYLOAD_MAX);
	assert_int_equal(end_send(&t.a, 51, p, FT_PAYLOAD_MAX), 0);
	memset(other, 52, sizeof other);
	assert_int_equal(end_send(&t.a, 52, other, sizeof other), 0);
	run_until(t.base, t.b.messages == 52);
	link_pair_free(&t);
}

static void close_self(struct end *end, const struct ft_msg *msg)
{
	assert_int_equal(msg->payload_len, 3);
	end_close(end);
	assert_memory_equal(msg->payload, "abc", 3); /* valid until the handler returns */
}

static void test_close_in_message(void **state)
{
	struct link_pair t;

	(void)state;
	link_pair_ours(&t);
	t.b.on_message = close_self;
	for (int i = 0; i < 3; i++)
		assert_int_equal(end_send(&t.a, 1, "abc", 3), 0);
	run_until(t.base, t.a.closes);
	assert_int_equal(t.b.messages, 1);
	assert_int_equal(t.b.closes, 0);
	assert_int_equal(end_send(&t.a, 1, "abc", 3), -EPIPE);
	assert_null(t.a.link->ops->reserve(t.a.link, 1));
	assert_int_equal(t.a.link->ops->drain(t.a.link, 10), -EPIPE);
	run_idle(t.base);
	assert_int_equal(t.a.closes, 1);
	link_pair_free(&t);
}

static void close_link_writable(struct end *end)
{
	end_close(end);
}

static void test_close_in_writable(void **state)
{
	static uint8_t payload[FT_PAYLOAD_MAX];
	struct link_pair t;

	(void)state;
	link_pair_ours(&t);
	t.a.on_writable = close_link_writable;
	while (!end_send(&t.a, 1, payload, sizeof payload))
		;
	run_until(t.base, t.b.closes);
	assert_int_equal(t.a.closes, 0);
	assert_null(t.a.link);
	/* What was queued at the close is lost, in the middle of a frame perhaps, and said so. */
	assert_non_null(strstr(t.b.why.text, "closed by the peer"));
	link_pair_free(&t);
}

static void closed_closes(void *ctx, const struct ft_err *why)
{
	struct end *end = ctx;

	end_closed(ctx, why);
	end_close(end);
}

static void test_close_in_closed(void **state)
{
	struct link_pair t;

	(void)state;
	link_pair_ours(&t);
	t.a.link->events.closed = closed_closes;
	end_close(&t.b);
	run_until(t.base, t.a.closes);
	assert_null(t.a.link);
	link_pair_says(&t.a, "closed by the peer");
	link_pair_free(&t);
}

/* A peer's last words come through although our own writes fail by then. */
static void test_last_words(void **state)
{
	static uint8_t payload[FT_PAYLOAD_MAX];
	struct link_pair t;
	int r;

	(void)state;
	link_pair_ours(&t);
	assert_int_equal(end_send(&t.b, 9, "no", 2), 0);
	end_close(&t.b);
	for (int i = 0; i < 100; i++) {
		r = end_send(&t.a, 1, payload, sizeof payload);
		if (r == -EPIPE)
			break;
	}
	assert_int_equal(r, -EPIPE);
	assert_int_equal(t.a.closes, 0); /* never from within send() */
	run_until(t.base, t.a.closes);
	assert_int_equal(t.a.messages, 1);
	link_pair_free(&t);
}

struct flood {
	unsigned *other; /* messages of the quiet link */
	unsigned at_other;
};

static void flood_check(struct end *end, const struct ft_msg *msg)
{
	struct flood *f = end->user;

	(void)msg;
	if (!*f->other)
		f->at_other = end->messages;
}

/* A link with much to read does not starve another. */
static void test_fairness(void **state)
{
	struct link_pair t, quiet;
	struct flood f;
	int fd[2];

	(void)state;
	link_pair_ours(&t);
	memset(&quiet, 0, sizeof quiet);
	tcp_pair(fd);
	end_over(&quiet.a, t.base, fd[0]);
	end_over(&quiet.b, t.base, fd[1]);
	f = (struct flood){.other = &quiet.b.messages};
	t.b.user = &f;
	t.b.on_message = flood_check;
	for (int i = 0; i < 2000; i++)
		assert_int_equal(end_send(&t.a, 1, "x", 1), 0);
	assert_int_equal(end_send(&quiet.a, 1, "x", 1), 0);
	run_until(t.base, t.b.messages == 2000 && quiet.b.messages == 1);
	assert_true(f.at_other <= 2 * LINK_TURN_FRAMES);
	end_close(&quiet.a);
	end_close(&quiet.b);
	link_pair_free(&t);
}

static void test_uuid(void **state)
{
	static const uint8_t one[FRAME_UUID] = {1}, two[FRAME_UUID] = {2};
	struct link_pair t;

	(void)state;
	link_pair_ours(&t);
	link_set_uuid(t.b.link, one);
	assert_int_equal(end_send(&t.a, 1, "x", 1), 0); /* a stranger's first: marked */
	run_until(t.base, t.b.messages == 1);
	assert_true(t.b.other_guest);
	link_set_uuid(t.a.link, one);
	assert_int_equal(end_send(&t.a, 1, "x", 1), 0);
	run_until(t.base, t.b.messages == 2);
	assert_false(t.b.other_guest);
	link_set_uuid(t.a.link, two);
	assert_int_equal(end_send(&t.a, 1, "x", 1), 0);
	run_until(t.base, t.b.closes);
	link_pair_says(&t.b, "uuid: belongs to another guest");
	assert_int_equal(t.b.messages, 2);
	link_pair_free(&t);
}

static void test_drain(void **state)
{
	static uint8_t payload[FT_PAYLOAD_MAX];
	struct link_pair t;
	static uint8_t sink[1 << 20];
	pid_t reader;

	(void)state;
	link_pair_raw(&t);
	while (!end_send(&t.a, 1, payload, sizeof payload))
		;
	reader = fork();
	assert_true(reader >= 0);
	if (reader == 0) {
		while (recv(t.raw, sink, sizeof sink, 0) > 0)
			;
		_exit(0);
	}
	assert_int_equal(t.a.link->ops->drain(t.a.link, WAIT_MS), 0);
	assert_int_equal(link_queued(t.a.link), 0);
	/* Whom drain() made room for hears of it, from the loop. */
	assert_int_equal(t.a.writables, 0);
	run_until(t.base, t.a.writables == 1);
	kill(reader, SIGKILL);
	waitpid(reader, NULL, 0);
	link_pair_free(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random_frames_both_ways),
		cmocka_unit_test(test_random_frames_corked),
		cmocka_unit_test(test_cork),
		cmocka_unit_test(test_backpressure),
		cmocka_unit_test(test_reservation_keeps),
		cmocka_unit_test(test_close_in_message),
		cmocka_unit_test(test_close_in_writable),
		cmocka_unit_test(test_close_in_closed),
		cmocka_unit_test(test_last_words),
		cmocka_unit_test(test_fairness),
		cmocka_unit_test(test_uuid),
		cmocka_unit_test(test_drain),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
