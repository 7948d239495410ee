/* SPDX-License-Identifier: Apache-2.0 */
/* The standby's journal (durability = "disk"): the disk records of each checkpoint, durable before
 * it is acknowledged. After a power cut the images hold some mixture of epochs; replaying the
 * journal makes them exactly the last one in it. One journal for all replicated disks of a guest,
 * so that they are of one epoch.
 *
 *      header    "KEMARIJ1", version, disks: sums of their ids, sizes; a nonce; sum
 *      entry     "KEMARIJE", generation, epoch, bytes, sum of the records; sum; then the records,
 *      entry     as on the wire (tap.h)
 *      ...
 *
 * All integers are little endian, sums are XXH3-64 with the nonce as seed, so that what a guest
 * writes to its disk cannot pass for an entry. The journal ends where the next entry is not whole.
 *
 * Invariant: the images hold, durably, everything before the first entry, and nothing that is not
 * in an entry. When the journal has grown past its bound, the next entry begins a new file,
 * which takes the old one's name once the images and itself are durable.
 *
 * Calls on the engine's thread; waiting for disks on a thread of its own. */
#ifndef EVENTTAP_BLOCK_JOURNAL_H
#define EVENTTAP_BLOCK_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "eventtap/block/image.h"
#include "eventtap/tap.h"

#define JOURNAL_SUFFIX	  ".kemari-journal"
#define JOURNAL_BYTES_MAX (64u << 20)
#define JOURNAL_DISKS_MAX 8

struct journal;

/* A guest's disks in their order. image NULL: not journaled (a shared disk). */
struct journal_disk {
	const char *id;
	const struct image *image;
};

/* Any thread; must not block. Then journal_take() has news. */
typedef void journal_notify_fn(void *ctx);

/* A journal at `path` for these disks, replacing any that is there; nothing is on disk before the
 * first journal_seal() is done. bytes_max: after this many what is older is moved to the images
 * (JOURNAL_BYTES_MAX but in tests). The images must stay open as long as the journal is. */
int journal_new(const char *path, const struct journal_disk *disks, unsigned n, uint64_t bytes_max,
		journal_notify_fn *notify, void *ctx, struct journal **out, struct ft_err *err);
/* One disk record (rec->device: place in `disks`) of the checkpoint that is being staged. -EPROTO:
 * there is no such place. */
int journal_add(struct journal *j, const struct tap_record *rec, struct ft_err *err);
/* What was added since the last seal is void. */
void journal_drop(struct journal *j);
/* That was all of (generation, epoch). Everything before it was applied to the images. Makes it
 * durable: journal_take() tells when. */
int journal_seal(struct journal *j, uint64_t generation, uint64_t epoch, struct ft_err *err);
/* The last epoch that is durable: true when there is one that was not taken yet. *error: 0, or
 * -errno of the disk; then nothing more becomes durable. */
bool journal_take(struct journal *j, uint64_t *epoch, int *error);
/* Stops the thread and makes the images durable. The journal can only be freed then, and the images
 * may be closed before. 0, also when called again, or -errno. */
int journal_finish(struct journal *j);
/* NULL is fine. keep: the file stays, for a replay after what looks like a power cut. */
void journal_free(struct journal *j, bool keep);

/* Removes a journal that is not wanted any more. */
int journal_remove(const char *path, struct ft_err *err);
/* Brings the images to the last epoch in the journal, durably; the file stays. -ENOENT: there is
 * none; -EBADMSG: there is no whole entry, or it is for other disks. */
int journal_replay(const char *path, const struct journal_disk *disks, unsigned n,
		   uint64_t *generation, uint64_t *epoch, struct ft_err *err);

#endif
