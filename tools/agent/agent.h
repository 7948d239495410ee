/* SPDX-License-Identifier: Apache-2.0 */
/* One agent: the engine's host. Everything is on one thread, that of the event base, but for what
 * taps, stores and the pocket machine do on threads of their own.
 *
 *   agent.c      life: from configuration to event loop to orderly end
 *   env.c        the engine's environment: time, VM, disks
 *   requests.c   what operators ask; status.c: what they see
 *   peer.c       listener and dials; peer_ask.c: a question to another agent
 *   may_start.c  whether the guest may be started here at all
 *   memory.c     what survives a restart; overflow.c: staging beyond RAM
 *   notify.c     systemd
 *
 *   guest.c      the agent's VM: started, attached to, found again; its end
 *   arm.c        the other host's side: a VM that waits for a primary's guest
 *   machine.c    the guest file's machine, told to whichever VMM it is
 *   taps.c       the guest's taps, and where the VM finds them
 *   stores.c     the standby's copies of the disks; durable.c: their journal
 *   bitmaps.c    named dirty bitmaps of its disks
 *   bridge.c     tap interfaces on the operator's bridge
 *
 *   snapshot.c   a guest into a file, and out of one; snapshot_disks.c: its disks
 *   increment.c  into a file that is there; history.c: past checkpoints, kept by the standby
 *   migrate.c    a guest to another host; follow.c: its memory, behind it, and
 *                follow_bitmaps.c: its disks' bitmaps */
#ifndef TOOLS_AGENT_AGENT_H
#define TOOLS_AGENT_AGENT_H

#include <event2/event.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "eventtap/block/bitmaps_follow.h"
#include "eventtap/store.h"
#include "ft/engine.h"
#include "tools/agent/config.h"
#include "tools/agent/ctl_server.h"
#include "transport/connector.h"
#include "transport/listener.h"
#include "transport/tls_config.h"
#include "transport/uri.h"
#include "tools/agent/afterlife.h"
#include "vmm-glue/keeper.h"
#include "vmm-glue/postcopy/page_client.h"
#include "vmm-glue/qemu/spawn.h"
#include "vmm-glue/snapshot/companions.h"
#include "vmm-glue/snapshot/disks.h"
#include "vmm-glue/snapshot/disks_since.h"
#include "vmm-glue/snapshot/history.h"
#include "vmm-glue/snapshot/increment.h"
#include "vmm-glue/snapshot/lazy.h"
#include "vmm-glue/snapshot/snapshot.h"
#include "vmm-glue/snapshot/source.h"
#include "vmm-glue/vmm.h"

enum agent_exit { AGENT_OK = 0, AGENT_BAD_CONFIG = 1, AGENT_NO_START = 2, AGENT_GUEST_LOST = 3 };

#define AGENT_CALLS_MAX	   CTL_CLIENTS_MAX
#define AGENT_POWERDOWN_MS 3000 /* what a guest gets to shut down by itself */
#define AGENT_LEAVE_MS                                                                             \
	4000	       /* what the standby gets to agree to the end of protection before a stop */
#define AGENT_LOOK_S 1 /* how often the keeper is looked at */
#define AGENT_KEEPER_LOST                                                                          \
	"its keeper was killed: without one it is not protected; restart this agent"
#define AGENT_SPILLS 3 /* see ft_engine_config.overflow_ctx */

struct agent;

/* An operator's request that the engine answers later. */
struct agent_call {
	struct agent *agent;
	struct ctl_call *call; /* NULL: free, or its client left */
	bool used;
	enum agent_answer {
		CALL_STATUS,
		CALL_EPOCH,
		CALL_VERIFY,
		CALL_SNAPSHOT
	} what; /* what a good answer says */
};

struct agent_dial {
	struct agent *agent;
	bool heartbeat;
	struct connector *connector;
	struct event *soon; /* failures are told from the loop, never from inside dial() */
	struct ft_err why;
};

struct fence {
	struct process process; /* pid 0: none */
	struct event *ended, *late;
	bool killed; /* it took too long */
	char log[VMM_PATH_MAX];
	struct ft_err err; /* of a program that could not be started */
};

/* What to restore from; uri NULL: nothing. */
struct agent_restore {
	struct companions disks; /* open while it is being done */
	const char *uri;
	bool lazy;
	unsigned jobs;
};

struct agent_snapshot {
	struct snapshot *writing; /* at most one of these three */
	struct increment *updating;
	struct lazy *reading;
	struct since *since;		 /* NULL: nothing is known */
	struct disks_since *disks_since; /* likewise */
	bool disks_noted;	 /* it is to be known: a solo guest's disks keep their taps */
	bool disks_noted_before; /* the one that is being written was asked for */
	bool was_update;	 /* of the one that has just ended */
	bool taps_ours;		 /* disks have taps for the snapshot's sake only */
	struct agent_call *call; /* who asked for it, NULL: left */
	struct event *ended;
	int ended_fd; /* eventfd */
	char path[URI_PATH_MAX + 1];
	struct snapshot_progress last; /* of the one that has just ended */
};

/* Past checkpoints that a standby keeps. */
struct agent_history {
	struct history *folder; /* open while there is a writer; the worker's while there is a link
				 */
	struct increment *link; /* one is being written */
	struct event *timer, *news;
	int news_fd;
	uint64_t generation, epoch; /* of the newest */
	unsigned points_n;
	struct history_point points[HISTORY_MAX]; /* as of the last look */
	char complaint[FT_ERR_TEXT_MAX];
};

/* A connection for a postcopy migration's pages, on its way. */
struct page_line {
	struct agent *agent;
	struct connector *connector;
	struct ft_link *link; /* until both have said HELLO */
	struct ft_wire *wire; /* from then on, until the other one is there too */
};

struct agent_pages {
	struct page_server *server; /* source */
	struct page_client *client; /* target */
	struct page_line lines[2];  /* background, urgent */
	struct event *news;
	int news_fd;
	enum page_state told; /* to the engine */
	bool here_told;	      /* likewise */
	bool described;	      /* source: the bitmaps are to follow */
	struct bitmaps_giver giver;
	struct bitmaps_taker taker;
	struct page_client_stats last; /* of the client that has ended */
};

struct spill {
	const char *dir;
	int fd; /* -1: none yet */
};

struct agent {
	struct ft_config config;
	char run_dir[CONFIG_PATH_MAX], host_id[FT_HOST_ID_MAX];
	bool incoming, force;
	bool target; /* --incoming without kemari: takes guests that move, protects none */
	enum store_right right; /* to start the guest, once may_start() has found out */
	enum agent_exit exit_code;

	struct event_base *base;
	struct event *tick, *vm_event, *waiting, *leaving, *look, *signals[2];
	int wait_fd; /* eventfd: some tap has something to tell */
	atomic_bool output, pressure, journaled;

	struct keeper *keeper;
	struct afterlife *afterlife;
	bool keeper_lost;
	struct ft_arbiter *arbiter;
	struct ft_engine *engine;
	struct vmm *vmm;
	struct vmm *spare; /* target of a migration: an armed QEMU, started ahead */
	bool vm_ours;  /* we, or an agent before us, started it: stop ends it. Attached guests run
			  on. */
	bool vm_found; /* it ran before this agent did, so a failed start leaves it alone */
	struct vmm_info vm_info;
	char vm_lost_why[FT_REASON_MAX];

	/* taps, by kind and device; the chain is the engine's */
	bool taps_made;
	unsigned disks_stay; /* bit i: disk i has its tap although the guest is solo */
	struct tap *disk_taps[VMM_DISKS_MAX], *nic_taps[VMM_NICS_MAX], *console_tap, *pio_tap;
	struct vmm_tap_points points;
	uint64_t
		lease_until_ns; /* under which a shared disk is being written, 0 = none is needed */

	struct store *stores[VMM_DISKS_MAX];
	unsigned stores_n;
	uint64_t stored_epoch;	 /* of a guest that has nothing to journal */
	struct journal *journal; /* NULL: durability is "memory", or nothing is replicated */
	char journal_path[VMM_PATH_MAX + 16];
	unsigned sums_disk; /* what of them was told to the primary */
	uint64_t sums_at;

	struct tls_config *tls;
	struct listener *listener;
	struct uri peer;
	bool has_peer;
	struct agent_dial dials[2];

	struct fence fence;

	struct ctl_server *ctl;
	struct agent_call calls[AGENT_CALLS_MAX];
	struct agent_call *cancel_call,
		*stop_call;	      /* answered when protection has ended / the guest is down */
	char stop_why[FT_REASON_MAX]; /* "": not stopping */
	struct agent_snapshot snapshot;
	struct agent_history history;
	struct agent_restore restore;
	struct agent_pages pages;
	bool pages_warned; /* a stop was refused once */
	struct spill spills[AGENT_SPILLS];
	enum ft_state state_told;

	/* describe(): strings that the engine's message borrows */
	char **command_line;
	Ft__Disk setup_disks[VMM_DISKS_MAX];
	Ft__Disk *setup_disk_ptrs[VMM_DISKS_MAX];
};

/* agent.c */
int agent_start(struct agent *a, const char *incoming, struct ft_err *err);
/* Runs until the guest or the operator ends it. */
void agent_run(struct agent *a);
/* Leaves protection first, so that no standby takes over what was to end; at once when it is asked
 * for twice. */
void agent_stop(struct agent *a, const char *why);
/* From env.changed: perhaps protection has just ended. */
void agent_left(struct agent *a);
void agent_free(struct agent *a);
void agent_end(struct agent *a, enum agent_exit code);

/* RUN-DIR/NAME and a suffix. The run directory was checked to be short enough at start. */
void agent_path(const struct agent *a, char out[VMM_PATH_MAX], const char *suffix);

/* env.c */
extern const struct ft_env_ops agent_env;
int agent_start_engine(struct agent *a, struct ft_err *err);
uint64_t agent_now_ns(void);

/* guest.c */
int guest_start(struct agent *a, struct ft_err *err);
/* Takes over a QEMU that a former agent of this guest left running. -ENOENT: there is none. */
int guest_find_again(struct agent *a, struct ft_err *err);
/* Makes the VM of the guest file, waiting for its state; it dies with this agent. */
int guest_make_waiting(struct agent *a, struct vmm **out, struct ft_err *err);
/* A VM that runs becomes the agent's. */
int guest_adopt_running(struct agent *a, struct vmm *vmm, struct ft_err *err);
/* Ends an armed or running VM by force and frees it, and its taps. */
void guest_end(struct agent *a);
/* Connects the VM object to the loop and to the engine. */
void guest_adopt(struct agent *a, struct vmm *vmm);
void guest_release(struct agent *a);

/* arm.c */
/* Makes what the primary's set-up describes: stores, VM and taps. On error nothing of it is left.
 */
int arm_guest(struct agent *a, const Ft__Setup *setup, struct ft_err *err);
/* Target of a migration: starts the QEMU ahead that arm_guest() will use, where the guest file says
 * all about it. Costs nothing but time to do without. */
void arm_ahead(struct agent *a);
void arm_drop_spare(struct agent *a);

/* machine.c */
/* stopped: before its first instruction, until vmm_cont(). */
int machine_start(struct agent *a, bool stopped, struct vmm **out, struct ft_err *err);
/* Waits for a checkpoint. */
int machine_arm(struct agent *a, struct vmm **out, struct ft_err *err);
/* The same by the primary's command line, for a guest file that describes no machine. */
int machine_arm_command_line(struct agent *a, const Ft__Setup *setup, struct vmm **out,
			     struct ft_err *err);
/* Of the agent's VM, as the device state has it: the same on both hosts, whatever aliases and
 * versions their QEMUs have. "": any. */
const char *machine_type(struct agent *a);

/* stores.c */
/* Opens the copy of every disk that the set-up names. On error those that are open stay so, for
 * stores_free(). */
int stores_open(struct agent *a, const Ft__Setup *setup, struct ft_err *err);
/* They and their journal end, in order. */
void stores_free(struct agent *a);

/* taps.c */
/* Makes taps for every output of the VM and adds them to the engine's chain. disks: replicated or
 * shared images of a running VM; an armed VM has its images itself, so its taps are those that
 * replay. */
int taps_make(struct agent *a, bool disks, struct ft_err *err);
/* Only the disks', for a guest that is not protected. */
int taps_make_disks(struct agent *a, struct ft_err *err);
/* 0: every disk and NIC of the VM has its tap. -EIO: taps of another time, as those of a takeover,
 * are there still. */
int taps_complete(const struct agent *a, struct ft_err *err);
void taps_free(struct agent *a);
/* They were in the way of a VM that goes on: they end; those of a->disks_stay stay, and in the
 * chain. */
void taps_part(struct agent *a);
/* The agent ends and the VM runs on: those that stayed go too. */
void taps_leave(struct agent *a);
/* Which disks the guest is to have through a tap even when it is solo. */
unsigned taps_disks_stay(struct agent *a);
/* A VM that is about to run, or (not known) has run without them: the taps of those disks go in. A
 * tap that cannot be is no reason not to run: what was noted of the disk ends. */
void taps_in_solo(struct agent *a, bool known);
/* One disk of a solo guest. known: it has not run without a tap since this host had the disk. */
int taps_disk_in(struct agent *a, unsigned i, bool known, struct ft_err *err);
int taps_disk_out(struct agent *a, unsigned i, struct ft_err *err);
/* A disk with a tap that has bitmaps, or of which a backup is under way. */
bool taps_disk_in_use(const struct agent *a, unsigned i);
/* The read-only export of a disk that has bitmaps. */
int taps_serve_backups(struct agent *a, unsigned i, struct ft_err *err);
void taps_backup_path(const struct agent *a, unsigned i, char out[VMM_PATH_MAX]);
/* Where the VM has its first serial port, and the tap behind it if the guest file has a use for
 * one. It ends with the VM. */
void taps_console_path(const struct agent *a, char out[VMM_PATH_MAX]);
int taps_console_open(struct agent *a, struct ft_err *err);
void taps_console_free(struct agent *a);

/* bitmaps.c */
void bitmap_request(struct agent *a, struct ctl_call *call, const Ctl__Request *request);
struct tap_notify taps_notify(struct agent *a);
/* Waits until what the taps let go is with the VM. */
#define TAPS_SETTLE_MS 200
void taps_settle(struct agent *a);
enum store_mode taps_disk_mode(struct agent *a, const char *id);
/* Start-up: how taps' threads reach the loop. */
int taps_listen(struct agent *a, struct ft_err *err);
/* Any thread: the loop looks at output, pressure and journaled. */
void taps_wake(struct agent *a);

/* peer.c */
int peer_listen(struct agent *a, const char *uri, struct ft_err *err);
/* To protect the guest (kemari:...), or to move it. */
int peer_set(struct agent *a, const char *uri, struct ft_err *err);
void peer_dial(struct agent *a, bool heartbeat);
void peer_hang_up(struct agent *a);
/* Every link to an agent is told which guest it is about. */
void peer_link(const struct agent *a, struct ft_link *link);
/* Asks another agent who has the guest, without becoming its peer: *waits: it is a standby, which
 * knows `generation` and holds checkpoint `committed` (0: none). Start-up: runs the loop for at
 * most some seconds. -errno: no answer. */
struct peer_answer {
	bool waits, runs;
	uint64_t generation, committed;
};
int peer_ask(struct agent *a, const char *uri, struct peer_answer *answer, struct ft_err *err);

/* durable.c: the standby's journal */
/* Start-up: brings the disks of a standby whose host lost its power to its last epoch. */
int durable_recover(struct agent *a, struct ft_err *err);
/* A new session, whose stores are open. */
int durable_begin(struct agent *a, struct ft_err *err);
/* Everything applied is on the disks: their metadata may say so. Then the journal may go. */
int durable_settle(struct agent *a, struct ft_err *err);
void durable_end(struct agent *a);
int durable_stage(struct agent *a, const struct tap_record *rec, struct ft_err *err);
int durable_staged(struct agent *a, uint64_t generation, uint64_t epoch, struct ft_err *err);
/* The journal's thread has news. */
void durable_news(struct agent *a);

/* requests.c, status.c */
extern const struct ctl_server_ops agent_ctl_ops;
/* Answers a call kept in the agent, with the guest's status or an error; *call becomes NULL. */
void requests_answer(struct agent_call **call, const struct ft_err *err);
void status_reply(struct agent *a, struct ctl_call *call);

/* Error word and text of *err to the client of a call. */
void requests_fail(struct ctl_call *call, const struct ft_err *err);
/* The answer to a call of requests_later(): ft_done_fn. */
void requests_done(void *call, const struct ft_err *err, uint64_t value);
/* A place for an answer that comes later, NULL (and the client is told): all are taken. */
struct agent_call *requests_later(struct agent *a, struct ctl_call *call, enum agent_answer what);

/* migrate.c: protect, and move */
void migrate_request(struct agent *a, struct ctl_call *call, const Ctl__Request *request);
/* What status shows of a migration. False: there is none. */
struct migrate_status {
	Ctl__Migration migration; /* the others are parts of it */
	Ctl__Figures fault_us;
	struct page_client_stats stats;
};
bool migrate_fill_status(struct agent *a, const struct ft_engine_status *s,
			 struct migrate_status *out);

/* follow.c: the engine's environment for postcopy, env->pages_* */
int follow_listen(struct agent *a, struct ft_err *err);
int follow_open(struct agent *a, struct ft_err *err);
void follow_give(struct agent *a, const struct ft_bitmap *missing);
int follow_prepare(struct agent *a, uint64_t generation, struct ft_err *err);
void follow_link(struct agent *a, struct ft_link *link, bool urgent);
int follow_begin(struct agent *a, const struct ft_bitmap *missing, struct ft_err *err);
/* Target, before all is there: the VM must not run any more. */
void follow_close(struct agent *a);
void follow_end(struct agent *a);
/* Source: pages go without being asked for, or they do not. */
void follow_background(struct agent *a, bool on);
/* follow_bitmaps.c: what else follows the guest */
void follow_bitmaps_init(struct agent *a);
void follow_bitmaps_free(struct agent *a);
/* Source: a->setup_disks also say which bitmaps follow. */
void follow_describe(struct agent *a);
/* Source: the guest runs elsewhere: its disks here are no place to make a backup from. */
void follow_handed(struct agent *a);
/* Target: the stores have what SETUP says. */
int follow_expect(struct agent *a, const Ft__Setup *setup, struct ft_err *err);
void follow_bitmaps_begin(struct agent *a);
/* Target: an operator does not want to wait for it, or it is not awaited: 0. -EBUSY: it comes. */
int follow_give_up(struct agent *a, unsigned i, const char *name, struct ft_err *err);
/* Both: before a disk's tap is freed. */
void follow_tap_ends(struct agent *a, unsigned i);
/* Both: all has followed, or nothing is to. */
void follow_bitmaps_end(struct agent *a);
/* Of the migration that there is, or was last; the source fills in `pages` only. */
void follow_stats(struct agent *a, struct page_client_stats *out);

/* snapshot.c */
#define SNAPSHOT_STANDBY_STALL_MS 100 /* a standby that waits for a disk is a silent one */
int snapshot_listen(struct agent *a, struct ft_err *err);
void snapshot_request(struct agent *a, struct ctl_call *call, const Ctl__Request *request);
/* Start-up, in place of guest_start(). */
int snapshot_restore(struct agent *a, struct ft_err *err);
/* NULL, or why the guest cannot be protected or saved now. */
const char *snapshot_busy(const struct agent *a);
void snapshot_fill_status(const struct agent *a, Ctl__Snapshot *out);
/* Gives up one that is being written, soon; who asked for it is told. False: there is none. */
bool snapshot_give_up(struct agent *a, const char *why);
/* Likewise, and returns when nothing looks at the guest's disks any more. */
void snapshot_stop_writing(struct agent *a, const char *why);
/* The VM is about to be freed: returns when nothing looks at it any more. */
void snapshot_drop(struct agent *a, const char *why);

/* snapshot_disks.c: the guest's disks in it */
/* Those of a guest that runs alone get taps, which stay until snapshot_disks_end(); for an
 * incremental one, longer. out->n 0: it has none, or they are left out. */
int snapshot_disks_begin(struct agent *a, bool standby, const Ctl__Request *request,
			 struct disks_config *out, struct ft_err *err);
/* Those of a standby, whose changes are noted. */
int snapshot_disks_of_standby(struct agent *a, struct disks_config *out, struct ft_err *err);
/* Nothing looks at the taps any more: they go, if they were there for that. What does not succeed
 * is tried again by snapshot_disks_look(). */
void snapshot_disks_end(struct agent *a);
void snapshot_disks_look(struct agent *a);
/* The same of a snapshot that was not begun: what stays is what stayed before. */
void snapshot_disks_refused(struct agent *a);
/* Start-up: the guest's images become what they were; those with other content, which the operator
 * gives up, not before all else is known to fit: then overwrite(). */
int snapshot_disks_restore(struct agent *a, const struct source *s, struct ft_err *err);
int snapshot_disks_overwrite(struct agent *a, struct ft_err *err);

/* increment.c: one into a file that is there */
/* Can this guest's snapshots be updated as it is asked for? */
int increment_check(struct agent *a, bool standby, const Ctl__Request *request, struct ft_err *err);
int increment_start(struct agent *a, bool standby, const Ctl__Request *request,
		    const struct snapshot_config *config, struct ft_err *err);
/* The worker has news. */
void increment_news(struct agent *a);
/* Waits for the end, and tells who asked. */
void increment_finish(struct agent *a);
/* What was written since which snapshot is not known any more: RAM belongs to another VM, or is
 * about to be tracked or frozen by somebody else. */
void increment_forget(struct agent *a);

/* history.c: past checkpoints, kept by the standby */
int history_start(struct agent *a, struct ft_err *err);
void history_stop(struct agent *a);
/* One that is being written is no more when this returns. */
void history_give_up(struct agent *a, const char *why);
void history_request(struct agent *a, struct ctl_call *call);
bool history_is_uri(const char *uri);
/* Start-up: the checkpoint that --restore names. */
int history_restore_from(struct agent *a, struct source *out, struct ft_err *err);

/* may_start.c: nobody else runs the guest, or could be granted it. With an arbiter its record is
 * claimed. Start-up, after the engine. */
int may_start(struct agent *a, struct ft_err *err);

/* memory.c: RUN/NAME.memory, one line a fact; replaced whole. Losing it costs nothing that an
 * arbiter does not know. */
struct memory {
	uint64_t generation;
	uint64_t guarded;	     /* that of the last protection from here */
	int64_t vmm_pid;	     /* 0: none */
	uint64_t vmm_start;	     /* its start time, so that a reused pid is not taken for it */
	bool elsewhere;		     /* the peer may run the guest, or surely does */
	bool moving;		     /* it is on its way: who stops it is its agent */
	char home[FT_HOST_ID_MAX];   /* "" = nobody knows */
	char peer[URI_TEXT_MAX + 1]; /* its standby, while the guest was protected from here */
};
int memory_load(const char *run_dir, const char *name, struct memory *m);
int memory_save(const char *run_dir, const char *name, const struct memory *m, struct ft_err *err);
/* Says so if it cannot. */
void memory_note_moving(const char *run_dir, const char *name, bool on);
/* Start time of a process as in /proc/PID/stat, 0: there is none. */
uint64_t memory_start_time(int64_t pid);
bool memory_vmm_lives(const struct memory *m);

/* fence.c: the operator's program that makes sure that the old primary's host is off or cut from
 * its storage; see kemari-guest(5). Then ft_engine_fenced(). One at a time. */
void fence_start(struct agent *a, const char *host, uint64_t generation);
/* Start-up: can it be executed? */
int fence_open(struct agent *a, struct ft_err *err);
/* Kills a program that runs. */
void fence_close(struct agent *a);

/* overflow.c */
extern const struct ft_overflow_ops spill_ops;

/* bridge.c */
/* Creates the persistent tap interface if it is absent, puts it on the bridge, brings it up. */
int bridge_tap_make(const char *ifname, const char *bridge, struct ft_err *err);
void bridge_tap_name(const char *guest, unsigned nic, char out[16]);
/* The interfaces that were made for this guest go, unless somebody uses them still. */
void bridge_taps_remove(const struct agent *a);

/* notify.c: sd_notify(3)'s protocol, without the library: one datagram. */
void notify_systemd(const char *state);

#endif
