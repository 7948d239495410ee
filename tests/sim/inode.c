// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/inode.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/sim/world.h"

#define LARGE (1u << 20)

static uint64_t inodes;

struct inode *inode_new(void)
{
	struct inode *i = calloc(1, sizeof *i);

	if (!i)
		abort();
	i->number = ++inodes;
	return i;
}

static void release(uint8_t *p, uint64_t bytes)
{
	if (bytes < LARGE)
		free(p);
	else
		munmap(p, bytes);
}

static void inode_free(struct inode *i)
{
	release(i->now, i->room);
	release(i->durable, i->room);
	free(i->cached);
	free(i->written);
	free(i);
}

struct inode *inode_hold(struct inode *i)
{
	if (i)
		i->refs++;
	return i;
}

void inode_drop(struct inode *i)
{
	if (i && --i->refs == 0)
		inode_free(i);
}

void inode_set(struct inode **slot, struct inode *i)
{
	struct inode *before = *slot;

	*slot = inode_hold(i);
	inode_drop(before);
}

uint64_t inode_rounded(uint64_t bytes, uint64_t unit)
{
	return (bytes + unit - 1) / unit * unit;
}

/* The new ones are zeroes. What is large, and mostly holes, costs nothing before it is touched. */
static uint8_t *more(uint8_t *p, uint64_t old, uint64_t new)
{
	uint8_t *q = new < LARGE ? realloc(p, new)
				 : mmap(NULL, new, PROT_READ | PROT_WRITE,
					MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (!q || q == MAP_FAILED)
		abort();
	if (new < LARGE) {
		memset(q + old, 0, new - old);
	} else if (old) {
		memcpy(q, p, old);
		release(p, old);
	}
	return q;
}

void inode_grow(struct inode *i, uint64_t bytes)
{
	/* Snapshots begin at 1 MiB, and are not to be copied for each page. */
	uint64_t old = i->room, new = inode_rounded(bytes, bytes < LARGE ? EXTENT : LARGE);

	i->bytes = bytes;
	if (new <= old)
		return;
	i->room = new;
	i->now = more(i->now, old, new);
	i->durable = more(i->durable, old, new);
	i->cached = more(i->cached, old / SECTOR, new / SECTOR);
	i->written = more(i->written, old / EXTENT, new / EXTENT);
}

void inode_shrink(struct inode *i, unsigned host, uint64_t bytes)
{
	inode_put(i, host, bytes, NULL, i->bytes - bytes);
	i->bytes = bytes;
}

void inode_put(struct inode *i, unsigned host, uint64_t offset, const uint8_t *buf, size_t len)
{
	if (offset + len > i->bytes) {
		inode_grow(i, offset + len);
		i->size_cached = (uint8_t)(1 + host);
	}
	if (buf)
		memcpy(i->now + offset, buf, len);
	else
		memset(i->now + offset, 0, len);
	for (uint64_t s = offset / SECTOR; s * SECTOR < offset + len; s++)
		i->cached[s] = (uint8_t)(1 + host);
	for (uint64_t x = offset / EXTENT; x * EXTENT < offset + len; x++)
		i->written[x] = 1;
}

void inode_sync(struct inode *i, struct world *w, unsigned percent)
{
	uint64_t sectors = inode_rounded(i->bytes, SECTOR) / SECTOR;

	for (uint64_t s = 0; s < sectors; s++) {
		if (!i->cached[s] || (percent < 100 && !world_chance(w, percent)))
			continue;
		memcpy(i->durable + s * SECTOR, i->now + s * SECTOR, SECTOR);
		i->cached[s] = 0;
	}
	if (percent == 100 || world_chance(w, percent)) {
		i->durable_bytes = i->bytes;
		i->size_cached = 0;
	}
}

void inode_through(struct inode *i, uint64_t offset, size_t len)
{
	for (uint64_t s = offset / SECTOR; s * SECTOR < offset + len; s++) {
		memcpy(i->durable + s * SECTOR, i->now + s * SECTOR, SECTOR);
		i->cached[s] = 0;
	}
}

/* To the size that is durable: what is beyond is zeroes, if the file grows again. */
static void cut(struct inode *i)
{
	uint64_t end = i->durable_bytes;

	if (end < i->bytes) {
		memset(i->now + end, 0, i->bytes - end);
		memset(i->durable + end, 0, i->bytes - end);
	}
	i->bytes = end;
}

void inode_lose(struct inode *i, struct world *w, unsigned host)
{
	uint64_t sectors = inode_rounded(i->bytes, SECTOR) / SECTOR;

	for (uint64_t s = 0; s < sectors; s++) {
		if (i->cached[s] != 1 + host)
			continue;
		/* Either it got there by itself or it did not. */
		if (world_chance(w, 50))
			memcpy(i->durable + s * SECTOR, i->now + s * SECTOR, SECTOR);
		else
			memcpy(i->now + s * SECTOR, i->durable + s * SECTOR, SECTOR);
		i->cached[s] = 0;
	}
	if (i->size_cached != 1 + host)
		return;
	if (world_chance(w, 50))
		cut(i);
	else
		i->durable_bytes = i->bytes;
	i->size_cached = 0;
}
