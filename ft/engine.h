/* SPDX-License-Identifier: Apache-2.0 */
/* The engine: one guest's fault tolerance on one host, in whichever role. Event-driven and pure: it
 * learns everything through the calls below and acts through ops tables only (vmm, taps, link,
 * arbiter, environment), so the simulator runs what production runs.
 *
 *   engine.c          state, time, life
 *   connections.c     HELLO, who gets which message
 *   primary.c         protection: set-up, messages, time
 *   meeting.c         a peer that returns, or offers itself
 *   rounds.c          async rounds
 *   checkpoint.c      one checkpoint, from hold to commit
 *   ship.c            one checkpoint onto the wire
 *   protection_end.c  peer lost, cancel, VM died
 *   arbitration.c     questions to the arbiter
 *   standby.c         the other side: staging, verification, acknowledgement, application
 *   takeover.c        from the last committed checkpoint to a running guest; planned switch
 *   migrate.c         the same for a guest that moves: rounds, one checkpoint, hand-over
 *
 * One thread: every call below and every callback is on the engine's thread. */
#ifndef FT_ENGINE_H
#define FT_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "eventtap/tap.h"
#include "ft/arbiter.h"
#include "ft/codec.h"
#include "ft/err.h"
#include "ft/link.h"
#include "ft/msg.h"
#include "ft/policy.h"
#include "ft/spool.h"
#include "ft/state.h"
#include "ft/stats.h"
#include "vmm-glue/vmm.h"

struct ft_engine;

struct ft_disk_chunk {
	uint32_t disk;
	uint64_t offset;
	uint32_t bytes;
	bool zero; /* reads as zeroes; no data */
};

/* What a standby's copy of a disk has in a range: what it had when both copies were alike, zeroes,
 * or these sums, one of each `block` bytes (the last one of a disk may be shorter). */
#define FT_SUM_BYTES 16 /* XXH3-128, seeded with the session's number, big endian */
#define FT_SUMS_MAX  32 /* of one message: some MiB to read, which both sides do in one go */
struct ft_disk_sums {
	uint32_t disk;
	uint64_t offset, bytes;
	uint32_t block;
	bool zero, unchanged;
};

/* The host around the engine. */
struct ft_env_ops {
	uint64_t (*now_ns)(void *ctx); /* monotonic, counts suspended time, is never 0 */
	void (*wake_at)(
		void *ctx,
		uint64_t when_ns);     /* call ft_engine_tick() then; replaces the earlier wish */
	uint64_t (*random)(void *ctx); /* session numbers */

	/* Starts to connect to the peer; ft_engine_dialed() follows exactly once, not from inside,
	 * with EDESTADDRREQ if no peer is known. hang_up forgets all dials. */
	void (*dial)(void *ctx, bool heartbeat);
	void (*hang_up)(void *ctx);

	/* ---- where the guest runs ---- */
	/* Makes the taps (engine->chain), connects the VM to them; guest runs on through them (mode
	 * PASS). / Undoes it; after an error the taps are there still and the guest runs on through
	 * them: try again later. */
	int (*taps_in)(void *ctx, struct ft_err *err);
	int (*taps_out)(void *ctx, struct ft_err *err);
	/* A checkpoint is about to stop the guest: disk taps must answer everything / it is over.
	 */
	void (*firing)(void *ctx, bool on);
	/* What the VM is, for the peer, which setup->migrate and ->postcopy tell how it is to have
	 * it. Strings stay valid until the next call. */
	int (*describe)(void *ctx, Ft__Setup *setup, struct ft_err *err);
	/* Initial copy of replicated disks. next: 1 = *chunk (and data unless zero), 0 = nothing is
	 * behind now, -errno. */
	void (*disks_all_behind)(void *ctx);
	int (*disk_next)(void *ctx, uint8_t *data, uint32_t data_max, struct ft_disk_chunk *chunk,
			 struct ft_err *err);
	uint64_t (*disks_behind)(void *ctx);
	/* What the peer's copy has in a range is not behind where ours has the same. sums: of every
	 * block of the range, NULL when it is zero or unchanged. *alike: bytes that are not behind
	 * any more. -EPROTO: not within the disk. */
	int (*disk_compare)(void *ctx, uint64_t seed, const struct ft_disk_sums *range,
			    const uint8_t *sums, uint64_t *alike, struct ft_err *err);
	/* Shared disks of the stopped guest, released up to the last epoch, are given up: the other
	 * host may have them from now on. Until they are reclaimed or discarded nothing may touch
	 * them. */
	void (*disks_yield)(void *ctx);
	/* Takes them back, all or none, before the guest goes on: the switch is undone.
	 * void_generation: the other host had them under it and said that it does not run the
	 * guest, 0 = none. -EBUSY: the other host has, or had, one of them. */
	int (*disks_reclaim)(void *ctx, uint64_t void_generation, struct ft_err *err);
	/* on: the guest may be elsewhere. If this process dies, the VM must not go on (keeper), and
	 * nobody may start the guest from here without asking: durable when this returns 0. With a
	 * session (ft_engine_status()) the standby's copies are at the last epoch. Off is tried. */
	int (*guard)(void *ctx, bool on, struct ft_err *err);
	/* Ends the VM here by force, for the guest runs elsewhere or must not run; sets the
	 * engine's vmm to NULL. The taps go too. */
	void (*vm_end)(void *ctx);

	/* ---- standby ---- */
	/* Makes an armed VM and its disks' stores as the primary describes them; sets engine's vmm
	 * by ft_engine_set_vmm(). */
	int (*arm)(void *ctx, const Ft__Setup *setup, struct ft_err *err);
	void (*disarm)(void *ctx);
	/* The next range of the disks as they were when they were armed, at most FT_SUMS_MAX
	 * blocks: 1 with its sums (FT_SUMS_MAX of FT_SUM_BYTES each) unless zero or unchanged, 0:
	 * that was all, -errno. */
	int (*store_sums)(void *ctx, uint64_t seed, struct ft_disk_sums *range, uint8_t *sums,
			  struct ft_err *err);
	int (*store_sync)(void *ctx, const struct ft_disk_chunk *chunk, const uint8_t *data,
			  struct ft_err *err);
	/* config.durable only: the disk records of the checkpoint that is being staged, one by one,
	 * and then all of them are to be durable: ft_engine_stored() follows, not from inside.
	 * Everything before it was applied. A checkpoint may be given up at any time; first of a
	 * session: what was synced must be durable too. */
	int (*store_stage)(void *ctx, const struct tap_record *rec, struct ft_err *err);
	int (*store_staged)(void *ctx, uint64_t generation, uint64_t epoch, struct ft_err *err);
	void (*store_unstage)(void *ctx);
	int (*store_apply)(void *ctx, const struct tap_record *rec, struct ft_err *err);
	int (*store_commit)(void *ctx, uint64_t generation, uint64_t epoch, struct ft_err *err);
	void (*store_released)(void *ctx, uint64_t epoch);
	/* Durable: disks at `epoch`, activation record written; images are free for the VM.
	 * settled: the old primary surely writes to shared disks no more; else they are not touched
	 * (-EBUSY) unless they themselves tell so. */
	int (*store_activate)(void *ctx, uint64_t generation, uint64_t epoch, bool settled,
			      struct ft_err *err);
	/* Runs the operator's fence program against `host`; ft_engine_fenced() follows exactly
	 * once, not from inside. Only with config.fence. */
	void (*fence)(void *ctx, const char *host, uint64_t generation);
	int (*store_outdate)(void *ctx, struct ft_err *err);

	/* ---- postcopy; all NULL: it is not to be had ---- */
	/* (Source: describe() of a postcopy migration says that disks' bitmaps will follow: from
	 * then on nobody may change them, until pages_close().)
	 * Source: makes two connections for pages to the target, of this session, each greeted by
	 * ft_engine_pages_hello(). ft_engine_pages() tells what becomes of them, not from inside.
	 */
	int (*pages_open)(void *ctx, uint64_t session, struct ft_err *err);
	/* Source: the guest stands still, and the target, which lacks these pages, is about to have
	 * it: what it asks for it gets. */
	void (*pages_give)(void *ctx, const struct ft_bitmap *missing);
	/* Source: the guest runs at the target. What else follows it does so from now on; pages
	 * go without being asked for, too, or they do not. */
	void (*pages_push)(void *ctx, bool on);
	/* Target: what is armed may be run without its memory. */
	int (*pages_prepare)(void *ctx, uint64_t generation, struct ft_err *err);
	/* Target: a connection for pages; takes the link, on which both said HELLO. */
	void (*pages_link)(void *ctx, struct ft_link *link, bool urgent);
	/* Target: the VM runs next, and who touches one of these pages waits for it. */
	int (*pages_begin)(void *ctx, const struct ft_bitmap *missing, struct ft_err *err);
	/* Both: forgets connections and pages. Before all was there: the guest does not run at the
	 * target. */
	void (*pages_close)(void *ctx);

	/* ---- both ---- */
	/* The generation this host acts under; to be remembered across a restart. */
	void (*generation)(void *ctx, uint64_t generation);
	/* Something that `status` shows, or a waiter waits for, changed. */
	void (*changed)(void *ctx);
};

/* How a guest is to be migrated. */
struct ft_migrate {
	bool throttle;	  /* slow the guest down as long as rounds do not converge */
	bool postcopy;	  /* it runs at the target before its memory is there */
	bool demand_only; /* postcopy: no page goes that nobody asks for */
	unsigned rounds;  /* postcopy: so many rounds before the switch */
};

/* What becomes of the connections for a postcopy migration's pages, and of the pages. */
enum ft_pages_news {
	FT_PAGES_READY,	 /* source: both connections are there */
	FT_PAGES_CUT,	 /* one is lost; the pages are where they are */
	FT_PAGES_HERE,	 /* target: all pages are here; other things still follow */
	FT_PAGES_ALL,	 /* the target has all there is */
	FT_PAGES_FAILED, /* some cannot be read, or placed, ever */
};

struct ft_engine_config {
	char name[VMM_NAME_MAX];
	char host_id[FT_HOST_ID_MAX];
	struct ft_policy policy;
	unsigned heartbeat_ms, takeover_ms;
	unsigned lease_ms; /* of a shared disk, see ft/lease.h */
	bool takeover_manual, fence;
	size_t staging_bytes;	   /* each side's bound */
	size_t delta_base_bytes;   /* primary */
	uint64_t generation;	   /* remembered from before, 0 = none */
	char home[FT_HOST_ID_MAX]; /* where the guest belongs, "" = not known yet */
	bool durable;	    /* standby: disk records are durable before they are acknowledged */
	bool home_is_fixed; /* by the operator; else the primary knows better */
	const struct ft_overflow_ops
		*overflow; /* for staging beyond its bound; two streams: ctx[0], ctx[1] */
	void *overflow_ctx[4];
};

/* Copies config. The arbiter and env stay the caller's. Starts in FT_STARTING. */
int ft_engine_new(const struct ft_engine_config *config, const struct ft_env_ops *env,
		  void *env_ctx, struct ft_arbiter *arbiter, struct ft_engine **out,
		  struct ft_err *err);
/* Drops links without a word (use ft_engine_stop() first for an orderly end). VM, taps and arbiter
 * stay the caller's. */
void ft_engine_free(struct ft_engine *e);

/* ---- the host tells ---- */
void ft_engine_tick(struct ft_engine *e);
/* Before a start: what became known since ft_engine_new(). Older ones are known already. */
void ft_engine_remember(struct ft_engine *e, uint64_t generation);
/* Role at start: the VM runs here / we wait for a primary. */
void ft_engine_start_solo(struct ft_engine *e, struct vmm *vmm);
void ft_engine_start_standby(struct ft_engine *e);
/* The VM object changed (arm made one, quit destroyed it: NULL). */
void ft_engine_set_vmm(struct ft_engine *e, struct vmm *vmm);
struct tap_chain *ft_engine_chain(struct ft_engine *e);
/* Takes the link, or *err says why there is none. */
void ft_engine_dialed(struct ft_engine *e, bool heartbeat, struct ft_link *link,
		      const struct ft_err *err);
/* A peer connected; takes the link. */
void ft_engine_accepted(struct ft_engine *e, struct ft_link *link);
/* by_guest: the guest powered itself off, which is no fault and no reason for a takeover. */
void ft_engine_vm_lost(struct ft_engine *e, bool by_guest, const char *why);
/* The fence program has ended; err: the old primary may still run. */
void ft_engine_fenced(struct ft_engine *e, const struct ft_err *err);
/* Asked right before each write of what a shared disk's tap releases: for how long it may begin;
 * 0: not now, UINT64_MAX: as long as it likes, for nobody else can be granted the guest. Keeps
 * heartbeats going, for there may be many writes. */
uint64_t ft_engine_may_write_ns(struct ft_engine *e);
/* Postcopy, both sides. why: of FT_PAGES_CUT and _FAILED. */
void ft_engine_pages(struct ft_engine *e, enum ft_pages_news news, const struct ft_err *why);
/* Source: says HELLO on a connection for pages. The answer is a HELLO, or a REFUSE: EALREADY: the
 * target has all pages. */
void ft_engine_pages_hello(struct ft_engine *e, struct ft_link *link, bool urgent);
/* The answer to env->store_staged(): the disk records of this epoch are durable, or why not. */
void ft_engine_stored(struct ft_engine *e, uint64_t epoch, const struct ft_err *err);
/* From tap_notify, brought to the engine's thread by the host. */
void ft_engine_output(struct ft_engine *e);
void ft_engine_pressure(struct ft_engine *e);

/* ---- operators ask ---- */
typedef void ft_done_fn(void *ctx, const struct ft_err *err, uint64_t value);
/* Protect the guest through the peer that env->dial reaches. done at PROTECTED or failure. */
int ft_engine_protect(struct ft_engine *e, ft_done_fn *done, void *ctx, struct ft_err *err);
/* Live migration to the peer that env->dial reaches (ft/migrate.c). done when the guest runs there
 * and this side is FT_STOPPED, value = downtime in us; or at failure: the guest runs on here, solo.
 */
int ft_engine_migrate(struct ft_engine *e, const struct ft_migrate *how, ft_done_fn *done,
		      void *ctx, struct ft_err *err);
/* Source of a postcopy migration: connects again; done as ft_engine_migrate()'s, or when the link
 * is lost again. -EINVAL: there is none, or its link is good. */
int ft_engine_recover(struct ft_engine *e, bool demand_only, ft_done_fn *done, void *ctx,
		      struct ft_err *err);
/* Leave protection, or give up waiting for a lost peer: the guest runs on solo. */
int ft_engine_cancel(struct ft_engine *e, struct ft_err *err);
/* One checkpoint now; done when it is committed; value = its epoch. */
int ft_engine_checkpoint(struct ft_engine *e, ft_done_fn *done, void *ctx, struct ft_err *err);
/* Checkpoint with the primary's RAM digest taken in the pause; done after the standby has compared;
 * value = digest. */
int ft_engine_verify(struct ft_engine *e, ft_done_fn *done, void *ctx, struct ft_err *err);
/* Standby: take over now. Primary: planned switch. */
int ft_engine_failover(struct ft_engine *e, ft_done_fn *done, void *ctx, struct ft_err *err);
/* Planned switch to the host where the guest belongs, asked for on either side. -EALREADY: it is
 * there; -EINVAL: the pair does not allow it now. */
int ft_engine_failback(struct ft_engine *e, ft_done_fn *done, void *ctx, struct ft_err *err);
/* On a standby in sync: the device state that belongs to the VM's image as it is now. Valid until
 * the loop turns. -EINVAL: it holds no checkpoint, or is about to run it. */
int ft_engine_committed_state(const struct ft_engine *e, const uint8_t **state, size_t *len,
			      struct ft_err *err);
/* Orderly end: the peer is told. The VM is not touched. */
void ft_engine_stop(struct ft_engine *e, const char *why);

struct ft_engine_status {
	enum ft_state state;
	const char *reason;
	uint64_t state_since_ns;
	bool is_primary;
	bool waiting_for_decision; /* peer lost, no grant yet: outputs are held */
	uint64_t epoch_open, epoch_committed, generation;
	struct ft_figure pause_us, commit_us, dirty_pages;
	uint64_t bytes_raw, bytes_sent, checkpoints, checkpoints_failed;
	struct tap_stats taps;
	double overhead;
	uint64_t rounds;
	const char *
		mode; /* of the session there is, or was last: "" | "ft" | "precopy" | "postcopy" */
	uint64_t remaining_bytes; /* of RAM and disks, that the peer lacks while there are rounds */
	uint64_t downtime_us;	  /* of a migration: from the stop here to the target's word */
	unsigned throttle_percent;
	/* postcopy: this side has pages that the target lacks / lacks pages; and the link is lost
	 */
	bool pages_given, pages_missing, pages_cut;
	bool pages_here; /* (missing:) not pages, but what else follows */
	bool moved; /* FT_STOPPED: the guest runs elsewhere, and what is left of it here is to be
		       ended */
	/* of the initial copy: what the standby had already, how much of that both hosts knew
	 * without reading it, and what was sent */
	uint64_t disk_bytes_alike, disk_bytes_known, disk_bytes_copied;
	uint64_t session;	    /* of the protection from here, 0 = none */
	const char *home;	    /* "" = not known */
	const char *peer;	    /* "" = none */
	const char *arbiter_state;  /* "held" | "asked" | "undecided" | "unreachable" | "lost" |
				       "unused" */
	const char *arbiter_holder; /* of the guest, as far as this host knows; "" = it does not */
	const char *last_error;	    /* "" = none */
};
void ft_engine_status(struct ft_engine *e, struct ft_engine_status *status);
/* The cheap part. */
enum ft_state ft_engine_state(const struct ft_engine *e);
const char *ft_engine_reason(const struct ft_engine *e);

#endif
