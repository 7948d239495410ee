/* SPDX-License-Identifier: Apache-2.0 */
/* The named bitmaps of a guest that runs at the target of a postcopy migration already: their maps
 * go there in pieces, in the background, one bitmap after the other, each with the SHA-256 of its
 * map at its end. The source keeps them, unchanged, until the target has said that it has all there
 * is (ALL); after a lost link the target says where to go on.
 *
 *   source                                              target
 *   _giver_describe()  names in SETUP                   _taker_expect()  made, disabled, frozen
 *                                  ... the switch ...   _taker_begin()   successors enabled
 *   next()             BITMAP, in pieces                take()           into the frozen bitmaps
 *                                                       ... at its end:  compared, reclaimed
 *
 * Whatever goes wrong with a bitmap makes that bitmap inconsistent at the target and nothing else:
 * the guest goes on.
 *
 * Each side has a lock of its own, outside the sets'. The sets belong to disk taps: who ends one
 * says so first (_forget()). */
#ifndef EVENTTAP_BLOCK_BITMAPS_FOLLOW_H
#define EVENTTAP_BLOCK_BITMAPS_FOLLOW_H

#include "eventtap/block/bitmaps.h"
#include "ft/msg.h"
#include "ft/postcopy/cargo.h"
#include "vmm-glue/vmm.h"

#define BITMAPS_PIECE 65536u /* bytes of a map in one message */
_Static_assert(BITMAPS_PIECE <= FT_PAYLOAD_MAX, "a piece is a message's payload");

/* ---- source ---- */

struct bitmaps_giver {
	struct ft_cargo cargo;
	pthread_mutex_t lock; /* guards all below */
	struct bitmaps *sets[VMM_DISKS_MAX];
	unsigned disk, i; /* the next piece is of this one ... */
	uint64_t at;	  /* ... from here on */
	size_t piece_max; /* BITMAPS_PIECE, or (tests) less: whole words */
	/* as described */
	struct bitmap_info infos[VMM_DISKS_MAX][BITMAPS_MAX];
	Ft__Bitmap bodies[VMM_DISKS_MAX][BITMAPS_MAX], *ptrs[VMM_DISKS_MAX][BITMAPS_MAX];
	/* of the last message */
	uint8_t body[FT_MSG_BODY_SMALL], piece[BITMAPS_PIECE];
};

/* Nothing is to follow. */
void bitmaps_giver_init(struct bitmaps_giver *g);
void bitmaps_giver_free(struct bitmaps_giver *g);
/* The bitmaps of disk number i are to follow; until _giver_end() nobody may change them. They are
 * in *disk, whose strings stay the giver's. */
void bitmaps_giver_describe(struct bitmaps_giver *g, unsigned i, struct bitmaps *s, Ft__Disk *disk);
/* The tap of disk i ends. */
void bitmaps_giver_forget(struct bitmaps_giver *g, unsigned i);
/* Nothing is to follow (any more): they are as before. */
void bitmaps_giver_end(struct bitmaps_giver *g);

/* ---- target ---- */

#define BITMAPS_TAKER_MAX (VMM_DISKS_MAX * BITMAPS_MAX)
struct bitmaps_taker {
	struct ft_cargo cargo;
	pthread_mutex_t lock; /* guards all below */
	struct bitmaps *sets[VMM_DISKS_MAX];
	unsigned n;
	struct bitmaps_awaited {
		unsigned disk;
		struct bitmap_info info;
		uint64_t at; /* has come so far */
		bool over;   /* has arrived, or never will */
	} list[BITMAPS_TAKER_MAX];
	uint8_t body[FT_MSG_BODY_SMALL]; /* of lacks() */
};

/* Nothing is awaited. */
void bitmaps_taker_init(struct bitmaps_taker *t);
void bitmaps_taker_free(struct bitmaps_taker *t);
/* SETUP: what follows for disk number i is made in `s`, disabled. Input is hostile: -EINVAL
 * (-EEXIST, -ENOSPC), -ENOMEM. */
int bitmaps_taker_expect(struct bitmaps_taker *t, unsigned i, struct bitmaps *s,
			 const Ft__Disk *disk, struct ft_err *err);
/* The guest runs next, with these taps' sets (NULL: a disk that has none): its writes are marked in
 * the successors. */
void bitmaps_taker_begin(struct bitmaps_taker *t, struct bitmaps *const sets[VMM_DISKS_MAX]);
/* Bitmaps whose data are awaited, of disk i; or is this one of them? */
unsigned bitmaps_taker_awaits(struct bitmaps_taker *t, unsigned i);
bool bitmaps_taker_awaits_this(struct bitmaps_taker *t, unsigned i, const char *name);
/* It will not come: inconsistent. */
void bitmaps_taker_give_up(struct bitmaps_taker *t, unsigned i, const char *name);
/* The tap of disk i ends. */
void bitmaps_taker_forget(struct bitmaps_taker *t, unsigned i);
/* Nothing more comes. If something was still awaited the guest does not run here, and nothing is
 * left of what was awaited. */
void bitmaps_taker_end(struct bitmaps_taker *t);

#endif
