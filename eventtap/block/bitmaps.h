/* SPDX-License-Identifier: Apache-2.0 */
/* The named dirty bitmaps of one disk (ft/dirty_bitmap.h).
 *
 * They are kept beside the image, IMAGE.kemari-bitmaps: replaced whole (temporary, fsync, rename,
 * fsync of the folder), sealed by a checksum, and marked as in use while a tap has the disk. Who
 * finds them in use, or an image that somebody else may have written to, has lost marks: enabled
 * bitmaps are inconsistent then, as in QEMU, and good for nothing but to be removed.
 *
 *      0   "KFTBMAP1"   8  bytes of the disk     16  u32 how many     20  u32 1: in use
 *      24  each:  u8 length of its name, u8 flags (1 enabled, 2 inconsistent), u16 0, u32
 *          granularity, u64 bytes of its map (0: clear), the name, the map
 *      end XXH3-64 of all before                                 all numbers little endian
 *
 * A protected guest's bitmaps are part of its checkpoints: bitmaps_log() says in records of kind
 * TAP_DISK_BITMAP what changed since it was asked last, and the standby's bitmaps_apply() does the
 * same to its own set. A record's data: u8 what, u8 length of the name, the name, and
 *
 *      1 SET    u8 flags as above, u32 granularity: there is such a bitmap; clear if it is new
 *      2 DATA   bytes of its map, from byte `arg` on
 *      3 ZERO   u64 how many bytes of its map are zero, from byte `arg` on
 *      4 RESET  (no name) there are none; the set follows whole
 *      5 SUM    the SHA-256 of its map, after all of it was told: if it is another here, the
 *               bitmap is inconsistent
 *
 * A guest that moves before its memory does (postcopy) is followed by its bitmaps
 * (block/bitmaps_follow.h), in six steps: _outgoing_begin() at the source and _incoming_add() with
 * what bitmaps_info() says (made, disabled, frozen under a successor that is disabled too); nothing
 * while the guest's memory is copied; _incoming_run() right before the guest runs at the target,
 * where the successors note its writes; then the maps in pieces, bitmaps_read() to _incoming_put();
 * _incoming_end() merges the successor; and enables what was enabled at the source. If it fails:
 * _outgoing_end() and the source is as before, _incoming_cancel() and the target has nothing left.
 * In a file a bitmap that has not arrived is inconsistent.
 *
 * Any thread. */
#ifndef EVENTTAP_BLOCK_BITMAPS_H
#define EVENTTAP_BLOCK_BITMAPS_H

#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "eventtap/tap.h"
#include "ft/dirty_bitmap.h"
#include "ft/err.h"

#define BITMAPS_SUFFIX	   ".kemari-bitmaps"
#define BITMAPS_MAX	   16	  /* of a disk */
#define BITMAPS_RECORD_MAP 65536u /* bytes of a map in one record */
#define BITMAPS_SHA256	   32
#define BITMAPS_FILE_MAX   (144u << 20) /* all of them, as fine as they can be */

struct bitmaps {
	pthread_mutex_t lock; /* guards all below */
	char path[PATH_MAX];
	uint64_t bytes; /* of the disk */
	unsigned n;
	struct bitmaps_entry {
		struct ft_dirty_bitmap *map;
		bool incoming, enable_after;
		bool backup; /* frozen for a backup */
	} list[BITMAPS_MAX];
	bool tell_all; /* the next bitmaps_log() is the first, or something went */
	bool told;     /* the peer may have some */
	bool outgoing; /* nobody may change them, and checkpoints have nothing of them */
};

struct bitmap_info {
	char name[FT_DIRTY_NAME_MAX];
	uint32_t granularity;
	bool enabled, inconsistent, busy;
	bool arriving; /* its guest runs here already */
	uint64_t dirty_bytes, map_bytes;
};

/* An empty set for the disk of that image. */
void bitmaps_init(struct bitmaps *s, const char *image, uint64_t bytes);
void bitmaps_free(struct bitmaps *s);

/* ---- its file ---- */
/* known: nobody can have written to the image since the file was saved. A file that is absent: an
 * empty set; one that cannot be read: likewise, with a line in the log. */
void bitmaps_load(struct bitmaps *s, bool known);
/* Durable when this returns 0. An empty set has no file. */
int bitmaps_save(struct bitmaps *s, bool in_use, struct ft_err *err);
/* What a file's bytes say, into an empty set; *in_use as in the file. -EBADMSG, -EFBIG: of a disk
 * of another size, -ENOMEM: the set is empty. */
int bitmaps_parse(struct bitmaps *s, const uint8_t *data, size_t len, bool *in_use);
/* There is a file for this image. */
bool bitmaps_exist(const char *image);

/* ---- operators ---- */
/* -EEXIST, -EINVAL, -ENOSPC (BITMAPS_MAX), -ENOMEM */
int bitmaps_add(struct bitmaps *s, const char *name, uint32_t granularity, struct ft_err *err);
/* The others: -ENOENT, -EBUSY, and but for remove -EINVAL: it is inconsistent. */
int bitmaps_remove(struct bitmaps *s, const char *name, struct ft_err *err);
int bitmaps_enable(struct bitmaps *s, const char *name, bool enabled, struct ft_err *err);
int bitmaps_clear(struct bitmaps *s, const char *name, struct ft_err *err);
unsigned bitmaps_count(struct bitmaps *s);
/* The i-th; false: there are no more. */
bool bitmaps_info(struct bitmaps *s, unsigned i, struct bitmap_info *info);

/* ---- the guest's writes, and who reads the maps ---- */
void bitmaps_mark(struct bitmaps *s, uint64_t offset, uint64_t len);
/* State at an offset; *len is cut to what is alike. -ENOENT: no such bitmap, or inconsistent;
 * -EBUSY: it has not arrived. */
int bitmaps_at(struct bitmaps *s, const char *name, uint64_t offset, uint64_t *len, bool *dirty);
/* Whole words of a map. -ENOENT; -EINVAL: not within it. */
int bitmaps_read(struct bitmaps *s, const char *name, uint64_t at, uint8_t *out, size_t len);
/* Of the map as bytes (ft/dirty_bitmap.h); who marks meanwhile is not kept waiting. -ENOENT,
 * -ENOMEM */
int bitmaps_sha256(struct bitmaps *s, const char *name, uint8_t out[BITMAPS_SHA256]);

/* ---- backups ---- */
/* Frozen: readers see it as it is now, and what is written from now on is its successor's. Errors
 * as of clear. */
int bitmaps_backup_begin(struct bitmaps *s, const char *name, struct ft_err *err);
/* used: what it said is saved, so that only what was written since is dirty; else all is again. */
void bitmaps_backup_end(struct bitmaps *s, const char *name, bool used);

/* ---- checkpoints ---- */
void bitmaps_tell_all(struct bitmaps *s);
/* Calls emit for each record, in order. An error of emit is returned, and the next call tells all.
 */
int bitmaps_log(struct bitmaps *s, uint8_t device,
		int (*emit)(void *ctx, const struct tap_record *rec), void *ctx);
/* -EPROTO: makes no sense; -ENOMEM. Input is hostile. */
int bitmaps_apply(struct bitmaps *s, const struct tap_record *rec);

/* ---- live migration ---- */
void bitmaps_outgoing_begin(struct bitmaps *s);
void bitmaps_outgoing_end(struct bitmaps *s);
/* An inconsistent one is all there at once. -EEXIST, -EINVAL, -ENOSPC, -ENOMEM; the name may be
 * anything. */
int bitmaps_incoming_add(struct bitmaps *s, const struct bitmap_info *what, struct ft_err *err);
void bitmaps_incoming_run(struct bitmaps *s);
int bitmaps_incoming_put(struct bitmaps *s, const char *name, uint64_t at, const uint8_t *data,
			 uint64_t len, struct ft_err *err);
int bitmaps_incoming_end(struct bitmaps *s, const char *name, struct ft_err *err);
/* Its bits will not come, or are not those that were sent: it is inconsistent. False: it was not
 * awaited. */
bool bitmaps_incoming_lose(struct bitmaps *s, const char *name, const char *why);
/* All have come. */
void bitmaps_incoming_finish(struct bitmaps *s);
void bitmaps_incoming_cancel(struct bitmaps *s);

#endif
