// SPDX-License-Identifier: Apache-2.0
/* Page records from a peer that means harm: refused before anything is written, whatever they say.
 */
#include <endian.h>
#include <errno.h>
#include <lz4.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include <cmocka.h>

#include "ft/codec.h"
#include "tests/fixture/noise.h"

#define PAGES  96
#define PLENTY ((size_t)4 << 20)

static size_t record_make(uint8_t *out, uint32_t pfn, unsigned kind, const void *data, uint16_t len)
{
	memset(out, 0, FT_PAGE_RECORD_HEADER);
	pfn = htole32(pfn);
	memcpy(out, &pfn, 4);
	out[4] = (uint8_t)kind;
	out[6] = (uint8_t)len;
	out[7] = (uint8_t)(len >> 8);
	memcpy(out + FT_PAGE_RECORD_HEADER, data, len);
	return FT_PAGE_RECORD_HEADER + len;
}

static void assert_refused(const uint8_t *buf, size_t len, const char *why)
{
	struct ft_page_record rec;
	struct ft_err err = {0};

	assert_int_equal(ft_page_record_parse(buf, len, PAGES, &rec, &err), -EPROTO);
	assert_int_equal(err.code, EPROTO);
	if (!strstr(err.text, why))
		fail_msg("\"%s\" does not say \"%s\"", err.text, why);
	assert_int_equal(ft_page_record_parse(buf, len, PAGES, &rec, NULL), -EPROTO);
}

static void test_parse_refuses(void **state)
{
	static const struct {
		uint8_t data[40];
		uint16_t len;
	} bad_runs[] = {
		{{0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}, 12}, /* empty run */
		{{0, 2, 1, 0}, 12},			    /* begins at the page's end */
		{{0xff, 1, 2, 0}, 20},			    /* ends beyond it */
		{{0xff, 0xff, 0xff, 0xff}, 12},		    /* far beyond it */
		{{0, 0, 2, 0}, 12},			    /* more words than data */
		{{0, 0, 1, 0}, 14},			    /* half a header follows */
		{{5, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 1, 0}, 24}, /* overlaps */
		{{5, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0}, 24}, /* descends */
	};
	uint8_t buf[FT_PAGE_RECORD_MAX + 8], data[FT_PAGE_BYTES + 8] = {0};

	(void)state;
	/* The header is judged before the data is there. */
	record_make(buf, PAGES, FT_PAGE_RAW, data, FT_PAGE_BYTES);
	assert_refused(buf, FT_PAGE_RECORD_HEADER, "page 96");
	record_make(buf, UINT32_MAX, FT_PAGE_ZERO, data, 0);
	assert_refused(buf, FT_PAGE_RECORD_HEADER, "page 4294967295");
	record_make(buf, 1, 0, data, 0);
	assert_refused(buf, FT_PAGE_RECORD_HEADER, "unknown kind");
	record_make(buf, 1, FT_PAGE_KIND_MAX, data, 0);
	assert_refused(buf, FT_PAGE_RECORD_HEADER, "unknown kind");
	record_make(buf, 1, FT_PAGE_ZERO, data, 0);
	buf[5] = 1;
	assert_refused(buf, FT_PAGE_RECORD_HEADER, "unknown kind");
	record_make(buf, 1, FT_PAGE_ZERO, data, 1);
	assert_refused(buf, FT_PAGE_RECORD_HEADER, "cannot have 1 bytes");
	record_make(buf, 1, FT_PAGE_RAW, data, FT_PAGE_BYTES - 1);
	assert_refused(buf, FT_PAGE_RECORD_HEADER, "cannot have 4095 bytes");
	record_make(buf, 1, FT_PAGE_RAW, data, FT_PAGE_BYTES + 1);
	assert_refused(buf, FT_PAGE_RECORD_HEADER, "cannot have 4097 bytes");
	record_make(buf, 1, FT_PAGE_PLAIN, data, FT_PAGE_BYTES - 1);
	assert_refused(buf, FT_PAGE_RECORD_HEADER, "cannot have 4095 bytes");
	record_make(buf, 1, FT_PAGE_PLAIN, data, FT_PAGE_BYTES);
	buf[11] = 1;
	assert_refused(buf, FT_PAGE_RECORD_HEADER, "has no hash");
	record_make(buf, 1, FT_PAGE_LZ4, data, 0);
	assert_refused(buf, FT_PAGE_RECORD_HEADER, "cannot have 0 bytes");
	record_make(buf, 1, FT_PAGE_LZ4, data, FT_PAGE_BYTES);
	assert_refused(buf, FT_PAGE_RECORD_HEADER, "cannot have 4096 bytes");
	record_make(buf, 1, FT_PAGE_DELTA, data, 11);
	assert_refused(buf, FT_PAGE_RECORD_HEADER, "cannot have 11 bytes");
	for (size_t i = 0; i < sizeof bad_runs / sizeof *bad_runs; i++) {
		size_t len = record_make(buf, 1, FT_PAGE_DELTA, bad_runs[i].data, bad_runs[i].len);

		assert_refused(buf, len, "malformed runs");
	}
}

static void test_apply_refuses(void **state)
{
	uint8_t page[FT_PAGE_BYTES], image[FT_PAGE_BYTES], other[FT_PAGE_BYTES];
	uint8_t out[FT_PAGE_RECORD_MAX], packed[FT_PAGE_BYTES], twice[2 * FT_PAGE_BYTES] = {0};
	struct ft_codec *c = ft_codec_new(PAGES, PLENTY);
	struct ft_page_record rec;
	struct ft_err err = {0};
	size_t len;
	int n;

	(void)state;
	noise_fill(page, sizeof page);
	memcpy(other, page, sizeof page);
	ft_codec_encode(c, 1, 1, page, out);
	page[77] ^= 4;
	len = ft_codec_encode(c, 1, 1, page, out);
	assert_int_equal(ft_page_record_parse(out, len, PAGES, &rec, &err), len);
	assert_int_equal(rec.kind, FT_PAGE_DELTA);
	/* Another base than the sender's. */
	memcpy(image, other, sizeof image);
	image[4000] ^= 1;
	assert_int_equal(ft_page_record_apply(&rec, image, &err), -EPROTO);
	assert_non_null(strstr(err.text, "page record: page 1: hash"));
	/* The same one. */
	memcpy(image, other, sizeof image);
	assert_int_equal(ft_page_record_apply(&rec, image, &err), 0);
	/* A flipped bit of the data. */
	memcpy(image, other, sizeof image);
	out[len - 1] ^= 0x80;
	assert_int_equal(ft_page_record_apply(&rec, image, &err), -EPROTO);

	/* Blocks of one byte less and one byte more than a page. */
	for (int bytes = FT_PAGE_BYTES - 1; bytes <= FT_PAGE_BYTES + 1; bytes++) {
		n = LZ4_compress_default((char *)twice, (char *)packed, bytes, sizeof packed);
		assert_true(n > 0);
		len = record_make(out, 1, FT_PAGE_LZ4, packed, (uint16_t)n);
		assert_int_equal(ft_page_record_parse(out, len, PAGES, &rec, &err), len);
		rec.hash = (uint32_t)XXH3_64bits(twice, FT_PAGE_BYTES);
		assert_int_equal(ft_page_record_apply(&rec, image, &err),
				 bytes == FT_PAGE_BYTES ? 0 : -EPROTO);
	}
	/* A zero record with another page's hash. */
	len = record_make(out, 1, FT_PAGE_ZERO, packed, 0);
	assert_int_equal(ft_page_record_parse(out, len, PAGES, &rec, &err), len);
	assert_int_equal(ft_page_record_apply(&rec, image, &err), -EPROTO);
	ft_codec_free(c);
}

/* A page of read-only memory takes a zero record when it is zero: nothing was written. */
static void test_zero_stays_sparse(void **state)
{
	static const uint8_t zero[FT_PAGE_BYTES];
	const struct ft_page_record rec = {
		.pfn = 1,
		.kind = FT_PAGE_ZERO,
		.hash = (uint32_t)XXH3_64bits(zero, sizeof zero),
	};

	(void)state;
	assert_int_equal(ft_page_record_apply(&rec, (uint8_t *)(uintptr_t)zero, NULL), 0);
}

/* Random bytes, and true records with random damage, in exact allocations so that the sanitizer
 * sees a byte too far. */
static void test_fuzz(void **state)
{
	struct ft_codec *c = ft_codec_new(PAGES, PLENTY);
	uint8_t page[FT_PAGE_BYTES], out[FT_PAGE_RECORD_MAX];
	uint8_t *image = malloc(FT_PAGE_BYTES);
	unsigned accepted = 0, applied = 0;

	(void)state;
	noise_fill(page, sizeof page);
	memset(image, 0, FT_PAGE_BYTES);
	for (int round = 0; round < 20000; round++) {
		struct ft_page_record rec;
		struct ft_err err = {0};
		uint8_t *buf;
		size_t len;
		int n;

		if (round % 2) {
			len = noise_below(300);
			noise_fill(out, len);
			if (len > FT_PAGE_RECORD_HEADER) {
				memset(out + 1, 0, 3);
				out[0] %= PAGES;
				out[4] %= FT_PAGE_KIND_MAX;
				out[5] = 0;
				out[6] = (uint8_t)(len - FT_PAGE_RECORD_HEADER);
				out[7] = (uint8_t)((len - FT_PAGE_RECORD_HEADER) >> 8);
			}
		} else {
			if (noise_below(3) == 0)
				noise_text(page);
			else
				noise_fill(page + noise_below(64) * 64, 8 * (1 + noise_below(8)));
			len = ft_codec_encode(c, 1, noise_below(4), page, out);
			for (unsigned hits = noise_below(4); hits && len; hits--)
				out[noise_below((unsigned)len)] ^= (uint8_t)(1u << noise_below(8));
			len -= len && noise_below(8) == 0;
		}
		buf = malloc(len ? len : 1);
		memcpy(buf, out, len);
		n = ft_page_record_parse(buf, len, PAGES, &rec, &err);
		assert_true(n == -EPROTO || (n >= 0 && (size_t)n <= len));
		assert_true((n < 0) == (err.code != 0));
		if (n > 0) {
			accepted++;
			assert_true(rec.pfn < PAGES);
			assert_true(rec.data + rec.data_len <= buf + len);
			n = ft_page_record_apply(&rec, image, &err);
			assert_true(n == 0 || n == -EPROTO);
			applied += n == 0;
		}
		free(buf);
	}
	assert_true(accepted > 1000);
	assert_true(applied > 100);
	free(image);
	ft_codec_free(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_parse_refuses),
		cmocka_unit_test(test_apply_refuses),
		cmocka_unit_test(test_zero_stays_sparse),
		cmocka_unit_test(test_fuzz),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
