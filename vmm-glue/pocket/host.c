// SPDX-License-Identifier: Apache-2.0
// struct vmm_ops over a machine, its runner and its world. All of this runs on the engine's thread;
// the machine's thread is met only through runner.h, and through `lost`.
#include "vmm-glue/pocket/host.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm-glue/pocket/sock.h"
#include "vmm-glue/ram_file.h"

#if defined(__SANITIZE_THREAD__)
#define TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define TSAN 1
#endif
#endif

static int faulty(struct pocket *p, enum pocket_fault here, struct ft_err *err)
{
	if (p->fault != here)
		return 0;
	p->fault = POCKET_FAULT_NONE;
	return ft_err_set(err, EIO, "pocket: fault %d: as the test asked", (int)here);
}

static int need(const struct pocket *p, enum phase phase, const char *what, struct ft_err *err)
{
	static const char *const names[] = {"armed", "live", "gone"};

	if (p->phase == phase)
		return 0;
	return ft_err_set(err, EINVAL, "pocket: %s: the machine is %s", what, names[p->phase]);
}

void pocket_set_lost(struct pocket *p, const char *why)
{
	uint64_t one = 1;

	p->lost = why;
	(void)!write(p->event_fd, &one, sizeof one);
}

int pocket_pause(struct pocket *p, struct ft_err *err)
{
	int rc = runner_pause(&p->runner, VMM_HOLD_MAX_MS);

	return rc ? ft_err_set(err, -rc,
			       "pocket: pause: a step takes too long, a disk does not answer: %s",
			       strerror(-rc))
		  : 0;
}

void pocket_unpause(struct pocket *p)
{
	if (!p->stopped)
		runner_go(&p->runner);
}

// ---- any time

static void pocket_info(struct vmm *vmm, struct vmm_info *info)
{
	struct pocket *p = pocket_of(vmm);

	*info = (struct vmm_info){
		.kind = "pocket", .version = FT_VERSION, .ram_bytes = p->config.memory_bytes};
	memcpy(info->uuid, p->config.uuid, sizeof info->uuid);
	info->disks_n = p->config.disks_n;
	for (unsigned i = 0; i < p->config.disks_n; i++) {
		memcpy(info->disks[i].id, p->config.disks[i].id, sizeof info->disks[i].id);
		memcpy(info->disks[i].image, p->config.disks[i].image, sizeof info->disks[i].image);
		info->disks[i].bytes = p->config.disks[i].bytes;
	}
	if (p->config.nic_attach[0]) {
		info->nics_n = 1;
		memcpy(info->nics[0].id, p->config.nic_id, sizeof info->nics[0].id);
	}
}

static void pocket_ram(struct vmm *vmm, struct vmm_ram *ram)
{
	struct pocket *p = pocket_of(vmm);

	*ram = (struct vmm_ram){.pidfd = -1,
				.address = (uintptr_t)p->ram,
				.bytes = p->config.memory_bytes,
				.fd = p->memfd,
				.block = "pocket.ram",
				.machine = "pocket"};
}

static const char *pocket_status(struct vmm *vmm)
{
	struct pocket *p = pocket_of(vmm);

	if (p->lost)
		return "internal-error";
	if (p->phase == PHASE_ENDED)
		return "shutdown";
	if (p->phase == PHASE_ARMED)
		return "inmigrate";
	return p->stopped ? "paused" : "running";
}

static int pocket_poll_fd(struct vmm *vmm)
{
	return pocket_of(vmm)->event_fd;
}

static void pocket_poll(struct vmm *vmm)
{
	struct pocket *p = pocket_of(vmm);
	uint64_t count;

	(void)!read(p->event_fd, &count, sizeof count);
	if (!p->lost || p->lost_told)
		return;
	p->lost_told = true;
	if (vmm->events.lost)
		vmm->events.lost(vmm->events.ctx, p->lost);
}

// ---- taps

static int pocket_check(struct vmm *vmm, struct ft_err *err)
{
	int rc = need(pocket_of(vmm), PHASE_LIVE, "check", err);

	return rc ? rc : tracker_check(0, err);
}

/* Leaves in *points what is not in yet. False: nothing. */
static bool taps_missing(const struct pocket *p, struct vmm_tap_points *points)
{
	bool missing = !p->io.tapped && p->config.nic_attach[0] && points->nics[0].out[0];

	if (!missing)
		memset(points->nics, 0, sizeof points->nics);
	for (unsigned i = 0; i < VMM_DISKS_MAX; i++) {
		if (p->io.links.disks[i])
			points->disks[i].nbd[0] = 0;
		missing |= i < p->config.disks_n && points->disks[i].nbd[0];
	}
	return missing;
}

static int pocket_taps_in(struct vmm *vmm, const struct vmm_tap_points *points, struct ft_err *err)
{
	struct pocket *p = pocket_of(vmm);
	struct vmm_tap_points missing = *points;
	struct pocket_links links;
	int rc;

	if (p->config.world)
		return faulty(p, POCKET_FAULT_TAPS, err);
	if (p->phase == PHASE_ENDED)
		return ft_err_set(err, EALREADY, "pocket: taps: the machine is gone");
	if (!taps_missing(p, &missing))
		return faulty(p, POCKET_FAULT_TAPS, err);
	rc = pocket_links_open(&links, &p->config, &missing, err);
	if (rc)
		return ft_err_context(err, "pocket: taps");
	rc = faulty(p, POCKET_FAULT_TAPS, err);
	if (!rc && runner_park(&p->runner, VMM_HOLD_MAX_MS))
		rc = ft_err_set(err, ETIMEDOUT, "pocket: taps: the machine does not pause");
	if (rc) {
		pocket_links_close(&links);
		return rc;
	}
	pocket_io_tap(&p->io, &links);
	pocket_unpause(p);
	return 0;
}

static int pocket_taps_out(struct vmm *vmm, unsigned stay, struct ft_err *err)
{
	struct pocket *p = pocket_of(vmm);
	bool any = p->io.tapped;
	int rc;

	for (unsigned i = 0; i < VMM_DISKS_MAX; i++)
		any |= p->io.links.disks[i] && !(stay & 1u << i);
	if (!any)
		return 0;
	if (runner_park(&p->runner, VMM_HOLD_MAX_MS))
		return ft_err_set(err, ETIMEDOUT, "pocket: taps: the machine does not pause");
	rc = pocket_io_untap(&p->io, stay, p->phase == PHASE_LIVE, err);
	pocket_unpause(p);
	return rc;
}

// ---- tracking and copying

static int pocket_track_start(struct vmm *vmm, struct ft_err *err)
{
	struct pocket *p = pocket_of(vmm);
	struct tracker_region region = {.start = (uintptr_t)p->ram,
					.bytes = p->config.memory_bytes};
	int rc = need(p, PHASE_LIVE, "tracking", err);

	if (rc)
		return rc;
	if (p->tracker)
		return ft_err_set(err, EALREADY, "pocket: tracking: is on");
	return tracker_open(0, -1, &region, 1, &p->tracker, err);
}

static void pocket_track_stop(struct vmm *vmm)
{
	struct pocket *p = pocket_of(vmm);

	tracker_close(p->tracker);
	p->tracker = NULL;
}

static int need_tracker(const struct pocket *p, struct ft_err *err)
{
	int rc = need(p, PHASE_LIVE, "harvest", err);

	if (rc)
		return rc;
	return p->tracker ? 0 : ft_err_set(err, EINVAL, "pocket: harvest: tracking is off");
}

static int pocket_harvest(struct vmm *vmm, struct ft_bitmap *dirty, struct ft_err *err)
{
	struct pocket *p = pocket_of(vmm);
	int rc = need_tracker(p, err);

	if (!rc)
		rc = faulty(p, POCKET_FAULT_HARVEST, err);
	return rc ? rc : tracker_scan(p->tracker, dirty, NULL, err);
}

static long pocket_dirty_peek(struct vmm *vmm, long max)
{
	struct pocket *p = pocket_of(vmm);

	return p->tracker ? tracker_peek(p->tracker, max) : -EINVAL;
}

// A page of a running guest may be torn, and is dirty again if it is. Under TSan the copy is made
// by hand, out of its sight.
#ifdef TSAN
__attribute__((no_sanitize("thread"))) static void copy_live(uint8_t *target, const uint8_t *page)
{
	const volatile uint64_t *from = (const volatile uint64_t *)page;
	volatile uint64_t *to = (volatile uint64_t *)target;

	for (unsigned i = 0; i < VMM_PAGE_BYTES / sizeof *to; i++)
		to[i] = from[i];
}
#else
static void copy_live(uint8_t *target, const uint8_t *page)
{
	memcpy(target, page, VMM_PAGE_BYTES);
}
#endif

static int pocket_read_pages(struct vmm *vmm, const uint64_t *pfns, size_t n, uint8_t *target,
			     struct ft_err *err)
{
	struct pocket *p = pocket_of(vmm);
	uint64_t pages = p->config.memory_bytes / VMM_PAGE_BYTES;

	for (size_t i = 0; i < n; i++) {
		if (pfns[i] >= pages)
			return ft_err_set(err, EINVAL, "pocket: read: page %llu of %llu",
					  (unsigned long long)pfns[i], (unsigned long long)pages);
		copy_live(target + i * VMM_PAGE_BYTES, p->ram + pfns[i] * VMM_PAGE_BYTES);
	}
	return 0;
}

static int pocket_ram_digest(struct vmm *vmm, uint64_t *digest, struct ft_err *err)
{
	struct pocket *p = pocket_of(vmm);

	(void)err;
	*digest = vmm_pages_digest(p->ram, 0, p->config.memory_bytes / VMM_PAGE_BYTES);
	return 0;
}

// ---- checkpoint

static int pocket_checkpoint_prepare(struct vmm *vmm, struct ft_err *err)
{
	return need_tracker(pocket_of(vmm), err);
}

static int copy_pending(struct pocket *p, const struct ft_bitmap *pending, struct vmm_capture *c,
			const struct vmm_hold_hooks *hooks, struct ft_err *err)
{
	uint64_t first = ft_bitmap_next(pending, 0);

	for (uint64_t pfn = first; pfn < pending->bits; pfn = ft_bitmap_next(pending, pfn + 1)) {
		int rc = pfn == first ? 0 : faulty(p, POCKET_FAULT_COPY, err);

		if (rc)
			return rc;
		if (c->pages_n == c->pages_max) {
			rc = hooks->full ? hooks->full(hooks->ctx, c) : -ENOSPC;
			if (rc)
				return ft_err_set(
					err, -rc,
					"pocket: checkpoint: staging of %zu pages is full: %s",
					c->pages_max, strerror(-rc));
			assert(c->pages_n < c->pages_max);
		}
		memcpy(c->pages + c->pages_n * VMM_PAGE_BYTES, p->ram + pfn * VMM_PAGE_BYTES,
		       VMM_PAGE_BYTES);
		c->pfns[c->pages_n++] = pfn;
	}
	return 0;
}

// The machine is paused.
static int capture_all(struct pocket *p, struct ft_bitmap *pending, struct vmm_capture *c,
		       const struct vmm_hold_hooks *hooks, struct ft_err *err)
{
	int rc;

	if (hooks->stopped)
		hooks->stopped(hooks->ctx);
	rc = faulty(p, POCKET_FAULT_STOPPED, err);
	if (!rc)
		rc = tracker_scan(p->tracker, pending, NULL, err);
	if (!rc && !c->no_pages)
		rc = copy_pending(p, pending, c, hooks, err);
	if (!rc)
		rc = faulty(p, POCKET_FAULT_SAVE, err);
	if (!rc)
		c->state_len = machine_save(&p->machine, c->state);
	return rc;
}

static int pocket_checkpoint(struct vmm *vmm, struct ft_bitmap *pending, struct vmm_capture *c,
			     const struct vmm_hold_hooks *hooks, bool keep_stopped,
			     struct ft_err *err)
{
	struct pocket *p = pocket_of(vmm);
	uint64_t start;
	int rc = need_tracker(p, err);

	assert(pending->bits == p->config.memory_bytes / VMM_PAGE_BYTES);
	if (!rc)
		rc = pocket_pause(p, err);
	if (rc)
		return rc;
	start = psock_now();
	c->pages_n = c->state_len = 0;
	rc = capture_all(p, pending, c, hooks, err);
	if (!rc && keep_stopped)
		p->stopped = true;
	c->pause_ns = c->held_ns = psock_now() - start;
	pocket_unpause(p);
	return rc;
}

static int pocket_save(struct vmm *vmm, struct vmm_capture *c, vmm_held_fn *held, void *ctx,
		       struct ft_err *err)
{
	struct pocket *p = pocket_of(vmm);
	uint64_t start;
	int rc = need(p, PHASE_LIVE, "save", err);

	if (!rc)
		rc = pocket_pause(p, err);
	if (rc)
		return rc;
	start = psock_now();
	rc = faulty(p, POCKET_FAULT_SAVE, err);
	if (!rc)
		rc = held(ctx, err);
	if (!rc)
		c->state_len = machine_save(&p->machine, c->state);
	c->pause_ns = c->held_ns = psock_now() - start;
	pocket_unpause(p);
	return rc;
}

// ---- control

static int pocket_stop(struct vmm *vmm, struct ft_err *err)
{
	struct pocket *p = pocket_of(vmm);
	int rc = need(p, PHASE_LIVE, "stop", err);

	if (!rc)
		rc = pocket_pause(p, err);
	if (!rc)
		p->stopped = true;
	return rc;
}

static int pocket_cont(struct vmm *vmm, struct ft_err *err)
{
	struct pocket *p = pocket_of(vmm);
	int rc = need(p, PHASE_LIVE, "cont", err);

	if (rc)
		return rc;
	p->stopped = false;
	runner_go(&p->runner);
	return 0;
}

void pocket_end(struct pocket *p)
{
	pocket_io_abort(&p->io);
	if (p->vmm.events.ending)
		p->vmm.events.ending(p->vmm.events.ctx);
	runner_end(&p->runner);
	pocket_io_close(&p->io);
	p->phase = PHASE_ENDED;
}

// These guests have nothing to say at the end: between two steps they can always be switched off.
// What they flushed is on the disk.
static void pocket_quit(struct vmm *vmm, bool orderly, unsigned within_ms)
{
	struct pocket *p = pocket_of(vmm);

	if (p->phase == PHASE_ENDED)
		return;
	if (orderly)
		(void)runner_pause(&p->runner, within_ms);
	pocket_end(p);
}

// ---- armed

static uint8_t *pocket_image(struct vmm *vmm)
{
	struct pocket *p = pocket_of(vmm);

	return p->phase == PHASE_ARMED ? p->ram : NULL;
}

static int pocket_image_write(struct vmm *vmm, uint64_t pfn, struct iovec *iov, unsigned n,
			      struct ft_err *err)
{
	int rc = ram_file_write(pocket_of(vmm)->memfd, pfn * VMM_PAGE_BYTES, iov, n);

	return rc ? ft_err_set(err, -rc, "pocket: image: %s", strerror(-rc)) : 0;
}

static int pocket_image_empty(struct vmm *vmm, uint64_t pfn, uint64_t n, struct ft_err *err)
{
	int rc = ram_file_empty(pocket_of(vmm)->memfd, pfn * VMM_PAGE_BYTES, n * VMM_PAGE_BYTES);

	return rc ? ft_err_set(err, -rc, "pocket: image: %s", strerror(-rc)) : 0;
}

static int pocket_trial(struct vmm *vmm, const uint8_t *state, size_t len, struct ft_err *err)
{
	struct pocket *p = pocket_of(vmm);
	int rc = need(p, PHASE_ARMED, "trial", err);
	uint8_t *ram;

	if (!rc)
		rc = faulty(p, POCKET_FAULT_TRIAL, err);
	if (rc)
		return rc;
	ram = mmap(NULL, p->config.memory_bytes, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_NORESERVE, p->memfd, 0);
	if (ram == MAP_FAILED)
		return ft_err_set(err, errno, "pocket: trial: mmap: %s", strerror(errno));
	rc = machine_trial(&p->config, ram, state, len, err);
	munmap(ram, p->config.memory_bytes);
	return rc ? ft_err_context(err, "pocket: trial") : 0;
}

static int pocket_resume(struct vmm *vmm, const uint8_t *state, size_t len, struct ft_err *err)
{
	struct pocket *p = pocket_of(vmm);
	int rc = need(p, PHASE_ARMED, "resume", err);

	if (!rc)
		rc = faulty(p, POCKET_FAULT_RESUME, err);
	if (!rc)
		rc = machine_load(&p->machine, state, len, err);
	if (!rc && !p->config.world)
		rc = pocket_io_open(&p->io, true, err);
	if (!rc) {
		rc = runner_start(&p->runner, err);
		if (rc)
			pocket_io_close(&p->io);
	}
	if (rc)
		return ft_err_context(err, "pocket: resume");
	p->phase = PHASE_LIVE;
	return 0;
}

static void pocket_free(struct vmm *vmm)
{
	struct pocket *p = pocket_of(vmm);

	pocket_quit(vmm, false, 0);
	tracker_close(p->tracker);
	runner_free(&p->runner);
	munmap(p->ram, p->config.memory_bytes);
	close(p->memfd);
	close(p->event_fd);
	free(p);
}

const struct vmm_ops pocket_ops = {
	.kind = "pocket",
	.info = pocket_info,
	.ram = pocket_ram,
	.status = pocket_status,
	.poll_fd = pocket_poll_fd,
	.poll = pocket_poll,
	.check = pocket_check,
	.taps_in = pocket_taps_in,
	.taps_out = pocket_taps_out,
	.track_start = pocket_track_start,
	.track_stop = pocket_track_stop,
	.harvest = pocket_harvest,
	.dirty_peek = pocket_dirty_peek,
	.read_pages = pocket_read_pages,
	.checkpoint_prepare = pocket_checkpoint_prepare,
	.checkpoint = pocket_checkpoint,
	.save = pocket_save,
	.stop = pocket_stop,
	.cont = pocket_cont,
	.quit = pocket_quit,
	.ram_digest = pocket_ram_digest,
	.image = pocket_image,
	.image_write = pocket_image_write,
	.image_empty = pocket_image_empty,
	.trial = pocket_trial,
	.resume = pocket_resume,
	.free = pocket_free,
};
