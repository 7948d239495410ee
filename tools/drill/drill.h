/* SPDX-License-Identifier: Apache-2.0 */
/* A rehearsed failover: `ftctl drill`, quickstart and the tests in tests/drill.
 *
 * Without a guest's name the drill brings up a pair of its own: two hosts, each with processes and
 * a network of its own, a client, a switch between the three and a replication link; a guest under
 * protection; a client whose every answer is checked. It strikes, and reports what the client saw.
 * With a name it rehearses on the operator's pair.
 *
 *   attach.c   a QEMU of somebody else
 *   drill.c    the sequence          soak.c    random strikes for a given time
 *   host.c     a host: namespaces, agent, strikes
 *   pair.c     guest file, agents    field.c    the network between hosts
 *   strike.c   the faults            client.c   the client; talk_ledger.c, talk_kv.c: what it says
 *   partition.c  cuts between hosts and arbiter    picture.c  the timeline; report.c the outcome
 *   cluster.c  the arbiter: etcd     rehearse.c on an operator's pair
 *   ask.c      asking agents */
#ifndef TOOLS_DRILL_DRILL_H
#define TOOLS_DRILL_DRILL_H

#include <stdbool.h>
#include <stdint.h>

#include "ft/err.h"

enum drill_kill {
	DRILL_HOST,    /* the primary's agent, VMM and keeper die and its links go down at once */
	DRILL_AGENT,   /* the primary's agent dies */
	DRILL_VMM,     /* the primary's QEMU dies (pocket: it lives in the agent) */
	DRILL_FREEZE,  /* everything on the primary host stops, and goes on later */
	DRILL_LINK,    /* the replication link is cut */
	DRILL_STANDBY, /* the standby host dies */
	DRILL_SWITCH,  /* planned switch: roles are exchanged */
	/* Partitions of primary, standby and arbiter (etcd); the guest's network stays whole. */
	DRILL_PART_PAIR,	 /* primary and standby lose each other; both reach the arbiter */
	DRILL_PART_DEAF_PRIMARY, /* what the standby sends to the primary is lost */
	DRILL_PART_DEAF_STANDBY, /* what the primary sends to the standby is lost */
	DRILL_PART_PRIMARY,	 /* the primary is alone */
	DRILL_PART_STANDBY,	 /* the standby is alone */
	DRILL_PART_ALL,		 /* each is alone */
	DRILL_PART_PRIMARY_ARBITER, /* these two lose each other */
	DRILL_PART_STANDBY_ARBITER,
	DRILL_PART_ARBITER, /* the arbiter is alone; then the primary host dies */
	DRILL_KILLS_N
};
#define DRILL_PART_FIRST DRILL_PART_PAIR
const char *drill_kill_name(enum drill_kill kill);
/* -EINVAL: none of them. */
int drill_kill_parse(const char *name);
#define DRILL_KILL_NAMES                                                                           \
	"host, agent, vmm, freeze, link, standby, switch, partition:pair, "                        \
	"partition:deaf-primary, "                                                                 \
	"partition:deaf-standby, partition:primary, partition:standby, partition:all, "            \
	"partition:primary-arbiter, partition:standby-arbiter, partition:arbiter"

enum drill_arbiter { DRILL_ARBITER_NONE, DRILL_ARBITER_FILE, DRILL_ARBITER_ETCD };
const char *drill_arbiter_name(enum drill_arbiter arbiter);

enum drill_vmm { DRILL_VMM_AUTO, DRILL_VMM_QEMU, DRILL_VMM_POCKET };

#define DRILL_ROUNDS_MAX 100
#define DRILL_SETS_MAX	 8
#define SOAK_S_MAX	 86400
#define SOAK_ROUNDS_MAX	 20000 /* a round takes longer than SOAK_S_MAX / this */

struct drill_options {
	const char *name;    /* of the operator's guest, NULL: a pair of our own */
	const char *run_dir; /* of the operator's agents */
	enum drill_kill kill;
	bool kill_given;
	unsigned rounds; /* 1 to DRILL_ROUNDS_MAX */
	unsigned soak_s; /* random strikes for so long, under arbiter file or etcd; 0: rounds of
			    `kill` */
	uint64_t seed;	 /* what the soak draws from */
	enum drill_vmm vmm;
	unsigned takeover_ms;	    /* of silence; 0: the product's default */
	enum drill_arbiter arbiter; /* none: with the survivor that the fault asks for. Partitions
				       need etcd. */
	const char *sets[DRILL_SETS_MAX]; /* of a pair of our own: KEY=VALUE of the guest file */
	unsigned sets_n;
	bool attach; /* to a QEMU that was started without us */
	bool shared_disk;
	bool durable;	/* the standby syncs before it acknowledges */
	bool give_back; /* after the takeover the lost host returns, and the guest goes home */
	bool json;	/* one object on stdout, and nothing else */
	bool keep;	/* the folder with logs and images stays */
};

/* Also exit codes of `ftctl drill`. */
#define DRILL_OK	 0
#define DRILL_FAILED	 1  /* the promise did not hold, or the drill could not go on */
#define DRILL_IMPOSSIBLE 77 /* this machine lacks something that was asked for */

/* Runs the whole drill and prints it. Returns one of the above; *reported: the outcome, with its
 * error if any, was printed as JSON; else the error is in *err for the caller to print. Everything
 * that it started is gone when it returns, also after SIGINT and SIGTERM, which it handles
 * meanwhile. Single-threaded callers only. */
int drill_run(const struct drill_options *options, bool *reported, struct ft_err *err);

#endif
