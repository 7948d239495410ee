/* SPDX-License-Identifier: Apache-2.0 */
/* Who saves which page of a snapshot. Several threads go over RAM in the file's order while the
 * guest's write faults pick pages out of it; each page is saved by exactly one of them, the one
 * that claimed it. A claim is one atomic operation on the word that holds the page's bit. Any
 * thread.
 *
 * Whoever claimed a page lets its writers go, and nobody else: it may not have read it yet. */
#ifndef FT_SNAPSHOT_CLAIMS_H
#define FT_SNAPSHOT_CLAIMS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define CLAIMS_WORD_PAGES 64

struct claims {
	uint64_t pages;
	_Atomic uint64_t next; /* word that nobody scans yet */
	_Atomic uint64_t *words;
};

/* 0 or -ENOMEM. */
int claims_init(struct claims *c, uint64_t pages);
void claims_free(struct claims *c);
/* A fault's: page pfn, and what nobody has of the `near` pages around it (a power of 2, aligned, at
 * most CLAIMS_WORD_PAGES; 1: no others). The caller's pages of the word that has pfn's; 0: somebody
 * else has pfn, and the caller has nothing. */
uint64_t claims_page(struct claims *c, uint64_t pfn, unsigned near);
/* A scanner's: the next CLAIMS_WORD_PAGES pages (the last word may have fewer), of which those in
 * *mine (which may be none) are the caller's. false: there are no more. */
bool claims_next(struct claims *c, uint64_t *word, uint64_t *mine);
/* Neighbours among a word's pages, from the i-th on: how many, and *i is the first. 0: no more. */
unsigned claims_run(uint64_t pages, unsigned *i);
/* false: claims_next() has nothing more. */
bool claims_left(const struct claims *c);

#endif
