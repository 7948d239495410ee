/* SPDX-License-Identifier: Apache-2.0 */
/* The disks of a snapshot: raw images beside the file of its memory, of the same moment.
 *
 *      PATH                     memory and devices; its description names the others
 *      PATH.DISK.NUMBER.raw     one for each disk, sparse; NUMBER is the snapshot's, 16 digits
 *
 * So a set is never mixed, and it appears as one: the images get their names first, then the memory
 * does, which is what everybody begins with; then the images of the set before are removed. A
 * writer that dies leaves the old set or the new one, and perhaps images that nobody refers to: the
 * next one to that PATH removes them.
 *
 * Where an older snapshot is brought to a later moment (increment.h), only what differs is written,
 * into a file of changes for each disk, and only what was written since is looked at.
 *
 * One thread for each disk writes (eventtap/block/cow.h), under the snapshot's pace. An error of
 * one ends the whole snapshot, and the other way round.
 *
 * Called by snapshot.c, but for open and close: the owner's, on the VM's thread; and by
 * increment.c. */
#ifndef VMM_GLUE_SNAPSHOT_DISKS_H
#define VMM_GLUE_SNAPSHOT_DISKS_H

#include <stdbool.h>
#include <stdint.h>

#include "eventtap/store.h"
#include "eventtap/tap.h"
#include "ft/err.h"
#include "vmm-glue/snapshot/disk_target.h"
#include "vmm-glue/snapshot/disks_since.h"
#include "vmm-glue/snapshot/pace.h"
#include "vmm-glue/vmm.h"

/* verify: what is digested in the guest's pause may take no more room than that on its disk. */
#define DISKS_VERIFY_MAX (512ull << 20)

struct disks_config {
	const char *path; /* of the memory's file; not used for changes */
	bool direct, verify;
	uint32_t id;		   /* of the changes of RAM */
	struct disks_since *since; /* what is written from the moment on is known; NULL: nobody
				      asks */
	unsigned stall_max_ms, n;
	struct {
		const char *id, *image;
		uint64_t bytes;
		struct tap *tap;	    /* where the guest runs ... */
		struct store *store;	    /* ... or at its standby */
		const struct disk_old *old; /* what differs from it is written, and `since` is
					       there. NULL: all of it. The caller's until close */
	} disks[VMM_DISKS_MAX];
};

struct disks_progress {
	unsigned n;
	uint64_t bytes, bytes_done, bytes_written;
	uint64_t copied;  /* blocks that the guest wrote before they were saved */
	unsigned unknown; /* disks of which nobody knew what was written since: all was compared */
};

struct disks;

/* Files are made under temporary names; the guest is not touched. -EFBIG: too much to verify. */
int disks_open(const struct disks_config *config, struct disks **out, struct ft_err *err);
/* Gives up what has not ended, and lets taps and stores go. Accepts NULL. */
void disks_close(struct disks *d);
/* What the memory's file has to say of the images (companions.h). Valid until close. */
const char *disks_description(const struct disks *d);
/* Any thread. */
void disks_progress(struct disks *d, struct disks_progress *p);

/* The guest is paused: they are what they are now. */
int disks_moment(struct disks *d, struct ft_err *err);
/* Begins to write. failed: at most once, on a thread of ours. */
int disks_start(struct disks *d, struct pace *pace,
		void (*failed)(void *ctx, const struct ft_err *err), void *ctx, struct ft_err *err);
/* Any thread. */
void disks_cancel(struct disks *d, const struct ft_err *why);
/* Waits until all is written, and makes it durable, under its names. */
int disks_finish(struct disks *d, struct ft_err *err);
/* The memory's file has its name: the set before goes. Or: the changes are where they belong. */
void disks_settle(struct disks *d);
/* What was finished is needed still: changes stay when this is closed. */
void disks_keep(struct disks *d);

#endif
