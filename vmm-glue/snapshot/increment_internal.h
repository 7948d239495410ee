/* SPDX-License-Identifier: Apache-2.0 */
/* An increment's inside: increment.c has the VM's thread, increment_work.c the worker's. */
#ifndef VMM_GLUE_SNAPSHOT_INCREMENT_INTERNAL_H
#define VMM_GLUE_SNAPSHOT_INCREMENT_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "vmm-glue/snapshot/differing.h"
#include "vmm-glue/snapshot/increment.h"

#define INCREMENT_RUN_PAGES DIFFERING_PAGES_MAX /* read, compared and written at a time */

struct increment {
	/* set at begin */
	struct increment_config config;
	char path[CHANGES_PATH_MAX]; /* what is known to since.h */
	bool is_link;
	int (*added)(void *ctx, struct ft_err *err);
	struct vmm_ram ram;
	struct since *since;
	int fd; /* of the file, locked; -1: a link is written */
	struct source source;
	struct changes_out journal;
	struct disks_old old;
	struct disks *disks; /* NULL: none */
	struct pace pace;    /* of the disks */
	pthread_t thread;
	/* the worker's, and between ready() and the moment's end the VM's thread's */
	struct ft_bitmap pending;
	uint8_t *staging, *buffer; /* buffer: what the file has */
	uint64_t *staged;	   /* numbers of the pages in staging, ascending */
	uint8_t *tail;
	size_t tail_len;
	uint64_t pause_ns, digest, next_write_ns;
	/* counts */
	_Atomic uint64_t left, written;
	/* under lock */
	pthread_mutex_t lock;
	pthread_cond_t change;
	enum increment_wants wants;
	bool applying; /* too late to give up */
	atomic_bool failed;
	struct ft_err err;
};

/* The first error is the increment's. The second one with the lock. */
void increment_give_up(struct increment *inc, const struct ft_err *err);
void increment_give_up_locked(struct increment *inc, const struct ft_err *err);
/* The worker; with all signals blocked. */
void *increment_work(void *ctx);

#endif
