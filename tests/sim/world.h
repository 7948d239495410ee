/* SPDX-License-Identifier: Apache-2.0 */
/* The deterministic simulator: two production engines in one process and one thread, in a world
 * whose clock, links, arbiter, machines, disks and faults all come from one seed. Same seed in,
 * same run out, to the last event.
 *
 *   world.c     clock, queue of events, random numbers, timeline
 *   net.c       connections with latency, a window, and all the ways to end
 *   arbiter.c   its record, and how questions get lost
 *   node.c      a host: its start, crash and freeze        env.c  what its engine asks of it
 *   machine.c   a small guest: RAM, state, disks, a chain of answers
 *   disk.c      its disks, as it and its VMM have them
 *     disk_taps.c      where it runs: production's taps
 *     disk_stores.c    where it may run next: production's stores and journal
 *     disk_metadata.c  what their files say when nobody has them
 *     disk_bitmaps.c   an operator's bitmaps on them
 *   seams.c     how they are put under production code without threads and sockets
 *   files.c     the filesystems below them, which can fail, tear and forget: open files
 *     names.c          which file has a name, now and after a power cut
 *     locks.c          who may have an open file with whom
 *     folders.c        lists of a folder's names, and streams
 *     inode.c          a file's bytes, in a page cache and durable
 *   copies.c    snapshots of the disks, at any moment
 *   frozen.c    snapshots of RAM: writes against scans
 *   tap.c       its NIC: production's queue of outputs by epoch
 *   pages.c     memory that follows a guest (postcopy)
 *   faults.c    what goes wrong, drawn from the seed
 *   operator.c  the people: protect, restart, decide
 *   check.c     the promises, checked at every output and at the end
 *   history.c   what was executed, and what a guest that boots from its disks must find there
 *   bounds.c    memory and queues, checked at every event
 *   mutants.c   faults that the checks must find
 *   run.c       one seed: options, phases
 *   main.c      many seeds
 *
 * The guest's answers carry a hash chain with a random input in each link, so that an execution
 * that is repeated after a rollback differs from the one before: an output that was released too
 * early shows as a fork. */
#ifndef TESTS_SIM_WORLD_H
#define TESTS_SIM_WORLD_H

#include <stdbool.h>
#include <stdint.h>

#include "eventtap/block/bitmaps_follow.h"
#include "ft/engine.h"
#include "ft/postcopy/giver.h"
#include "ft/postcopy/missing.h"
#include "ft/postcopy/taker.h"
#include "tests/sim/disk.h"
#include "tests/sim/files.h"

#define US 1000ull

#define MS 1000000ull
#define S  1000000000ull

#define SIM_NODES   2
#define SIM_PAGES   24
#define SIM_JOURNAL 16 /* of a disk's blocks, the first of the first disk: its journal */
#define SIM_OPS_MAX 20000
#define SIM_LINES   128 /* of the end of a timeline, and a quarter of it of its beginning */
#define SIM_LINE    256

struct world;
struct node;
struct run;
struct sim_link;
struct worker;
struct journal;

/* ---- clock ---- */
typedef void event_fn(void *ctx, uint64_t arg);
uint64_t world_random(struct world *w);
uint64_t world_range(struct world *w, uint64_t lo, uint64_t hi); /* inclusive */
bool world_chance(struct world *w, unsigned percent);
/* Runs fn at now + in. owner: events of a frozen node wait until it thaws, those of a crashed one
 * are dropped; NULL: nobody's. */
void world_after(struct world *w, uint64_t in, struct node *owner, event_fn *fn, void *ctx,
		 uint64_t arg);
/* Likewise, but a crash of the owner does not drop it. */
void world_wait(struct world *w, uint64_t in, struct node *owner, event_fn *fn, void *ctx);
bool world_step(struct world *w, uint64_t until);
void world_log_end(struct world *w);
void world_log(struct world *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void world_violation(struct world *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- machine: what a guest is ---- */
/* A request takes several steps, and a checkpoint may come between any two: RAM changes, data
 * blocks are written (to any disk), perhaps flushed, then the journal is written, perhaps flushed,
 * then the answer goes out. */
struct machine_state {
	uint32_t magic;
	uint32_t step;	  /* of the request under way */
	uint64_t ops;	  /* requests served */
	uint64_t chain;	  /* hash over all of them */
	uint64_t request; /* under way, 0 = none */
	uint64_t next_chain;
};

/* What a request does to the disks, all drawn from its number. */
#define SIM_WRITES_MAX 4
struct plan {
	unsigned writes;
	struct {
		uint8_t disk, block;
		enum tap_kind kind; /* WRITE, ZERO or TRIM */
	} write[SIM_WRITES_MAX];
	bool durable; /* flushed before it is answered */
};

struct sums {
	uint64_t ram, disk[SIM_DISKS];
	uint32_t dirty[SIM_DISKS]; /* blocks that its bitmap says */
};
_Static_assert(SIM_BLOCKS == 32, "a bit each");

struct machine {
	struct vmm vmm;
	struct node *node;
	uint8_t *ram; /* SIM_PAGES pages */
	uint8_t dirty[SIM_PAGES];
	uint8_t shadow[SIM_PAGES][64]; /* what a forgetful standby falls back to */
	/* hashes of what is not stale */
	uint64_t page_sum[SIM_PAGES], block_sum[SIM_DISKS][SIM_BLOCKS];
	bool page_stale[SIM_PAGES], block_stale[SIM_DISKS][SIM_BLOCKS];
	uint32_t written[SIM_DISKS]; /* blocks, since the bitmap is there ... */
	uint32_t perhaps[SIM_DISKS]; /* ... or was tried */
	bool tracking, running, armed, dead;
	bool missing[SIM_PAGES]; /* not here yet */
	unsigned waits;		 /* for this page + 1; 0: for none */
	struct machine_state state;
};
struct machine *machine_new(struct node *node, bool armed);
/* Starts a guest from its disks as after a power cut. False: they cannot be read or are in use. */
bool machine_boot(struct machine *m);
uint64_t machine_ram_sum(const struct machine *m);
struct sums machine_sums(struct machine *m);
/* A standby's page loses what was written last (a mutant). */
void machine_forget_page(struct machine *m);
/* Some steps: RAM, disks and chain change, in the end an answer goes out. */
void machine_run(struct machine *m, uint64_t random);
/* One request as a whole, if the disks take it. */
void machine_request(struct machine *m, uint64_t random);

struct answer {
	uint64_t op, chain, parent;
	uint64_t durable;
};

/* ---- tap.c ---- */
struct tap *sim_net_tap(struct node *node);
void sim_net_output(struct tap *tap, const void *data, uint32_t len);
bool sim_net_within_bounds(const struct tap *tap);

/* ---- copies.c ---- */
void copies_start(struct world *w);
/* The taps or stores of this host go. */
void copies_gone(struct node *n);

/* ---- frozen.c: a world of its own, whose chance is the seed's ---- */
void frozen_ram_run(struct world *w);
/* ---- increments.c, pasts.c: likewise, on these hosts' filesystems ---- */
void increments_run(struct world *w, struct node *n);
void pasts_run(struct world *w, struct node *nodes);

struct overflow {
	struct node *node;
	uint8_t *bytes;
	size_t room;
};

/* ---- node ---- */
struct node {
	uint8_t boots; /* of the host */
	struct world *world;
	unsigned id;
	char name[16];
	struct ft_engine *engine;
	struct ft_arbiter arbiter, *none;
	struct machine *machine;
	struct disk disks[SIM_DISKS];
	/* A standby's: its journal, the last epoch that it calls durable, and how far it has told
	 * what its disks have. */
	struct journal *journal;
	uint64_t stored;
	unsigned sums_disk;
	uint64_t sums_at;
	struct tap *net_tap;
	bool crashed, powerless, frozen, arbiter_cut;
	bool guarded; /* if the process dies, so must the VM */
	/* Crash at the k-th call of the engine into its environment: from there on nothing that it
	 * does has an effect. */
	bool dying;
	unsigned crash_in; /* 0 = no */
	/* Faults that happen once. */
	bool checkpoint_fails, trial_fails, resume_fails, arm_fails, overflow_fails;
	uint64_t incarnation; /* of the process: events of an older one are dropped */
	struct overflow overflow[3];
	/* Postcopy: the source's half, the target's, and the connection, 0 = none. */
	struct ft_giver giver;
	bool giving, background;
	struct ft_taker taker;
	uint64_t line, done_session;
	unsigned flying; /* pages on their way to this target, or lost there */
	struct {	 /* this target has the same pages since then, over this connection */
		uint64_t line, missing, since;
	} stuck;
	struct bitmaps_giver maps;    /* bitmaps that follow its guest ... */
	struct bitmaps_taker awaited; /* ... or are awaited */
	bool handed, maps_owed;
	uint64_t wake_seq;
	/* The agent's memory: outlives the process, not the host's power. */
	uint64_t remembered_generation;
	char home[FT_HOST_ID_MAX];
	bool forced; /* --force */
	bool elsewhere, knows_standby;
	uint64_t guarded_generation;
	/* What it had acknowledged as durable when it died; epoch 0: nothing. */
	struct {
		uint64_t generation, epoch;
	} promised;
	/* The next disk operations fail. */
	unsigned disk_errors;
	int disk_errno;
	/* Its monotonic clock: where it was, how it goes, and whether it stands still with its
	 * host. */
	int64_t clock_ahead_ns;
	int clock_ppm;
	bool clock_stops;
	uint64_t frozen_ns;
	uint64_t steps;		 /* calls with an effect, since the world began */
	uint64_t dial_number[2]; /* of the dial under way, 0 = none */
	bool output_told, pressure_told, journal_told;
	int state_told;
	uint64_t crashed_ns, waits_since_ns, released_op;
	bool knows_peer;	 /* an operator named it */
	uint64_t write_lands_ns; /* when the last write to the shared disk is there */
};
/* Called by everything with an effect that the engine may call. False: the node died on the way. */
bool node_step(struct node *n);
struct node *node_other(struct node *n);
/* Memory only, without a word to anybody. */
void node_taps_free(struct node *n);
void node_vm_free(struct node *n);
/* Staging beyond its bound. ctx: struct overflow */
extern const struct ft_overflow_ops overflow_ops;
void overflow_reset(void *ctx);
/* From inside the guest: the engine hears of it in a turn of its own. */
void node_output_soon(struct node *n);
void node_pressure_soon(struct node *n);
void node_journal_soon(struct node *n);
/* As standby, or with the guest, which boots from its disks, if the rules allow it here; by force:
 * what is, or may be, newer is given up. False: refused, nothing runs. */
enum start_as { AS_STANDBY, AS_STANDBY_BY_FORCE, WITH_GUEST, WITH_GUEST_BY_FORCE };
bool node_start(struct node *n, enum start_as as);
uint64_t node_now(const struct node *n);
void node_crash(struct node *n, bool powerless);
void node_freeze(struct node *n, bool frozen);
/* By a fault, or because the guest shut itself down. */
void node_vm_ends(struct node *n, bool by_guest);
/* The node as an environment. */
struct ft_env_ops node_env(void);

/* ---- net ---- */
struct ft_link *net_connect(struct node *from, struct node *to); /* NULL: refused */
/* Whoever dials gets no answer at all. */
bool net_silent(struct node *from, struct node *to);
void net_node_gone(struct node *n, bool powerless);
void net_healed(struct world *w);
void net_stall_one(struct world *w, uint64_t for_ns);
/* Both ends of the node's connections see a reset. */
void net_reset_data(struct node *n);
void net_free(struct world *w);

/* ---- the seed's options ---- */
struct options {
	uint64_t seed;
	unsigned disks;
	bool disk_shared[SIM_DISKS];
	bool shared; /* one of them at least */
	bool fence;
	bool lockless; /* the storage's locks do not reach from host to host */
	uint64_t disk_log_bytes;
	bool durable; /* durability = "disk" */
	uint64_t journal_bytes;
	bool migrations; /* guests move, too */
	bool compare;	 /* a standby tells what its disks have */
	bool track;	 /* replicated disks keep their taps when the guest is solo */
	bool bitmaps;	 /* each disk has a named dirty bitmap, and keeps its tap */
	bool arbiter_file, takeover_manual;
	enum ft_survivor survivor;
	enum ft_trigger trigger;
	uint64_t latency_us_min, latency_us_max;
	uint64_t bytes_per_ms; /* 0 = no bound */
	uint64_t window;       /* bytes that a connection takes before it says "later" */
	uint64_t request_us;
	unsigned interval_ms, takeover_ms, heartbeat_ms;
	unsigned faults; /* how many */
	uint64_t staging_bytes, base_pages;
};

/* Faults planted in the world; the checks must find each. */
enum mutant {
	MUTANT_NONE,
	MUTANT_RELEASE_EARLY,	     /* outputs leave when the epoch closes */
	MUTANT_RELEASE_ON_LOSS,	     /* outputs leave when the peer is lost */
	MUTANT_RELEASE_TWICE,	     /* an epoch's outputs leave twice */
	MUTANT_RELEASE_BACKWARDS,    /* in reverse order */
	MUTANT_SKIP_SCAN,	     /* a dirty page is now and then not harvested */
	MUTANT_FORGET_WRITE,	     /* a disk write is not recorded */
	MUTANT_FORGET_APPLY,	     /* the standby's disk loses a write */
	MUTANT_FORGET_PAGE,	     /* the standby's image loses a page */
	MUTANT_SYNC_HOLE,	     /* the initial copy leaves out a block */
	MUTANT_GRANT_ALL,	     /* the arbiter grants whoever asks */
	MUTANT_LATE_CLOSE,	     /* the epoch closes before the guest stands still */
	MUTANT_ABORT_FORGETS,	     /* a failed checkpoint forgets its pages */
	MUTANT_OLD_EPOCHS_FORGOTTEN, /* records of an epoch whose checkpoint failed are not exported
					with the next */
	MUTANT_NO_REPLAY,	     /* outputs of the last checkpoint are not sent again */
	MUTANT_STATE_OLD,	     /* the state of the checkpoint before is shipped */
	MUTANT_FAKE_ACK,	     /* a checkpoint is acknowledged that never arrived */
	MUTANT_CUT_CHECKPOINT,	     /* a frame of outputs is lost and the totals say so too */
	MUTANT_FORGET_GENERATION,    /* a host forgets its generation when it restarts */
	MUTANT_LEASE_IGNORED,	     /* a primary writes to a shared disk whenever it likes */
	MUTANT_LEASE_NOT_AWAITED,    /* a standby takes a shared disk before the lease is over */
	/* the disk */
	MUTANT_STORE_UNSYNCED,	  /* the standby's store does not sync before it claims the disk */
	MUTANT_RELEASE_UNSYNCED,  /* a shared disk's held writes are released into the page cache */
	MUTANT_METADATA_UNSYNCED, /* the metadata file gets its name before it is durable */
	MUTANT_NAME_UNSYNCED, /* the folder is not synced: a new metadata file may be the old one */
	MUTANT_STALE_START,   /* a guest is started whatever the metadata says */
	MUTANT_TORN_ACCEPTED, /* what a power cut left of a standby's copy counts as whole */
	MUTANT_STORE_GENERATION, /* a rebooted host does not ask its disks which generation it knows
				  */
	MUTANT_OVERLAY_THROUGH,	 /* held writes reach a shared disk before their commit */
	MUTANT_OVERLAY_FORGETS,	 /* reads do not see held writes */
	MUTANT_PENDING_DROPPED,	 /* a shared disk's standby forgets writes that are not released yet
				  */
	MUTANT_DISK_SWAPPED,	 /* records of the second disk go to the first */
	MUTANT_NO_LOCK,		 /* the metadata's lock keeps nobody out */
	MUTANT_FLUSH_LIES,	 /* the tap answers a flush without one */
	MUTANT_COMPARE_BLIND,	 /* a sum is of a block's first part only */
	MUTANT_JOURNAL_HOLE,	 /* a record is missing in the standby's journal */
	MUTANT_JOURNAL_UNSYNCED, /* the journal is not synced before the acknowledgement */
	MUTANT_JOURNAL_KEPT,	 /* a journal is not removed when its session is over */
	MUTANT_MARK_FORGOTTEN,	 /* a write of a solo guest is not noted for the lost host */
	MUTANT_MARKS_EARLY,	 /* an acknowledged epoch counts as applied */
	MUTANT_BITMAP_FORGETS,	 /* a write is not in the disk's bitmap */
	MUTANT_BITMAP_STALE,	 /* the standby misses a change of a bitmap */
	/* one primary */
	MUTANT_START_UNASKED,	/* a guest is started without asking the rule */
	MUTANT_RELEASE_FENCED,	/* who lost the guest lets go what it holds */
	MUTANT_GUARD_FORGOTTEN, /* a host is not told that its guest may be elsewhere */
	/* snapshots */
	MUTANT_COW_FORGETS,	 /* a copy is not told of a change */
	MUTANT_COW_LATE,	 /* ... or after it */
	MUTANT_CLAIMED_TWICE,	 /* a page is saved by who scans and by who wanted to write it */
	MUTANT_NEIGHBOUR_LET_GO, /* who scans lets the writer of a page go that another has claimed
				  */
	MUTANT_LET_GO_EARLY,	 /* ... or of his own, before he has read it */
	MUTANT_UPDATE_UNSYNCED,	 /* changes are not synced before they are put into the file */
	MUTANT_MARK_UNSYNCED,	 /* ... nor is the mark that the file is a mixture */
	MUTANT_WRITE_FORGOTTEN,	 /* a page that was written since the last snapshot is not noted */
	MUTANT_CLEARED_LATE,	 /* ... or its note is cleared after the page was read */
	MUTANT_LINK_SKIPPED,	 /* a link of a history is put into base without the one before */
	/* migration */
	MUTANT_STALE_PAGE,     /* a page is served from an old copy */
	MUTANT_MAP_UNMERGED,   /* a bitmap that has arrived forgets what was written meanwhile */
	MUTANT_MAP_HOLE,       /* a piece of a bitmap is taken and thrown away */
	MUTANT_MAP_ENABLED,    /* a bitmap that was off is on after it has moved */
	MUTANT_MAP_LATE,       /* the guest runs before its writes are marked */
	MUTANT_PAGE_TWICE,     /* a page that comes again is placed again */
	MUTANT_LACK_UNTOLD,    /* after a lost link a page that was on its way is not sent again */
	MUTANT_WAIT_UNTOLD,    /* ... and one that the guest waits for is not asked for again */
	MUTANT_SOURCE_RESUMES, /* when the link is lost, the source runs the guest that it gave away
				*/
	/* bounds */
	MUTANT_FAILED_UNPROVEN, /* a standby that cannot run the guest says so, and could be started
				 */
	MUTANT_HOME_FORGOTTEN,	/* a restarted agent forgets where its guest belongs */
	MUTANT_QUEUE_UNBOUNDED, /* the NIC's queue never drops */
	MUTANT_N,
	MUTANT_HOSTILE /* a peer that makes no sense: promises are off, but nothing may break */
};

/* One operation as some machine executed it; chains are unique, so this is a tree of all histories.
 */
struct link_of_chain {
	uint64_t op, chain, parent;
	struct plan plan;
	bool unsure; /* a power cut came before its flush: its data may be gone */
};

struct captured {
	uint64_t generation, epoch, ops, chain;
	uint32_t step;
	struct sums sums;
};
#define SIM_CAPTURED 64 /* the last checkpoints of each host */

struct world {
	struct options options;
	enum mutant mutant;
	uint64_t now, rng, seq;
	struct event *heap;
	unsigned heap_n, heap_max;
	struct node nodes[SIM_NODES];
	char home[FT_HOST_ID_MAX]; /* where the guest belongs: where somebody started it who knew of
				      no other */
	struct ft_grant_record arbiter;
	bool cut[SIM_NODES]; /* what this node sends does not arrive for now */
	bool arbiter_down, corrupt_next;
	uint64_t ran_generation; /* the newest that a guest ran under: what a careful operator finds
				    out before deciding */
	struct node *ran_last;	 /* where a guest ran last */
	/* who released an output under the newest generation so far */
	uint64_t spoke_generation;
	struct node *spoke;
	uint64_t taken_ops; /* operations in the checkpoint that was taken over last */
	struct ft_grant_record granted[64]; /* the last generations and who got them */
	struct sim_link *links;
	struct question *questions; /* to the arbiter, under way */
	struct link_of_chain *history;
	unsigned history_n, history_max;
	struct captured captured[SIM_NODES][SIM_CAPTURED];
	/* what the client knows */
	uint64_t answers, answered_max, duplicates;
	uint64_t seen_chain[SIM_OPS_MAX];   /* chain after operation i, 0 = no answer seen */
	uint64_t durable_op, durable_chain; /* the newest answer that promised durability */
	struct run *run;
	/* the timeline's last lines, when only its ends are told */
	char lines[SIM_LINES][SIM_LINE];
	unsigned lines_n;
	bool violated;
	char violation[256];
	bool faults_over;
	bool torn; /* a takeover was cut short in the middle of a shared disk */
	uint64_t last_answer_ns;
	uint64_t piece_ns;	  /* when the newest piece of a bitmap arrives */
	unsigned moves, followed; /* guests that moved; and whose memory was not there at once */
	uint64_t broken_line;	  /* of the last connection for pages that broke by itself */
	unsigned takeovers, switches, injected, boots, refused_starts;
	uint64_t nobody_since_ns; /* no guest anywhere, 0 = there is one */
	unsigned shared_owner;	  /* node that has the shared disk */
	bool must_survive;	  /* the only fault so far hit a protected guest */
	uint64_t calm_ns;
	uint8_t old_state[sizeof(struct machine_state)];
	uint64_t cut_bytes;
};

/* ---- checks ---- */
/* An answer reached the client. */
void check_output(struct node *n, const struct tap_record *rec);
void check_own_bitmaps(struct node *n, bool exact);
void check_captured(struct node *n, const struct machine_state *state);
void check_takeover(struct node *n, const struct machine_state *state);
/* A standby's image and disk are those of its committed checkpoint, at any time. */
void check_standby(struct node *n);
/* Disks that are about to belong to this host for good: at the epoch, also if all power goes. */
void check_activated(struct node *n, uint64_t epoch);
/* A store has ended, or was told to: what its metadata claims is true. */
void check_claim(struct node *n, unsigned disk);
/* A host has come up and replayed its journal, if it had one: what it had acknowledged is there. */
void check_recovered(struct node *n);
/* The arbiter let n have this generation. */
void check_granted(struct node *n, const struct ft_grant_record *record);
/* A shared disk is one for both: whoever writes must have it, and nobody's writes may come late. */
void check_shared_write(struct node *n, uint64_t left_ns);
void check_shared_taken(struct node *n);
void check_bounds(struct world *w);

/* ---- history.c ---- */
struct plan plan_of(const struct world *w, uint64_t op, uint64_t request);
/* A machine executes an operation, whether or not anyone will ever hear of it. */
void history_executed(struct world *w, const struct link_of_chain *link);
/* The chain of operation `op` in the history that leads to `chain`; 0 = it does not lead there. */
uint64_t history_ancestor(struct world *w, uint64_t chain, uint64_t op);
/* A guest was started from its disks, which brought it to this state. */
void check_boot(struct node *n, const struct machine_state *state);

/* ---- seams.c ---- */
void seams_init(struct world *w);
/* The threads that are started now are this host's. */
void seams_opening(struct node *n);

/* ---- arbiter.c: type "file" ---- */
extern const struct ft_arbiter_ops sim_arbiter_ops;
void arbiter_forget_questions(struct world *w);

/* ---- faults.c, operator.c ---- */
void faults_draw(struct world *w);
void freeze_for(struct node *n, uint64_t ns);
void faults_on_ack(struct node *primary);
void faults_end(struct world *w);
void operator_start(struct world *w);
/* In calm: let the guest be brought to the host where it belongs; done when operator_is_home(). */
void operator_wants_home(struct world *w);
bool operator_is_home(struct world *w);
void operator_checks_home(struct world *w);
struct node *world_runner(struct world *w);

/* ---- pages.c ---- */
void pages_env(struct ft_env_ops *e);
void pages_free(struct node *n);
/* The guest touches a page. False: it is not there, and the guest waits. */
bool pages_touch(struct machine *m, unsigned page);
bool pages_waits(struct machine *m);
/* People: a guest moves; and what there is to do while its memory does. */
bool pages_migrate(struct node *n);
bool pages_look_after(struct node *n, struct node *o);
/* Is this connection good, at both ends? If not, they will notice. */
bool pages_line_good(struct node *n, uint64_t line);
/* The target: something came; perhaps it was the last. */
void pages_arrived(struct node *t);

/* ---- maps.c: bitmaps that follow a guest ---- */
void maps_init(struct node *n);
void maps_free(struct node *n);
void maps_describe(struct node *n, Ft__Disk *const *disks);
int maps_expect(struct node *n, const Ft__Setup *setup, struct ft_err *err);
void maps_begin(struct node *n);
/* Some of this disk's are not there yet. */
bool maps_awaited(struct node *n, unsigned disk);
bool maps_all(struct node *n);
void maps_push(struct node *s);
void maps_take(struct node *t, const struct ft_msg *msg);
void maps_exchange(struct node *s, struct node *t);
void maps_give_up(struct node *n);
void maps_tap_ends(struct node *n, unsigned disk);
void maps_end(struct node *n);

/* ---- mutants.c: what goes wrong with messages. False: the message is lost. ---- */
bool mutate_message(struct world *w, struct node *to, struct ft_msg *msg, struct ft_msg *answer);

/* ---- run.c ---- */
enum timeline {
	TIMELINE_NONE,
	TIMELINE_ENDS, /* how it began and how it ended */
	TIMELINE_WHOLE
};

struct run {
	uint64_t seed;
	enum mutant mutant;
	enum timeline timeline;
	bool summary;
	/* Instead of the seed's faults one crash, at this step of this host; 0 = the seed's. */
	uint64_t crash_step;
	unsigned crash_node;
	bool crash_powerless;
	/* results */
	char violation[256];
	uint64_t steps[SIM_NODES];
};
/* Runs one seed. True: all promises were kept. */
bool simulate(struct run *r);
/* For SIGABRT: says in which seed. For SIGVTALRM: a run took too long. */
void run_died(int number);
void run_hangs(int number);
const char *mutant_name(enum mutant m);

#endif
