// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

#include "transport/frame.h"

static const uint8_t body[] = "a body", payload[] = "and a payload";
static const uint8_t uuid[FRAME_UUID] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

static struct frame_header sample(void)
{
	struct frame_header h = {
		.type = 0x1234,
		.generation = 0x1122334455667788,
		.epoch = 42,
		.seq = 7,
		.body_len = sizeof body,
		.payload_len = sizeof payload,
		.body_hash = frame_hash(body, sizeof body),
		.payload_hash = frame_hash(payload, sizeof payload),
	};

	memcpy(h.uuid, uuid, sizeof uuid);
	return h;
}

/* Makes the header hash right again, so that what is behind it is tested. */
static void seal(uint8_t *raw)
{
	uint64_t hash = frame_hash(raw, 80);

	for (int i = 0; i < 8; i++)
		raw[80 + i] = (uint8_t)(hash >> (8 * i));
}

static void refused(const uint8_t *raw, int code, const char *says)
{
	struct frame_header h;
	struct ft_err err = {0};

	assert_int_equal(frame_decode(raw, &h, &err), -code);
	if (!strstr(err.text, says))
		fail_msg("\"%s\" does not say \"%s\"", err.text, says);
}

static void test_round_trip(void **state)
{
	struct frame_header in = sample(), out;
	uint8_t raw[FRAME_HEADER];

	(void)state;
	memset(&out, 0xee, sizeof out);
	frame_encode(&in, raw);
	assert_int_equal(frame_decode(raw, &out, NULL), 0);
	assert_int_equal(out.type, in.type);
	assert_memory_equal(out.uuid, in.uuid, sizeof in.uuid);
	assert_int_equal(out.generation, in.generation);
	assert_int_equal(out.epoch, in.epoch);
	assert_int_equal(out.seq, in.seq);
	assert_int_equal(out.body_len, in.body_len);
	assert_int_equal(out.payload_len, in.payload_len);
	assert_int_equal(frame_length(&out), FRAME_HEADER + sizeof body + sizeof payload);
	assert_int_equal(frame_check_place(&out, uuid, 7, NULL), 0);
	assert_int_equal(frame_check_place(&out, NULL, 7, NULL), 0);
	assert_int_equal(frame_check_content(&out, body, payload, NULL), 0);
}

/* The bytes are a contract between versions: they may not change without the version changing. */
static void test_golden(void **state)
{
	struct frame_header in = sample();
	static const uint8_t head[64] = {
		'K',	     'E',  'M',	 'A',  'R',
		'I',	     'F',  'T', /* magic */
		1,	     0,	   88,	 0,    0x34,
		0x12,	     0,	   0, /* version .. flags */
		1,	     2,	   3,	 4,    5,
		6,	     7,	   8,	 9,    10,
		11,	     12,   13,	 14,   15,
		16, /* uuid */
		0x88,	     0x77, 0x66, 0x55, 0x44,
		0x33,	     0x22, 0x11, /* generation */
		42,	     0,	   0,	 0,    0,
		0,	     0,	   0,	 7,    0,
		0,	     0,	   0,	 0,    0,
		0, /* epoch, seq */
		sizeof body, 0,	   0,	 0,    sizeof payload,
		0,	     0,	   0, /* lengths */
	};
	/* XXH3-64 of nothing, from its reference */
	static const uint64_t empty = 0x2d06800538d394c2;
	uint8_t raw[FRAME_HEADER];

	(void)state;
	frame_encode(&in, raw);
	assert_memory_equal(raw, head, sizeof head);
	assert_true(frame_hash(NULL, 0) == empty);
}

static void test_every_header_byte(void **state)
{
	struct frame_header in = sample(), out;
	uint8_t raw[FRAME_HEADER];

	(void)state;
	frame_encode(&in, raw);
	for (size_t i = 0; i < sizeof raw; i++) {
		for (int bit = 0; bit < 8; bit++) {
			struct ft_err err = {0};

			raw[i] ^= (uint8_t)(1 << bit);
			assert_true(frame_decode(raw, &out, &err) < 0);
			assert_true(err.code != 0 && strstr(err.text, "frame: "));
			raw[i] ^= (uint8_t)(1 << bit);
		}
	}
	assert_int_equal(frame_decode(raw, &out, NULL), 0);
}

static void test_sealed_lies(void **state)
{
	struct frame_header in = sample();
	uint8_t raw[FRAME_HEADER];

	(void)state;
	in.body_len = FT_BODY_MAX;
	in.payload_len = FT_PAYLOAD_MAX;
	frame_encode(&in, raw);
	assert_int_equal(frame_decode(raw, &in, NULL), 0);
	raw[56]++; /* body length: one more than allowed */
	seal(raw);
	refused(raw, EPROTO, "body length: 65537, at most 65536");
	raw[59] = 0xff;
	seal(raw);
	refused(raw, EPROTO, "body length");
	frame_encode(&in, raw);
	raw[60]++;
	seal(raw);
	refused(raw, EPROTO, "payload length: 262145, at most 262144");
	frame_encode(&in, raw);
	raw[14] = 1;
	seal(raw);
	refused(raw, EPROTO, "flags: unknown 0x1");
	frame_encode(&in, raw);
	raw[10] = 96;
	seal(raw);
	refused(raw, EPROTO, "header length: 96, not 88");
	frame_encode(&in, raw);
	raw[8] = 2;
	seal(raw);
	refused(raw, EPROTONOSUPPORT, "protocol version: peer speaks 2, this end 1");
}

static void test_foreign(void **state)
{
	uint8_t raw[FRAME_HEADER] = "GET / HTTP/1.1\r\n";

	(void)state;
	refused(raw, EPROTO, "magic: peer does not speak this protocol");
	memcpy(raw, "\x16\x03\x01\x02\x00\x01", 6);
	refused(raw, EPROTO, "magic: peer speaks TLS, this end is plaintext");
}

static void test_place(void **state)
{
	struct frame_header h = sample();
	struct ft_err err = {0};
	uint8_t other[FRAME_UUID] = {0};

	(void)state;
	assert_int_equal(frame_check_place(&h, uuid, 8, &err), -EPROTO);
	assert_non_null(strstr(err.text, "sequence: 7, not 8: replayed or reordered"));
	assert_int_equal(frame_check_place(&h, uuid, 6, &err), -EPROTO);
	assert_non_null(strstr(err.text, "sequence: 7, not 6: frames are missing"));
	assert_int_equal(frame_check_place(&h, other, 7, &err), -EPROTO);
	assert_non_null(strstr(err.text, "uuid: belongs to another guest"));
}

static void test_content(void **state)
{
	struct frame_header h = sample();
	struct ft_err err = {0};
	uint8_t b[sizeof body], p[sizeof payload];

	(void)state;
	memcpy(b, body, sizeof b);
	memcpy(p, payload, sizeof p);
	for (size_t i = 0; i < sizeof b; i++) {
		b[i] ^= 0x80;
		assert_int_equal(frame_check_content(&h, b, p, &err), -EBADMSG);
		assert_non_null(strstr(err.text, "body hash"));
		b[i] ^= 0x80;
	}
	for (size_t i = 0; i < sizeof p; i++) {
		p[i] ^= 1;
		assert_int_equal(frame_check_content(&h, b, p, &err), -EBADMSG);
		assert_non_null(strstr(err.text, "payload hash"));
		p[i] ^= 1;
	}
	assert_int_equal(frame_check_content(&h, b, p, &err), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),	  cmocka_unit_test(test_golden),
		cmocka_unit_test(test_every_header_byte), cmocka_unit_test(test_sealed_lies),
		cmocka_unit_test(test_foreign),		  cmocka_unit_test(test_place),
		cmocka_unit_test(test_content),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
