// SPDX-License-Identifier: Apache-2.0
// The ring of a link's output, against a model: what goes in comes out, in order, and a reservation
// keeps.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "transport/outbuf.h"

static uint32_t random32(uint32_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 17;
	return *seed ^= *seed << 5;
}

static void test_outbuf(void **state)
{
	struct outbuf b;
	uint8_t written = 0, expected = 0, value;
	uint32_t seed = 12345;
	size_t kept = 0;
	uint64_t pos, kept_at = 0;

	(void)state;
	assert_int_equal(outbuf_init(&b, 4096), 0);
	for (int step = 0; step < 200000; step++) {
		uint32_t r = random32(&seed);
		size_t len = 1 + r % 700;
		struct iovec iov;

		if (r >> 28 < 5) {
			if (!outbuf_room(&b, len, &pos))
				continue;
			for (size_t i = 0; i < len; i++)
				outbuf_at(&b, pos)[i] = written++;
			outbuf_commit(&b, pos, len);
		} else if (r >> 28 < 7) {
			kept = outbuf_reserve(&b, len, &kept_at) ? len : 0;
			if (kept)
				memset(outbuf_at(&b, kept_at), 0xaa, kept);
		} else if (r >> 28 < 9 && kept) {
			size_t skip = (r >> 8) % kept, use = kept - skip;

			for (size_t i = 0; i < kept; i++)
				assert_int_equal(outbuf_at(&b, kept_at)[i], 0xaa);
			use -= use > 1 ? 1 : 0;
			for (size_t i = 0; i < use; i++)
				outbuf_at(&b, kept_at + skip)[i] = written++;
			outbuf_commit_reserved(&b, kept_at + skip, use);
			kept = 0;
		} else if (outbuf_front(&b, &iov)) {
			size_t n = 1 + (r >> 4) % iov.iov_len;

			for (size_t i = 0; i < n; i++) {
				value = ((uint8_t *)iov.iov_base)[i];
				assert_int_equal(value, expected);
				expected++;
			}
			outbuf_consume(&b, n);
		}
		assert_true(b.queued <= b.size);
		if (outbuf_is_roomy(&b))
			assert_true(outbuf_room(&b, b.size / 4, &pos));
	}
	outbuf_free(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_outbuf),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
