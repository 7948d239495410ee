/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of a drill share: the pair, the client, and what was seen. The drill's thread. */
#ifndef TOOLS_DRILL_SCENE_H
#define TOOLS_DRILL_SCENE_H

#include <signal.h>
#include <stdio.h>

#include "ctl.pb-c.h"
#include "tools/drill/client.h"
#include "tools/drill/drill.h"
#include "tools/drill/field.h"

#define DRILL_GUEST	  "drill"
#define DRILL_MARKS_MAX	  4096
#define DRILL_TIMES_MAX	  65536
#define DRILL_STATE_MAX	  24
#define DRILL_ANSWERS	  40 /* right answers that a round wants to see before and after the strike */
#define DRILL_BOOT_MS	  120000
#define DRILL_PROTECT_MS  120000
#define DRILL_TAKEOVER_MS 30000
#define DRILL_STOP_MS	  30000
#define DRILL_TICK_MS	  10

/* What an agent says of itself, as far as the drill cares. */
struct seen {
	bool answered;
	char state[DRILL_STATE_MAX], role[DRILL_STATE_MAX];
	char reason[256], last_error[256];
	uint64_t committed, checkpoints, pause_p50_us, commit_p50_us;
	pid_t vmm_pid; /* as the host numbers it */
	bool deciding;
	char arbiter[DRILL_STATE_MAX]; /* what the agent knows of it */
};

/* A moment that the picture shows. */
struct mark {
	uint64_t ns;
	unsigned host;
};

struct round {
	unsigned number, old_primary, winner;
	enum drill_kill kill;
	unsigned calm_ms;		   /* under protection, before the strike */
	uint64_t strike_ns, takeover_ns;   /* 0: there was none */
	uint64_t gap_start_ns, gap_end_ns; /* longest silence around the strike */
	uint64_t before, after;		   /* answers */
	uint64_t pause_p50_us, commit_p50_us;
	bool verified;
	uint64_t digest;
	uint64_t thawed_ns;
	uint64_t disk_alike, disk_noted, disk_copied; /* when the lost host returned */
	double home_gap_ms;			      /* longest silence of the way home */
	unsigned marks_n;			      /* checkpoints that were committed */
	struct mark marks[DRILL_MARKS_MAX];
};

struct drill {
	const struct drill_options *o;
	enum drill_vmm vmm;
	bool isolated;
	const char *why_pocket; /* NULL: it was asked for, or it is QEMU */
	char why_pocket_text[FT_ERR_TEXT_MAX + 32];
	char dir[64]; /* logs, images, keys */
	char guest_dir[HOST_PATH_MAX], agent_program[HOST_PATH_MAX];
	uint16_t link_port[2], guest_port;

	struct field field;
	struct host hosts[2];
	bool must_live[2]; /* the agent's end is an error now */
	unsigned primary;

	const struct talk_ops *talk_ops;
	void *talk;
	struct client *client;

	int signal_fd;
	sigset_t signals_before;
	uint64_t start_ns, sampled_ns;
	struct round *round; /* checkpoints are noted here; NULL: not */
	struct seen now[2];  /* at the last sample */

	/* outcome */
	uint64_t image_bytes, image_blocks;
	unsigned images;
};

/* ---- ask.c ---- */

/* False: no answer. Never blocks for long. */
bool ask_seen(struct drill *d, unsigned which, struct seen *seen);
/* A request whose answer may take long; the drill goes on looking at signals and agents meanwhile.
 * reply may be NULL; else free it with ctl__reply__free_unpacked(). An error reply is an error. */
int ask_agent(struct drill *d, unsigned which, const char *command, const char *uri, int timeout_ms,
	      Ctl__Reply **reply, struct ft_err *err);

/* Waits for done(); what: for the error. Looks at each event of the client and each tick. -EINTR:
 * the operator interrupts; -ECHILD: an agent that must live died; -ETIMEDOUT. */
int drill_wait(struct drill *d, bool (*done)(struct drill *d, void *ctx), void *ctx, int timeout_ms,
	       const char *what, struct ft_err *err);
/* Until host `which` says that it is in this state; "failed" ends it early. */
int wait_state(struct drill *d, unsigned which, const char *state, int timeout_ms,
	       struct ft_err *err);
/* Until the host says that it is fenced, and by whom. */
int wait_fenced(struct drill *d, unsigned which, struct ft_err *err);
/* Until there are n more answers than `since`. */
int wait_answers(struct drill *d, uint64_t since, unsigned n, int timeout_ms, struct ft_err *err);
uint64_t answers(struct drill *d);

/* ---- drill.c, soak.c ---- */

/* From a protected guest, which it sees to, to one that went on: r's number, kill and calm_ms are
 * given, the rest is found out. */
int run_round(struct drill *d, struct round *r, struct ft_err *err);
/* Rounds as the seed draws them, until the time is over. *done: how many were right. */
int soak(struct drill *d, struct round *rounds, unsigned *done, struct ft_err *err);

/* ---- cluster.c: the arbiter etcd ---- */

/* -ENOTSUP: it is not installed. */
int cluster_find(char path[HOST_PATH_MAX], struct ft_err *err);
/* Starts it, on a host of its own, and waits until it serves. */
int cluster_up(struct drill *d, struct ft_err *err);
/* Its section of the guest file. */
void cluster_write(FILE *f);

/* ---- pair.c ---- */

/* file: where it is. */
bool drill_in_path(const char *program, char file[HOST_PATH_MAX]);

int pair_prepare(struct drill *d, struct ft_err *err);
int pair_start_primary(struct drill *d, struct ft_err *err);
int pair_start_client(struct drill *d, struct ft_err *err);
/* Brings up the host that is not the primary, with a standby, and protects the guest by it. */
int pair_protect(struct drill *d, struct ft_err *err);
/* The primary's image (both images when `both`) against the client's books; ends the agents. */
int pair_compare(struct drill *d, bool both, struct ft_err *err);
void pair_end(struct drill *d);

/* "host-a", "host-b" */
const char *host_name(unsigned which);

/* ---- attach.c ---- */

/* What guest files say of a machine that runs already, and of its standby. */
void attach_primary_file(const struct drill *d, unsigned which, FILE *f);
void attach_standby_file(const struct drill *d, unsigned which, FILE *f);
/* The tap that both QEMUs use: whoever starts his own QEMU makes his own. */
int attach_host(struct host *h, struct ft_err *err);
/* The operator's QEMU, on the primary host; its monitor listens when this returns. */
int attach_start_theirs(struct drill *d, struct ft_err *err);
/* Leaves protection; the guest must run on as before. */
int attach_let_go(struct drill *d, struct ft_err *err);

/* ---- homecoming.c ---- */

/* The lost host returns as the standby, gets what differs, and the guest goes home. */
int homecoming(struct drill *d, struct round *r, struct ft_err *err);

/* ---- strike.c ---- */

/* Strikes, waits until the guest goes on, and sees to it that nothing of the old one is heard. */
int strike(struct drill *d, struct round *r, struct ft_err *err);
/* Links first: a host that dies says no good-bye, while a process that dies closes its sockets. */
void strike_host(struct drill *d, unsigned which);
/* It lets outputs of the guest out, or would. */
bool strike_leads(const struct seen *s);
/* The winner is known: waits for answers, measures the gap, and shows a while of what follows. */
int strike_settle(struct drill *d, struct round *r, struct ft_err *err);

/* ---- partition.c ---- */

/* Cuts, sees who goes on, heals, and sees what becomes of the other one. */
int partition(struct drill *d, struct round *r, struct ft_err *err);

/* ---- report.c, picture.c ---- */

/* A line of progress with the time since the start; not with --json. */
void say(struct drill *d, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void report_round(struct drill *d, const struct round *r);
void report_json(struct drill *d, const struct round *rounds, unsigned n, bool ok,
		 const struct ft_err *why);
void report_text(struct drill *d, const struct round *rounds, unsigned n, bool ok,
		 const struct ft_err *why);
/* The end of both agents' logs, on stderr. */
void report_logs(const struct drill *d);
/* How much time before the strike and after the gap the picture shows. */
uint64_t picture_around_ns(const struct round *r);
void picture(struct drill *d, const struct round *r);

/* ---- rehearse.c ---- */

int rehearse(const struct drill_options *options, struct ft_err *err);

#endif
