/* SPDX-License-Identifier: Apache-2.0 */
/* The snapshot file: QEMU's own mapped-ram migration file (QEMU 9.0 and later: capability
 * mapped-ram, docs/devel/migration/mapped-ram.rst, migration/ram.c, migration/savevm.c; as QEMU
 * 10.0.2 writes it). Every page has a fixed place, so pages are written in any order, by anybody.
 * Numbers are big endian but for the bitmaps.
 *
 *   "QEVM"  u32 3
 *   07  u32 n  MACHINE                                  configuration: machine type, n bytes
 *   05  1a "configuration/capabilities"  u32 1  u32 1  0a "mapped-ram"
 *   01  u32 SECTION  03 "ram"  u32 0  u32 4             start of the section "ram"
 *     u64 bytes of all blocks | 4
 *     for each RAM block:
 *       u8 n  NAME  u64 bytes
 *       u32 1  u64 4096  u64 BITMAP  u64 PAGES          file offsets
 *       at BITMAP, right here: u64 words, little endian; bit i of the block: page i is in the file
 *       at PAGES, the next multiple of 1 MiB: page i at PAGES + 4096 i. A page whose bit is clear
 *       is zeroes, and a hole.
 *       The stream goes on at PAGES + bytes.
 *     u64 10                                            end of the start
 *   7e  u32 SECTION                                     footer
 *   03  u32 SECTION  u64 10  7e  u32 SECTION            end of the section (QEMU: 02 before, too)
 *   device sections, as xen-save-devices-state writes them from its byte 8 on
 *   00                                                  end
 *   06  u32 n  JSON                                     description; ours is "{}", or names disks
 *
 * A machine that is no QEMU has one device section: 04 u32 2, its name, u32 0, u32 1, its state,
 * 7e u32 2. The disks of a guest are not in the file; vmm-glue/snapshot/companions.h has what the
 * description says of them.
 *
 * Pure: no file is touched here. A reader's file is hostile: it is parsed whole, and every number
 * checked, before anybody acts on it. Any thread. */
#ifndef FT_SNAPSHOT_MAPPED_RAM_H
#define FT_SNAPSHOT_MAPPED_RAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ft/err.h"

#define MAPPED_RAM_PAGE_BYTES  4096u
#define MAPPED_RAM_ALIGN_BYTES (1u << 20)   /* of each block's pages */
#define MAPPED_RAM_BLOCKS_MAX  64	    /* a QEMU with many option ROMs has 20 */
#define MAPPED_RAM_NAME_MAX    256	    /* with the NUL; the file's length byte allows 255 */
#define MAPPED_RAM_BYTES_MAX   (1ull << 42) /* of one block: 4 TiB */
#define MAPPED_RAM_STATE_MAX   (4u << 20)   /* device sections; QEMU with many devices: 0.5 MiB */
#define MAPPED_RAM_TEXT_MAX    (16u << 20)  /* the description behind them, which nobody reads */
#define MAPPED_RAM_HEAD_MAX    1024	    /* bytes in front of one bitmap */
#define MAPPED_RAM_TAIL_MAX    64

struct mapped_ram_block {
	char name[MAPPED_RAM_NAME_MAX];
	uint64_t bytes;
	uint64_t bitmap_offset, pages_offset;
};

struct mapped_ram {
	char machine[MAPPED_RAM_NAME_MAX];
	unsigned blocks_n;
	struct mapped_ram_block blocks[MAPPED_RAM_BLOCKS_MAX];
	uint64_t tail_offset;  /* where the stream goes on behind the last block */
	uint64_t state_offset; /* device sections ... */
	uint64_t state_bytes;  /* ... and the 00 behind them; 0 in a plan */
};

static inline uint64_t mapped_ram_pages(const struct mapped_ram_block *b)
{
	return b->bytes / MAPPED_RAM_PAGE_BYTES;
}

/* Words of a block's bitmap, 8 bytes each. */
static inline uint64_t mapped_ram_words(const struct mapped_ram_block *b)
{
	return (mapped_ram_pages(b) + 63) / 64;
}

/* Those bits of word `word` that stand for pages of the block. */
uint64_t mapped_ram_word_mask(const struct mapped_ram_block *b, uint64_t word);

/* ---- writing ---- */

/* machine and blocks[0..blocks_n) with name and bytes (whole pages) are given: fills in all
 * offsets. */
void mapped_ram_plan(struct mapped_ram *m);
/* What stands in front of block i's bitmap; *offset: where. Returns its length. */
size_t mapped_ram_head(const struct mapped_ram *m, unsigned i, uint64_t *offset,
		       uint8_t out[MAPPED_RAM_HEAD_MAX]);
/* What stands at tail_offset, up to state_offset. Returns its length. */
size_t mapped_ram_tail(uint8_t out[MAPPED_RAM_TAIL_MAX]);
/* A VMM's device state as what stands at state_offset, up to the file's end; `kind` names a VMM
 * that is no QEMU. Room for len + MAPPED_RAM_TAIL_MAX. Returns the length. */
size_t mapped_ram_pack_state(const char *kind, const uint8_t *state, size_t len, uint8_t *out);

/* Puts a description, JSON in braces, in the place of "{}" behind what mapped_ram_pack_state() made
 * of len bytes. Room for len + strlen(json). Returns the length. */
size_t mapped_ram_describe(uint8_t *packed, size_t len, const char *json);

/* The inverse of both: how many of the bytes from state_offset to the file's end are device
 * sections (and the 00 behind them), and the JSON behind them; 0 and NULL: there is no description.
 */
size_t mapped_ram_state_len(const uint8_t *packed, size_t len);
const uint8_t *mapped_ram_description(const uint8_t *packed, size_t len, size_t *json_len);

/* ---- reading ---- */

struct mapped_ram_reader {
	/* All of [offset, offset + len), which is within `bytes`. 0 or -errno. */
	int (*read)(void *ctx, uint64_t offset, void *to, size_t len);
	uint64_t bytes; /* of the file */
	void *ctx;
};

/* -EBADMSG: not such a file, or a damaged one; *m is void. */
int mapped_ram_parse(const struct mapped_ram_reader *r, struct mapped_ram *m, struct ft_err *err);
/* -EBADMSG: word `word` of a block's bitmap has bits beyond its end. */
int mapped_ram_check_word(const struct mapped_ram_block *b, uint64_t word, uint64_t bits,
			  struct ft_err *err);
/* The inverse of mapped_ram_pack_state() for what stands at state_offset, state_bytes of it. `out`
 * has room for MAPPED_RAM_STATE_MAX. -EBADMSG: not the state of such a VMM. */
int mapped_ram_unpack_state(const char *kind, const uint8_t *in, size_t len, uint8_t *out,
			    size_t *out_len, struct ft_err *err);

#endif
