/* SPDX-License-Identifier: Apache-2.0 */
/* Copies of pages that the guest wanted to write before they were saved: they wait here for the
 * disk, the guest does not. Bounded; who has a page for a full pool waits, but not for ever. First
 * in, first out. Any thread; one lock, which also is the workers' (see snapshot.c). */
#ifndef VMM_GLUE_SNAPSHOT_POOL_H
#define VMM_GLUE_SNAPSHOT_POOL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct pool_page {
	uint64_t pfn;
	uint8_t *bytes; /* a page, aligned to one */
};

struct pool {
	/* set at init */
	unsigned slots;
	uint8_t *memory;
	/* under the lock */
	struct pool_page *queue; /* a ring */
	uint8_t **spare;	 /* pages that hold nothing */
	unsigned first, queued, spares;
};

/* 0 or -ENOMEM. */
int pool_init(struct pool *p, unsigned slots);
void pool_free(struct pool *p);
/* The caller holds the lock. take_spare: NULL: the pool is full. */
uint8_t *pool_take_spare_locked(struct pool *p);
void pool_give_back_locked(struct pool *p, uint8_t *bytes);
void pool_put_locked(struct pool *p, uint64_t pfn, uint8_t *bytes);
bool pool_get_locked(struct pool *p, struct pool_page *page);

#endif
