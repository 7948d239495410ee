/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's inside, shared by its files and nobody else. */
#ifndef FT_ENGINE_INTERNAL_H
#define FT_ENGINE_INTERNAL_H

#include "ft/detector.h"
#include "ft/engine.h"
#include "ft/lease.h"
#include "ft/throttle.h"

#define NS_PER_MS 1000000ull
#define NS_PER_S  1000000000ull

/* Deadlines and bounds of the engine's own waits. */
#define FT_SETUP_MAX_MS	    10000 /* HELLO to READY: includes starting a QEMU */
#define FT_ACK_MAX_MS	    10000 /* END to ACK */
#define FT_TRIAL_ACK_MAX_MS 20000 /* the first ACK includes a trial load */
#define FT_HANDOVER_MAX_MS  10000
/* A data connection that takes nothing for so long is dead, whatever the heartbeats say. */
#define FT_PROGRESS_MAX_MS 10000
/* From the first word to the first heartbeat, which needs a connection of its own. */
#define FT_BEAT_GRACE_MS    3000
#define FT_GUARD_MAX_MS	    5000 /* env->guard(): durable marks on the guest's disks */
#define FT_LEAVE_MAX_MS	    2000 /* BYE to the peer's BYE */
#define FT_UNTAP_RETRY_MS   5000
#define FT_RELEASE_RETRY_MS 500
/* Bytes of disk that the first checkpoint may read while the guest is held. */
#define FT_HOLD_DISK_MAX (64u << 20)
/* All staging buffers of one checkpoint onto the wire while the guest is held; the keeper ends a
 * longer hold. */
#define FT_HOLD_DRAIN_MAX_MS 1000
#define FT_RETRY_MS	     500   /* between attempts to reach a lost peer or the arbiter */
#define FT_OFFER_MAX_MS	     30000 /* between attempts to become a standby that came to nothing */
/* After a takeover the taps pass through this long before they are taken out. */
#define FT_PASS_SETTLE_MS 300
_Static_assert(FT_HOLD_DRAIN_MAX_MS < VMM_HOLD_MAX_MS,
	       "a slow link must not look like a frozen agent");
#define FT_APPLY_WINDOW	    (4u << 20) /* of staging, applied in one go */
#define FT_ROUND_BATCH	    32	       /* pages read at a time in async rounds */
#define FT_FRAMES_PER_TURN  16	       /* async rounds: then other events get their turn */
#define FT_CHECKPOINT_TRIES 3	       /* failures in a row that end protection */
#define FT_DONE_MAX	    8	       /* operators waiting for a checkpoint */

/* What the primary is doing with its peer. */
enum primary_phase {
	PRIMARY_IDLE,	 /* no protection wanted */
	PRIMARY_DIALING, /* data connection */
	PRIMARY_HELLO,	 /* waiting for the peer's HELLO */
	PRIMARY_SETUP,	 /* waiting for READY and for the heartbeat connection */
	PRIMARY_ROUNDS,	 /* async rounds */
	PRIMARY_RUNNING, /* sync: checkpoints */
	PRIMARY_HANDING, /* planned switch: handed over, waiting for HANDED */
	PRIMARY_LEAVING, /* protection ends by agreement: waiting for the peer's BYE, outputs held
			  */
	PRIMARY_LOST,	 /* peer lost, outputs held, no grant yet */
	PRIMARY_RETRY	 /* solo, protection wanted again: waiting for the next dial */
};

enum ship_phase {
	SHIP_IDLE,
	SHIP_PAGES,
	SHIP_MISSING,
	SHIP_STATE,
	SHIP_EVENTS,
	SHIP_END,
	SHIP_WAIT_ACK
};

struct ft_done {
	ft_done_fn *fn;
	void *ctx;
};

struct ft_ship {
	enum ship_phase phase;
	uint64_t epoch;
	bool begun, trial, digest, handover;
	uint64_t hold_until_ns; /* for what goes out while the guest is held */
	size_t page_at, state_at;
	uint64_t missing_at;
	uint64_t event_epoch; /* which epoch's records are being exported */
	struct tap_chain_cursor event_cursor;
	uint64_t pages_bytes, events_bytes;
	uint64_t started_ns, deadline_ns, pages;
	uint64_t raw_bytes;
	struct ft_err refused; /* why this host must not say END; code 0: it may */
};

/* A postcopy migration's pages (pages.c). */
struct ft_pages {
	bool open;   /* source: connections are asked for, or there */
	bool ready;  /* source: they are there */
	bool giving; /* source: the guest runs at the target */
	bool taking; /* target: it runs here */
	bool here;   /* target: not pages, but something else is still to come */
	bool cut, all;
	uint64_t session;
	char host[FT_HOST_ID_MAX]; /* the source */
	uint64_t done_session;	   /* target: of which all is here */
};

/* A migration (migrate.c). */
struct ft_move {
	bool on;
	struct ft_migrate how;
	struct ft_throttle throttle;
	bool asked, applied;   /* the target about the end of the round; it has answered */
	uint64_t pages_before; /* left after the round before */
	uint64_t bytes_per_s;  /* best that was measured */
	uint64_t stopped_ns, captured_ns, sent_ns, acked_ns; /* of the switch */
};

struct ft_primary {
	enum primary_phase phase;
	uint64_t deadline_ns; /* of the phase, 0 = none */
	bool taps_in, tracking, auto_retry;
	uint64_t session;
	char partner[FT_HOST_ID_MAX]; /* whose session it is */
	/* What the peer said of itself when it came back to a lost session. */
	struct {
		uint64_t session, committed;
		bool runs;
	} returned;
	uint64_t retry_ns; /* when to ask the arbiter again for the record of a resumed session */
	bool solo_unsure;  /* a swap to solo may have happened, or still may: the record must say
			      again who is in sync */
	bool gave_away;	   /* a HANDOVER went out and was not refused */
	uint64_t refused;  /* PRIMARY_LOST because the peer, which may have been granted this
			      generation for a HANDOVER, does not run the guest; 0 = no */
	bool switch_asked; /* the planned switch was asked for at the standby, which waits to hear
			    */
	bool bye_sent;
	bool leave_retry;	   /* after PRIMARY_LEAVING */
	bool vm_off;		   /* PRIMARY_LEAVING because the guest shut itself down */
	char why[FT_REASON_MAX];   /* protection is ending */
	struct ft_bitmap pending;  /* pages that the standby does not have yet */
	struct ft_bitmap overflow; /* pages of the checkpoint in flight that left staging while the
				      guest was held */
	struct vmm_capture capture;
	struct ft_codec *codec;
	uint8_t *batch; /* FT_ROUND_BATCH pages */
	uint64_t batch_pfns[FT_ROUND_BATCH];
	/* rounds */
	bool comparing; /* the standby is still saying what its disks have: none of them is copied
			 */
	uint64_t disk_bytes_alike, disk_bytes_known, disk_bytes_copied;
	bool round_more;   /* the last turn ended with more to do, and room for it */
	uint64_t round_at; /* next page of the bitmap to look at */
	struct ft_round round;
	struct ft_move move;
	uint64_t round_started_ns, round_bytes_start, round_pages;
	/* running */
	struct ft_ship ship;
	uint64_t resumed_ns, last_pause_ns, output_ns;
	uint64_t release_ns; /* a release failed: tried again then, 0 = none is owed */
	bool pressure, requested, want_digest, want_switch;
	bool stopped;	   /* the guest stands still, its shared disks are given up ... */
	bool stepped_back; /* ... not for a planned switch, but because the peer may have them */
	bool shared;	   /* it has some */
	bool vm_dead;	   /* the VM died under protection: only the hand-over is left to do */
	unsigned failures; /* checkpoints in a row */
	struct ft_lease lease;
	uint64_t lease_from_ns; /* answers to earlier beats are another session's */
	uint64_t lease_due_ns;	/* without one by then the peer is of no use */
	bool sync_claimed; /* the standby may be granted the guest: the arbiter was asked to record
			      it, or (none) it knows by itself */
	uint64_t verify_until_ns;
	uint64_t digest, digest_epoch; /* ours, and of which checkpoint; 0: nobody asks */
	bool first_commit_done;
	struct ft_done waiting[FT_DONE_MAX]; /* for the next checkpoint that starts */
	struct ft_done in_flight[FT_DONE_MAX];
	struct ft_done protect_done, verify_done, switch_done;
};

struct ft_stage {
	uint64_t epoch; /* being received, 0 = none */
	struct ft_spool pages, events[2];
	unsigned
		staging; /* which of events[]/state[] is being staged; the other one is committed */
	uint8_t *state[2];
	size_t state_len[2];
	uint64_t generation;
};

struct ft_standby {
	bool armed;
	bool postcopy;		  /* ... and its memory comes when the guest runs */
	struct ft_bitmap missing; /* postcopy */
	bool moving;	  /* the session is a migration: nothing is taken without a HANDOVER */
	bool comparing;	  /* there are SUMS to send */
	uint64_t storing; /* epoch that is being made durable before it counts, 0 = none */
	bool digest;	  /* its END asked for one */
	uint64_t session;
	uint64_t committed; /* epoch, 0 = nothing yet */
	uint64_t primary_generation;
	char primary_host[FT_HOST_ID_MAX];
	struct ft_stage stage;
	uint8_t *scratch; /* one record of the spools */
	size_t scratch_max;
	uint64_t unlinked_ns; /* since when the data connection is gone, 0 = it is there */
	bool beats;	      /* since the last data connection there was one for heartbeats */
	bool suspicious;      /* takeover wanted, not granted (yet) */
	uint64_t retry_ns;
	uint64_t takeover_ns; /* when the takeover began */
	bool handover;	      /* takeover by agreement */
	bool shared;	      /* the guest has a disk that both hosts write to ... */
	bool given;	      /* ... and its primary gave it up for us */
	bool gave_up;	      /* its takeover failed, and the guest cannot be started here */
	struct ft_grant grant;
	enum { FENCE_TO_DO, FENCE_ASKED, FENCE_DONE } fence; /* the operator's program */
	bool dials; /* the connection was made by this side, so the peer may not know the way */
	uint64_t tell_ns;  /* takeover: when to tell the old primary again */
	bool offering;	   /* after a planned switch: looks for the new primary by itself */
	unsigned offer_ms; /* to the next attempt, when this side could not take what it got */
	uint64_t asked_ns; /* an operator wants the guest here and the primary was asked to hand
			      over, 0 = no */
	struct ft_done failover_done;
};

/* Connections: one for data, one for heartbeats, and some that have not said HELLO yet. */
#define ENGINE_STRANGERS      4
#define ENGINE_CONNS	      (2 + ENGINE_STRANGERS)
#define STRANGER_HELLO_MAX_MS 5000
enum { CONN_DATA, CONN_BEAT, CONN_STRANGER };
struct engine_conn {
	struct ft_engine *e;
	struct ft_link *link; /* NULL: slot is free */
	uint64_t since_ns;
	bool dialed;  /* we connected, not they */
	bool greeted; /* their HELLO was good */
};

enum engine_question {
	QUESTION_NONE,
	QUESTION_CLAIM,
	QUESTION_IN_SYNC,
	QUESTION_SOLO,
	QUESTION_TAKEOVER
};

struct ft_engine {
	struct ft_engine_config config;
	const struct ft_env_ops *env;
	void *env_ctx;
	struct ft_arbiter *arbiter;
	struct vmm *vmm;
	struct tap_chain chain;
	struct ft_state_var state;
	uint64_t generation;
	uint64_t epoch; /* open; counts on across sessions */
	uint64_t committed;

	struct engine_conn conns[ENGINE_CONNS];
	struct ft_detector detector;
	bool watching;	  /* the detector counts */
	uint64_t beat_ns; /* when the newest BEAT was sent */
	enum engine_question asking,
		ask_next; /* the arbiter request that is out; the one that waits for it */
	uint64_t situation, asked_in; /* counts what makes the answer to a question void */
	const char *mode;	      /* of the last session */
	uint64_t downtime_us;
	const char *arbiter_state;
	char arbiter_holder[FT_HOST_ID_MAX]; /* as it said last; "": it was not asked in this role
					      */
	char peer_host[FT_HOST_ID_MAX];
	char home[FT_HOST_ID_MAX];
	uint64_t untap_ns; /* when to take the taps out after a takeover, 0 = no */

	struct ft_primary primary;
	struct ft_standby standby;
	struct ft_pages pages;

	struct ft_series pause_us, commit_us, dirty_pages;
	struct ft_overhead overhead;
	uint64_t bytes_raw, bytes_sent, checkpoints, checkpoints_failed;
	char last_error[FT_ERR_TEXT_MAX];
	bool stopped, moved;
};

static inline bool engine_is_standby(const struct ft_engine *e)
{
	return e->state.now == FT_STANDBY || e->state.now == FT_TAKEOVER;
}

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* engine.c, connections.c */
uint64_t engine_now(struct ft_engine *e);
void engine_set_state(struct ft_engine *e, enum ft_state to, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
void engine_note_error(struct ft_engine *e, const struct ft_err *err);
/* Closes both links; the peer sees end of file. */
void engine_hang_up(struct ft_engine *e);
int engine_send(struct ft_engine *e, unsigned type, uint64_t epoch, const ProtobufCMessage *body,
		const uint8_t *payload, uint32_t len);
/* Sends REFUSE and closes that link. */
void engine_refuse(struct ft_engine *e, struct ft_link *link, const struct ft_err *err);
void engine_hello(struct ft_engine *e, struct ft_link *link, bool heartbeat);
struct ft_link *engine_data(struct ft_engine *e); /* NULL when there is none */
struct ft_link *engine_beat_link(struct ft_engine *e);
void engine_drop(struct ft_engine *e, struct engine_conn *conn);
/* Sends a heartbeat if one is due: also from inside long work. */
void engine_beat(struct ft_engine *e);
/* Tells the peer not to suspect us for the next `ms`: something long and known is about to happen.
 */
void engine_ask_patience(struct ft_engine *e, unsigned ms);
void engine_watch(struct ft_engine *e, bool on);
/* Lets go all that is held, in order. -errno: a disk did not take it, and what comes behind is held
 * on. */
int engine_pass(struct ft_engine *e, struct ft_err *err);
/* Lets go what is still held and takes the taps out; if that fails they stay, passing through, and
 * it is tried again later. */
void engine_untap(struct ft_engine *e);
void engine_fence(struct ft_engine *e, const char *why);
void done_call(struct ft_done *done, const struct ft_err *err, uint64_t value);
bool done_set(struct ft_done *done, ft_done_fn *fn, void *ctx);

/* meeting.c: the primary's side of meeting a peer */
void primary_peer_hello(struct ft_engine *e, const Ft__Hello *hello);
/* In PRIMARY_LOST, with the peer connected again: go on, go on alone, or wait for the arbiter. */
void primary_meet(struct ft_engine *e);
/* A standby connected and offers itself. */
void primary_offered(struct ft_engine *e);
void primary_refused(struct ft_engine *e, const Ft__Refuse *refuse);

/* arbitration.c: each answers through engine state */
void arbitrate_primary_lost_peer(struct ft_engine *e);
void arbitrate_standby_takeover(struct ft_engine *e);
/* The primary claims its generation when protection starts; then primary_claimed(). */
void arbitrate_claim(struct ft_engine *e);
/* Records that the standby is in sync; then primary_in_sync(). */
void arbitrate_in_sync(struct ft_engine *e);

/* primary.c */
int primary_init(struct ft_engine *e, struct ft_err *err);
void primary_free(struct ft_engine *e);
/* Solo only: looks for a peer, to protect the guest or to migrate it. */
int primary_begin(struct ft_engine *e, const char *what, ft_done_fn *done, void *ctx,
		  struct ft_err *err);
void primary_start_dial(struct ft_engine *e);
void primary_dialed(struct ft_engine *e);
void primary_message(struct ft_engine *e, const struct ft_msg *msg);
void primary_writable(struct ft_engine *e);
/* SETUP to the peer; resume: of the session that it still has. */
int primary_send_setup(struct ft_engine *e, bool resume, struct ft_err *err);
void primary_setup_failed(struct ft_engine *e, const struct ft_err *err);
void primary_claimed(struct ft_engine *e, enum ft_arbiter_answer answer, const char *why);
void primary_in_sync(struct ft_engine *e, enum ft_arbiter_answer answer, const char *why);
/* The peer is gone or unusable. */
void primary_peer_lost(struct ft_engine *e, const char *why);
/* Ends protection here: taps out, tracker off, links closed. The guest runs on, everything held is
 * let go. */
void primary_end(struct ft_engine *e, bool retry, const char *why);
/* Ends it by agreement: what is held stays held until the standby has confirmed that it forgot its
 * checkpoint. */
void primary_leave(struct ft_engine *e, bool retry, const char *why);
void primary_leave_continue(struct ft_engine *e);
uint64_t primary_tick(struct ft_engine *e, uint64_t now);
void primary_checkpoint(struct ft_engine *e, bool keep_stopped);
void primary_committed(struct ft_engine *e, uint64_t epoch);
/* Lets go what is committed; if a disk does not take it, again later. */
bool primary_release(struct ft_engine *e);
bool setup_has_shared_disk(const Ft__Setup *setup);
/* PRIMARY_LOST: returns when to be called again. */
uint64_t primary_lost_tick(struct ft_engine *e, uint64_t now);
/* The guest that stands still runs again, with its shared disks: -errno: the other host has them.
 */
int primary_step_forward(struct ft_engine *e, struct ft_err *err);
void primary_acked(struct ft_engine *e, const struct ft_msg *msg);
/* The capture in flight will not arrive: its pages stay owed. */
void primary_abort_checkpoint(struct ft_engine *e, const char *why);
/* Protection is over: so is waiting for the next checkpoint. */
void primary_forget_waiting(struct ft_engine *e, const struct ft_err *why);

/* migrate.c */
/* A round is over: true: it was the last one, and the guest stands still, or the attempt is over.
 */
bool migrate_round(struct ft_engine *e);
/* While there are rounds: returns when to be called again. */
uint64_t migrate_tick(struct ft_engine *e, uint64_t now);
/* Throttling ends, whether it held the guest or not. */
void migrate_unthrottle(struct ft_engine *e);
/* All there is of the guest is on its way. */
void migrate_sent(struct ft_engine *e);
/* The target has all there is of the guest; it is to have the guest, too. */
void migrate_acked(struct ft_engine *e);
void migrate_granted(struct ft_engine *e);
/* The target runs it. */
void migrate_handed(struct ft_engine *e, uint64_t generation);
/* The guest runs on here. */
void migrate_failed(struct ft_engine *e, const struct ft_err *why);

/* All of a round is sent. False: the target has not applied it yet. */
bool migrate_round_over(struct ft_engine *e);
/* It has. */
void migrate_applied(struct ft_engine *e);
/* Rounds send no pages any more: they follow the guest. */
bool migrate_pages_stay(const struct ft_engine *e);
/* Nothing is left to do before the switch but to wait for the connections for pages. */
bool migrate_waits(struct ft_engine *e);

/* pages.c: postcopy */
/* Source: SETUP is about to say what will follow the guest. */
void pages_announce(struct ft_engine *e);
void pages_open(struct ft_engine *e);
/* Source: they are not needed, or not any more. */
void pages_close(struct ft_engine *e);
/* Target: there will be no guest for them. */
void pages_forget(struct ft_engine *e);
/* Source: the guest runs at the target. */
void pages_handed(struct ft_engine *e);
/* Target: the guest is about to run. */
int pages_begin(struct ft_engine *e, struct ft_err *err);
/* A HELLO on a connection for pages. True: it was one. */
bool pages_hello(struct engine_conn *conn, const Ft__Hello *hello);
/* -EBUSY while memory is missing, or given. */
int pages_check(const struct ft_engine *e, const char *what, struct ft_err *err);

/* compare.c: what the standby's disks have already is not sent */
/* Standby: sends the next SUMS. True: there is more, and room for it. */
bool compare_send(struct ft_engine *e);
/* Primary. */
int compare_sums(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err);

/* ship.c */
void ship_start(struct ft_engine *e, uint64_t epoch);
/* Goes on until the link is full or all is sent. When the link is dead, or this host must not go
 * on, the session is over. */
void ship_continue(struct ft_engine *e);
/* vmm_hold_hooks.full: what is in staging goes out while the guest is held. */
int ship_full(void *ctx, struct vmm_capture *capture);

/* standby.c */
int standby_init(struct ft_engine *e, struct ft_err *err);
void standby_free(struct ft_engine *e);
void standby_peer_hello(struct ft_engine *e, const Ft__Hello *hello);
void standby_message(struct ft_engine *e, const struct ft_msg *msg);
/* A fault that ends the session: the primary is told, what is committed stays committed. */
void standby_refuse(struct ft_engine *e, const struct ft_err *err);
void standby_link_closed(struct ft_engine *e, bool data, const char *why);
void standby_silence(struct ft_engine *e, const char *why);
/* Gives up what it holds and tells the primary so, which then needs nobody's grant to go on alone.
 */
void standby_leave(struct ft_engine *e);
uint64_t standby_tick(struct ft_engine *e, uint64_t now);
/* What is staged and not committed is given up. */
void standby_unstage(struct ft_engine *e);
/* Forgets the session: VM disarmed, nothing committed. */
void standby_reset(struct ft_engine *e);
/* Walks the committed records; fn returns 0 to go on. */
int standby_each_event(struct ft_engine *e, struct ft_spool *spool,
		       int (*fn)(struct ft_engine *, const struct tap_record *, struct ft_err *),
		       struct ft_err *err);

/* stage.c: messages of the initial copy and of a checkpoint. 0 or -errno: the session ends; if
 * committed has changed by then, the image is between two epochs. */
int stage_pages(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err);
int stage_disk(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err);
int stage_missing(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err);
int stage_begin(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err);
int stage_state(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err);
int stage_events(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err);
int stage_end(struct ft_engine *e, const struct ft_msg *msg, struct ft_err *err);
/* What is staged is whole, verified, and as durable as it has to be: it counts. */
int stage_commit(struct ft_engine *e, struct ft_err *err);

/* takeover.c */
/* The grant is ours: make the guest run. */
void takeover_run(struct ft_engine *e, uint64_t generation);
void takeover_refused(struct ft_engine *e, const char *why);

/* planned_switch.c */
int switch_start(struct ft_engine *e, struct ft_err *err);
void switch_acked(struct ft_engine *e);
void switch_handed(struct ft_engine *e, uint64_t generation);
/* The peer did not take it. It holds what it was given, and the guest goes on here, protected; or
 * it moved or failed, and then the guest is here alone. */
void switch_undone(struct ft_engine *e, const struct ft_err *why, bool failed);
/* There is no hand-over: whoever asked for one hears why. */
void switch_off(struct ft_engine *e, const struct ft_err *why);

#endif
