// SPDX-License-Identifier: Apache-2.0
// Reads the file's frame in stream order. Offsets only grow: a block's bitmap lies behind its head,
// its pages behind the bitmap, and the next head behind the pages, so nothing can overlap. Device
// sections carry no lengths; their end is found from the file's.
#include "ft/snapshot/mapped_ram.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "ft/snapshot/mapped_ram_format.h"

#define CAPABILITIES_MAX 32
#define SUBSECTIONS_MAX	 8
#define PARTS_MAX	 (1u << 20) /* of a live migration: one each turn */
#define FLAGS_MAX	 64	    /* marks in one part */
#define WINDOW_BYTES	 4096

struct in {
	const struct mapped_ram_reader *r;
	uint64_t at;
	int code;      /* 0, or why the rest is not to be had */
	uint64_t from; /* what of the file is in the window */
	size_t in_window;
	uint8_t window[WINDOW_BYTES];
	struct ft_err *err;
};

static int bad(struct in *in, const char *what)
{
	if (!in->code)
		in->code = ft_err_set(in->err, EBADMSG,
				      "not a mapped-ram migration file: at %" PRIu64 ": %s", in->at,
				      what);
	return in->code;
}

/* The next n bytes; zeroes once anything went wrong. */
static void get_bytes(struct in *in, void *to, size_t n)
{
	memset(to, 0, n);
	if (in->code)
		return;
	if (in->at > in->r->bytes || n > in->r->bytes - in->at) {
		bad(in, "it ends too early");
		return;
	}
	assert(n <= WINDOW_BYTES);
	if (in->at < in->from || in->at + n > in->from + in->in_window) {
		uint64_t left = in->r->bytes - in->at;

		in->from = in->at;
		in->in_window = left < WINDOW_BYTES ? (size_t)left : WINDOW_BYTES;
		in->code = in->r->read(in->r->ctx, in->from, in->window, in->in_window);
		if (in->code) {
			ft_err_set(in->err, -in->code, "read: %s", strerror(-in->code));
			return;
		}
	}
	memcpy(to, in->window + (in->at - in->from), n);
	in->at += n;
}

static uint64_t get_number(struct in *in, unsigned width)
{
	uint64_t value = 0;
	uint8_t bytes[8];

	get_bytes(in, bytes, width);
	for (unsigned i = 0; i < width; i++)
		value = value << 8 | bytes[i];
	return value;
}

/* Text of n bytes, without control characters: it is shown to people. */
static void get_text(struct in *in, size_t n, char out[MAPPED_RAM_NAME_MAX], const char *what)
{
	out[0] = '\0';
	if (n == 0 || n >= MAPPED_RAM_NAME_MAX) {
		bad(in, what);
		return;
	}
	get_bytes(in, out, n);
	out[n] = '\0';
	for (size_t i = 0; i < n && !in->code; i++)
		if (out[i] < 0x20 || out[i] > 0x7e)
			bad(in, what);
}

static void get_name(struct in *in, char out[MAPPED_RAM_NAME_MAX], const char *what)
{
	get_text(in, (size_t)get_number(in, 1), out, what);
}

static void expect(struct in *in, uint64_t value, unsigned width, const char *what)
{
	if (get_number(in, width) != value)
		bad(in, what);
}

/* u32 count, each a name; mapped-ram must be among them, and nothing that changes the format. */
static void get_capabilities(struct in *in)
{
	uint64_t n;
	bool found = false;

	expect(in, 1, 4, "version of its capabilities");
	n = get_number(in, 4);
	if (n > CAPABILITIES_MAX)
		bad(in, "number of capabilities");
	for (uint64_t i = 0; i < n && !in->code; i++) {
		char name[MAPPED_RAM_NAME_MAX];

		get_name(in, name, "name of a capability");
		found = found || !strcmp(name, MAPPED_RAM);
		if (!strcmp(name, "x-ignore-shared"))
			bad(in, "saved with x-ignore-shared: its RAM is not in it");
	}
	if (!found)
		bad(in, "saved without the capability mapped-ram");
}

static void get_configuration(struct in *in, struct mapped_ram *m)
{
	char magic[MAGIC_BYTES], name[MAPPED_RAM_NAME_MAX];
	bool found = false;

	get_bytes(in, magic, sizeof magic);
	if (memcmp(magic, MAGIC, sizeof magic) != 0)
		bad(in, "no QEVM at its start");
	expect(in, VERSION, 4, "version");
	expect(in, SECTION_CONFIG, 1, "no configuration section");
	get_text(in, (size_t)get_number(in, 4), m->machine, "machine type");
	for (unsigned i = 0; i < SUBSECTIONS_MAX && !in->code; i++) {
		uint64_t type = get_number(in, 1);

		if (type == SECTION_START)
			break;
		if (type != SECTION_SUB)
			bad(in, "configuration section");
		get_name(in, name, "name of a subsection");
		if (strcmp(name, CAPABILITIES) != 0) {
			bad(in, "a subsection that is not known here");
			break;
		}
		get_capabilities(in);
		found = true;
	}
	if (!found)
		bad(in, "saved without the capability mapped-ram");
}

static void get_block(struct in *in, struct mapped_ram *m)
{
	struct mapped_ram_block *b = &m->blocks[m->blocks_n];
	uint64_t end;

	get_name(in, b->name, "name of a RAM block");
	for (unsigned i = 0; i < m->blocks_n; i++)
		if (!strcmp(m->blocks[i].name, b->name))
			bad(in, "two RAM blocks of one name");
	b->bytes = get_number(in, 8);
	if (b->bytes == 0 || b->bytes > MAPPED_RAM_BYTES_MAX ||
	    b->bytes % MAPPED_RAM_PAGE_BYTES != 0)
		bad(in, "length of a RAM block");
	expect(in, BLOCK_VERSION, 4, "version of a RAM block");
	expect(in, MAPPED_RAM_PAGE_BYTES, 8, "page size");
	b->bitmap_offset = get_number(in, 8);
	b->pages_offset = get_number(in, 8);
	if (in->code)
		return;
	if (b->bitmap_offset < in->at || b->bitmap_offset > in->r->bytes)
		bad(in, "place of a bitmap");
	else if (b->pages_offset % MAPPED_RAM_ALIGN_BYTES || b->pages_offset < b->bitmap_offset ||
		 b->pages_offset - b->bitmap_offset < mapped_ram_words(b) * 8 ||
		 b->pages_offset > in->r->bytes)
		bad(in, "place of a block's pages");
	end = b->pages_offset + b->bytes; /* both below 2^63 */
	if (in->code)
		return;
	if (end > in->r->bytes)
		bad(in, "it ends before the pages of a block do");
	in->at = end;
	m->blocks_n++;
}

static void get_marks(struct in *in)
{
	for (unsigned i = 0; i < FLAGS_MAX && !in->code; i++) {
		uint64_t mark = get_number(in, 8);

		if (mark == RAM_EOS)
			return;
		if (mark != RAM_MULTIFD_SYNC)
			break;
	}
	bad(in, "something else than an end in the section ram");
}

static void get_footer(struct in *in, uint32_t section)
{
	expect(in, SECTION_FOOTER, 1, "no footer");
	expect(in, section, 4, "footer of another section");
}

static void get_ram(struct in *in, struct mapped_ram *m)
{
	uint32_t section = (uint32_t)get_number(in, 4);
	char name[MAPPED_RAM_NAME_MAX];
	uint64_t left;

	get_name(in, name, "name of a section");
	if (!in->code && strcmp(name, RAM_NAME) != 0)
		bad(in, "a live section other than ram");
	expect(in, 0, 4, "instance of the section ram");
	expect(in, RAM_VERSION, 4, "version of the section ram");
	left = get_number(in, 8);
	if ((left & (MAPPED_RAM_PAGE_BYTES - 1)) != RAM_MEM_SIZE)
		bad(in, "no list of RAM blocks");
	left &= ~(uint64_t)(MAPPED_RAM_PAGE_BYTES - 1);
	while (left && !in->code) {
		if (m->blocks_n == MAPPED_RAM_BLOCKS_MAX) {
			bad(in, "too many RAM blocks");
			break;
		}
		get_block(in, m);
		if (!in->code && m->blocks[m->blocks_n - 1].bytes > left)
			bad(in, "blocks are longer than their sum");
		else if (!in->code)
			left -= m->blocks[m->blocks_n - 1].bytes;
	}
	if (m->blocks_n == 0)
		bad(in, "no RAM block");
	m->tail_offset = in->at;
	get_marks(in);
	get_footer(in, section);
	for (unsigned i = 0; i < PARTS_MAX && !in->code; i++) {
		uint64_t type = get_number(in, 1);

		if (type != SECTION_PART && type != SECTION_END)
			bad(in, "no end of the section ram");
		expect(in, section, 4, "a live section other than ram");
		get_marks(in);
		get_footer(in, section);
		if (type == SECTION_END)
			return;
	}
	bad(in, "no end of the section ram");
}

/* Is there a description from `at` to the file's end, behind the end of the sections? */
static bool description_at(struct in *in, uint64_t at)
{
	uint8_t bytes[7];
	uint64_t n;

	in->at = at;
	get_bytes(in, bytes, sizeof bytes);
	n = (uint64_t)bytes[2] << 24 | (uint64_t)bytes[3] << 16 | (uint64_t)bytes[4] << 8 |
	    bytes[5];
	return !in->code && bytes[0] == SECTION_EOF && bytes[1] == SECTION_VMDESC &&
	       bytes[6] == '{' && at + 6 + n == in->r->bytes;
}

/* The device sections end with 00, and the file there or after a description. */
static void find_state(struct in *in, struct mapped_ram *m)
{
	uint64_t end = in->r->bytes, start = in->at, at;

	m->state_offset = start;
	if (in->code)
		return;
	if (end == start) {
		bad(in, "no device state");
		return;
	}
	in->at = end - 1;
	if (get_number(in, 1) == SECTION_EOF) {
		m->state_bytes = end - start;
	} else {
		uint64_t last = end >= 8 ? end - 8 : 0; /* 00 06 u32 "{}" */

		for (at = start; at <= last && at - start < MAPPED_RAM_STATE_MAX; at++)
			if (description_at(in, at))
				break;
		if (at > last || at - start >= MAPPED_RAM_STATE_MAX) {
			bad(in, "its device state has no end");
			return;
		}
		m->state_bytes = at + 1 - start;
	}
	if (m->state_bytes > MAPPED_RAM_STATE_MAX)
		bad(in, "too much device state");
}

int mapped_ram_parse(const struct mapped_ram_reader *r, struct mapped_ram *m, struct ft_err *err)
{
	struct in in = {.r = r, .err = err};

	memset(m, 0, sizeof *m);
	get_configuration(&in, m);
	get_ram(&in, m);
	find_state(&in, m);
	return in.code;
}

int mapped_ram_check_word(const struct mapped_ram_block *b, uint64_t word, uint64_t bits,
			  struct ft_err *err)
{
	if (!(bits & ~mapped_ram_word_mask(b, word)))
		return 0;
	return ft_err_set(err, EBADMSG,
			  "not a mapped-ram migration file: the bitmap of %s goes beyond its end",
			  b->name);
}
