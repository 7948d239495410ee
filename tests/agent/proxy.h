/* SPDX-License-Identifier: Apache-2.0 */
/* A wire between two agents that can be made bad: a unix socket that passes on to another one, byte
 * for byte until told otherwise. */
#ifndef TESTS_AGENT_PROXY_H
#define TESTS_AGENT_PROXY_H

#include <stdbool.h>

enum proxy_fault {
	PROXY_FLIP,   /* one bit of the next piece is wrong */
	PROXY_REPEAT, /* that piece is passed on twice */
	PROXY_LOSE,   /* it is left out */
	PROXY_CUT     /* its connection ends in the middle of it */
};

/* Who sends it: who dialed through the proxy, or who was dialed. */
enum proxy_side { PROXY_CLIENT, PROXY_SERVER };

struct proxy;

struct proxy *proxy_start(const char *listen_path, const char *to_path);
/* As soon as something passes from there on a data connection, and so many times in all; a data
 * connection is one that has carried more at a time than a heartbeat. `large`: something of that
 * size. */
void proxy_fault(struct proxy *p, enum proxy_fault fault, enum proxy_side from, bool large,
		 unsigned times);
/* Waits until all of it has happened. */
void proxy_wait(struct proxy *p, unsigned within_ms);
/* The first frame of that type (ft/msg.h) that the client sends stays here, and what comes behind
 * it on its connection, until it is released. Plain connections only. */
void proxy_hold(struct proxy *p, unsigned type);
void proxy_wait_held(struct proxy *p, unsigned within_ms);
void proxy_release(struct proxy *p);
void proxy_stop(struct proxy *p);

#endif
