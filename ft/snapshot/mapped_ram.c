// SPDX-License-Identifier: Apache-2.0
// Writing is a list of put()s in the order of the header's picture; mapped_ram_parse.c reads in the
// same order.
#include "ft/snapshot/mapped_ram.h"

#include <assert.h>
#include <string.h>

#include "ft/snapshot/mapped_ram_format.h"

struct out {
	uint8_t *at, *end;
};

static void put_bytes(struct out *o, const void *bytes, size_t n)
{
	assert(n <= (size_t)(o->end - o->at));
	if (n)
		memcpy(o->at, bytes, n);
	o->at += n;
}

static void put_number(struct out *o, uint64_t value, unsigned width)
{
	uint8_t bytes[8];

	for (unsigned i = 0; i < width; i++)
		bytes[i] = (uint8_t)(value >> (8 * (width - 1 - i)));
	put_bytes(o, bytes, width);
}

static void put_name(struct out *o, const char *name)
{
	put_number(o, strlen(name), 1);
	put_bytes(o, name, strlen(name));
}

static void put_footer(struct out *o, uint32_t section)
{
	put_number(o, SECTION_FOOTER, 1);
	put_number(o, section, 4);
}

static void put_opening(struct out *o, const struct mapped_ram *m)
{
	uint64_t total = 0;

	for (unsigned i = 0; i < m->blocks_n; i++)
		total += m->blocks[i].bytes;
	put_bytes(o, MAGIC, MAGIC_BYTES);
	put_number(o, VERSION, 4);
	put_number(o, SECTION_CONFIG, 1);
	put_number(o, strlen(m->machine), 4);
	put_bytes(o, m->machine, strlen(m->machine));
	put_number(o, SECTION_SUB, 1);
	put_name(o, CAPABILITIES);
	put_number(o, 1, 4);
	put_number(o, 1, 4);
	put_name(o, MAPPED_RAM);
	put_number(o, SECTION_START, 1);
	put_number(o, RAM_SECTION, 4);
	put_name(o, RAM_NAME);
	put_number(o, 0, 4);
	put_number(o, RAM_VERSION, 4);
	put_number(o, total | RAM_MEM_SIZE, 8);
}

static uint64_t pages_end(const struct mapped_ram_block *b)
{
	return b->pages_offset + b->bytes;
}

uint64_t mapped_ram_word_mask(const struct mapped_ram_block *b, uint64_t word)
{
	uint64_t left = mapped_ram_pages(b) - word * 64;

	assert(word < mapped_ram_words(b));
	return left >= 64 ? UINT64_MAX : (UINT64_C(1) << left) - 1;
}

size_t mapped_ram_head(const struct mapped_ram *m, unsigned i, uint64_t *offset,
		       uint8_t out[MAPPED_RAM_HEAD_MAX])
{
	const struct mapped_ram_block *b = &m->blocks[i];
	struct out o = {out, out + MAPPED_RAM_HEAD_MAX};

	assert(i < m->blocks_n);
	*offset = i ? pages_end(b - 1) : 0;
	if (i == 0)
		put_opening(&o, m);
	put_name(&o, b->name);
	put_number(&o, b->bytes, 8);
	put_number(&o, BLOCK_VERSION, 4);
	put_number(&o, MAPPED_RAM_PAGE_BYTES, 8);
	put_number(&o, b->bitmap_offset, 8);
	put_number(&o, b->pages_offset, 8);
	return (size_t)(o.at - out);
}

size_t mapped_ram_tail(uint8_t out[MAPPED_RAM_TAIL_MAX])
{
	struct out o = {out, out + MAPPED_RAM_TAIL_MAX};

	put_number(&o, RAM_EOS, 8);
	put_footer(&o, RAM_SECTION);
	put_number(&o, SECTION_END, 1);
	put_number(&o, RAM_SECTION, 4);
	put_number(&o, RAM_EOS, 8);
	put_footer(&o, RAM_SECTION);
	return (size_t)(o.at - out);
}

void mapped_ram_plan(struct mapped_ram *m)
{
	uint8_t scratch[MAPPED_RAM_HEAD_MAX];

	assert(m->blocks_n > 0 && m->blocks_n <= MAPPED_RAM_BLOCKS_MAX);
	for (unsigned i = 0; i < m->blocks_n; i++) {
		struct mapped_ram_block *b = &m->blocks[i];
		uint64_t start;

		assert(b->bytes > 0 && b->bytes <= MAPPED_RAM_BYTES_MAX);
		assert(b->bytes % MAPPED_RAM_PAGE_BYTES == 0);
		/* The head's length does not depend on the offsets in it. */
		b->bitmap_offset = mapped_ram_head(m, i, &start, scratch);
		b->bitmap_offset += start;
		b->pages_offset =
			b->bitmap_offset + mapped_ram_words(b) * 8 + MAPPED_RAM_ALIGN_BYTES - 1;
		b->pages_offset -= b->pages_offset % MAPPED_RAM_ALIGN_BYTES;
	}
	m->tail_offset = pages_end(&m->blocks[m->blocks_n - 1]);
	m->state_offset = m->tail_offset + mapped_ram_tail(scratch);
	m->state_bytes = 0;
}

static bool is_qemu(const char *kind)
{
	return !strcmp(kind, "qemu");
}

size_t mapped_ram_pack_state(const char *kind, const uint8_t *state, size_t len, uint8_t *out)
{
	struct out o = {out, out + len + MAPPED_RAM_TAIL_MAX};

	if (is_qemu(kind)) {
		assert(len > OPENING_BYTES);
		put_bytes(&o, state + OPENING_BYTES, len - OPENING_BYTES);
	} else {
		put_number(&o, SECTION_FULL, 1);
		put_number(&o, STATE_SECTION, 4);
		put_name(&o, kind);
		put_number(&o, 0, 4);
		put_number(&o, 1, 4);
		put_bytes(&o, state, len);
		put_footer(&o, STATE_SECTION);
		put_number(&o, SECTION_EOF, 1);
	}
	put_number(&o, SECTION_VMDESC, 1);
	put_number(&o, 2, 4);
	put_bytes(&o, "{}", 2);
	return (size_t)(o.at - out);
}

size_t mapped_ram_describe(uint8_t *packed, size_t len, const char *json)
{
	struct out o = {packed + len - DESCRIPTION_BYTES,
			packed + len - DESCRIPTION_BYTES + 5 + strlen(json)};

	assert(len >= DESCRIPTION_BYTES && packed[len - DESCRIPTION_BYTES] == SECTION_VMDESC);
	put_number(&o, SECTION_VMDESC, 1);
	put_number(&o, strlen(json), 4);
	put_bytes(&o, json, strlen(json));
	return (size_t)(o.at - packed);
}

/* From behind: JSON has no byte that could stand for its beginning. */
size_t mapped_ram_state_len(const uint8_t *packed, size_t len)
{
	for (size_t at = len; at-- > 0;) {
		const uint8_t *p = packed + at;

		if (len - at >= DESCRIPTION_BYTES && p[0] == SECTION_VMDESC &&
		    ((uint64_t)p[1] << 24 | (uint64_t)p[2] << 16 | (uint64_t)p[3] << 8 | p[4]) ==
			    len - at - 5)
			return at;
	}
	return 0;
}

const uint8_t *mapped_ram_description(const uint8_t *packed, size_t len, size_t *json_len)
{
	size_t at = mapped_ram_state_len(packed, len);

	*json_len = at ? len - at - 5 : 0;
	return at ? packed + at + 5 : NULL;
}

int mapped_ram_unpack_state(const char *kind, const uint8_t *in, size_t len, uint8_t *out,
			    size_t *out_len, struct ft_err *err)
{
	uint8_t frame[MAPPED_RAM_HEAD_MAX];
	size_t frame_len, head;

	assert(len <= MAPPED_RAM_STATE_MAX);
	if (is_qemu(kind)) {
		struct out o = {out, out + MAPPED_RAM_STATE_MAX};

		if (len > MAPPED_RAM_STATE_MAX - OPENING_BYTES)
			return ft_err_set(err, EBADMSG, "snapshot: device state: too long");
		put_bytes(&o, MAGIC, MAGIC_BYTES);
		put_number(&o, VERSION, 4);
		put_bytes(&o, in, len);
		*out_len = (size_t)(o.at - out);
		return 0;
	}
	/* What an empty state looks like, with the description cut off, is what must be around it.
	 */
	frame_len = mapped_ram_pack_state(kind, NULL, 0, frame) - DESCRIPTION_BYTES;
	head = frame_len - STATE_FOOTER_BYTES;
	if (len < frame_len || memcmp(in, frame, head) ||
	    memcmp(in + len - STATE_FOOTER_BYTES, frame + head, STATE_FOOTER_BYTES))
		return ft_err_set(err, EBADMSG, "snapshot: device state: not that of a %s machine",
				  kind);
	*out_len = len - frame_len;
	memcpy(out, in + head, *out_len);
	return 0;
}
