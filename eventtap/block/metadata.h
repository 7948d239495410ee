/* SPDX-License-Identifier: Apache-2.0 */
/* The metadata file beside an image, IMAGE.kemari: whose disk it is, how new, and whether a guest
 * may be started from it. It is also the lock of the disk: an OFD lock on it is held for as long as
 * this is open, so a second agent is refused. (The image itself is never locked: QEMU has locks of
 * its own there.)
 *
 * The file is text, for people, and sealed, for us:
 *
 *      kemari-disk 1
 *      uuid 8a7b... | -
 *      generation 7
 *      epoch 1234
 *      state UpToDate | Protected | Consistent | Outdated | Inconsistent
 *      sum 0123456789abcdef        XXH3-64 of all lines before
 *
 * It is replaced whole: temporary, fsync, lock, rename, fsync of the folder. One thread at a time.
 */
#ifndef EVENTTAP_BLOCK_METADATA_H
#define EVENTTAP_BLOCK_METADATA_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "eventtap/store.h"
#include "ft/err.h"

#define METADATA_SUFFIX	   ".kemari"
#define METADATA_VERSION   1
#define METADATA_UUID_MAX  37
#define METADATA_BYTES_MAX 512

struct metadata_record {
	char uuid[METADATA_UUID_MAX]; /* "" = of no particular guest */
	uint64_t generation, epoch;
	enum store_state state;
};

struct metadata {
	char path[PATH_MAX];
	int fd;			       /* holds the lock */
	bool fresh;		       /* there was none before */
	struct metadata_record record; /* what the file says */
};

/* "UpToDate", ... */
const char *metadata_state_name(enum store_state state);

/* Reads without locking. -ENOENT: there is none, or its making was cut short. -EBADMSG: torn or not
 * ours. -ENOTSUP: of a later version. */
int metadata_read(const char *image, struct metadata_record *record, struct ft_err *err);
/* Takes the lock (-EBUSY: another agent has it) and reads; creates a file that says UpToDate,
 * generation 0, if there is none. */
int metadata_open(const char *image, struct metadata *meta, struct ft_err *err);
/* Does another agent have the lock, as far as can be seen from here? */
bool metadata_locked(const char *image);
/* Durable when this returns 0; after an error the file says what it said before. */
int metadata_write(struct metadata *meta, const struct metadata_record *record, struct ft_err *err);
/* Gives the lock up. */
void metadata_close(struct metadata *meta);

/* -ESTALE, with what to do about it, unless a guest may be started from a disk whose metadata says
 * this. */
int metadata_startable(const char *image, const struct metadata_record *record, struct ft_err *err);
/* For people: what is lost if a guest is started from it nevertheless. */
const char *metadata_loss(const struct metadata_record *record);

#endif
