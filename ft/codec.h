/* SPDX-License-Identifier: Apache-2.0 */
/* Page codec: one dirty page in, the cheapest record out. What a record may be:
 *
 *   zero       the page is all zeroes                                  no data
 *   delta      runs that differ from the last copy the standby has     data: runs
 *   lz4        an LZ4 block                                            data: block
 *   raw        4096 bytes                                              data: page
 *   plain      likewise, of which no delta is made                     data: page
 *   (a page that equals the standby's last copy makes no record at all)
 *
 * The sender keeps the last copies ("bases") in a cache of bounded size; a page that has no base
 * there is sent whole. The receiver's base is its image of the guest's RAM, so it keeps nothing.
 * Every record carries a hash of the whole page, so a base that is not the same on both sides is
 * found on the first record that uses it, and never silently applied. Only a plain one has none:
 * the frame around it has its own.
 *
 * Record on the wire, little endian: u32 page number, u8 kind, u8 zero, u16 data length, u32 hash
 * (low half of XXH3-64 of the 4096 bytes), data. The layout of a delta's runs is described in
 * codec.c and proto/PROTOCOL.md. codec.c is the sender's half, page_record.c the receiver's. */
#ifndef FT_CODEC_H
#define FT_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ft/err.h"

#define FT_PAGE_BYTES	      4096
#define FT_PAGE_RECORD_HEADER 12
#define FT_PAGE_RECORD_MAX    (FT_PAGE_RECORD_HEADER + FT_PAGE_BYTES)

enum ft_page_kind {
	FT_PAGE_ZERO = 1,
	FT_PAGE_DELTA,
	FT_PAGE_LZ4,
	FT_PAGE_RAW,
	FT_PAGE_PLAIN,
	FT_PAGE_KIND_MAX
};

struct ft_codec_stats {
	uint64_t pages_in, bytes_out;
	uint64_t unchanged, by_kind[FT_PAGE_KIND_MAX];
};

struct ft_codec;

/* base_bytes_max bounds all memory of the base cache, its index included; 0 = no deltas. NULL when
 * out of memory. pages_total: guest RAM in pages; every page number is below it. One thread at a
 * time. */
struct ft_codec *ft_codec_new(uint64_t pages_total, size_t base_bytes_max);
void ft_codec_free(struct ft_codec *c);

/* Encodes one page into out (room for FT_PAGE_RECORD_MAX bytes) and returns the record's length; 0
 * = unchanged, nothing to send. The page becomes the base of later deltas, tagged with `epoch`
 * until ft_codec_commit(). Records of one page build on each other: the standby applies them in the
 * order of encoding. The page must not change during the call (a copy, not live guest memory), else
 * its record's hash is wrong. Never allocates. */
size_t ft_codec_encode(struct ft_codec *c, uint64_t epoch, uint64_t pfn, const uint8_t *page,
		       uint8_t *out);

/* One page as a record that depends on nothing and costs next to nothing: zero or plain. No codec
 * is needed, and the page may change meanwhile. */
size_t ft_page_record_plain(uint64_t pfn, const uint8_t *page, uint8_t *out);

/* on: LZ4 is tried (the default). */
void ft_codec_pack(struct ft_codec *c, bool on);

/* The standby holds everything up to `epoch`. */
void ft_codec_commit(struct ft_codec *c, uint64_t epoch);
/* Uncommitted epochs never reached the standby: forget the bases they left. O(slots touched since
 * the last commit). */
void ft_codec_abort(struct ft_codec *c);
/* A new standby, which has nothing: forget every base. */
void ft_codec_reset(struct ft_codec *c);
const struct ft_codec_stats *ft_codec_stats(const struct ft_codec *c);

struct ft_page_record {
	uint64_t pfn;
	enum ft_page_kind kind;
	uint32_t hash;
	uint32_t data_len;
	const uint8_t *data; /* into the parsed buffer */
};

/* Reads the record at the start of buf. Returns its length, or 0 when buf holds only a part of one,
 * or -EPROTO when it can never become one: page number >= pages_total, unknown kind, impossible
 * length, malformed runs. Input is hostile. */
int ft_page_record_parse(const uint8_t *buf, size_t len, uint64_t pages_total,
			 struct ft_page_record *rec, struct ft_err *err);
/* The page of a plain record, or of a raw one, verified, in the parsed buffer; NULL: another kind,
 * or -EPROTO in *err. */
const uint8_t *ft_page_record_raw(const struct ft_page_record *rec, struct ft_err *err);
/* Turns `page` (the image's copy, the base of a delta) into the new page. 0, or -EPROTO when the
 * data does not decode or the result has another hash; then the page is undefined. Safe against
 * hostile data. A zero record onto a page that is zero already does not write (so that an untouched
 * image stays sparse). */
int ft_page_record_apply(const struct ft_page_record *rec, uint8_t *page, struct ft_err *err);

#endif
