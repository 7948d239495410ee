/* SPDX-License-Identifier: Apache-2.0 */
/* A file's bytes: as readers see them, and as they would be read if all power went now. In between
 * is a page cache, which knows whose host has each sector. */
#ifndef TESTS_SIM_INODE_H
#define TESTS_SIM_INODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXTENT 4096 /* a filesystem's block: what is never written is a hole */

struct world;

struct inode {
	uint64_t number;
	unsigned refs; /* names, now and durable, and open files */
	uint64_t bytes, durable_bytes, room;
	uint8_t *now, *durable;
	/* Per sector: 0 = durable, else 1 + the host whose page cache has it. */
	uint8_t *cached;
	uint8_t *written;    /* per extent */
	uint8_t size_cached; /* likewise */
};

struct inode *inode_new(void);
/* References: both accept NULL; the last one frees it. */
struct inode *inode_hold(struct inode *i);
void inode_drop(struct inode *i);
/* *slot lets go what it had and holds i. */
void inode_set(struct inode **slot, struct inode *i);
uint64_t inode_rounded(uint64_t bytes, uint64_t unit);
/* With zeroes, in now and durable alike. */
void inode_grow(struct inode *i, uint64_t bytes);
/* What was beyond is zeroes, if the file grows again. */
void inode_shrink(struct inode *i, unsigned host, uint64_t bytes);
/* buf NULL: zeroes. Into the page cache of that host. */
void inode_put(struct inode *i, unsigned host, uint64_t offset, const uint8_t *buf, size_t len);
/* Makes so much of it durable, sector by sector; 100: all. */
void inode_sync(struct inode *i, struct world *w, unsigned percent);
/* Makes this range durable. */
void inode_through(struct inode *i, uint64_t offset, size_t len);
/* That host loses its power: each sector of its page cache either got there by itself or is lost.
 */
void inode_lose(struct inode *i, struct world *w, unsigned host);

#endif
