/* SPDX-License-Identifier: Apache-2.0 */
/* The arbiter keeps one record per guest and changes it by compare-and-swap on the generation. It
 * is asked only when the pair changes. Implementations: none (decides by the operator's word,
 * ft/arbiter_none.c), file (transport/arbiter_file.c), etcd (transport/arbiter_etcd.h). */
#ifndef FT_ARBITER_H
#define FT_ARBITER_H

#include <stdbool.h>
#include <stdint.h>

#include "ft/err.h"

#define FT_HOST_ID_MAX 64

struct ft_grant_record {
	uint64_t generation;	     /* 0: no record yet */
	char holder[FT_HOST_ID_MAX]; /* host id of the agent that holds it */
	bool in_sync; /* the other side holds the last acknowledged checkpoint and may be granted */
	char partner[FT_HOST_ID_MAX]; /* who that other side is; "" = nobody */
};

/* Whether both ids are one line of text: a partner's comes from the peer. */
bool ft_grant_record_ok(const struct ft_grant_record *record);

enum ft_arbiter_answer {
	FT_ARBITER_GRANTED,	/* the swap happened (or the read worked); *now is the record */
	FT_ARBITER_LOST,	/* somebody else changed the record first; *now is what it says */
	FT_ARBITER_UNREACHABLE, /* nothing is known */
	FT_ARBITER_UNDECIDED	/* arbiter none, survivor = manual: an operator must say */
};

/* now: never NULL; all zero when nothing is known. why: never NULL; "" when granted, else one line
 * for people. Both are valid until the function returns, which may ask the arbiter again. */
typedef void ft_arbiter_fn(void *ctx, enum ft_arbiter_answer answer,
			   const struct ft_grant_record *now, const char *why);

struct ft_arbiter;
struct ft_arbiter_ops {
	const char *type; /* "none" | "file" | "etcd" */
	/* Both answer exactly once, on the engine's thread, perhaps before they return, at the
	 * latest after FT_ARBITER_DEADLINE_MS. swap: from expected_generation to *want
	 * (want->generation = expected + 1, or the same generation to change in_sync / partner,
	 * allowed to its holder only). */
	void (*read)(struct ft_arbiter *a, ft_arbiter_fn *fn, void *ctx);
	void (*swap)(struct ft_arbiter *a, uint64_t expected_generation,
		     const struct ft_grant_record *want, ft_arbiter_fn *fn, void *ctx);
	void (*free)(struct ft_arbiter *a);
};
#define FT_ARBITER_DEADLINE_MS 2000

struct ft_arbiter {
	const struct ft_arbiter_ops *ops;
};

enum ft_survivor { FT_SURVIVOR_STANDBY = 1, FT_SURVIVOR_PRIMARY, FT_SURVIVOR_MANUAL };
enum ft_side { FT_SIDE_PRIMARY = 1, FT_SIDE_STANDBY };

/* arbiter none: a swap that makes the caller solo is granted iff `side` is the survivor that the
 * operator named, else UNDECIDED. Both sides give their own side; the file of the guest is the same
 * on both. Always granted:
 *   - swaps that change nothing but in_sync/partner;
 *   - a primary's swap when nobody else may be granted: from generation 0, or when its own record
 * says that no standby is in sync;
 *   - a primary's swap to another holder: it hands the guest over (planned switch) and counts as
 * standby from then on. The record is this agent's memory of what it was granted, no more: an
 * expected generation above it is believed (it came with the peer's frames), one below it is LOST.
 * NULL when out of memory. */
struct ft_arbiter *ft_arbiter_none_new(enum ft_survivor survivor, enum ft_side side);
/* Roles change after a takeover or a planned switch. */
void ft_arbiter_none_set_side(struct ft_arbiter *a, enum ft_side side);

/* arbiter file: generation G of guest NAME is the file DIR/NAME.G, made whole by link(2) from a
 * temporary (atomic, refuses if it exists, safe on NFS); the highest is the record. A change of
 * in_sync/partner replaces the file by rename(2), before and after which no higher generation may
 * exist. fsync of file and folder before GRANTED. Older generations than the previous one are
 * removed. A record that cannot be read (torn, foreign) is UNREACHABLE and never granted over; so
 * is a folder that is not there or hangs: the work is done by a thread, for which the engine's
 * thread waits at most FT_ARBITER_DEADLINE_MS. Compares generations and holders only: who may ask
 * (rule 4 of arbitration: in_sync and partner) is the caller's business. dir need not exist yet.
 * NULL: guest is no file name, or too long (EINVAL, ENAMETOOLONG), or out of memory. */
struct ft_arbiter *ft_arbiter_file_new(const char *dir, const char *guest, struct ft_err *err);

#endif
