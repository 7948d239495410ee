// SPDX-License-Identifier: Apache-2.0
// One thread has the userfaultfd and the urgent connection, and poll(2)s both: a question goes out
// and its answer is placed by who heard of the fault, with no hand-over between threads.
#include "vmm-glue/postcopy/page_client_internal.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "ft/msg.h"
#include "ft/postcopy/missing.h"
#include "vmm-glue/uffd.h"

#define FAULTS_AT_ONCE 32
#define ASK_PAGES      PAGE_HUGE_PAGES
static_assert(ASK_PAGES >= FAULTS_AT_ONCE && ASK_PAGES * 8 <= FT_PAYLOAD_MAX, "one message");
#define UNREGISTER_STEP (64ull << 20)
#define LINGER_NS	(2000ull * 1000000)

static void drop_line(struct page_client *c, const struct ft_err *why)
{
	struct ft_err copy = *why;

	if (!c->line)
		return;
	c->line = NULL;
	/* The owner closes both when it has new ones. */
	c->urgent->ops->cut(c->urgent);
	c->bulk->ops->cut(c->bulk);
	if (!page_client_is_all(c))
		page_client_set_state(c, PAGES_CUT, &copy);
}

static void send(struct page_client *c, struct ft_msg *msg)
{
	struct ft_err err = {0};

	msg->generation = c->generation;
	if (c->line && c->line->ops->send(c->line, msg, &err))
		drop_line(c, &err);
}

static void ask(struct page_client *c, const uint64_t *pfns, unsigned n)
{
	uint64_t le[ASK_PAGES];
	struct ft_msg msg = {.type = FT_MSG_ASK,
			     .payload = (uint8_t *)le,
			     .payload_len = (uint32_t)(n * sizeof *le)};

	assert(n <= ASK_PAGES);
	for (unsigned i = 0; i < n; i++)
		le[i] = htole64(pfns[i]);
	if (n)
		send(c, &msg);
}

/* Somebody touched this page: asks for it. 0 or -errno. */
static int on_small(struct page_client *c, uint64_t pfn, uint64_t *asks, unsigned *asks_n)
{
	enum ft_taker_fault what;

	pthread_mutex_lock(&c->lock);
	what = ft_taker_fault(&c->taker, pfn);
	if (what == FT_TAKER_ASK) {
		page_note_wait_locked(c, pfn);
		asks[(*asks_n)++] = pfn;
	}
	pthread_mutex_unlock(&c->lock);
	return what == FT_TAKER_ZERO ? uffd_fill(c->uffd, c->ram.address + pfn * VMM_PAGE_BYTES,
						 NULL, VMM_PAGE_BYTES)
				     : 0;
}

/* Likewise for all that is missing of a huge page. */
static int on_huge(struct page_client *c, uint64_t pfn, uint64_t *asks, unsigned *asks_n)
{
	uint64_t first = page_huge_first(c->huge, pfn);
	bool whole;
	int rc = 0;

	pthread_mutex_lock(&c->lock);
	whole = page_huge_is_whole(c->huge, &c->taker.missing, pfn);
	for (uint64_t at = first; at < first + c->huge->pages; at++)
		if (ft_taker_fault(&c->taker, at) == FT_TAKER_ASK)
			asks[(*asks_n)++] = at;
	if (*asks_n)
		page_note_wait_locked(c, first);
	if (whole)
		rc = page_huge_at(c->huge, first) ? 0 : -ENOMEM;
	pthread_mutex_unlock(&c->lock);
	return !rc && whole ? page_huge_show(c->huge, c->uffd, pfn) : rc;
}

static void on_faults(struct page_client *c)
{
	uint64_t faults[FAULTS_AT_ONCE], asks[ASK_PAGES];
	int n = uffd_faults(c->uffd, faults, FAULTS_AT_ONCE), rc = n < 0 ? n : 0;
	unsigned asks_n = 0;
	struct ft_err err = {0};

	for (int i = 0; i < n && !rc; i++) {
		uint64_t pfn = (faults[i] - c->ram.address) / VMM_PAGE_BYTES;

		assert(pfn < c->ram.bytes / VMM_PAGE_BYTES);
		if (!c->huge) {
			rc = on_small(c, pfn, asks, &asks_n);
			continue;
		}
		rc = on_huge(c, pfn, asks, &asks_n);
		ask(c, asks, asks_n);
		asks_n = 0;
	}
	ask(c, asks, asks_n);
	if (rc) {
		ft_err_set(&err, -rc, "userfaultfd: %s", strerror(-rc));
		page_client_set_state(c, PAGES_FAILED, &err);
	}
}

static void on_line(struct page_client *c, struct page_run *run)
{
	struct ft_err err = {0};
	struct ft_msg msg;
	int rc;

	while ((rc = c->line->ops->receive(c->line, &msg, false, &err)) > 0) {
		rc = page_take(c, run, &msg, &err);
		if (rc)
			break;
	}
	if (rc < 0)
		drop_line(c, &err);
}

static void ask_again(struct page_client *c)
{
	uint64_t pfns[FAULTS_AT_ONCE], at = 0;
	unsigned n;

	do {
		pthread_mutex_lock(&c->lock);
		for (n = 0; n < FAULTS_AT_ONCE; n++, at++) {
			at = ft_taker_waiting(&c->taker, at);
			if (at >= c->taker.asked.bits)
				break;
			pfns[n] = at;
		}
		pthread_mutex_unlock(&c->lock);
		ask(c, pfns, n);
	} while (n == FAULTS_AT_ONCE && c->line);
}

static void tell_missing(struct page_client *c)
{
	uint8_t body[FT_MSG_BODY_SMALL], *words = malloc(FT_PAYLOAD_MAX);
	struct ft_err err = {0};
	struct ft_msg msg;
	uint64_t at = 0;
	bool more = words != NULL;

	if (!words) {
		ft_err_set(&err, ENOMEM, "pages: out of memory");
		drop_line(c, &err);
	}
	while (more && c->line) {
		pthread_mutex_lock(&c->lock);
		more = ft_missing_next(&c->taker.missing, &at, body, words, &msg);
		pthread_mutex_unlock(&c->lock);
		if (more)
			send(c, &msg);
	}
	free(words);
	if (c->cargo && c->line) {
		c->cargo->ops->lacks(c->cargo, &msg);
		send(c, &msg);
	}
}

/* False: the thread is to end. */
static bool on_wake(struct page_client *c)
{
	struct ft_wire *next;
	struct ft_err why;
	bool leaving, lost;
	eventfd_t n;

	(void)eventfd_read(c->wake_fd, &n);
	pthread_mutex_lock(&c->lock);
	leaving = c->leaving;
	lost = c->lost;
	why = c->why;
	next = c->next_line;
	c->next_line = NULL;
	pthread_mutex_unlock(&c->lock);
	if (lost && !next)
		drop_line(c, &why);
	if (next && !leaving) {
		c->line = next;
		tell_missing(c);
		ask_again(c);
		c->look = true;
	}
	return !leaving;
}

/* Who closes with something unread takes back what it sent last: so the source, which closes when
 * it has heard ALL, does it first. */
static void linger(struct page_client *c)
{
	uint64_t until = page_client_now_ns() + LINGER_NS;
	struct ft_err err = {0};
	struct ft_msg msg;
	bool over = false;

	while (c->line && !over && page_client_now_ns() < until) {
		struct pollfd p[2] = {{.fd = c->line->ops->fd(c->line), .events = POLLIN},
				      {.fd = c->wake_fd, .events = POLLIN}};

		(void)poll(p, 2, (int)((until - page_client_now_ns()) / 1000000) + 1);
		if (p[1].revents && !on_wake(c))
			return;
		while (c->line && !over) {
			int rc = c->line->ops->receive(c->line, &msg, false, &err);

			over = rc < 0;
			if (rc == 0)
				break;
		}
	}
}

static void make_ordinary(struct page_client *c)
{
	for (uint64_t at = 0; !c->ordinary && at < c->ram.bytes; at += UNREGISTER_STEP)
		uffd_unregister(c->uffd, c->ram.address + at,
				c->ram.bytes - at < UNREGISTER_STEP ? c->ram.bytes - at
								    : UNREGISTER_STEP);
	c->ordinary = true;
}

/* Something else is still to come, for which nobody waits. */
static void note_here(struct page_client *c)
{
	make_ordinary(c);
	pthread_mutex_lock(&c->lock);
	c->stats.elapsed_ns = page_client_now_ns() - c->stats.since_ns;
	c->here = true;
	pthread_mutex_unlock(&c->lock);
	c->tell(c->ctx);
}

static void finish(struct page_client *c)
{
	struct ft_msg msg = {.type = FT_MSG_ALL};

	pthread_mutex_lock(&c->lock);
	if (!c->here)
		c->stats.elapsed_ns = page_client_now_ns() - c->stats.since_ns;
	pthread_mutex_unlock(&c->lock);
	send(c, &msg);
	make_ordinary(c);
	linger(c);
	page_client_set_state(c, PAGES_DONE, NULL);
}

void *page_faults_main(void *ctx)
{
	struct page_client *c = ctx;
	struct page_run *run = calloc(1, sizeof *run);
	struct ft_err err = {0};

	if (!run) {
		ft_err_set(&err, ENOMEM, "pages: out of memory");
		page_client_set_state(c, PAGES_FAILED, &err);
		return NULL;
	}
	run->urgent = true;
	for (;;) {
		struct pollfd p[3] = {
			{.fd = c->uffd, .events = POLLIN},
			{.fd = c->wake_fd, .events = POLLIN},
			{.fd = c->line ? c->line->ops->fd(c->line) : -1, .events = POLLIN}};

		if (page_client_is_all(c)) {
			finish(c);
			break;
		}
		if (!c->ordinary && page_client_pages_are_here(c))
			note_here(c);
		if (poll(p, 3, c->look ? 0 : -1) < 0)
			continue;
		if (p[0].revents)
			on_faults(c);
		if (p[1].revents && !on_wake(c))
			break;
		if ((p[2].revents || c->look) && c->line)
			on_line(c, run);
		c->look = false;
	}
	free(run);
	return NULL;
}
