// SPDX-License-Identifier: Apache-2.0
// A snapshot file of a stranger. Of each of its megabytes only the first bytes count, the others
// are zeroes, so that inputs stay small. The first byte says how long the file is; with its bit 3
// the rest of the input are changes of a good file (two bytes where, one what), else it is the
// file. Whatever is accepted must hold what readers rely on.
#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "ft/snapshot/mapped_ram.h"

struct file {
	const uint8_t *data;
	size_t len;
};

/* Every megabyte of the file begins with the next piece of the input. */
#define PIECE_BYTES 512
#define PIECES	    8

static uint8_t byte_at(const struct file *f, uint64_t at)
{
	uint64_t piece = at / MAPPED_RAM_ALIGN_BYTES, in = at % MAPPED_RAM_ALIGN_BYTES;
	uint64_t from = piece * PIECE_BYTES + in;

	return in < PIECE_BYTES && from < f->len ? f->data[from] : 0;
}

static int read_file(void *ctx, uint64_t offset, void *to, size_t len)
{
	for (size_t i = 0; i < len; i++)
		((uint8_t *)to)[i] = byte_at(ctx, offset + i);
	return 0;
}

static void check(const struct mapped_ram *m, uint64_t bytes)
{
	uint64_t at = 0;

	assert(m->machine[0] && m->blocks_n > 0 && m->blocks_n <= MAPPED_RAM_BLOCKS_MAX);
	for (unsigned i = 0; i < m->blocks_n; i++) {
		const struct mapped_ram_block *b = &m->blocks[i];

		assert(b->name[0] && memchr(b->name, 0, sizeof b->name));
		assert(b->bytes > 0 && b->bytes % MAPPED_RAM_PAGE_BYTES == 0);
		assert(b->bitmap_offset > at);
		assert(b->bitmap_offset + mapped_ram_words(b) * 8 <= b->pages_offset);
		assert(b->pages_offset % MAPPED_RAM_ALIGN_BYTES == 0);
		at = b->pages_offset + b->bytes;
		assert(at <= bytes);
	}
	assert(m->tail_offset == at && m->state_offset > at);
	assert(m->state_bytes > 0 && m->state_bytes <= MAPPED_RAM_STATE_MAX);
	assert(m->state_offset + m->state_bytes <= bytes);
}

/* Two blocks of a megabyte each, so that heads and tail begin one. Returns its length. */
static uint64_t make_good(uint8_t pieces[PIECES * PIECE_BYTES])
{
	static const uint8_t state[] = "QEVM\0\0\0\3\4device sections\0";
	struct mapped_ram m = {.machine = "pc",
			       .blocks_n = 2,
			       .blocks = {{.name = "ram0", .bytes = MAPPED_RAM_ALIGN_BYTES},
					  {.name = "pc.rom", .bytes = MAPPED_RAM_ALIGN_BYTES}}};
	uint8_t piece[MAPPED_RAM_HEAD_MAX];
	uint64_t at;
	size_t n;

	memset(pieces, 0, PIECES * PIECE_BYTES);
	mapped_ram_plan(&m);
	for (unsigned i = 0; i < m.blocks_n; i++) {
		n = mapped_ram_head(&m, i, &at, piece);
		memcpy(pieces + at / MAPPED_RAM_ALIGN_BYTES * PIECE_BYTES, piece, n);
	}
	at = m.tail_offset / MAPPED_RAM_ALIGN_BYTES * PIECE_BYTES;
	n = mapped_ram_tail(pieces + at);
	n += mapped_ram_pack_state("qemu", state, sizeof state - 1, pieces + at + n);
	return m.tail_offset + n;
}

static void change(uint8_t pieces[PIECES * PIECE_BYTES], const uint8_t *data, size_t len)
{
	for (; len >= 3; data += 3, len -= 3)
		pieces[(data[0] | (size_t)data[1] << 8) % (PIECES * PIECE_BYTES)] = data[2];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static uint8_t pieces[PIECES * PIECE_BYTES];
	static uint8_t packed[MAPPED_RAM_STATE_MAX], state[MAPPED_RAM_STATE_MAX];
	struct file f = {data + 1, len - 1};
	struct mapped_ram_reader r = {.read = read_file, .ctx = &f};
	struct mapped_ram m;
	struct ft_err err = {0};
	size_t n;

	if (len < 1)
		return 0;
	if (data[0] & 8) {
		r.bytes = make_good(pieces) - (data[0] & 7) * (data[0] >> 4);
		change(pieces, data + 1, len - 1);
		f = (struct file){pieces, sizeof pieces};
	} else {
		r.bytes = (uint64_t)(data[0] >> 4) * MAPPED_RAM_ALIGN_BYTES + (data[0] & 7) * 32;
	}
	if (mapped_ram_parse(&r, &m, &err)) {
		assert(err.code == EBADMSG && err.text[0]);
		return 0;
	}
	check(&m, r.bytes);
	read_file(&f, m.state_offset, packed, m.state_bytes);
	if (!mapped_ram_unpack_state("qemu", packed, m.state_bytes, state, &n, &err))
		assert(n == m.state_bytes + 8);
	if (!mapped_ram_unpack_state("pocket", packed, m.state_bytes, state, &n, &err))
		assert(n < m.state_bytes);
	return 0;
}
