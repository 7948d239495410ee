/* SPDX-License-Identifier: Apache-2.0 */
/* The world of fuzz_standby.c: a host around a standby's engine, in which everything but the engine
 * is a fake that checks what the engine promises. One at a time, made anew for every input. */
#ifndef TESTS_FUZZ_STANDBY_WORLD_H
#define TESTS_FUZZ_STANDBY_WORLD_H

#include "tests/fuzz/engine_host.h"

#define PAGES	  16
#define RAM_BYTES (PAGES * (size_t)VMM_PAGE_BYTES)
#define STAGING	  (64u << 10) /* small, so that its bound is met */

/* What fails until further notice, in host.fail. */
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
	uint8_t image[RAM_BYTES];
	uint64_t image_hash, committed_seen;
	bool armed, resumed;

	/* what was sent of the checkpoint on its way, and what has become of it */
	uint64_t generation, session; /* of the frames; of the SETUP that was taken */
	uint64_t epoch, pages, state, events, stored;
	bool whole;
	/* durability "disk": the epoch whose answer is due, and whether that is being given */
	bool durable, durably;
	uint64_t sealing;
};
extern struct world w;

extern const struct ft_link_ops world_link;
extern const struct ft_env_ops world_env;
extern const struct vmm_ops world_vmm;
extern const struct ft_arbiter_ops world_arbiter;

#endif
