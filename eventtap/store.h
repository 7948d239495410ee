/* SPDX-License-Identifier: Apache-2.0 */
/* The standby's side of a disk: receives the initial copy and the committed epochs' writes, and
 * keeps the metadata file beside the image that stops anyone from starting a guest on a stale disk.
 * Engine's thread only.
 *
 * Metadata, IMAGE.kemari (block/metadata.h): guest uuid, generation, epoch, state (UpToDate |
 * Protected | Consistent | Outdated | Inconsistent), checksum; replaced whole. It is locked (OFD
 * lock) as long as a replicated store or a tap has the disk open, so two agents for one image are
 * refused.
 *
 * On disk a replicated store in operation says Inconsistent, also when store_state() is UpToDate:
 * an agent that is killed in the middle of an epoch leaves a mixture, and one that is merely gone
 * leaves a copy that grows old. It says UpToDate once this host owns the guest (store_activate),
 * Outdated when the store ends whole but without it.
 *
 * A shared disk's metadata file is one for both hosts and its lock is the primary's; the store has
 * neither before store_activate(), which says Inconsistent while it replays. */
#ifndef EVENTTAP_STORE_H
#define EVENTTAP_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "eventtap/tap.h"
#include "ft/err.h"

/* For metadata only: PROTECTED: the newest copy, of a guest that runs here, but whose standby may
 * go on without this host. CONSISTENT: a standby's whole copy, brought to its last acknowledged
 * epoch after a power cut; the primary may have gone on. */
enum store_state {
	STORE_INCONSISTENT = 1,
	STORE_OUTDATED,
	STORE_UP_TO_DATE,
	STORE_PROTECTED,
	STORE_CONSISTENT
};
/* By what right a guest is started here. */
enum store_right {
	STORE_RIGHT_NONE,    /* nobody was asked, so the disk must be without doubt the newest */
	STORE_RIGHT_GRANTED, /* an arbiter: this host had the guest, and nobody else did go on or
				will */
	STORE_RIGHT_STANDBY, /* an arbiter: this host was its standby, of the same generation */
	STORE_RIGHT_FORCE    /* the operator, who has read what is lost */
};
enum store_mode { STORE_REPLICATED, STORE_SHARED };

#define STORE_PENDING_BYTES                                                                        \
	(64u                                                                                       \
	 << 20) /* memory for a shared disk's pending writes; beyond it a file beside the image */

struct image;
struct store;

/* bytes: size that the guest sees; a replicated image is created (sparse) if absent, and refused if
 * its size differs (-EFBIG). Replicated: state becomes Inconsistent until store_commit() says
 * otherwise. -EBUSY: somebody holds the lock. */
int store_open(const char *id, const char *image, enum store_mode mode, uint64_t bytes,
	       const char *uuid, struct store **out, struct ft_err *err);
/* Initial copy (replicated only): written at once. zero: data is NULL, the range is to read as
 * zeroes. */
int store_sync_write(struct store *s, uint64_t offset, const uint8_t *data, uint32_t len, bool zero,
		     struct ft_err *err);
/* A session begins: it has this number, and its primary's copy and this one were alike in session
 * `since`, with all changes there noted since then (0: nobody knows). Before store_sums(). -errno:
 * what was noted here cannot be taken back. */
int store_join(struct store *s, uint64_t session, uint64_t since, struct ft_err *err);
/* What the image has, for the primary to compare (replicated only; before anything is written): the
 * next range from *at on, which moves on. 1, and at most `max` sums unless it is zero or unchanged;
 * 0: that was all; -errno. */
struct store_sums_range {
	uint64_t bytes;
	bool zero;
	bool unchanged; /* here since both copies were alike: nothing was read */
};
int store_sums(struct store *s, uint64_t seed, uint64_t *at, unsigned max,
	       struct store_sums_range *range, uint8_t *sums, struct ft_err *err);
/* One TAP_DISK_* record of a committed epoch: replicated: written to the image (page cache).
 * shared: kept until store_drop_pending(), because the primary writes it itself. -EPROTO: no disk
 * record, or not within the disk. After any other error, here or elsewhere, the disk is
 * Inconsistent and the store refuses all (-EIO): open it anew and copy anew. */
int store_apply(struct store *s, const struct tap_record *rec, struct ft_err *err);
/* All records of `epoch` were applied. (generation, epoch) are kept in memory and written with the
 * next change of state. fdatasync of what was flushed by the guest happens on a thread of the
 * store's own; -EIO here says that an earlier one failed. */
int store_commit(struct store *s, uint64_t generation, uint64_t epoch, struct ft_err *err);
/* shared: the primary has released `epoch`: its writes are on the disk. */
void store_drop_pending(struct store *s, uint64_t epoch);
/* Takeover: shared: takes the lock (-EBUSY while an old primary on this lock's filesystem still
 * lives; may be called again). Nothing is touched (-EBUSY) unless the old primary surely writes no
 * more: settled says so, or the lock does, if it was seen held while this was a standby and is free
 * now: kernels free the locks of a process after its last system call. Replays the pending writes.
 * Both: makes all durable and writes the activation record, then closes the image and gives up the
 * lock so that a VM and its tap can have them. After this the store is of no more use, and calling
 * this again does nothing. -ESTALE: not in sync, or an epoch is applied in part. */
int store_activate(struct store *s, uint64_t generation, uint64_t epoch, bool settled,
		   struct ft_err *err);
/* The peer goes on without us (solo grant, cancel): marks Outdated, so that nobody starts a guest
 * from it. Nothing to do for a shared disk. */
int store_outdate(struct store *s, struct ft_err *err);
/* Its named bitmaps as of the last epoch. */
struct bitmaps;
struct bitmaps *store_bitmaps(struct store *s);
enum store_state store_state(const struct store *s);
/* A copy of a replicated disk as it is now, at its last committed epoch, is told before what comes
 * later is applied (block/cow.h), until unwatch(). -EAGAIN: the disk is between two epochs.
 * -ENOTSUP: a shared disk. */
struct cow;
int store_watch(struct store *s, struct cow *cow, struct ft_err *err);
void store_unwatch(struct store *s);
/* From now on what is written to a replicated disk is marked there (block/marks.h), until the store
 * is freed; in place of any marks from before. A reference of its own is taken. */
struct marks;
void store_mark(struct store *s, struct marks *marks);
const char *store_id(const struct store *s);
const char *store_image_path(const struct store *s); /* of its image */
/* A replicated disk's image, open until the store is activated or freed; NULL: a shared disk. */
const struct image *store_image(const struct store *s);
/* A replicated store that is whole and was not activated is marked Outdated. NULL is fine. */
void store_free(struct store *s);

/* For a primary: refuses (-ESTALE, says why) to start a guest on an image whose metadata says
 * Outdated, Inconsistent, Consistent or Protected, or is damaged (-EBADMSG), unless the right is
 * good for it: GRANTED for Protected, STANDBY for Consistent, FORCE for anything, with what is lost
 * in the log; it is UpToDate then. No metadata: fine. -EBUSY: somebody holds the lock, whatever the
 * right. */
int store_check_startable(const char *image, enum store_right right, struct ft_err *err);
/* Whether the image is a standby's whole copy of that generation. */
bool store_is_consistent(const char *image, uint64_t generation);
/* The generation that the image's metadata knows; 0: none, or it cannot be read. */
uint64_t store_generation(const char *image);
/* A guest's disk. image NULL: not replicated. */
struct store_disk {
	const char *id, *image;
};
/* The disks of a standby whose host lost its power, with the journal that it kept at `journal`:
 * they are brought to its last epoch and are Consistent then. No journal, or nothing to be made of
 * it: nothing is done. -errno: an image, or its metadata, cannot be written. */
int store_recover(const char *journal, const struct store_disk *disks, unsigned n,
		  struct ft_err *err);

#endif
