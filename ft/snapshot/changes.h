/* SPDX-License-Identifier: Apache-2.0 */
/* The file of what changed from one snapshot to the next: pages, which of them became zeroes, and
 * the new device state. It is the journal of a snapshot that is updated in place
 * (vmm-glue/snapshot/update.h), and a link of a standby's history (vmm-glue/snapshot/history.h).
 * Each of the guest's disks has one of its own, with the same id: its pages are the image's, its
 * offsets are 0, it has no state, and ram_bytes is the disk's size in whole pages.
 *
 *     at 0      head, CHANGES_HEAD_BYTES, written last: without it the rest is nothing
 *     at 4096   `pages_n` pages
 *     behind    index: pages_n times  u64 pfn  u64 XXH3-64 of the page
 *                      zeroes_n times u64 pfn
 *               device state as it stands in the snapshot (mapped_ram_pack_state())
 *
 *     head: "KEMARISC"  u32 version 1  u32 id
 *           u64 ram_bytes bitmap_offset pages_offset state_offset    the snapshot's frame
 *           u64 pages_n zeroes_n state_bytes
 *           u64 sequence generation epoch time_ms                    a link's; 0 in a journal
 *           u64 XXH3-64 of index and state
 *     at 120: u64 XXH3-64 of the head up to here; what is between is 0
 *
 * Numbers are little endian. A page is in the file once. Pure: no file is touched here; a reader's
 * file is hostile. Any thread. */
#ifndef FT_SNAPSHOT_CHANGES_H
#define FT_SNAPSHOT_CHANGES_H

#include <stddef.h>
#include <stdint.h>

#include "ft/err.h"
#include "ft/snapshot/mapped_ram.h"

#define CHANGES_HEAD_BYTES  128
#define CHANGES_PAGES_AT    4096
#define CHANGES_ENTRY_BYTES 16 /* of a page, in the index */
#define CHANGES_ZERO_BYTES  8
#define CHANGES_STATE_MAX   (MAPPED_RAM_STATE_MAX + MAPPED_RAM_TAIL_MAX + CHANGES_TEXT_MAX)
#define CHANGES_TEXT_MAX    (16u << 10) /* what the state says of disks */
#define CHANGES_MARK_BYTES  8

struct changes_head {
	uint32_t id; /* never 0 */
	uint64_t ram_bytes, bitmap_offset, pages_offset, state_offset;
	uint64_t pages_n, zeroes_n, state_bytes;
	uint64_t sequence, generation, epoch, time_ms;
	uint64_t sum; /* of index and state */
};

static inline uint64_t changes_index_at(const struct changes_head *h)
{
	return CHANGES_PAGES_AT + h->pages_n * MAPPED_RAM_PAGE_BYTES;
}

static inline uint64_t changes_index_bytes(const struct changes_head *h)
{
	return h->pages_n * CHANGES_ENTRY_BYTES + h->zeroes_n * CHANGES_ZERO_BYTES;
}

static inline uint64_t changes_bytes(const struct changes_head *h)
{
	return changes_index_at(h) + changes_index_bytes(h) + h->state_bytes;
}

void changes_head_pack(const struct changes_head *h, uint8_t out[CHANGES_HEAD_BYTES]);
/* Of a file of that length. -EBADMSG: no such file, or one that was not finished. What is in *h may
 * be relied on: lengths are within the file and bounded by ram_bytes, which is bounded. */
int changes_head_parse(const uint8_t in[CHANGES_HEAD_BYTES], uint64_t file_bytes,
		       struct changes_head *h, struct ft_err *err);
/* Index and state as they stand in the file, one behind the other. -EBADMSG: damaged, or a page
 * twice or beyond the end; `seen` has a bit for each page of RAM, all clear. */
int changes_check(const struct changes_head *h, const uint8_t *index_and_state, uint64_t *seen,
		  struct ft_err *err);
/* Entry i of the index. */
uint64_t changes_page(const uint8_t *index, uint64_t i, uint64_t *hash);
uint64_t changes_zero(const struct changes_head *h, const uint8_t *index, uint64_t i);

uint64_t changes_page_hash(const uint8_t *page);

/* What stands at the start of a snapshot, in place of QEMU's magic and version, while changes are
 * put into it: nobody takes the mixture for a snapshot. "KFTU", u32 id. */
void changes_mark(uint32_t id, uint8_t out[CHANGES_MARK_BYTES]);
/* The id, 0: it is not marked. */
uint32_t changes_marked(const uint8_t in[CHANGES_MARK_BYTES]);
/* What stands there otherwise. */
void changes_opening(uint8_t out[CHANGES_MARK_BYTES]);

#endif
