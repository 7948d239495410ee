// SPDX-License-Identifier: Apache-2.0
// The machine behind struct vmm_ops, with the real tracker: checkpoints into an armed machine,
// failovers, failures of a checkpoint. The worlds here are in memory and hold outputs as the engine
// would: what a checkpoint contains is released after it, what comes later dies with the machine.
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "vmm-glue/pocket/kv.h"
#include "vmm-glue/pocket/pocket.h"
#include "vmm-glue/tracker.h"

#define RAM	 (2u << 20)
#define PAGES	 (RAM / VMM_PAGE_BYTES)
#define DISK	 (256u << 10)
#define HELD_MAX 64
#define KEYS	 61

static const uint8_t peer[POCKET_FRAME_ADDR] = {10, 0, 0, 1, 0, 7};

// One host: a machine, its disk as the outside may see it (committed), the writes since, the frames
// held.
struct host {
	struct vmm *vmm;
	struct pocket_config config;
	struct pocket_world world;
	uint8_t disk[DISK];
	struct {
		char text[KV_ANSWER_MAX];
		size_t len;
	} held[HELD_MAX];
	unsigned held_n, stopped, full;
	uint64_t now_ns;
	struct ft_bitmap pending;
	struct vmm_capture capture;
	const char *lost;
};

static void on_net(void *ctx, const uint8_t *frame, size_t len)
{
	struct host *h = ctx;

	assert_memory_equal(frame, peer, sizeof peer);
	assert_true(h->held_n < HELD_MAX);
	h->held[h->held_n].len = len - sizeof peer;
	memcpy(h->held[h->held_n++].text, frame + sizeof peer, len - sizeof peer);
}

static void on_console(void *ctx, const uint8_t *bytes, size_t len)
{
	(void)ctx, (void)bytes, (void)len;
}

static int on_read(void *ctx, unsigned disk, uint64_t offset, uint8_t *data, size_t len)
{
	(void)disk;
	memcpy(data, ((struct host *)ctx)->disk + offset, len);
	return 0;
}

static int on_write(void *ctx, unsigned disk, uint64_t offset, const uint8_t *data, size_t len)
{
	(void)disk;
	memcpy(((struct host *)ctx)->disk + offset, data, len);
	return 0;
}

static int on_flush(void *ctx, unsigned disk)
{
	(void)ctx, (void)disk;
	return 0;
}

static int on_doorbell(void *ctx, enum tap_kind kind, uint64_t addr, uint64_t value, unsigned width)
{
	(void)ctx, (void)kind, (void)addr, (void)value, (void)width;
	return 0;
}

static void on_lost(void *ctx, const char *why)
{
	((struct host *)ctx)->lost = why;
}

static struct host *host_new(bool armed, uint64_t rate, bool manual)
{
	struct host *h = calloc(1, sizeof *h);
	struct ft_err err = {0};

	h->world = (struct pocket_world){on_net,   on_console,	on_read, on_write,
					 on_flush, on_doorbell, h};
	h->config = (struct pocket_config){
		.name = "test",
		.uuid = "00000000-1111-2222-3333-444444444444",
		.memory_bytes = RAM,
		.program = POCKET_KV,
		.dirty_pages_per_s = rate,
		.disks_n = 1,
		.world = &h->world,
		.manual = manual,
	};
	h->config.disks[0].bytes = DISK;
	if ((armed ? pocket_arm : pocket_start)(&h->config, &h->vmm, &err))
		fail_msg("%s", err.text);
	h->vmm->events = (struct vmm_events){.lost = on_lost, .ctx = h};
	assert_int_equal(ft_bitmap_init(&h->pending, PAGES), 0);
	h->capture.pages_max = 64; // so that hooks->full has work
	h->capture.pages = malloc(h->capture.pages_max * VMM_PAGE_BYTES);
	h->capture.pfns = malloc(h->capture.pages_max * sizeof *h->capture.pfns);
	h->capture.state = malloc(VMM_STATE_BYTES_MAX);
	return h;
}

static void host_free(struct host *h)
{
	h->vmm->ops->free(h->vmm);
	ft_bitmap_free(&h->pending);
	free(h->capture.pages);
	free(h->capture.pfns);
	free(h->capture.state);
	free(h);
}

static void track(struct host *h)
{
	struct ft_err err = {0};

	if (h->vmm->ops->track_start(h->vmm, &err))
		fail_msg("%s", err.text);
	ft_bitmap_set_all(&h->pending);
}

struct target {
	struct host *from, *to;
};

static void move_pages(struct target *t)
{
	struct vmm_capture *c = &t->from->capture;
	uint8_t *image = t->to->vmm->ops->image(t->to->vmm);

	for (size_t i = 0; i < c->pages_n; i++)
		memcpy(image + c->pfns[i] * VMM_PAGE_BYTES, c->pages + i * VMM_PAGE_BYTES,
		       VMM_PAGE_BYTES);
	c->pages_n = 0;
}

static int on_full(void *ctx, struct vmm_capture *capture)
{
	struct target *t = ctx;

	assert_ptr_equal(capture, &t->from->capture);
	t->from->full++;
	move_pages(t);
	return 0;
}

static void on_stopped(void *ctx)
{
	((struct target *)ctx)->from->stopped++;
}

// A checkpoint of `from` into the image of `to`, disk and all.
static void checkpoint(struct host *from, struct host *to, bool keep_stopped)
{
	struct target t = {from, to};
	struct vmm_hold_hooks hooks = {.stopped = on_stopped, .full = on_full, .ctx = &t};
	struct ft_err err = {0};

	if (from->vmm->ops->checkpoint(from->vmm, &from->pending, &from->capture, &hooks,
				       keep_stopped, &err))
		fail_msg("%s", err.text);
	move_pages(&t);
	ft_bitmap_clear_all(&from->pending);
	memcpy(to->disk, from->disk, DISK);
	to->capture.state_len = from->capture.state_len;
	memcpy(to->capture.state, from->capture.state, from->capture.state_len);
}

static void resume(struct host *h)
{
	struct ft_err err = {0};

	if (h->vmm->ops->trial(h->vmm, h->capture.state, h->capture.state_len, &err) ||
	    h->vmm->ops->resume(h->vmm, h->capture.state, h->capture.state_len, &err))
		fail_msg("%s", err.text);
	assert_string_equal(h->vmm->ops->status(h->vmm), "running");
	assert_null(h->vmm->ops->image(h->vmm));
}

static uint64_t digest(struct host *h)
{
	uint64_t d;

	assert_int_equal(h->vmm->ops->ram_digest(h->vmm, &d, NULL), 0);
	return d;
}

// Both stopped or stepped by hand: RAM and state are the same.
static void assert_same(struct host *a, struct host *b)
{
	uint8_t *one = malloc(VMM_STATE_BYTES_MAX), *two = malloc(VMM_STATE_BYTES_MAX);
	size_t n = pocket_state(a->vmm, one);

	assert_int_equal(pocket_state(b->vmm, two), n);
	assert_memory_equal(one, two, n);
	assert_int_equal(digest(a), digest(b));
	free(one);
	free(two);
}

// ---- a client with a model of everything

struct client {
	uint64_t seq, number, chain;
	uint64_t put_number, put_chain; // the last PUT that was answered
	char request[KV_REQUEST_MAX], values[KEYS][32];
	bool waiting;
	unsigned answered, repeated;
};

static void client_ask(struct client *c, struct host *h)
{
	uint8_t frame[POCKET_FRAME_MAX];
	size_t n;

	if (!c->waiting) {
		unsigned key = (unsigned)rand() % KEYS;

		c->seq++;
		c->waiting = true;
		if (rand() % 3)
			snprintf(c->request, sizeof c->request, "PUT 1 %llu k%u v%llu",
				 (unsigned long long)c->seq, key, (unsigned long long)c->seq);
		else
			snprintf(c->request, sizeof c->request, "GET 1 %llu k%u",
				 (unsigned long long)c->seq, key);
	} else {
		c->repeated++;
	}
	n = strlen(c->request);
	memcpy(frame, peer, sizeof peer);
	memcpy(frame + sizeof peer, c->request, n);
	pocket_receive(h->vmm, frame, sizeof peer + n);
}

// An answer that the outside sees: to the request that waits (exactly as the model says) or a
// repetition of an older one.
static void client_hear(struct client *c, const char *text, size_t len)
{
	struct kv_request req;
	struct kv_answer a;
	unsigned key;

	assert_true(kv_answer_parse(text, len, &a));
	assert_int_not_equal(a.status, KV_ERR);
	if (!c->waiting || a.seq != c->seq) {
		assert_true(a.seq <= c->seq);
		return;
	}
	assert_true(kv_request_parse(c->request, strlen(c->request), &req));
	c->number++;
	c->chain = kv_chain(c->chain, c->request, strlen(c->request));
	assert_int_equal(a.number, c->number);
	assert_true(a.chain == c->chain);
	key = (unsigned)atoi(req.key + 1);
	if (req.put) {
		assert_int_equal(a.status, KV_OK);
		c->put_number = c->number;
		c->put_chain = c->chain;
		snprintf(c->values[key], sizeof c->values[key], "%.*s", (int)req.value_len,
			 req.value);
	} else {
		assert_int_equal(a.status, c->values[key][0] ? KV_VALUE : KV_NONE);
		assert_string_equal(a.text, c->values[key]);
	}
	c->waiting = false;
	c->answered++;
}

static void release(struct host *h, struct client *c)
{
	for (unsigned i = 0; i < h->held_n; i++)
		client_hear(c, h->held[i].text, h->held[i].len);
	h->held_n = 0;
}

static void run_steps(struct host *h, struct client *c, unsigned steps)
{
	while (steps--) {
		h->now_ns += 200000;
		if (c && rand() % 4 == 0 && h->held_n < HELD_MAX / 2)
			client_ask(c, h);
		pocket_step(h->vmm, h->now_ns, NULL);
	}
}

// The last PUT that the outside knows of is on the disk.
static void assert_journal(const struct host *h, const struct client *c)
{
	struct kv_record rec;

	for (size_t at = 0; at < DISK && c->put_number; at += sizeof rec) {
		memcpy(&rec, h->disk + at, sizeof rec);
		if (kv_record_valid(&rec) && rec.number == c->put_number &&
		    rec.chain == c->put_chain)
			return;
	}
	assert_int_equal(c->put_number, 0);
}

static void two_hundred_failovers(void **state)
{
	struct client c = {.chain = KV_CHAIN_START};
	struct host *h = host_new(false, 5000, true);
	unsigned lost_frames = 0, full = 0;

	(void)state;
	srand(3);
	track(h);
	for (unsigned round = 0; round < 200; round++) {
		struct host *standby = host_new(true, 0, true);

		// Some checkpoints, each releasing what it contains.
		for (int n = 1 + rand() % 3; n; n--) {
			run_steps(h, &c, 1 + (unsigned)rand() % 40);
			checkpoint(h, standby, false);
			assert_int_equal(digest(h), digest(standby));
			release(h, &c);
			assert_journal(h, &c);
		}
		// Then work that no checkpoint has, and the machine dies with its outputs.
		run_steps(h, &c, (unsigned)rand() % 40);
		lost_frames += h->held_n;
		full += h->full;
		standby->now_ns = (uint64_t)rand() * 1000; // another host, another clock
		host_free(h);
		resume(standby);
		h = standby;
		track(h);
	}
	run_steps(h, &c, 40);
	release(h, &c);
	print_message(
		"200 failovers: %u answers right, %u requests repeated, %u outputs died unseen\n",
		c.answered, c.repeated, lost_frames);
	assert_true(c.answered > 300 && c.repeated > 100 && lost_frames > 100 && full > 200);
	host_free(h);
}

static void planned_switch_is_exact(void **state)
{
	struct client c = {.chain = KV_CHAIN_START};
	struct host *a = host_new(false, 20000, true), *b = host_new(true, 0, true);

	(void)state;
	track(a);
	run_steps(a, &c, 500);
	checkpoint(a, b, true);
	release(a, &c);
	assert_string_equal(a->vmm->ops->status(a->vmm), "paused");
	assert_false(pocket_step(a->vmm, a->now_ns + 1, NULL));
	resume(b);
	assert_same(a, b);
	// From here on the same inputs at the same virtual times do the same.
	assert_int_equal(a->vmm->ops->cont(a->vmm, NULL), 0);
	for (unsigned i = 0; i < 500; i++) {
		if (i % 7 == 0) {
			struct client copy = c;

			srand(i);
			client_ask(&c, a);
			srand(i);
			client_ask(&copy, b);
		}
		a->now_ns += 300000;
		b->now_ns += 300000;
		assert_int_equal(pocket_step(a->vmm, a->now_ns, NULL),
				 pocket_step(b->vmm, b->now_ns, NULL));
		assert_int_equal(a->held_n, b->held_n);
		release(a, &c);
		b->held_n = 0;
	}
	assert_same(a, b);
	host_free(a);
	host_free(b);
}

static void failed_checkpoint_loses_no_page(void **state)
{
	static const enum pocket_fault faults[] = {POCKET_FAULT_STOPPED, POCKET_FAULT_COPY,
						   POCKET_FAULT_SAVE};
	struct client c = {.chain = KV_CHAIN_START};
	struct host *a = host_new(false, 50000, true), *b = host_new(true, 0, true);
	struct target t = {a, b};
	struct ft_err err;

	(void)state;
	track(a);
	run_steps(a, &c, 100);
	checkpoint(a, b, false);
	release(a, &c);
	for (unsigned i = 0; i < 30; i++) {
		struct vmm_hold_hooks hooks = {
			.stopped = on_stopped, .full = i % 4 == 3 ? NULL : on_full, .ctx = &t};

		run_steps(a, &c, 400);
		if (i % 4 != 3)
			pocket_fault_next(a->vmm, faults[i % 4]);
		assert_int_equal(a->vmm->ops->checkpoint(a->vmm, &a->pending, &a->capture, &hooks,
							 i % 2, &err),
				 i % 4 == 3 ? -ENOSPC : -EIO);
		assert_string_equal(a->vmm->ops->status(a->vmm), "running");
		assert_true(strstr(err.text, "pocket: ") == err.text);
		pocket_fault_next(a->vmm, POCKET_FAULT_HARVEST);
		assert_int_equal(a->vmm->ops->harvest(a->vmm, &a->pending, &err), -EIO);
		a->held_n = 0; // as a network loses frames; the client repeats
		if (i % 3 == 0) {
			checkpoint(a, b, false);
			assert_int_equal(digest(a), digest(b));
		}
	}
	checkpoint(a, b, true);
	resume(b);
	assert_same(a, b);
	host_free(a);
	host_free(b);
}

static void harvest_and_peek_see_what_was_written(void **state)
{
	struct host *h = host_new(false, 0, true);
	uint64_t pfns[PAGES];
	uint8_t *pages = malloc(RAM), *before = malloc(RAM);
	struct ft_err err = {0};

	(void)state;
	assert_int_equal(h->vmm->ops->harvest(h->vmm, &h->pending, &err), -EINVAL);
	assert_int_equal(h->vmm->ops->checkpoint_prepare(h->vmm, &err), -EINVAL);
	track(h);
	assert_int_equal(h->vmm->ops->track_start(h->vmm, &err), -EALREADY);
	pocket_step(h->vmm, ++h->now_ns, NULL); // boot
	ft_bitmap_clear_all(&h->pending);
	assert_int_equal(h->vmm->ops->harvest(h->vmm, &h->pending, &err), 0);
	assert_true(h->pending.count >= 1);
	assert_true(ft_bitmap_test(&h->pending, 0)); // the program's variables
	assert_int_equal(h->vmm->ops->dirty_peek(h->vmm, 100), 0);
	for (uint64_t i = 0; i < PAGES; i++)
		pfns[i] = i;
	assert_int_equal(h->vmm->ops->read_pages(h->vmm, pfns, PAGES, before, &err), 0);
	assert_int_equal(pocket_dirty_rate(h->vmm, 1000, &err), 0);
	for (unsigned ms = 0; ms < 50; ms++)
		while (pocket_step(h->vmm, h->now_ns + ms * 1000000, NULL))
			;
	assert_int_equal(h->vmm->ops->dirty_peek(h->vmm, 10), 10);
	assert_int_equal(h->vmm->ops->dirty_peek(h->vmm, 1000), 49);
	ft_bitmap_clear_all(&h->pending);
	assert_int_equal(h->vmm->ops->harvest(h->vmm, &h->pending, &err), 0);
	assert_int_equal(h->vmm->ops->read_pages(h->vmm, pfns, PAGES, pages, &err), 0);
	for (uint64_t i = 0; i < PAGES; i++)
		assert_int_equal(!!memcmp(pages + i * 4096, before + i * 4096, 4096),
				 ft_bitmap_test(&h->pending, i));
	pfns[0] = PAGES;
	assert_int_equal(h->vmm->ops->read_pages(h->vmm, pfns, 1, pages, &err), -EINVAL);
	h->vmm->ops->track_stop(h->vmm);
	assert_int_equal(h->vmm->ops->dirty_peek(h->vmm, 10), -EINVAL);
	free(pages);
	free(before);
	host_free(h);
}

static void trial_touches_nothing_and_tells_why(void **state)
{
	struct client c = {.chain = KV_CHAIN_START};
	struct host *a = host_new(false, 1000, true), *b = host_new(true, 0, true);
	struct ft_err err = {0};
	uint64_t was;

	(void)state;
	track(a);
	run_steps(a, &c, 300);
	checkpoint(a, b, false);
	was = digest(b);
	assert_int_equal(b->vmm->ops->trial(b->vmm, b->capture.state, b->capture.state_len, &err),
			 0);
	assert_int_equal(digest(b), was);
	assert_string_equal(b->vmm->ops->status(b->vmm), "inmigrate");
	assert_int_equal(
		b->vmm->ops->trial(b->vmm, b->capture.state, b->capture.state_len - 1, &err),
		-EPROTO);
	assert_non_null(strstr(err.text, "pocket: trial: pocket state: "));
	assert_int_equal(
		b->vmm->ops->resume(b->vmm, b->capture.state, b->capture.state_len - 1, &err),
		-EPROTO);
	// A page that did not arrive.
	memset(b->vmm->ops->image(b->vmm), 0, 4096);
	assert_int_equal(b->vmm->ops->trial(b->vmm, b->capture.state, b->capture.state_len, &err),
			 -EBADMSG);
	assert_non_null(strstr(err.text, "variables"));
	ft_bitmap_set_all(&a->pending);
	checkpoint(a, b, false);
	pocket_fault_next(b->vmm, POCKET_FAULT_TRIAL);
	assert_int_equal(b->vmm->ops->trial(b->vmm, b->capture.state, b->capture.state_len, &err),
			 -EIO);
	pocket_fault_next(b->vmm, POCKET_FAULT_RESUME);
	assert_int_equal(b->vmm->ops->resume(b->vmm, b->capture.state, b->capture.state_len, &err),
			 -EIO);
	resume(b);
	assert_int_equal(a->vmm->ops->resume(a->vmm, a->capture.state, a->capture.state_len, &err),
			 -EINVAL);
	host_free(a);
	host_free(b);
}

static void loss_is_told_once(void **state)
{
	struct host *h = host_new(false, 0, true);
	struct pollfd p;

	(void)state;
	p = (struct pollfd){.fd = h->vmm->ops->poll_fd(h->vmm), .events = POLLIN};
	assert_int_equal(poll(&p, 1, 0), 0);
	pocket_crash(h->vmm);
	assert_int_equal(poll(&p, 1, 0), 1);
	h->vmm->ops->poll(h->vmm);
	assert_string_equal(h->lost, "the machine crashed");
	assert_string_equal(h->vmm->ops->status(h->vmm), "internal-error");
	h->lost = NULL;
	h->vmm->ops->poll(h->vmm);
	assert_null(h->lost);
	h->vmm->ops->quit(h->vmm, true, 100);
	host_free(h);
}

static uint64_t state_time(struct host *h, uint64_t *dirtied)
{
	uint8_t *bytes = malloc(VMM_STATE_BYTES_MAX);
	uint64_t time_ns;

	pocket_state(h->vmm, bytes);
	memcpy(&time_ns, bytes + 24 + 8 + 8 + 40 + 8, 8);
	memcpy(dirtied, bytes + 24 + 8 + 8 + 40 + 24 + 7 * 8, 8);
	free(bytes);
	return time_ns;
}

// With its own thread: checkpoints as fast as they come while it dirties, and the rate is kept in
// the machine's own time.
static void thread_is_paused_exactly(void **state)
{
	struct host *a = host_new(false, 30000, false), *b = host_new(true, 0, false);
	uint64_t time_ns, dirtied, end_ms = 0;
	struct timespec ts;
	uint64_t pfn = 100;
	uint8_t page[4096];

	(void)state;
	track(a);
	clock_gettime(CLOCK_MONOTONIC, &ts);
	end_ms = (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000 + 1500;
	for (unsigned n = 0;; n++) {
		checkpoint(a, b, false);
		assert_int_equal(a->vmm->ops->read_pages(a->vmm, &pfn, 1, page, NULL), 0);
		clock_gettime(CLOCK_MONOTONIC, &ts);
		if ((uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000 >= end_ms) {
			print_message("%u checkpoints in 1.5 s, last pause %llu us\n", n,
				      (unsigned long long)a->capture.pause_ns / 1000);
			assert_int_equal(a->stopped, n + 1);
			break;
		}
	}
	checkpoint(a, b, true);
	time_ns = state_time(a, &dirtied);
	print_message("%llu pages in %llu ms of its own\n", (unsigned long long)dirtied,
		      (unsigned long long)time_ns / 1000000);
	assert_in_range(time_ns, 100000000, 1600000000);
	assert_in_range(dirtied, time_ns / 1000 * 30 / 1000 * 9 / 10,
			time_ns / 1000 * 30 / 1000 + 64);
	assert_int_equal(digest(a), digest(b));
	resume(b);
	assert_int_equal(b->vmm->ops->stop(b->vmm, NULL), 0);
	assert_string_equal(b->vmm->ops->status(b->vmm), "paused");
	assert_int_equal(b->vmm->ops->cont(b->vmm, NULL), 0);
	b->vmm->ops->quit(b->vmm, true, 1000);
	assert_string_equal(b->vmm->ops->status(b->vmm), "shutdown");
	host_free(a);
	host_free(b);
}

static int need_tracker(void **state)
{
	struct ft_err err;

	(void)state;
	if (!tracker_check(0, &err))
		return 0;
	print_message("skipped: %s\n", err.text);
	exit(77);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(two_hundred_failovers),
		cmocka_unit_test(planned_switch_is_exact),
		cmocka_unit_test(failed_checkpoint_loses_no_page),
		cmocka_unit_test(harvest_and_peek_see_what_was_written),
		cmocka_unit_test(trial_touches_nothing_and_tells_why),
		cmocka_unit_test(loss_is_told_once),
		cmocka_unit_test(thread_is_paused_exactly),
	};

	return cmocka_run_group_tests(tests, need_tracker, NULL);
}
