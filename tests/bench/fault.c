// SPDX-License-Identifier: Apache-2.0
// What a guest waits when it writes a page that a snapshot has not saved yet. Here: a write to the
// image of a pocket machine that is being saved, at a pace at which the workers are out of the way.
// Floor: the least that anybody can do about such a write: one thread of this process is told of
// it, copies the page, and takes the protection away.
#include "bench.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm-glue/pocket/pocket.h"
#include "vmm-glue/snapshot/snapshot.h"
#include "vmm-glue/uffd.h"
#include "vmm-glue/uffd_abi.h"

#define MEMORY	   (64ull << 20)
#define PAGES	   (MEMORY / VMM_PAGE_BYTES)
#define ROUNDS	   10
#define WRITES	   400
#define SLOW	   (64u << 10) /* bytes a second */
#define END_MS	   5000
#define REACH_US   30
#define SOME_STATE "device state"

/* One byte of each of some pages, from the end on, which the workers reach last. */
static void write_pages(uint8_t *ram, struct samples *us)
{
	for (unsigned i = 1; i <= WRITES; i++) {
		volatile uint8_t *page = ram + (PAGES - i * (PAGES / WRITES / 2)) * VMM_PAGE_BYTES;
		uint64_t start = bench_now_ns();

		*page = (uint8_t)i;
		samples_add(us, (double)(bench_now_ns() - start) / 1e3);
	}
}

static void on_done(void *ctx)
{
	eventfd_write(*(int *)ctx, 1);
}

static int ours(struct bench *b, struct vmm *vmm, struct samples *us, struct ft_err *err)
{
	int done = eventfd(0, EFD_CLOEXEC);
	char path[BENCH_PATH_MAX];
	struct snapshot_config config = {
		.path = path, .jobs = 1, .bytes_per_s = SLOW, .done = on_done, .ctx = &done};
	struct pollfd p = {.fd = done, .events = POLLIN};
	struct snapshot_progress progress;
	struct snapshot *s;
	int rc;

	snprintf(path, sizeof path, "%s/fault", b->dir);
	rc = snapshot_begin_image(&config, vmm, (const uint8_t *)SOME_STATE, sizeof SOME_STATE, &s,
				  err);
	if (!rc) {
		write_pages(vmm_image(vmm), us);
		snapshot_progress(s, &progress);
		snapshot_cancel(s, "measured");
		(void)poll(&p, 1, END_MS);
		(void)snapshot_end(s, &progress, NULL);
		if (progress.faults < WRITES)
			rc = ft_err_set(err, EIO, "fault: %llu of %d writes were waited for",
					(unsigned long long)progress.faults, WRITES);
	}
	close(done);
	return rc;
}

struct bare {
	int uffd, stop;
	uint8_t *ram;
};

static void *serve(void *ctx)
{
	static uint8_t copy[VMM_PAGE_BYTES];
	struct bare *bare = ctx;
	struct pollfd p[2] = {{.fd = bare->uffd, .events = POLLIN},
			      {.fd = bare->stop, .events = POLLIN}};

	for (;;) {
		uint64_t at;

		if (poll(p, 2, -1) < 0 || p[1].revents)
			return NULL;
		if (uffd_faults(bare->uffd, &at, 1) != 1)
			continue;
		memcpy(copy, (void *)(uintptr_t)at, sizeof copy);
		(void)uffd_release(bare->uffd, at, VMM_PAGE_BYTES);
	}
}

static int bare(uint8_t *ram, struct samples *us, struct ft_err *err)
{
	struct bare x = {.ram = ram, .stop = eventfd(0, EFD_CLOEXEC)};
	pthread_t thread;
	int rc;

	x.uffd = uffd_own(0, err);
	rc = x.uffd < 0 ? x.uffd
			: uffd_api(x.uffd,
				   UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
				   err);
	if (!rc)
		rc = uffd_register_wp(x.uffd, (uintptr_t)ram, MEMORY, err);
	if (!rc)
		rc = uffd_protect(x.uffd, (uintptr_t)ram, MEMORY, err);
	if (!rc && pthread_create(&thread, NULL, serve, &x))
		rc = ft_err_set(err, EAGAIN, "a thread");
	if (!rc) {
		write_pages(ram, us);
		uffd_unregister(x.uffd, (uintptr_t)ram, MEMORY);
		eventfd_write(x.stop, 1);
		pthread_join(thread, NULL);
	}
	if (x.uffd >= 0)
		close(x.uffd);
	close(x.stop);
	return rc;
}

int bench_fault(struct bench *b, struct ft_err *err)
{
	struct pocket_config config = {.name = "fault",
				       .uuid = "3f6f1c1e-8d3c-4f0e-9d44-0123456789ab",
				       .memory_bytes = MEMORY,
				       .program = POCKET_DIRTY};
	struct samples here = {0}, floor = {0};
	struct vmm *vmm = NULL;
	int rc = pocket_arm(&config, &vmm, err);

	if (!rc)
		memset(vmm_image(vmm), 1, MEMORY);
	for (unsigned i = 0; i < ROUNDS && !rc; i++) {
		rc = ours(b, vmm, &here, err);
		if (!rc)
			rc = bare(vmm_image(vmm), &floor, err);
	}
	if (!rc)
		bench_report_samples("snapshot-fault", "us", &here, &floor, BENCH_PLUS, REACH_US,
				     "a write to a page not saved yet; bare fault, copy, release");
	samples_free(&here);
	samples_free(&floor);
	vmm_free(vmm);
	return rc;
}
