/* SPDX-License-Identifier: Apache-2.0 */
/* The standby's side of a disk: receives the initial copy and the committed epochs' writes, and keeps the metadata file beside the
 * image that stops anyone from starting a guest on a stale disk. Engine's thread only.
 *
 * Metadata, IMAGE.kemari: magic, version, guest uuid, generation, epoch, state (UpToDate | Outdated | Inconsistent), checksum; replaced
 * by write-to-temporary + fsync + rename + fsync of the folder. It is locked (OFD lock) as long as a store or a tap has the disk open, so
 * two agents for one image are refused. */
#ifndef EVENTTAP_STORE_H
#define EVENTTAP_STORE_H

#include <stdint.h>

#include "eventtap/tap.h"
#include "ft/err.h"

enum store_state { STORE_INCONSISTENT = 1, STORE_OUTDATED, STORE_UP_TO_DATE };
enum store_mode { STORE_REPLICATED, STORE_SHARED };

struct store;

/* bytes: size that the guest sees; a replicated image is created (sparse) if absent, and refused if its size differs.
 * Replicated: state becomes Inconsistent until store_commit() says otherwise. -EBUSY: somebody holds the lock. */
int store_open(const char *id, const char *image, enum store_mode mode, uint64_t bytes, const char *uuid, struct store **out,
	       struct ft_err *err);
/* Initial copy (replicated only): written at once. zero: data is NULL, the range is to read as zeroes. */
int store_sync_write(struct store *s, uint64_t offset, const uint8_t *data, uint32_t len, bool zero, struct ft_err *err);
/* One TAP_DISK_* record of a committed epoch: replicated: written to the image (page cache). shared: kept in memory until the next
 * store_drop_pending(), because the primary writes it itself. */
int store_apply(struct store *s, const struct tap_record *rec, struct ft_err *err);
/* All records of `epoch` were applied. Records (generation, epoch) in memory; the metadata file is written when the state or the
 * generation changes, not per epoch. fdatasync of what was flushed by the guest happens on a thread of the store's own. */
int store_commit(struct store *s, uint64_t generation, uint64_t epoch, struct ft_err *err);
/* shared: the primary has released `epoch`: its writes are on the disk. */
void store_drop_pending(struct store *s, uint64_t epoch);
/* Takeover: shared: replays the pending writes. Both: makes all durable and writes the activation record, then closes the image so
 * that a VM can have it. After this the store is of no more use. */
int store_activate(struct store *s, uint64_t generation, uint64_t epoch, struct ft_err *err);
/* The peer goes on without us (solo grant, cancel): marks Outdated, so that nobody starts a guest from it. */
int store_outdate(struct store *s, struct ft_err *err);
enum store_state store_state(const struct store *s);
void store_free(struct store *s);

/* For a primary: refuses (-ESTALE, says why) to start a guest on an image whose metadata says Outdated or Inconsistent. No metadata:
 * fine. */
int store_check_startable(const char *image, struct ft_err *err);

#endif
