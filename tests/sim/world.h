/* SPDX-License-Identifier: Apache-2.0 */
/* The deterministic simulator: two production engines in one process and one thread, in a world
 * whose clock, links, arbiter, machines, disks and faults all come from one seed. Same seed in,
 * same run out, to the last event.
 *
 *   world.c     clock, queue of events, random numbers, timeline
 *   net.c       connections with latency, a window, and all the ways to end
 *   arbiter.c   its record, and how questions get lost
 *   node.c      a host: engine, environment, machine
 *   machine.c   a small guest: RAM, state, disk, a chain of answers
 *   tap.c       its outputs by epoch
 *   faults.c    what goes wrong, drawn from the seed
 *   operator.c  the people: protect, restart, decide
 *   check.c     the promises, checked at every output and at the end
 *   mutants.c   faults that the checks must find
 *   main.c      options from the seed, phases
 *
 * The guest's answers carry a hash chain with a random input in each link, so that an execution
 * that is repeated after a rollback differs from the one before: an output that was released too
 * early shows as a fork. */
#ifndef TESTS_SIM_WORLD_H
#define TESTS_SIM_WORLD_H

#include <stdbool.h>
#include <stdint.h>

#include "ft/engine.h"

#define US 1000ull

#define MS 1000000ull
#define S  1000000000ull

#define SIM_NODES   2
#define SIM_PAGES   24
#define SIM_BLOCKS  32 /* disk, 512 bytes each */
#define SIM_BLOCK   512
#define SIM_OPS_MAX 20000

struct world;
struct node;
struct sim_link;

/* ---- clock ---- */
typedef void event_fn(void *ctx, uint64_t arg);
uint64_t world_random(struct world *w);
uint64_t world_range(struct world *w, uint64_t lo, uint64_t hi); /* inclusive */
bool world_chance(struct world *w, unsigned percent);
uint64_t world_side_range(struct world *w, uint64_t lo, uint64_t hi);
/* Runs fn at now + in. owner: events of a frozen node wait until it thaws, those of a crashed one
 * are dropped; NULL: nobody's. */
void world_after(struct world *w, uint64_t in, struct node *owner, event_fn *fn, void *ctx,
		 uint64_t arg);
/* Likewise, but a crash of the owner does not drop it. */
void world_wait(struct world *w, uint64_t in, struct node *owner, event_fn *fn, void *ctx);
bool world_step(struct world *w, uint64_t until);
void world_log(struct world *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void world_violation(struct world *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- machine: what a guest is ---- */
struct machine_state {
	uint32_t magic;
	uint32_t running_on; /* epoch count of boots, not compared */
	uint64_t ops;	     /* requests served */
	uint64_t chain;	     /* hash over all of them */
	uint64_t next_block;
};

struct machine {
	struct vmm vmm;
	struct node *node;
	uint8_t *ram; /* SIM_PAGES pages */
	uint8_t dirty[SIM_PAGES];
	uint8_t shadow[SIM_PAGES][64]; /* what a forgetful standby falls back to */
	uint64_t page_sum[SIM_PAGES], block_sum[SIM_BLOCKS]; /* hashes of what is not stale */
	bool page_stale[SIM_PAGES], block_stale[SIM_BLOCKS];
	bool tracking, running, armed, dead;
	struct machine_state state;
};
struct machine *machine_new(struct node *node, bool armed);
uint64_t machine_hash(const struct machine *m, const struct machine_state *state);
uint64_t machine_hash_quick(struct machine *m, const struct machine_state *state);
/* A standby's page loses what was written last (a mutant). */
void machine_forget_page(struct machine *m);
/* One request: RAM, disk and chain change, an answer goes out. */
void machine_request(struct machine *m, uint64_t request);

/* ---- tap ---- */
struct tap *sim_net_tap(struct node *node);
struct tap *sim_disk_tap(struct node *node);
void sim_tap_output(struct tap *tap, enum tap_kind kind, uint64_t arg, const void *data,
		    uint32_t len);
bool sim_disk_tap_next(struct tap *tap, struct ft_disk_chunk *chunk, uint8_t *data);
void sim_disk_tap_all_behind(struct tap *tap);
uint64_t sim_disk_tap_behind(struct tap *tap);
/* The standby has this block already; returns bytes that are not behind any more. */
uint64_t sim_disk_tap_alike(struct tap *tap, unsigned block);

/* ---- disk of one host ---- */
struct disk {
	uint8_t blocks[SIM_BLOCKS][SIM_BLOCK];
	bool active; /* a VM may write */
};

struct overflow {
	struct node *node;
	uint8_t *bytes;
	size_t room;
};

/* ---- node ---- */
struct node {
	struct world *world;
	unsigned id;
	char name[16];
	struct ft_engine *engine;
	struct ft_arbiter arbiter, *none;
	struct machine *machine;
	struct disk disk;
	/* A standby's journal: the disk as a replay makes it, of which epoch (0: none); and the
	 * next one, while it is being made durable. */
	struct disk journaled, staged, sealed;
	uint64_t stored, sealing;
	unsigned sums_at; /* blocks whose sums the armed standby has told */
	struct tap *net_tap, *disk_tap;
	bool crashed, powerless, frozen, arbiter_cut;
	bool guarded; /* if the process dies, so must the VM */
	/* Crash at the k-th call of the engine into its environment: from there on nothing that it
	 * does has an effect. */
	bool dying;
	unsigned crash_in; /* 0 = no */
	/* Faults that happen once. */
	bool checkpoint_fails, trial_fails, arm_fails, apply_fails, overflow_fails, resume_busy,
		release_fails;
	uint64_t incarnation; /* of the process: events of an older one are dropped */
	struct overflow overflow[3];
	uint64_t wake_seq;
	uint64_t remembered_generation;
	uint64_t dial_number[2]; /* of the dial under way, 0 = none */
	bool output_told;
	int state_told;
	uint64_t crashed_ns, waits_since_ns, released_op;
	bool knows_peer;	 /* an operator named it */
	uint64_t write_lands_ns; /* when the last write to the shared disk is there */
};
/* Called by everything with an effect that the engine may call. False: the node died on the way. */
bool node_step(struct node *n);
/* From inside the guest: the engine hears of it in a turn of its own. */
void node_output_soon(struct node *n);
void node_start(struct node *n, bool primary);
void node_crash(struct node *n, bool powerless);
void node_freeze(struct node *n, bool frozen);
/* By a fault, or because the guest shut itself down. */
void node_vm_ends(struct node *n, bool by_guest);
/* The node as an environment. */
extern const struct ft_env_ops node_env;

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
	bool arbiter_file, takeover_manual, shared, fence, durable;
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
	MUTANT_COMPARE_BLIND,	     /* a block that differs is taken for the same */
	MUTANT_JOURNAL_HOLE,	     /* the standby's journal loses a write */
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
	MUTANT_N,
	MUTANT_HOSTILE /* a peer that makes no sense: promises are off, but nothing may break */
};

/* One operation as some machine executed it; chains are unique, so this is a tree of all histories.
 */
struct link_of_chain {
	uint64_t op, chain, parent;
};

struct captured {
	uint64_t epoch, hash, ops, chain, disk; /* disk: hash of that alone */
};
#define SIM_CAPTURED 64 /* the last checkpoints of each host */

struct world {
	struct options options;
	enum mutant mutant;
	uint64_t now, rng, seq;
	uint64_t side_rng; /* for what was added later: old seeds stay what they were */
	struct event *heap;
	unsigned heap_n, heap_max;
	struct node nodes[SIM_NODES];
	struct ft_grant_record arbiter;
	bool cut[SIM_NODES]; /* what this node sends does not arrive for now */
	bool arbiter_down, corrupt_next;
	uint64_t ran_generation; /* the newest that a guest ran under: what a careful operator finds
				    out before deciding */
	struct sim_link *links;
	struct question *questions; /* to the arbiter, under way */
	struct link_of_chain *history;
	unsigned history_n, history_max;
	struct captured captured[SIM_NODES][SIM_CAPTURED];
	/* what the client knows */
	uint64_t answers, answered_max, duplicates;
	uint64_t seen_chain[SIM_OPS_MAX]; /* chain after operation i, 0 = no answer seen */
	bool verbose, violated;
	char violation[256];
	bool faults_over;
	uint64_t last_answer_ns;
	unsigned takeovers, switches, injected;
	unsigned shared_owner; /* node that has the shared disk */
	bool must_survive;     /* the only fault so far hit a protected guest */
	uint64_t calm_ns;
	uint8_t old_state[sizeof(struct machine_state)];
	uint64_t cut_bytes;
};

/* ---- checks ---- */
/* An answer reached the client. */
void check_output(struct node *n, const struct tap_record *rec);
/* A machine executed an operation, whether or not anyone will ever hear of it. */
void check_executed(struct world *w, uint64_t op, uint64_t chain, uint64_t parent);
void check_captured(struct node *n, const struct machine_state *state);
void check_takeover(struct node *n, const struct machine_state *state);
/* What a journal makes of the disk of a standby that died is a checkpoint that was captured, and
 * none older than what it has acknowledged. */
void check_journal(struct node *n);
uint64_t disk_hash(const struct disk *disk);
/* A standby's image and disk are those of its committed checkpoint, at any time. */
void check_standby(struct node *n);

/* A shared disk is one for both: whoever writes must have it, and nobody's writes may come late. */
void check_shared_write(struct node *n, uint64_t left_ns);
void check_shared_taken(struct node *n);

/* ---- arbiter.c: type "file" ---- */
extern const struct ft_arbiter_ops sim_arbiter_ops;
void arbiter_forget_questions(struct world *w);

/* ---- faults.c, operator.c ---- */
void faults_draw(struct world *w);
void freeze_for(struct node *n, uint64_t ns);
void faults_on_ack(struct node *primary);
void faults_end(struct world *w);
void operator_start(struct world *w);
struct node *world_runner(struct world *w);

/* ---- mutants.c: what goes wrong with messages. False: the message is lost. ---- */
bool mutate_message(struct world *w, struct node *to, struct ft_msg *msg, struct ft_msg *answer);

/* Runs one seed. True: all promises were kept. */
bool simulate(uint64_t seed, enum mutant mutant, bool verbose);
const char *mutant_name(enum mutant m);

#endif
