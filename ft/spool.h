/* SPDX-License-Identifier: Apache-2.0 */
/* An append-only run of bytes with bounded memory: the first ram_max bytes are in RAM, what is
 * beyond goes to an overflow store (an unlinked temporary file in production), so that a checkpoint
 * of any size can be staged whole. Read back once, from start to end. */
#ifndef FT_SPOOL_H
#define FT_SPOOL_H

#include <stddef.h>
#include <stdint.h>

#include "ft/err.h"

struct ft_overflow_ops {
	/* Positions count from the start of the overflow. 0 or -errno (disk full, ...). */
	int (*write)(void *ctx, uint64_t at, const uint8_t *data, size_t len);
	int (*read)(void *ctx, uint64_t at, uint8_t *out, size_t len);
	/* What was written is of no more use. */
	void (*reset)(void *ctx);
};

struct ft_spool {
	uint8_t *ram; /* mapped lazily: costs what was ever used */
	size_t ram_max;
	uint64_t len;				/* bytes appended */
	const struct ft_overflow_ops *overflow; /* NULL: -ENOSPC beyond ram_max */
	void *overflow_ctx;
};

int ft_spool_init(struct ft_spool *s, size_t ram_max, const struct ft_overflow_ops *overflow,
		  void *overflow_ctx);
void ft_spool_free(struct ft_spool *s);
void ft_spool_reset(struct ft_spool *s);
int ft_spool_append(struct ft_spool *s, const uint8_t *data, size_t len);

/* Reading: hands out windows of the bytes, in order. A window holds at least `want` bytes from `at`
 * on unless the spool ends before; want
 * <= scratch_max. Bytes that lie in RAM are given in place, others through scratch. Returns the
 * window's length, 0 at the end, -errno. */
long ft_spool_window(const struct ft_spool *s, uint64_t at, size_t want, uint8_t *scratch,
		     size_t scratch_max, const uint8_t **window);

#endif
