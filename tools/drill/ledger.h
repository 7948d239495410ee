/* SPDX-License-Identifier: Apache-2.0 */
/* What the drill's client and the server in the guest agree on: arithmetic that leaves an operation
 * no way to be lost, doubled or changed unnoticed.
 *
 * A client owns a lane. Request n of a lane changes one page of the guest's RAM and one block of
 * its disk, which is durable before the answer leaves. The answer holds a hash over all requests of
 * the lane so far, and digests of what RAM and disk held before: the client can compute each answer
 * beforehand, so one that differs tells of a machine that is not the one that went on. And it can
 * tell what the whole disk must look like.
 *
 * Both sides are little endian machines of 64 bits; header only, because the guest's side is built
 * apart from everything else. */
#ifndef TOOLS_DRILL_LEDGER_H
#define TOOLS_DRILL_LEDGER_H

#include <stdint.h>
#include <string.h>

#define LEDGER_MAGIC	   0x314447444c54464bull /* "KFTLDGD1" */
#define LEDGER_LANES	   16u
#define LEDGER_BLOCK_BYTES 4096u
#define LEDGER_BLOCK_WORDS (LEDGER_BLOCK_BYTES / 8)
#define LEDGER_PAGES	   256u /* of RAM, a lane */
#define LEDGER_SLOTS	   256u /* of the disk, a lane; lane L has the blocks from L * LEDGER_SLOTS */
#define LEDGER_DISK_BYTES  ((uint64_t)LEDGER_LANES * LEDGER_SLOTS * LEDGER_BLOCK_BYTES)
#define LEDGER_READ_EVERY  8u /* requests: then an old block is read back from the disk */

struct ledger_request {
	uint64_t magic, lane, words[14];
};

struct ledger_answer {
	uint64_t magic, lane;
	uint64_t number; /* of requests in this lane, this one included */
	uint64_t chain;	 /* over all of them */
	uint64_t page;	 /* digest of the RAM page before this request changed it */
	uint64_t block;	 /* digest of a disk block, or 0: see ledger_read_slot() */
	uint64_t zero[2];
};

static inline uint64_t ledger_mix(uint64_t hash, uint64_t word)
{
	hash = (hash ^ word) * 0x9fb21c651e98df25ull;
	return hash ^ (hash >> 28);
}

static inline uint64_t ledger_chain(uint64_t chain, const struct ledger_request *request)
{
	chain = ledger_mix(chain, request->lane);
	for (unsigned i = 0; i < sizeof request->words / sizeof *request->words; i++)
		chain = ledger_mix(chain, request->words[i]);
	return chain;
}

static inline uint64_t ledger_digest(const uint64_t *words)
{
	uint64_t hash = LEDGER_MAGIC;

	for (unsigned i = 0; i < LEDGER_BLOCK_WORDS; i++)
		hash = ledger_mix(hash, words[i]);
	return hash;
}

/* What request `number`, after which the chain is `chain`, writes to RAM and to disk; number 0:
 * what is there before. */
static inline void ledger_fill(uint64_t *words, uint64_t lane, uint64_t number, uint64_t chain)
{
	memset(words, 0, LEDGER_BLOCK_BYTES);
	if (!number)
		return;
	words[0] = LEDGER_MAGIC;
	words[1] = lane;
	words[2] = number;
	words[3] = chain;
	for (unsigned i = 4; i < LEDGER_BLOCK_WORDS; i++)
		words[i] = ledger_mix(chain, i);
}

static inline unsigned ledger_page(uint64_t chain)
{
	return (unsigned)(chain >> 32) % LEDGER_PAGES;
}

static inline unsigned ledger_slot(uint64_t number)
{
	return (unsigned)(number % LEDGER_SLOTS);
}

/* The slot that request `number` reads back before it writes its own, -1: none. */
static inline int ledger_read_slot(uint64_t number)
{
	return number % LEDGER_READ_EVERY ? -1
					  : (int)(number / LEDGER_READ_EVERY * 5 % LEDGER_SLOTS);
}

#endif
