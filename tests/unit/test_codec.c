// SPDX-License-Identifier: Apache-2.0
/* The codec: each kind of record, the cache's promises across commit, abort and eviction, and
 * random guests whose standby must stay equal byte for byte. With FT_CODEC_BENCH set it prints what
 * a page of each kind costs. */
#include <endian.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include <cmocka.h>

#include "ft/codec.h"
#include "tests/fixture/clock.h"
#include "tests/fixture/noise.h"

#define PAGES  96
#define PLENTY ((size_t)4 << 20)

/* Encodes, parses and applies to `image`, which must then equal the page. Returns the kind, 0 for
 * unchanged. */
static int pass(struct ft_codec *c, uint64_t epoch, uint64_t pfn, const uint8_t *page,
		uint8_t *image)
{
	uint8_t out[FT_PAGE_RECORD_MAX];
	struct ft_page_record rec;
	struct ft_err err = {0};
	size_t len = ft_codec_encode(c, epoch, pfn, page, out);

	if (len == 0) {
		assert_memory_equal(page, image, FT_PAGE_BYTES);
		return 0;
	}
	assert_in_range(len, FT_PAGE_RECORD_HEADER, FT_PAGE_RECORD_MAX);
	for (size_t cut = 0; cut < len; cut += 1 + cut / 8)
		assert_int_equal(ft_page_record_parse(out, cut, PAGES, &rec, &err), 0);
	assert_int_equal(ft_page_record_parse(out, len, PAGES, &rec, &err), len);
	assert_int_equal(rec.pfn, pfn);
	assert_int_equal(rec.data_len, len - FT_PAGE_RECORD_HEADER);
	if (ft_page_record_apply(&rec, image, &err))
		fail_msg("%s", err.text);
	assert_memory_equal(page, image, FT_PAGE_BYTES);
	return (int)rec.kind;
}

static void test_kinds(void **state)
{
	struct ft_codec *c = ft_codec_new(PAGES, PLENTY);
	uint8_t page[FT_PAGE_BYTES] = {0}, image[FT_PAGE_BYTES] = {0};
	const struct ft_codec_stats *stats = ft_codec_stats(c);

	(void)state;
	assert_int_equal(pass(c, 1, 3, page, image), FT_PAGE_ZERO);
	noise_fill(page, sizeof page);
	assert_int_equal(pass(c, 1, 3, page, image), FT_PAGE_RAW);
	assert_int_equal(pass(c, 1, 3, page, image), 0);
	page[100] ^= 1;
	assert_int_equal(pass(c, 1, 3, page, image), FT_PAGE_DELTA);
	noise_text(page);
	assert_int_equal(pass(c, 1, 3, page, image), FT_PAGE_LZ4);
	memset(page, 0, sizeof page);
	assert_int_equal(pass(c, 1, 3, page, image), FT_PAGE_ZERO);
	assert_int_equal(pass(c, 1, 3, page, image), 0);
	page[0] = 1;
	assert_int_equal(pass(c, 1, 3, page, image), FT_PAGE_DELTA);

	assert_int_equal(stats->pages_in, 8);
	assert_int_equal(stats->unchanged, 2);
	assert_int_equal(stats->by_kind[FT_PAGE_ZERO], 2);
	assert_int_equal(stats->by_kind[FT_PAGE_DELTA], 2);
	assert_int_equal(stats->by_kind[FT_PAGE_LZ4], 1);
	assert_int_equal(stats->by_kind[FT_PAGE_RAW], 1);
	assert_true(stats->bytes_out > FT_PAGE_RECORD_MAX);
	assert_true(stats->bytes_out < 2 * FT_PAGE_RECORD_MAX);
	ft_codec_free(c);
	ft_codec_free(NULL);
}

static void test_wire(void **state)
{
	static const uint8_t zero[FT_PAGE_BYTES];
	struct ft_codec *c = ft_codec_new(1u << 20, PLENTY);
	uint8_t page[FT_PAGE_BYTES], out[FT_PAGE_RECORD_MAX];
	uint32_t hash;

	(void)state;
	noise_fill(page, sizeof page);
	assert_int_equal(ft_codec_encode(c, 1, 0x12345, page, out), FT_PAGE_RECORD_MAX);
	hash = htole32((uint32_t)XXH3_64bits(page, sizeof page));
	assert_memory_equal(out, "\x45\x23\x01\x00\x04\x00\x00\x10", 8);
	assert_memory_equal(out + 8, &hash, 4);
	assert_memory_equal(out + FT_PAGE_RECORD_HEADER, page, FT_PAGE_BYTES);

	/* Words 2, 3 and 511 change: two runs. */
	page[2 * 8 + 7] ^= 0xff;
	page[3 * 8] ^= 0xff;
	page[511 * 8] ^= 0xff;
	assert_int_equal(ft_codec_encode(c, 1, 0x12345, page, out), FT_PAGE_RECORD_HEADER + 32);
	assert_memory_equal(out + 4, "\x02\x00\x20\x00", 4);
	assert_memory_equal(out + 12, "\x02\x00\x02\x00", 4);
	assert_memory_equal(out + 16, page + 16, 16);
	assert_memory_equal(out + 32, "\xff\x01\x01\x00", 4);
	assert_memory_equal(out + 36, page + 511 * 8, 8);

	assert_int_equal(ft_codec_encode(c, 1, 7, zero, out), FT_PAGE_RECORD_HEADER);
	hash = htole32((uint32_t)XXH3_64bits(zero, sizeof zero));
	assert_memory_equal(out, "\x07\x00\x00\x00\x01\x00\x00\x00", 8);
	assert_memory_equal(out + 8, &hash, 4);
	ft_codec_free(c);
}

static void test_plain(void **state)
{
	static const uint8_t zero[FT_PAGE_BYTES];
	uint8_t page[FT_PAGE_BYTES], image[FT_PAGE_BYTES], out[FT_PAGE_RECORD_MAX];
	struct ft_page_record rec;

	(void)state;
	noise_fill(page, sizeof page);
	noise_fill(image, sizeof image);
	assert_int_equal(ft_page_record_plain(9, page, out), FT_PAGE_RECORD_MAX);
	assert_memory_equal(out, "\x09\x00\x00\x00\x05\x00\x00\x10\x00\x00\x00\x00", 12);
	assert_int_equal(ft_page_record_parse(out, sizeof out, PAGES, &rec, NULL), sizeof out);
	assert_ptr_equal(ft_page_record_raw(&rec, NULL), out + FT_PAGE_RECORD_HEADER);
	assert_int_equal(ft_page_record_apply(&rec, image, NULL), 0);
	assert_memory_equal(image, page, sizeof page);

	assert_int_equal(ft_page_record_plain(9, zero, out), FT_PAGE_RECORD_HEADER);
	assert_int_equal(ft_page_record_parse(out, sizeof out, PAGES, &rec, NULL),
			 FT_PAGE_RECORD_HEADER);
	assert_null(ft_page_record_raw(&rec, NULL));
	assert_int_equal(ft_page_record_apply(&rec, image, NULL), 0);
	assert_memory_equal(image, zero, sizeof zero);
}

/* The record is never longer than the page, and a delta of any shape is right. */
static void test_delta_shapes(void **state)
{
	struct ft_codec *c = ft_codec_new(PAGES, PLENTY);
	uint8_t page[FT_PAGE_BYTES], image[FT_PAGE_BYTES] = {0};

	(void)state;
	noise_fill(page, sizeof page);
	pass(c, 1, 0, page, image);
	for (unsigned words = 1; words <= 512; words += words < 70 ? 1 : 17) {
		for (unsigned first = 0; first + words <= 512; first += 1 + noise_below(90)) {
			noise_fill(page + first * 8, words * 8);
			pass(c, 1, 0, page, image);
		}
	}
	/* Every second word: the runs' headers make half a page into three quarters. Every word of
	 * all lines: raw. */
	for (unsigned word = 0; word < 512; word += 2)
		noise_fill(page + word * 8, 8);
	assert_int_equal(pass(c, 1, 0, page, image), FT_PAGE_DELTA);
	noise_fill(page, sizeof page);
	assert_int_equal(pass(c, 1, 0, page, image), FT_PAGE_RAW);
	ft_codec_free(c);
}

static void test_cheapest(void **state)
{
	struct ft_codec *c = ft_codec_new(PAGES, PLENTY);
	uint8_t page[FT_PAGE_BYTES], image[FT_PAGE_BYTES] = {0};

	(void)state;
	noise_fill(page, sizeof page);
	pass(c, 1, 0, page, image);
	/* Three quarters change, to something that packs well. */
	noise_text(page);
	memset(page, 'x', 1024);
	assert_int_equal(pass(c, 1, 0, page, image), FT_PAGE_LZ4);
	/* Three quarters change, to something that does not: still less than the page. */
	noise_fill(page, sizeof page);
	pass(c, 1, 0, page, image);
	noise_fill(page + 1024, 3072);
	assert_int_equal(pass(c, 1, 0, page, image), FT_PAGE_DELTA);
	ft_codec_free(c);
}

/* Behind pages that cannot be packed: what plainly can be is, at once; what only looks as if it
 * could not be is found before long. */
static void test_after_ciphertext(void **state)
{
	struct ft_codec *c = ft_codec_new(PAGES, 0);
	uint8_t page[FT_PAGE_BYTES], image[FT_PAGE_BYTES] = {0};
	unsigned tries = 1;

	(void)state;
	for (unsigned i = 0; i < 100; i++) {
		noise_fill(page, sizeof page);
		assert_int_equal(pass(c, 1, i % PAGES, page, image), FT_PAGE_RAW);
	}
	noise_text(page);
	assert_int_equal(pass(c, 1, 0, page, image), FT_PAGE_LZ4);
	for (unsigned i = 0; i < 100; i++) {
		noise_fill(page, sizeof page);
		assert_int_equal(pass(c, 1, i % PAGES, page, image), FT_PAGE_RAW);
	}
	/* Random bytes, twice the same. */
	memcpy(page, page + sizeof page / 2, sizeof page / 2);
	while (pass(c, 1, 0, page, image) != FT_PAGE_LZ4)
		assert_true(++tries <= 32);
	/* And its like from then on. */
	assert_int_equal(pass(c, 1, 1, page, image), FT_PAGE_LZ4);
	ft_codec_free(c);
}

static void test_commit_and_abort(void **state)
{
	struct ft_codec *c = ft_codec_new(PAGES, PLENTY);
	uint8_t a[FT_PAGE_BYTES], b[FT_PAGE_BYTES], d[FT_PAGE_BYTES], image[FT_PAGE_BYTES] = {0};

	(void)state;
	noise_fill(a, sizeof a);
	noise_fill(b, sizeof b);
	noise_fill(d, sizeof d);
	/* Committed, then an abort of nothing: still a base. */
	assert_int_equal(pass(c, 1, 0, a, image), FT_PAGE_RAW);
	ft_codec_commit(c, 1);
	ft_codec_abort(c);
	assert_int_equal(pass(c, 2, 0, a, image), 0);

	/* The base of an epoch that failed is not one, nor is what it overwrote. */
	a[9] ^= 1;
	assert_int_equal(pass(c, 2, 0, a, image), FT_PAGE_DELTA);
	ft_codec_abort(c);
	assert_int_equal(pass(c, 3, 0, a, image), FT_PAGE_RAW);
	ft_codec_commit(c, 3);
	assert_int_equal(pass(c, 4, 0, a, image), 0);

	/* Two epochs on the way: the first is committed, the second is not. */
	assert_int_equal(pass(c, 4, 1, b, image), FT_PAGE_RAW);
	assert_int_equal(pass(c, 4, 2, d, image), FT_PAGE_RAW);
	memset(d, 7, 8);
	assert_int_equal(pass(c, 5, 2, d, image), FT_PAGE_DELTA);
	ft_codec_commit(c, 4);
	ft_codec_abort(c);
	memcpy(image, b, sizeof b);
	assert_int_equal(pass(c, 6, 1, b, image), 0);
	assert_int_equal(pass(c, 6, 2, d, image), FT_PAGE_RAW);

	/* A zero page of a failed epoch is no base either. */
	ft_codec_commit(c, 6);
	memset(d, 0, sizeof d);
	assert_int_equal(pass(c, 7, 2, d, image), FT_PAGE_ZERO);
	ft_codec_abort(c);
	assert_int_equal(pass(c, 8, 2, d, image), FT_PAGE_ZERO);

	ft_codec_reset(c);
	memcpy(image, b, sizeof b);
	assert_int_equal(pass(c, 9, 1, b, image), FT_PAGE_RAW);
	ft_codec_free(c);
}

static void test_without_cache(void **state)
{
	uint8_t page[FT_PAGE_BYTES] = {0}, image[FT_PAGE_BYTES] = {0};

	(void)state;
	/* None at all, and too little for one set. */
	for (size_t bytes = 0; bytes <= 4096; bytes += 4096) {
		struct ft_codec *c = ft_codec_new(PAGES, bytes);

		noise_fill(page, sizeof page);
		assert_int_equal(pass(c, 1, 0, page, image), FT_PAGE_RAW);
		assert_int_equal(pass(c, 1, 0, page, image), FT_PAGE_RAW);
		noise_text(page);
		assert_int_equal(pass(c, 1, 0, page, image), FT_PAGE_LZ4);
		memset(page, 0, sizeof page);
		assert_int_equal(pass(c, 1, 0, page, image), FT_PAGE_ZERO);
		ft_codec_commit(c, 1);
		ft_codec_abort(c);
		ft_codec_reset(c);
		ft_codec_free(c);
	}
}

/* A cache as large as RAM keeps every page; a sweep over a small one does not push out what comes
 * back each time. */
static void test_eviction(void **state)
{
	static uint8_t pages[PAGES][FT_PAGE_BYTES], images[PAGES][FT_PAGE_BYTES];
	struct ft_codec *c = ft_codec_new(PAGES, PLENTY);
	unsigned hot = 0;

	(void)state;
	noise_fill(pages[0], sizeof pages);
	for (unsigned i = 0; i < PAGES; i++)
		pass(c, 1, i, pages[i], images[i]);
	for (unsigned i = 0; i < PAGES; i++)
		assert_int_equal(pass(c, 1, i, pages[i], images[i]), 0);
	ft_codec_free(c);

	c = ft_codec_new(PAGES, (size_t)150 << 10); /* 4 sets of 8 pages */
	for (unsigned round = 0; round < 10; round++) {
		for (unsigned i = 0; i < 12; i++) {
			pages[i][8 * round] ^= 1;
			hot += pass(c, round, i, pages[i], images[i]) == FT_PAGE_DELTA;
		}
		for (unsigned i = 12 + 8 * round; i < 20 + 8 * round; i++) {
			pages[i][0] ^= 1;
			pass(c, round, i, pages[i], images[i]);
		}
	}
	assert_true(hot >= 12 * 9);
	ft_codec_free(c);
}

/* A random guest against a standby that stages, commits and loses epochs; caches from none to more
 * than enough. */
static void guest_life(size_t cache_bytes)
{
	static uint8_t guest[PAGES][FT_PAGE_BYTES], committed[PAGES][FT_PAGE_BYTES],
		staged[PAGES][FT_PAGE_BYTES];
	struct ft_codec *c = ft_codec_new(PAGES, cache_bytes);
	bool dirty[PAGES];

	memset(guest, 0, sizeof guest);
	memset(committed, 0, sizeof committed);
	memset(staged, 0, sizeof staged);
	memset(dirty, true, sizeof dirty);
	for (uint64_t epoch = 1; epoch < 120; epoch++) {
		for (unsigned n = noise_below(60); n; n--) {
			unsigned pfn = noise_below(2) ? noise_below(PAGES) : noise_below(10);
			unsigned first = noise_below(FT_PAGE_BYTES), len = 1 + noise_below(64);

			len = len < FT_PAGE_BYTES - first ? len : FT_PAGE_BYTES - first;
			switch (noise_below(8)) {
			case 0:
				noise_fill(guest[pfn], FT_PAGE_BYTES);
				break;
			case 1:
				noise_text(guest[pfn]);
				break;
			case 2:
				memset(guest[pfn], 0, FT_PAGE_BYTES);
				break;
			case 3:
				memcpy(guest[pfn], committed[pfn], FT_PAGE_BYTES);
				break;
			default:
				noise_fill(guest[pfn] + first, len);
			}
			dirty[pfn] = true;
		}
		for (unsigned pfn = 0; pfn < PAGES; pfn++)
			if (dirty[pfn])
				pass(c, epoch, pfn, guest[pfn], staged[pfn]);
		if (noise_below(4) == 0) {
			ft_codec_abort(c);
			memcpy(staged, committed, sizeof staged);
			continue; /* the pages stay dirty */
		}
		if (noise_below(30) == 0) {
			ft_codec_reset(c);
			memset(staged, 0, sizeof staged);
			memset(committed, 0, sizeof committed);
			memset(dirty, true, sizeof dirty);
			continue;
		}
		ft_codec_commit(c, epoch);
		assert_memory_equal(staged, guest, sizeof guest);
		memcpy(committed, staged, sizeof committed);
		memset(dirty, false, sizeof dirty);
	}
	ft_codec_free(c);
}

static void test_guest_life(void **state)
{
	static const size_t caches[] = {0, 40 << 10, 100 << 10, 200 << 10, PLENTY};

	(void)state;
	for (size_t i = 0; i < sizeof caches / sizeof *caches; i++)
		for (int round = 0; round < 4; round++)
			guest_life(caches[i]);
}

enum { BENCH_PAGES = 8192, BENCH_CHANGES = 5 };

static void change(uint8_t *page, unsigned kind)
{
	switch (kind) {
	case 0:
		break;
	case 1:
		page[noise_below(FT_PAGE_BYTES)] ^= 1;
		break;
	case 2:
		for (unsigned i = 0; i < 16; i++)
			page[noise_below(FT_PAGE_BYTES)] ^= 1;
		break;
	case 3:
		noise_text(page);
		break;
	case 4:
		noise_fill(page, FT_PAGE_BYTES);
		break;
	case BENCH_CHANGES:
		memset(page, 0, FT_PAGE_BYTES);
		break;
	}
}

static void bench(void **state)
{
	static const char *const names[] = {"unchanged", "1 word",	"16 words",
					    "new text",	 "new, random", "zero"};
	struct ft_codec *c = ft_codec_new(BENCH_PAGES, (size_t)64 << 20);
	uint8_t *guest = aligned_alloc(4096, (size_t)BENCH_PAGES * FT_PAGE_BYTES);
	uint8_t *image = aligned_alloc(4096, (size_t)BENCH_PAGES * FT_PAGE_BYTES);
	uint8_t *out = malloc((size_t)BENCH_PAGES * FT_PAGE_RECORD_MAX);

	(void)state;
	if (!getenv("FT_CODEC_BENCH"))
		goto done;
	memset(image, 0, (size_t)BENCH_PAGES * FT_PAGE_BYTES);
	memset(out, 1, (size_t)BENCH_PAGES * FT_PAGE_RECORD_MAX);
	noise_fill(guest, (size_t)BENCH_PAGES * FT_PAGE_BYTES);
	for (int kind = -1; kind <= BENCH_CHANGES; kind++) {
		size_t len = 0;
		double t0, t1, t2;

		for (size_t i = 0; i < BENCH_PAGES && kind >= 0; i++)
			change(guest + i * FT_PAGE_BYTES, (unsigned)kind);
		t0 = (double)now_ns();
		for (size_t i = 0; i < BENCH_PAGES; i++)
			len += ft_codec_encode(c, 1, i, guest + i * FT_PAGE_BYTES, out + len);
		t1 = (double)now_ns();
		for (size_t at = 0; at < len;) {
			struct ft_page_record rec;
			struct ft_err err = {0};
			int n = ft_page_record_parse(out + at, len - at, BENCH_PAGES, &rec, &err);

			assert_true(n > 0);
			assert_int_equal(
				ft_page_record_apply(&rec, image + rec.pfn * FT_PAGE_BYTES, &err),
				0);
			at += (size_t)n;
		}
		t2 = (double)now_ns();
		assert_memory_equal(guest, image, (size_t)BENCH_PAGES * FT_PAGE_BYTES);
		print_message("%-12s encode %6.0f ns, apply %6.0f ns, %7.1f bytes a page\n",
			      kind < 0 ? "first, random" : names[kind], (t1 - t0) / BENCH_PAGES,
			      (t2 - t1) / BENCH_PAGES, (double)len / BENCH_PAGES);
	}
done:
	free(out);
	free(image);
	free(guest);
	ft_codec_free(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_kinds),
		cmocka_unit_test(test_wire),
		cmocka_unit_test(test_plain),
		cmocka_unit_test(test_delta_shapes),
		cmocka_unit_test(test_cheapest),
		cmocka_unit_test(test_after_ciphertext),
		cmocka_unit_test(test_commit_and_abort),
		cmocka_unit_test(test_without_cache),
		cmocka_unit_test(test_eviction),
		cmocka_unit_test(test_guest_life),
		cmocka_unit_test(bench),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
