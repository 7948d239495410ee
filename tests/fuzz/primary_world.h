/* SPDX-License-Identifier: Apache-2.0 */
/* The world of fuzz_primary.c: a host around a primary's engine, in which everything but the engine
 * is a fake that checks what the engine promises about outputs. One at a time, made anew for every
 * input. */
#ifndef TESTS_FUZZ_PRIMARY_WORLD_H
#define TESTS_FUZZ_PRIMARY_WORLD_H

#include "ft/engine.h"

#define PAGES	  16
#define RAM_BYTES (PAGES * (size_t)VMM_PAGE_BYTES)
#define STAGING	  (4 * (size_t)VMM_PAGE_BYTES) /* small, so that it is full before RAM is done */
#define LINKS	  8
#define LINKS_MAX 6 /* data, heartbeat and four that have not said who they are */
#define MS	  UINT64_C(1000000)
#define DIGEST	  UINT64_C(0x1234)

struct fake_link {
	struct ft_link base;
	unsigned slot;
};

/* What fails until further notice, in w.fail. */
enum {
	FAIL_SEND = 1,
	FAIL_ROOM = 2,
	FAIL_CHECKPOINT = 4,
	FAIL_CLOSE_EPOCH = 8,
	FAIL_TAPS = 16,
	FAIL_HARVEST = 32,
	FAIL_RELEASE = 64,
	FAIL_CONT = 128
};

struct world {
	struct ft_engine *engine;
	struct ft_arbiter arbiter, *none;
	struct vmm vmm;
	uint64_t now, dirty;
	struct fake_link *links[LINKS];
	bool dialing, dialing_beat, stopped;
	unsigned fail;

	/* the tap */
	struct tap tap;
	enum tap_mode mode;
	bool becomes_hold;
	uint64_t open, oldest; /* the open epoch; of the outputs that are held, 0: none */

	/* the question that waits, and the record that it is about */
	ft_arbiter_fn *asked;
	void *asked_ctx;
	struct ft_grant_record record, want;

	/* What the peer may rightly have: the session it was told of, the last checkpoint that went
	 * to it whole, and the last one that it said to have. */
	uint64_t session, generation, end, acked;
	bool guarded;  /* the standby may take over */
	bool alone;    /* somebody who may has said that it does not */
	bool survivor; /* the operator said so beforehand: arbiter none, survivor = "primary" */
};
extern struct world w;

extern const struct ft_env_ops world_env;
extern const struct vmm_ops world_vmm;
extern const struct ft_arbiter_ops world_arbiter;

/* NULL: there are LINKS already. */
struct ft_link *link_make(void);
unsigned links_n(void);
/* The guest puts something out. */
void guest_output(void);

#endif
