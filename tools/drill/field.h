/* SPDX-License-Identifier: Apache-2.0 */
/* The network of the drill:
 *
 *      client 10.9.0.1                guest 10.9.0.2
 *         |                              |
 *      [switch] ---------------- uplink [br0 host-a] repl 10.10.0.1
 *         |                                        |
 *         +--------------------- uplink [br0 host-b] repl 10.10.0.2
 *
 * and, with etcd, an arbiter, its members at 10.12.0.1 to 10.12.0.3:
 *
 *      host-a arb 10.11.0.1 --- 10.11.0.254 to-a [arbiter] to-b 10.11.1.254 --- 10.11.1.1 arb
 * host-b
 *
 * Client, switch and arbiter are hosts without an agent. Isolated hosts only. */
#ifndef TOOLS_DRILL_FIELD_H
#define TOOLS_DRILL_FIELD_H

#include "tools/drill/host.h"

#define FIELD_GUEST_IP "10.9.0.2"
#define FIELD_BRIDGE   "br0"

struct field {
	struct host client, switch_, arbiter; /* arbiter: perhaps not up */
	unsigned links;	  /* made so far: each gets a name of its own at the switch */
	char port[2][16]; /* of the hosts at the switch */
};

int field_up(struct field *f, struct ft_err *err);
void field_down(struct field *f);
/* Connects hosts[which], which has just come up, to the switch, and with the other one if that is
 * up. */
int field_join(struct field *f, const struct host hosts[2], unsigned which, struct ft_err *err);
/* Address of a host at the replication link. */
const char *field_address(unsigned which);
/* All links of a host that dies: at once / what is left of them, afterwards. */
void field_cut(const struct host *h);
void field_leave(struct field *f, const struct host hosts[2], unsigned which);
/* The replication link, at the host's end. */
int field_replication(const struct host *h, bool up, struct ft_err *err);
/* What hosts[which] sends over the replication link is lost, or arrives again. */
int field_mute(const struct host hosts[2], unsigned which, bool mute, struct ft_err *err);

/* The arbiter's host; before the hosts join. */
int field_arbiter_up(struct field *f, struct ft_err *err);
const char *field_arbiter_address(unsigned member);
/* Between the arbiter and hosts[which], at the arbiter's end: what the host sends is lost. */
int field_arbiter_link(const struct field *f, unsigned which, bool up, struct ft_err *err);

#endif
