/* SPDX-License-Identifier: Apache-2.0 */
/* The disk tap's object, shared by the files of the tap and nobody else:
 *
 *   disk_tap.c      its life, modes and epochs: the engine's side
 *   disk_io.c       the guest's side: the NBD server's backend
 *   disk_behind.c   what the peer lacks, and the copier
 *   disk_sums.c     what it does not lack after all, by sums; disk_notes.c: by notes of changes
 *   disk_release.c  held writes of a shared disk on their way to the image
 *   disk_owner.c    whose the image is: metadata and lock
 *   disk_bitmaps.c  named bitmaps and their export; disk_watch.c: a snapshot's copy */
#ifndef EVENTTAP_BLOCK_DISK_TAP_INTERNAL_H
#define EVENTTAP_BLOCK_DISK_TAP_INTERNAL_H

#include <pthread.h>

#include "eventtap/block/bitmaps.h"
#include "eventtap/block/notes.h"
#include "eventtap/block/cow.h"
#include "eventtap/block/disk_log.h"
#include "eventtap/block/fleece.h"
#include "eventtap/block/disk_tap.h"
#include "eventtap/block/image.h"
#include "eventtap/block/marks.h"
#include "eventtap/block/metadata.h"
#include "eventtap/block/nbd_server.h"
#include "eventtap/block/overlay.h"
#include "eventtap/block/range_lock.h"
#include "ft/bitmap.h"

#define RANGE_WAIT_MS 120000 /* a writer for others' I/O on its range; then the guest gets EIO */
#define WAIT_NOTICE_MS                                                                             \
	5000 /* a writer that waits for the log's room says so once, after this long */
#define SCRATCH_BYTES (256u << 10)

struct disk_tap {
	struct tap tap; /* first */

	/* read-only after creation */
	struct image image;
	bool shared;
	struct disk_gate gate;
	size_t log_bytes_soft;
	char spill_dir[PATH_MAX], image_path[PATH_MAX];
	struct nbd_server *server;

	struct bitmaps bitmaps; /* has a lock of its own, the innermost */
	struct nbd_backend_ops backup_ops;
	struct nbd_server *backups; /* NULL: none; engine's thread */
	char backup_bitmap[FT_DIRTY_NAME_MAX];
	bool left;	    /* the VM goes on without the tap; engine's thread */
	struct notes notes; /* has a lock of its own; never open for a shared disk */

	/* engine's thread only */
	struct metadata meta; /* fd < 0: yielded, or fenced */
	struct disk_written {
		uint64_t seq;  /* of a segment, UINT64_MAX = none */
		size_t at;     /* records of it up to here are in the image */
		uint64_t part; /* and so many bytes of the next one */
	} written;	       /* by release() */
	uint64_t sync_at;      /* the copier's place in `behind` */
	uint8_t *scratch;      /* SCRATCH_BYTES */

	pthread_mutex_t lock; /* guards all below; never held over I/O of the image */
	pthread_cond_t room;  /* the log has shrunk, or who waits need not care any more */
	/* Whoever changes the image holds its range from before the change until it is noted in log
	 * or bitmap. */
	struct range_lock ranges;
	enum tap_mode mode;
	bool hold_next; /* HOLD at the next close_epoch() */
	bool firing, stopping, fenced;
	bool letting_go; /* what was held is on its way to the image; flushes wait */
	bool pressure;	 /* the owner was told */
	bool flush_owed; /* a FLUSH that found no room in the log */
	struct cow *cow; /* told before the image changes; NULL: nobody wants to know */
	/* Likewise; set and unset with the whole disk's range held, so whoever holds one may use
	 * it. */
	struct fleece *fleece;
	struct marks *marks; /* told before the image changes too */
	struct disk_log log;
	struct overlay overlay;
	struct ft_bitmap behind;
	unsigned waiting;
	struct timespec waiting_since; /* of the first that is still there, when waiting > 0 */
	uint64_t writes, bytes_written, io_errors;
	char last_error[128];
};

/* disk_release.c: held writes of a shared disk up to `epoch` go to the image; or (all) the open
 * ones too, which is asked for only when nobody else can be granted the guest, so that no gate is
 * needed. They stay in the log; d->written says how far it went, for the next call. *seq: of the
 * last segment, when there was one. -EAGAIN: the gate is shut. */
int disk_write_held(struct disk_tap *d, bool all, uint64_t epoch, uint64_t *seq);

/* disk_watch.c: before any change of the image, without the lock; a guest's range is held. */
void disk_before_change(struct disk_tap *d, uint64_t offset, uint64_t len);

/* disk_backup.c: nobody writes any more. */
void disk_backups_close(struct disk_tap *d);

/* disk_bitmaps.c: of the tap's life; open: config.known */
void disk_bitmaps_open(struct disk_tap *d, const char *image, bool known);
void disk_bitmaps_close(struct disk_tap *d);

/* disk_sums.c */
/* Within the disk, and whole blocks but at its end. */
bool disk_range_is_whole(const struct disk_tap *d, uint64_t offset, uint64_t bytes);

/* disk_notes.c */
/* The range is about to be changed; it is held. Not locked. -errno: it must not be. */
int disk_note_change(struct disk_tap *d, uint64_t offset, uint64_t len);
/* `epoch` was acknowledged and is still in the log: the peer has what came before it. Those who
 * stage an epoch may still have to apply it, so its own writes are kept. */
void disk_notes_released(struct disk_tap *d);
/* Nobody writes any more. */
void disk_notes_seal(struct disk_tap *d);

/* disk_behind.c */
void disk_mark_behind_locked(struct disk_tap *d, uint64_t offset, uint64_t len);
uint64_t disk_behind_bytes_locked(const struct disk_tap *d);
/* Everything that is behind goes into the open epoch. The whole disk is held. */
int disk_log_behind(struct disk_tap *d, struct ft_err *err);

/* disk_io.c */
extern const struct nbd_backend_ops disk_io_ops;
/* Appends a write, cut into records, to the open epoch; shared: into the overlay too. On -errno a
 * part may be there. */
int disk_log_write_locked(struct disk_tap *d, const uint8_t *data, uint64_t offset, uint64_t len);
/* kind: TAP_DISK_ZERO or TAP_DISK_TRIM. */
int disk_log_zero_locked(struct disk_tap *d, enum tap_kind kind, uint64_t offset, uint64_t len);
int disk_log_flush_locked(struct disk_tap *d);
/* struct disk_tap *; a record that changes no byte of the image. */
int disk_log_record_locked(void *ctx, const struct tap_record *rec);
/* Counts an error of the image and says so. Returns ret. */
int disk_io_failed_locked(struct disk_tap *d, const char *what, int ret);

#endif
