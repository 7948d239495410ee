// SPDX-License-Identifier: Apache-2.0
// Memory that follows: by itself and on demand, with threads of ours as the guest that touches what
// is not there; the same into huge pages.
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "tests/fixture/pages_lab.h"

static void follows_by_itself(void **state)
{
	struct pages_lab *t = *state;
	struct page_client_stats stats;

	pages_lab_begin(t, true);
	pages_lab_wait_client(t, PAGES_DONE);
	pages_lab_wait_server(t, PAGES_DONE);
	pages_lab_expect_same(t);
	page_client_stats(t->client, &stats);
	assert_int_equal(stats.pages.pages, PAGES_LAB_PAGES);
	assert_int_equal(stats.pages.pages_done, PAGES_LAB_PAGES);
	/* Ordinary memory again. */
	t->to.ram[0]++;
}

static void on_demand_only(void **state)
{
	struct pages_lab *t = *state;
	struct page_client_stats stats;
	uint64_t counted = 0;

	pages_lab_begin(t, false);
	for (uint64_t i = 0; i < PAGES_LAB_PAGES; i += 7)
		assert_true(pages_lab_word(&t->to, i) == pages_lab_stamp(i));
	/* Who waited runs before the thread that brought its page has written that down. */
	do
		page_client_stats(t->client, &stats);
	while (stats.pages.pages_done < (PAGES_LAB_PAGES + 6) / 7 && poll(NULL, 0, 1) == 0);
	assert_int_equal(stats.pages.faults, (PAGES_LAB_PAGES + 6) / 7);
	assert_int_equal(stats.pages.pages_done, (PAGES_LAB_PAGES + 6) / 7);
	assert_true(stats.fault_us.max > 0);
	for (unsigned i = 0; i < PAGE_CLIENT_BUCKETS; i++)
		counted += stats.histogram[i];
	assert_int_equal(counted, stats.pages.faults);
	page_server_background(t->server, true);
	pages_lab_wait_client(t, PAGES_DONE);
	pages_lab_expect_same(t);
}

/* After rounds some pages are there; of those that are not, zero pages of the source stay holes. */
static void some_are_there(void **state)
{
	struct pages_lab *t = *state;

	for (uint64_t i = 0; i < PAGES_LAB_PAGES; i += 2) {
		memcpy(t->to.ram + i * VMM_PAGE_BYTES, t->from.ram + i * VMM_PAGE_BYTES,
		       VMM_PAGE_BYTES);
		ft_bitmap_clear(&t->missing, i);
	}
	pages_lab_begin(t, false);
	for (uint64_t i = 0; i < PAGES_LAB_PAGES; i++)
		assert_true(pages_lab_word(&t->to, i) == pages_lab_stamp(i));
	pages_lab_wait_client(t, PAGES_DONE);
	pages_lab_wait_server(t, PAGES_DONE);
	pages_lab_expect_same(t);
}

struct guest {
	struct pages_lab *t;
	unsigned id;
	atomic_uint pages;
	bool wrong;
};

static void *touch(void *ctx)
{
	struct guest *g = ctx;

	for (uint64_t i = 0; i < PAGES_LAB_PAGES; i++) {
		uint64_t pfn = (i * 577 + g->id * 131) % PAGES_LAB_PAGES;

		g->wrong |= pages_lab_word(&g->t->to, pfn) != pages_lab_stamp(pfn);
		g->pages++;
	}
	return NULL;
}

static void many_wait(void **state)
{
	struct pages_lab *t = *state;
	struct guest guests[4];
	pthread_t threads[4];

	pages_lab_begin(t, true);
	for (unsigned i = 0; i < 4; i++) {
		guests[i] = (struct guest){.t = t, .id = i};
		assert_int_equal(pthread_create(&threads[i], NULL, touch, &guests[i]), 0);
	}
	for (unsigned i = 0; i < 4; i++) {
		pthread_join(threads[i], NULL);
		assert_false(guests[i].wrong);
	}
	pages_lab_wait_client(t, PAGES_DONE);
	pages_lab_expect_same(t);
}

/* The guest waits as long as it takes, and misses nothing. */
static void cut_and_joined(void **state)
{
	struct pages_lab *t = *state;
	struct guest g = {.t = t};
	pthread_t thread;
	unsigned before;

	pages_lab_begin(t, false);
	assert_true(pages_lab_word(&t->to, 1) == pages_lab_stamp(1));
	page_client_cut(t->client);
	pages_lab_wait_client(t, PAGES_CUT);
	pages_lab_wait_server(t, PAGES_CUT);
	assert_int_equal(pthread_create(&thread, NULL, touch, &g), 0);
	poll(NULL, 0, PAGES_LAB_SILENCE_MS);
	before = g.pages;
	poll(NULL, 0, PAGES_LAB_SILENCE_MS);
	assert_int_equal(g.pages, before);
	pages_lab_join(t);
	page_server_background(t->server, true);
	pthread_join(thread, NULL);
	assert_false(g.wrong);
	pages_lab_wait_client(t, PAGES_DONE);
	pages_lab_wait_server(t, PAGES_DONE);
	pages_lab_expect_same(t);
}

/* What the guest wrote is not overwritten by what comes late. */
static void written_meanwhile(void **state)
{
	struct pages_lab *t = *state;

	pages_lab_begin(t, true);
	for (uint64_t i = 0; i < PAGES_LAB_PAGES; i += 5)
		*(volatile uint64_t *)(void *)(t->to.ram + i * VMM_PAGE_BYTES) = i + 1;
	pages_lab_wait_client(t, PAGES_DONE);
	for (uint64_t i = 0; i < PAGES_LAB_PAGES; i++)
		assert_true(pages_lab_word(&t->to, i) == (i % 5 ? pages_lab_stamp(i) : i + 1));
}

static void no_file(void **state)
{
	struct pages_lab *t = *state;
	struct vmm_ram ram = t->to.where;
	struct page_client *c;
	struct ft_err err = {0};

	ram.fd = -1;
	assert_int_equal(page_client_new(&ram, 1, pages_lab_news, &t->to, &c, &err), -ENOTSUP);
}

PAGES_LAB_INTO_HUGE(follows_by_itself)
PAGES_LAB_INTO_HUGE(some_are_there)
PAGES_LAB_INTO_HUGE(many_wait)
PAGES_LAB_INTO_HUGE(cut_and_joined)
PAGES_LAB_INTO_HUGE(written_meanwhile)

int main(void)
{
	const struct CMUnitTest tests[] = {
		PAGES_LAB_TEST(follows_by_itself),
		PAGES_LAB_TEST(on_demand_only),
		PAGES_LAB_TEST(some_are_there),
		PAGES_LAB_TEST(many_wait),
		PAGES_LAB_TEST(cut_and_joined),
		PAGES_LAB_TEST(written_meanwhile),
		PAGES_LAB_TEST(no_file),
		PAGES_LAB_TEST_HUGE(huge_follows_by_itself),
		PAGES_LAB_TEST_HUGE(huge_some_are_there),
		PAGES_LAB_TEST_HUGE(huge_many_wait),
		PAGES_LAB_TEST_BOTH(huge_many_wait),
		PAGES_LAB_TEST_HUGE(huge_cut_and_joined),
		PAGES_LAB_TEST_HUGE(huge_written_meanwhile),
	};

	pages_lab_take_huge();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
