/* SPDX-License-Identifier: Apache-2.0 */
/* A wire between two agents that can be made bad: a unix socket that passes on to another one, byte
 * for byte until told otherwise. */
#ifndef TESTS_AGENT_PROXY_H
#define TESTS_AGENT_PROXY_H

enum proxy_fault {
	PROXY_FLIP,   /* one bit of the next large piece from the primary is wrong */
	PROXY_REPEAT, /* that piece is passed on twice */
	PROXY_LOSE,   /* it is left out */
	PROXY_CUT     /* its connection ends in the middle of it */
};

struct proxy;

struct proxy *proxy_start(const char *listen_path, const char *to_path);
/* Once, as soon as something of this kind passes. */
void proxy_fault(struct proxy *p, enum proxy_fault fault);
/* Waits until it has happened. */
void proxy_wait(struct proxy *p, unsigned within_ms);
void proxy_stop(struct proxy *p);

#endif
