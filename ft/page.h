/* SPDX-License-Identifier: Apache-2.0 */
/* What the two halves of the page codec share: the geometry of a page, numbers on the wire, the
 * zero test and the hash. Internal to ft/codec.c and ft/page_record.c. */
#ifndef FT_PAGE_H
#define FT_PAGE_H

#include <endian.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <xxhash.h>
#if defined(__x86_64__) && __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h> /* XXH3_64bits picks AVX2 or AVX-512 at run time: 80 instead of 420 ns a page */
#endif

#include "ft/codec.h"

#define WORD_BYTES 8
#define WORDS	   (FT_PAGE_BYTES / WORD_BYTES)
#define LINE_BYTES 64
#define RUN_HEADER 4
#define ZERO_HASH  0x48c689bau /* of 4096 zeroes; the unit test computes it */

_Static_assert(FT_PAGE_BYTES == WORDS * WORD_BYTES, "a page is whole words");
_Static_assert(FT_PAGE_BYTES % LINE_BYTES == 0, "a page is whole lines");
_Static_assert(FT_PAGE_BYTES <= UINT16_MAX, "data length is a u16");

/* 16 bytes are a register on every machine that matters; wider ones gain nothing, for the pages
 * come from memory. */
typedef uint64_t wide __attribute__((vector_size(16)));

static inline wide load_wide(const uint8_t *p)
{
	wide v;

	memcpy(&v, p, sizeof v);
	return v;
}

static inline uint64_t load64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof v);
	return v;
}

static inline bool line_is_zero(const uint8_t *p)
{
	wide any = load_wide(p) | load_wide(p + 16) | load_wide(p + 32) | load_wide(p + 48);

	return (any[0] | any[1]) == 0;
}

static inline bool page_is_zero(const uint8_t *page)
{
	for (int i = 0; i < FT_PAGE_BYTES; i += LINE_BYTES)
		if (!line_is_zero(page + i))
			return false;
	return true;
}

static inline void put16(uint8_t *p, unsigned v)
{
	uint16_t le = htole16((uint16_t)v);

	memcpy(p, &le, sizeof le);
}

static inline void put32(uint8_t *p, uint32_t v)
{
	uint32_t le = htole32(v);

	memcpy(p, &le, sizeof le);
}

static inline unsigned get16(const uint8_t *p)
{
	uint16_t le;

	memcpy(&le, p, sizeof le);
	return le16toh(le);
}

static inline uint32_t get32(const uint8_t *p)
{
	uint32_t le;

	memcpy(&le, p, sizeof le);
	return le32toh(le);
}

static inline uint32_t page_hash(const uint8_t *page)
{
	return (uint32_t)XXH3_64bits(page, FT_PAGE_BYTES);
}

#endif
