// SPDX-License-Identifier: Apache-2.0
// The only way from the engine into a VMM. What holds for every VMM is asserted here, once.
#include "vmm-glue/vmm.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include <xxhash.h>

#include "ft/page.h"

void vmm_info(struct vmm *vmm, struct vmm_info *info)
{
	vmm->ops->info(vmm, info);
	assert(info->kind);
	assert(info->ram_bytes % VMM_PAGE_BYTES == 0);
	assert(info->disks_n <= VMM_DISKS_MAX);
	assert(info->nics_n <= VMM_NICS_MAX);
}

void vmm_ram(struct vmm *vmm, struct vmm_ram *ram)
{
	vmm->ops->ram(vmm, ram);
	assert(ram->bytes > 0 && ram->bytes % VMM_PAGE_BYTES == 0);
	assert(ram->address % VMM_PAGE_BYTES == 0);
}

const char *vmm_status(struct vmm *vmm)
{
	return vmm->ops->status(vmm);
}

void vmm_moments(struct vmm *vmm, uint64_t *stopped_us, uint64_t *resumed_us)
{
	*stopped_us = *resumed_us = 0;
	if (vmm->ops->moments)
		vmm->ops->moments(vmm, stopped_us, resumed_us);
}

int vmm_poll_fd(struct vmm *vmm)
{
	return vmm->ops->poll_fd ? vmm->ops->poll_fd(vmm) : -1;
}

void vmm_poll(struct vmm *vmm)
{
	if (vmm->ops->poll)
		vmm->ops->poll(vmm);
}

int vmm_check(struct vmm *vmm, struct ft_err *err)
{
	return vmm->ops->check(vmm, err);
}

int vmm_taps_in(struct vmm *vmm, const struct vmm_tap_points *points, struct ft_err *err)
{
	assert(points);
	return vmm->ops->taps_in(vmm, points, err);
}

int vmm_taps_out(struct vmm *vmm, unsigned stay, struct ft_err *err)
{
	return vmm->ops->taps_out(vmm, stay, err);
}

int vmm_nic_fd(struct vmm *vmm, unsigned nic, struct ft_err *err)
{
	if (!vmm->ops->nic_fd)
		return ft_err_set(err, ENOTSUP, "%s: its NICs have none", vmm->ops->kind);
	return vmm->ops->nic_fd(vmm, nic, err);
}

int vmm_track_start(struct vmm *vmm, struct ft_err *err)
{
	return vmm->ops->track_start(vmm, err);
}

void vmm_track_stop(struct vmm *vmm)
{
	vmm->ops->track_stop(vmm);
}

int vmm_harvest(struct vmm *vmm, struct ft_bitmap *dirty, struct ft_err *err)
{
	assert(dirty->bits > 0);
	return vmm->ops->harvest(vmm, dirty, err);
}

long vmm_dirty_peek(struct vmm *vmm, long max)
{
	assert(max > 0);
	return vmm->ops->dirty_peek(vmm, max);
}

int vmm_read_pages(struct vmm *vmm, const uint64_t *pfns, size_t n, uint8_t *target,
		   struct ft_err *err)
{
	assert(n == 0 || (pfns && target));
	return n ? vmm->ops->read_pages(vmm, pfns, n, target, err) : 0;
}

const uint8_t *vmm_view(struct vmm *vmm, uint64_t pfn, size_t n)
{
	assert(n > 0 && n <= VMM_VIEW_MAX);
	return vmm->ops->view ? vmm->ops->view(vmm, pfn, n) : NULL;
}

int vmm_checkpoint_prepare(struct vmm *vmm, struct ft_err *err)
{
	return vmm->ops->checkpoint_prepare ? vmm->ops->checkpoint_prepare(vmm, err) : 0;
}

int vmm_checkpoint(struct vmm *vmm, struct ft_bitmap *pending, struct vmm_capture *capture,
		   const struct vmm_hold_hooks *hooks, bool keep_stopped, struct ft_err *err)
{
	uint64_t owed = pending->count;
	int ret;

	assert(capture->pages && capture->pfns && capture->pages_max > 0);
	assert(capture->state);
	assert(!capture->no_pages || keep_stopped); // or nobody could read them later
	assert(hooks->stopped);
	capture->pages_n = capture->state_len = 0;
	ret = vmm->ops->checkpoint(vmm, pending, capture, hooks, keep_stopped, err);
	assert(pending->count >= owed); // bits are the caller's to clear, whatever happened
	assert(ret || capture->pages_n <= capture->pages_max);
	assert(ret || (capture->state_len > 0 && capture->state_len <= VMM_STATE_BYTES_MAX));
	return ret;
}

int vmm_save(struct vmm *vmm, struct vmm_capture *capture, vmm_held_fn *held, void *ctx,
	     struct ft_err *err)
{
	int ret;

	assert(capture->state);
	assert(held);
	capture->pages_n = capture->state_len = 0;
	ret = vmm->ops->save(vmm, capture, held, ctx, err);
	assert(ret || (capture->state_len > 0 && capture->state_len <= VMM_STATE_BYTES_MAX));
	return ret;
}

int vmm_stop(struct vmm *vmm, struct ft_err *err)
{
	return vmm->ops->stop(vmm, err);
}

int vmm_cont(struct vmm *vmm, struct ft_err *err)
{
	return vmm->ops->cont(vmm, err);
}

void vmm_quit(struct vmm *vmm, bool orderly, unsigned within_ms)
{
	vmm->ops->quit(vmm, orderly, within_ms);
}

int vmm_ram_digest(struct vmm *vmm, uint64_t *digest, struct ft_err *err)
{
	assert(digest);
	return vmm->ops->ram_digest(vmm, digest, err);
}

uint8_t *vmm_image(struct vmm *vmm)
{
	return vmm->ops->image(vmm);
}

int vmm_image_write(struct vmm *vmm, uint64_t pfn, struct iovec *iov, unsigned n,
		    struct ft_err *err)
{
	uint8_t *image;

	assert(n > 0 && n <= VMM_IMAGE_RUN);
	if (vmm->ops->image_write)
		return vmm->ops->image_write(vmm, pfn, iov, n, err);
	image = vmm->ops->image(vmm);
	for (unsigned i = 0; i < n; i++)
		memcpy(image + (pfn + i) * VMM_PAGE_BYTES, iov[i].iov_base, VMM_PAGE_BYTES);
	return 0;
}

int vmm_image_empty(struct vmm *vmm, uint64_t pfn, uint64_t n, struct ft_err *err)
{
	assert(n > 0);
	if (vmm->ops->image_empty)
		return vmm->ops->image_empty(vmm, pfn, n, err);
	memset(vmm->ops->image(vmm) + pfn * VMM_PAGE_BYTES, 0, n * VMM_PAGE_BYTES);
	return 0;
}

int vmm_trial(struct vmm *vmm, const uint8_t *state, size_t len, struct ft_err *err)
{
	assert(state);
	assert(len > 0 && len <= VMM_STATE_BYTES_MAX);
	return vmm->ops->trial(vmm, state, len, err);
}

int vmm_resume(struct vmm *vmm, const uint8_t *state, size_t len, struct ft_err *err)
{
	assert(state);
	assert(len > 0 && len <= VMM_STATE_BYTES_MAX);
	return vmm->ops->resume(vmm, state, len, err);
}

void vmm_free(struct vmm *vmm)
{
	if (vmm)
		vmm->ops->free(vmm);
}

uint64_t vmm_pages_digest(const uint8_t *pages, uint64_t pfn, size_t n)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < n; i++) {
		const uint8_t *page = pages + i * VMM_PAGE_BYTES;

		if (!page_is_zero(page))
			sum += XXH3_64bits_withSeed(page, VMM_PAGE_BYTES, pfn + i);
	}
	return sum;
}
