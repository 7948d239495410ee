/* SPDX-License-Identifier: Apache-2.0 */
/* The event tap: everything the guest puts out passes one chain of taps, one tap per device.
 *
 *      guest device ---> tap ---> world            PASS   straight through
 *                         |                        TRACK  straight through, remembering what the
 * peer lacks (disks; others: PASS) queue by epoch             HOLD   kept until its epoch is
 * released
 *
 * One output is a record: a fixed header and its bytes, the same in memory, on the wire and at the
 * standby, whatever the device. The engine knows epochs and records, never frames, sectors or
 * ports.
 *
 * Epochs: outputs that arrive belong to the open epoch. close_epoch(e) runs while the guest is
 * paused: it takes in whatever the device has already emitted (drains its descriptors), and from
 * then on e is immutable and e+1 is open.
 *
 * Threads: sources call in from threads of their own; the engine's calls come from the engine's
 * thread; each tap has one lock.
 */
#ifndef EVENTTAP_TAP_H
#define EVENTTAP_TAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ft/err.h"

enum tap_kind {
	TAP_NET = 1,	     /* data: frame as the VMM gave it, opaque */
	TAP_CONSOLE = 2,     /* data: bytes */
	TAP_DISK_WRITE = 3,  /* arg: byte offset; data */
	TAP_DISK_ZERO = 4,   /* arg: byte offset; data: u64 length (le) */
	TAP_DISK_TRIM = 5,   /* likewise */
	TAP_DISK_FLUSH = 6,  /* no data: what came before must be durable before the epoch's other
				outputs are released */
	TAP_PIO = 7,	     /* arg: port; data: 1, 2, 4 or 8 bytes: full width */
	TAP_MMIO = 8,	     /* arg: guest-physical address; likewise */
	TAP_DISK_BITMAP = 9, /* named dirty bitmaps changed: block/bitmaps.h */
	TAP_KIND_MAX
};

#define TAP_RECORD_HEADER   16
#define TAP_RECORD_DATA_MAX (32u << 20) /* an NBD write is at most 32 MiB */
#define TAP_BITMAP_DATA_MAX (66u << 10)
#define TAP_NET_FRAME_MAX   (128u << 10) /* with TSO 64 KiB + headers; what is longer is no frame */

/* On the wire little endian: u8 kind, u8 device, u16 flags (0), u32 data length, u64 arg, data. */
struct tap_record {
	enum tap_kind kind;
	uint8_t device; /* index of the tap within its kind: NIC 0, disk 1 ... */
	uint32_t len;
	uint64_t arg;
	const uint8_t *data;
};

void tap_record_put_header(uint8_t out[TAP_RECORD_HEADER], const struct tap_record *rec);
/* Length of the whole record, 0 = more bytes are needed, -EPROTO = never (unknown kind, flags, a
 * length that its kind cannot have). Only the header is looked at when len is short: *need (may be
 * NULL) then gets the whole length once it is known, until then TAP_RECORD_HEADER. rec->data points
 * into buf. Input is hostile. */
long tap_record_parse(const uint8_t *buf, size_t len, struct tap_record *rec, size_t *need);

enum tap_mode { TAP_PASS, TAP_TRACK, TAP_HOLD };

struct tap_stats {
	uint64_t held_outputs,
		held_bytes; /* now, all epochs, memory included that commit has not freed yet */
	uint64_t outputs, bytes, dropped; /* since start; dropped: only network frames: over the
					     bound, on their way when the VMM went, discarded */
	uint64_t behind_bytes;		  /* disks in TRACK: what the peer still lacks */
};

/* Where a tap tells that something waits. Any thread; must not block and not call back. */
struct tap_notify {
	void (*output)(void *ctx); /* an output is held in the open epoch (HOLD only) */
	void (*pressure)(
		void *ctx); /* past the soft bound of memory: a checkpoint should come soon */
	void *ctx;
};

struct tap;
struct tap_cursor {
	uint64_t at, offset;
	void *record;
}; /* zeroed = start */

/* Every call is on the engine's thread. */
struct tap_ops {
	const char *kind; /* "disk" | "console" | "pio" | "net": which records are its own, and its
			     place in the chain */
	/* To HOLD: takes effect at the next close_epoch(), i.e. with the guest paused; what came
	 * before is passed on. To PASS: at once, everything still held is let go in order (only
	 * after a solo grant, or when protection ended by agreement). TRACK: at once; every byte
	 * the peer lacks is marked as behind by the caller beforehand. 0, or -errno: what a shared
	 * disk holds could not be written; it stays held, and the call may be repeated. */
	int (*set_mode)(struct tap *tap, enum tap_mode mode);
	/* Guest paused. Ends the open epoch `epoch`; the next one is epoch + 1. A disk that was
	 * TRACK and becomes HOLD here puts what is still behind into `epoch`, so that the
	 * checkpoint is whole. 0, or -errno: then this checkpoint must fail. After a checkpoint
	 * that failed the same epoch may be closed again: what came since joins it. */
	int (*close_epoch)(struct tap *tap, uint64_t epoch, struct ft_err *err);
	/* Serialised records of a closed epoch, in order, as many bytes as fit (records may be cut;
	 * the next call goes on). Returns bytes written, 0 = end. */
	size_t (*export)(struct tap *tap, uint64_t epoch, struct tap_cursor *cursor, uint8_t *out,
			 size_t room);
	/* The peer has acknowledged `epoch`: outputs up to it go out, in order. May be called for
	 * disks before nets so that data is durable before it is spoken of. 0 or -errno (shared
	 * disk: the write failed). */
	int (*release)(struct tap *tap, uint64_t epoch, struct ft_err *err);
	/* Outputs of every open or unacknowledged epoch are dropped: this host lost the guest
	 * (fenced) and is not its source. */
	void (*discard)(struct tap *tap);
	/* Takeover: sends one record of the last committed epoch to the world. The VM may not be
	 * running yet; order is kept. */
	int (*replay)(struct tap *tap, const struct tap_record *rec, struct ft_err *err);
	void (*stats)(struct tap *tap, struct tap_stats *stats);
	/* Ends the tap's threads and closes its descriptors. Nothing is let go. */
	void (*free)(struct tap *tap);
};

struct tap {
	const struct tap_ops *ops;
	struct tap_notify notify; /* set by the owner before the first set_mode() */
	uint8_t device;
	char id[64];
	struct tap *next; /* in the chain: disk, console, pio, net: what is durable first, who
			     speaks to the world last */
};

/* The chain: every link in order. Stops at the first error, which names the tap. */
struct tap_chain {
	struct tap *first;
};
/* Puts the tap where its kind belongs, behind others of its kind. The chain owns it from now on. */
void tap_chain_add(struct tap_chain *chain, struct tap *tap);
/* Takes it out; whose it is then is the caller's business. NULL, or one that is not there: nothing
 * is done. */
void tap_chain_remove(struct tap_chain *chain, struct tap *tap);
/* -errno: the links behind the one that failed are as they were, so that nobody is told of what is
 * not on the disk. */
int tap_chain_set_mode(struct tap_chain *chain, enum tap_mode mode);
int tap_chain_close_epoch(struct tap_chain *chain, uint64_t epoch, struct ft_err *err);
/* As tap_ops.export over all links; *link (zeroed at start) remembers which. */
struct tap_chain_cursor {
	struct tap *link;
	struct tap_cursor cursor;
	bool started;
};
size_t tap_chain_export(struct tap_chain *chain, uint64_t epoch, struct tap_chain_cursor *at,
			uint8_t *out, size_t room);
int tap_chain_release(struct tap_chain *chain, uint64_t epoch, struct ft_err *err);
void tap_chain_discard(struct tap_chain *chain);
/* Finds the tap of a record by kind and device. -ENODEV if there is none. */
int tap_chain_replay(struct tap_chain *chain, const struct tap_record *rec, struct ft_err *err);
void tap_chain_stats(struct tap_chain *chain, struct tap_stats *sum);
void tap_chain_free(struct tap_chain *chain);

#endif
