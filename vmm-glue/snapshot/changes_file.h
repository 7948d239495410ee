/* SPDX-License-Identifier: Apache-2.0 */
/* A file of changes (ft/snapshot/changes.h) that is being written, and one to read from. The head
 * comes last, after all the rest is on the disk: a writer that dies leaves nothing that counts. */
#ifndef VMM_GLUE_SNAPSHOT_CHANGES_FILE_H
#define VMM_GLUE_SNAPSHOT_CHANGES_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ft/err.h"
#include "ft/snapshot/changes.h"

#define CHANGES_PATH_MAX  4096
#define CHANGES_RUN_PAGES 32 /* read at a time, onto a stack */

/* ---- writing; one thread at a time ---- */

struct changes_out {
	char path[CHANGES_PATH_MAX];
	int fd;
	struct changes_head head; /* all but sum and state_bytes is true at any time */
	uint32_t *slots; /* of each page: 0: none, SLOT_ZERO, else its place in the file + 1 */
	uint64_t pages, *pfns, *hashes, room; /* by place; `room` of them are there */
};

/* Takes over what a dead writer left. head: the snapshot's frame, and what a link is. -EBUSY:
 * somebody writes it just now. */
int changes_create(struct changes_out *c, const char *path, const struct changes_head *head,
		   struct ft_err *err);
bool changes_has(const struct changes_out *c, uint64_t pfn);
/* n pages' content from now on; put again, it replaces the former. -errno. */
int changes_put(struct changes_out *c, uint64_t pfn, size_t n, const uint8_t *pages);
/* The content that was put. 1: it is in `page`; 0: zeroes. -errno. */
int changes_get(const struct changes_out *c, uint64_t pfn, uint8_t *page);
/* All of it counts, and is on the disk, when this returns 0. */
int changes_seal(struct changes_out *c, const uint8_t *state, size_t len, struct ft_err *err);
/* Closes; unless `keep`, nothing is left. Idempotent. */
void changes_close(struct changes_out *c, bool keep);

/* ---- reading; after open any thread ---- */

struct changes {
	char path[CHANGES_PATH_MAX];
	int fd;
	struct changes_head head;
	uint8_t *index; /* and the state behind it */
};

/* -EBADMSG: it is not whole. -ENOENT. */
int changes_open(const char *path, struct changes *c, struct ft_err *err);
static inline const uint8_t *changes_state(const struct changes *c)
{
	return c->index + changes_index_bytes(&c->head);
}
/* Pages i to i + n - 1 of the index. -EBADMSG: damaged. */
int changes_read(const struct changes *c, uint64_t i, size_t n, uint8_t *pages);
/* From page i of the index on: how many are neighbours in RAM, at most `max`. */
size_t changes_run(const struct changes *c, uint64_t i, size_t max);
/* Every page is as it was put. */
int changes_verify(const struct changes *c, struct ft_err *err);
void changes_end(struct changes *c);

#endif
