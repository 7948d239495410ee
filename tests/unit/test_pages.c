// SPDX-License-Identifier: Apache-2.0
// Memory that follows, with the real threads, wires and userfaultfd: a source and a target in this
// process, and threads of ours as the guest that touches what is not there.
#include <errno.h>
#include <linux/memfd.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/fixture/transport.h"
#include "tests/huge_pages.h"
#include "ft/msg.h"
#include "transport/wire.h"
#include "vmm-glue/postcopy/page_client.h"
#include "vmm-glue/postcopy/page_huge.h"
#include "vmm-glue/uffd.h"

#define PAGES	   2048
#define BYTES	   ((uint64_t)PAGES * VMM_PAGE_BYTES)
#define GENERATION 7
#define SILENCE_MS 200

struct side {
	int fd, news;
	uint8_t *ram;
	struct vmm_ram where;
};

struct test {
	struct event_base *base;
	struct side from, to;
	struct page_server *server;
	struct page_client *client;
	struct ft_bitmap missing;
};

static void on_news(void *ctx)
{
	eventfd_write(((struct side *)ctx)->news, 1);
}

static bool huge_from, huge_to;

static void side_open(struct side *s, bool huge)
{
	s->fd = memfd_create("pages", MFD_CLOEXEC | (huge ? MFD_HUGETLB | MFD_HUGE_2MB : 0));
	assert_int_equal(ftruncate(s->fd, BYTES), 0);
	s->ram = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, 0);
	assert_true(s->ram != MAP_FAILED);
	s->news = eventfd(0, EFD_CLOEXEC);
	s->where = (struct vmm_ram){
		.pidfd = -1, .address = (uintptr_t)s->ram, .bytes = BYTES, .fd = s->fd};
}

/* What page i has; every third is zeroes. */
static uint64_t stamp(uint64_t pfn)
{
	return pfn % 3 ? 0x1234567800000000u + pfn : 0;
}

static void fill(struct test *t)
{
	for (uint64_t i = 0; i < PAGES; i++)
		if (stamp(i))
			for (unsigned w = 0; w < VMM_PAGE_BYTES / 8; w += 64)
				((uint64_t *)(void *)(t->from.ram + i * VMM_PAGE_BYTES))[w] =
					stamp(i);
}

static struct ft_wire *wire(struct test *t, int fd)
{
	struct ft_err err = {0};
	struct channel *channel = channel_socket_new(fd, &err);
	struct ft_link *link = link_new(t->base, channel, "test", &err);
	struct ft_wire *w = NULL;

	assert_int_equal(wire_of_link(link, &w, &err), 0);
	return w;
}

static void join(struct test *t)
{
	int urgent[2], bulk[2];
	struct ft_err err = {0};

	tcp_pair(urgent);
	tcp_pair(bulk);
	assert_int_equal(page_client_connect(t->client, wire(t, urgent[1]), wire(t, bulk[1]), &err),
			 0);
	assert_int_equal(page_server_connect(t->server, wire(t, urgent[0]), wire(t, bulk[0]), &err),
			 0);
}

static int setup(void **state)
{
	struct test *t = calloc(1, sizeof *t);
	struct ft_err err = {0};
	int fd = uffd_own(0, &err);

	if (fd < 0) {
		printf("skipped: %s\n", err.text);
		exit(77);
	}
	close(fd);
	t->base = event_base_new();
	side_open(&t->from, huge_from);
	side_open(&t->to, huge_to);
	fill(t);
	/* What a firmware left there. */
	memset(t->to.ram, 0x55, BYTES);
	assert_int_equal(ft_bitmap_init(&t->missing, PAGES), 0);
	ft_bitmap_set_all(&t->missing);
	assert_int_equal(
		page_server_new(&t->from.where, GENERATION, on_news, &t->from, &t->server, &err),
		0);
	assert_int_equal(
		page_client_new(&t->to.where, GENERATION, on_news, &t->to, &t->client, &err), 0);
	join(t);
	*state = t;
	return 0;
}

static int teardown(void **state)
{
	struct test *t = *state;

	page_server_free(t->server);
	page_client_free(t->client);
	for (unsigned i = 0; i < 2; i++) {
		struct side *s = i ? &t->to : &t->from;

		munmap(s->ram, BYTES);
		close(s->fd);
		close(s->news);
	}
	ft_bitmap_free(&t->missing);
	event_base_free(t->base);
	free(t);
	return 0;
}

static void begin(struct test *t, bool background)
{
	struct ft_err err = {0};

	page_server_give(t->server, &t->missing, background);
	assert_int_equal(page_client_begin(t->client, &t->missing, &err), 0);
}

static void wait_client(struct test *t, enum page_state state)
{
	struct pollfd p = {.fd = t->to.news, .events = POLLIN};
	struct ft_err why;
	eventfd_t n;

	while (page_client_state(t->client, &why) != state) {
		if (poll(&p, 1, WAIT_MS) == 0)
			fail_msg("the client is not in state %d: %s", state, why.text);
		eventfd_read(t->to.news, &n);
	}
}

static void wait_server(struct test *t, enum page_state state)
{
	struct pollfd p = {.fd = t->from.news, .events = POLLIN};
	struct ft_err why;
	eventfd_t n;

	while (page_server_state(t->server, &why) != state) {
		if (poll(&p, 1, WAIT_MS) == 0)
			fail_msg("the server is not in state %d: %s", state, why.text);
		eventfd_read(t->from.news, &n);
	}
}

static uint64_t word(const struct side *s, uint64_t pfn)
{
	return *(volatile uint64_t *)(void *)(s->ram + pfn * VMM_PAGE_BYTES);
}

static void assert_same(struct test *t)
{
	assert_memory_equal(t->from.ram, t->to.ram, BYTES);
}

/* ---- tests ---- */

static void follows_by_itself(void **state)
{
	struct test *t = *state;
	struct page_client_stats stats;

	begin(t, true);
	wait_client(t, PAGES_DONE);
	wait_server(t, PAGES_DONE);
	assert_same(t);
	page_client_stats(t->client, &stats);
	assert_int_equal(stats.pages.pages, PAGES);
	assert_int_equal(stats.pages.pages_done, PAGES);
	/* Ordinary memory again. */
	t->to.ram[0]++;
}

static void on_demand_only(void **state)
{
	struct test *t = *state;
	struct page_client_stats stats;
	uint64_t counted = 0;

	begin(t, false);
	for (uint64_t i = 0; i < PAGES; i += 7)
		assert_true(word(&t->to, i) == stamp(i));
	/* Who waited runs before the thread that brought its page has written that down. */
	do
		page_client_stats(t->client, &stats);
	while (stats.pages.pages_done < (PAGES + 6) / 7 && poll(NULL, 0, 1) == 0);
	assert_int_equal(stats.pages.faults, (PAGES + 6) / 7);
	assert_int_equal(stats.pages.pages_done, (PAGES + 6) / 7);
	assert_true(stats.fault_us.max > 0);
	for (unsigned i = 0; i < PAGE_CLIENT_BUCKETS; i++)
		counted += stats.histogram[i];
	assert_int_equal(counted, stats.pages.faults);
	page_server_background(t->server, true);
	wait_client(t, PAGES_DONE);
	assert_same(t);
}

/* After rounds some pages are there; of those that are not, zero pages of the source stay holes. */
static void some_are_there(void **state)
{
	struct test *t = *state;

	for (uint64_t i = 0; i < PAGES; i += 2) {
		memcpy(t->to.ram + i * VMM_PAGE_BYTES, t->from.ram + i * VMM_PAGE_BYTES,
		       VMM_PAGE_BYTES);
		ft_bitmap_clear(&t->missing, i);
	}
	begin(t, false);
	for (uint64_t i = 0; i < PAGES; i++)
		assert_true(word(&t->to, i) == stamp(i));
	wait_client(t, PAGES_DONE);
	wait_server(t, PAGES_DONE);
	assert_same(t);
}

struct guest {
	struct test *t;
	unsigned id;
	atomic_uint pages;
	bool wrong;
};

static void *touch(void *ctx)
{
	struct guest *g = ctx;

	for (uint64_t i = 0; i < PAGES; i++) {
		uint64_t pfn = (i * 577 + g->id * 131) % PAGES;

		g->wrong |= word(&g->t->to, pfn) != stamp(pfn);
		g->pages++;
	}
	return NULL;
}

static void many_wait(void **state)
{
	struct test *t = *state;
	struct guest guests[4];
	pthread_t threads[4];

	begin(t, true);
	for (unsigned i = 0; i < 4; i++) {
		guests[i] = (struct guest){.t = t, .id = i};
		assert_int_equal(pthread_create(&threads[i], NULL, touch, &guests[i]), 0);
	}
	for (unsigned i = 0; i < 4; i++) {
		pthread_join(threads[i], NULL);
		assert_false(guests[i].wrong);
	}
	wait_client(t, PAGES_DONE);
	assert_same(t);
}

/* The guest waits as long as it takes, and misses nothing. */
static void cut_and_joined(void **state)
{
	struct test *t = *state;
	struct guest g = {.t = t};
	pthread_t thread;
	unsigned before;

	begin(t, false);
	assert_true(word(&t->to, 1) == stamp(1));
	page_client_cut(t->client);
	wait_client(t, PAGES_CUT);
	wait_server(t, PAGES_CUT);
	assert_int_equal(pthread_create(&thread, NULL, touch, &g), 0);
	poll(NULL, 0, SILENCE_MS);
	before = g.pages;
	poll(NULL, 0, SILENCE_MS);
	assert_int_equal(g.pages, before);
	join(t);
	page_server_background(t->server, true);
	pthread_join(thread, NULL);
	assert_false(g.wrong);
	wait_client(t, PAGES_DONE);
	wait_server(t, PAGES_DONE);
	assert_same(t);
}

/* What the guest wrote is not overwritten by what comes late. */
static void written_meanwhile(void **state)
{
	struct test *t = *state;

	begin(t, true);
	for (uint64_t i = 0; i < PAGES; i += 5)
		*(volatile uint64_t *)(void *)(t->to.ram + i * VMM_PAGE_BYTES) = i + 1;
	wait_client(t, PAGES_DONE);
	for (uint64_t i = 0; i < PAGES; i++)
		assert_true(word(&t->to, i) == (i % 5 ? stamp(i) : i + 1));
}

/* ---- what else follows ---- */

#define PIECES 40
struct goods {
	struct ft_cargo cargo;
	pthread_mutex_t lock;
	unsigned at;	      /* source: next; target: has come */
	unsigned hold_at;     /* source: no more than so many */
	unsigned asked_again; /* source */
	uint8_t body;
};

static bool goods_next(struct ft_cargo *c, struct ft_msg *msg)
{
	struct goods *g = (struct goods *)c;
	bool more;

	pthread_mutex_lock(&g->lock);
	more = g->at < g->hold_at;
	g->body = (uint8_t)g->at;
	g->at += more;
	pthread_mutex_unlock(&g->lock);
	*msg = (struct ft_msg){.type = FT_MSG_BITMAP, .body = &g->body, .body_len = 1};
	return more;
}

static int goods_go_on(struct ft_cargo *c, const struct ft_msg *msg, struct ft_err *err)
{
	struct goods *g = (struct goods *)c;

	(void)err;
	pthread_mutex_lock(&g->lock);
	g->at = msg->body[0];
	g->hold_at = PIECES;
	g->asked_again++;
	pthread_mutex_unlock(&g->lock);
	return 0;
}

static int goods_take(struct ft_cargo *c, const struct ft_msg *msg, struct ft_err *err)
{
	struct goods *g = (struct goods *)c;
	bool good;

	pthread_mutex_lock(&g->lock);
	good = msg->body_len == 1 && msg->body[0] == g->at;
	g->at += good;
	pthread_mutex_unlock(&g->lock);
	return good ? 0 : ft_err_set(err, EPROTO, "not the next one");
}

static void goods_lacks(struct ft_cargo *c, struct ft_msg *msg)
{
	struct goods *g = (struct goods *)c;

	pthread_mutex_lock(&g->lock);
	g->body = (uint8_t)g->at;
	pthread_mutex_unlock(&g->lock);
	*msg = (struct ft_msg){.type = FT_MSG_BITMAP, .body = &g->body, .body_len = 1};
}

static bool goods_all(struct ft_cargo *c)
{
	struct goods *g = (struct goods *)c;
	bool all;

	pthread_mutex_lock(&g->lock);
	all = g->at == PIECES;
	pthread_mutex_unlock(&g->lock);
	return all;
}

static const struct ft_cargo_ops goods_ops = {.next = goods_next,
					      .go_on = goods_go_on,
					      .take = goods_take,
					      .lacks = goods_lacks,
					      .all = goods_all};

static void goods_init(struct goods *g, unsigned hold_at)
{
	*g = (struct goods){.cargo = {.ops = &goods_ops}, .hold_at = hold_at};
	pthread_mutex_init(&g->lock, NULL);
}

static void wait_here(struct test *t)
{
	struct pollfd p = {.fd = t->to.news, .events = POLLIN};
	eventfd_t n;

	while (!page_client_here(t->client)) {
		if (poll(&p, 1, WAIT_MS) == 0)
			fail_msg("the pages are not here");
		eventfd_read(t->to.news, &n);
	}
}

/* Memory is ordinary before all of it has come; the source keeps what is left, through a lost link,
 * until it has. */
static void cargo_follows(void **state)
{
	struct test *t = *state;
	static struct goods from, to;
	struct ft_err why;

	goods_init(&from, PIECES / 2);
	goods_init(&to, 0);
	page_server_cargo(t->server, &from.cargo);
	page_client_cargo(t->client, &to.cargo);
	begin(t, true);
	poll(NULL, 0, SILENCE_MS);
	assert_int_equal(to.at, 0); /* the guest does not run there yet */
	page_server_background(t->server, true);
	wait_here(t);
	assert_same(t);
	t->to.ram[0]++;
	assert_int_equal(page_client_state(t->client, &why), PAGES_SERVING);
	page_client_cut(t->client);
	wait_client(t, PAGES_CUT);
	wait_server(t, PAGES_CUT);
	assert_true(to.at <= PIECES / 2);
	join(t);
	wait_client(t, PAGES_DONE);
	wait_server(t, PAGES_DONE);
	assert_int_equal(to.at, PIECES);
	assert_int_equal(from.asked_again, 1);
}

/* Nobody waits for it any more, and the source is gone. */
static void cargo_given_up(void **state)
{
	struct test *t = *state;
	static struct goods from, to;

	goods_init(&from, 0);
	goods_init(&to, 0);
	page_server_cargo(t->server, &from.cargo);
	page_client_cargo(t->client, &to.cargo);
	begin(t, true);
	wait_here(t);
	page_client_cut(t->client);
	wait_client(t, PAGES_CUT);
	pthread_mutex_lock(&to.lock);
	to.at = PIECES;
	pthread_mutex_unlock(&to.lock);
	page_client_look(t->client);
	wait_client(t, PAGES_DONE);
}

/* ---- a hostile source ---- */

static void expect_cut(struct test *t, int fd, const struct ft_msg *msg, const char *why)
{
	struct ft_wire *w = wire(t, fd);
	struct ft_err err = {0};

	assert_int_equal(w->ops->send(w, msg, &err), 0);
	wait_client(t, PAGES_CUT);
	page_client_state(t->client, &err);
	if (!strstr(err.text, why))
		fail_msg("'%s', not '%s'", err.text, why);
	w->ops->close(w);
}

static void hostile(struct test *t, const struct ft_msg *msg, const char *why)
{
	int urgent[2], bulk[2];
	struct ft_err err = {0};

	tcp_pair(urgent);
	tcp_pair(bulk);
	page_client_cut(t->client);
	wait_client(t, PAGES_CUT);
	assert_int_equal(page_client_connect(t->client, wire(t, urgent[1]), wire(t, bulk[1]), &err),
			 0);
	expect_cut(t, urgent[0], msg, why);
	close(bulk[0]);
}

static void hostile_source(void **state)
{
	struct test *t = *state;
	uint8_t record[FT_PAYLOAD_MAX] = {0xff, 0xff, 0xff, 0xff, 1};

	begin(t, false);
	hostile(t, &(struct ft_msg){.type = FT_MSG_ASK, .generation = GENERATION},
		"not on a connection for pages");
	hostile(t, &(struct ft_msg){.type = FT_MSG_BITMAP, .generation = GENERATION},
		"not on a connection for pages"); /* nothing was to follow */
	hostile(t,
		&(struct ft_msg){.type = FT_MSG_PAGES,
				 .generation = GENERATION - 1,
				 .payload = record,
				 .payload_len = 12},
		"of generation 6");
	hostile(t,
		&(struct ft_msg){.type = FT_MSG_PAGES,
				 .generation = GENERATION,
				 .payload = record,
				 .payload_len = 12},
		"page");
	hostile(t,
		&(struct ft_msg){.type = FT_MSG_PAGES,
				 .generation = GENERATION,
				 .payload = record,
				 .payload_len = 5},
		"cut by the end");
}

/* A target that asks for what there is not, or before it was given the guest. */
static void hostile_target(void **state)
{
	struct test *t = *state;
	uint64_t le = PAGES;
	struct ft_msg msg = {.type = FT_MSG_ASK,
			     .generation = GENERATION,
			     .payload = (uint8_t *)&le,
			     .payload_len = sizeof le};

	for (unsigned i = 0; i < 4; i++) {
		int urgent[2], bulk[2];
		struct ft_err err = {0};
		struct ft_wire *w;

		tcp_pair(urgent);
		tcp_pair(bulk);
		assert_int_equal(
			page_server_connect(t->server, wire(t, urgent[0]), wire(t, bulk[0]), &err),
			0);
		if (i == 0)
			page_server_give(t->server, &t->missing, false);
		if (i == 1)
			msg.payload_len = 3;
		if (i == 2)
			msg.type = FT_MSG_BYE;
		if (i == 3)
			msg.type = FT_MSG_BITMAP; /* nothing follows */
		w = wire(t, urgent[1]);
		assert_int_equal(w->ops->send(w, &msg, &err), 0);
		wait_server(t, PAGES_CUT);
		w->ops->close(w);
		close(bulk[1]);
	}
}

static void no_file(void **state)
{
	struct test *t = *state;
	struct vmm_ram ram = t->to.where;
	struct page_client *c;
	struct ft_err err = {0};

	ram.fd = -1;
	assert_int_equal(page_client_new(&ram, 1, on_news, &t->to, &c, &err), -ENOTSUP);
}

/* ---- huge pages ---- */

#define HUGE	   (PAGES / PAGE_HUGE_PAGES)
#define HUGE_SPARE 1

static bool have_huge;

static int setup_huge(void **state)
{
	huge_to = have_huge;
	return setup(state);
}

static int setup_huge_both(void **state)
{
	huge_from = have_huge;
	return setup_huge(state);
}

static int teardown_huge(void **state)
{
	huge_from = huge_to = false;
	return teardown(state);
}

static void one_huge_page_at_once(void **state)
{
	struct test *t = *state;
	struct page_client_stats stats;

	if (!have_huge)
		skip();
	begin(t, false);
	for (uint64_t i = 0; i < PAGE_HUGE_PAGES; i++)
		assert_true(word(&t->to, PAGE_HUGE_PAGES + i) == stamp(PAGE_HUGE_PAGES + i));
	do
		page_client_stats(t->client, &stats);
	while (stats.fault_us.max == 0 && poll(NULL, 0, 1) == 0);
	assert_int_equal(stats.pages.pages_done, PAGE_HUGE_PAGES);
	assert_int_equal(stats.pages.faults, 1);
	assert_int_equal(stats.waiting, 0);
	page_server_background(t->server, true);
	wait_client(t, PAGES_DONE);
	wait_server(t, PAGES_DONE);
	assert_same(t);
}

/* The kernel may have pages of 1 GiB, which are too large to wait for. */
static void gigantic_pages(void **state)
{
	struct test *t = *state;
	struct vmm_ram ram = t->to.where;
	struct page_client *c;
	struct ft_err err = {0};

	ram.fd = memfd_create("gigantic", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_1GB);
	if (ram.fd < 0) {
		print_message("no huge pages of 1 GiB here: %s\n", strerror(errno));
		skip();
	}
	assert_int_equal(page_client_new(&ram, 1, on_news, &t->to, &c, &err), -ENOTSUP);
	assert_non_null(strstr(err.text, "2 MiB is the most"));
	close(ram.fd);
}

static void into_huge(void **state, void (*test)(void **))
{
	if (!have_huge)
		skip();
	test(state);
}

#define INTO_HUGE(f)                                                                               \
	static void huge_##f(void **state)                                                         \
	{                                                                                          \
		into_huge(state, f);                                                               \
	}
INTO_HUGE(follows_by_itself)
INTO_HUGE(some_are_there)
INTO_HUGE(many_wait)
INTO_HUGE(cut_and_joined)
INTO_HUGE(written_meanwhile)
INTO_HUGE(hostile_source)

int main(void)
{
#define TEST(f)	     cmocka_unit_test_setup_teardown(f, setup, teardown)
#define TEST_HUGE(f) cmocka_unit_test_setup_teardown(f, setup_huge, teardown_huge)
#define TEST_BOTH(f) cmocka_unit_test_setup_teardown(f, setup_huge_both, teardown_huge)
	const struct CMUnitTest tests[] = {
		TEST(follows_by_itself),
		TEST(on_demand_only),
		TEST(some_are_there),
		TEST(many_wait),
		TEST(cut_and_joined),
		TEST(written_meanwhile),
		TEST(cargo_follows),
		TEST(cargo_given_up),
		TEST(hostile_source),
		TEST(hostile_target),
		TEST(no_file),
		TEST(gigantic_pages),
		TEST_HUGE(one_huge_page_at_once),
		TEST_BOTH(one_huge_page_at_once),
		TEST_HUGE(huge_follows_by_itself),
		TEST_HUGE(huge_some_are_there),
		TEST_HUGE(huge_many_wait),
		TEST_BOTH(huge_many_wait),
		TEST_HUGE(huge_cut_and_joined),
		TEST_HUGE(huge_written_meanwhile),
		TEST_HUGE(huge_hostile_source),
	};

	have_huge = huge_pages_take(2 * HUGE + HUGE_SPARE);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
