// SPDX-License-Identifier: Apache-2.0
// Which page goes next and which page is wanted: the two halves of postcopy without threads and
// sockets.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "ft/postcopy/giver.h"
#include "ft/postcopy/missing.h"
#include "ft/postcopy/taker.h"

#define PAGES 1000

static struct ft_bitmap bitmap(uint64_t bits)
{
	struct ft_bitmap b;

	assert_int_equal(ft_bitmap_init(&b, bits), 0);
	return b;
}

/* ---- giver ---- */

static void everything_once(void **state)
{
	struct ft_bitmap all = bitmap(PAGES);
	struct ft_giver g;
	uint64_t pfns[16], sum = 0;
	size_t n, total = 0;

	(void)state;
	assert_int_equal(ft_giver_init(&g, PAGES), 0);
	assert_int_equal(ft_giver_next(&g, pfns, 16), 0);
	ft_bitmap_set_all(&all);
	ft_giver_owe(&g, &all);
	while ((n = ft_giver_next(&g, pfns, 16))) {
		for (size_t i = 0; i < n; i++) {
			assert_true(i == 0 || pfns[i] > pfns[i - 1]);
			sum += pfns[i];
		}
		total += n;
	}
	assert_int_equal(total, PAGES);
	assert_int_equal(sum, (uint64_t)PAGES * (PAGES - 1) / 2);
	ft_bitmap_free(&all);
	ft_giver_free(&g);
}

/* The background goes on around what was asked for, and comes back for what it left behind. */
static void around_the_last(void **state)
{
	struct ft_bitmap all = bitmap(PAGES);
	struct ft_giver g;
	uint64_t pfns[16];
	size_t n, total = 0;

	(void)state;
	assert_int_equal(ft_giver_init(&g, PAGES), 0);
	ft_bitmap_set_all(&all);
	ft_giver_owe(&g, &all);
	assert_int_equal(ft_giver_next(&g, pfns, 4), 4);
	assert_int_equal(pfns[3], 3);
	assert_true(ft_giver_asked(&g, 500));
	assert_int_equal(ft_giver_next(&g, pfns, 16), 16);
	assert_int_equal(pfns[0], 500 - FT_GIVER_BELOW);
	for (unsigned i = 0; i < 16; i++)
		assert_int_not_equal(pfns[i], 500); /* it went already */
	assert_true(ft_giver_asked(&g, 2));
	assert_int_equal(ft_giver_next(&g, pfns, 1), 1);
	assert_int_equal(pfns[0], 4);
	/* Asked for again: sent again. */
	assert_true(ft_giver_asked(&g, 500));
	assert_false(ft_giver_asked(&g, PAGES));
	while ((n = ft_giver_next(&g, pfns, 16)))
		total += n;
	assert_int_equal(total, PAGES - 4 - 1 - 16 - 1);
	ft_bitmap_free(&all);
	ft_giver_free(&g);
}

static void owes_what_is_told(void **state)
{
	struct ft_bitmap some = bitmap(PAGES);
	struct ft_giver g;
	uint64_t pfns[4];

	(void)state;
	assert_int_equal(ft_giver_init(&g, PAGES), 0);
	ft_bitmap_set_all(&some);
	ft_giver_owe(&g, &some);
	ft_bitmap_clear_all(&some);
	ft_bitmap_set(&some, 7);
	ft_bitmap_set(&some, 999);
	ft_giver_owe(&g, &some);
	assert_int_equal(ft_giver_next(&g, pfns, 4), 2);
	assert_int_equal(pfns[0], 7);
	assert_int_equal(pfns[1], 999);
	ft_bitmap_free(&some);
	ft_giver_free(&g);
}

/* ---- taker ---- */

static void faults(void **state)
{
	struct ft_bitmap missing = bitmap(PAGES);
	struct ft_taker t;

	(void)state;
	ft_bitmap_set_range(&missing, 10, 5);
	assert_int_equal(ft_taker_init(&t, &missing), 0);
	assert_int_equal(ft_taker_fault(&t, 9), FT_TAKER_ZERO);
	assert_int_equal(ft_taker_fault(&t, 12), FT_TAKER_ASK);
	assert_int_equal(ft_taker_fault(&t, 12), FT_TAKER_WAIT);
	assert_int_equal(ft_taker_fault(&t, 14), FT_TAKER_ASK);
	/* A link that is back: who waits is asked for again. */
	assert_int_equal(ft_taker_waiting(&t, 0), 12);
	assert_int_equal(ft_taker_waiting(&t, 13), 14);
	assert_true(ft_taker_wants(&t, 12));
	ft_taker_placed(&t, 12);
	/* What comes later for it is old. */
	assert_false(ft_taker_wants(&t, 12));
	assert_int_equal(ft_taker_waiting(&t, 0), 14);
	/* The guest gave it back: it reads as zeroes now. */
	assert_int_equal(ft_taker_fault(&t, 12), FT_TAKER_ZERO);
	assert_false(ft_taker_wants(&t, 9));
	assert_false(ft_taker_wants(&t, PAGES));
	assert_int_equal(t.missing.count, 4);
	ft_taker_placed(&t, 14);
	assert_int_equal(ft_taker_waiting(&t, 0), PAGES);
	ft_bitmap_free(&missing);
	ft_taker_free(&t);
}

/* ---- MISSING ---- */

static void round_trip(uint64_t pages, unsigned percent)
{
	uint8_t body[FT_MSG_BODY_SMALL], *words = malloc(FT_PAYLOAD_MAX);
	struct ft_bitmap from = bitmap(pages), to = bitmap(pages);
	struct ft_err err = {0};
	struct ft_msg msg;
	uint64_t at = 0;
	bool last = false;

	srand(4711);
	for (uint64_t i = 0; i < pages; i++)
		if ((unsigned)rand() % 100 < percent)
			ft_bitmap_set(&from, i);
	while (ft_missing_next(&from, &at, body, words, &msg)) {
		assert_false(last);
		assert_int_equal(msg.type, FT_MSG_MISSING);
		assert_int_equal(ft_missing_take(&to, &msg, &last, &err), 0);
	}
	assert_true(last);
	assert_int_equal(from.count, to.count);
	assert_memory_equal(from.words, to.words, (pages + 63) / 64 * 8);
	ft_bitmap_free(&from);
	ft_bitmap_free(&to);
	free(words);
}

static void missing_round_trips(void **state)
{
	(void)state;
	round_trip(1, 0);
	round_trip(1, 100);
	round_trip(PAGES, 30);
	round_trip(PAGES, 100);
	round_trip(FT_MISSING_PAGES, 1);
	round_trip(FT_MISSING_PAGES + 100, 1);
}

static void take_bad(uint64_t first, uint64_t pages, bool all, uint32_t payload_len)
{
	static uint8_t payload[64];
	struct ft_bitmap b = bitmap(PAGES);
	Ft__Missing m = FT__MISSING__INIT;
	uint8_t body[64];
	struct ft_err err = {0};
	struct ft_msg msg = {.type = FT_MSG_MISSING,
			     .body = body,
			     .payload = payload,
			     .payload_len = payload_len};
	bool last;

	memset(payload, 0xff, sizeof payload);
	m.first = first;
	m.pages = pages;
	m.all = all;
	msg.body_len = (uint32_t)ft__missing__pack(&m, body);
	assert_int_equal(ft_missing_take(&b, &msg, &last, &err), -EPROTO);
	assert_non_null(strstr(err.text, "MISSING: "));
	ft_bitmap_free(&b);
}

static void missing_hostile(void **state)
{
	struct ft_bitmap b = bitmap(PAGES);
	struct ft_err err = {0};
	struct ft_msg msg = {.body = (const uint8_t *)"\xff\xff", .body_len = 2};
	bool last;

	(void)state;
	take_bad(1, 64, false, 8);	    /* not a whole word */
	take_bad(1024, 64, false, 8);	    /* behind the end */
	take_bad(960, 64, false, 8);	    /* over it */
	take_bad(960, UINT64_MAX, true, 0); /* far over it */
	take_bad(UINT64_MAX - 63, 64, true, 0);
	take_bad(0, 0, true, 0);
	take_bad(0, 64, false, 16); /* another length */
	take_bad(0, 64, false, 0);
	take_bad(0, 60, false, 8); /* bits that it is not about */
	assert_int_equal(ft_missing_take(&b, &msg, &last, &err), -EPROTO);
	ft_bitmap_free(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(everything_once),     cmocka_unit_test(around_the_last),
		cmocka_unit_test(owes_what_is_told),   cmocka_unit_test(faults),
		cmocka_unit_test(missing_round_trips), cmocka_unit_test(missing_hostile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
