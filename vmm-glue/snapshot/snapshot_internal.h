/* SPDX-License-Identifier: Apache-2.0 */
/* What snapshot.c and snapshot_pages.c share. */
#ifndef VMM_GLUE_SNAPSHOT_SNAPSHOT_INTERNAL_H
#define VMM_GLUE_SNAPSHOT_SNAPSHOT_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "ft/snapshot/claims.h"
#include "ft/snapshot/mapped_ram.h"
#include "vmm-glue/snapshot/frozen.h"
#include "vmm-glue/snapshot/out_file.h"
#include "vmm-glue/snapshot/pace.h"
#include "vmm-glue/snapshot/pool.h"
#include "vmm-glue/snapshot/snapshot.h"

#define SNAPSHOT_NEAR_PAGES 8 /* copied in less time than another fault takes */

struct snapshot {
	/* set at begin */
	struct snapshot_config config;
	struct mapped_ram layout;
	const struct mapped_ram_block *block;
	struct out_file file;
	struct frozen *frozen;
	struct claims claims;
	_Atomic uint64_t *bitmap; /* pages that are in the file */
	uint8_t *tail;		  /* device state as it stands in the file */
	size_t tail_len;
	uint64_t pause_ns, digest;
	struct pace pace;
	uint8_t *near; /* the fault thread's: SNAPSHOT_NEAR_PAGES */
	pthread_t thread;
	/* counts */
	_Atomic uint64_t done, written;
	atomic_bool failed; /* err is set: everybody stops */
	/* under lock */
	pthread_mutex_t lock;
	pthread_cond_t change; /* work, a spare page, the end */
	pthread_cond_t ended;  /* all is done, or failed */
	struct pool pool;
	struct ft_err err;
	bool committing;
};

/* snapshot.c: the first error is the snapshot's, and everybody stops. Any thread. */
void snapshot_fail(struct snapshot *s, const struct ft_err *err);

/* snapshot_pages.c: frozen_ops.fault, and a worker's thread. ctx: the snapshot. */
void snapshot_on_fault(void *ctx, uint64_t pfn);
void *snapshot_worker(void *ctx);

#endif
