// SPDX-License-Identifier: Apache-2.0
// A stream of page records as a standby gets it. The first byte says how: bit 0 fills the base page
// with other than zeroes; bit 1 makes each record's hash right (or hardly one would ever be
// applied); bit 2 takes the rest as pages instead, and what the encoder makes of them must decode
// to the same pages. Records lie in a buffer of their exact size, for the address sanitizer to see
// a step beyond.
#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "ft/codec.h"
#include "ft/page.h"

#define PAGES 3
#define BASES (16u * FT_PAGE_BYTES) /* one set of the cache */

static void fill(uint8_t *pages, bool with)
{
	for (size_t i = 0; i < PAGES * FT_PAGE_BYTES; i++)
		pages[i] = with ? (uint8_t)(i * 7 + i / FT_PAGE_BYTES) : 0;
}

static void check(const struct ft_page_record *rec, const uint8_t *buf, size_t used)
{
	assert(rec->pfn < PAGES);
	assert(rec->kind > 0 && rec->kind < FT_PAGE_KIND_MAX);
	assert(rec->data == buf + FT_PAGE_RECORD_HEADER);
	assert(used == FT_PAGE_RECORD_HEADER + rec->data_len);
	assert(rec->data_len <= FT_PAGE_BYTES);
}

/* As the sender would have had it: the page after the record, if the record decodes at all. */
static void make_hash_right(struct ft_page_record *rec, const uint8_t *base)
{
	uint8_t page[FT_PAGE_BYTES];
	struct ft_page_record copy = *rec;

	memcpy(page, base, sizeof page);
	copy.hash = 0;
	(void)ft_page_record_apply(&copy, page, NULL);
	rec->hash = rec->kind == FT_PAGE_PLAIN ? 0 : page_hash(page);
}

static void decode(const uint8_t *data, size_t len, bool with, bool right)
{
	static uint8_t image[PAGES * FT_PAGE_BYTES];
	uint8_t *buf = malloc(len ? len : 1);
	size_t at = 0;

	fill(image, with);
	memcpy(buf, data, len);
	while (at < len) {
		struct ft_page_record rec;
		struct ft_err err = {0};
		int n = ft_page_record_parse(buf + at, len - at, PAGES, &rec, &err);
		uint8_t *page;

		if (n <= 0) {
			assert(n == 0 || (n == -EPROTO && err.text[0]));
			break;
		}
		assert((size_t)n <= len - at);
		check(&rec, buf + at, (size_t)n);
		page = image + rec.pfn * FT_PAGE_BYTES;
		if (right)
			make_hash_right(&rec, page);
		if (ft_page_record_apply(&rec, page, &err) == 0)
			assert(rec.kind == FT_PAGE_PLAIN || page_hash(page) == rec.hash);
		at += (size_t)n;
	}
	free(buf);
}

/* Five bytes of input are one write into one page; the next one on the same page may become a
 * delta. */
static void round_trip(const uint8_t *data, size_t len)
{
	static uint8_t guest[PAGES * FT_PAGE_BYTES], image[PAGES * FT_PAGE_BYTES];
	struct ft_codec *codec = ft_codec_new(PAGES, BASES);
	uint8_t out[FT_PAGE_RECORD_MAX];
	uint64_t epoch = 1;

	fill(guest, false);
	fill(image, false);
	for (; len >= 5; data += 5, len -= 5, epoch++) {
		uint64_t pfn = data[0] % PAGES;
		uint8_t *page = guest + pfn * FT_PAGE_BYTES;
		size_t at = (data[1] | (size_t)data[2] << 8) % FT_PAGE_BYTES,
		       n = (size_t)data[3] * 17 % (FT_PAGE_BYTES - at), used;
		struct ft_page_record rec;

		for (size_t i = 0; i < n; i++)
			page[at + i] = data[0] & 0x80 ? (uint8_t)(data[4] + i * i) : data[4];
		used = ft_codec_encode(codec, epoch, pfn, page, out);
		assert(used <= sizeof out);
		if (used) {
			assert(ft_page_record_parse(out, used, PAGES, &rec, NULL) == (int)used);
			assert(rec.pfn == pfn);
			assert(ft_page_record_apply(&rec, image + pfn * FT_PAGE_BYTES, NULL) == 0);
		}
		assert(!memcmp(page, image + pfn * FT_PAGE_BYTES, FT_PAGE_BYTES));
		ft_codec_commit(codec, epoch);
	}
	ft_codec_free(codec);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	if (len < 1)
		return 0;
	if (data[0] & 4)
		round_trip(data + 1, len - 1);
	else
		decode(data + 1, len - 1, data[0] & 1, data[0] & 2);
	return 0;
}
