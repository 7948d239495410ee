/* SPDX-License-Identifier: Apache-2.0 */
/* Where the content of a snapshot's disk goes: into an image of its own, or, of a disk of which an
 * older snapshot is there, what differs from that into a file of changes. One thread at a time. */
#ifndef VMM_GLUE_SNAPSHOT_DISK_TARGET_H
#define VMM_GLUE_SNAPSHOT_DISK_TARGET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ft/err.h"
#include "vmm-glue/snapshot/differing.h"
#include "vmm-glue/snapshot/out_file.h"
#include "vmm-glue/snapshot/source.h"
#include "vmm-glue/vmm.h"

/* A disk as it was in an older snapshot. */
struct disk_old {
	char id[VMM_NAME_MAX];
	struct source *source;		 /* disk_source.h */
	char known_as[CHANGES_PATH_MAX]; /* the file that has it (disks_since.h) */
	char changes[CHANGES_PATH_MAX]; /* what is new is written there, and once that counts ... */
	char saved_as[CHANGES_PATH_MAX]; /* ... the file that has it is this one */
};

struct disk_target {
	/* an image */
	struct out_file file;
	int lock_fd; /* the image's, after it has its name, until all of the set have */
	bool named;
	/* changes */
	const struct disk_old *old; /* NULL: an image */
	struct changes_out changes;
	struct differing differing;
	uint8_t *buffer;
	bool keep;
	_Atomic uint64_t bytes_written; /* may be looked at by any thread */
};

/* None yet: may be closed. */
void disk_target_init(struct disk_target *t);
int disk_target_open_image(struct disk_target *t, const char *path, uint64_t bytes, bool direct,
			   struct ft_err *err);
/* id: of the changes of RAM that they belong to. */
int disk_target_open_changes(struct disk_target *t, const struct disk_old *old, uint32_t id,
			     struct ft_err *err);
/* The file that is written. */
const char *disk_target_path(const struct disk_target *t);
/* Where the disk is once all is done. */
const char *disk_target_saved_as(const struct disk_target *t);
/* As cow_config.write and .zeroes. -errno. */
int disk_target_write(struct disk_target *t, uint64_t offset, const uint8_t *data, size_t len);
int disk_target_zeroes(struct disk_target *t, uint64_t offset, uint64_t len);
/* All is written: it is on the disk, under its name, if its digest is this one (NULL: whatever it
 * is). */
int disk_target_finish(struct disk_target *t, const uint64_t *digest, struct ft_err *err);
/* What was finished stays. */
void disk_target_keep(struct disk_target *t);
/* Otherwise nothing is left. */
void disk_target_close(struct disk_target *t);

#endif
