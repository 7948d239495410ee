/* SPDX-License-Identifier: Apache-2.0 */
/* The guest's disks on one host: production's disk tap where it runs, production's store where it
 * may run next, both over the files of this world (files.h). What the agent does around them
 * (tools/agent/env.c, taps.c, guest.c) is done here in the same order. */
#ifndef TESTS_SIM_DISK_H
#define TESTS_SIM_DISK_H

#include <stdbool.h>
#include <stdint.h>

#include "eventtap/block/nbd_server.h"
#include "eventtap/store.h"
#include "eventtap/tap.h"
#include "ft/engine.h"

#define SIM_DISKS	2  /* at most */
#define SIM_BLOCKS	32 /* of each disk, SECTOR bytes each, that the guest uses */
#define SIM_DISK_BYTES	(256u << 10)
#define DISK_GUEST_UUID "8a7b0000-0000-4000-8000-000000000001"

struct node;

/* One disk of a host: what its VM writes to, be it the tap or the image itself, and the standby's
 * store. */
struct disk {
	char path[64], nbd[64];
	bool shared;
	int image_fd; /* the VM's own, -1 while it goes through the tap or there is none */
	struct nbd_export export; /* ops NULL: no tap */
	struct tap *tap;
	struct store *store;
};

/* ---- disk.c ---- */
/* Where the guest's block lies. */
uint64_t disk_offset(unsigned block);
void disks_init(struct node *n);
/* The guest's I/O; -EAGAIN: its write has to wait. */
int disk_write(struct node *n, unsigned disk, unsigned block, enum tap_kind kind,
	       const uint8_t *data);
int disk_read(struct node *n, unsigned disk, unsigned block, uint8_t *out);
int disk_flush_all(struct node *n, unsigned disk);
/* The VM opens and locks its images, or lets them go. */
int disks_vm_open(struct node *n, struct ft_err *err);
void disks_vm_close(struct node *n);
/* The processes are gone. */
void disks_process_gone(struct node *n);

/* ---- disk_taps.c ---- */
int disks_taps_in(struct node *n, struct ft_err *err);
int disks_taps_out(struct node *n, struct ft_err *err);
void disks_taps_gone(struct node *n);
/* This one stays when the guest is solo. */
bool disk_keeps_tap(const struct node *n, const struct disk *d);
/* Those that stay when the guest is solo are put in the chain again, the others end. */
void disks_taps_part(struct node *n);
/* Before the guest runs here: those that stay go in. */
void disks_taps_solo(struct node *n);
int disks_mark(struct node *n, bool is_protected, struct ft_err *err);
extern const struct ft_env_ops disk_taps_env; /* those of the environment that are about taps */

/* ---- disk_stores.c ---- */
int disks_stores_open(struct node *n, const Ft__Setup *setup, struct ft_err *err);
void disks_stores_free(struct node *n);
/* Their process is gone, and its journal is left as it is. */
void disks_stores_gone(struct node *n);
/* As an agent that starts: a journal is replayed. */
int disks_recover(struct node *n, struct ft_err *err);
/* The journal's thread has told something. */
void disks_journal_news(struct node *n);
extern const struct ft_env_ops disk_stores_env; /* ... about stores */

/* ---- disk_metadata.c ---- */
int disks_startable(struct node *n, enum store_right right, struct ft_err *err);
/* All are whole copies of that generation. */
bool disks_whole(struct node *n, uint64_t generation);
uint64_t disks_generation(struct node *n);
/* A shared disk says that it is neither one thing nor the other. */
bool disks_torn(struct node *n);
/* What a careful operator does to the copy that is surely the newest, and to one that is not. */
void disks_forget(struct node *n, bool image_too);

/* ---- disk_bitmaps.c ---- */
/* Where the chain's bitmap is gone, or of no use, a new chain begins. */
void disk_bitmaps_begin(struct node *n, unsigned disk);
/* Blocks that its bitmap says are dirty, at the standby as of the last epoch. False: it has none.
 */
bool disk_dirty(struct node *n, unsigned disk, uint32_t *dirty);
/* The bitmap that is off is off, and clear. */
bool disk_still(struct node *n, unsigned disk);

#endif
