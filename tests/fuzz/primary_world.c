// SPDX-License-Identifier: Apache-2.0
// Links that take everything, a VM that is dirty somewhere, one network tap that knows which epoch
// its outputs are of, an arbiter with a record, whose answers come when the fuzzer says so.
#include "tests/fuzz/primary_world.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct world w;

/* ---- links ---- */

static int link_send(struct ft_link *link, const struct ft_msg *msg)
{
	(void)link;
	assert(msg->body_len <= FT_BODY_MAX && msg->payload_len <= FT_PAYLOAD_MAX);
	if (host.fail & FAIL_SEND)
		return -EPIPE;
	if (host.fail & FAIL_ROOM)
		return -EAGAIN;
	if (msg->type == FT_MSG_SETUP) {
		Ft__Setup *setup = ft__setup__unpack(NULL, msg->body_len, msg->body);

		assert(setup && setup->session);
		w.session = setup->session;
		ft__setup__free_unpacked(setup, NULL);
	}
	if (msg->type == FT_MSG_END) {
		w.end = msg->epoch;
		w.generation = msg->generation;
	}
	return 0;
}

static uint8_t *link_reserve(struct ft_link *link, uint32_t payload_max)
{
	static uint8_t room[FT_PAYLOAD_MAX];

	(void)link;
	assert(payload_max <= sizeof room);
	return host.fail & FAIL_ROOM ? NULL : room;
}

static int link_drain(struct ft_link *link, unsigned deadline_ms)
{
	(void)link;
	host.now += deadline_ms * MS;
	return host.fail & (FAIL_ROOM | FAIL_SEND) ? -ETIMEDOUT : 0;
}

const struct ft_link_ops world_link = {
	.send = link_send,
	.reserve = link_reserve,
	.drain = link_drain,
	.bytes_sent = host_link_bytes_sent,
	.close = host_link_close,
};

/* ---- the tap ---- */

void guest_output(void)
{
	if (w.stopped || w.mode != TAP_HOLD)
		return;
	if (!w.oldest)
		w.oldest = w.open;
	ft_engine_output(host.engine);
}

static int t_set_mode(struct tap *tap, enum tap_mode mode)
{
	(void)tap;
	if (mode == TAP_HOLD) {
		w.becomes_hold = w.mode != TAP_HOLD;
		return 0;
	}
	/* What is held goes out now: nobody else may have another history of it. */
	assert(!w.oldest || !w.guarded);
	assert(ft_engine_state(host.engine) != FT_FENCED);
	w.becomes_hold = false;
	w.mode = mode;
	w.oldest = 0;
	return 0;
}

static int t_close_epoch(struct tap *tap, uint64_t epoch, struct ft_err *err)
{
	(void)tap;
	if (host.fail & FAIL_CLOSE_EPOCH)
		return ft_err_set(err, EIO, "the tap does not close");
	if (w.becomes_hold)
		w.mode = TAP_HOLD;
	w.becomes_hold = false;
	w.open = epoch + 1;
	return 0;
}

static size_t t_export(struct tap *tap, uint64_t epoch, struct tap_cursor *cursor, uint8_t *out,
		       size_t room)
{
	const struct tap_record rec = {.kind = TAP_NET, .len = 60};

	(void)tap;
	if (cursor->at || !w.oldest || epoch < w.oldest || room < TAP_RECORD_HEADER + rec.len)
		return 0;
	cursor->at = 1;
	tap_record_put_header(out, &rec);
	memset(out + TAP_RECORD_HEADER, 0, rec.len);
	return TAP_RECORD_HEADER + rec.len;
}

static int t_release(struct tap *tap, uint64_t epoch, struct ft_err *err)
{
	(void)tap;
	/* Output commit. */
	assert(epoch <= w.acked);
	assert(ft_engine_state(host.engine) != FT_FENCED);
	if (host.fail & FAIL_RELEASE)
		return ft_err_set(err, EIO, "the disk does not take it");
	if (w.oldest && w.oldest <= epoch)
		w.oldest = epoch + 1 < w.open ? epoch + 1 : 0;
	return 0;
}

static void t_discard(struct tap *tap)
{
	(void)tap;
	w.oldest = 0;
}

static int t_replay(struct tap *tap, const struct tap_record *rec, struct ft_err *err)
{
	(void)tap;
	(void)rec;
	(void)err;
	abort(); /* a primary replays nothing */
}

static void t_stats(struct tap *tap, struct tap_stats *stats)
{
	(void)tap;
	memset(stats, 0, sizeof *stats);
}

static void t_free(struct tap *tap)
{
	(void)tap;
}

static const struct tap_ops tap_ops = {
	.kind = "net",
	.set_mode = t_set_mode,
	.close_epoch = t_close_epoch,
	.export = t_export,
	.release = t_release,
	.discard = t_discard,
	.replay = t_replay,
	.stats = t_stats,
	.free = t_free,
};

/* ---- the VM ---- */

static void m_info(struct vmm *vmm, struct vmm_info *info)
{
	(void)vmm;
	*info = (struct vmm_info){.kind = "fuzz", .ram_bytes = RAM_BYTES, .nics_n = 1};
}

static int m_check(struct vmm *vmm, struct ft_err *err)
{
	(void)vmm;
	(void)err;
	return 0;
}

static int m_track_start(struct vmm *vmm, struct ft_err *err)
{
	(void)vmm;
	return host.fail & FAIL_HARVEST ? ft_err_set(err, EIO, "no tracker") : 0;
}

static void m_track_stop(struct vmm *vmm)
{
	(void)vmm;
}

static void harvest(struct ft_bitmap *dirty)
{
	for (unsigned i = 0; i < PAGES; i++)
		if (w.dirty >> i & 1)
			ft_bitmap_set(dirty, i);
	w.dirty = 0;
}

static int m_harvest(struct vmm *vmm, struct ft_bitmap *dirty, struct ft_err *err)
{
	(void)vmm;
	if (host.fail & FAIL_HARVEST)
		return ft_err_set(err, ESRCH, "the process is gone");
	harvest(dirty);
	return 0;
}

static int m_read_pages(struct vmm *vmm, const uint64_t *pfns, size_t n, uint8_t *target,
			struct ft_err *err)
{
	(void)vmm;
	(void)err;
	for (size_t i = 0; i < n; i++) {
		assert(pfns[i] < PAGES);
		memset(target + i * VMM_PAGE_BYTES, (int)pfns[i], VMM_PAGE_BYTES);
	}
	return 0;
}

static int m_prepare(struct vmm *vmm, struct ft_err *err)
{
	(void)vmm;
	(void)err;
	return 0;
}

static int copy(const struct ft_bitmap *pending, struct vmm_capture *c,
		const struct vmm_hold_hooks *hooks)
{
	for (uint64_t i = ft_bitmap_next(pending, 0); i < pending->bits;
	     i = ft_bitmap_next(pending, i + 1)) {
		int rc = c->pages_n == c->pages_max ? hooks->full(hooks->ctx, c) : 0;

		if (rc)
			return rc;
		assert(c->pages_n < c->pages_max);
		c->pfns[c->pages_n] = i;
		memset(c->pages + c->pages_n++ * VMM_PAGE_BYTES, (int)host.now, VMM_PAGE_BYTES);
	}
	return 0;
}

static int m_checkpoint(struct vmm *vmm, struct ft_bitmap *pending, struct vmm_capture *c,
			const struct vmm_hold_hooks *hooks, bool keep_stopped, struct ft_err *err)
{
	int rc;

	(void)vmm;
	assert(c->pages_n == 0);
	if (w.stopped) /* since the monitor went */
		return ft_err_set(err, EPIPE, "the monitor is gone");
	hooks->stopped(hooks->ctx);
	harvest(pending);
	rc = copy(pending, c, hooks);
	if (!rc && host.fail & FAIL_CHECKPOINT)
		rc = -EIO;
	if (rc)
		return ft_err_set(err, -rc, "the state cannot be saved");
	memset(c->state, 7, 100);
	c->state_len = 100;
	c->pause_ns = c->held_ns = MS;
	w.stopped = keep_stopped;
	return 0;
}

static int m_cont(struct vmm *vmm, struct ft_err *err)
{
	(void)vmm;
	if (host.fail & FAIL_CONT)
		return ft_err_set(err, EPIPE, "the monitor is gone");
	w.stopped = false;
	return 0;
}

static int m_digest(struct vmm *vmm, uint64_t *digest, struct ft_err *err)
{
	(void)vmm;
	(void)err;
	*digest = DIGEST;
	return 0;
}

/* A primary needs no more of a VM. */
const struct vmm_ops world_vmm = {
	.kind = "fuzz",
	.info = m_info,
	.check = m_check,
	.track_start = m_track_start,
	.track_stop = m_track_stop,
	.harvest = m_harvest,
	.read_pages = m_read_pages,
	.checkpoint_prepare = m_prepare,
	.checkpoint = m_checkpoint,
	.cont = m_cont,
	.ram_digest = m_digest,
};

/* ---- environment ---- */

static uint64_t env_random(void *ctx)
{
	(void)ctx;
	return 4711 + w.session;
}

static int env_taps_in(void *ctx, struct ft_err *err)
{
	(void)ctx;
	if (host.fail & FAIL_TAPS)
		return ft_err_set(err, EIO, "no taps");
	w.tap = (struct tap){.ops = &tap_ops, .id = "net0"};
	w.mode = TAP_PASS;
	w.becomes_hold = false;
	tap_chain_add(ft_engine_chain(host.engine), &w.tap);
	return 0;
}

static int env_taps_out(void *ctx, struct ft_err *err)
{
	(void)ctx;
	if (host.fail & FAIL_TAPS)
		return ft_err_set(err, EIO, "the taps stay");
	assert(!w.oldest);
	ft_engine_chain(host.engine)->first = NULL;
	return 0;
}

static void env_firing(void *ctx, bool on)
{
	(void)ctx;
	(void)on;
}

static int env_describe(void *ctx, Ft__Setup *setup, struct ft_err *err)
{
	(void)ctx;
	(void)err;
	setup->vmm = (char *)"fuzz";
	setup->ram_bytes = RAM_BYTES;
	return 0;
}

static void env_disks_all_behind(void *ctx)
{
	(void)ctx;
}

static int env_disk_next(void *ctx, uint8_t *data, uint32_t data_max, struct ft_disk_chunk *chunk,
			 struct ft_err *err)
{
	(void)ctx;
	(void)data;
	(void)data_max;
	(void)chunk;
	(void)err;
	return 0;
}

static uint64_t env_disks_behind(void *ctx)
{
	(void)ctx;
	return 0;
}

static void env_disks_yield(void *ctx)
{
	(void)ctx;
}

static int env_disks_reclaim(void *ctx, uint64_t void_generation, struct ft_err *err)
{
	(void)ctx;
	(void)void_generation;
	(void)err;
	return 0;
}

static int env_guard(void *ctx, bool on, struct ft_err *err)
{
	(void)ctx;
	(void)err;
	assert(on || !w.guarded || w.alone || w.survivor);
	w.guarded = on;
	if (on)
		w.alone = false;
	return 0;
}

static void env_vm_end(void *ctx)
{
	(void)ctx;
	w.stopped = true;
	ft_engine_chain(host.engine)->first = NULL;
	ft_engine_set_vmm(host.engine, NULL);
}

/* What only a standby needs is not there. */
const struct ft_env_ops world_env = {
	.now_ns = host_now,
	.wake_at = host_wake_at,
	.random = env_random,
	.dial = host_dial,
	.hang_up = host_hang_up,
	.taps_in = env_taps_in,
	.taps_out = env_taps_out,
	.firing = env_firing,
	.describe = env_describe,
	.disks_all_behind = env_disks_all_behind,
	.disk_next = env_disk_next,
	.disks_behind = env_disks_behind,
	.disks_yield = env_disks_yield,
	.disks_reclaim = env_disks_reclaim,
	.guard = env_guard,
	.vm_end = env_vm_end,
	.generation = host_generation,
	.changed = host_changed,
};

/* ---- arbiter ---- */

static void arbiter_read(struct ft_arbiter *a, ft_arbiter_fn *fn, void *ctx)
{
	(void)a;
	host.want = w.record;
	host_ask(fn, ctx);
}

static void arbiter_swap(struct ft_arbiter *a, uint64_t expected,
			 const struct ft_grant_record *want, ft_arbiter_fn *fn, void *ctx)
{
	(void)a;
	assert(want->generation == expected + 1 || want->generation == expected);
	host.want = *want;
	host_ask(fn, ctx);
}

const struct ft_arbiter_ops world_arbiter = {
	.type = "file", .read = arbiter_read, .swap = arbiter_swap, .free = host_arbiter_free};
