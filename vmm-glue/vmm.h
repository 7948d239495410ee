/* SPDX-License-Identifier: Apache-2.0 */
/* What the engine needs from a virtual machine monitor. qemu/ drives an unmodified QEMU from
 * outside; pocket/ is a small machine in this process. The engine calls through the vmm_*()
 * wrappers only.
 *
 * All calls come from the engine's thread and may block for at most the bound given with each. None
 * calls back into the engine but through the hooks of the call itself and vmm_events. Errors: 0 or
 * -errno with one line in *err.
 *
 * States of a VM:        (nothing) -- start/attach --> running <--> stopped
 *                        (nothing) -- arm ----------> armed -- resume --> running
 */
#ifndef VMM_GLUE_VMM_H
#define VMM_GLUE_VMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "ft/bitmap.h"
#include "ft/err.h"

#define VMM_PAGE_BYTES 4096
/* Device state of one checkpoint; QEMU with many modern devices: 0.5 MiB. */
#define VMM_STATE_BYTES_MAX (4u << 20)
#define VMM_DISKS_MAX	    8
#define VMM_NICS_MAX	    8
#define VMM_PATH_MAX	    256
#define VMM_NAME_MAX	    64

struct vmm;

/* One checkpoint, copied off the guest. Buffers belong to the caller and are allocated before
 * protection starts. */
struct vmm_capture {
	/* in */
	uint8_t *pages; /* pages_max * VMM_PAGE_BYTES; page i is number pfns[i] */
	uint64_t *pfns;
	size_t pages_max;
	uint8_t *state; /* VMM_STATE_BYTES_MAX */
	bool no_pages;	/* pages stay where they are: harvested into the bitmap, not copied */
	/* out */
	size_t pages_n;
	size_t state_len;
	uint64_t pause_ns; /* the guest's pause as the VMM reports it, else as we saw it */
	uint64_t held_ns;  /* first state byte to last state byte taken */
};

#define VMM_WAITING_MS 20

/* Called inside vmm_checkpoint(), on its thread, with the guest paused. Everything here prolongs
 * the pause. */
struct vmm_hold_hooks {
	/* vCPUs are stopped, devices drained: what the guest put out until now belongs to the epoch
	 * that ends here. */
	void (*stopped)(void *ctx);
	/* Staging is full: move capture->pages_n pages out and set it to 0, within a bounded time.
	 * -errno abandons the checkpoint. NULL: -ENOSPC abandons it. */
	int (*full)(void *ctx, struct vmm_capture *capture);
	/* Called every VMM_WAITING_MS or so while the VMM takes its time, as when its disks are
	 * slow to drain: the owner's chance to tell its peer that it lives. May be NULL. */
	void (*waiting)(void *ctx);
	void *ctx;
};

/* Where the guest's RAM is, for those who read or fill it beside the VMM (snapshot/). */
struct vmm_ram {
	pid_t pid;	  /* whose address space; 0: ours */
	int pidfd;	  /* of it, the VMM's; -1 for pid 0 */
	uint64_t address; /* there */
	uint64_t bytes;
	int fd;		 /* the file behind it, the VMM's; -1: none, or it is not ours to read */
	uint64_t offset; /* in that file */
	/* the VMM's names: of the memory block, and of the machine type */
	char block[VMM_NAME_MAX], machine[VMM_NAME_MAX];
};

/* Things that happen to a VM by themselves. Delivered from vmm_poll() on the engine's thread. */
struct vmm_events {
	/* The VM is gone or unusable for ever: process died, guest powered off, monitor lost. why:
	 * one line. */
	void (*lost)(void *ctx, const char *why);
	void *ctx;
	/* From inside quit(): the guest can do nothing any more that anybody would see, and its
	 * threads are about to be waited for: who makes them wait for memory lets go. May be NULL.
	 */
	void (*ending)(void *ctx);
};

struct vmm_info {
	const char *kind; /* "qemu" | "pocket" */
	char version[32];
	pid_t pid; /* 0: in this process */
	uint64_t ram_bytes;
	char uuid[37];
	unsigned disks_n, nics_n;
	struct {
		char id[VMM_NAME_MAX];
		char image[VMM_PATH_MAX];
		uint64_t bytes;
		bool direct; /* past the host's page cache */
	} disks[VMM_DISKS_MAX];
	struct {
		char id[VMM_NAME_MAX];
	} nics[VMM_NICS_MAX];
};

/* Where the taps' own ends are; the VMM connects its side to them. Order as in vmm_info. "": that
 * device gets no tap. */
struct vmm_tap_points {
	/* "": none */
	struct {
		char nbd[VMM_PATH_MAX];
	} disks[VMM_DISKS_MAX]; /* unix socket of our NBD server */
	struct {
		char out[VMM_PATH_MAX], in[VMM_PATH_MAX];
	} nics[VMM_NICS_MAX]; /* unix sockets that we listen on. in "": what comes out does not come
				 back, but leaves by nic_fd() */
};

typedef int vmm_held_fn(void *ctx, struct ft_err *err);

struct vmm_ops {
	const char *kind;

	/* ---- any time ---- */
	void (*info)(struct vmm *vmm, struct vmm_info *info);
	void (*ram)(struct vmm *vmm, struct vmm_ram *ram);
	/* "running", "paused", "inmigrate", ... for people. Static string. */
	const char *(*status)(struct vmm *vmm);
	/* When the guest last stopped and last went on, by the VMM's own word: us since 1970 UTC;
	 * 0: not since this object is there. May be NULL. */
	void (*moments)(struct vmm *vmm, uint64_t *stopped_us, uint64_t *resumed_us);
	/* A descriptor that becomes readable when poll() has something to do, -1 if none. */
	int (*poll_fd)(struct vmm *vmm);
	void (*poll)(struct vmm *vmm);

	/* ---- running: protection ---- */
	/* Finds everything that would make protection impossible, touching nothing: -ENOTSUP and
	 * why. <= 1 s */
	int (*check)(struct vmm *vmm, struct ft_err *err);
	/* Puts the taps in that have a place in points and are not in yet (guest runs on, its I/O
	 * goes on; an armed VM has them from its first moment) / takes them out, but for those of
	 * the disks in `stay` (bit i: disk i). taps_in undoes itself on error. <= 10 s */
	int (*taps_in)(struct vmm *vmm, const struct vmm_tap_points *points, struct ft_err *err);
	int (*taps_out)(struct vmm *vmm, unsigned stay, struct ft_err *err);
	/* A descriptor of the host's side of that NIC (order as in vmm_info), non-blocking, the
	 * caller's to close: a frame that is written there, as the NIC handed it out, leaves as the
	 * guest's, whether the VM runs or not. While it is open the interface is in use. -ENOTSUP:
	 * there is none that others may write to. <= 1 s */
	int (*nic_fd)(struct vmm *vmm, unsigned nic, struct ft_err *err);
	/* Starts the dirty tracker; every page counts as dirty afterwards (the caller sets its
	 * bitmap). / Ends it. <= 1 s */
	int (*track_start)(struct vmm *vmm, struct ft_err *err);
	void (*track_stop)(struct vmm *vmm);
	/* dirty |= pages written since the last harvest; tracking of them starts again in the same
	 * step. */
	int (*harvest)(struct vmm *vmm, struct ft_bitmap *dirty, struct ft_err *err);
	/* How many pages would be harvested now, at least min(that, max); harvests nothing. -errno.
	 */
	long (*dirty_peek)(struct vmm *vmm, long max);
	/* Copies RAM pages of a guest that may be running (a torn page is dirty again by
	 * definition). */
	int (*read_pages)(struct vmm *vmm, const uint64_t *pfns, size_t n, uint8_t *target,
			  struct ft_err *err);
	/* The same pages pfn to pfn + n - 1 in place: where they lie in this process, good until
	 * the next call. A guest that runs may write them at any time. NULL: not to be had, or not
	 * all of them without touching memory that nobody ever touched. May be NULL. */
	const uint8_t *(*view)(struct vmm *vmm, uint64_t pfn, size_t n);
	/* Makes the next checkpoint() quick (primes the command). May be called again; idle time is
	 * right. <= 100 ms */
	int (*checkpoint_prepare)(struct vmm *vmm, struct ft_err *err);
	/* Pauses the guest, calls hooks->stopped, harvests into `pending` (which may have bits set:
	 * pages still owed), copies ALL of pending's pages into *capture (unless no_pages), saves
	 * the device state, lets the guest run. Bits stay set in pending: the caller clears them at
	 * commit. On error the guest runs, pending holds every page that was seen dirty, *capture
	 * is void. keep_stopped: the guest stays stopped afterwards (planned switch; vmm_cont() or
	 * vmm_quit() follow). Bound: hold watchdog, VMM_HOLD_MAX_MS, enforced by the keeper. */
	int (*checkpoint)(struct vmm *vmm, struct ft_bitmap *pending, struct vmm_capture *capture,
			  const struct vmm_hold_hooks *hooks, bool keep_stopped,
			  struct ft_err *err);
	int (*stop)(struct vmm *vmm, struct ft_err *err);
	int (*cont)(struct vmm *vmm, struct ft_err *err);
	/* Pauses the guest, saves its device state into capture (nothing else of it is used), and
	 * calls held() at the moment in which state and RAM belong together: until it returns
	 * nobody writes RAM. An error of held() is returned and makes the state void. The guest
	 * runs afterwards, whatever happened. Needs no tracker. Bound as for checkpoint(). */
	int (*save)(struct vmm *vmm, struct vmm_capture *capture, vmm_held_fn *held, void *ctx,
		    struct ft_err *err);
	/* Ends the VM: orderly = asks the guest first (bounded by the caller's `within_ms`), then
	 * by force. Idempotent. */
	void (*quit)(struct vmm *vmm, bool orderly, unsigned within_ms);
	/* vmm_pages_digest() of all RAM. Guest running or stopped; of use when stopped or inside a
	 * hold. Memory that nobody ever touched stays untouched. */
	int (*ram_digest)(struct vmm *vmm, uint64_t *digest, struct ft_err *err);

	/* ---- armed: standby ---- */
	/* The image of the guest's RAM: ram_bytes, shared with the waiting VM; written by the
	 * engine until resume(). */
	uint8_t *(*image)(struct vmm *vmm);
	/* Many pages of the image at once, sooner than through image(): n whole ones, one an iovec,
	 * from pfn on (iov is used up; n <= VMM_IMAGE_RUN); or n that are zeroes. May be NULL,
	 * both. */
	int (*image_write)(struct vmm *vmm, uint64_t pfn, struct iovec *iov, unsigned n,
			   struct ft_err *err);
	int (*image_empty)(struct vmm *vmm, uint64_t pfn, uint64_t n, struct ft_err *err);
	/* Proves that the image and this state make a VM that loads: throw-away VM, private
	 * mapping, connected to nothing. The error is the VMM's own message. <= 10 s */
	int (*trial)(struct vmm *vmm, const uint8_t *state, size_t len, struct ft_err *err);
	/* Loads the state; the guest runs when this returns 0. The disks' images are at the
	 * committed epoch. <= 5 s */
	int (*resume)(struct vmm *vmm, const uint8_t *state, size_t len, struct ft_err *err);

	/* Frees this object. A running VM goes on running (see quit) unless it lives in this
	 * process. */
	void (*free)(struct vmm *vmm);
};

/* of one view() */
#define VMM_VIEW_MAX 64

/* Longest pause that a keeper allows one checkpoint; far above any budget, far below a human. */
#define VMM_HOLD_MAX_MS 2000

/* Every implementation's struct starts with this. */
struct vmm {
	const struct vmm_ops *ops;
	struct vmm_events events; /* set by the owner before anything else is called */
};

/* ---- what the engine calls ----
 * One for each op, same contract; they assert what holds for every VMM. All ops are required but
 * image_write and image_empty, poll_fd and poll (of a VMM that has nothing to poll), nic_fd (of one
 * whose NICs have none) and
 * checkpoint_prepare (of one whose checkpoints need none). */
void vmm_info(struct vmm *vmm, struct vmm_info *info);
/* Valid as long as the VM is; its descriptors are the VM's. */
void vmm_ram(struct vmm *vmm, struct vmm_ram *ram);
const char *vmm_status(struct vmm *vmm);
void vmm_moments(struct vmm *vmm, uint64_t *stopped_us, uint64_t *resumed_us);
int vmm_poll_fd(struct vmm *vmm);
void vmm_poll(struct vmm *vmm);
int vmm_check(struct vmm *vmm, struct ft_err *err);
int vmm_taps_in(struct vmm *vmm, const struct vmm_tap_points *points, struct ft_err *err);
int vmm_taps_out(struct vmm *vmm, unsigned stay, struct ft_err *err);
int vmm_nic_fd(struct vmm *vmm, unsigned nic, struct ft_err *err);
int vmm_track_start(struct vmm *vmm, struct ft_err *err);
void vmm_track_stop(struct vmm *vmm);
int vmm_harvest(struct vmm *vmm, struct ft_bitmap *dirty, struct ft_err *err);
long vmm_dirty_peek(struct vmm *vmm, long max);
int vmm_read_pages(struct vmm *vmm, const uint64_t *pfns, size_t n, uint8_t *target,
		   struct ft_err *err);
/* n <= VMM_VIEW_MAX */
const uint8_t *vmm_view(struct vmm *vmm, uint64_t pfn, size_t n);
int vmm_checkpoint_prepare(struct vmm *vmm, struct ft_err *err);
int vmm_checkpoint(struct vmm *vmm, struct ft_bitmap *pending, struct vmm_capture *capture,
		   const struct vmm_hold_hooks *hooks, bool keep_stopped, struct ft_err *err);
int vmm_save(struct vmm *vmm, struct vmm_capture *capture, vmm_held_fn *held, void *ctx,
	     struct ft_err *err);
int vmm_stop(struct vmm *vmm, struct ft_err *err);
int vmm_cont(struct vmm *vmm, struct ft_err *err);
void vmm_quit(struct vmm *vmm, bool orderly, unsigned within_ms);
int vmm_ram_digest(struct vmm *vmm, uint64_t *digest, struct ft_err *err);
uint8_t *vmm_image(struct vmm *vmm);
#define VMM_IMAGE_RUN 64
int vmm_image_write(struct vmm *vmm, uint64_t pfn, struct iovec *iov, unsigned n,
		    struct ft_err *err);
int vmm_image_empty(struct vmm *vmm, uint64_t pfn, uint64_t n, struct ft_err *err);
int vmm_trial(struct vmm *vmm, const uint8_t *state, size_t len, struct ft_err *err);
int vmm_resume(struct vmm *vmm, const uint8_t *state, size_t len, struct ft_err *err);
/* Accepts NULL. */
void vmm_free(struct vmm *vmm);

/* For those who implement ram_digest(): of n pages from number pfn on; that of all pages is the sum
 * of that of any parts. Sum modulo 2^64, over the pages that are not all zero, of XXH3-64 of the
 * page with its number as the seed. */
uint64_t vmm_pages_digest(const uint8_t *pages, uint64_t pfn, size_t n);

#endif
