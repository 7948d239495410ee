// SPDX-License-Identifier: Apache-2.0
// One checkpoint. The order is the point:
//
//	fire -> QEMU says STOP: the vCPUs are stopped
//	     -> scan, while QEMU drains the disks and serialises
//	     -> first byte: disks drained -> hooks: the epoch's outputs are closed -> copy
//	     -> QEMU is blocked in its last write
//	     -> a second, small scan and copy if QEMU had page faults since the scan
//	     -> take the rest: QEMU lets the guest run
//
// A page fault is what a write to a protected page is, and all that QEMU's threads have, in the
// kernel too, are counted. A small state is written sooner than RAM is scanned: there the scan
// comes right after the command, while the guest may still run, and with the first byte a second
// one if QEMU had page faults since.
//
// Copying waits for the first byte, because until then a disk's DMA may fill pages that were dirty
// from the moment they were pinned. Nothing is allocated between fire and the end.
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "vmm-glue/qemu/clock.h"
#include "vmm-glue/qemu/internal.h"

#define COPY_BATCH 128 /* pages between two looks at QEMU: about 0.15 ms */
/* Together with the copying less than the keeper's VMM_HOLD_MAX_MS. */
#define FIRST_BYTE_MS 1100 /* draining a slow disk may take long */
#define LAST_WRITE_MS 500
#define END_MS	      300

/* One save for nothing: a device that cannot be saved is found now and not at the first
 * checkpoint. */
static int rehearse(struct qemu *vm, struct ft_err *err)
{
	int r = save_setup(&vm->save, &vm->qmp, vm->process.pid, err);

	if (r == 0)
		r = save_prime(&vm->save, &vm->qmp, err);
	return r == 0 ? save_discard(&vm->save, &vm->qmp, err) : r;
}

int qemu_track_start(struct vmm *vmm, struct ft_err *err)
{
	struct qemu *vm = qemu_of(vmm);
	struct tracker_region region = {vm->ram.hva, vm->ram.bytes};
	int r = qemu_ready(vm, err);

	assert(!vm->tracker && !vm->armed);
	if (r < 0)
		return r;
	r = rehearse(vm, err);
	if (r < 0)
		return r;
	if (ft_bitmap_init(&vm->late, vm->ram.bytes / VMM_PAGE_BYTES) < 0)
		return ft_err_set(err, ENOMEM, "qemu: tracker: no memory");
	r = tracker_open(vm->process.pid, vm->process.pidfd, &region, 1, &vm->tracker, err);
	if (r < 0)
		ft_bitmap_free(&vm->late);
	return r;
}

void qemu_track_stop(struct vmm *vmm)
{
	struct qemu *vm = qemu_of(vmm);

	if (!vm->tracker)
		return;
	tracker_close(vm->tracker);
	vm->tracker = NULL;
	ft_bitmap_free(&vm->late);
}

int qemu_harvest(struct vmm *vmm, struct ft_bitmap *dirty, struct ft_err *err)
{
	assert(qemu_of(vmm)->tracker);
	return tracker_scan(qemu_of(vmm)->tracker, dirty, NULL, err);
}

long qemu_dirty_peek(struct vmm *vmm, long max)
{
	assert(qemu_of(vmm)->tracker);
	return tracker_peek(qemu_of(vmm)->tracker, max);
}

int qemu_checkpoint_prepare(struct vmm *vmm, struct ft_err *err)
{
	struct qemu *vm = qemu_of(vmm);
	int r;

	if (!vm->armed)
		ram_trim(&vm->ram);
	if (vm->save.primed)
		return 0;
	r = qemu_ready(vm, err);
	if (r == 0)
		r = save_setup(&vm->save, &vm->qmp, vm->process.pid, err);
	if (r == 0)
		r = save_prime(&vm->save, &vm->qmp, err);
	return r;
}

static int make_room(struct qemu *vm, struct vmm_capture *capture,
		     const struct vmm_hold_hooks *hooks, struct ft_err *err)
{
	int r = hooks->full ? hooks->full(hooks->ctx, capture) : -ENOSPC;

	/* What was shipped meanwhile is progress: the keeper's time starts again. */
	if (r == 0 && vm->keeper)
		keeper_hold_begin(vm->keeper);
	if (r < 0)
		return ft_err_set(err, -r, "qemu: checkpoint: %zu pages of staging are full",
				  capture->pages_max);
	assert(capture->pages_n < capture->pages_max);
	return 0;
}

static int copy_batch(struct qemu *vm, struct vmm_capture *capture, size_t n, struct ft_err *err)
{
	size_t at = capture->pages_n;

	if (ram_copy(&vm->ram, capture->pfns + at, n, capture->pages + at * VMM_PAGE_BYTES) < 0)
		return ft_err_set(err, EIO, "qemu: checkpoint: RAM of process %d cannot be read",
				  vm->process.pid);
	capture->pages_n += n;
	return 0;
}

static int copy_pending(struct qemu *vm, const struct ft_bitmap *pending,
			struct vmm_capture *capture, const struct vmm_hold_hooks *hooks,
			struct ft_err *err)
{
	uint64_t pfn = ft_bitmap_next(pending, 0);
	int r = 0;

	while (pfn < pending->bits && r == 0) {
		size_t n = 0;

		if (capture->pages_n == capture->pages_max)
			r = make_room(vm, capture, hooks, err);
		for (; r == 0 && pfn < pending->bits && n < COPY_BATCH &&
		       capture->pages_n + n < capture->pages_max;
		     n++) {
			capture->pfns[capture->pages_n + n] = pfn;
			pfn = ft_bitmap_next(pending, pfn + 1);
		}
		if (r == 0)
			r = copy_batch(vm, capture, n, err);
		if (r == 0)
			r = save_step(&vm->save, vm->process.pid, err);
	}
	return r;
}

/* Slot of a page among the first n, which are in ascending order; n when it is not there. */
static size_t find_slot(const struct vmm_capture *capture, size_t n, uint64_t pfn)
{
	size_t low = 0, high = n;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (capture->pfns[middle] < pfn)
			low = middle + 1;
		else
			high = middle;
	}
	return low < n && capture->pfns[low] == pfn ? low : n;
}

/* What QEMU wrote into RAM while it serialised. A page that was copied is copied again, into its
 * slot. */
static int copy_late(struct qemu *vm, struct ft_bitmap *pending, struct vmm_capture *capture,
		     const struct vmm_hold_hooks *hooks, struct ft_err *err)
{
	size_t sorted = capture->pages_n;
	int r = tracker_scan(vm->tracker, &vm->late, NULL, err);

	for (uint64_t pfn = ft_bitmap_next(&vm->late, 0);
	     pfn < vm->late.bits && r == 0 && !capture->no_pages;
	     pfn = ft_bitmap_next(&vm->late, pfn + 1)) {
		size_t slot = find_slot(capture, sorted, pfn);

		if (slot < sorted) {
			if (ram_copy(&vm->ram, &pfn, 1, capture->pages + slot * VMM_PAGE_BYTES) < 0)
				r = ft_err_set(err, EIO,
					       "qemu: checkpoint: RAM of process %d cannot be read",
					       vm->process.pid);
			continue;
		}
		if (capture->pages_n == capture->pages_max) {
			r = make_room(vm, capture, hooks, err);
			sorted = 0;
		}
		if (r == 0) {
			capture->pfns[capture->pages_n] = pfn;
			r = copy_batch(vm, capture, 1, err);
		}
	}
	ft_bitmap_merge(pending, &vm->late);
	if (vm->late.count)
		ft_bitmap_clear_all(&vm->late);
	return r;
}

static bool had_faults(const struct qemu *vm, uint64_t before)
{
	return before == 0 || tracker_faults(vm->tracker) != before;
}

/* All stay, as in a postcopy migration: there is nothing to learn from a scan. */
static bool all_stay(const struct ft_bitmap *pending, const struct vmm_capture *capture)
{
	return capture->no_pages && pending->count == pending->bits;
}

/* *faults: QEMU's before what was scanned. */
static int scan(struct qemu *vm, struct ft_bitmap *pending, bool needed, uint64_t *faults,
		struct ft_err *err)
{
	bool one_piece = vm->save.last;
	int r = one_piece ? 0 : save_wait_stopped(&vm->save, &vm->qmp, FIRST_BYTE_MS, err);

	/* QEMU must not have to wait for what is to be read early. */
	if (r == 0)
		r = save_step(&vm->save, vm->process.pid, err);
	*faults = tracker_faults(vm->tracker);
	if (r == 0 && needed)
		r = tracker_scan(vm->tracker, pending, NULL, err);
	if (r == 0)
		r = save_wait_begun(&vm->save, &vm->qmp, FIRST_BYTE_MS, err);
	/* After the first byte of one piece nothing is serialised. */
	if (r == 0 && needed && one_piece && had_faults(vm, *faults))
		r = tracker_scan(vm->tracker, pending, NULL, err);
	return r;
}

static int capture_held(struct qemu *vm, struct ft_bitmap *pending, struct vmm_capture *capture,
			const struct vmm_hold_hooks *hooks, struct ft_err *err)
{
	bool one_piece = vm->save.last, needed = !all_stay(pending, capture);
	uint64_t faults = 0;
	int r = scan(vm, pending, needed, &faults, err);

	if (r < 0)
		return r;
	hooks->stopped(hooks->ctx);
	r = save_step(&vm->save, vm->process.pid, err);
	if (r == 0 && !capture->no_pages)
		r = copy_pending(vm, pending, capture, hooks, err);
	if (r == 0)
		r = save_to_last(&vm->save, &vm->qmp, vm->process.pid, LAST_WRITE_MS, err);
	if (r == 0 && needed && !one_piece && had_faults(vm, faults))
		r = copy_late(vm, pending, capture, hooks, err);
	return r;
}

/* The guest stops, and QEMU has the command by the time it says so: one wait for both. */
static int stop_and_prime(struct qemu *vm, struct ft_err *err)
{
	uint64_t id;
	char stop[64];
	int r = qemu_ready(vm, err);

	if (r == 0)
		r = save_setup(&vm->save, &vm->qmp, vm->process.pid, err);
	if (r < 0)
		return r;
	id = vm->qmp.next_id++;
	snprintf(stop, sizeof stop, "{\"execute\":\"stop\",\"id\":%" PRIu64 "}", id);
	r = qmp_send(&vm->qmp, stop, strlen(stop), err);
	if (r == 0)
		r = save_prime(&vm->save, &vm->qmp, err);
	if (r == 0)
		r = qmp_reply(&vm->qmp, id, "stop", NULL, QMP_CALL_MS, err);
	if (r < 0)
		vm->vmm.ops->cont(&vm->vmm, NULL);
	return r;
}

int qemu_checkpoint(struct vmm *vmm, struct ft_bitmap *pending, struct vmm_capture *capture,
		    const struct vmm_hold_hooks *hooks, bool keep_stopped, struct ft_err *err)
{
	struct qemu *vm = qemu_of(vmm);
	int r;

	assert(vm->tracker && !vm->armed);
	assert(pending->bits == vm->ram.bytes / VMM_PAGE_BYTES);
	capture->pages_n = capture->state_len = 0;
	r = keep_stopped ? stop_and_prime(vm, err) : qemu_checkpoint_prepare(vmm, err);
	if (r < 0)
		return r;
	if (vm->keeper)
		keeper_hold_begin(vm->keeper);
	vm->save.hooks = hooks;
	r = save_fire(&vm->save, &vm->qmp, capture->state, VMM_STATE_BYTES_MAX, err);
	if (r == 0)
		r = capture_held(vm, pending, capture, hooks, err);
	if (r == 0)
		r = save_end(&vm->save, &vm->qmp, END_MS, err);
	vm->save.hooks = NULL;
	if (r < 0)
		save_abandon(&vm->save, &vm->qmp, END_MS);
	if (vm->keeper)
		keeper_hold_end(vm->keeper);
	if (r < 0) {
		if (keep_stopped)
			vmm->ops->cont(vmm, NULL);
		return ft_err_context(err, "checkpoint");
	}
	capture->state_len = vm->save.len;
	capture->held_ns = vm->save.end_ns - vm->save.begin_ns;
	capture->pause_ns = keep_stopped ? capture->held_ns : (vm->resume_us - vm->stop_us) * 1000;
	return 0;
}

static int save_held(struct qemu *vm, vmm_held_fn *held, void *ctx, struct ft_err *err)
{
	int r = save_wait_begun(&vm->save, &vm->qmp, FIRST_BYTE_MS, err);

	if (r == 0)
		r = save_to_last(&vm->save, &vm->qmp, vm->process.pid, LAST_WRITE_MS, err);
	return r == 0 ? held(ctx, err) : r;
}

int qemu_save(struct vmm *vmm, struct vmm_capture *capture, vmm_held_fn *held, void *ctx,
	      struct ft_err *err)
{
	struct qemu *vm = qemu_of(vmm);
	int r = qemu_ready(vm, err);

	assert(!vm->armed);
	/* Where the last write begins is known from the state before. */
	if (r == 0 && vm->save.expected == 0)
		r = rehearse(vm, err);
	if (r == 0)
		r = qemu_checkpoint_prepare(vmm, err);
	if (r < 0)
		return ft_err_context(err, "device state");
	if (vm->keeper)
		keeper_hold_begin(vm->keeper);
	r = save_fire(&vm->save, &vm->qmp, capture->state, VMM_STATE_BYTES_MAX, err);
	if (r == 0)
		r = save_held(vm, held, ctx, err);
	if (r == 0)
		r = save_end(&vm->save, &vm->qmp, END_MS, err);
	if (r < 0)
		save_abandon(&vm->save, &vm->qmp, END_MS);
	if (vm->keeper)
		keeper_hold_end(vm->keeper);
	if (r < 0)
		return ft_err_context(err, "device state");
	capture->state_len = vm->save.len;
	capture->held_ns = vm->save.end_ns - vm->save.begin_ns;
	capture->pause_ns = (vm->resume_us - vm->stop_us) * 1000;
	return 0;
}
