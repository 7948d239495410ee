// SPDX-License-Identifier: Apache-2.0
// How long a connection for pages waits: for ever that a frame begins, not so for the rest of it,
// nor for a peer that takes nothing. The bounds are the sockets' own and made short here.
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/fixture/transport.h"
#include "ft/msg.h"
#include "transport/frame.h"
#include "transport/wire.h"

#define SHORT_MS  100
#define SEND_SOME 1024 /* messages of FT_PAYLOAD_MAX: more than any socket takes */

struct test {
	struct event_base *base;
	struct ft_wire *wire;
	int peer;
};

static void set_short(int fd, int option)
{
	struct timeval bound = {0, SHORT_MS * 1000};

	assert_int_equal(setsockopt(fd, SOL_SOCKET, option, &bound, sizeof bound), 0);
}

static int setup(void **state)
{
	struct test *t = calloc(1, sizeof *t);
	struct ft_msg msg = {.type = FT_MSG_ALL};
	struct ft_err err = {0};
	int ends[2], fd;

	tcp_pair(ends);
	t->base = event_base_new();
	t->peer = ends[1];
	assert_int_equal(
		wire_of_link(link_new(t->base, channel_socket_new(ends[0], &err), "test", &err),
			     &t->wire, &err),
		0);
	/* The first call that may wait sets the true bounds. */
	assert_int_equal(t->wire->ops->send(t->wire, &msg, &err), 0);
	fd = t->wire->ops->fd(t->wire);
	set_short(fd, SO_RCVTIMEO);
	set_short(fd, SO_SNDTIMEO);
	*state = t;
	return 0;
}

static int teardown(void **state)
{
	struct test *t = *state;

	t->wire->ops->close(t->wire);
	close(t->peer);
	event_base_free(t->base);
	free(t);
	return 0;
}

static void rest_of_a_frame(void **state)
{
	struct test *t = *state;
	struct frame_header h = {.type = FT_MSG_ASK, .seq = 1, .payload_len = 8};
	uint8_t head[FRAME_HEADER];
	struct ft_err err = {0};
	struct ft_msg msg;

	h.body_hash = frame_hash(NULL, 0);
	frame_encode(&h, head);
	assert_int_equal(send(t->peer, head, sizeof head, 0), sizeof head);
	/* Who does not wait is told that there is nothing. */
	assert_int_equal(t->wire->ops->receive(t->wire, &msg, false, &err), 0);
	assert_int_equal(t->wire->ops->receive(t->wire, &msg, true, &err), -ETIMEDOUT);
	assert_non_null(strstr(err.text, "rest of a frame"));
}

static void taken_by_nobody(void **state)
{
	static uint8_t bytes[FT_PAYLOAD_MAX];
	struct ft_msg msg = {.type = FT_MSG_PAGES, .payload = bytes, .payload_len = sizeof bytes};
	struct test *t = *state;
	struct ft_err err = {0};
	int rc = 0;

	for (unsigned i = 0; i < SEND_SOME && !rc; i++)
		rc = t->wire->ops->send(t->wire, &msg, &err);
	assert_int_equal(rc, -ETIMEDOUT);
	assert_non_null(strstr(err.text, "taken nothing"));
}

struct waiter {
	struct ft_wire *wire;
	struct ft_err err;
	atomic_int rc;
};

static void *wait_for_one(void *ctx)
{
	struct waiter *w = ctx;
	struct ft_msg msg;

	w->rc = w->wire->ops->receive(w->wire, &msg, true, &w->err);
	return NULL;
}

/* It has waited for several times the bound, and goes on until it is told not to. */
static void no_frame_begins(void **state)
{
	struct test *t = *state;
	struct waiter w = {.wire = t->wire, .rc = 1};
	struct ft_msg msg;
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, wait_for_one, &w), 0);
	poll(NULL, 0, 4 * SHORT_MS);
	assert_int_equal(w.rc, 1);
	t->wire->ops->cut(t->wire);
	pthread_join(thread, NULL);
	assert_int_equal(w.rc, -ECANCELED);
	/* And ever after. */
	assert_int_equal(t->wire->ops->receive(t->wire, &msg, true, &w.err), -ECANCELED);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {TEST(rest_of_a_frame), TEST(taken_by_nobody),
					   TEST(no_frame_begins)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
