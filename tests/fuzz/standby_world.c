// SPDX-License-Identifier: Apache-2.0
// Links that take everything, a VM and stores that remember what they were told, an arbiter whose
// answers come when the fuzzer says so.
#include "tests/fuzz/standby_world.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ft/page.h"

struct world w;

/* ---- links ---- */

static int link_send(struct ft_link *link, const struct ft_msg *msg)
{
	(void)link;
	assert(msg->body_len <= FT_BODY_MAX && msg->payload_len <= FT_PAYLOAD_MAX);
	if (w.fail & FAIL_SEND)
		return -EPIPE;
	if (msg->type == FT_MSG_ACK)
		assert(w.whole && w.durably == w.durable && msg->epoch == w.epoch &&
		       msg->generation == w.session);
	return 0;
}

static uint8_t *link_reserve(struct ft_link *link, uint32_t payload_max)
{
	(void)link;
	(void)payload_max;
	return NULL;
}

static int link_drain(struct ft_link *link, unsigned deadline_ms)
{
	(void)link;
	(void)deadline_ms;
	return 0;
}

static uint64_t link_bytes_sent(struct ft_link *link)
{
	(void)link;
	return 0;
}

static void link_close(struct ft_link *link)
{
	struct fake_link *l = (struct fake_link *)link;

	assert(w.links[l->slot] == l);
	w.links[l->slot] = NULL;
	free(l);
}

static const struct ft_link_ops link_ops = {
	.send = link_send,
	.reserve = link_reserve,
	.drain = link_drain,
	.bytes_sent = link_bytes_sent,
	.close = link_close,
};

struct ft_link *link_make(void)
{
	for (unsigned i = 0; i < LINKS; i++) {
		if (w.links[i])
			continue;
		w.links[i] = calloc(1, sizeof *w.links[i]);
		w.links[i]->slot = i;
		w.links[i]->base.ops = &link_ops;
		snprintf(w.links[i]->base.peer, sizeof w.links[i]->base.peer, "fuzz");
		return &w.links[i]->base;
	}
	return NULL;
}

unsigned links_n(void)
{
	unsigned n = 0;

	for (unsigned i = 0; i < LINKS; i++)
		n += w.links[i] != NULL;
	return n;
}

/* ---- the VM ---- */

static void m_info(struct vmm *vmm, struct vmm_info *info)
{
	(void)vmm;
	*info = (struct vmm_info){.kind = "fuzz", .ram_bytes = RAM_BYTES, .disks_n = 1};
}

static void m_ram(struct vmm *vmm, struct vmm_ram *ram)
{
	(void)vmm;
	*ram = (struct vmm_ram){.pidfd = -1, .bytes = RAM_BYTES, .fd = -1};
}

static uint8_t *m_image(struct vmm *vmm)
{
	(void)vmm;
	return w.image;
}

static int m_trial(struct vmm *vmm, const uint8_t *state, size_t len, struct ft_err *err)
{
	(void)vmm;
	(void)state;
	assert(w.armed && len == w.state);
	return w.fail & FAIL_TRIAL ? ft_err_set(err, EINVAL, "does not load") : 0;
}

static int m_resume(struct vmm *vmm, const uint8_t *state, size_t len, struct ft_err *err)
{
	(void)vmm;
	(void)state;
	(void)len;
	assert(w.armed && w.stored && !w.resumed);
	w.resumed = true;
	return w.fail & FAIL_RESUME ? ft_err_set(err, EIO, "does not resume") : 0;
}

static int m_digest(struct vmm *vmm, uint64_t *digest, struct ft_err *err)
{
	(void)vmm;
	(void)err;
	*digest = XXH3_64bits(w.image, sizeof w.image);
	return 0;
}

/* A standby needs no more of a VM. */
const struct vmm_ops world_vmm = {
	.kind = "fuzz",
	.info = m_info,
	.ram = m_ram,
	.image = m_image,
	.trial = m_trial,
	.resume = m_resume,
	.ram_digest = m_digest,
};

/* ---- environment ---- */

static uint64_t env_now(void *ctx)
{
	(void)ctx;
	return w.now;
}

static void env_wake_at(void *ctx, uint64_t when_ns)
{
	(void)ctx;
	(void)when_ns;
}

static uint64_t env_random(void *ctx)
{
	(void)ctx;
	return 4711;
}

static void env_dial(void *ctx, bool heartbeat)
{
	(void)ctx;
	w.dialing = true;
	w.dialing_beat = heartbeat;
}

static void env_hang_up(void *ctx)
{
	(void)ctx;
	w.dialing = false;
}

static int env_guard(void *ctx, bool on, struct ft_err *err)
{
	(void)ctx;
	(void)on;
	(void)err;
	return 0;
}

static void env_disarm(void *ctx)
{
	(void)ctx;
	assert(w.armed);
	w.armed = false;
	w.stored = w.committed_seen = 0;
	ft_engine_set_vmm(w.engine, NULL);
}

static int env_arm(void *ctx, const Ft__Setup *setup, struct ft_err *err)
{
	(void)ctx;
	assert(!w.armed);
	for (size_t i = 0; i < setup->n_disks; i++)
		assert(setup->disks[i]->id && setup->disks[i]->image);
	if (w.fail & FAIL_ARM)
		return ft_err_set(err, EINVAL, "no such guest here");
	w.armed = true;
	w.session = w.generation;
	w.resumed = false;
	memset(w.image, 0, sizeof w.image);
	ft_engine_set_vmm(w.engine, &w.vmm);
	return 0;
}

static int env_store_sums(void *ctx, uint64_t seed, struct ft_disk_sums *range, uint8_t *sums,
			  struct ft_err *err)
{
	(void)ctx;
	(void)seed;
	(void)sums;
	assert(w.armed && !w.stored);
	*range = (struct ft_disk_sums){.bytes = 512, .block = 512, .zero = true};
	return w.fail & FAIL_STORE ? ft_err_set(err, EIO, "disk broken") : w.now & MS ? 1 : 0;
}

static int env_store_sync(void *ctx, const struct ft_disk_chunk *chunk, const uint8_t *data,
			  struct ft_err *err)
{
	(void)ctx;
	assert(chunk->zero || !chunk->bytes || data);
	assert(!w.stored);
	return w.fail & FAIL_STORE ? ft_err_set(err, ENOSPC, "disk full") : 0;
}

static bool is_disk(const struct tap_record *rec)
{
	return (rec->kind >= TAP_DISK_WRITE && rec->kind <= TAP_DISK_FLUSH) ||
	       rec->kind == TAP_DISK_BITMAP;
}

static int env_store_stage(void *ctx, const struct tap_record *rec, struct ft_err *err)
{
	(void)ctx;
	assert(w.durable && w.whole && is_disk(rec));
	return w.fail & FAIL_STORE ? ft_err_set(err, ENOSPC, "no room for the journal") : 0;
}

static int env_store_staged(void *ctx, uint64_t generation, uint64_t epoch, struct ft_err *err)
{
	(void)ctx;
	assert(w.durable && w.whole && generation == w.session && epoch == w.epoch);
	w.sealing = epoch;
	return w.fail & FAIL_COMMIT ? ft_err_set(err, EIO, "journal broken") : 0;
}

static void env_store_unstage(void *ctx)
{
	(void)ctx;
	w.sealing = 0;
}

static int env_store_apply(void *ctx, const struct tap_record *rec, struct ft_err *err)
{
	(void)ctx;
	assert(w.whole && is_disk(rec));
	return w.fail & FAIL_STORE ? ft_err_set(err, EIO, "disk broken") : 0;
}

static int env_store_commit(void *ctx, uint64_t generation, uint64_t epoch, struct ft_err *err)
{
	(void)ctx;
	assert(w.whole && w.durably == w.durable && generation == w.session && epoch == w.epoch &&
	       epoch > w.stored);
	if (w.fail & FAIL_COMMIT)
		return ft_err_set(err, EIO, "disk broken");
	w.stored = epoch;
	return 0;
}

static void env_store_released(void *ctx, uint64_t epoch)
{
	(void)ctx;
	assert(epoch == w.stored);
}

static int env_store_activate(void *ctx, uint64_t generation, uint64_t epoch, bool settled,
			      struct ft_err *err)
{
	(void)ctx;
	(void)settled;
	assert(w.armed && w.stored && epoch == w.stored && generation > w.session);
	if (w.fail & FAIL_ACTIVATE)
		return ft_err_set(err, w.now & MS ? EBUSY : EIO, "disk is not free");
	return 0;
}

static int env_store_outdate(void *ctx, struct ft_err *err)
{
	(void)ctx;
	return w.fail & FAIL_STORE ? ft_err_set(err, EIO, "disk broken") : 0;
}

static void env_vm_end(void *ctx)
{
	(void)ctx;
	w.armed = false;
	ft_engine_set_vmm(w.engine, NULL);
}

static void env_generation(void *ctx, uint64_t generation)
{
	(void)ctx;
	assert(generation > 0);
}

/* After a takeover they are there still, passing through. */
static int env_taps_out(void *ctx, struct ft_err *err)
{
	(void)ctx;
	(void)err;
	assert(w.resumed);
	return 0;
}

static void env_changed(void *ctx)
{
	(void)ctx;
}

/* What only a primary that protects needs is not there. */
const struct ft_env_ops world_env = {
	.now_ns = env_now,
	.wake_at = env_wake_at,
	.random = env_random,
	.dial = env_dial,
	.hang_up = env_hang_up,
	.taps_out = env_taps_out,
	.guard = env_guard,
	.vm_end = env_vm_end,
	.arm = env_arm,
	.disarm = env_disarm,
	.store_sums = env_store_sums,
	.store_sync = env_store_sync,
	.store_stage = env_store_stage,
	.store_staged = env_store_staged,
	.store_unstage = env_store_unstage,
	.store_apply = env_store_apply,
	.store_commit = env_store_commit,
	.store_released = env_store_released,
	.store_activate = env_store_activate,
	.store_outdate = env_store_outdate,
	.generation = env_generation,
	.changed = env_changed,
};

/* ---- arbiter ---- */

static void arbiter_ask(struct ft_arbiter *a, ft_arbiter_fn *fn, void *ctx)
{
	(void)a;
	assert(!w.asked);
	w.asked = fn;
	w.asked_ctx = ctx;
}

static void arbiter_read(struct ft_arbiter *a, ft_arbiter_fn *fn, void *ctx)
{
	w.want = (struct ft_grant_record){.generation = w.session,
					  .holder = "primary",
					  .in_sync = true,
					  .partner = "standby"};
	arbiter_ask(a, fn, ctx);
}

static void arbiter_swap(struct ft_arbiter *a, uint64_t expected,
			 const struct ft_grant_record *want, ft_arbiter_fn *fn, void *ctx)
{
	assert(want->generation == expected + 1 && want->generation > 0);
	w.want = *want;
	arbiter_ask(a, fn, ctx);
}

static void arbiter_free(struct ft_arbiter *a)
{
	(void)a;
}

const struct ft_arbiter_ops world_arbiter = {
	.type = "file", .read = arbiter_read, .swap = arbiter_swap, .free = arbiter_free};
