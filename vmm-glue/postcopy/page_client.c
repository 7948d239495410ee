// SPDX-License-Identifier: Apache-2.0
// The owner's calls; the threads are in page_faults.c and page_take.c.
#include "vmm-glue/postcopy/page_client_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "vmm-glue/inject.h"
#include "vmm-glue/postcopy/thread.h"
#include "vmm-glue/uffd.h"

/* ---- for the threads ---- */

uint64_t page_client_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void page_client_set_state(struct page_client *c, enum page_state state, const struct ft_err *why)
{
	bool news;

	pthread_mutex_lock(&c->lock);
	news = !c->leaving && c->state != state && c->state != PAGES_FAILED &&
	       c->state != PAGES_DONE;
	if (news) {
		c->state = state;
		if (why)
			c->why = *why;
	}
	pthread_mutex_unlock(&c->lock);
	if (news)
		c->tell(c->ctx);
}

bool page_client_pages_are_here(struct page_client *c)
{
	bool here;

	pthread_mutex_lock(&c->lock);
	here = c->begun && !c->taker.missing.count;
	pthread_mutex_unlock(&c->lock);
	return here;
}

bool page_client_is_all(struct page_client *c)
{
	return page_client_pages_are_here(c) && (!c->cargo || c->cargo->ops->all(c->cargo));
}

/* ---- the owner ---- */

static int take_uffd(struct page_client *c, struct ft_err *err)
{
	int rc;

	if (!c->ram.pid) {
		c->uffd = uffd_own(0, err);
		rc = c->uffd < 0 ? c->uffd : 0;
	} else {
		rc = inject_uffd(c->ram.pid, c->ram.pidfd, 0, true, &c->uffd, NULL, err);
	}
	return rc ? rc : uffd_api(c->uffd, c->huge ? UFFD_FEATURE_MINOR_HUGETLBFS : 0, err);
}

int page_client_new(const struct vmm_ram *ram, uint64_t generation, void (*tell)(void *ctx),
		    void *ctx, struct page_client **out, struct ft_err *err)
{
	struct page_client *c;
	int rc;

	if (ram->fd < 0)
		return ft_err_set(err, ENOTSUP,
				  "postcopy: the guest's RAM is not in a file of ours");
	c = calloc(1, sizeof *c);
	if (!c)
		return ft_err_set(err, ENOMEM, "pages: out of memory");
	pthread_mutex_init(&c->lock, NULL);
	c->ram = *ram;
	c->generation = generation;
	c->tell = tell;
	c->ctx = ctx;
	c->uffd = -1;
	c->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = c->wake_fd < 0 ? ft_err_set(err, errno, "eventfd: %s", strerror(errno))
			    : page_huge_new(ram, &c->huge, err);
	if (!rc)
		rc = take_uffd(c, err);
	if (rc) {
		page_client_free(c);
		return ft_err_context(err, "postcopy");
	}
	*out = c;
	return 0;
}

static void join_fill(struct page_client *c)
{
	if (!c->fill_started)
		return;
	c->bulk->ops->cut(c->bulk);
	pthread_join(c->fill_thread, NULL);
	c->fill_started = false;
}

static void close_wires(struct page_client *c)
{
	join_fill(c);
	if (c->urgent)
		c->urgent->ops->close(c->urgent);
	if (c->bulk)
		c->bulk->ops->close(c->bulk);
	c->urgent = c->bulk = NULL;
}

static int start_fill(struct page_client *c, struct ft_err *err)
{
	int rc = thread_start(&c->fill_thread, page_fill_main, c);

	c->fill_started = !rc;
	return rc ? ft_err_set(err, -rc, "postcopy: a thread: %s", strerror(-rc)) : 0;
}

int page_client_connect(struct page_client *c, struct ft_wire *urgent, struct ft_wire *bulk,
			struct ft_err *err)
{
	int rc = 0;

	/* The fault thread has let go of a connection only after it said so. */
	assert(!c->begun || c->state == PAGES_CUT);
	close_wires(c);
	c->urgent = urgent;
	c->bulk = bulk;
	pthread_mutex_lock(&c->lock);
	c->lost = false;
	c->why = (struct ft_err){0};
	if (c->begun)
		c->state = PAGES_SERVING;
	c->next_line = c->begun ? urgent : NULL;
	pthread_mutex_unlock(&c->lock);
	/* What comes before the switch waits in the socket: nothing is missing yet. */
	if (!c->begun)
		return 0;
	rc = start_fill(c, err);
	eventfd_write(c->wake_fd, 1);
	return rc;
}

void page_client_cargo(struct page_client *c, struct ft_cargo *cargo)
{
	c->cargo = cargo;
}

void page_client_look(struct page_client *c)
{
	eventfd_write(c->wake_fd, 1);
}

bool page_client_here(struct page_client *c)
{
	bool here;

	pthread_mutex_lock(&c->lock);
	here = c->here;
	pthread_mutex_unlock(&c->lock);
	return here;
}

void page_client_cut(struct page_client *c)
{
	pthread_mutex_lock(&c->lock);
	c->lost = true;
	ft_err_set(&c->why, ENOTCONN, "the source made a new one");
	pthread_mutex_unlock(&c->lock);
	eventfd_write(c->wake_fd, 1);
}

/* What is there of the missing pages is old, or what a firmware left. */
static int punch(const struct page_client *c, const struct ft_bitmap *missing, struct ft_err *err)
{
	for (uint64_t pfn = ft_bitmap_next(missing, 0), end; pfn < missing->bits;
	     pfn = ft_bitmap_next(missing, end)) {
		for (end = pfn + 1; end < missing->bits && ft_bitmap_test(missing, end); end++)
			;
		if (fallocate(c->ram.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      (off_t)(c->ram.offset + pfn * VMM_PAGE_BYTES),
			      (off_t)((end - pfn) * VMM_PAGE_BYTES)))
			return ft_err_set(err, errno, "postcopy: emptying RAM: %s",
					  strerror(errno));
	}
	return 0;
}

/* Who touches one of them from here on waits. */
static int hide(struct page_client *c, const struct ft_bitmap *missing, struct ft_err *err)
{
	int rc = c->huge ? uffd_register_unseen(c->uffd, c->ram.address, c->ram.bytes, err)
			 : punch(c, missing, err);

	if (rc)
		return rc;
	return c->huge ? page_huge_hide(c->huge, missing, err)
		       : uffd_register_missing(c->uffd, c->ram.address, c->ram.bytes, err);
}

int page_client_begin(struct page_client *c, const struct ft_bitmap *missing, struct ft_err *err)
{
	int rc = c->urgent ? 0 : ft_err_set(err, ENOTCONN, "postcopy: no connections for pages");

	if (!rc && ft_taker_init(&c->taker, missing))
		rc = ft_err_set(err, ENOMEM, "postcopy: out of memory");
	if (!rc)
		rc = hide(c, missing, err);
	if (rc)
		return rc;
	c->line = c->urgent;
	c->look = true;
	pthread_mutex_lock(&c->lock);
	c->stats.pages.pages = missing->count;
	c->stats.since_ns = page_client_now_ns();
	c->state = PAGES_SERVING;
	c->begun = true;
	pthread_mutex_unlock(&c->lock);
	rc = thread_start(&c->fault_thread, page_faults_main, c);
	c->fault_started = !rc;
	if (rc)
		return ft_err_set(err, -rc, "postcopy: a thread: %s", strerror(-rc));
	return start_fill(c, err);
}

enum page_state page_client_state(struct page_client *c, struct ft_err *why)
{
	enum page_state state;

	pthread_mutex_lock(&c->lock);
	state = c->state;
	*why = c->why;
	pthread_mutex_unlock(&c->lock);
	return state;
}

void page_client_stats(struct page_client *c, struct page_client_stats *stats)
{
	pthread_mutex_lock(&c->lock);
	*stats = c->stats;
	if (stats->since_ns && !stats->elapsed_ns)
		stats->elapsed_ns = page_client_now_ns() - stats->since_ns;
	stats->waiting = c->waiting_n;
	if (c->begun)
		stats->pages.pages_done = c->stats.pages.pages - c->taker.missing.count;
	ft_series_figure(&c->fault_us, &stats->fault_us);
	pthread_mutex_unlock(&c->lock);
}

void page_client_free(struct page_client *c)
{
	if (!c)
		return;
	pthread_mutex_lock(&c->lock);
	c->leaving = true;
	pthread_mutex_unlock(&c->lock);
	if (c->urgent)
		c->urgent->ops->cut(c->urgent);
	if (c->fault_started) {
		eventfd_write(c->wake_fd, 1);
		pthread_join(c->fault_thread, NULL);
	}
	close_wires(c);
	if (c->begun)
		ft_taker_free(&c->taker);
	if (c->uffd >= 0)
		close(c->uffd);
	if (c->wake_fd >= 0)
		close(c->wake_fd);
	page_huge_free(c->huge);
	pthread_mutex_destroy(&c->lock);
	free(c);
}
