/* SPDX-License-Identifier: Apache-2.0 */
/* A snapshot's file brought to a later moment of the same guest, in place: only pages that were
 * written since, and differ, are saved, into the file's journal first (update.h).
 *
 *     begin()    which pages may differ is found out (since.h)
 *     worker     compares them with the file while the guest runs, and saves those that differ;
 *                then those that were written meanwhile, until few are left: INCREMENT_MOMENT
 *     moment()   the guest stands still for its device state, and the last pages are copied
 *     worker     saves those, seals the journal, updates the file: INCREMENT_END
 *
 * Disks are what they are in the pause (disks.h): of blocks that were written since the older
 * snapshot, those that differ are saved while the guest runs again.
 *
 * RAM is watched and not frozen, so the guest never waits but in the pause. begin(), moment() and
 * end() belong to the VM's thread. */
#ifndef VMM_GLUE_SNAPSHOT_INCREMENT_H
#define VMM_GLUE_SNAPSHOT_INCREMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "ft/err.h"
#include "vmm-glue/snapshot/changes_file.h"
#include "vmm-glue/snapshot/disks.h"
#include "vmm-glue/snapshot/disks_old.h"
#include "vmm-glue/snapshot/since.h"
#include "vmm-glue/snapshot/snapshot.h"
#include "vmm-glue/snapshot/source.h"
#include "vmm-glue/vmm.h"

#define INCREMENT_PAUSE_PAGES 8192 /* copied in the pause at most: 32 MiB, some 10 ms */

/* In place of an update: the changes themselves are kept, as the next link of a history. */
struct increment_link {
	struct source *from;   /* what they are changes of; taken over on success */
	struct disks_old *old; /* likewise, of the disks */
	struct changes_head head;
	const char *path, *last; /* the link's file; that of the one before, "": none */
	/* It is on the disk. On the worker's thread. */
	int (*added)(void *ctx, struct ft_err *err);
};

struct increment_config {
	const char *path; /* is there: a snapshot of this guest's RAM, written by us */
	const struct increment_link *link; /* NULL: path is updated */
	const struct disks_config *disks;  /* the guest's: ids, images, taps or stores, since, and
					      verify; NULL: left out */
	uint64_t bytes_per_s; /* 0: no limit; what is copied in the pause counts, and does not wait
			       */
	bool verify;	      /* digest RAM in the pause, which it prolongs, and compare */
	bool is_image;	      /* of a VM that waits: the image in this process, which is written by
				 this process alone */
	void (*news)(void *ctx); /* look at increment_wants(). On the worker's thread */
	void *ctx;
};

struct increment;

/* *since: NULL or of an earlier increment; made anew unless it is of this RAM; the caller's to
 * free. -EBUSY: the file is in use. -EINVAL: it is of other RAM. 10 ms per GiB for a new *since. */
int increment_begin(const struct increment_config *config, struct vmm *vmm, struct since **since,
		    struct increment **out, struct ft_err *err);
/* What its owner is to call, soon: nothing yet, increment_moment(), or increment_end(), which will
 * not block then. Any thread. */
enum increment_wants { INCREMENT_NOTHING, INCREMENT_MOMENT, INCREMENT_END };
enum increment_wants increment_wants(struct increment *inc);
/* Before the moment: which checkpoint that will be. */
void increment_stamp(struct increment *inc, uint64_t generation, uint64_t epoch, uint64_t time_ms);
/* state: of the image as it is now; NULL of a running guest, which is paused for
 * it. An error ends the increment, and increment_end() has it. */
void increment_moment(struct increment *inc, struct vmm *vmm, const uint8_t *state, size_t len);
/* Any thread. */
void increment_progress(const struct increment *inc, struct snapshot_progress *p);
/* Gives up, soon, unless the file is being updated already. Any thread. */
void increment_cancel(struct increment *inc, const char *why);
/* Waits for the end, and frees. 0: the file is the new snapshot. */
int increment_end(struct increment *inc, struct snapshot_progress *p, struct ft_err *err);

#endif
