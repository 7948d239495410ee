// SPDX-License-Identifier: Apache-2.0
// A journal, or a link of a history, of a stranger. The input is a head, and the index and state
// behind its pages; with an odd first byte the sums are made right, so that what is behind them is
// reached. Whatever is accepted must hold what readers rely on.
#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "ft/snapshot/changes.h"

#define PAGES_MAX 65536 /* of RAM, in what is looked at closely */

/* Puts the sums where the format has them. */
static void mend(uint8_t head[CHANGES_HEAD_BYTES], const uint8_t *rest, size_t len)
{
	uint64_t sum = XXH3_64bits(rest, len);

	memcpy(head, "KEMARISC\1\0\0", 12);
	memcpy(head + 16 + 11 * 8, &sum, sizeof sum);
	sum = XXH3_64bits(head, CHANGES_HEAD_BYTES - 8);
	memcpy(head + CHANGES_HEAD_BYTES - 8, &sum, sizeof sum);
}

static void check(const struct changes_head *h, const uint8_t *index)
{
	uint64_t pages = h->ram_bytes / MAPPED_RAM_PAGE_BYTES, hash;

	for (uint64_t i = 0; i < h->pages_n; i++)
		assert(changes_page(index, i, &hash) < pages);
	for (uint64_t i = 0; i < h->zeroes_n; i++)
		assert(changes_zero(h, index, i) < pages);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	uint8_t head[CHANGES_HEAD_BYTES], *rest;
	static uint64_t seen[PAGES_MAX / 64];
	struct changes_head h;
	struct ft_err err = {0};
	size_t n;

	if (len < 1 + sizeof head)
		return 0;
	memcpy(head, data + 1, sizeof head);
	n = len - 1 - sizeof head;
	rest = malloc(n ? n : 1);
	memcpy(rest, data + 1 + sizeof head, n);
	if (data[0] & 1)
		mend(head, rest, n);
	(void)changes_marked(head);
	/* As a file of just that length. */
	memset(&h, 0, sizeof h);
	memcpy(&h.pages_n, head + 16 + 4 * 8, 8);
	if (h.pages_n > UINT32_MAX ||
	    changes_head_parse(head, changes_index_at(&h) + n, &h, &err)) {
		assert(h.pages_n > UINT32_MAX || err.code == EBADMSG);
	} else {
		/* A disk's has no places in a file of memory, and no state. */
		bool disk = !h.pages_offset;

		assert(h.id && !!h.state_bytes == !disk && h.state_bytes <= CHANGES_STATE_MAX);
		assert(disk ? !h.state_offset && !h.bitmap_offset
			    : h.state_offset >= h.pages_offset + h.ram_bytes);
		assert(changes_index_bytes(&h) + h.state_bytes == n);
		memset(seen, 0, sizeof seen);
		if (h.ram_bytes / MAPPED_RAM_PAGE_BYTES <= PAGES_MAX &&
		    !changes_check(&h, rest, seen, &err))
			check(&h, rest);
	}
	free(rest);
	return 0;
}
