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
	if (host.fail & FAIL_SEND)
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

const struct ft_link_ops world_link = {
	.send = link_send,
	.reserve = link_reserve,
	.drain = link_drain,
	.bytes_sent = host_link_bytes_sent,
	.close = host_link_close,
};

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
	return host.fail & FAIL_TRIAL ? ft_err_set(err, EINVAL, "does not load") : 0;
}

static int m_resume(struct vmm *vmm, const uint8_t *state, size_t len, struct ft_err *err)
{
	(void)vmm;
	(void)state;
	(void)len;
	assert(w.armed && w.stored && !w.resumed);
	w.resumed = true;
	return host.fail & FAIL_RESUME ? ft_err_set(err, EIO, "does not resume") : 0;
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

static uint64_t env_random(void *ctx)
{
	(void)ctx;
	return 4711;
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
	ft_engine_set_vmm(host.engine, NULL);
}

static int env_arm(void *ctx, const Ft__Setup *setup, struct ft_err *err)
{
	(void)ctx;
	assert(!w.armed);
	for (size_t i = 0; i < setup->n_disks; i++)
		assert(setup->disks[i]->id && setup->disks[i]->image);
	if (host.fail & FAIL_ARM)
		return ft_err_set(err, EINVAL, "no such guest here");
	w.armed = true;
	w.session = w.generation;
	w.resumed = false;
	memset(w.image, 0, sizeof w.image);
	ft_engine_set_vmm(host.engine, &host.vmm);
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
	return host.fail & FAIL_STORE ? ft_err_set(err, EIO, "disk broken") : host.now & MS ? 1 : 0;
}

static int env_store_sync(void *ctx, const struct ft_disk_chunk *chunk, const uint8_t *data,
			  struct ft_err *err)
{
	(void)ctx;
	assert(chunk->zero || !chunk->bytes || data);
	assert(!w.stored);
	return host.fail & FAIL_STORE ? ft_err_set(err, ENOSPC, "disk full") : 0;
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
	return host.fail & FAIL_STORE ? ft_err_set(err, ENOSPC, "no room for the journal") : 0;
}

static int env_store_staged(void *ctx, uint64_t generation, uint64_t epoch, struct ft_err *err)
{
	(void)ctx;
	assert(w.durable && w.whole && generation == w.session && epoch == w.epoch);
	w.sealing = epoch;
	return host.fail & FAIL_COMMIT ? ft_err_set(err, EIO, "journal broken") : 0;
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
	return host.fail & FAIL_STORE ? ft_err_set(err, EIO, "disk broken") : 0;
}

static int env_store_commit(void *ctx, uint64_t generation, uint64_t epoch, struct ft_err *err)
{
	(void)ctx;
	assert(w.whole && w.durably == w.durable && generation == w.session && epoch == w.epoch &&
	       epoch > w.stored);
	if (host.fail & FAIL_COMMIT)
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
	if (host.fail & FAIL_ACTIVATE)
		return ft_err_set(err, host.now & MS ? EBUSY : EIO, "disk is not free");
	return 0;
}

static int env_store_outdate(void *ctx, struct ft_err *err)
{
	(void)ctx;
	return host.fail & FAIL_STORE ? ft_err_set(err, EIO, "disk broken") : 0;
}

static void env_vm_end(void *ctx)
{
	(void)ctx;
	w.armed = false;
	ft_engine_set_vmm(host.engine, NULL);
}

/* After a takeover they are there still, passing through. */
static int env_taps_out(void *ctx, struct ft_err *err)
{
	(void)ctx;
	(void)err;
	assert(w.resumed);
	return 0;
}

/* What only a primary that protects needs is not there. */
const struct ft_env_ops world_env = {
	.now_ns = host_now,
	.wake_at = host_wake_at,
	.random = env_random,
	.dial = host_dial,
	.hang_up = host_hang_up,
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
	.generation = host_generation,
	.changed = host_changed,
};

/* ---- arbiter ---- */

static void arbiter_read(struct ft_arbiter *a, ft_arbiter_fn *fn, void *ctx)
{
	(void)a;
	host.want = (struct ft_grant_record){.generation = w.session,
					     .holder = "primary",
					     .in_sync = true,
					     .partner = "standby"};
	host_ask(fn, ctx);
}

static void arbiter_swap(struct ft_arbiter *a, uint64_t expected,
			 const struct ft_grant_record *want, ft_arbiter_fn *fn, void *ctx)
{
	(void)a;
	assert(want->generation == expected + 1 && want->generation > 0);
	host.want = *want;
	host_ask(fn, ctx);
}

const struct ft_arbiter_ops world_arbiter = {
	.type = "file", .read = arbiter_read, .swap = arbiter_swap, .free = host_arbiter_free};
