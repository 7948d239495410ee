// SPDX-License-Identifier: Apache-2.0
// One worker. A page's bit is cleared before the page is read: who writes it meanwhile is found by
// the next scan, and it is read again.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "vmm-glue/snapshot/differing.h"
#include "vmm-glue/snapshot/increment_internal.h"
#include "vmm-glue/snapshot/ram_read.h"
#include "vmm-glue/snapshot/update.h"

#define NS_PER_S    1000000000ull
#define FEW_PAGES   512 /* a pause of about a millisecond */
#define ROUNDS_MAX  10
#define WORKER_NICE 5

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* The first error is the increment's. */
void increment_give_up_locked(struct increment *inc, const struct ft_err *err)
{
	if (!inc->failed) {
		inc->err = *err;
		inc->failed = true;
		if (inc->disks)
			disks_cancel(inc->disks, err);
	}
	pthread_cond_broadcast(&inc->change);
}

void increment_give_up(struct increment *inc, const struct ft_err *err)
{
	pthread_mutex_lock(&inc->lock);
	increment_give_up_locked(inc, err);
	pthread_mutex_unlock(&inc->lock);
}

static int give_up_for(struct increment *inc, int rc, const char *what)
{
	struct ft_err err = {0};

	ft_err_set(&err, -rc, "%s: %s", what, strerror(-rc));
	increment_give_up(inc, &err);
	return rc;
}

// ---- pages

/* A limited rate: waits its turn, unless the increment is given up. */
static void pay(struct increment *inc, uint64_t pages)
{
	uint64_t rate = inc->config.bytes_per_s, now = now_ns();
	struct timespec ts;

	if (!rate || !pages)
		return;
	if (inc->next_write_ns < now)
		inc->next_write_ns = now;
	inc->next_write_ns +=
		(uint64_t)((unsigned __int128)pages * VMM_PAGE_BYTES * NS_PER_S / rate);
	ts = (struct timespec){.tv_sec = (time_t)(inc->next_write_ns / NS_PER_S),
			       .tv_nsec = (long)(inc->next_write_ns % NS_PER_S)};
	pthread_mutex_lock(&inc->lock);
	while (!inc->failed && pthread_cond_timedwait(&inc->change, &inc->lock, &ts) != ETIMEDOUT)
		;
	pthread_mutex_unlock(&inc->lock);
}

/* Saves those of n pages that differ from the file's. */
static int take_run(struct increment *inc, uint64_t pfn, size_t n, const uint8_t *pages)
{
	struct differing d = {.to = &inc->journal, .than = &inc->source, .buffer = inc->buffer};
	int rc = differing_put(&d, pfn, n, pages);

	inc->written += d.put;
	return rc;
}

static int read_run(const struct increment *inc, uint64_t pfn, size_t n, uint8_t *to)
{
	int rc = ram_read(&inc->ram, pfn, n, to);

	if (rc == 1)
		memset(to, 0, n * VMM_PAGE_BYTES);
	return rc < 0 ? rc : 0;
}

/* The next pages that are pending and neighbours, at most `max`. */
static size_t next_run(const struct ft_bitmap *pending, uint64_t *pfn, size_t max)
{
	size_t n = 1;

	*pfn = ft_bitmap_next(pending, *pfn);
	if (*pfn == pending->bits)
		return 0;
	while (n < max && *pfn + n < pending->bits && ft_bitmap_test(pending, *pfn + n))
		n++;
	return n;
}

/* Once over all pages that are pending. */
static int pass(struct increment *inc, uint8_t *pages)
{
	int rc = 0;

	for (uint64_t pfn = 0, n; !rc && !inc->failed; pfn += n) {
		uint64_t written = inc->written;

		n = next_run(&inc->pending, &pfn, INCREMENT_RUN_PAGES);
		if (!n)
			break;
		ft_bitmap_clear_range(&inc->pending, pfn, n);
		rc = read_run(inc, pfn, n, pages);
		if (rc)
			return give_up_for(inc, rc, "the guest's RAM cannot be read");
		rc = take_run(inc, pfn, n, pages);
		if (rc)
			return give_up_for(inc, rc, inc->journal.path);
		inc->left = inc->pending.count;
		pay(inc, inc->written - written);
	}
	return inc->failed ? -ECANCELED : 0;
}

/* Until few pages are left, or they do not get fewer. */
static int rounds(struct increment *inc)
{
	uint8_t *pages =
		aligned_alloc(VMM_PAGE_BYTES, (size_t)INCREMENT_RUN_PAGES * VMM_PAGE_BYTES);
	struct ft_err err = {0};
	int rc = pages ? 0 : give_up_for(inc, -ENOMEM, "a buffer");

	for (unsigned i = 0; i < ROUNDS_MAX && !rc; i++) {
		uint64_t before = inc->pending.count;

		if (i && before <= FEW_PAGES)
			break;
		rc = pass(inc, pages);
		if (!rc)
			rc = since_more(inc->since, &inc->pending, &err);
		if (rc && err.code)
			increment_give_up(inc, &err);
		inc->left = inc->pending.count;
		if (inc->pending.count <= INCREMENT_PAUSE_PAGES && inc->pending.count > before / 2)
			break;
	}
	free(pages);
	return rc;
}

static void want(struct increment *inc, enum increment_wants what)
{
	pthread_mutex_lock(&inc->lock);
	inc->wants = what;
	pthread_mutex_unlock(&inc->lock);
	inc->config.news(inc->config.ctx);
}

/* Hands over to the VM's thread, and takes back. */
static int wait_moment(struct increment *inc)
{
	want(inc, INCREMENT_MOMENT);
	pthread_mutex_lock(&inc->lock);
	while (inc->wants == INCREMENT_MOMENT && !inc->failed)
		pthread_cond_wait(&inc->change, &inc->lock);
	pthread_mutex_unlock(&inc->lock);
	return inc->failed ? -ECANCELED : 0;
}

/* What was copied in the pause, in the order of its numbers. */
static int take_staged(struct increment *inc)
{
	const uint8_t *pages = inc->staging;
	int rc = 0;

	for (uint64_t pfn = 0, n; !rc; pfn += n, pages += n * VMM_PAGE_BYTES) {
		n = next_run(&inc->pending, &pfn, INCREMENT_RUN_PAGES);
		if (!n)
			break;
		rc = take_run(inc, pfn, n, pages);
	}
	inc->left = 0;
	return rc ? give_up_for(inc, rc, inc->journal.path) : 0;
}

// ---- the end

/* Some pages of what the file will have: those from pfn on that come from one place. -errno. */
static int read_new(struct increment *inc, uint64_t pfn, size_t *n, uint8_t *to)
{
	uint64_t left = inc->pending.bits - pfn;
	size_t run = 1, max = left < INCREMENT_RUN_PAGES ? (size_t)left : INCREMENT_RUN_PAGES;
	int rc;

	if (changes_has(&inc->journal, pfn)) {
		rc = changes_get(&inc->journal, pfn, to);
	} else {
		while (run < max && !changes_has(&inc->journal, pfn + run))
			run++;
		run = source_run(&inc->source, pfn, run);
		rc = source_has(&inc->source, pfn) ? source_read(&inc->source, pfn, run, to) : 0;
		if (!rc && source_has(&inc->source, pfn))
			rc = 1;
	}
	if (rc == 0)
		memset(to, 0, run * VMM_PAGE_BYTES);
	*n = run;
	return rc < 0 ? rc : 0;
}

static int verify(struct increment *inc)
{
	uint64_t got = 0;
	int rc = 0;

	for (uint64_t pfn = 0; pfn < inc->pending.bits && !rc;) {
		size_t n;

		rc = read_new(inc, pfn, &n, inc->buffer);
		if (!rc)
			got += vmm_pages_digest(inc->buffer, pfn, n);
		pfn += n;
	}
	if (rc)
		return give_up_for(inc, rc, "verify");
	if (got == inc->digest)
		return 0;
	return give_up_for(inc, -EBADMSG, "verify: the file would have another digest than RAM");
}

/* What was snapshotted anew under this name meanwhile is not to be touched. */
static int check_named(struct increment *inc, struct ft_err *err)
{
	struct stat st, named;

	if (!fstat(inc->fd, &st) && !stat(inc->path, &named) && st.st_ino == named.st_ino &&
	    st.st_dev == named.st_dev)
		return 0;
	return ft_err_set(err, ESTALE, "%s: was replaced meanwhile", inc->path);
}

/* From here on it is too late for a cancel. */
static bool begin_applying(struct increment *inc)
{
	pthread_mutex_lock(&inc->lock);
	inc->applying = !inc->failed;
	pthread_mutex_unlock(&inc->lock);
	return inc->applying;
}

static int apply(struct increment *inc, struct ft_err *err)
{
	struct update_disks *disks = NULL;
	struct changes changes;
	int rc = check_named(inc, err);

	if (!rc)
		rc = changes_open(inc->journal.path, &changes, err);
	if (rc)
		return rc;
	rc = update_disks_open(inc->path, &changes, inc->journal.path, &disks, err);
	if (!rc)
		rc = update_apply(inc->fd, inc->path, &changes, disks, err);
	update_disks_close(disks);
	changes_end(&changes);
	return rc;
}

/* What it was compared with may change now. */
static int add(struct increment *inc, struct ft_err *err)
{
	source_close(&inc->source);
	return inc->added(inc->config.ctx, err);
}

static void finish(struct increment *inc)
{
	struct ft_err err = {0};
	int rc = inc->disks ? disks_finish(inc->disks, &err) : 0;

	/* Those of RAM last: they say that the others are there. */
	if (!rc)
		rc = changes_seal(&inc->journal, inc->tail, inc->tail_len, &err);
	if (!rc && begin_applying(inc))
		rc = inc->is_link ? add(inc, &err) : apply(inc, &err);
	if (rc)
		increment_give_up(inc, &err);
	else if (inc->disks && inc->applying)
		disks_settle(inc->disks);
}

/* With all signals blocked. */
void *increment_work(void *ctx)
{
	struct increment *inc = ctx;
	bool wanted;

	(void)setpriority(PRIO_PROCESS, (id_t)gettid(), WORKER_NICE);
	if (!rounds(inc) && !wait_moment(inc) && !take_staged(inc) &&
	    (!inc->config.verify || !verify(inc)))
		finish(inc);
	/* A file that is changed in part needs its journal. */
	wanted = inc->is_link ? inc->applying : update_is_begun(inc->fd);
	changes_close(&inc->journal, wanted);
	if (inc->disks && wanted)
		disks_keep(inc->disks);
	want(inc, INCREMENT_END);
	return NULL;
}
