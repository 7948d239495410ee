/* SPDX-License-Identifier: Apache-2.0 */
/* A running guest's RAM and device state into a mapped-ram file (ft/snapshot/mapped_ram.h), as they
 * were at one moment; the guest stands still for its device state only (frozen.h). Its disks of the
 * same moment go beside it (disks.h).
 *
 *      guest --- writes a page ---> fault thread: copies it to the pool, lets the guest go on
 *                                        |
 *      RAM --- in the file's order --> worker 1 ... N: pages of the pool first --> file
 *
 * Each page is saved once, by whoever claims it first (ft/snapshot/claims.h). When the pool is full
 * the guest waits for the disk, but never longer than SNAPSHOT_STALL_MAX_MS: then the snapshot is
 * given up. So it is after any error, and after a cancel: the guest is let go first, then the file
 * is removed.
 *
 * begin() and end() belong to the VM's thread; the VM may end in between. */
#ifndef VMM_GLUE_SNAPSHOT_SNAPSHOT_H
#define VMM_GLUE_SNAPSHOT_SNAPSHOT_H

#include <stdbool.h>
#include <stdint.h>

#include "ft/err.h"
#include "vmm-glue/keeper.h"
#include "vmm-glue/snapshot/disks.h"
#include "vmm-glue/vmm.h"

#define SNAPSHOT_JOBS_MAX     16
#define SNAPSHOT_POOL_PAGES   8192 /* 32 MiB: the writes of 0.4 s at 20,000 pages a second */
#define SNAPSHOT_STALL_MAX_MS 1000

struct snapshot_config {
	const char *path;
	bool direct;	      /* past the page cache */
	unsigned jobs;	      /* 1 to SNAPSHOT_JOBS_MAX */
	uint64_t bytes_per_s; /* of pages written in the file's order; those of the pool count, but
				 do not wait. 0: no limit */
	bool verify;	      /* digest RAM in the pause, which it prolongs, and compare the file */
	unsigned pool_pages;  /* 0: SNAPSHOT_POOL_PAGES */
	unsigned stall_max_ms;	 /* 0: SNAPSHOT_STALL_MAX_MS */
	struct disks *disks;	 /* the guest's, opened; begin() takes them over, also when it
				    fails. NULL: left out */
	struct keeper *keeper;	 /* told that we live, for the guest may wait for us; may be NULL */
	void (*done)(void *ctx); /* once, on a thread of the snapshot's: end() will not block */
	void *ctx;
};

struct snapshot_progress {
	uint64_t pages, pages_done;
	uint64_t pages_written; /* the others are zeroes */
	uint64_t faults;	/* pages that the guest wrote before they were saved */
	uint64_t fault_us_max;	/* longest time that we took for one */
	uint64_t pause_us;
	uint64_t digest; /* verify: of RAM in the pause */
	struct disks_progress disks;
};

struct snapshot;

/* How many workers leave the guest the processors that it has, where there are others: 1 to 4. */
unsigned snapshot_jobs(unsigned guest_cpus);
/* The guest has been paused and runs again when this returns. 10 to 40 ms per GiB. */
int snapshot_begin(const struct snapshot_config *config, struct vmm *vmm, struct snapshot **out,
		   struct ft_err *err);
/* The same of a VM that waits, whose image nobody but this process writes: the image as it is now,
 * with this state. Who writes it meanwhile is served as a guest is. The VM may not be resumed
 * before snapshot_cancel(). */
int snapshot_begin_image(const struct snapshot_config *config, struct vmm *vmm,
			 const uint8_t *state, size_t len, struct snapshot **out,
			 struct ft_err *err);
/* Any thread. */
void snapshot_progress(const struct snapshot *s, struct snapshot_progress *p);
/* Gives up, soon. Any thread. */
void snapshot_cancel(struct snapshot *s, const char *why);
/* Waits for the end, and frees. 0: the file is there. */
int snapshot_end(struct snapshot *s, struct snapshot_progress *p, struct ft_err *err);

#endif
