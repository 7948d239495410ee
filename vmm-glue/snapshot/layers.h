/* SPDX-License-Identifier: Apache-2.0 */
/* Changes that lie over a snapshot's pages: a source that was opened from a file reads as if they
 * had been put into it. */
#ifndef VMM_GLUE_SNAPSHOT_LAYERS_H
#define VMM_GLUE_SNAPSHOT_LAYERS_H

#include "vmm-glue/snapshot/changes_file.h"
#include "vmm-glue/snapshot/source.h"

/* On top of those that are there. *c is taken over, on error too. -EBADMSG: of another snapshot.
 * Before any thread reads. */
int layers_add(struct source *s, struct changes *c, struct ft_err *err);
/* source_read() of pages that are in the file or in a layer. And of those in the file (source.c).
 */
int source_read_file(const struct source *s, uint64_t pfn, size_t n, uint8_t *to);
int layers_read(const struct source *s, uint64_t pfn, size_t n, uint8_t *to);
/* Those of another source of the same frame, in their order. */
int layers_copy(struct source *s, const struct source *from, struct ft_err *err);
/* Of the file of layer i, from below; NULL: there are not so many. */
const char *layers_path(const struct source *s, unsigned i);
/* What the newest one has behind its device state: JSON (companions.h). */
const uint8_t *layers_description(const struct source *s, size_t *len);
/* The newest device state, as it stands in the file, without the description. */
const uint8_t *layers_state(const struct source *s, size_t *len);
/* source_close()'s. */
void layers_free(struct layers *l);

#endif
