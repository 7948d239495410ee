/* SPDX-License-Identifier: Apache-2.0 */
/* The world of fuzz_standby.c: a host around a standby's engine, in which everything but the engine
 * is a fake that checks what the engine promises. One at a time, made anew for every input. */
#ifndef TESTS_FUZZ_STANDBY_WORLD_H
#define TESTS_FUZZ_STANDBY_WORLD_H

#include "ft/engine.h"

#define PAGES	  16
#define RAM_BYTES (PAGES * (size_t)VMM_PAGE_BYTES)
#define STAGING	  (64u << 10) /* small, so that its bound is met */
#define LINKS	  8
#define LINKS_MAX 6 /* data, heartbeat and four that have not said who they are */
#define MS	  UINT64_C(1000000)

struct fake_link {
	struct ft_link base;
	unsigned slot;
};

/* What fails until further notice, in w.fail. */
enum {
	FAIL_SEND = 1,
	FAIL_ARM = 2,
	FAIL_TRIAL = 4,
	FAIL_STORE = 8,
	FAIL_ACTIVATE = 16,
	FAIL_RESUME = 32,
	FAIL_COMMIT = 64
};

struct world {
	struct ft_engine *engine;
	struct ft_arbiter arbiter, *none;
	struct vmm vmm;
	uint8_t image[RAM_BYTES];
	uint64_t now, image_hash, committed_seen;
	struct fake_link *links[LINKS];
	bool dialing, dialing_beat, armed, resumed;
	unsigned fail;

	/* the question that waits */
	ft_arbiter_fn *asked;
	void *asked_ctx;
	struct ft_grant_record want;

	/* what was sent of the checkpoint on its way, and what has become of it */
	uint64_t generation, session; /* of the frames; of the SETUP that was taken */
	uint64_t epoch, pages, state, events, stored;
	bool whole;
	/* durability "disk": the epoch whose answer is due, and whether that is being given */
	bool durable, durably;
	uint64_t sealing;
};
extern struct world w;

extern const struct ft_env_ops world_env;
extern const struct vmm_ops world_vmm;
extern const struct ft_arbiter_ops world_arbiter;

/* NULL: there are LINKS already. */
struct ft_link *link_make(void);
unsigned links_n(void);

#endif
