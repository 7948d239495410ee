/* SPDX-License-Identifier: Apache-2.0 */
/* Checkpoints of a guest's past in a folder, each whole, of the size of what changed:
 *
 *     base                 a mapped-ram file: memory at the oldest one; it names the disks
 *     base.disk0 ...       each disk's image at the oldest one
 *     base.point           which one that is; absent: none, it is all zeroes
 *     SEQUENCE.changes     from the one before (ft/snapshot/changes.h); in a row without gaps
 *     SEQUENCE.changes.disk0 ...   of each disk, sealed before those of memory
 *     base.journal         the oldest of those of memory, while it and its disks' are put into
 *                          base (update.h)
 *     lock                 flock(): shared by readers, exclusive by the one who adds
 *
 * Checkpoint n is base and the changes up to n. What a writer that died left behind does not count
 * and is removed by the next one. */
#ifndef VMM_GLUE_SNAPSHOT_HISTORY_H
#define VMM_GLUE_SNAPSHOT_HISTORY_H

#include <stdbool.h>
#include <stdint.h>

#include "ft/err.h"
#include "vmm-glue/snapshot/changes_file.h"
#include "vmm-glue/snapshot/companions.h"
#include "vmm-glue/snapshot/disks_old.h"
#include "vmm-glue/snapshot/source.h"
#include "vmm-glue/vmm.h"

#define HISTORY_MAX 256 /* checkpoints */

struct history_point {
	uint64_t sequence, generation, epoch;
	uint64_t time_ms; /* since 1970, UTC */
	uint64_t bytes;	  /* of disk that it takes, its disks included */
};

struct history;

/* -EBUSY: the lock. -ENOENT: no folder; a writer makes it. One thread at a time. */
int history_open(const char *dir, bool write, struct history **out, struct ft_err *err);
/* Oldest first. */
unsigned history_points(const struct history *h, struct history_point points[HISTORY_MAX]);
/* Memory and device state of checkpoint i of those; companions_open() has its disks. The source has
 * descriptors of its own, and may outlive the history; writers wait for its end. */
int history_source(const struct history *h, unsigned i, struct source *out, struct ft_err *err);
/* Accepts NULL. */
void history_close(struct history *h);

/* ---- a writer's ---- */

/* The folder is for this RAM and these disks, of which id and bytes count (NULL: none): one of
 * others is emptied. kind: of the VMM. */
int history_prepare(struct history *h, const struct vmm_ram *ram, const struct companions *disks,
		    const char *kind, struct ft_err *err);
/* What the next one is added to, and its file and head; *last: the file of the newest, "": none.
 * Both to be closed. */
int history_next(const struct history *h, struct source *from, struct disks_old *old,
		 struct changes_head *head, char path[CHANGES_PATH_MAX],
		 char last[CHANGES_PATH_MAX], struct ft_err *err);
/* It was written. Then the oldest go until there are at most `keep`, of at most `bytes` (0: any),
 * but never the newest. */
int history_added(struct history *h, unsigned keep, uint64_t bytes, struct ft_err *err);

#endif
