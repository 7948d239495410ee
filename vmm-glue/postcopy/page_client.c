// SPDX-License-Identifier: Apache-2.0
// The thread for those who wait has the userfaultfd and the urgent connection, and poll(2)s both;
// the one of the background has its connection. Both place pages; the kernel takes the first and
// leaves one that is there as it is.
#include "vmm-glue/postcopy/page_client.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "ft/codec.h"
#include "ft/postcopy/missing.h"
#include "ft/postcopy/taker.h"
#include "vmm-glue/inject.h"
#include "vmm-glue/postcopy/thread.h"
#include "vmm-glue/uffd.h"

#define FAULTS_AT_ONCE	32
#define WAITING_MAX	64 /* whose times are kept; more are only not measured */
#define RUN_PAGES	16 /* placed by one call */
#define UNREGISTER_STEP (64ull << 20)
#define LINGER_NS	(2000ull * 1000000)

struct page_client {
	/* set at the start */
	struct vmm_ram ram;
	uint64_t generation;
	void (*tell)(void *ctx);
	void *ctx;
	int uffd, wake_fd;
	struct ft_cargo *cargo;

	/* the owner's */
	struct ft_wire *urgent, *bulk; /* as they were connected; closed by the owner */
	bool begun, fault_started, fill_started;
	pthread_t fault_thread, fill_thread;

	/* the fault thread's */
	struct ft_wire *line; /* urgent, as long as it is good */
	bool look;	      /* it is new: something may have been read from the socket already */
	bool ordinary;	      /* the memory is */

	pthread_mutex_t lock; /* guards all below */
	struct ft_taker taker;
	enum page_state state;
	struct ft_err why;
	struct ft_wire *next_line; /* a new urgent connection */
	bool leaving, lost, here;
	struct {
		uint64_t pfn, since_ns;
	} waiting[WAITING_MAX];
	unsigned waiting_n;
	struct page_client_stats stats;
	struct ft_series fault_us;
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void set_state(struct page_client *c, enum page_state state, const struct ft_err *why)
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

/* ---- placing ---- */

static void note_wait_locked(struct page_client *c, uint64_t pfn)
{
	if (c->waiting_n < WAITING_MAX) {
		c->waiting[c->waiting_n].pfn = pfn;
		c->waiting[c->waiting_n++].since_ns = now_ns();
	}
	c->stats.pages.faults++;
}

static void note_placed_locked(struct page_client *c, uint64_t pfn)
{
	for (unsigned i = 0; i < c->waiting_n; i++) {
		uint64_t us;
		unsigned bucket = 0;

		if (c->waiting[i].pfn != pfn)
			continue;
		us = (now_ns() - c->waiting[i].since_ns) / 1000;
		c->waiting[i] = c->waiting[--c->waiting_n];
		while (bucket + 1 < PAGE_CLIENT_BUCKETS && us >> (bucket + 1))
			bucket++;
		c->stats.histogram[bucket]++;
		ft_series_add(&c->fault_us, us);
		return;
	}
}

/* Pages that follow each other; from NULL: zeroes. */
static int place(struct page_client *c, uint64_t pfn, size_t n, const uint8_t *from)
{
	int rc =
		uffd_fill(c->uffd, c->ram.address + pfn * VMM_PAGE_BYTES, from, n * VMM_PAGE_BYTES);

	pthread_mutex_lock(&c->lock);
	for (size_t i = 0; i < n && !rc; i++) {
		ft_taker_placed(&c->taker, pfn + i);
		note_placed_locked(c, pfn + i);
	}
	pthread_mutex_unlock(&c->lock);
	return rc;
}

/* What is decoded and not placed yet. */
struct run {
	uint64_t pfn;
	size_t n;
	bool zero;
	uint8_t bytes[RUN_PAGES * VMM_PAGE_BYTES];
};

static int run_end(struct page_client *c, struct run *run, struct ft_err *err)
{
	int rc = run->n ? place(c, run->pfn, run->n, run->zero ? NULL : run->bytes) : 0;

	run->n = 0;
	if (rc) {
		ft_err_set(err, -rc, "RAM cannot be filled: %s", strerror(-rc));
		set_state(c, PAGES_FAILED, err);
	}
	return rc;
}

static int take_record(struct page_client *c, struct run *run, const struct ft_page_record *rec,
		       struct ft_err *err)
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

static int take(struct page_client *c, struct run *run, const struct ft_msg *msg,
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

static bool pages_are_here(struct page_client *c)
{
	bool here;

	pthread_mutex_lock(&c->lock);
	here = c->begun && !c->taker.missing.count;
	pthread_mutex_unlock(&c->lock);
	return here;
}

static bool is_all(struct page_client *c)
{
	return pages_are_here(c) && (!c->cargo || c->cargo->ops->all(c->cargo));
}

/* ---- the background ---- */

static void *fill(void *ctx)
{
	struct page_client *c = ctx;
	struct run *run = malloc(sizeof *run);
	struct ft_err err = {0};
	struct ft_msg msg;
	int rc = 0;

	thread_in_background();
	if (run)
		run->n = 0;
	else
		ft_err_set(&err, ENOMEM, "pages: out of memory");
	while (run && rc == 0 && c->bulk->ops->receive(c->bulk, &msg, true, &err) > 0) {
		rc = take(c, run, &msg, &err);
		if (pages_are_here(c))
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

/* ---- those who wait ---- */

static void drop_line(struct page_client *c, const struct ft_err *why)
{
	struct ft_err copy = *why;

	if (!c->line)
		return;
	c->line = NULL;
	/* The owner closes both when it has new ones. */
	c->urgent->ops->cut(c->urgent);
	c->bulk->ops->cut(c->bulk);
	if (!is_all(c))
		set_state(c, PAGES_CUT, &copy);
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
	uint64_t le[FAULTS_AT_ONCE];
	struct ft_msg msg = {.type = FT_MSG_ASK,
			     .payload = (uint8_t *)le,
			     .payload_len = (uint32_t)(n * sizeof *le)};

	assert(n <= FAULTS_AT_ONCE);
	for (unsigned i = 0; i < n; i++)
		le[i] = htole64(pfns[i]);
	if (n)
		send(c, &msg);
}

static void on_faults(struct page_client *c)
{
	uint64_t faults[FAULTS_AT_ONCE], asks[FAULTS_AT_ONCE];
	int n = uffd_faults(c->uffd, faults, FAULTS_AT_ONCE), rc = n < 0 ? n : 0;
	unsigned asks_n = 0;
	struct ft_err err = {0};

	for (int i = 0; i < n && !rc; i++) {
		uint64_t pfn = (faults[i] - c->ram.address) / VMM_PAGE_BYTES;
		enum ft_taker_fault what;

		assert(pfn < c->ram.bytes / VMM_PAGE_BYTES);
		pthread_mutex_lock(&c->lock);
		what = ft_taker_fault(&c->taker, pfn);
		if (what == FT_TAKER_ASK)
			note_wait_locked(c, pfn);
		pthread_mutex_unlock(&c->lock);
		if (what == FT_TAKER_ZERO)
			rc = uffd_fill(c->uffd, c->ram.address + pfn * VMM_PAGE_BYTES, NULL,
				       VMM_PAGE_BYTES);
		else if (what == FT_TAKER_ASK)
			asks[asks_n++] = pfn;
	}
	ask(c, asks, asks_n);
	if (rc) {
		ft_err_set(&err, -rc, "userfaultfd: %s", strerror(-rc));
		set_state(c, PAGES_FAILED, &err);
	}
}

static void on_line(struct page_client *c, struct run *run)
{
	struct ft_err err = {0};
	struct ft_msg msg;
	int rc;

	while ((rc = c->line->ops->receive(c->line, &msg, false, &err)) > 0) {
		rc = take(c, run, &msg, &err);
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
	uint64_t until = now_ns() + LINGER_NS;
	struct ft_err err = {0};
	struct ft_msg msg;
	bool over = false;

	while (c->line && !over && now_ns() < until) {
		struct pollfd p[2] = {{.fd = c->line->ops->fd(c->line), .events = POLLIN},
				      {.fd = c->wake_fd, .events = POLLIN}};

		(void)poll(p, 2, (int)((until - now_ns()) / 1000000) + 1);
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
	c->stats.elapsed_ns = now_ns() - c->stats.since_ns;
	c->here = true;
	pthread_mutex_unlock(&c->lock);
	c->tell(c->ctx);
}

static void finish(struct page_client *c)
{
	struct ft_msg msg = {.type = FT_MSG_ALL};

	pthread_mutex_lock(&c->lock);
	if (!c->here)
		c->stats.elapsed_ns = now_ns() - c->stats.since_ns;
	pthread_mutex_unlock(&c->lock);
	send(c, &msg);
	make_ordinary(c);
	linger(c);
	set_state(c, PAGES_DONE, NULL);
}

static void *serve_faults(void *ctx)
{
	struct page_client *c = ctx;
	struct run *run = calloc(1, sizeof *run);
	struct ft_err err = {0};

	if (!run) {
		ft_err_set(&err, ENOMEM, "pages: out of memory");
		set_state(c, PAGES_FAILED, &err);
		return NULL;
	}
	for (;;) {
		struct pollfd p[3] = {
			{.fd = c->uffd, .events = POLLIN},
			{.fd = c->wake_fd, .events = POLLIN},
			{.fd = c->line ? c->line->ops->fd(c->line) : -1, .events = POLLIN}};

		if (is_all(c)) {
			finish(c);
			break;
		}
		if (!c->ordinary && pages_are_here(c))
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
	return rc ? rc : uffd_api(c->uffd, 0, err);
}

static int check_ram(const struct vmm_ram *ram, struct ft_err *err)
{
	struct statfs fs;

	if (ram->fd < 0)
		return ft_err_set(err, ENOTSUP,
				  "postcopy: the guest's RAM is not in a file of ours");
	if (fstatfs(ram->fd, &fs))
		return ft_err_set(err, errno, "postcopy: RAM: %s", strerror(errno));
	if (fs.f_type == HUGETLBFS_MAGIC)
		return ft_err_set(
			err, ENOTSUP,
			"postcopy: the guest's RAM here is in pages of %ld KiB: only pages of "
			"4 KiB can come one by one",
			(long)fs.f_bsize >> 10);
	return 0;
}

int page_client_new(const struct vmm_ram *ram, uint64_t generation, void (*tell)(void *ctx),
		    void *ctx, struct page_client **out, struct ft_err *err)
{
	struct page_client *c;
	int rc = check_ram(ram, err);

	if (rc)
		return rc;
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
			    : take_uffd(c, err);
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
	int rc = thread_start(&c->fill_thread, fill, c);

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

int page_client_begin(struct page_client *c, const struct ft_bitmap *missing, struct ft_err *err)
{
	int rc = c->urgent ? punch(c, missing, err)
			   : ft_err_set(err, ENOTCONN, "postcopy: no connections for pages");

	if (!rc && ft_taker_init(&c->taker, missing))
		rc = ft_err_set(err, ENOMEM, "postcopy: out of memory");
	if (!rc)
		rc = uffd_register_missing(c->uffd, c->ram.address, c->ram.bytes, err);
	if (rc)
		return rc;
	c->line = c->urgent;
	c->look = true;
	pthread_mutex_lock(&c->lock);
	c->stats.pages.pages = missing->count;
	c->stats.since_ns = now_ns();
	c->state = PAGES_SERVING;
	c->begun = true;
	pthread_mutex_unlock(&c->lock);
	rc = thread_start(&c->fault_thread, serve_faults, c);
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
		stats->elapsed_ns = now_ns() - stats->since_ns;
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
	pthread_mutex_destroy(&c->lock);
	free(c);
}
