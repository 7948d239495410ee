// SPDX-License-Identifier: Apache-2.0
// Both threads place pages; the kernel takes the first and leaves one that is there as it is.
#include "vmm-glue/postcopy/page_client_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "ft/codec.h"
#include "ft/msg.h"
#include "vmm-glue/postcopy/thread.h"
#include "vmm-glue/uffd.h"

void page_note_wait_locked(struct page_client *c, uint64_t pfn)
{
	if (c->waiting_n < WAITING_MAX) {
		c->waiting[c->waiting_n].pfn = pfn;
		c->waiting[c->waiting_n++].since_ns = page_client_now_ns();
	}
	c->stats.pages.faults++;
}

static void note_placed_locked(struct page_client *c, uint64_t pfn, uint64_t at_ns)
{
	for (unsigned i = 0; i < c->waiting_n; i++) {
		uint64_t us;
		unsigned bucket = 0;

		if (c->waiting[i].pfn != pfn)
			continue;
		us = (at_ns - c->waiting[i].since_ns) / 1000;
		c->waiting[i] = c->waiting[--c->waiting_n];
		while (bucket + 1 < PAGE_CLIENT_BUCKETS && us >> (bucket + 1))
			bucket++;
		c->stats.histogram[bucket]++;
		ft_series_add(&c->fault_us, us);
		return;
	}
}

/* Whom it wakes may run in our place, and what is written down then would be its time, too. */
static int place_urgent(struct page_client *c, uint64_t to, const uint8_t *from, size_t bytes,
			uint64_t *at_ns)
{
	int rc = uffd_fill_quietly(c->uffd, to, from, bytes);

	*at_ns = page_client_now_ns();
	uffd_wake(c->uffd, to, bytes);
	return rc;
}

static int place(struct page_client *c, const struct page_run *run)
{
	uint64_t to = c->ram.address + run->pfn * VMM_PAGE_BYTES, at_ns;
	const uint8_t *from = run->zero ? NULL : run->bytes;
	size_t bytes = run->n * VMM_PAGE_BYTES;
	int rc;

	if (run->urgent) {
		rc = place_urgent(c, to, from, bytes, &at_ns);
	} else {
		rc = uffd_fill(c->uffd, to, from, bytes);
		at_ns = page_client_now_ns();
	}
	pthread_mutex_lock(&c->lock);
	for (size_t i = 0; i < run->n && !rc; i++) {
		ft_taker_placed(&c->taker, run->pfn + i);
		note_placed_locked(c, run->pfn + i, at_ns);
	}
	pthread_mutex_unlock(&c->lock);
	return rc;
}

static int filling_failed(struct page_client *c, int rc, struct ft_err *err)
{
	ft_err_set(err, -rc, "RAM cannot be filled: %s", strerror(-rc));
	page_client_set_state(c, PAGES_FAILED, err);
	return rc;
}

static int run_end(struct page_client *c, struct page_run *run, struct ft_err *err)
{
	int rc = run->n ? place(c, run) : 0;

	run->n = 0;
	return rc ? filling_failed(c, rc, err) : 0;
}

/* The small page is written where the guest cannot see it, and under the lock: from the moment it
 * can, the page is the guest's. */
static int take_into_huge(struct page_client *c, const struct ft_page_record *rec,
			  const uint8_t *page, struct ft_err *err)
{
	bool whole = false;
	uint8_t *to = NULL;
	int rc = 0;

	pthread_mutex_lock(&c->lock);
	if (ft_taker_wants(&c->taker, rec->pfn)) {
		to = page_huge_at(c->huge, rec->pfn);
		rc = to ? 0 : -ENOMEM;
	}
	if (to) {
		memcpy(to, page, VMM_PAGE_BYTES);
		ft_taker_placed(&c->taker, rec->pfn);
		whole = page_huge_is_whole(c->huge, &c->taker.missing, rec->pfn);
	}
	pthread_mutex_unlock(&c->lock);
	if (whole) {
		rc = page_huge_show(c->huge, c->uffd, rec->pfn);
		pthread_mutex_lock(&c->lock);
		note_placed_locked(c, page_huge_first(c->huge, rec->pfn), page_client_now_ns());
		pthread_mutex_unlock(&c->lock);
	}
	return rc ? filling_failed(c, rc, err) : 0;
}

static int take_record(struct page_client *c, struct page_run *run,
		       const struct ft_page_record *rec, struct ft_err *err)
{
	bool zero = rec->kind == FT_PAGE_ZERO, wanted;
	int rc = 0;

	if (rec->kind == FT_PAGE_DELTA)
		return ft_err_set(err, EPROTO, "PAGES: a delta onto nothing");
	pthread_mutex_lock(&c->lock);
	wanted = ft_taker_wants(&c->taker, rec->pfn);
	pthread_mutex_unlock(&c->lock);
	if (!wanted)
		return 0;
	if (c->huge) {
		memset(run->bytes, 0, VMM_PAGE_BYTES);
		rc = ft_page_record_apply(rec, run->bytes, err);
		return rc ? rc : take_into_huge(c, rec, run->bytes, err);
	}
	if (run->n == RUN_PAGES || (run->n && (rec->pfn != run->pfn + run->n || zero != run->zero)))
		rc = run_end(c, run, err);
	if (rc)
		return rc;
	if (!run->n)
		run->pfn = rec->pfn;
	run->zero = zero;
	if (!zero)
		rc = ft_page_record_apply(rec, run->bytes + run->n * VMM_PAGE_BYTES, err);
	run->n++;
	return rc;
}

int page_take(struct page_client *c, struct page_run *run, const struct ft_msg *msg,
	      struct ft_err *err)
{
	size_t at = 0;
	int rc = 0;

	if (msg->type == FT_MSG_BITMAP && msg->generation == c->generation && c->cargo)
		return c->cargo->ops->take(c->cargo, msg, err);
	if (msg->type != FT_MSG_PAGES || msg->generation != c->generation)
		return ft_err_set(err, EPROTO,
				  "%s of generation %llu: not on a connection for pages",
				  ft_msg_name(msg->type), (unsigned long long)msg->generation);
	while (at < msg->payload_len && !rc) {
		struct ft_page_record rec;
		int n = ft_page_record_parse(msg->payload + at, msg->payload_len - at,
					     c->ram.bytes / VMM_PAGE_BYTES, &rec, err);

		if (n <= 0)
			return n < 0 ? n
				     : ft_err_set(err, EPROTO,
						  "PAGES: a record is cut by the end of its frame");
		rc = take_record(c, run, &rec, err);
		at += (size_t)n;
	}
	if (!rc)
		rc = run_end(c, run, err);
	pthread_mutex_lock(&c->lock);
	c->stats.pages.bytes += msg->payload_len;
	pthread_mutex_unlock(&c->lock);
	return rc;
}

/* ---- the background ---- */

void *page_fill_main(void *ctx)
{
	struct page_client *c = ctx;
	struct page_run *run = malloc(sizeof *run);
	struct ft_err err = {0};
	struct ft_msg msg;
	int rc = 0;

	thread_in_background();
	if (run) {
		run->n = 0;
		run->urgent = false;
	} else {
		ft_err_set(&err, ENOMEM, "pages: out of memory");
	}
	while (run && rc == 0 && c->bulk->ops->receive(c->bulk, &msg, true, &err) > 0) {
		rc = page_take(c, run, &msg, &err);
		if (page_client_pages_are_here(c))
			eventfd_write(c->wake_fd, 1);
	}
	free(run);
	pthread_mutex_lock(&c->lock);
	c->lost = true;
	if (!c->why.code)
		c->why = err;
	pthread_mutex_unlock(&c->lock);
	eventfd_write(c->wake_fd, 1);
	return NULL;
}
