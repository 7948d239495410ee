/* SPDX-License-Identifier: Apache-2.0 */
/* The tap of a disk: the VMM's disk is our NBD server, over a raw image, and what the guest writes
 * goes where the tap's mode and the disk's kind say (tap.h has the modes):
 *
 *                  PASS     TRACK                       HOLD
 *      replicated  image    image + a bit in `behind`   image + a record in the open epoch
 *      shared      image    image                       a record only, seen by reads; to the image
 * at release()
 *
 * `behind` is the bitmap of what the peer lacks (64 KiB blocks). It is emptied by the copier,
 * disk_tap_sync_next(), and by close_epoch(), which puts what is left into the epoch. It also takes
 * in whatever cannot be logged: a write that failed half way, a log that found no room. So an epoch
 * is whole or does not close.
 *
 * In HOLD the log's memory is bounded: past half of log_bytes_max the owner is told
 * (notify.pressure) and writers wait, unanswered, until an epoch is released, except while
 * disk_tap_firing(): then the VMM drains its disks and needs answers. Past log_bytes_max the log
 * goes on in an unlinked file in spill_dir.
 *
 * A disk never calls notify.output: no one outside sees a disk's write, so none waits for a
 * checkpoint.
 *
 * What a shared disk's release() writes goes through a gate, which may be shut: then release()
 * fails with -EAGAIN and the next one goes on from there. So that a write which passed is soon
 * over, the image of a shared disk is written through to the storage.
 *
 * Returning from HOLD to TRACK or PASS: replicated: what was not released is marked as behind.
 * shared: it goes to the image. */
#ifndef EVENTTAP_BLOCK_DISK_TAP_H
#define EVENTTAP_BLOCK_DISK_TAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "eventtap/tap.h"
#include "ft/err.h"

#define DISK_TAP_BLOCK_BYTES (64u << 10) /* of the bitmap `behind` */
#define DISK_TAP_LOG_BYTES   (64u << 20) /* a reasonable log_bytes_max */

/* A shared disk's held writes reach the image only between enter() and leave(), one at a time;
 * enter() says whether one may begin now (ft/lease.h). Engine's thread. enter NULL: always. */
struct disk_gate {
	bool (*enter)(void *ctx);
	void (*leave)(void *ctx);
	void *ctx;
};

struct disk_tap_config {
	const char *id; /* name of the NBD export too */
	uint8_t device;
	const char *image;
	bool format_raw; /* the operator says so; else an image that looks like another format is
			    refused */
	bool shared;
	bool known; /* nobody can have written to the image since this host's last tap or store had
		       it: what they knew of it holds */
	struct disk_gate gate; /* shared only */
	const char *uuid;      /* of the guest, for the metadata; NULL or "" = leave it as it is */
	const char *socket;    /* where the NBD server listens */
	size_t log_bytes_max;  /* memory of the log */
	const char *spill_dir; /* for what is beyond; used only then */
};

/* Takes the disk's lock (-EBUSY), refuses a stale disk (-ESTALE, see store.h), opens the image and
 * serves it, mode PASS. One clear line on error. */
int disk_tap_open(const struct disk_tap_config *config, struct tap **out, struct ft_err *err);

/* All below: the engine's thread. */

uint64_t disk_tap_bytes(const struct tap *tap);
/* Durable: this host's copy is the newest there is, as of this generation. After every change of
 * the pair. */
int disk_tap_set_generation(struct tap *tap, uint64_t generation, uint64_t epoch,
			    struct ft_err *err);
/* Durable: from now on a standby may go on with the guest, so that nobody starts it from this disk
 * after a crash of the host; or: it may not. */
int disk_tap_set_protected(struct tap *tap, bool is_protected, uint64_t generation,
			   struct ft_err *err);
/* Protected, of a disk that has no tap. */
int disk_set_protected(const char *image, uint64_t generation, struct ft_err *err);
/* A shared disk whose guest is stopped and of which everything released is durable: its lock is
 * given up, so that the other host may have it; the image is not to be touched meanwhile (no mode
 * changes, no release), discard() makes it final. -errno: the image cannot be flushed, nothing was
 * given up. */
int disk_tap_yield(struct tap *tap, struct ft_err *err);
/* Takes it back. void_generation: one under which the other host took it and gave it up again,
 * without having run the guest; 0: there is none. -EBUSY: the other host has it, or had it. Nothing
 * to do for a disk that is not yielded. */
int disk_tap_reclaim(struct tap *tap, uint64_t void_generation, struct ft_err *err);
/* Whether a checkpoint is about to pause the guest: from before the VMM is told until close_epoch()
 * or the failure. Writers are not made to wait meanwhile. */
void disk_tap_firing(struct tap *tap, bool firing);

/* What the peer lacks. Always nothing for a shared disk. */
void disk_tap_mark_all_behind(struct tap *tap);
void disk_tap_mark_range_behind(struct tap *tap, uint64_t offset, uint64_t len);
uint64_t disk_tap_behind_bytes(struct tap *tap);
/* What the peer has and this disk has too is not behind any more. The range is whole blocks, but at
 * the end of the disk; sums: one of DISK_SUM_BYTES a block (disk_sums.h), NULL: a hole there.
 * *alike: bytes that are not behind any more. -EPROTO: no such range; else -errno. */
int disk_tap_compare(struct tap *tap, uint64_t seed, uint64_t offset, uint64_t bytes,
		     const uint8_t *sums, uint64_t *alike, struct ft_err *err);
/* The next part of the disk that the peer lacks, not so any more once this returns: 1, with *offset
 * and *len, and either the data in buf (buf_max >= DISK_TAP_BLOCK_BYTES) or *zero: a hole, of any
 * length. 0: nothing is behind. -errno: could not be read, still behind. What the guest writes
 * there afterwards is behind again. */
int disk_tap_sync_next(struct tap *tap, uint8_t *buf, size_t buf_max, uint64_t *offset,
		       uint32_t *len, bool *zero, struct ft_err *err);

/* What changed here since the peer's copy was alike (notes.h). Replicated only. */
/* The peer's copy is at the epoch that closed last, which is not released yet. */
void disk_tap_in_sync(struct tap *tap, uint64_t session);
/* The session in which both copies were last known to be alike; 0: nobody knows. */
uint64_t disk_tap_session(struct tap *tap);
/* The peer's copy did not change in this range since that session: what did not change here either
 * is not behind any more. As disk_tap_compare(). */
int disk_tap_unchanged(struct tap *tap, uint64_t offset, uint64_t bytes, uint64_t *alike,
		       struct ft_err *err);
/* The VM goes on without the tap, which is freed next: nobody sees its writes any more. */
void disk_tap_leave(struct tap *tap);
/* A VM is about to have the image without a tap. */
void disk_tap_forget(const char *image);

/* Its named bitmaps; after a change by an operator they are to be kept: durable when this returns
 * 0.
 */
struct bitmaps;
struct bitmaps *disk_tap_bitmaps(struct tap *tap);
int disk_tap_bitmaps_keep(struct tap *tap, struct ft_err *err);
/* Serves the disk to backup clients, as the guest sees it now, read-only, with its bitmaps as
 * contexts. Nothing to do if it does already. */
int disk_tap_backups(struct tap *tap, const char *socket, struct ft_err *err);
void disk_tap_backups_end(struct tap *tap);
/* From now until the end they are served the disk as it is now, and one bitmap ("" = none) too: see
 * bitmaps.h. Whoever reads is hung up on, at both. Guest's writes wait for those under way, at most
 * 2 s: -ETIMEDOUT. -EBUSY: one is on; -ENOTSUP: a shared disk; errors of bitmaps_backup_begin(). */
int disk_tap_backup_begin(struct tap *tap, const char *bitmap, const char *socket,
			  struct ft_err *err);
/* used: the backup is good. Clients are served nothing any more. -EINVAL: none is on. */
int disk_tap_backup_end(struct tap *tap, bool used, struct ft_err *err);
bool disk_tap_backup_on(const struct tap *tap);

/* From now on the copy is told before anything changes (cow.h), until unwatch(). One at a time;
 * the guest is paused. -ETIMEDOUT: a write is still on its way. */
struct cow;
int disk_tap_watch(struct tap *tap, struct cow *cow, struct ft_err *err);
void disk_tap_unwatch(struct tap *tap);
/* From now on what is written is marked there (marks.h), until the tap is freed; in place of any
 * marks from before. A reference of its own is taken. */
struct marks;
void disk_tap_mark(struct tap *tap, struct marks *marks);

struct disk_tap_info {
	unsigned connections;
	unsigned writers_waiting; /* for room in the log */
	uint64_t waiting_ms;	  /* for how long there has been one */
	uint64_t io_errors;	  /* of the image; the guest got them */
	char last_error[128];	  /* "" = none */
	uint64_t log_bytes, spilled_bytes;
	bool fenced;
};
void disk_tap_info(struct tap *tap, struct disk_tap_info *info);

#endif
