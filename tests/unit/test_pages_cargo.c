// SPDX-License-Identifier: Apache-2.0
// What else follows on the connections for pages: after memory, through a lost link, and given up.
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include "tests/fixture/pages_lab.h"
#include "tests/fixture/transport.h"
#include "ft/msg.h"

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

static void wait_here(struct pages_lab *t)
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
	struct pages_lab *t = *state;
	static struct goods from, to;
	struct ft_err why;

	goods_init(&from, PIECES / 2);
	goods_init(&to, 0);
	page_server_cargo(t->server, &from.cargo);
	page_client_cargo(t->client, &to.cargo);
	pages_lab_begin(t, true);
	poll(NULL, 0, PAGES_LAB_SILENCE_MS);
	assert_int_equal(to.at, 0); /* the guest does not run there yet */
	page_server_background(t->server, true);
	wait_here(t);
	pages_lab_expect_same(t);
	t->to.ram[0]++;
	assert_int_equal(page_client_state(t->client, &why), PAGES_SERVING);
	page_client_cut(t->client);
	pages_lab_wait_client(t, PAGES_CUT);
	pages_lab_wait_server(t, PAGES_CUT);
	assert_true(to.at <= PIECES / 2);
	pages_lab_join(t);
	pages_lab_wait_client(t, PAGES_DONE);
	pages_lab_wait_server(t, PAGES_DONE);
	assert_int_equal(to.at, PIECES);
	assert_int_equal(from.asked_again, 1);
}

/* Nobody waits for it any more, and the source is gone. */
static void cargo_given_up(void **state)
{
	struct pages_lab *t = *state;
	static struct goods from, to;

	goods_init(&from, 0);
	goods_init(&to, 0);
	page_server_cargo(t->server, &from.cargo);
	page_client_cargo(t->client, &to.cargo);
	pages_lab_begin(t, true);
	wait_here(t);
	page_client_cut(t->client);
	pages_lab_wait_client(t, PAGES_CUT);
	pthread_mutex_lock(&to.lock);
	to.at = PIECES;
	pthread_mutex_unlock(&to.lock);
	page_client_look(t->client);
	pages_lab_wait_client(t, PAGES_DONE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		PAGES_LAB_TEST(cargo_follows),
		PAGES_LAB_TEST(cargo_given_up),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
