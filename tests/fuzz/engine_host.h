/* SPDX-License-Identifier: Apache-2.0 */
/* What is around an engine under the fuzzer, on whichever side: its clock, its connections, the
 * question that its arbiter has not answered yet; and the fuzzer's input. One at a time, made anew
 * for every input. What a side promises is checked by its world (primary_world.c,
 * standby_world.c). */
#ifndef TESTS_FUZZ_ENGINE_HOST_H
#define TESTS_FUZZ_ENGINE_HOST_H

#include "ft/engine.h"

#define LINKS	  8
#define LINKS_MAX 6 /* data, heartbeat and four that have not said who they are */
#define MS	  UINT64_C(1000000)

struct fake_link {
	struct ft_link base;
	unsigned slot;
};

struct engine_host {
	struct ft_engine *engine;
	struct ft_arbiter arbiter, *none;
	struct vmm vmm;
	uint64_t now;
	unsigned fail; /* what fails until further notice: FAIL_ of the world */
	const struct ft_link_ops *link_ops;
	struct fake_link *links[LINKS];
	bool dialing, dialing_beat;

	/* the question that waits */
	ft_arbiter_fn *asked;
	void *asked_ctx;
	struct ft_grant_record want;
};
extern struct engine_host host;

/* The beginning and the end of an input; the caller makes the engine in between. */
struct ft_engine_config host_begin(const char *id, size_t staging_bytes);
void host_end(void);

/* Of a world's ops. */
void host_link_close(struct ft_link *link);
uint64_t host_link_bytes_sent(struct ft_link *link);
uint64_t host_now(void *ctx);
void host_wake_at(void *ctx, uint64_t when_ns);
void host_dial(void *ctx, bool heartbeat);
void host_hang_up(void *ctx);
void host_changed(void *ctx);
void host_generation(void *ctx, uint64_t generation);
void host_ask(ft_arbiter_fn *fn, void *ctx);
void host_arbiter_free(struct ft_arbiter *a);
/* NULL: there are LINKS already. */
struct ft_link *link_make(void);
unsigned links_n(void);

struct input {
	const uint8_t *at;
	size_t left;
};
/* The next byte; 0 at the end. */
unsigned take(struct input *in);
/* At most so many bytes, as many as there are. Returns how many. */
size_t take_some(struct input *in, uint8_t *out, size_t n);

/* Actions. */
void do_accepted(void);
void do_dialed(struct input *in);
void do_link(struct input *in);
void do_time(struct input *in);
/* ft_done_fn that has nothing to say. */
void on_done(void *ctx, const struct ft_err *err, uint64_t value);

#endif
