// SPDX-License-Identifier: Apache-2.0
// Two threads: one waits for faults, and notes in which order they come; one brings what faulted
// the last time, in that order, and then goes through the file. They may bring the same page; the
// kernel takes the first.
#include "vmm-glue/snapshot/lazy.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "vmm-glue/inject.h"
#include "vmm-glue/snapshot/working_set.h"
#include "vmm-glue/uffd.h"

#define FAULTS_AT_ONCE	32
#define AROUND_PAGES	WORKING_SET_PAGES
#define PIECE_PAGES	64
#define UNREGISTER_STEP (64ull << 20)

struct lazy {
	/* set at begin */
	struct source source;
	struct vmm_ram ram;
	int uffd, stop_fd;
	bool serving, filling;
	pthread_t fault_thread, fill_thread;
	void (*done)(void *ctx);
	void *ctx;
	/* any thread */
	atomic_bool stop;
	atomic_int failed; /* -errno */
	_Atomic uint64_t pages, pages_done, faults, fault_ns_max;
	/* what was touched first the last time: the filler's. What was touched now: the server's */
	struct working_set ahead, touched;
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void fail(struct lazy *l, int code)
{
	int none = 0;

	atomic_compare_exchange_strong(&l->failed, &none, code);
	l->stop = true;
}

/* Pages of the file, all or none of them in it. */
static int fill_run(struct lazy *l, uint64_t pfn, size_t n, uint8_t *buffer)
{
	int rc = source_read(&l->source, pfn, n, buffer);

	return rc ? rc
		  : uffd_fill(l->uffd, l->ram.address + pfn * VMM_PAGE_BYTES, buffer,
			      n * VMM_PAGE_BYTES);
}

/* ---- faults ---- */

static int bring(struct lazy *l, uint64_t pfn, uint8_t *buffer)
{
	uint64_t first = pfn / AROUND_PAGES * AROUND_PAGES, pages = mapped_ram_pages(l->source.ram);
	size_t back = 0, n = 1;

	if (!source_has(&l->source, pfn))
		return uffd_fill(l->uffd, l->ram.address + pfn * VMM_PAGE_BYTES, NULL,
				 VMM_PAGE_BYTES);
	while (pfn - back > first && source_has(&l->source, pfn - back - 1))
		back++;
	while (pfn + n < first + AROUND_PAGES && pfn + n < pages && source_has(&l->source, pfn + n))
		n++;
	return fill_run(l, pfn - back, back + n, buffer);
}

static void serve(struct lazy *l, uint64_t address, uint8_t *buffer)
{
	uint64_t start = now_ns(), pfn = (address - l->ram.address) / VMM_PAGE_BYTES, took;
	int rc = bring(l, pfn, buffer);

	/* What is zeroes needs no reading. */
	if (source_has(&l->source, pfn))
		(void)working_set_add(&l->touched, pfn);

	if (rc)
		fail(l, rc);
	took = now_ns() - start;
	l->faults++;
	if (took > l->fault_ns_max)
		l->fault_ns_max = took;
}

static void *serve_faults(void *ctx)
{
	struct lazy *l = ctx;
	uint8_t buffer[AROUND_PAGES * VMM_PAGE_BYTES];
	uint64_t faults[FAULTS_AT_ONCE];

	for (;;) {
		struct pollfd p[2] = {{.fd = l->uffd, .events = POLLIN},
				      {.fd = l->stop_fd, .events = POLLIN}};
		int n;

		if (poll(p, 2, -1) < 0)
			continue;
		if (p[1].revents)
			return NULL;
		n = uffd_faults(l->uffd, faults, FAULTS_AT_ONCE);
		for (int i = 0; i < n && !l->failed; i++)
			serve(l, faults[i], buffer);
		if (n < 0)
			fail(l, n);
	}
}

/* ---- the rest ---- */

static int fill_ahead(struct lazy *l, uint8_t *buffer)
{
	uint64_t pages = mapped_ram_pages(l->source.ram);
	int rc = 0;

	for (uint32_t i = 0; i < l->ahead.n && !rc && !l->stop; i++) {
		uint64_t first = l->ahead.pfns[i], end = first + AROUND_PAGES;

		end = end < pages ? end : pages;
		for (uint64_t pfn = first, n; pfn < end && !rc; pfn += n) {
			n = source_run(&l->source, pfn, end - pfn);
			if (source_has(&l->source, pfn))
				rc = fill_run(l, pfn, n, buffer);
		}
	}
	return rc;
}

static int fill_all(struct lazy *l, uint8_t *buffer)
{
	uint64_t pages = mapped_ram_pages(l->source.ram);
	int rc = 0;

	for (uint64_t pfn = 0, n; pfn < pages && !rc && !l->stop; pfn += n) {
		n = source_run(&l->source, pfn,
			       pages - pfn < PIECE_PAGES ? pages - pfn : PIECE_PAGES);
		if (!source_has(&l->source, pfn))
			continue;
		rc = fill_run(l, pfn, n, buffer);
		l->pages_done += n;
	}
	return rc;
}

static void *fill(void *ctx)
{
	struct lazy *l = ctx;
	uint8_t *buffer = malloc(PIECE_PAGES * VMM_PAGE_BYTES);
	int rc = buffer ? fill_ahead(l, buffer) : -ENOMEM;

	if (!rc)
		rc = fill_all(l, buffer);
	if (rc)
		fail(l, rc);
	/* What is missing now is zeroes. */
	for (uint64_t at = 0; !l->stop && at < l->ram.bytes; at += UNREGISTER_STEP)
		uffd_unregister(l->uffd, l->ram.address + at,
				l->ram.bytes - at < UNREGISTER_STEP ? l->ram.bytes - at
								    : UNREGISTER_STEP);
	free(buffer);
	l->done(l->ctx);
	return NULL;
}

/* ---- the owner ---- */

static int take_uffd(struct lazy *l, struct ft_err *err)
{
	int rc;

	if (!l->ram.pid) {
		l->uffd = uffd_own(0, err);
		rc = l->uffd < 0 ? l->uffd : 0;
	} else {
		rc = inject_uffd(l->ram.pid, l->ram.pidfd, 0, true, &l->uffd, NULL, err);
	}
	if (!rc)
		rc = uffd_api(l->uffd, 0, err);
	return rc ? rc : uffd_register_missing(l->uffd, l->ram.address, l->ram.bytes, err);
}

static int start_threads(struct lazy *l, struct ft_err *err)
{
	sigset_t all, before;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&l->fault_thread, NULL, serve_faults, l);
	l->serving = !rc;
	if (!rc)
		rc = pthread_create(&l->fill_thread, NULL, fill, l);
	l->filling = !rc;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return rc ? ft_err_set(err, rc, "a thread: %s", strerror(rc)) : 0;
}

/* The next restore gets what this one waited for as well. Where that cannot be written it has to
 * wait again. */
static void remember(struct lazy *l)
{
	const struct working_set *ws = &l->ahead;

	if (l->source.layers || l->touched.n <= l->ahead.n / 8)
		return;
	/* A full one is old. */
	if (l->touched.n > WORKING_SET_MAX - l->ahead.n)
		ws = &l->touched;
	else
		for (uint32_t i = 0; i < l->touched.n; i++)
			(void)working_set_add(&l->ahead, l->touched.pfns[i]);
	(void)working_set_save(ws, l->source.path, NULL);
}

static void stop_threads(struct lazy *l)
{
	if (l->filling)
		pthread_join(l->fill_thread, NULL);
	if (l->serving) {
		eventfd_write(l->stop_fd, 1);
		pthread_join(l->fault_thread, NULL);
	}
	l->filling = l->serving = false;
}

static void lazy_free(struct lazy *l)
{
	stop_threads(l);
	working_set_free(&l->ahead);
	working_set_free(&l->touched);
	source_close(&l->source);
	if (l->uffd >= 0)
		close(l->uffd);
	if (l->stop_fd >= 0)
		close(l->stop_fd);
	free(l);
}

static int recall(struct lazy *l, struct ft_err *err)
{
	uint64_t pages = mapped_ram_pages(l->source.ram);

	if (working_set_init(&l->ahead, pages) || working_set_init(&l->touched, pages))
		return ft_err_set(err, ENOMEM, "out of memory");
	/* Of a file: a history's layers change. */
	if (!l->source.layers)
		(void)working_set_load(&l->ahead, l->source.path, NULL);
	return 0;
}

int lazy_begin(struct source *source, const struct vmm_ram *ram, void (*done)(void *ctx), void *ctx,
	       struct lazy **out, struct ft_err *err)
{
	struct lazy *l = calloc(1, sizeof *l);
	int rc;

	assert(source->ram->bytes == ram->bytes);
	if (!l)
		return ft_err_set(err, ENOMEM, "lazy restore: out of memory");
	l->source = *source;
	l->source.ram = l->source.layout.blocks + (source->ram - source->layout.blocks);
	l->ram = *ram;
	l->uffd = -1;
	l->done = done;
	l->ctx = ctx;
	for (uint64_t word = 0; word < mapped_ram_words(source->ram); word++)
		l->pages += (unsigned)__builtin_popcountll(source->bitmap[word]);
	l->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = l->stop_fd < 0 ? ft_err_set(err, errno, "eventfd: %s", strerror(errno)) : 0;
	if (!rc)
		rc = recall(l, err);
	if (!rc)
		rc = take_uffd(l, err);
	if (!rc)
		rc = start_threads(l, err);
	if (!rc) {
		source->fd = -1;
		source->bitmap = NULL;
		source->layers = NULL;
		*out = l;
		return 0;
	}
	/* Still the caller's. */
	l->source.fd = -1;
	l->source.bitmap = NULL;
	l->source.layers = NULL;
	lazy_free(l);
	return ft_err_context(err, "lazy restore");
}

void lazy_stats(const struct lazy *l, struct lazy_stats *stats)
{
	*stats = (struct lazy_stats){.pages = l->pages,
				     .pages_done = l->pages_done,
				     .ahead = l->ahead.n,
				     .faults = l->faults,
				     .fault_us_max = l->fault_ns_max / 1000};
}

void lazy_cancel(struct lazy *l)
{
	fail(l, -ECANCELED);
}

int lazy_end(struct lazy *l, struct ft_err *err)
{
	char path[sizeof l->source.path];
	int rc;

	stop_threads(l);
	rc = l->failed;
	if (!rc)
		remember(l);
	memcpy(path, l->source.path, sizeof path);
	lazy_free(l);
	return rc ? ft_err_set(err, -rc, "snapshot %.200s: RAM cannot be restored: %s", path,
			       strerror(-rc))
		  : 0;
}
