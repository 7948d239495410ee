/* SPDX-License-Identifier: Apache-2.0 */
/* What was written to one host's copy of a disk since it and the peer's copy were last alike, in
 * blocks of 64 KiB. Both hosts keep one; outside the union of the two the copies are equal, so a
 * host that comes back is sent that, and neither image has to be read.
 *
 * "Last alike" has the name of the session whose first checkpoint made them so; both hosts write it
 * down then. Two maps belong together if they bear the same name.
 *
 * The map is beside the image, IMAGE.kemari-changes, and a block's bit is in the file before the
 * block is written. Neither is synced: the page cache survives the death of a process, and a map
 * that was in use when its host went down (another boot identity now) says nothing, because no one
 * knows what of map and image had reached the disk. A map that was sealed holds across a reboot.
 *
 *      0     "KFTCHNG1"   8   bytes of the disk     16  session      24  boot identity, 16 bytes;
 *      40    XXH3-64 of the map (sealed only)       48  XXH3-64 of bytes 0 to 47      zeroes:
 * sealed 4096  the map, words of 64 bits, little endian, as far as the disk goes
 *
 * Whatever goes wrong ends the map (session 0, the file is removed), and then everything is
 * compared; the caller hears of it only if the file cannot be removed. Writers mark from several
 * threads; all else comes from one thread, marking ones not excluded. */
#ifndef EVENTTAP_BLOCK_NOTES_H
#define EVENTTAP_BLOCK_NOTES_H

#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "ft/bitmap.h"

#define NOTES_SUFFIX	  ".kemari-changes"
#define NOTES_BLOCK_BYTES 65536u

struct notes {
	char path[PATH_MAX];
	uint64_t bytes; /* of the disk */
	uint64_t image; /* which file that is */
	pthread_mutex_t lock;
	int fd;		       /* -1: there is no map */
	uint64_t session;      /* 0: there is no map */
	struct ft_bitmap bits; /* one a block */
};

/* Reads what the host knows about an image; the map is in use from then on. known false: something
 * else may have written to the image, so nothing is known. -ENOMEM only. */
int notes_open(struct notes *c, const char *image, uint64_t bytes, bool known);
/* The copies are alike, as of this session: an empty map begins, but for those (NULL: none). */
void notes_begin(struct notes *c, uint64_t session, const struct ft_bitmap *but);
/* Before the range is written. -errno: it is not noted, and what the file says cannot be taken
 * back: the range must not be written. */
int notes_mark(struct notes *c, uint64_t offset, uint64_t len);
/* In place of what was marked: those that the peer surely has are left out. */
void notes_replace(struct notes *c, const struct ft_bitmap *bits);
/* Nothing is known any more. -errno: the file says otherwise and cannot be removed. */
int notes_end(struct notes *c);
/* The image is durable and nobody writes to it any more: so is the map. */
void notes_seal(struct notes *c);
uint64_t notes_session(struct notes *c);
/* Whether [offset, offset + *len) begins within the map; *len is cut to what is alike. */
bool notes_at(struct notes *c, uint64_t offset, uint64_t *len);
/* The file stays as it is. */
void notes_close(struct notes *c);
/* The image is about to be written by somebody who marks nothing. */
void notes_forget(const char *image);

#endif
