// SPDX-License-Identifier: Apache-2.0
#include "ft/spool.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

int ft_spool_init(struct ft_spool *s, size_t ram_max, const struct ft_overflow_ops *overflow,
		  void *overflow_ctx)
{
	assert(ram_max > 0);
	memset(s, 0, sizeof *s);
	s->ram = mmap(NULL, ram_max, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (s->ram == MAP_FAILED) {
		s->ram = NULL;
		return -ENOMEM;
	}
	s->ram_max = ram_max;
	s->overflow = overflow;
	s->overflow_ctx = overflow_ctx;
	return 0;
}

void ft_spool_free(struct ft_spool *s)
{
	if (s->ram)
		munmap(s->ram, s->ram_max);
	memset(s, 0, sizeof *s);
}

void ft_spool_reset(struct ft_spool *s)
{
	if (s->len > s->ram_max && s->overflow)
		s->overflow->reset(s->overflow_ctx);
	s->len = 0;
}

int ft_spool_append(struct ft_spool *s, const uint8_t *data, size_t len)
{
	size_t in_ram = s->len < s->ram_max ? s->ram_max - (size_t)s->len : 0;
	int rc = 0;

	if (!len)
		return 0; /* an empty frame has no data to point to */
	if (in_ram > len)
		in_ram = len;
	memcpy(s->ram + (in_ram ? s->len : 0), data, in_ram);
	if (len > in_ram) {
		uint64_t at = s->len + in_ram - s->ram_max;

		rc = s->overflow
			     ? s->overflow->write(s->overflow_ctx, at, data + in_ram, len - in_ram)
			     : -ENOSPC;
	}
	if (!rc)
		s->len += len;
	return rc;
}

long ft_spool_window(const struct ft_spool *s, uint64_t at, size_t want, uint8_t *scratch,
		     size_t scratch_max, const uint8_t **window)
{
	uint64_t left = at < s->len ? s->len - at : 0;
	size_t ram_left = at < s->ram_max ? s->ram_max - (size_t)at : 0, n;
	int rc;

	assert(want <= scratch_max);
	if (ram_left > left)
		ram_left = (size_t)left;
	if (!left)
		return 0;
	if (ram_left >= want || ram_left == left) {
		*window = s->ram + at;
		return (long)ram_left;
	}
	/* Across the seam, or wholly beyond it. */
	n = left < scratch_max ? (size_t)left : scratch_max;
	memcpy(scratch, s->ram + (ram_left ? at : 0), ram_left);
	rc = s->overflow->read(s->overflow_ctx, at + ram_left - s->ram_max, scratch + ram_left,
			       n - ram_left);
	if (rc)
		return rc;
	*window = scratch;
	return (long)n;
}
