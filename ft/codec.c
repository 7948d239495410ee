// SPDX-License-Identifier: Apache-2.0
/* The sender's half of the page codec. What it costs is what a checkpoint costs after its pause, so
 * the order of the tests is the order of their price: zero test (ends at the first byte that is
 * not), compare with the base (one pass, which finds the runs too), and LZ4 only where it can save
 * more than it takes.
 *
 * Delta, data of FT_PAGE_DELTA: runs, each  u16 first, u16 words, words * 8 bytes  (little endian;
 * `first` and `words` count words of 8 bytes). Runs ascend and do not overlap; no run is empty;
 * none leaves the page; at least one is there. 4 bytes of run header against words of 8 bytes:
 * joining two runs over a gap never pays, so nothing is joined. */
#include "ft/codec.h"

#include <assert.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif
#include <lz4.h>
#include <stdlib.h>

#include "ft/base_cache.h"
#include "ft/page.h"

#define BLOCK_WORDS 64 /* one bit mask */
#define BLOCKS	    (WORDS / BLOCK_WORDS)
#define BLOCK_BYTES (BLOCK_WORDS * WORD_BYTES)

/* A delta up to this is taken as it is: LZ4 needs 5 to 10 us for a page that it can pack, and could
 * save less than what a link of 1 Gbit/s carries in that time. */
#define DELTA_SURE_BYTES (FT_PAGE_BYTES / 2)
/* A block that saves less than this is not worth the receiver's time. */
#define LZ4_GAIN_MIN (FT_PAGE_BYTES / 16)
/* Looks at fewer positions: a third off the price of a page that cannot be packed, some percent of
 * the ratio on one that can. */
#define LZ4_ACCELERATION 2
/* Pages that cannot be packed come in runs: media, ciphertext, packed files. After so many whole
 * pages in a row only those are tried that do not look like it, and one in 128 that does. */
#define LZ4_GIVE_UP   8u
#define LZ4_TRY_EVERY 128u
/* Bytes looked at, and how many different ones a page has that looks packed: of random ones 101 are
 * expected, of machine code 70, of text 40. */
#define SAMPLE_STEP	32
#define SAMPLE_DISTINCT 85

_Static_assert(FT_PAGE_BYTES == BLOCKS * BLOCK_BYTES, "a page is whole blocks");

struct ft_codec {
	uint64_t pages_total;
	struct ft_codec_stats stats;
	void *lz4_state;
	bool pack;
	unsigned lz4_failures; /* whole pages in a row that could not be packed */
	struct base_cache bases;
};

/* What differs between a page and its base: one bit a word. */
struct diff {
	uint64_t mask[BLOCKS];
	unsigned words, bytes; /* bytes: as delta data */
};

static inline bool line_equal(const uint8_t *a, const uint8_t *b)
{
	wide any = (load_wide(a) ^ load_wide(b)) | (load_wide(a + 16) ^ load_wide(b + 16)) |
		   (load_wide(a + 32) ^ load_wide(b + 32)) |
		   (load_wide(a + 48) ^ load_wide(b + 48));

	return (any[0] | any[1]) == 0;
}

static uint64_t block_diff(const uint8_t *a, const uint8_t *b)
{
	uint64_t mask = 0;

	for (int i = 0; i < BLOCK_BYTES; i += LINE_BYTES) {
		if (line_equal(a + i, b + i))
			continue;
		for (int j = i; j < i + LINE_BYTES; j += WORD_BYTES)
			mask |= (uint64_t)(load64(a + j) != load64(b + j)) << (j / WORD_BYTES);
	}
	return mask;
}

static void page_diff(const uint8_t *page, const uint8_t *base, struct diff *d)
{
	unsigned runs = 0;

	d->words = 0;
	for (int i = 0; i < BLOCKS; i++) {
		uint64_t m = block_diff(page + i * BLOCK_BYTES, base + i * BLOCK_BYTES);

		d->mask[i] = m;
		if (!m)
			continue;
		d->words += (unsigned)__builtin_popcountll(m);
		/* A run that crosses into the next block is written as two: simpler, and 4 bytes at
		 * most 7 times. */
		runs += (unsigned)__builtin_popcountll(m & ~(m << 1));
	}
	d->bytes = d->words * WORD_BYTES + runs * RUN_HEADER;
}

/* Fills d unless the page is zero: that is told without reading all of the base. */
static bool page_equals(const uint8_t *page, const uint8_t *base, bool is_zero, struct diff *d)
{
	if (is_zero)
		return page_is_zero(base);
	page_diff(page, base, d);
	return d->words == 0;
}

struct ft_codec *ft_codec_new(uint64_t pages_total, size_t base_bytes_max)
{
	struct ft_codec *c = calloc(1, sizeof *c);

	assert(pages_total > 0);
	assert(pages_total <= UINT32_MAX); /* page numbers are u32 on the wire */
	if (!c)
		return NULL;
	c->pages_total = pages_total;
	c->pack = true;
	c->lz4_state = malloc((size_t)LZ4_sizeofState());
	if (!c->lz4_state || base_cache_init(&c->bases, pages_total, base_bytes_max) < 0) {
		ft_codec_free(c);
		return NULL;
	}
	return c;
}

void ft_codec_free(struct ft_codec *c)
{
	if (!c)
		return;
	base_cache_free(&c->bases);
	free(c->lz4_state);
	free(c);
}

void ft_codec_commit(struct ft_codec *c, uint64_t epoch)
{
	base_cache_commit(&c->bases, epoch);
}

void ft_codec_abort(struct ft_codec *c)
{
	base_cache_abort(&c->bases);
}

void ft_codec_reset(struct ft_codec *c)
{
	base_cache_reset(&c->bases);
}

void ft_codec_pack(struct ft_codec *c, bool on)
{
	c->pack = on;
}

const struct ft_codec_stats *ft_codec_stats(const struct ft_codec *c)
{
	return &c->stats;
}

/* Writes the runs of d to out and brings the base up to date in the same step. */
static void delta_write(const struct diff *d, const uint8_t *page, uint8_t *base, uint8_t *out)
{
	for (unsigned i = 0; i < BLOCKS; i++) {
		for (uint64_t m = d->mask[i]; m;) {
			unsigned bit = (unsigned)__builtin_ctzll(m);
			uint64_t gaps = ~(m >> bit);
			unsigned words = gaps ? (unsigned)__builtin_ctzll(gaps) : BLOCK_WORDS;
			unsigned first = i * BLOCK_WORDS + bit;
			size_t at = (size_t)first * WORD_BYTES;

			put16(out, first);
			put16(out + 2, words);
			out += RUN_HEADER;
			/* Most runs are one or two words: calling memcpy() for them costs more than
			 * the copy. */
			for (unsigned word = 0; word < words; word++) {
				memcpy(out, page + at, WORD_BYTES);
				memcpy(base + at, page + at, WORD_BYTES);
				out += WORD_BYTES;
				at += WORD_BYTES;
			}
			/* Clears up to the run's end; the run may end with the mask. */
			m = bit + words < BLOCK_WORDS ? m & (UINT64_MAX << (bit + words)) : 0;
		}
	}
}

/* A byte for each value that was seen: to set one waits for nothing, to set a bit in a word waits
 * for the one before. */
static bool looks_packed(const uint8_t *page)
{
	uint8_t seen[256] = {0};
	uint64_t sum = 0; /* eight counts of a byte each, none above the number of samples */

	/* Not the same byte of every word: structures have their quiet places. */
	for (unsigned i = 0; i < FT_PAGE_BYTES / SAMPLE_STEP; i++)
		seen[page[i * SAMPLE_STEP + i % SAMPLE_STEP]] = 1;
	for (unsigned i = 0; i < sizeof seen; i += WORD_BYTES)
		sum += load64(seen + i);
	return sum * 0x0101010101010101 >> 56 >= SAMPLE_DISTINCT;
}

/* LZ4 of the page into out, if that is shorter than best and worth it; else 0. */
static unsigned lz4_write(struct ft_codec *c, const uint8_t *page, uint8_t *out, unsigned best)
{
	int room =
		best < FT_PAGE_BYTES - LZ4_GAIN_MIN ? (int)best - 1 : FT_PAGE_BYTES - LZ4_GAIN_MIN;
	bool whole = best == FT_PAGE_BYTES;
	int len;

	if (!c->pack)
		return 0;
	if (whole && c->lz4_failures >= LZ4_GIVE_UP && looks_packed(page) &&
	    ++c->lz4_failures % LZ4_TRY_EVERY)
		return 0;
	len = LZ4_compress_fast_extState(c->lz4_state, (const char *)page, (char *)out,
					 FT_PAGE_BYTES, room, LZ4_ACCELERATION);
	if (len)
		c->lz4_failures = 0;
	else if (whole && c->lz4_failures < LZ4_GIVE_UP)
		c->lz4_failures++;
	return (unsigned)len;
}

/* Past the processor's cache, which need not fetch first what is written over: a base is read again
 * with the page's next change, and by this thread alone, so no fence is needed. */
static void base_store(uint8_t *base, const uint8_t *page)
{
#ifdef __SSE2__
	for (int i = 0; i < FT_PAGE_BYTES; i += (int)sizeof(__m128i))
		_mm_stream_si128((__m128i *)(void *)(base + i),
				 _mm_loadu_si128((const __m128i *)(const void *)(page + i)));
#else
	memcpy(base, page, FT_PAGE_BYTES);
#endif
}

/* The cheapest data for a page that is neither zero nor unchanged. d: against `base`, or NULL.
 * Leaves the page in *base unless there is none. */
static enum ft_page_kind data_write(struct ft_codec *c, const struct diff *d, const uint8_t *page,
				    uint8_t *base, uint8_t *out, unsigned *len)
{
	unsigned best = d && d->bytes < FT_PAGE_BYTES ? d->bytes : FT_PAGE_BYTES;
	enum ft_page_kind kind = FT_PAGE_LZ4;

	*len = best > DELTA_SURE_BYTES ? lz4_write(c, page, out, best) : 0;
	if (*len == 0) {
		*len = best;
		if (best < FT_PAGE_BYTES) {
			delta_write(d, page, base, out);
			return FT_PAGE_DELTA;
		}
		memcpy(out, page, FT_PAGE_BYTES);
		kind = FT_PAGE_RAW;
	}
	if (base)
		base_store(base, page);
	return kind;
}

static void put_header(uint8_t *out, uint64_t pfn, enum ft_page_kind kind, unsigned len,
		       uint32_t hash)
{
	put32(out, (uint32_t)pfn);
	out[4] = (uint8_t)kind;
	out[5] = 0;
	put16(out + 6, len);
	put32(out + 8, hash);
}

size_t ft_page_record_plain(uint64_t pfn, const uint8_t *page, uint8_t *out)
{
	if (page_is_zero(page)) {
		put_header(out, pfn, FT_PAGE_ZERO, 0, ZERO_HASH);
		return FT_PAGE_RECORD_HEADER;
	}
	put_header(out, pfn, FT_PAGE_PLAIN, FT_PAGE_BYTES, 0);
	memcpy(out + FT_PAGE_RECORD_HEADER, page, FT_PAGE_BYTES);
	return FT_PAGE_RECORD_MAX;
}

size_t ft_codec_encode(struct ft_codec *c, uint64_t epoch, uint64_t pfn, const uint8_t *page,
		       uint8_t *out)
{
	bool is_zero = page_is_zero(page), has_base;
	enum ft_page_kind kind = FT_PAGE_ZERO;
	uint32_t hash = ZERO_HASH;
	unsigned len = 0;
	struct diff d;
	size_t slot;

	assert(pfn < c->pages_total);
	c->stats.pages_in++;
	slot = base_cache_find(&c->bases, (uint32_t)pfn);
	has_base = slot != BASE_NONE;
	if (has_base && page_equals(page, base_cache_page(&c->bases, slot), is_zero, &d)) {
		c->stats.unchanged++;
		return 0;
	}
	if (is_zero) {
		/* Zero pages take no slot, else the first pass over an empty guest would fill the
		 * cache with nothing. */
		if (has_base)
			memset(base_cache_page(&c->bases, slot), 0, FT_PAGE_BYTES);
	} else {
		if (!has_base)
			slot = base_cache_take(&c->bases, (uint32_t)pfn);
		hash = page_hash(page);
		kind = data_write(c, has_base ? &d : NULL, page,
				  slot != BASE_NONE ? base_cache_page(&c->bases, slot) : NULL,
				  out + FT_PAGE_RECORD_HEADER, &len);
	}
	if (slot != BASE_NONE)
		base_cache_touch(&c->bases, slot, epoch);

	put_header(out, pfn, kind, len, hash);
	c->stats.by_kind[kind]++;
	c->stats.bytes_out += FT_PAGE_RECORD_HEADER + len;
	return FT_PAGE_RECORD_HEADER + len;
}
