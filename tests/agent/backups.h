/* SPDX-License-Identifier: Apache-2.0 */
/* An operator who makes backups of a QEMU guest's disk "root": named bitmaps, and qemu-img over the
 * agent's export. */
#ifndef TESTS_AGENT_BACKUPS_H
#define TESTS_AGENT_BACKUPS_H

#include "tests/agent/harness.h"

#define DISK_BYTES (64u << 20)

/* The guest writes n blocks of 4 KiB of noise from block `first` on, and syncs them. */
void guest_writes(const struct host *h, unsigned first, unsigned n);

Ctl__Reply *ask_for(struct host *h, const char *command, const char *action, const char *name,
		    uint32_t granularity);
Ctl__Reply *bitmap(struct host *h, const char *action, const char *name, uint32_t granularity);
void bitmap_ok(struct host *h, const char *action, const char *name, uint32_t granularity);
void bitmap_refused(struct host *h, const char *action, const char *name, const char *why);
/* UINT64_MAX: there is none. */
uint64_t dirty_of(struct host *h, const char *name, bool *inconsistent);
void digest_of(struct host *h, const char *name, char out[65]);
void export_of(struct host *h, char out[300]);

void full_backup(struct host *h, const char *target);
/* What qemu-img finds dirty, copied over the backup. Returns how many bytes that were. */
uint64_t incremental_backup(struct host *h, const char *name, const char *target);

#endif
