// SPDX-License-Identifier: Apache-2.0
// The machine behind struct vmm_ops: checkpoints into an armed machine, failovers, failures of a
// checkpoint, all of it against a client's model of what it was told.
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

#include "tests/fixture/mem_host.h"
#include "vmm-glue/tracker.h"

#define KEYS 61

struct client {
	uint64_t seq, number, chain;
	uint64_t put_number, put_chain; // the last PUT that was answered
	char request[KV_REQUEST_MAX], values[KEYS][32];
	bool waiting;
	unsigned answered, repeated;
};

static void client_ask(struct client *c, struct mem_host *h)
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
	memcpy(frame, mem_host_peer, sizeof mem_host_peer);
	memcpy(frame + sizeof mem_host_peer, c->request, n);
	pocket_receive(h->vmm, frame, sizeof mem_host_peer + n);
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

static void release(struct mem_host *h, struct client *c)
{
	for (unsigned i = 0; i < h->held_n; i++)
		client_hear(c, h->held[i].text, h->held[i].len);
	h->held_n = 0;
}

static void run_steps(struct mem_host *h, struct client *c, unsigned steps)
{
	while (steps--) {
		h->now_ns += 200000;
		if (c && rand() % 4 == 0 && h->held_n < MEM_HOST_HELD_MAX / 2)
			client_ask(c, h);
		pocket_step(h->vmm, h->now_ns, NULL);
	}
}

// The last PUT that the outside knows of is on the disk.
static void assert_journal(const struct mem_host *h, const struct client *c)
{
	struct kv_record rec;

	for (size_t at = 0; at < MEM_HOST_DISK && c->put_number; at += sizeof rec) {
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
	struct mem_host *h = mem_host_new(false, 5000, true);
	unsigned lost_frames = 0, full = 0;

	(void)state;
	srand(3);
	mem_host_track(h);
	for (unsigned round = 0; round < 200; round++) {
		struct mem_host *standby = mem_host_new(true, 0, true);

		// Some checkpoints, each releasing what it contains.
		for (int n = 1 + rand() % 3; n; n--) {
			run_steps(h, &c, 1 + (unsigned)rand() % 40);
			mem_host_checkpoint(h, standby, false);
			assert_int_equal(mem_host_digest(h), mem_host_digest(standby));
			release(h, &c);
			assert_journal(h, &c);
		}
		// Then work that no checkpoint has, and the machine dies with its outputs.
		run_steps(h, &c, (unsigned)rand() % 40);
		lost_frames += h->held_n;
		full += h->full;
		standby->now_ns = (uint64_t)rand() * 1000; // another host, another clock
		mem_host_free(h);
		mem_host_resume(standby);
		h = standby;
		mem_host_track(h);
	}
	run_steps(h, &c, 40);
	release(h, &c);
	print_message(
		"200 failovers: %u answers right, %u requests repeated, %u outputs died unseen\n",
		c.answered, c.repeated, lost_frames);
	assert_true(c.answered > 300 && c.repeated > 100 && lost_frames > 100 && full > 200);
	mem_host_free(h);
}

static void planned_switch_is_exact(void **state)
{
	struct client c = {.chain = KV_CHAIN_START};
	struct mem_host *a = mem_host_new(false, 20000, true), *b = mem_host_new(true, 0, true);

	(void)state;
	mem_host_track(a);
	run_steps(a, &c, 500);
	mem_host_checkpoint(a, b, true);
	release(a, &c);
	assert_string_equal(a->vmm->ops->status(a->vmm), "paused");
	assert_false(pocket_step(a->vmm, a->now_ns + 1, NULL));
	mem_host_resume(b);
	mem_host_expect_same(a, b);
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
	mem_host_expect_same(a, b);
	mem_host_free(a);
	mem_host_free(b);
}

static void failed_checkpoint_loses_no_page(void **state)
{
	static const enum pocket_fault faults[] = {POCKET_FAULT_STOPPED, POCKET_FAULT_COPY,
						   POCKET_FAULT_SAVE};
	struct client c = {.chain = KV_CHAIN_START};
	struct mem_host *a = mem_host_new(false, 50000, true), *b = mem_host_new(true, 0, true);
	struct mem_move move = {a, b};
	struct ft_err err;

	(void)state;
	mem_host_track(a);
	run_steps(a, &c, 100);
	mem_host_checkpoint(a, b, false);
	release(a, &c);
	for (unsigned i = 0; i < 30; i++) {
		struct vmm_hold_hooks hooks = mem_host_hooks(&move);

		if (i % 4 == 3)
			hooks.full = NULL;
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
			mem_host_checkpoint(a, b, false);
			assert_int_equal(mem_host_digest(a), mem_host_digest(b));
		}
	}
	mem_host_checkpoint(a, b, true);
	mem_host_resume(b);
	mem_host_expect_same(a, b);
	mem_host_free(a);
	mem_host_free(b);
}

static void harvest_and_peek_see_what_was_written(void **state)
{
	struct mem_host *h = mem_host_new(false, 0, true);
	uint64_t pfns[MEM_HOST_PAGES];
	uint8_t *pages = malloc(MEM_HOST_RAM), *before = malloc(MEM_HOST_RAM);
	struct ft_err err = {0};

	(void)state;
	assert_int_equal(h->vmm->ops->harvest(h->vmm, &h->pending, &err), -EINVAL);
	assert_int_equal(h->vmm->ops->checkpoint_prepare(h->vmm, &err), -EINVAL);
	mem_host_track(h);
	assert_int_equal(h->vmm->ops->track_start(h->vmm, &err), -EALREADY);
	pocket_step(h->vmm, ++h->now_ns, NULL); // boot
	ft_bitmap_clear_all(&h->pending);
	assert_int_equal(h->vmm->ops->harvest(h->vmm, &h->pending, &err), 0);
	assert_true(h->pending.count >= 1);
	assert_true(ft_bitmap_test(&h->pending, 0)); // the program's variables
	assert_int_equal(h->vmm->ops->dirty_peek(h->vmm, 100), 0);
	for (uint64_t i = 0; i < MEM_HOST_PAGES; i++)
		pfns[i] = i;
	assert_int_equal(h->vmm->ops->read_pages(h->vmm, pfns, MEM_HOST_PAGES, before, &err), 0);
	assert_int_equal(pocket_dirty_rate(h->vmm, 1000, &err), 0);
	for (unsigned ms = 0; ms < 50; ms++)
		while (pocket_step(h->vmm, h->now_ns + ms * 1000000, NULL))
			;
	assert_int_equal(h->vmm->ops->dirty_peek(h->vmm, 10), 10);
	assert_int_equal(h->vmm->ops->dirty_peek(h->vmm, 1000), 49);
	ft_bitmap_clear_all(&h->pending);
	assert_int_equal(h->vmm->ops->harvest(h->vmm, &h->pending, &err), 0);
	assert_int_equal(h->vmm->ops->read_pages(h->vmm, pfns, MEM_HOST_PAGES, pages, &err), 0);
	for (uint64_t i = 0; i < MEM_HOST_PAGES; i++)
		assert_int_equal(!!memcmp(pages + i * 4096, before + i * 4096, 4096),
				 ft_bitmap_test(&h->pending, i));
	pfns[0] = MEM_HOST_PAGES;
	assert_int_equal(h->vmm->ops->read_pages(h->vmm, pfns, 1, pages, &err), -EINVAL);
	h->vmm->ops->track_stop(h->vmm);
	assert_int_equal(h->vmm->ops->dirty_peek(h->vmm, 10), -EINVAL);
	free(pages);
	free(before);
	mem_host_free(h);
}

static void trial_touches_nothing_and_tells_why(void **state)
{
	struct client c = {.chain = KV_CHAIN_START};
	struct mem_host *a = mem_host_new(false, 1000, true), *b = mem_host_new(true, 0, true);
	struct ft_err err = {0};
	uint64_t was;

	(void)state;
	mem_host_track(a);
	run_steps(a, &c, 300);
	mem_host_checkpoint(a, b, false);
	was = mem_host_digest(b);
	assert_int_equal(b->vmm->ops->trial(b->vmm, b->capture.state, b->capture.state_len, &err),
			 0);
	assert_int_equal(mem_host_digest(b), was);
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
	mem_host_checkpoint(a, b, false);
	pocket_fault_next(b->vmm, POCKET_FAULT_TRIAL);
	assert_int_equal(b->vmm->ops->trial(b->vmm, b->capture.state, b->capture.state_len, &err),
			 -EIO);
	pocket_fault_next(b->vmm, POCKET_FAULT_RESUME);
	assert_int_equal(b->vmm->ops->resume(b->vmm, b->capture.state, b->capture.state_len, &err),
			 -EIO);
	mem_host_resume(b);
	assert_int_equal(a->vmm->ops->resume(a->vmm, a->capture.state, a->capture.state_len, &err),
			 -EINVAL);
	mem_host_free(a);
	mem_host_free(b);
}

static void loss_is_told_once(void **state)
{
	struct mem_host *h = mem_host_new(false, 0, true);
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
	mem_host_free(h);
}

static uint64_t state_time(struct mem_host *h, uint64_t *dirtied)
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
	struct mem_host *a = mem_host_new(false, 30000, false), *b = mem_host_new(true, 0, false);
	uint64_t time_ns, dirtied, end_ms = 0;
	struct timespec ts;
	uint64_t pfn = 100;
	uint8_t page[4096];

	(void)state;
	mem_host_track(a);
	clock_gettime(CLOCK_MONOTONIC, &ts);
	end_ms = (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000 + 1500;
	for (unsigned n = 0;; n++) {
		mem_host_checkpoint(a, b, false);
		assert_int_equal(a->vmm->ops->read_pages(a->vmm, &pfn, 1, page, NULL), 0);
		clock_gettime(CLOCK_MONOTONIC, &ts);
		if ((uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000 >= end_ms) {
			print_message("%u checkpoints in 1.5 s, last pause %llu us\n", n,
				      (unsigned long long)a->capture.pause_ns / 1000);
			assert_int_equal(a->stopped, n + 1);
			break;
		}
	}
	mem_host_checkpoint(a, b, true);
	time_ns = state_time(a, &dirtied);
	print_message("%llu pages in %llu ms of its own\n", (unsigned long long)dirtied,
		      (unsigned long long)time_ns / 1000000);
	assert_in_range(time_ns, 100000000, 1600000000);
	assert_in_range(dirtied, time_ns / 1000 * 30 / 1000 * 9 / 10,
			time_ns / 1000 * 30 / 1000 + 64);
	assert_int_equal(mem_host_digest(a), mem_host_digest(b));
	mem_host_resume(b);
	assert_int_equal(b->vmm->ops->stop(b->vmm, NULL), 0);
	assert_string_equal(b->vmm->ops->status(b->vmm), "paused");
	assert_int_equal(b->vmm->ops->cont(b->vmm, NULL), 0);
	b->vmm->ops->quit(b->vmm, true, 1000);
	assert_string_equal(b->vmm->ops->status(b->vmm), "shutdown");
	mem_host_free(a);
	mem_host_free(b);
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
