// SPDX-License-Identifier: Apache-2.0
// One thread serves faults, from the first protected page on. It never does I/O; what ops->fault()
// may wait for is its owner's to bound.
//
// A fault that is read but not yet served when the moment comes is served after it, and right so:
// whoever waits has not written yet.
#include "vmm-glue/snapshot/frozen.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "ft/bitmap.h"
#include "vmm-glue/inject.h"
#include "vmm-glue/snapshot/ram_read.h"
#include "vmm-glue/snapshot/urgency.h"
#include "vmm-glue/uffd.h"
#include "vmm-glue/uffd_abi.h"

#define FAULTS_AT_ONCE 32
#define THAW_STEP      (64ull << 20)
#define NEAR_PAGES     16 /* protecting so many more costs less than another call */
#define FEATURES                                                                                   \
	(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |                        \
	 UFFD_FEATURE_WP_UNPOPULATED)

struct frozen {
	/* set at open */
	struct vmm_ram ram;
	struct frozen_ops ops;
	int uffd, stop_fd;
	bool registered, has_thread;
	pthread_t thread;
	/* under lock, which the thread holds while it serves a fault before the moment */
	pthread_mutex_t lock;
	bool frozen;
	struct ft_bitmap noted;
	/* written by the thread alone */
	_Atomic uint64_t faults, fault_ns, fault_ns_max;
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t address_of(const struct frozen *f, uint64_t pfn)
{
	return f->ram.address + pfn * VMM_PAGE_BYTES;
}

int frozen_release(struct frozen *f, uint64_t pfn, size_t n)
{
	return uffd_release(f->uffd, address_of(f, pfn), n * (uint64_t)VMM_PAGE_BYTES);
}

// ---- the thread ----

/* True: the moment has not come, and the writer was let go, to the pages around too: who writes one
 * often writes the next, and each fault is a wait. */
static bool serve_early(struct frozen *f, uint64_t pfn)
{
	uint64_t first = pfn / NEAR_PAGES * NEAR_PAGES,
		 left = f->ram.bytes / VMM_PAGE_BYTES - first;
	size_t n = left < NEAR_PAGES ? (size_t)left : NEAR_PAGES;
	bool early;

	pthread_mutex_lock(&f->lock);
	early = !f->frozen;
	if (early) {
		for (size_t i = 0; i < n; i++)
			ft_bitmap_set(&f->noted, first + i);
		(void)frozen_release(f, first, n);
	}
	pthread_mutex_unlock(&f->lock);
	return early;
}

static void serve(struct frozen *f, uint64_t address)
{
	uint64_t pfn = (address - f->ram.address) / VMM_PAGE_BYTES, start = now_ns(), took;

	assert(address >= f->ram.address && pfn < f->ram.bytes / VMM_PAGE_BYTES);
	if (serve_early(f, pfn))
		return;
	f->ops.fault(f->ops.ctx, pfn);
	took = now_ns() - start;
	f->faults++;
	f->fault_ns += took;
	if (took > f->fault_ns_max)
		f->fault_ns_max = took;
}

static void *run(void *ctx)
{
	struct frozen *f = ctx;
	uint64_t faults[FAULTS_AT_ONCE], alive_at = 0;

	urgency_guest_waits();
	for (;;) {
		struct pollfd p[2] = {{.fd = f->uffd, .events = POLLIN},
				      {.fd = f->stop_fd, .events = POLLIN}};
		uint64_t now = now_ns();
		int n;

		if (f->ops.alive && now - alive_at >= FROZEN_ALIVE_MS / 2 * 1000000ull) {
			f->ops.alive(f->ops.ctx);
			alive_at = now;
		}
		if (poll(p, 2, FROZEN_ALIVE_MS / 2) <= 0)
			continue;
		if (p[1].revents)
			return NULL;
		n = uffd_faults(f->uffd, faults, FAULTS_AT_ONCE);
		for (int i = 0; i < n; i++)
			serve(f, faults[i]);
		/* The process is gone: nothing comes any more, and the owner's reads will say so.
		 */
		if (n < 0)
			(void)poll(&p[1], 1, FROZEN_ALIVE_MS / 2);
	}
}

// Signals are for the other threads of this process.
static int start_thread(struct frozen *f, struct ft_err *err)
{
	sigset_t all, before;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&f->thread, NULL, run, f);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	f->has_thread = rc == 0;
	return rc ? ft_err_set(err, rc, "a thread for write faults: %s", strerror(rc)) : 0;
}

// ---- the owner ----

static int take_uffd(struct frozen *f, struct ft_err *err)
{
	int rc;

	if (!f->ram.pid) {
		f->uffd = uffd_own(0, err);
		rc = f->uffd < 0 ? f->uffd : 0;
	} else {
		rc = inject_uffd(f->ram.pid, f->ram.pidfd, 0, false, &f->uffd, NULL, err);
	}
	return rc ? rc : uffd_api(f->uffd, FEATURES, err);
}

static int own_descriptors(struct frozen *f, struct ft_err *err)
{
	f->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return ram_keep(&f->ram) || f->stop_fd < 0 ? ft_err_set(err, EMFILE, "no descriptors") : 0;
}

int frozen_open(const struct vmm_ram *ram, const struct frozen_ops *ops, struct frozen **out,
		struct ft_err *err)
{
	struct frozen *f = calloc(1, sizeof *f);
	int rc;

	if (!f)
		return ft_err_set(err, ENOMEM, "freeze RAM: out of memory");
	f->ram = *ram;
	f->ops = *ops;
	f->uffd = f->stop_fd = -1;
	urgency_lock_init(&f->lock);
	rc = own_descriptors(f, err);
	if (!rc && ft_bitmap_init(&f->noted, ram->bytes / VMM_PAGE_BYTES))
		rc = ft_err_set(err, ENOMEM, "out of memory");
	if (!rc)
		rc = take_uffd(f, err);
	if (!rc)
		rc = uffd_register_wp(f->uffd, ram->address, ram->bytes, err);
	f->registered = !rc;
	if (!rc)
		rc = start_thread(f, err);
	if (!rc)
		rc = uffd_protect(f->uffd, ram->address, ram->bytes, err);
	if (rc) {
		frozen_close(f);
		return ft_err_context(err, "freeze RAM");
	}
	*out = f;
	return 0;
}

/* Protects a stretch of noted pages, with what little lies between them. */
static int protect_stretch(struct frozen *f, uint64_t *pfn, struct ft_err *err)
{
	uint64_t first = *pfn, end = first + 1, next;

	for (; (next = ft_bitmap_next(&f->noted, end)) < f->noted.bits; end = next + 1)
		if (next - end > NEAR_PAGES)
			break;
	*pfn = next;
	return uffd_protect(f->uffd, address_of(f, first), (end - first) * VMM_PAGE_BYTES, err);
}

int frozen_moment(struct frozen *f, struct ft_err *err)
{
	int rc = 0;

	pthread_mutex_lock(&f->lock);
	assert(!f->frozen);
	for (uint64_t pfn = ft_bitmap_next(&f->noted, 0); pfn < f->noted.bits && !rc;)
		rc = protect_stretch(f, &pfn, err);
	f->frozen = !rc;
	pthread_mutex_unlock(&f->lock);
	return rc;
}

int frozen_read(const struct frozen *f, uint64_t pfn, size_t n, uint8_t *to)
{
	return ram_read(&f->ram, pfn, n, to);
}

void frozen_thaw(struct frozen *f)
{
	/* In steps, because page faults of the process wait for each. */
	for (uint64_t at = 0; f->registered && at < f->ram.bytes; at += THAW_STEP)
		uffd_unregister(f->uffd, f->ram.address + at,
				f->ram.bytes - at < THAW_STEP ? f->ram.bytes - at : THAW_STEP);
}

void frozen_stats(const struct frozen *f, struct frozen_stats *stats)
{
	*stats = (struct frozen_stats){f->faults, f->fault_ns, f->fault_ns_max};
}

void frozen_close(struct frozen *f)
{
	if (!f)
		return;
	frozen_thaw(f);
	if (f->has_thread) {
		eventfd_write(f->stop_fd, 1);
		pthread_join(f->thread, NULL);
	}
	if (f->uffd >= 0)
		close(f->uffd);
	if (f->stop_fd >= 0)
		close(f->stop_fd);
	ram_drop(&f->ram);
	ft_bitmap_free(&f->noted);
	pthread_mutex_destroy(&f->lock);
	free(f);
}
