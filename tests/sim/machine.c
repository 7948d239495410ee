// SPDX-License-Identifier: Apache-2.0
/* The simulated guest and its VMM. A request takes steps: it writes some pages, then data blocks,
 * then its journal, with flushes where the client was promised durability, then extends the chain
 * and answers. After a power cut the journal says how far it had come. */
#include "tests/sim/world.h"

#include "ft/engine_internal.h" /* white box: whose the guest is */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define MACHINE_MAGIC 0x4d41u
#define JOURNAL_MAGIC 0x4a524e4cu
#define STEPS_MAX     16 /* more than any request has */

struct journal_entry {
	uint64_t magic, op, chain, parent, sum;
};

static void write_page(struct machine *m, unsigned page)
{
	struct world *w = m->node->world;
	uint64_t value = world_random(w);

	if (!pages_touch(m, page))
		return;
	memcpy(m->ram + page * VMM_PAGE_BYTES +
		       world_range(w, 0, world_chance(w, 50) ? 7 : 500) * 8,
	       &value, sizeof value);
	m->dirty[page] = 1;
	m->page_stale[page] = true;
}

/* ---- what the guest does ---- */

static void begin_request(struct machine *m)
{
	struct world *w = m->node->world;
	struct machine_state *s = &m->state;
	uint64_t random = world_random(w);

	s->request = random | 1;
	/* Another execution of the same operation has another chain. */
	s->next_chain =
		(XXH3_64bits_withSeed(&random, sizeof random, s->chain) ^ world_random(w)) | 1;
	history_executed(w, &(struct link_of_chain){.op = s->ops + 1,
						    .chain = s->next_chain,
						    .parent = s->chain,
						    .plan = plan_of(w, s->ops + 1, s->request)});
	for (unsigned i = 0; i < 1 + random % 3; i++)
		write_page(m, (unsigned)world_range(w, 0, SIM_PAGES - 1));
}

static int write_data(struct machine *m, const struct plan *plan, unsigned i)
{
	uint8_t block[SECTOR];
	uint64_t stamp[] = {m->state.ops + 1, m->state.next_chain};

	memset(block, (int)(m->state.next_chain & 0xff), sizeof block);
	memcpy(block, stamp, sizeof stamp);
	return disk_write(m->node, plan->write[i].disk, plan->write[i].block, plan->write[i].kind,
			  block);
}

static int write_journal(struct machine *m)
{
	uint8_t block[SECTOR] = {0};
	struct journal_entry e = {.magic = JOURNAL_MAGIC,
				  .op = m->state.ops + 1,
				  .chain = m->state.next_chain,
				  .parent = m->state.chain};

	e.sum = XXH3_64bits(&e, offsetof(struct journal_entry, sum));
	memcpy(block, &e, sizeof e);
	return disk_write(m->node, 0, (unsigned)(e.op % SIM_JOURNAL), TAP_DISK_WRITE, block);
}

static int flush_data(struct machine *m)
{
	int rc = 0;

	for (unsigned i = 0; i < m->node->world->options.disks && !rc; i++)
		rc = disk_flush_all(m->node, i);
	return rc;
}

static void answer_request(struct machine *m, const struct plan *plan)
{
	struct node *n = m->node;
	struct machine_state *s = &m->state;
	struct answer answer = {.op = s->ops + 1,
				.chain = s->next_chain,
				.parent = s->chain,
				.durable = plan->durable};

	s->ops++;
	s->chain = s->next_chain;
	s->request = s->next_chain = s->step = 0;
	write_page(m, (unsigned)world_range(n->world, 0, SIM_PAGES - 1));
	if (n->net_tap)
		sim_net_output(n->net_tap, &answer, sizeof answer);
	else
		check_output(n, &(struct tap_record){.kind = TAP_NET,
						     .len = sizeof answer,
						     .data = (uint8_t *)&answer});
}

/* One step of the request under way. False: not now. A disk that fails is asked again, from the
 * first write on, because nobody knows what a failed flush has left. */
static bool machine_step(struct machine *m)
{
	struct machine_state *s = &m->state;
	struct plan plan;
	unsigned step;
	int rc = 0;

	if (m->node->engine && m->node->engine->pages.giving)
		world_violation(m->node->world, "%s runs a guest that it gave away", m->node->name);
	if (pages_waits(m))
		return false;
	if (!s->request)
		begin_request(m);
	plan = plan_of(m->node->world, s->ops + 1, s->request);
	step = s->step;
	if (step < plan.writes)
		rc = write_data(m, &plan, step);
	else if (step == plan.writes)
		rc = plan.durable ? flush_data(m) : 0;
	else if (step == plan.writes + 1)
		rc = write_journal(m);
	else if (step == plan.writes + 2)
		rc = plan.durable ? disk_flush_all(m->node, 0) : 0;
	else
		answer_request(m, &plan);
	if (rc && rc != -EAGAIN)
		s->step = 0;
	if (!rc && s->request)
		s->step++;
	return !rc;
}

static bool may_run(const struct machine *m)
{
	return m->running && !m->node->dying && m->state.ops + 1 < SIM_OPS_MAX;
}

void machine_run(struct machine *m, uint64_t random)
{
	for (unsigned i = 0; i <= random % STEPS_MAX && may_run(m) && machine_step(m); i++)
		;
}

void machine_request(struct machine *m, uint64_t random)
{
	uint64_t ops = m->state.ops;

	(void)random;
	while (m->state.ops == ops && may_run(m) && machine_step(m))
		;
}

static bool read_entry(struct machine *m, unsigned block, struct journal_entry *e)
{
	uint8_t bytes[SECTOR];

	if (disk_read(m->node, 0, block, bytes))
		return false;
	memcpy(e, bytes, sizeof *e);
	return e->magic == JOURNAL_MAGIC && e->op % SIM_JOURNAL == block &&
	       e->sum == XXH3_64bits(e, offsetof(struct journal_entry, sum));
}

/* The journal's longest unbroken run is the guest's history; what is behind a gap never was. */
static void recover(struct machine *m)
{
	struct journal_entry e, newest = {0};
	uint64_t op;

	for (unsigned i = 0; i < SIM_JOURNAL; i++)
		if (read_entry(m, i, &e) && e.op > newest.op)
			newest = e;
	op = newest.op >= SIM_JOURNAL ? newest.op - SIM_JOURNAL + 1 : 1;
	for (; op <= newest.op; op++) {
		if (!read_entry(m, (unsigned)(op % SIM_JOURNAL), &e) || e.op != op ||
		    (m->state.ops && e.parent != m->state.chain))
			break;
		m->state.ops = op;
		m->state.chain = e.chain;
	}
}

bool machine_boot(struct machine *m)
{
	struct ft_err err = {0};

	if (disks_vm_open(m->node, &err)) {
		world_log(m->node->world, "%s: %s", m->node->name, err.text);
		return false;
	}
	recover(m);
	check_boot(m->node, &m->state);
	return true;
}

/* ---- sums ---- */

static uint64_t page_sum(const struct machine *m, unsigned page)
{
	return XXH3_64bits_withSeed(m->ram + page * VMM_PAGE_BYTES, VMM_PAGE_BYTES, page);
}

uint64_t machine_ram_sum(const struct machine *m)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < SIM_PAGES; i++)
		sum += page_sum(m, i);
	return sum;
}

/* From what was written since the last time: a running machine is summed up at every checkpoint. */
struct sums machine_sums(struct machine *m)
{
	struct sums s = {0};
	uint8_t block[SECTOR];

	for (unsigned i = 0; i < SIM_PAGES; i++) {
		if (m->page_stale[i])
			m->page_sum[i] = page_sum(m, i);
		m->page_stale[i] = false;
		s.ram += m->page_sum[i];
	}
	for (unsigned d = 0; d < m->node->world->options.disks; d++) {
		for (unsigned i = 0; i < SIM_BLOCKS; i++) {
			if (m->block_stale[d][i] && !disk_read(m->node, d, i, block)) {
				m->block_sum[d][i] = XXH3_64bits_withSeed(block, SECTOR, i);
				m->block_stale[d][i] = false;
			}
			s.disk[d] += m->block_sum[d][i];
		}
		(void)disk_dirty(m->node, d, &s.dirty[d]);
	}
	return s;
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

static int m_taps_out(struct vmm *vmm, unsigned stay, struct ft_err *err)
{
	(void)vmm;
	(void)stay;
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
	rc = c->no_pages ? 0 : copy_pending(m, pending, c, hooks);
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
	disks_vm_close(machine_of(vmm)->node);
}

static int m_digest(struct vmm *vmm, uint64_t *digest, struct ft_err *err)
{
	(void)err;
	*digest = vmm_pages_digest(machine_of(vmm)->ram, 0, SIM_PAGES);
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
	if (m->node->resume_fails) {
		m->node->resume_fails = false;
		/* A primary that is there gets the guest back. */
		if (!m->node->engine->standby.handover)
			m->node->world->must_survive = false;
		return ft_err_set(err, EIO, "sim: it does not run");
	}
	rc = disks_vm_open(m->node, err);
	if (rc)
		return rc;
	check_takeover(m->node, &m->state);
	all_stale(m);
	m->armed = false;
	m->running = true;
	return 0;
}

static void m_free(struct vmm *vmm)
{
	disks_vm_close(machine_of(vmm)->node);
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

static void m_ram(struct vmm *vmm, struct vmm_ram *ram)
{
	*ram = (struct vmm_ram){.pidfd = -1,
				.address = (uintptr_t)machine_of(vmm)->ram / VMM_PAGE_BYTES *
					   VMM_PAGE_BYTES,
				.bytes = SIM_PAGES * VMM_PAGE_BYTES,
				.fd = -1};
}

static const struct vmm_ops machine_ops = {
	.kind = "sim",
	.info = m_info,
	.ram = m_ram,
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
