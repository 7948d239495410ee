// SPDX-License-Identifier: Apache-2.0
// A source and a target of pages that lie: the connection is cut, and it is said why.
#include <string.h>
#include <unistd.h>

#include "tests/fixture/pages_lab.h"
#include "tests/fixture/transport.h"
#include "ft/msg.h"

static void expect_cut(struct pages_lab *t, int fd, const struct ft_msg *msg, const char *why)
{
	struct ft_wire *w = pages_lab_wire(t, fd);
	struct ft_err err = {0};

	assert_int_equal(w->ops->send(w, msg, &err), 0);
	pages_lab_wait_client(t, PAGES_CUT);
	page_client_state(t->client, &err);
	if (!strstr(err.text, why))
		fail_msg("'%s', not '%s'", err.text, why);
	w->ops->close(w);
}

static void hostile(struct pages_lab *t, const struct ft_msg *msg, const char *why)
{
	int urgent[2], bulk[2];
	struct ft_err err = {0};

	tcp_pair(urgent);
	tcp_pair(bulk);
	page_client_cut(t->client);
	pages_lab_wait_client(t, PAGES_CUT);
	assert_int_equal(page_client_connect(t->client, pages_lab_wire(t, urgent[1]),
					     pages_lab_wire(t, bulk[1]), &err),
			 0);
	expect_cut(t, urgent[0], msg, why);
	close(bulk[0]);
}

static void hostile_source(void **state)
{
	struct pages_lab *t = *state;
	uint8_t record[FT_PAYLOAD_MAX] = {0xff, 0xff, 0xff, 0xff, 1};

	pages_lab_begin(t, false);
	hostile(t, &(struct ft_msg){.type = FT_MSG_ASK, .generation = PAGES_LAB_GENERATION},
		"not on a connection for pages");
	hostile(t, &(struct ft_msg){.type = FT_MSG_BITMAP, .generation = PAGES_LAB_GENERATION},
		"not on a connection for pages"); /* nothing was to follow */
	hostile(t,
		&(struct ft_msg){.type = FT_MSG_PAGES,
				 .generation = PAGES_LAB_GENERATION - 1,
				 .payload = record,
				 .payload_len = 12},
		"of generation 6");
	hostile(t,
		&(struct ft_msg){.type = FT_MSG_PAGES,
				 .generation = PAGES_LAB_GENERATION,
				 .payload = record,
				 .payload_len = 12},
		"page");
	hostile(t,
		&(struct ft_msg){.type = FT_MSG_PAGES,
				 .generation = PAGES_LAB_GENERATION,
				 .payload = record,
				 .payload_len = 5},
		"cut by the end");
}

/* A target that asks for what there is not, or before it was given the guest. */
static void hostile_target(void **state)
{
	struct pages_lab *t = *state;
	uint64_t le = PAGES_LAB_PAGES;
	struct ft_msg msg = {.type = FT_MSG_ASK,
			     .generation = PAGES_LAB_GENERATION,
			     .payload = (uint8_t *)&le,
			     .payload_len = sizeof le};

	for (unsigned i = 0; i < 4; i++) {
		int urgent[2], bulk[2];
		struct ft_err err = {0};
		struct ft_wire *w;

		tcp_pair(urgent);
		tcp_pair(bulk);
		assert_int_equal(page_server_connect(t->server, pages_lab_wire(t, urgent[0]),
						     pages_lab_wire(t, bulk[0]), &err),
				 0);
		if (i == 0)
			page_server_give(t->server, &t->missing, false);
		if (i == 1)
			msg.payload_len = 3;
		if (i == 2)
			msg.type = FT_MSG_BYE;
		if (i == 3)
			msg.type = FT_MSG_BITMAP; /* nothing follows */
		w = pages_lab_wire(t, urgent[1]);
		assert_int_equal(w->ops->send(w, &msg, &err), 0);
		pages_lab_wait_server(t, PAGES_CUT);
		w->ops->close(w);
		close(bulk[1]);
	}
}

PAGES_LAB_INTO_HUGE(hostile_source)

int main(void)
{
	const struct CMUnitTest tests[] = {
		PAGES_LAB_TEST(hostile_source),
		PAGES_LAB_TEST(hostile_target),
		PAGES_LAB_TEST_HUGE(huge_hostile_source),
	};

	pages_lab_take_huge();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
