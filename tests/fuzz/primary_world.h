/* SPDX-License-Identifier: Apache-2.0 */
/* The world of fuzz_primary.c: a host around a primary's engine, in which everything but the engine
 * is a fake that checks what the engine promises about outputs. One at a time, made anew for every
 * input. */
#ifndef TESTS_FUZZ_PRIMARY_WORLD_H
#define TESTS_FUZZ_PRIMARY_WORLD_H

#include "tests/fuzz/engine_host.h"

#define PAGES	  16
#define RAM_BYTES (PAGES * (size_t)VMM_PAGE_BYTES)
#define STAGING	  (4 * (size_t)VMM_PAGE_BYTES) /* small, so that it is full before RAM is done */
#define DIGEST	  UINT64_C(0x1234)

/* What fails until further notice, in host.fail. */
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
	uint64_t dirty;
	bool stopped;

	/* the tap */
	struct tap tap;
	enum tap_mode mode;
	bool becomes_hold;
	uint64_t open, oldest; /* the open epoch; of the outputs that are held, 0: none */

	struct ft_grant_record record; /* the arbiter's */

	/* What the peer may rightly have: the session it was told of, the last checkpoint that went
	 * to it whole, and the last one that it said to have. */
	uint64_t session, generation, end, acked;
	bool guarded;  /* the standby may take over */
	bool alone;    /* somebody who may has said that it does not */
	bool survivor; /* the operator said so beforehand: arbiter none, survivor = "primary" */
};
extern struct world w;

extern const struct ft_link_ops world_link;
extern const struct ft_env_ops world_env;
extern const struct vmm_ops world_vmm;
extern const struct ft_arbiter_ops world_arbiter;

/* The guest puts something out. */
void guest_output(void);

#endif
