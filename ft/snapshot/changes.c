// SPDX-License-Identifier: Apache-2.0
// Numbers of the head in one list, so that packing and parsing cannot drift apart.
#include "ft/snapshot/changes.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "ft/page.h"
#include "ft/snapshot/mapped_ram_format.h"

#define CHANGES_VERSION 1u
#define NUMBERS_AT	16
#define NUMBERS_N	12
#define SUM_AT		(CHANGES_HEAD_BYTES - 8)

_Static_assert(NUMBERS_AT + NUMBERS_N * 8 <= SUM_AT, "the head has room");

static const uint8_t magic[] = {'K', 'E', 'M', 'A', 'R', 'I', 'S', 'C'};
static const uint8_t mark[] = {'K', 'F', 'T', 'U'};

/* In the order of the file. */
static uint64_t *number(struct changes_head *h, unsigned i)
{
	uint64_t *const all[NUMBERS_N] = {&h->ram_bytes,    &h->bitmap_offset, &h->pages_offset,
					  &h->state_offset, &h->pages_n,       &h->zeroes_n,
					  &h->state_bytes,  &h->sequence,      &h->generation,
					  &h->epoch,	    &h->time_ms,       &h->sum};

	return all[i];
}

static void put64(uint8_t *p, uint64_t v)
{
	v = htole64(v);
	memcpy(p, &v, sizeof v);
}

static uint64_t get64(const uint8_t *p)
{
	return le64toh(load64(p));
}

void changes_head_pack(const struct changes_head *h, uint8_t out[CHANGES_HEAD_BYTES])
{
	struct changes_head copy = *h;

	assert(h->id);
	memset(out, 0, CHANGES_HEAD_BYTES);
	memcpy(out, magic, sizeof magic);
	put32(out + 8, CHANGES_VERSION);
	put32(out + 12, h->id);
	for (unsigned i = 0; i < NUMBERS_N; i++)
		put64(out + NUMBERS_AT + (size_t)i * 8, *number(&copy, i));
	put64(out + SUM_AT, XXH3_64bits(out, SUM_AT));
}

static int bad(struct ft_err *err, const char *what)
{
	return ft_err_set(err, EBADMSG, "not a whole file of changes: %s", what);
}

static bool is_disk(const struct changes_head *h)
{
	return !h->bitmap_offset && !h->pages_offset && !h->state_offset;
}

static bool frame_ok(const struct changes_head *h)
{
	uint64_t pages = h->ram_bytes / MAPPED_RAM_PAGE_BYTES;

	return h->ram_bytes && h->ram_bytes <= MAPPED_RAM_BYTES_MAX &&
	       h->ram_bytes % MAPPED_RAM_PAGE_BYTES == 0 &&
	       (is_disk(h) ||
		(h->bitmap_offset <= MAPPED_RAM_HEAD_MAX &&
		 h->pages_offset % MAPPED_RAM_ALIGN_BYTES == 0 &&
		 h->pages_offset <= MAPPED_RAM_BYTES_MAX &&
		 h->pages_offset >= h->bitmap_offset + (pages + 63) / 64 * 8 &&
		 h->state_offset >= h->pages_offset + h->ram_bytes &&
		 h->state_offset <= h->pages_offset + h->ram_bytes + MAPPED_RAM_TAIL_MAX));
}

int changes_head_parse(const uint8_t in[CHANGES_HEAD_BYTES], uint64_t file_bytes,
		       struct changes_head *h, struct ft_err *err)
{
	uint64_t pages;

	memset(h, 0, sizeof *h);
	if (file_bytes < CHANGES_HEAD_BYTES || memcmp(in, magic, sizeof magic) != 0)
		return bad(err, "no head");
	if (get32(in + 8) != CHANGES_VERSION)
		return bad(err, "of another version");
	if (get64(in + SUM_AT) != XXH3_64bits(in, SUM_AT))
		return bad(err, "its head is damaged");
	h->id = get32(in + 12);
	for (unsigned i = 0; i < NUMBERS_N; i++)
		*number(h, i) = get64(in + NUMBERS_AT + (size_t)i * 8);
	pages = h->ram_bytes / MAPPED_RAM_PAGE_BYTES;
	if (!h->id || !frame_ok(h))
		return bad(err, "frame");
	if (h->pages_n > pages || h->zeroes_n > pages - h->pages_n)
		return bad(err, "number of pages");
	if (is_disk(h) ? h->state_bytes > 0
		       : h->state_bytes == 0 || h->state_bytes > CHANGES_STATE_MAX)
		return bad(err, "length of the device state");
	if (changes_bytes(h) != file_bytes)
		return bad(err, "length");
	return 0;
}

static bool first_time(const struct changes_head *h, uint64_t *seen, uint64_t pfn)
{
	uint64_t bit = UINT64_C(1) << (pfn % 64);

	if (pfn >= h->ram_bytes / MAPPED_RAM_PAGE_BYTES || seen[pfn / 64] & bit)
		return false;
	seen[pfn / 64] |= bit;
	return true;
}

int changes_check(const struct changes_head *h, const uint8_t *index_and_state, uint64_t *seen,
		  struct ft_err *err)
{
	uint64_t hash;

	if (XXH3_64bits(index_and_state, changes_index_bytes(h) + h->state_bytes) != h->sum)
		return bad(err, "its index is damaged");
	for (uint64_t i = 0; i < h->pages_n; i++)
		if (!first_time(h, seen, changes_page(index_and_state, i, &hash)))
			return bad(err, "number of a page");
	for (uint64_t i = 0; i < h->zeroes_n; i++)
		if (!first_time(h, seen, changes_zero(h, index_and_state, i)))
			return bad(err, "number of an empty page");
	return 0;
}

uint64_t changes_page(const uint8_t *index, uint64_t i, uint64_t *hash)
{
	*hash = get64(index + i * CHANGES_ENTRY_BYTES + 8);
	return get64(index + i * CHANGES_ENTRY_BYTES);
}

uint64_t changes_zero(const struct changes_head *h, const uint8_t *index, uint64_t i)
{
	return get64(index + h->pages_n * CHANGES_ENTRY_BYTES + i * CHANGES_ZERO_BYTES);
}

uint64_t changes_page_hash(const uint8_t *page)
{
	return XXH3_64bits(page, MAPPED_RAM_PAGE_BYTES);
}

void changes_mark(uint32_t id, uint8_t out[CHANGES_MARK_BYTES])
{
	assert(id);
	memcpy(out, mark, sizeof mark);
	put32(out + 4, id);
}

uint32_t changes_marked(const uint8_t in[CHANGES_MARK_BYTES])
{
	return memcmp(in, mark, sizeof mark) ? 0 : get32(in + 4);
}

void changes_opening(uint8_t out[CHANGES_MARK_BYTES])
{
	static const uint8_t opening[] = {'Q', 'E', 'V', 'M', 0, 0, 0, VERSION};

	_Static_assert(sizeof opening == CHANGES_MARK_BYTES && OPENING_BYTES == CHANGES_MARK_BYTES,
		       "one stands for the other");
	memcpy(out, opening, sizeof opening);
}
