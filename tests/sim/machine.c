// SPDX-License-Identifier: Apache-2.0
/* The simulated guest and its VMM. One request is one atomic step: it writes some pages and a disk
 * block, extends the chain and answers. */
#include "tests/sim/world.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define MACHINE_MAGIC 0x4d41u

struct answer {
	uint64_t op, chain, parent;
};

static void write_page(struct machine *m, unsigned page)
{
	struct world *w = m->node->world;
	uint64_t value = world_random(w);

	memcpy(m->ram + page * VMM_PAGE_BYTES +
		       world_range(w, 0, world_chance(w, 50) ? 7 : 500) * 8,
	       &value, sizeof value);
	m->dirty[page] = 1;
	m->page_stale[page] = true;
}

void machine_request(struct machine *m, uint64_t request)
{
	struct node *n = m->node;
	struct world *w = n->world;
	struct answer answer;
	uint8_t block[SIM_BLOCK];
	uint64_t at = m->state.next_block % SIM_BLOCKS;

	if (!m->running || m->state.ops + 1 >= SIM_OPS_MAX)
		return;
	for (unsigned i = 0; i < 1 + request % 3; i++)
		write_page(m, (unsigned)world_range(w, 0, SIM_PAGES - 1));
	memset(block, (int)(request & 0xff), sizeof block);
	memcpy(block, &m->state.chain, sizeof m->state.chain);
	memcpy(n->disk.blocks[at], block, SIM_BLOCK);
	m->block_stale[at] = true;
	m->state.next_block++;
	if (n->disk_tap)
		sim_tap_output(n->disk_tap, TAP_DISK_WRITE, at * SIM_BLOCK, block, SIM_BLOCK);
	answer.parent = m->state.chain;
	m->state.ops++;
	m->state.chain =
		(XXH3_64bits_withSeed(&request, sizeof request, m->state.chain) ^ world_random(w)) |
		1;
	answer.op = m->state.ops;
	answer.chain = m->state.chain;
	check_executed(w, answer.op, answer.chain, answer.parent);
	if (n->net_tap)
		sim_tap_output(n->net_tap, TAP_NET, 0, &answer, sizeof answer);
	else
		check_output(n, &(struct tap_record){.kind = TAP_NET,
						     .len = sizeof answer,
						     .data = (uint8_t *)&answer});
}

uint64_t machine_hash(const struct machine *m, const struct machine_state *state)
{
	uint64_t sum = (state->chain * 7) ^ state->ops;

	for (unsigned i = 0; i < SIM_PAGES; i++)
		sum += XXH3_64bits_withSeed(m->ram + i * VMM_PAGE_BYTES, VMM_PAGE_BYTES, i);
	for (unsigned i = 0; i < SIM_BLOCKS; i++)
		sum += XXH3_64bits_withSeed(m->node->disk.blocks[i], SIM_BLOCK, SIM_PAGES + i);
	return sum;
}

/* The same, from what was written since the last time: a running machine is hashed at every
 * checkpoint. */
uint64_t machine_hash_quick(struct machine *m, const struct machine_state *state)
{
	uint64_t sum = (state->chain * 7) ^ state->ops;

	for (unsigned i = 0; i < SIM_PAGES; i++) {
		if (m->page_stale[i])
			m->page_sum[i] = XXH3_64bits_withSeed(m->ram + i * VMM_PAGE_BYTES,
							      VMM_PAGE_BYTES, i);
		m->page_stale[i] = false;
		sum += m->page_sum[i];
	}
	for (unsigned i = 0; i < SIM_BLOCKS; i++) {
		if (m->block_stale[i])
			m->block_sum[i] = XXH3_64bits_withSeed(m->node->disk.blocks[i], SIM_BLOCK,
							       SIM_PAGES + i);
		m->block_stale[i] = false;
		sum += m->block_sum[i];
	}
	return sum;
}

static void all_stale(struct machine *m)
{
	memset(m->page_stale, 1, sizeof m->page_stale);
	memset(m->block_stale, 1, sizeof m->block_stale);
}

void machine_forget_page(struct machine *m)
{
	unsigned page = (unsigned)world_range(m->node->world, 0, SIM_PAGES - 1);

	if (world_chance(m->node->world, 3))
		memcpy(m->ram + page * VMM_PAGE_BYTES, m->shadow[page], sizeof m->shadow[page]);
	for (unsigned i = 0; i < SIM_PAGES; i++)
		memcpy(m->shadow[i], m->ram + i * VMM_PAGE_BYTES, sizeof m->shadow[i]);
}

static struct machine *machine_of(struct vmm *vmm)
{
	return (struct machine *)vmm;
}

static void m_info(struct vmm *vmm, struct vmm_info *info)
{
	(void)vmm;
	memset(info, 0, sizeof *info);
	info->kind = "sim";
	info->ram_bytes = SIM_PAGES * VMM_PAGE_BYTES;
	info->disks_n = info->nics_n = 1;
}

static const char *m_status(struct vmm *vmm)
{
	return machine_of(vmm)->running ? "running" : "paused";
}

static int m_poll_fd(struct vmm *vmm)
{
	(void)vmm;
	return -1;
}

static void m_poll(struct vmm *vmm)
{
	(void)vmm;
}

static int m_check(struct vmm *vmm, struct ft_err *err)
{
	(void)vmm;
	(void)err;
	return 0;
}

static int m_taps_in(struct vmm *vmm, const struct vmm_tap_points *points, struct ft_err *err)
{
	(void)vmm;
	(void)points;
	(void)err;
	return 0;
}

static int m_taps_out(struct vmm *vmm, struct ft_err *err)
{
	(void)vmm;
	(void)err;
	return 0;
}

static int m_track_start(struct vmm *vmm, struct ft_err *err)
{
	(void)err;
	machine_of(vmm)->tracking = true;
	memset(machine_of(vmm)->dirty, 0, SIM_PAGES);
	return 0;
}

static void m_track_stop(struct vmm *vmm)
{
	machine_of(vmm)->tracking = false;
}

static int m_harvest(struct vmm *vmm, struct ft_bitmap *dirty, struct ft_err *err)
{
	struct machine *m = machine_of(vmm);
	struct world *w = m->node->world;

	(void)err;
	for (unsigned i = 0; i < SIM_PAGES; i++) {
		if (m->dirty[i] && !(w->mutant == MUTANT_SKIP_SCAN && world_chance(w, 2)))
			ft_bitmap_set(dirty, i);
		m->dirty[i] = 0;
	}
	return 0;
}

static int m_read_pages(struct vmm *vmm, const uint64_t *pfns, size_t n, uint8_t *target,
			struct ft_err *err)
{
	(void)err;
	for (size_t i = 0; i < n; i++)
		memcpy(target + i * VMM_PAGE_BYTES, machine_of(vmm)->ram + pfns[i] * VMM_PAGE_BYTES,
		       VMM_PAGE_BYTES);
	return 0;
}

static int m_prepare(struct vmm *vmm, struct ft_err *err)
{
	(void)vmm;
	(void)err;
	return 0;
}

static int copy_pending(struct machine *m, struct ft_bitmap *pending, struct vmm_capture *c,
			const struct vmm_hold_hooks *hooks)
{
	for (uint64_t i = ft_bitmap_next(pending, 0); i < pending->bits;
	     i = ft_bitmap_next(pending, i + 1)) {
		if (c->pages_n == c->pages_max && hooks->full(hooks->ctx, c))
			return -EPIPE;
		memcpy(c->pages + c->pages_n * VMM_PAGE_BYTES, m->ram + i * VMM_PAGE_BYTES,
		       VMM_PAGE_BYTES);
		c->pfns[c->pages_n++] = i;
	}
	return 0;
}

static int m_checkpoint(struct vmm *vmm, struct ft_bitmap *pending, struct vmm_capture *c,
			const struct vmm_hold_hooks *hooks, bool keep_stopped, struct ft_err *err)
{
	struct machine *m = machine_of(vmm);
	struct world *w = m->node->world;
	bool fail = m->node->checkpoint_fails, early = world_chance(w, 50);
	uint64_t stopped = w->now, owed = pending->count;
	int rc;

	if (!m->running || !node_step(m->node))
		return ft_err_set(err, ESRCH, "sim: not running");
	m->node->checkpoint_fails = fail && world_chance(w, 40); /* sometimes it keeps failing */
	if (fail && early)
		return ft_err_set(err, EIO, "sim: save failed before the guest stopped");
	hooks->stopped(hooks->ctx);
	if (w->mutant == MUTANT_LATE_CLOSE)
		machine_request(m, world_random(w));
	m_harvest(vmm, pending, NULL);
	rc = copy_pending(m, pending, c, hooks);
	if (w->now - stopped > VMM_HOLD_MAX_MS * MS)
		world_violation(w, "%s: the guest was held for %llu ms", m->node->name,
				(unsigned long long)((w->now - stopped) / MS));
	if (rc || fail || !node_step(m->node)) {
		if (w->mutant == MUTANT_ABORT_FORGETS && !owed) /* what was owed is watched */
			ft_bitmap_clear_all(pending);
		return ft_err_set(err, EIO, "sim: save failed");
	}
	memcpy(c->state, &m->state, sizeof m->state);
	c->state_len = sizeof m->state;
	c->pause_ns = 500 * US;
	check_captured(m->node, &m->state);
	if (keep_stopped)
		m->running = false;
	return 0;
}

static int m_stop(struct vmm *vmm, struct ft_err *err)
{
	(void)err;
	machine_of(vmm)->running = false;
	return 0;
}

static int m_cont(struct vmm *vmm, struct ft_err *err)
{
	(void)err;
	machine_of(vmm)->running = !machine_of(vmm)->dead;
	return 0;
}

static void m_quit(struct vmm *vmm, bool orderly, unsigned within_ms)
{
	(void)orderly;
	(void)within_ms;
	machine_of(vmm)->running = false;
	machine_of(vmm)->dead = true;
}

static int m_digest(struct vmm *vmm, uint64_t *digest, struct ft_err *err)
{
	(void)err;
	*digest = XXH3_64bits(machine_of(vmm)->ram, SIM_PAGES * VMM_PAGE_BYTES);
	return 0;
}

static uint8_t *m_image(struct vmm *vmm)
{
	return machine_of(vmm)->ram;
}

static int state_read(const uint8_t *state, size_t len, struct machine_state *out,
		      struct ft_err *err)
{
	if (len != sizeof *out)
		return ft_err_set(err, EPROTO, "sim: state of %zu bytes", len);
	memcpy(out, state, len);
	return out->magic == MACHINE_MAGIC ? 0 : ft_err_set(err, EPROTO, "sim: not a state");
}

static int m_trial(struct vmm *vmm, const uint8_t *state, size_t len, struct ft_err *err)
{
	struct machine_state s;
	struct node *n = machine_of(vmm)->node;

	if (!node_step(n))
		return ft_err_set(err, EINTR, "dying");
	if (n->trial_fails) {
		n->trial_fails = false;
		return ft_err_set(err, EINVAL, "sim: it does not load");
	}
	return state_read(state, len, &s, err);
}

static int m_resume(struct vmm *vmm, const uint8_t *state, size_t len, struct ft_err *err)
{
	struct machine *m = machine_of(vmm);
	int rc = state_read(state, len, &m->state, err);

	if (rc)
		return rc;
	if (!node_step(m->node))
		return ft_err_set(err, EINTR, "dying");
	check_takeover(m->node, &m->state);
	all_stale(m);
	m->armed = false;
	m->running = true;
	return 0;
}

static void m_free(struct vmm *vmm)
{
	free(machine_of(vmm)->ram);
	free(vmm);
}

static long m_peek(struct vmm *vmm, long max)
{
	long n = 0;

	for (unsigned i = 0; i < SIM_PAGES && n < max; i++)
		n += machine_of(vmm)->dirty[i];
	return n;
}

static const struct vmm_ops machine_ops = {
	.kind = "sim",
	.info = m_info,
	.status = m_status,
	.poll_fd = m_poll_fd,
	.poll = m_poll,
	.check = m_check,
	.taps_in = m_taps_in,
	.taps_out = m_taps_out,
	.track_start = m_track_start,
	.track_stop = m_track_stop,
	.harvest = m_harvest,
	.dirty_peek = m_peek,
	.read_pages = m_read_pages,
	.checkpoint_prepare = m_prepare,
	.checkpoint = m_checkpoint,
	.stop = m_stop,
	.cont = m_cont,
	.quit = m_quit,
	.ram_digest = m_digest,
	.image = m_image,
	.trial = m_trial,
	.resume = m_resume,
	.free = m_free,
};

struct machine *machine_new(struct node *node, bool armed)
{
	struct machine *m = calloc(1, sizeof *m);

	if (!m || !(m->ram = calloc(SIM_PAGES, VMM_PAGE_BYTES)))
		abort();
	m->vmm.ops = &machine_ops;
	m->node = node;
	all_stale(m);
	m->armed = armed;
	m->running = !armed;
	m->state.magic = MACHINE_MAGIC;
	m->state.chain = 1;
	return m;
}
