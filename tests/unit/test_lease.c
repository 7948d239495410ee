// SPDX-License-Identifier: Apache-2.0
/* The lease of a shared disk: arithmetic, and the property that it is for, in a model with two
 * clocks, a network that delays, and a primary that freezes wherever it likes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdbool.h>
#include <string.h>

#include "ft/lease.h"

#define MS     1000000.0
#define ROUNDS 20000

static void test_renewal(void **state)
{
	struct ft_lease l = {0};

	(void)state;
	assert_int_equal(ft_lease_left(&l, 1), 0);
	ft_lease_renew(&l, 1000000000, 300);
	assert_int_equal(ft_lease_left(&l, 1000000000), 300000000);
	assert_int_equal(ft_lease_left(&l, 1299999999), 1);
	assert_int_equal(ft_lease_left(&l, 1300000000), 0);
	/* A late answer to an earlier beat takes nothing back. */
	ft_lease_renew(&l, 900000000, 300);
	assert_int_equal(ft_lease_left(&l, 1299999999), 1);
	/* A peer that grants for ever does not. */
	ft_lease_renew(&l, 2000000000, UINT32_MAX);
	assert_int_equal(ft_lease_left(&l, 2000000000), FT_LEASE_MAX_MS * UINT64_C(1000000));
}

static void test_grant(void **state)
{
	struct ft_grant g = {0};

	(void)state;
	ft_grant_beat(&g, 5000000000, 77, 300);
	assert_int_equal(g.echo_ns, 77);
	/* 800 ms * 1.0005 / 0.9995 */
	assert_int_equal(g.over_ns, 5000000000 + 800800401);
	/* What was granted once stays granted, also when less is granted later. */
	ft_grant_beat(&g, 5001000000, 78, 1);
	assert_int_equal(g.echo_ns, 78);
	assert_int_equal(g.over_ns, 5000000000 + 800800401);
	ft_grant_beat(&g, 5001000000, 79, UINT32_MAX);
	assert_true(g.over_ns - 5001000000 >
		    (FT_LEASE_MAX_MS + FT_WRITE_MAX_MS) * UINT64_C(1000000));
}

/* ---- two hosts ---- */

static uint64_t rng = 1;

static uint64_t draw(uint64_t lo, uint64_t hi)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return lo + rng % (hi - lo + 1);
}

/* Real time, in ns, as this host's clock has it. */
struct clock {
	double offset, rate;
};

static uint64_t reads(const struct clock *c, double real)
{
	return (uint64_t)(c->offset + real * c->rate);
}

/* The real time at which it reads so. */
static double when(const struct clock *c, uint64_t reading)
{
	return ((double)reading - c->offset) / c->rate;
}

static struct clock draw_clock(void)
{
	double wrong = (double)draw(0, 2 * FT_LEASE_DRIFT_PPM) - FT_LEASE_DRIFT_PPM;

	return (struct clock){.offset = (double)draw(0, 1u << 30) * MS, .rate = 1 + wrong / 1e6};
}

static double delay(void)
{
	return (double)(draw(0, 4) ? draw(0, 2000000) : draw(0, 2000000000));
}

/* Some beats go to and fro. Every moment at which the primary may begin a write, the last one above
 * all, and its landing at the last moment, is before the standby's first access, whenever that is
 * asked for. Returns how much before, in real ns. */
static double conversation(bool standby_heeds)
{
	struct clock primary = draw_clock(), standby = draw_clock();
	struct ft_lease lease = {0};
	struct ft_grant grant = {0};
	double real = 1000 * MS, received = 0, lands, touches;
	unsigned beats = (unsigned)draw(1, 6), lease_ms = (unsigned)draw(100, 60000);

	for (unsigned i = 0; i < beats; i++) {
		uint64_t sent = reads(&primary, real);

		/* In order, as connections are. */
		received = real + delay() > received ? real + delay() : received;
		ft_grant_beat(&grant, reads(&standby, received), sent, lease_ms);
		if (draw(0, 5)) /* else the link is cut before the answer comes */
			ft_lease_renew(&lease, grant.echo_ns, lease_ms);
		real += (double)draw(1, 100000000);
	}
	/* The last moment that the primary's clock allows, then all that keeper, kernel and storage
	 * may take by its clock. */
	if (!lease.until_ns)
		return 0;
	assert_int_equal(ft_lease_left(&lease, lease.until_ns), 0);
	assert_int_equal(ft_lease_left(&lease, lease.until_ns - 1), 1);
	lands = when(&primary, lease.until_ns + (uint64_t)(FT_WRITE_MAX_MS * MS));
	touches = standby_heeds ? when(&standby, grant.over_ns) : received;
	return touches - lands;
}

static void test_never_two(void **state)
{
	double least = 1e18;

	(void)state;
	for (unsigned i = 0; i < ROUNDS; i++) {
		double before = conversation(true);

		if (before < -1) /* of what a double resolves */
			fail_msg("round %u: a write lands %f ns after the standby's first access",
				 i, -before);
		if (before < least)
			least = before;
	}
	/* And no longer than needed: in the worst of all cases hardly anything is left. */
	assert_true(least < 10 * MS);
}

/* The same model finds a standby that does not wait. */
static void test_model_finds(void **state)
{
	unsigned found = 0;

	(void)state;
	for (unsigned i = 0; i < 100; i++)
		found += conversation(false) < -1;
	assert_true(found > 50);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_renewal),
		cmocka_unit_test(test_grant),
		cmocka_unit_test(test_never_two),
		cmocka_unit_test(test_model_finds),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
