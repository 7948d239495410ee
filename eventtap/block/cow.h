/* SPDX-License-Identifier: Apache-2.0 */
/* Copy before write: a disk image as it was at one moment, read while it is written on. Who changes
 * the image tells it before (the tap for a guest that runs here, the store for a standby's disk),
 * and what was not saved yet is copied aside first:
 *
 *      guest --- writes ---> cow_before_change(): old content to the pool --> image
 *                                                        |
 *      image --- in its order, holes skipped --> cow_step(): the pool first --> ops.write
 *
 * Each block is saved once, by whoever comes first. Who changes the image never waits for a write
 * of the copy unless the pool is full, and then for at most stall_max_ms for each pool-full of
 * what he changes: after that the copy is given up (-ETIMEDOUT). So it is after an error, and after
 * a cancel: cow_before_change() returns at once from then on. It has no error of its own: a copy
 * that fails costs the guest nothing.
 *
 * Changes of the same bytes do not come at the same time, and none is under way when cow_new() is
 * called (the guest is paused). References: whoever may still call holds one. */
#ifndef EVENTTAP_BLOCK_COW_H
#define EVENTTAP_BLOCK_COW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ft/bitmap.h"
#include "ft/err.h"

#define COW_BLOCK_BYTES (64u << 10) /* what is copied at a time */
#define COW_PAGE_BYTES	4096u	    /* what is looked at for zeroes, and the alignment of writes */
#define COW_POOL_BLOCKS 256	    /* 16 MiB: the writes of 0.1 s of a fast disk */

struct cow;

struct cow_config {
	const char *image;     /* opened anew, so that who has it open now may close it */
	unsigned pool_blocks;  /* 0: COW_POOL_BLOCKS */
	unsigned stall_max_ms; /* > 0 */
	/* A piece of the disk as it was, not all zeroes: whole pages, at a page's address, but at
	 * the disk's end. 0, or -errno, which ends the copy. On the thread that calls cow_step().
	 */
	int (*write)(void *ctx, uint64_t offset, const uint8_t *data, size_t len);
	/* The same of what is all zeroes, be it a hole or not: of any length. NULL: nobody cares */
	int (*zeroes)(void *ctx, uint64_t offset, uint64_t len);
	void *ctx;
};

struct cow_progress {
	uint64_t bytes, bytes_done; /* of the disk; what is a hole is done too */
	uint64_t bytes_written;
	uint64_t copied; /* blocks that were about to be changed before they were saved */
};

/* From now on the image is what it is now. One reference is the caller's. */
int cow_new(const struct cow_config *config, struct cow **out, struct ft_err *err);
/* Nothing but these blocks, of COW_BLOCK_BYTES each, is wanted; the others count as done. Before
 * any step, and before anything changes. */
void cow_only(struct cow *c, const struct ft_bitmap *blocks);
struct cow *cow_ref(struct cow *c);
/* The last one frees. Accepts NULL. */
void cow_unref(struct cow *c);

/* The range is about to change. Any thread. */
void cow_before_change(struct cow *c, uint64_t offset, uint64_t len);

enum cow_step {
	COW_DONE,  /* all is written, or it was given up */
	COW_SAVED, /* something was done, and *paid bytes written */
	COW_WAIT   /* nothing to do now; cow_wait() */
};
/* may_scan: not only what the pool has. One thread at a time. */
enum cow_step cow_step(struct cow *c, bool may_scan, uint64_t *paid);
/* Until the pool has something, or all is over, at most so long. */
void cow_wait(struct cow *c, unsigned ms);

/* Given up; the first reason counts. Any thread. */
void cow_cancel(struct cow *c, const struct ft_err *why);
/* 0: not given up, else -errno and why. */
int cow_error(struct cow *c, struct ft_err *err);
void cow_progress(struct cow *c, struct cow_progress *p);
/* XXH3-64 over the whole image, as it is now; of use while nobody writes it. */
int cow_digest(const struct cow *c, uint64_t *digest, struct ft_err *err);

#endif
