/* SPDX-License-Identifier: Apache-2.0 */
/* The drill's client: one socket, one request at a time, each answer compared with the only right
 * one. It runs on a thread of its own and sees nothing of what the drill does to the hosts. */
#ifndef TOOLS_DRILL_CLIENT_H
#define TOOLS_DRILL_CLIENT_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ft/err.h"
#include "tools/drill/host.h"

#define TALK_BYTES_MAX 512

enum talk_verdict {
	TALK_RIGHT,
	TALK_WRONG, /* an answer, but not the right one */
	TALK_OLD    /* an earlier answer again, as datagrams may come; means nothing */
};

/* What is said: talk_ledger (stream) and talk_kv (datagrams). One per client, plain data. */
struct talk_ops {
	int type;		/* SOCK_STREAM | SOCK_DGRAM */
	size_t answer_bytes;	/* stream: length of an answer */
	unsigned repeat_ms;	/* datagrams: a request without an answer is sent again */
	const char *connection; /* "TCP connection", for people */
	/* The next request. */
	size_t (*next)(void *talk, uint8_t request[TALK_BYTES_MAX]);
	/* why: set when it is wrong. */
	enum talk_verdict (*check)(void *talk, const uint8_t *answer, size_t len,
				   struct ft_err *why);
	/* Compares an image, byte for byte, with what was acknowledged; what a request without an
	 * answer would have written may be there or not. *blocks: how many were written. */
	int (*compare)(void *talk, const char *image, uint64_t *bytes, uint64_t *blocks,
		       struct ft_err *why);
	void (*free)(void *talk);
};
extern const struct talk_ops talk_ledger, talk_kv;
void *talk_ledger_new(void);
/* disks of the same size. */
void *talk_kv_new(void);

struct client_counts {
	uint64_t answers, wrong, sent;
	bool lost; /* it has given up: why */
	uint64_t last_ns;
	char why[FT_ERR_TEXT_MAX]; /* of the first wrong answer, or of giving up */
};

struct client;

/* Connects from `from`'s network (retrying while nobody listens there) and begins to ask. */
int client_start(const struct talk_ops *ops, void *talk, const struct host *from,
		 const struct sockaddr_in *to, struct client **out, struct ft_err *err);
void client_counts(struct client *c, struct client_counts *counts);
/* Readable at each answer; reading (an eventfd) rearms it. */
int client_event(const struct client *c);
/* When answers came, CLOCK_MONOTONIC: copies those after `since`, at most max; returns how many. */
size_t client_times(struct client *c, uint64_t since, uint64_t *out, size_t max);
/* Ends the asking once the request under way is answered (bounded). The talk stays. */
void client_finish(struct client *c);
/* Also finishes. Accepts NULL. */
void client_free(struct client *c);

uint64_t drill_now_ns(void);

#endif
