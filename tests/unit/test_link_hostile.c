// SPDX-License-Identifier: Apache-2.0
// A link whose peer is cut off, corrupted, out of order, oversized, somebody else, or slow.
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "tests/fixture/link_pair.h"

static size_t make_frame(uint8_t *out, uint16_t type, uint64_t seq, const uint8_t *uuid,
			 const char *body, const char *payload)
{
	struct frame_header h = {.type = type,
				 .seq = seq,
				 .body_len = (uint32_t)strlen(body),
				 .payload_len = (uint32_t)strlen(payload)};

	h.body_hash = frame_hash(body, h.body_len);
	h.payload_hash = frame_hash(payload, h.payload_len);
	if (uuid)
		memcpy(h.uuid, uuid, FRAME_UUID);
	frame_encode(&h, out);
	memcpy(out + FRAME_HEADER, body, h.body_len);
	memcpy(out + FRAME_HEADER + h.body_len, payload, h.payload_len);
	return frame_length(&h);
}

static void put(int fd, const void *data, size_t len)
{
	assert_int_equal(send(fd, data, len, MSG_NOSIGNAL), len);
}

static void test_cut_at_every_byte(void **state)
{
	uint8_t frame[256];
	size_t len = make_frame(frame, 1, 1, NULL, "body", "payload");

	(void)state;
	for (size_t cut = 0; cut < len; cut++) {
		struct link_pair t;

		link_pair_raw(&t);
		put(t.raw, frame, cut);
		shutdown(t.raw, SHUT_WR);
		run_until(t.base, t.a.closes);
		assert_int_equal(t.a.messages, 0);
		link_pair_says(&t.a, cut ? "closed by the peer in the middle of a frame"
					 : "closed by the peer");
		link_pair_free(&t);
	}
}

static void test_corrupted_at_every_byte(void **state)
{
	uint8_t frame[256];
	size_t len = make_frame(frame, 1, 1, NULL, "body", "payload");

	(void)state;
	for (size_t at = 0; at < len; at++) {
		struct link_pair t;

		link_pair_raw(&t);
		frame[at] ^= 0x55;
		put(t.raw, frame, len);
		frame[at] ^= 0x55;
		run_until(t.base, t.a.closes);
		assert_int_equal(t.a.messages, 0);
		link_pair_says(&t.a, at < FRAME_HEADER	     ? "frame: "
				     : at < FRAME_HEADER + 4 ? "body hash"
							     : "payload hash");
		link_pair_free(&t);
	}
}

static void hostile(const uint8_t *bytes, size_t len, unsigned messages, const char *text)
{
	struct link_pair t;

	link_pair_raw(&t);
	put(t.raw, bytes, len);
	run_until(t.base, t.a.closes);
	assert_int_equal(t.a.messages, messages);
	link_pair_says(&t.a, text);
	run_idle(t.base);
	assert_int_equal(t.a.closes, 1);
	assert_int_equal(t.a.messages, messages);
	link_pair_free(&t);
}

static void test_order(void **state)
{
	uint8_t bytes[1024];
	size_t n;

	(void)state;
	n = make_frame(bytes, 1, 1, NULL, "a", "b");
	n += make_frame(bytes + n, 1, 1, NULL, "a", "b");
	hostile(bytes, n, 1, "replayed or reordered");
	n = make_frame(bytes, 1, 1, NULL, "a", "b");
	n += make_frame(bytes + n, 1, 3, NULL, "a", "b");
	n += make_frame(bytes + n, 1, 2, NULL, "a", "b");
	hostile(bytes, n, 1, "sequence: 3, not 2: frames are missing");
	n = make_frame(bytes, 1, 0, NULL, "a", "b");
	hostile(bytes, n, 0, "sequence: 0, not 1");
}

static void test_oversized(void **state)
{
	static const size_t field[2] = {56, 60};
	static const char *const names[2] = {"body length", "payload length"};
	uint8_t frame[256];
	uint64_t hash;
	size_t len;

	(void)state;
	for (int i = 0; i < 2; i++) {
		len = make_frame(frame, 1, 1, NULL, "", "");
		memset(frame + field[i], 0xff, 4);
		hash = frame_hash(frame, 80);
		for (int k = 0; k < 8; k++)
			frame[80 + k] = (uint8_t)(hash >> (8 * k));
		hostile(frame, len, 0, names[i]);
	}
}

static void test_foreign_protocols(void **state)
{
	static const uint8_t http[200] = "GET / HTTP/1.1\r\nHost: example\r\n";
	static const uint8_t tls[200] = {0x16, 0x03, 0x01, 0x00, 0xc3, 0x01};

	(void)state;
	hostile(http, sizeof http, 0, "peer does not speak this protocol");
	hostile(tls, sizeof tls, 0, "peer speaks TLS, this end is plaintext");
}

static void test_one_byte_at_a_time(void **state)
{
	uint8_t bytes[1024];
	struct link_pair t;
	size_t n;

	(void)state;
	link_pair_raw(&t);
	n = make_frame(bytes, 1, 1, NULL, "a body", "a payload");
	n += make_frame(bytes + n, 2, 2, NULL, "", "");
	n += make_frame(bytes + n, 3, 3, NULL, "another", "");
	for (size_t i = 0; i < n; i++) {
		put(t.raw, bytes + i, 1);
		run_idle(t.base);
	}
	run_until(t.base, t.a.messages == 3);
	assert_int_equal(t.a.closes, 0);
	link_pair_free(&t);
}

/* What we ask the kernel to wait for behind the start of a large frame holds for that frame only:
 * its last byte, a small frame and the end are heard of at once. */
static void test_large_in_pieces(void **state)
{
	static uint8_t large[FRAME_MAX];
	static char payload[FT_PAYLOAD_MAX + 1];
	uint8_t small[256];
	struct link_pair t;

	(void)state;
	memset(payload, 'x', FT_PAYLOAD_MAX);
	for (size_t rest = 1; rest <= 200000; rest = rest * 7 + 1) {
		size_t n = make_frame(large, 1, 1, NULL, "", payload);

		link_pair_raw(&t);
		put(t.raw, large, FRAME_HEADER + 5);
		run_idle(t.base);
		put(t.raw, large + FRAME_HEADER + 5, n - rest - FRAME_HEADER - 5);
		run_idle(t.base);
		assert_int_equal(t.a.messages, 0);
		put(t.raw, large + n - rest, rest);
		run_until(t.base, t.a.messages == 1);
		n = make_frame(small, 2, 2, NULL, "a body", "");
		for (size_t i = 0; i < n; i++) {
			put(t.raw, small + i, 1);
			run_idle(t.base);
		}
		run_until(t.base, t.a.messages == 2);
		make_frame(large, 1, 3, NULL, "", payload);
		put(t.raw, large, FRAME_HEADER + 5);
		run_idle(t.base);
		shutdown(t.raw, SHUT_WR);
		run_until(t.base, t.a.closes);
		link_pair_says(&t.a, "closed by the peer in the middle of a frame");
		link_pair_free(&t);
	}
}

/* A peer that reads a byte at a time gets the very stream. */
static void test_slow_reader(void **state)
{
	static uint8_t payload[FT_PAYLOAD_MAX], got[FRAME_MAX];
	struct frame_header h;
	struct link_pair t;
	int small = 32768;
	size_t have = 0;

	(void)state;
	link_pair_raw(&t);
	setsockopt(t.raw, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
	for (size_t i = 0; i < sizeof payload; i++)
		payload[i] = (uint8_t)(i * 7 + (i >> 8));
	for (int i = 0; i < 4; i++)
		assert_int_equal(end_send(&t.a, (uint16_t)i, payload, sizeof payload), 0);
	for (unsigned frame = 0; frame < 4; frame++) {
		for (have = 0; have < FRAME_HEADER + sizeof payload;) {
			size_t want = have < 2000 ? 1 : FRAME_HEADER + sizeof payload - have;
			ssize_t n =
				recv(t.raw, got + have, want > 3001 ? 3001 : want, MSG_DONTWAIT);

			if (n < 0) {
				struct pollfd pfd = {.fd = t.raw, .events = POLLIN};

				event_base_loop(t.base, EVLOOP_NONBLOCK);
				poll(&pfd, 1, 5);
			} else {
				have += (size_t)n;
			}
		}
		assert_int_equal(frame_decode(got, &h, NULL), 0);
		assert_int_equal(h.seq, frame + 1);
		assert_int_equal(h.type, frame);
		assert_memory_equal(got + FRAME_HEADER, payload, sizeof payload);
	}
	link_pair_free(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_cut_at_every_byte),
		cmocka_unit_test(test_corrupted_at_every_byte),
		cmocka_unit_test(test_order),
		cmocka_unit_test(test_oversized),
		cmocka_unit_test(test_foreign_protocols),
		cmocka_unit_test(test_one_byte_at_a_time),
		cmocka_unit_test(test_large_in_pieces),
		cmocka_unit_test(test_slow_reader),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
