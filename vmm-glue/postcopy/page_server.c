// SPDX-License-Identifier: Apache-2.0
// What is asked for is read and sent by the thread that read the question, so it waits for nobody:
// neither for the background, which has a connection, a thread and a low priority of its own, nor
// for a lock that is held while anything is read or sent.
#include "vmm-glue/postcopy/page_server.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "ft/codec.h"
#include "ft/postcopy/giver.h"
#include "ft/postcopy/missing.h"
#include "vmm-glue/postcopy/thread.h"

#define BATCH_PAGES                                                                                \
	16 /* of a frame in the background: what the target places between two looks around */

struct page_server {
	/* set at the start */
	struct vmm_ram ram; /* descriptors are ours */
	uint64_t generation;
	void (*tell)(void *ctx);
	void *ctx;

	/* the owner's */
	struct ft_wire *urgent, *bulk;
	struct ft_cargo *cargo;
	bool threads, handed;
	pthread_t urgent_thread, bulk_thread;

	pthread_mutex_t lock; /* guards all below */
	pthread_cond_t work;
	struct ft_giver giver;
	struct ft_bitmap told; /* MISSING, as far as it has come */
	enum page_state state;
	struct ft_err why;
	bool background, leaving; /* leaving: the threads are to end */
	bool cargo_owed;
	struct page_stats stats;
};

/* ---- RAM ---- */

static int read_run(const struct page_server *s, uint64_t pfn, size_t n, uint8_t *to)
{
	size_t left = n * VMM_PAGE_BYTES;
	uint64_t at = pfn * VMM_PAGE_BYTES;

	while (left) {
		struct iovec local = {to, left},
			     remote = {(void *)(uintptr_t)(s->ram.address + at), left};
		ssize_t got = s->ram.fd >= 0
				      ? pread(s->ram.fd, to, left, (off_t)(s->ram.offset + at))
				      : process_vm_readv(s->ram.pid, &local, 1, &remote, 1, 0);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return got < 0 ? -errno : -EIO;
		to += got;
		at += (uint64_t)got;
		left -= (size_t)got;
	}
	return 0;
}

/* ---- both threads ---- */

static void end_with(struct page_server *s, enum page_state state, const struct ft_err *why)
{
	bool news = false;

	pthread_mutex_lock(&s->lock);
	if (!s->leaving && (s->state == PAGES_IDLE || s->state == PAGES_SERVING)) {
		s->state = state;
		if (why)
			s->why = *why;
		news = true;
	}
	s->leaving = true;
	pthread_cond_broadcast(&s->work);
	pthread_mutex_unlock(&s->lock);
	/* The other one may be blocked. */
	s->urgent->ops->cut(s->urgent);
	s->bulk->ops->cut(s->bulk);
	if (news)
		s->tell(s->ctx);
}

static int send_records(struct page_server *s, struct ft_wire *w, const uint8_t *records,
			size_t len, struct ft_err *err)
{
	struct ft_msg msg = {.type = FT_MSG_PAGES,
			     .generation = s->generation,
			     .payload = records,
			     .payload_len = (uint32_t)len};

	return w->ops->send(w, &msg, err);
}

/* ---- what is asked for ---- */

/* One page, or some that follow each other. */
static int answer(struct page_server *s, uint64_t pfn, size_t n, struct ft_err *err)
{
	uint8_t pages[BATCH_PAGES * VMM_PAGE_BYTES], records[BATCH_PAGES * FT_PAGE_RECORD_MAX];
	bool valid, given;
	size_t len = 0;
	int rc;

	pthread_mutex_lock(&s->lock);
	given = s->state == PAGES_SERVING;
	valid = given;
	for (size_t i = 0; i < n && valid; i++)
		valid = ft_giver_asked(&s->giver, pfn + i);
	s->stats.faults += valid ? n : 0;
	pthread_mutex_unlock(&s->lock);
	if (!valid)
		return ft_err_set(err, EPROTO, "ASK: page %llu: %s", (unsigned long long)pfn,
				  given ? "there is none" : "before the guest was given away");
	rc = read_run(s, pfn, n, pages);
	if (rc) {
		ft_err_set(err, -rc, "page %llu cannot be read: %s", (unsigned long long)pfn,
			   strerror(-rc));
		end_with(s, PAGES_FAILED, err);
		return rc;
	}
	/* Packing it would take longer than sending it. */
	for (size_t i = 0; i < n; i++)
		len += ft_page_record_plain(pfn + i, pages + i * VMM_PAGE_BYTES, records + len);
	rc = send_records(s, s->urgent, records, len, err);
	pthread_mutex_lock(&s->lock);
	s->stats.bytes += len;
	pthread_mutex_unlock(&s->lock);
	return rc;
}

static uint64_t asked(const struct ft_msg *msg, size_t i)
{
	uint64_t le;

	memcpy(&le, msg->payload + i * sizeof le, sizeof le);
	return le64toh(le);
}

static int on_ask(struct page_server *s, const struct ft_msg *msg, struct ft_err *err)
{
	size_t n = msg->payload_len / 8;
	int rc = n && msg->payload_len % 8 == 0
			 ? 0
			 : ft_err_set(err, EPROTO, "ASK: %u bytes", msg->payload_len);

	for (size_t i = 0, run; i < n && !rc; i += run) {
		for (run = 1;
		     run < BATCH_PAGES && i + run < n && asked(msg, i + run) == asked(msg, i) + run;
		     run++)
			;
		rc = answer(s, asked(msg, i), run, err);
	}
	return rc;
}

/* The link was lost, and the target says what it lacks. */
static int on_missing(struct page_server *s, const struct ft_msg *msg, struct ft_err *err)
{
	bool last = false;
	int rc;

	pthread_mutex_lock(&s->lock);
	rc = ft_missing_take(&s->told, msg, &last, err);
	if (!rc && last) {
		ft_giver_owe(&s->giver, &s->told);
		ft_bitmap_clear_all(&s->told);
		pthread_cond_broadcast(&s->work);
	}
	pthread_mutex_unlock(&s->lock);
	return rc;
}

/* Likewise, of what else follows the guest. */
static int on_cargo(struct page_server *s, const struct ft_msg *msg, struct ft_err *err)
{
	int rc = s->cargo ? s->cargo->ops->go_on(s->cargo, msg, err)
			  : ft_err_set(err, EPROTO, "%s: nothing of that kind follows the guest",
				       ft_msg_name(msg->type));

	pthread_mutex_lock(&s->lock);
	if (!rc && s->handed)
		s->cargo_owed = true;
	pthread_cond_broadcast(&s->work);
	pthread_mutex_unlock(&s->lock);
	return rc;
}

static int on_urgent(struct page_server *s, const struct ft_msg *msg, struct ft_err *err)
{
	if (msg->generation != s->generation)
		return ft_err_set(err, ESTALE, "%s: generation %llu: expected %llu",
				  ft_msg_name(msg->type), (unsigned long long)msg->generation,
				  (unsigned long long)s->generation);
	switch (msg->type) {
	case FT_MSG_ASK:
		return on_ask(s, msg, err);
	case FT_MSG_MISSING:
		return on_missing(s, msg, err);
	case FT_MSG_BITMAP:
		return on_cargo(s, msg, err);
	case FT_MSG_ALL:
		end_with(s, PAGES_DONE, NULL);
		return -ECANCELED;
	default:
		return ft_err_set(err, EPROTO, "%s: not on a connection for pages",
				  ft_msg_name(msg->type));
	}
}

static void *serve_urgent(void *ctx)
{
	struct page_server *s = ctx;
	struct ft_err err = {0};
	struct ft_msg msg;
	int rc;

	do
		rc = s->urgent->ops->receive(s->urgent, &msg, true, &err);
	while (rc > 0 && on_urgent(s, &msg, &err) == 0);
	end_with(s, PAGES_CUT, &err);
	return NULL;
}

/* ---- the background ---- */

/* Waits until there is something to do: n pages, or a piece of the cargo, or both. False: the
 * threads are to end. */
static bool next_batch(struct page_server *s, uint64_t *pfns, size_t *n, bool *cargo)
{
	bool leaving;

	*n = 0;
	*cargo = false;
	pthread_mutex_lock(&s->lock);
	while (!s->leaving && !*n && !*cargo) {
		*cargo = s->cargo_owed;
		if (s->state == PAGES_SERVING && s->background)
			*n = ft_giver_next(&s->giver, pfns, BATCH_PAGES);
		if (!*n && !*cargo)
			pthread_cond_wait(&s->work, &s->lock);
	}
	leaving = s->leaving;
	pthread_mutex_unlock(&s->lock);
	return !leaving;
}

static int send_cargo(struct page_server *s, struct ft_err *err)
{
	struct ft_msg msg;

	if (s->cargo->ops->next(s->cargo, &msg)) {
		msg.generation = s->generation;
		return s->bulk->ops->send(s->bulk, &msg, err);
	}
	pthread_mutex_lock(&s->lock);
	s->cargo_owed = false;
	pthread_mutex_unlock(&s->lock);
	return 0;
}

static int send_batch(struct page_server *s, struct ft_codec *codec, const uint64_t *pfns, size_t n,
		      struct ft_err *err)
{
	uint8_t pages[BATCH_PAGES * VMM_PAGE_BYTES], records[BATCH_PAGES * FT_PAGE_RECORD_MAX];
	size_t len = 0;
	int rc = 0;

	for (size_t i = 0, run; i < n && !rc; i += run) {
		for (run = 1; i + run < n && pfns[i + run] == pfns[i] + run; run++)
			;
		rc = read_run(s, pfns[i], run, pages + i * VMM_PAGE_BYTES);
	}
	if (rc) {
		ft_err_set(err, -rc, "RAM cannot be read: %s", strerror(-rc));
		end_with(s, PAGES_FAILED, err);
		return rc;
	}
	for (size_t i = 0; i < n; i++)
		len += ft_codec_encode(codec, 0, pfns[i], pages + i * VMM_PAGE_BYTES,
				       records + len);
	rc = send_records(s, s->bulk, records, len, err);
	pthread_mutex_lock(&s->lock);
	s->stats.bytes += len;
	pthread_mutex_unlock(&s->lock);
	return rc;
}

static void *push(void *ctx)
{
	struct page_server *s = ctx;
	struct ft_codec *codec = ft_codec_new(s->ram.bytes / VMM_PAGE_BYTES, 0);
	struct ft_err err = {0};
	uint64_t pfns[BATCH_PAGES];
	bool cargo;
	size_t n;
	int rc = 0;

	thread_in_background();
	if (!codec)
		ft_err_set(&err, ENOMEM, "out of memory");
	while (codec && !rc && next_batch(s, pfns, &n, &cargo)) {
		rc = n ? send_batch(s, codec, pfns, n, &err) : 0;
		if (!rc && cargo)
			rc = send_cargo(s, &err);
	}
	end_with(s, PAGES_CUT, &err);
	ft_codec_free(codec);
	return NULL;
}

/* ---- the owner ---- */

static int take_ram(struct page_server *s, const struct vmm_ram *ram)
{
	s->ram = *ram;
	s->ram.pidfd = -1;
	s->ram.fd = ram->fd >= 0 ? fcntl(ram->fd, F_DUPFD_CLOEXEC, 3) : -1;
	return ram->fd >= 0 && s->ram.fd < 0 ? -errno : 0;
}

int page_server_new(const struct vmm_ram *ram, uint64_t generation, void (*tell)(void *ctx),
		    void *ctx, struct page_server **out, struct ft_err *err)
{
	struct page_server *s = calloc(1, sizeof *s);
	uint64_t pages = ram->bytes / VMM_PAGE_BYTES;

	if (!s)
		return ft_err_set(err, ENOMEM, "pages: out of memory");
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->work, NULL);
	s->generation = generation;
	s->tell = tell;
	s->ctx = ctx;
	s->ram.fd = -1;
	if (take_ram(s, ram) || ft_giver_init(&s->giver, pages) ||
	    ft_bitmap_init(&s->told, pages)) {
		page_server_free(s);
		return ft_err_set(err, ENOMEM, "pages: out of memory or descriptors");
	}
	*out = s;
	return 0;
}

static void disconnect(struct page_server *s)
{
	if (s->threads) {
		pthread_mutex_lock(&s->lock);
		s->leaving = true;
		pthread_cond_broadcast(&s->work);
		pthread_mutex_unlock(&s->lock);
		s->urgent->ops->cut(s->urgent);
		s->bulk->ops->cut(s->bulk);
		pthread_join(s->urgent_thread, NULL);
		pthread_join(s->bulk_thread, NULL);
	}
	s->threads = false;
	if (s->urgent)
		s->urgent->ops->close(s->urgent);
	if (s->bulk)
		s->bulk->ops->close(s->bulk);
	s->urgent = s->bulk = NULL;
}

int page_server_connect(struct page_server *s, struct ft_wire *urgent, struct ft_wire *bulk,
			struct ft_err *err)
{
	int rc;

	disconnect(s);
	s->urgent = urgent;
	s->bulk = bulk;
	s->leaving = false;
	/* Until the target has said what it lacks, nobody owes it anything: half of what was on its
	 * way may have arrived. */
	if (s->state == PAGES_CUT) {
		ft_bitmap_clear_all(&s->giver.owed);
		ft_bitmap_clear_all(&s->told);
		s->cargo_owed = false;
		s->state = PAGES_SERVING;
	}
	rc = thread_start(&s->urgent_thread, serve_urgent, s);
	if (!rc) {
		rc = thread_start(&s->bulk_thread, push, s);
		if (rc) {
			end_with(s, PAGES_CUT, NULL);
			pthread_join(s->urgent_thread, NULL);
		}
	}
	s->threads = !rc;
	return rc ? ft_err_set(err, -rc, "pages: a thread: %s", strerror(-rc)) : 0;
}

void page_server_give(struct page_server *s, const struct ft_bitmap *missing, bool background)
{
	pthread_mutex_lock(&s->lock);
	ft_giver_owe(&s->giver, missing);
	s->stats.pages = missing->count;
	s->background = background;
	if (s->state == PAGES_IDLE)
		s->state = PAGES_SERVING;
	pthread_cond_broadcast(&s->work);
	pthread_mutex_unlock(&s->lock);
}

void page_server_background(struct page_server *s, bool on)
{
	pthread_mutex_lock(&s->lock);
	s->background = on;
	if (!s->handed)
		s->cargo_owed = s->cargo && s->state == PAGES_SERVING;
	s->handed = true;
	pthread_cond_broadcast(&s->work);
	pthread_mutex_unlock(&s->lock);
}

void page_server_cargo(struct page_server *s, struct ft_cargo *cargo)
{
	s->cargo = cargo;
}

void page_server_take_back(struct page_server *s)
{
	disconnect(s);
	s->state = PAGES_IDLE;
	s->handed = s->cargo_owed = false;
}

enum page_state page_server_state(struct page_server *s, struct ft_err *why)
{
	enum page_state state;

	pthread_mutex_lock(&s->lock);
	state = s->state;
	*why = s->why;
	pthread_mutex_unlock(&s->lock);
	return state;
}

void page_server_stats(struct page_server *s, struct page_stats *stats)
{
	pthread_mutex_lock(&s->lock);
	*stats = s->stats;
	stats->pages_done =
		s->state == PAGES_DONE ? stats->pages : stats->pages - s->giver.owed.count;
	pthread_mutex_unlock(&s->lock);
}

void page_server_free(struct page_server *s)
{
	if (!s)
		return;
	disconnect(s);
	ft_giver_free(&s->giver);
	ft_bitmap_free(&s->told);
	if (s->ram.fd >= 0)
		close(s->ram.fd);
	pthread_cond_destroy(&s->work);
	pthread_mutex_destroy(&s->lock);
	free(s);
}
