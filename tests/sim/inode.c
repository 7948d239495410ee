// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/inode.h"

#include <stdlib.h>
#include <string.h>

#include "tests/sim/world.h"

static uint64_t inodes;

struct inode *inode_new(void)
{
	struct inode *i = calloc(1, sizeof *i);

	if (!i)
		abort();
	i->number = ++inodes;
	return i;
}

static void inode_free(struct inode *i)
{
	free(i->now);
	free(i->durable);
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

void inode_grow(struct inode *i, uint64_t bytes)
{
	uint64_t old = inode_rounded(i->bytes, EXTENT), new = inode_rounded(bytes, EXTENT);

	i->bytes = bytes;
	if (new <= old)
		return;
	i->now = realloc(i->now, new);
	i->durable = realloc(i->durable, new);
	i->cached = realloc(i->cached, new / SECTOR);
	i->written = realloc(i->written, new / EXTENT);
	if (!i->now || !i->durable || !i->cached || !i->written)
		abort();
	memset(i->now + old, 0, new - old);
	memset(i->durable + old, 0, new - old);
	memset(i->cached + old / SECTOR, 0, (new - old) / SECTOR);
	memset(i->written + old / EXTENT, 0, (new - old) / EXTENT);
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
		i->bytes = i->durable_bytes;
	else
		i->durable_bytes = i->bytes;
	i->size_cached = 0;
}
