// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/snapshot/pool.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "vmm-glue/vmm.h"

#define READY_SLOTS 1024 /* the others cost time and memory only when there are many faults */

int pool_init(struct pool *p, unsigned slots)
{
	assert(slots > 0);
	*p = (struct pool){.slots = slots, .spares = slots};
	p->memory = aligned_alloc(VMM_PAGE_BYTES, (size_t)slots * VMM_PAGE_BYTES);
	p->queue = calloc(slots, sizeof *p->queue);
	p->spare = calloc(slots, sizeof *p->spare);
	if (!p->memory || !p->queue || !p->spare) {
		pool_free(p);
		return -ENOMEM;
	}
	/* Who takes a page has a guest waiting: not for the kernel to find memory too. */
	for (unsigned i = 0; i < slots && i < READY_SLOTS; i++)
		*(volatile uint8_t *)(p->memory + (size_t)i * VMM_PAGE_BYTES) = 0;
	/* The one given back last is taken first: few faults touch few pages. */
	for (unsigned i = 0; i < slots; i++)
		p->spare[i] = p->memory + (size_t)(slots - 1 - i) * VMM_PAGE_BYTES;
	return 0;
}

void pool_free(struct pool *p)
{
	free(p->memory);
	free(p->queue);
	free(p->spare);
	*p = (struct pool){0};
}

uint8_t *pool_take_spare_locked(struct pool *p)
{
	return p->spares ? p->spare[--p->spares] : NULL;
}

void pool_give_back_locked(struct pool *p, uint8_t *bytes)
{
	assert(p->spares < p->slots);
	p->spare[p->spares++] = bytes;
}

void pool_put_locked(struct pool *p, uint64_t pfn, uint8_t *bytes)
{
	assert(p->queued < p->slots);
	p->queue[(p->first + p->queued++) % p->slots] = (struct pool_page){pfn, bytes};
}

bool pool_get_locked(struct pool *p, struct pool_page *page)
{
	if (!p->queued)
		return false;
	*page = p->queue[p->first];
	p->first = (p->first + 1) % p->slots;
	p->queued--;
	return true;
}
