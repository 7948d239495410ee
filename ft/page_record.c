// SPDX-License-Identifier: Apache-2.0
/* The receiver's half of the page codec: everything here reads hostile bytes. The layout of a delta
 * is described in ft/codec.c. */
#include <errno.h>
#include <lz4.h>

#include "ft/codec.h"
#include "ft/page.h"

struct run {
	unsigned first, words;
	const uint8_t *data;
};

/* The run at *at, which moves behind it. 1, 0 at the end, -EPROTO. run->first + run->words is the
 * end of the one before (0 at first). */
static int run_next(const uint8_t *data, size_t len, size_t *at, struct run *run)
{
	unsigned end = run->first + run->words;

	if (*at == len)
		return 0;
	if (len - *at < RUN_HEADER)
		return -EPROTO;
	run->first = get16(data + *at);
	run->words = get16(data + *at + 2);
	run->data = data + *at + RUN_HEADER;
	*at += RUN_HEADER;
	if (run->words == 0 || run->first < end || run->first + run->words > WORDS)
		return -EPROTO;
	if (len - *at < (size_t)run->words * WORD_BYTES)
		return -EPROTO;
	*at += (size_t)run->words * WORD_BYTES;
	return 1;
}

static bool runs_valid(const uint8_t *data, size_t len)
{
	struct run run = {0};
	size_t at = 0;
	int more;

	while ((more = run_next(data, len, &at, &run)) > 0)
		;
	return more == 0;
}

static bool data_len_possible(unsigned kind, unsigned len)
{
	switch ((enum ft_page_kind)kind) {
	case FT_PAGE_ZERO:
		return len == 0;
	case FT_PAGE_DELTA:
		return len >= RUN_HEADER + WORD_BYTES && len < FT_PAGE_BYTES;
	case FT_PAGE_LZ4:
		return len > 0 && len < FT_PAGE_BYTES;
	case FT_PAGE_RAW:
	case FT_PAGE_PLAIN:
		return len == FT_PAGE_BYTES;
	case FT_PAGE_KIND_MAX:
		break;
	}
	return false;
}

int ft_page_record_parse(const uint8_t *buf, size_t len, uint64_t pages_total,
			 struct ft_page_record *rec, struct ft_err *err)
{
	unsigned kind, data_len;
	uint32_t pfn;

	if (len < FT_PAGE_RECORD_HEADER)
		return 0;
	pfn = get32(buf);
	kind = buf[4];
	data_len = get16(buf + 6);
	if (pfn >= pages_total)
		return ft_err_set(err, EPROTO, "page record: page %u: the guest has %llu", pfn,
				  (unsigned long long)pages_total);
	if (kind == 0 || kind >= FT_PAGE_KIND_MAX || buf[5] != 0)
		return ft_err_set(err, EPROTO, "page record: page %u: unknown kind %u.%u", pfn,
				  kind, buf[5]);
	if (!data_len_possible(kind, data_len))
		return ft_err_set(err, EPROTO, "page record: page %u: kind %u cannot have %u bytes",
				  pfn, kind, data_len);
	if (kind == FT_PAGE_PLAIN && get32(buf + 8))
		return ft_err_set(err, EPROTO, "page record: page %u: kind %u has no hash", pfn,
				  kind);
	if (len - FT_PAGE_RECORD_HEADER < data_len)
		return 0;
	if (kind == FT_PAGE_DELTA && !runs_valid(buf + FT_PAGE_RECORD_HEADER, data_len))
		return ft_err_set(err, EPROTO, "page record: page %u: malformed runs", pfn);
	*rec = (struct ft_page_record){
		.pfn = pfn,
		.kind = (enum ft_page_kind)kind,
		.hash = get32(buf + 8),
		.data_len = data_len,
		.data = buf + FT_PAGE_RECORD_HEADER,
	};
	return (int)(FT_PAGE_RECORD_HEADER + data_len);
}

static bool delta_apply(const struct ft_page_record *rec, uint8_t *page)
{
	struct run run = {0};
	size_t at = 0;
	int more;

	while ((more = run_next(rec->data, rec->data_len, &at, &run)) > 0)
		memcpy(page + (size_t)run.first * WORD_BYTES, run.data,
		       (size_t)run.words * WORD_BYTES);
	return more == 0;
}

static bool data_apply(const struct ft_page_record *rec, uint8_t *page)
{
	if (!data_len_possible(rec->kind, rec->data_len))
		return false;
	switch (rec->kind) {
	case FT_PAGE_ZERO:
		if (!page_is_zero(page))
			memset(page, 0, FT_PAGE_BYTES);
		return true;
	case FT_PAGE_DELTA:
		return delta_apply(rec, page);
	case FT_PAGE_LZ4:
		return LZ4_decompress_safe((const char *)rec->data, (char *)page,
					   (int)rec->data_len, FT_PAGE_BYTES) == FT_PAGE_BYTES;
	case FT_PAGE_RAW:
	case FT_PAGE_PLAIN:
		memcpy(page, rec->data, FT_PAGE_BYTES);
		return true;
	case FT_PAGE_KIND_MAX:
		break;
	}
	return false;
}

const uint8_t *ft_page_record_raw(const struct ft_page_record *rec, struct ft_err *err)
{
	uint32_t hash;

	if (rec->kind == FT_PAGE_PLAIN)
		return rec->data;
	if (rec->kind != FT_PAGE_RAW)
		return NULL;
	hash = page_hash(rec->data);
	if (hash == rec->hash)
		return rec->data;
	ft_err_set(err, EPROTO, "page record: page %llu: hash is %08x, the sender's is %08x",
		   (unsigned long long)rec->pfn, hash, rec->hash);
	return NULL;
}

int ft_page_record_apply(const struct ft_page_record *rec, uint8_t *page, struct ft_err *err)
{
	uint32_t hash;

	if (!data_apply(rec, page))
		return ft_err_set(err, EPROTO, "page record: page %llu: data does not decode",
				  (unsigned long long)rec->pfn);
	if (rec->kind == FT_PAGE_PLAIN)
		return 0;
	hash = rec->kind == FT_PAGE_ZERO ? ZERO_HASH : page_hash(page);
	if (hash != rec->hash)
		return ft_err_set(err, EPROTO,
				  "page record: page %llu: hash is %08x, the sender's is %08x",
				  (unsigned long long)rec->pfn, hash, rec->hash);
	return 0;
}
