/* SPDX-License-Identifier: Apache-2.0 */
/* A mapped-ram file to restore from: parsed and checked whole before anything of it is used. Read
 * only, and by any number of readers at the same time; somebody who cuts it off meanwhile makes
 * reads fail. After open any thread may read. */
#ifndef VMM_GLUE_SNAPSHOT_SOURCE_H
#define VMM_GLUE_SNAPSHOT_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ft/err.h"
#include "ft/snapshot/mapped_ram.h"
#include "vmm-glue/vmm.h"

#define SOURCE_JOBS_MAX 16

struct layers;

struct source {
	int fd;
	char path[4096];
	struct mapped_ram layout;
	const struct mapped_ram_block *ram; /* the guest's RAM; the other blocks are ROMs */
	uint64_t *bitmap;		    /* of its pages */
	uint64_t disk_bytes;		    /* of a disk (disk_source.h); 0: of RAM */
	struct layers *layers;		    /* changes over them (layers.h); NULL: none */
};

/* -EBADMSG: not such a file. -ENOTSUP: it has memory besides RAM that the guest may write. -EBUSY:
 * it is being updated; as long as the source is open it will not be. An update that was interrupted
 * is completed first (update.h), which needs the right to write it. */
int source_open(const char *path, struct source *s, struct ft_err *err);
/* The same for a descriptor, which is duplicated; path is for messages. */
int source_open_fd(int fd, const char *path, struct source *s, struct ft_err *err);
void source_close(struct source *s);

static inline bool source_has(const struct source *s, uint64_t pfn)
{
	return s->bitmap[pfn / 64] >> (pfn % 64) & 1;
}

/* From page `pfn` on: how many pages are alike, in the file or not, at most n. */
size_t source_run(const struct source *s, uint64_t pfn, size_t n);
/* Reads n pages that are in the file. -errno. */
int source_read(const struct source *s, uint64_t pfn, size_t n, uint8_t *to);
/* The device state as vmm_resume() takes it; `state` has room for VMM_STATE_BYTES_MAX. */
int source_state(const struct source *s, const char *kind, uint8_t *state, size_t *len,
		 struct ft_err *err);
/* As vmm_ram_digest(). */
int source_digest(const struct source *s, uint64_t *digest, struct ft_err *err);
/* Makes the RAM of a VM that waits all zeroes, without room: what its firmware left there goes. */
int source_empty(const struct vmm_ram *ram, struct ft_err *err);
/* All pages of RAM into an image that is empty, by so many threads. */
int source_restore(const struct source *s, uint8_t *image, unsigned jobs, struct ft_err *err);

#endif
