// SPDX-License-Identifier: Apache-2.0
// Who saves which page: the fault thread (frozen.c) and the workers. One lock, one condition; a
// page's way:
//
//	claimed by the fault thread: copied to a spare of the pool, queued, released; a worker
//	writes it and gives the spare back. Its neighbours come along, for who writes one page
//	often writes the next, and each fault is a wait
//	claimed by a worker: copied with its neighbours, released, written
//
// Only who claimed a page releases it: the other may not have copied it yet.
//
// So the guest never waits for a write of ours unless the pool is full.
#include "vmm-glue/snapshot/snapshot_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ft/page.h"
#include "vmm-glue/snapshot/urgency.h"

#define NS_PER_S    1000000000ull
#define CHUNK_BYTES (CLAIMS_WORD_PAGES * (size_t)VMM_PAGE_BYTES)

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* False: the time is over. */
static bool wait_until_locked(struct snapshot *s, uint64_t when_ns)
{
	struct timespec ts = {.tv_sec = (time_t)(when_ns / NS_PER_S),
			      .tv_nsec = (long)(when_ns % NS_PER_S)};

	return pthread_cond_timedwait(&s->change, &s->lock, &ts) != ETIMEDOUT;
}

static void give_up_for(struct snapshot *s, int code, const char *what)
{
	struct ft_err err = {0};

	ft_err_set(&err, code, "%s: %s", what, strerror(code));
	snapshot_fail(s, &err);
}

static void count_done(struct snapshot *s, unsigned pages)
{
	if (atomic_fetch_add(&s->done, pages) + pages != mapped_ram_pages(s->block))
		return;
	pthread_mutex_lock(&s->lock);
	pthread_cond_broadcast(&s->change);
	pthread_cond_broadcast(&s->ended);
	pthread_mutex_unlock(&s->lock);
}

static uint64_t not_zero(const uint8_t *pages, uint64_t mine)
{
	uint64_t left = mine;

	for (uint64_t todo = mine; todo; todo &= todo - 1) {
		unsigned i = (unsigned)__builtin_ctzll(todo);

		if (page_is_zero(pages + (size_t)i * VMM_PAGE_BYTES))
			left &= ~(UINT64_C(1) << i);
	}
	return left;
}

/* Not those between them: somebody else has claimed them, and perhaps not copied them yet. */
static void release_runs(struct snapshot *s, uint64_t pfn, uint64_t mine)
{
	for (unsigned i = 0, n; (n = claims_run(mine, &i)); i += n)
		(void)frozen_release(s->frozen, pfn + i, n);
}

// ---- the fault thread

static uint8_t *wait_for_spare(struct snapshot *s)
{
	uint64_t until = now_ns() + s->config.stall_max_ms * 1000000ull;
	uint8_t *spare;
	bool in_time = true;

	pthread_mutex_lock(&s->lock);
	while (!(spare = pool_take_spare_locked(&s->pool)) && !s->failed && in_time)
		in_time = wait_until_locked(s, until);
	pthread_mutex_unlock(&s->lock);
	if (!spare && !s->failed) {
		struct ft_err err = {0};

		ft_err_set(&err, ETIMEDOUT,
			   "the storage takes longer than %u ms to write what the guest changes: "
			   "given up, so that the guest need not wait",
			   s->config.stall_max_ms);
		snapshot_fail(s, &err);
	}
	return spare;
}

/* Neighbours must not take the room of pages that are waited for, nor what the operator allows for
 * those in the file's order. */
static unsigned may_take(struct snapshot *s)
{
	uint64_t next = pace_next_ns(&s->pace);
	bool room;

	pthread_mutex_lock(&s->lock);
	room = s->pool.spares >= s->pool.slots / 2 && s->pool.spares >= SNAPSHOT_NEAR_PAGES;
	pthread_mutex_unlock(&s->lock);
	return room && (!next || next <= now_ns()) ? SNAPSHOT_NEAR_PAGES : 1;
}

/* False: it is given up. */
static bool pool_copy(struct snapshot *s, uint64_t pfn, const uint8_t *bytes)
{
	uint8_t *spare = wait_for_spare(s);

	if (!spare)
		return false;
	memcpy(spare, bytes, VMM_PAGE_BYTES);
	pthread_mutex_lock(&s->lock);
	pool_put_locked(&s->pool, pfn, spare);
	pthread_cond_signal(&s->change);
	pthread_mutex_unlock(&s->lock);
	return true;
}

/* The pages of `mine`, from page `first` on. */
static void save_claimed(struct snapshot *s, uint64_t first, uint64_t mine)
{
	unsigned from = (unsigned)__builtin_ctzll(mine),
		 n = CLAIMS_WORD_PAGES - (unsigned)__builtin_clzll(mine) - from;
	uint64_t full;
	int rc = frozen_read(s->frozen, first + from, n, s->near);

	if (rc < 0) {
		give_up_for(s, -rc, "the guest's RAM cannot be read");
		return;
	}
	full = rc ? 0 : not_zero(s->near, mine >> from) << from;
	for (uint64_t todo = full; todo; todo &= todo - 1) {
		unsigned i = (unsigned)__builtin_ctzll(todo);

		if (!pool_copy(s, first + i, s->near + (size_t)(i - from) * VMM_PAGE_BYTES))
			return;
	}
	if (mine != full)
		count_done(s, (unsigned)__builtin_popcountll(mine & ~full));
}

void snapshot_on_fault(void *ctx, uint64_t pfn)
{
	uint64_t first = pfn / CLAIMS_WORD_PAGES * CLAIMS_WORD_PAGES, mine = 0;
	struct snapshot *s = ctx;

	if (!s->failed) {
		mine = claims_page(&s->claims, pfn, may_take(s));
		if (!mine)
			return;
		save_claimed(s, first, mine);
	}
	if (s->failed)
		(void)frozen_release(s->frozen, pfn, 1);
	else
		release_runs(s, first, mine);
}

// ---- workers

static int write_pages(struct snapshot *s, uint64_t pfn, size_t n, const uint8_t *bytes)
{
	int rc = out_file_write(&s->file, bytes, n * VMM_PAGE_BYTES,
				s->block->pages_offset + pfn * VMM_PAGE_BYTES, true);

	if (rc)
		give_up_for(s, -rc, s->file.path);
	else
		s->written += n;
	return rc;
}

static void save_pooled(struct snapshot *s, const struct pool_page *page)
{
	int rc;

	atomic_fetch_or(&s->bitmap[page->pfn / 64], UINT64_C(1) << (page->pfn % 64));
	rc = write_pages(s, page->pfn, 1, page->bytes);
	pthread_mutex_lock(&s->lock);
	pool_give_back_locked(&s->pool, page->bytes);
	pthread_cond_broadcast(&s->change);
	pthread_mutex_unlock(&s->lock);
	pace_pay(&s->pace, VMM_PAGE_BYTES);
	if (!rc)
		count_done(s, 1);
}

/* Neighbours in one write. */
static int write_runs(struct snapshot *s, uint64_t pfn, uint64_t pages, const uint8_t *bytes)
{
	int rc = 0;

	for (unsigned i = 0, n; !rc && (n = claims_run(pages, &i)); i += n)
		rc = write_pages(s, pfn + i, n, bytes + (size_t)i * VMM_PAGE_BYTES);
	return rc;
}

/* One word of the bitmap. False: there are no more. */
static bool save_chunk(struct snapshot *s, uint8_t *buffer)
{
	uint64_t word, mine, full, pfn, left;
	size_t n;
	int rc = 1;

	if (!claims_next(&s->claims, &word, &mine))
		return false;
	pfn = word * CLAIMS_WORD_PAGES;
	left = mapped_ram_pages(s->block) - pfn;
	n = left < CLAIMS_WORD_PAGES ? (size_t)left : CLAIMS_WORD_PAGES;
	if (mine)
		rc = frozen_read(s->frozen, pfn, n, buffer);
	if (rc >= 0)
		release_runs(s, pfn, mine);
	if (rc < 0) {
		give_up_for(s, -rc, "the guest's RAM cannot be read");
		return true;
	}
	full = rc ? 0 : not_zero(buffer, mine);
	if (!full || !write_runs(s, pfn, full, buffer))
		count_done(s, (unsigned)__builtin_popcountll(mine));
	atomic_fetch_or(&s->bitmap[word], full);
	pace_pay(&s->pace, (uint64_t)__builtin_popcountll(full) * VMM_PAGE_BYTES);
	return true;
}

enum work { WORK_NONE, WORK_POOLED, WORK_CHUNK };

/* Waits for something to do. What the guest waits for comes first. */
static enum work next_work(struct snapshot *s, struct pool_page *page)
{
	enum work work = WORK_NONE;

	pthread_mutex_lock(&s->lock);
	while (!s->failed && s->done < mapped_ram_pages(s->block)) {
		uint64_t next = pace_next_ns(&s->pace), now = next ? now_ns() : 0;
		bool may_scan = claims_left(&s->claims);

		if (pool_get_locked(&s->pool, page))
			work = WORK_POOLED;
		else if (may_scan && now >= next)
			work = WORK_CHUNK;
		if (work != WORK_NONE)
			break;
		if (may_scan)
			wait_until_locked(s, next);
		else
			pthread_cond_wait(&s->change, &s->lock);
	}
	pthread_mutex_unlock(&s->lock);
	return work;
}

void *snapshot_worker(void *ctx)
{
	struct snapshot *s = ctx;
	struct pool_page page;
	uint8_t *buffer = aligned_alloc(VMM_PAGE_BYTES, CHUNK_BYTES);
	enum work work;

	urgency_background();
	if (!buffer)
		give_up_for(s, ENOMEM, "a worker's buffer");
	while ((work = next_work(s, &page)) != WORK_NONE) {
		if (work == WORK_POOLED)
			save_pooled(s, &page);
		else
			(void)save_chunk(s, buffer);
	}
	free(buffer);
	return NULL;
}
