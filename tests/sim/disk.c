// SPDX-License-Identifier: Apache-2.0
/* A disk as its guest and its VMM have it on one host: written and read through the tap or straight
 * at the image, which is opened and locked as QEMU does. The NBD connection between VMM and tap is
 * left out: the linker gives the tap a server that hands its backend to the guest. */
#include "tests/sim/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "eventtap/block/disk_tap_internal.h" /* white box: would a write have to wait? */
#include "tests/sim/world.h"

#define BLOCKS_PER_CHUNK (SIM_DISK_BYTES / DISK_TAP_BLOCK_BYTES)

/* ---- the guest ---- */

uint64_t disk_offset(unsigned block)
{
	/* Over all chunks of the copier, and with holes between. */
	return (uint64_t)(block % BLOCKS_PER_CHUNK) * DISK_TAP_BLOCK_BYTES +
	       (uint64_t)(block / BLOCKS_PER_CHUNK) * 4096;
}

static bool must_wait(const struct disk *d)
{
	const struct disk_tap *t = (const struct disk_tap *)d->tap;

	return t->mode == TAP_HOLD && t->log.bytes >= t->log_bytes_soft && !t->firing && !t->fenced;
}

int disk_write(struct node *n, unsigned disk, unsigned block, enum tap_kind kind,
	       const uint8_t *data)
{
	struct disk *d = &n->disks[disk];
	uint64_t at = disk_offset(block);

	n->machine->block_stale[disk][block] = true;
	if (d->export.ops) {
		const struct nbd_backend_ops *ops = d->export.ops;
		int rc;

		if (must_wait(d))
			return -EAGAIN;
		if (kind == TAP_DISK_WRITE)
			rc = ops->pwrite(d->export.ctx, data, SECTOR, at, false);
		else if (kind == TAP_DISK_TRIM)
			rc = ops->trim(d->export.ctx, at, SECTOR, false);
		else
			rc = ops->zero(d->export.ctx, at, SECTOR, NBD_ZERO_NO_HOLE);
		n->machine->written[disk] |= rc ? 0 : 1u << block;
		n->machine->perhaps[disk] |= 1u << block; /* who fails may have written a part */
		return rc;
	} else if (d->image_fd >= 0) {
		static const uint8_t zeroes[SECTOR];

		return pwrite(d->image_fd, kind == TAP_DISK_WRITE ? data : zeroes, SECTOR,
			      (off_t)at) == SECTOR
			       ? 0
			       : -errno;
	}
	return -ENXIO;
}

int disk_read(struct node *n, unsigned disk, unsigned block, uint8_t *out)
{
	struct disk *d = &n->disks[disk];
	uint64_t at = disk_offset(block);

	if (d->export.ops)
		return d->export.ops->pread(d->export.ctx, out, SECTOR, at);
	if (d->image_fd < 0)
		return -ENXIO;
	memset(out, 0, SECTOR);
	return pread(d->image_fd, out, SECTOR, (off_t)at) < 0 ? -errno : 0;
}

int disk_flush_all(struct node *n, unsigned disk)
{
	struct disk *d = &n->disks[disk];

	if (n->world->mutant == MUTANT_FLUSH_LIES)
		return 0;
	if (d->export.ops)
		return d->export.ops->flush(d->export.ctx);
	if (d->image_fd < 0)
		return -ENXIO;
	return fdatasync(d->image_fd) < 0 ? -errno : 0;
}

/* ---- its VMM ---- */

int disks_vm_open(struct node *n, struct ft_err *err)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

	for (unsigned i = 0; i < n->world->options.disks; i++) {
		struct disk *d = &n->disks[i];

		if (d->image_fd >= 0 || (d->tap && disk_keeps_tap(n, d)))
			continue;
		d->image_fd = open(d->path, O_RDWR | O_CLOEXEC);
		if (d->image_fd < 0)
			return ft_err_set(err, errno, "sim: %s: %s", d->path, strerror(errno));
		/* As QEMU locks its image. */
		if (fcntl(d->image_fd, F_OFD_SETLK, &lock)) {
			close(d->image_fd);
			d->image_fd = -1;
			return ft_err_set(err, EBUSY, "sim: %s: a VM has it open", d->path);
		}
	}
	return 0;
}

void disks_vm_close(struct node *n)
{
	for (unsigned i = 0; i < SIM_DISKS; i++) {
		if (n->disks[i].image_fd >= 0)
			close(n->disks[i].image_fd);
		n->disks[i].image_fd = -1;
	}
}

/* ---- life ---- */

void disks_init(struct node *n)
{
	for (unsigned i = 0; i < SIM_DISKS; i++) {
		struct disk *d = &n->disks[i];

		d->shared = n->world->options.disk_shared[i];
		d->image_fd = -1;
		snprintf(d->path, sizeof d->path, "/sim/%c/%sdisk%u", 'A' + (int)n->id,
			 d->shared ? "shared/" : "", i);
		snprintf(d->nbd, sizeof d->nbd, "/sim/%c/run/nbd%u", 'A' + (int)n->id, i);
		if (n->id == 0 && i < n->world->options.disks)
			files_make(n->world, d->path, SIM_DISK_BYTES);
	}
}

/* A dead VMM's descriptors went with it (files.h). */
void disks_process_gone(struct node *n)
{
	disks_stores_gone(n);
	for (unsigned i = 0; i < SIM_DISKS; i++)
		n->disks[i].image_fd = -1;
}
