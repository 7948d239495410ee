/* SPDX-License-Identifier: Apache-2.0 */
/* Which blocks of a guest's disks may differ from what a snapshot has of them: those that were
 * written since its moment. Marks at each disk's tap, or store (eventtap/block/marks.h), and a set
 * of blocks for each of a few files (since_files.h). They last as long as the tap or store: after
 * it nothing is known.
 *
 * One thread at a time. */
#ifndef VMM_GLUE_SNAPSHOT_DISKS_SINCE_H
#define VMM_GLUE_SNAPSHOT_DISKS_SINCE_H

#include <stdbool.h>

#include "eventtap/store.h"
#include "eventtap/tap.h"
#include "ft/bitmap.h"
#include "ft/err.h"

struct disks_since;

/* NULL: out of memory. */
struct disks_since *disks_since_new(void);
/* What is written to disk i, of so many bytes, is marked from now on, if it is not already; one of
 * the two has it. -ENOMEM */
int disks_since_watch(struct disks_since *s, unsigned i, uint64_t bytes, struct tap *tap,
		      struct store *store, struct ft_err *err);
/* No write is on its way. *blocks becomes what may differ from what the file has; false: that is
 * everything, for nobody knows. */
bool disks_since_moment(struct disks_since *s, unsigned i, const char *path,
			struct ft_bitmap *blocks);
/* The file, as it is there now, has disk i as it was at the last moment. */
void disks_since_saved(struct disks_since *s, unsigned i, const char *path);
/* Accepts NULL. */
void disks_since_free(struct disks_since *s);

#endif
