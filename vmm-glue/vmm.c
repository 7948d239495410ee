// SPDX-License-Identifier: Apache-2.0
/* The wrappers of vmm.h: what every call has in common is asserted here, once, so that
 * implementations need not. */
#include "vmm-glue/vmm.h"

#include <assert.h>

void vmm_info(struct vmm *vmm, struct vmm_info *info)
{
	assert(vmm);
	assert(info);
	vmm->ops->info(vmm, info);
}

const char *vmm_status(struct vmm *vmm)
{
	assert(vmm);
	return vmm->ops->status(vmm);
}

int vmm_poll_fd(struct vmm *vmm)
{
	assert(vmm);
	return vmm->ops->poll_fd(vmm);
}

void vmm_poll(struct vmm *vmm)
{
	assert(vmm);
	vmm->ops->poll(vmm);
}

int vmm_check(struct vmm *vmm, struct ft_err *err)
{
	assert(vmm);
	return vmm->ops->check(vmm, err);
}

int vmm_taps_in(struct vmm *vmm, const struct vmm_tap_points *points, struct ft_err *err)
{
	assert(vmm);
	assert(points);
	return vmm->ops->taps_in(vmm, points, err);
}

int vmm_taps_out(struct vmm *vmm, struct ft_err *err)
{
	assert(vmm);
	return vmm->ops->taps_out(vmm, err);
}

int vmm_track_start(struct vmm *vmm, struct ft_err *err)
{
	assert(vmm);
	return vmm->ops->track_start(vmm, err);
}

void vmm_track_stop(struct vmm *vmm)
{
	assert(vmm);
	vmm->ops->track_stop(vmm);
}

int vmm_harvest(struct vmm *vmm, struct ft_bitmap *dirty, struct ft_err *err)
{
	assert(vmm);
	assert(dirty);
	return vmm->ops->harvest(vmm, dirty, err);
}

long vmm_dirty_peek(struct vmm *vmm, long max)
{
	assert(vmm);
	return vmm->ops->dirty_peek(vmm, max);
}

int vmm_read_pages(struct vmm *vmm, const uint64_t *pfns, size_t n, uint8_t *target,
		   struct ft_err *err)
{
	assert(vmm);
	assert(pfns);
	assert(target);
	return vmm->ops->read_pages(vmm, pfns, n, target, err);
}

int vmm_checkpoint_prepare(struct vmm *vmm, struct ft_err *err)
{
	assert(vmm);
	return vmm->ops->checkpoint_prepare(vmm, err);
}

int vmm_checkpoint(struct vmm *vmm, struct ft_bitmap *pending, struct vmm_capture *capture,
		   const struct vmm_hold_hooks *hooks, bool keep_stopped, struct ft_err *err)
{
	assert(vmm);
	assert(pending);
	assert(capture);
	assert(hooks);
	assert(hooks->stopped);
	assert(capture->pages_n == 0);
	return vmm->ops->checkpoint(vmm, pending, capture, hooks, keep_stopped, err);
}

int vmm_stop(struct vmm *vmm, struct ft_err *err)
{
	assert(vmm);
	return vmm->ops->stop(vmm, err);
}

int vmm_cont(struct vmm *vmm, struct ft_err *err)
{
	assert(vmm);
	return vmm->ops->cont(vmm, err);
}

void vmm_quit(struct vmm *vmm, bool orderly, unsigned within_ms)
{
	assert(vmm);
	vmm->ops->quit(vmm, orderly, within_ms);
}

int vmm_ram_digest(struct vmm *vmm, uint64_t *digest, struct ft_err *err)
{
	assert(vmm);
	assert(digest);
	return vmm->ops->ram_digest(vmm, digest, err);
}

uint8_t *vmm_image(struct vmm *vmm)
{
	assert(vmm);
	return vmm->ops->image(vmm);
}

int vmm_trial(struct vmm *vmm, const uint8_t *state, size_t len, struct ft_err *err)
{
	assert(vmm);
	assert(state);
	return vmm->ops->trial(vmm, state, len, err);
}

int vmm_resume(struct vmm *vmm, const uint8_t *state, size_t len, struct ft_err *err)
{
	assert(vmm);
	assert(state);
	return vmm->ops->resume(vmm, state, len, err);
}

void vmm_free(struct vmm *vmm)
{
	if (vmm)
		vmm->ops->free(vmm);
}
