// SPDX-License-Identifier: Apache-2.0
/* Each rule of the policy by itself, then all of them against random inputs: it never spins, never
 * sleeps past a reason, and never lets the pauses exceed the budget. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "ft/policy.h"

#define MS UINT64_C(1000000)

static const struct ft_policy on_output = {FT_TRIGGER_OUTPUT, 50 * MS, 30 * MS, 0.25};
static const struct ft_policy on_interval = {FT_TRIGGER_INTERVAL, 50 * MS, 30 * MS, 0.25};
static const struct ft_policy on_both = {FT_TRIGGER_BOTH, 50 * MS, 30 * MS, 0.25};

/* The guest resumed at 1000 ms from a pause of 3 ms: the budget of 1/4 is met at 1009 ms. */
static struct ft_policy_input at_ms(uint64_t now)
{
	return (struct ft_policy_input){
		.now_ns = now * MS, .resumed_ns = 1000 * MS, .pause_ns = 3 * MS};
}

static void assert_now(const struct ft_policy *p, struct ft_policy_input in)
{
	assert_true(ft_policy_checkpoint(p, &in).checkpoint);
}

static void assert_later(const struct ft_policy *p, struct ft_policy_input in, uint64_t wake_ns)
{
	struct ft_policy_verdict v = ft_policy_checkpoint(p, &in);

	assert_false(v.checkpoint);
	assert_int_equal(v.wake_ns, wake_ns);
	assert_true(v.wake_ns > in.now_ns);
}

static void test_output(void **state)
{
	struct ft_policy_input in = at_ms(1020);

	(void)state;
	in.output_ns = 1019 * MS;
	assert_now(&on_output, in);
	assert_now(&on_both, in);
	/* Remus: outputs wait for the interval. */
	assert_later(&on_interval, in, 1050 * MS);
}

static void test_idle(void **state)
{
	(void)state;
	assert_later(&on_output, at_ms(1020), 2000 * MS);
	assert_later(&on_output, at_ms(1999), 2000 * MS);
	assert_now(&on_output, at_ms(2000));
}

static void test_interval(void **state)
{
	(void)state;
	assert_later(&on_interval, at_ms(1049), 1050 * MS);
	assert_now(&on_interval, at_ms(1050));
	assert_later(&on_both, at_ms(1049), 1050 * MS);
	assert_now(&on_both, at_ms(1050));
}

static void test_budget(void **state)
{
	struct ft_policy_input in = at_ms(1001);
	struct ft_policy greedy = on_output;

	(void)state;
	in.output_ns = 1000 * MS;
	assert_later(&on_output, in, 1009 * MS);
	in.pressure = true;
	assert_later(&on_output, in, 1009 * MS);
	in.requested = true;
	assert_later(&on_output, in, 1009 * MS);
	in.now_ns = 1009 * MS - 1;
	assert_later(&on_output, in, 1009 * MS);
	in.now_ns = 1009 * MS;
	assert_now(&on_output, in);

	/* The budget delays the interval too. */
	in = at_ms(1060);
	in.pause_ns = 100 * MS;
	assert_later(&on_interval, in, 1300 * MS);

	/* 1 = no budget. */
	greedy.max_overhead = 1;
	in = at_ms(1000);
	in.output_ns = 1000 * MS;
	assert_now(&greedy, in);
}

static void test_reasons_of_the_caller(void **state)
{
	struct ft_policy_input in = at_ms(1010);

	(void)state;
	in.requested = true;
	assert_now(&on_interval, in);
	in = at_ms(1010);
	in.pressure = true;
	assert_now(&on_interval, in);
	assert_now(&on_output, in);
}

static void test_in_flight(void **state)
{
	struct ft_policy_input in = at_ms(5000);

	(void)state;
	in.in_flight = in.requested = in.pressure = true;
	in.output_ns = 4000 * MS;
	assert_later(&on_both, in, UINT64_MAX);
	/* Outputs that waited meanwhile are one checkpoint, at once. */
	in.in_flight = false;
	assert_now(&on_both, in);
}

static void test_extremes(void **state)
{
	struct ft_policy tiny = on_both;
	struct ft_policy_input in = at_ms(1010);

	(void)state;
	tiny.max_overhead = 1e-12;
	in.pause_ns = UINT64_MAX;
	in.requested = true;
	assert_later(&tiny, in, UINT64_MAX);
	in.pause_ns = 0;
	assert_now(&tiny, in);
	tiny.interval_ns = UINT64_MAX;
	in.requested = false;
	assert_later(&tiny, in, UINT64_MAX);
	/* A clock read before the resume was noted. */
	in = at_ms(999);
	in.requested = true;
	in.pause_ns = 0;
	assert_later(&on_both, in, 1000 * MS);
}

static uint64_t rnd(uint64_t n)
{
	static uint64_t x = 88172645463325252u;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x % n;
}

/* Lives through virtual seconds, asking exactly when it was told to or when something happens. */
static void live(enum ft_trigger trigger, double overhead)
{
	struct ft_policy p = {trigger, 20 * MS, 30 * MS, overhead};
	uint64_t now = 1, end = now + 20000 * MS, paused = 0, asked = 0, next_output = now;
	struct ft_policy_input in = {.now_ns = now, .resumed_ns = now};
	unsigned checkpoints = 0;

	while (now < end) {
		struct ft_policy_verdict v;
		uint64_t ack;

		in.now_ns = now;
		v = ft_policy_checkpoint(&p, &in);
		assert_true(++asked < 100000);
		if (!v.checkpoint) {
			assert_true(v.wake_ns > now);
			now = v.wake_ns;
			if (next_output < now && !in.output_ns)
				now = next_output > in.now_ns ? next_output : in.now_ns;
			if (next_output <= now && !in.output_ns)
				in.output_ns = now, next_output = now + rnd(40 * MS);
			continue;
		}
		checkpoints++;
		in.pause_ns = 1 + rnd(8 * MS);
		/* Over every span from pause to pause, the pause is within the budget of what
		 * follows. */
		paused += in.pause_ns;
		now += in.pause_ns;
		in.resumed_ns = now;
		in.output_ns = 0;
		in.in_flight = true;
		in.now_ns = now;
		assert_int_equal(ft_policy_checkpoint(&p, &in).wake_ns, UINT64_MAX);
		in.in_flight = false;
		ack = now + rnd(5 * MS);
		now = ack;
	}
	assert_true(checkpoints > 15);
	assert_true((double)paused <= overhead * (double)(now - 1) + 8e6);
}

static void test_life(void **state)
{
	(void)state;
	for (int trigger = FT_TRIGGER_OUTPUT; trigger <= FT_TRIGGER_BOTH; trigger++) {
		live((enum ft_trigger)trigger, 0.05);
		live((enum ft_trigger)trigger, 0.25);
		live((enum ft_trigger)trigger, 0.9);
	}
}

static void test_switch(void **state)
{
	struct ft_round r = {.dirty_pages = 20000};

	(void)state;
	assert_true(ft_policy_switch_to_sync(&on_output, &r)); /* 30 ms */
	r.dirty_pages = 20001;
	assert_false(ft_policy_switch_to_sync(&on_output, &r));
	r.rounds = FT_ROUNDS_MAX - 1;
	assert_false(ft_policy_switch_to_sync(&on_output, &r));
	r.rounds = FT_ROUNDS_MAX;
	assert_true(ft_policy_switch_to_sync(&on_output, &r));

	/* Shipping is outside the pause, so a slow link changes nothing. */
	r = (struct ft_round){.dirty_pages = 100, .bytes_per_s = 1, .bytes_per_page = 4096};
	assert_true(ft_policy_switch_to_sync(&on_output, &r));
	/* The disk is inside: 30 ms at 1 GiB/s. */
	r = (struct ft_round){.disk_bytes_behind = 32u << 20};
	assert_false(ft_policy_switch_to_sync(&on_output, &r));
	r.disk_bytes_behind = 30u << 20;
	assert_true(ft_policy_switch_to_sync(&on_output, &r));
	r.dirty_pages = 1000;
	assert_false(ft_policy_switch_to_sync(&on_output, &r));
	r = (struct ft_round){.dirty_pages = UINT64_MAX, .disk_bytes_behind = UINT64_MAX};
	assert_false(ft_policy_switch_to_sync(&on_output, &r));
}

/* Until a guest that moves runs again, what is left is copied, sent and applied. */
static void test_switch_to_target(void **state)
{
	struct ft_round r = {.dirty_pages = 0};

	(void)state;
	assert_true(ft_policy_switch_to_target(&on_output, &r, 1));
	/* 30 ms at 1 Gbit/s are 3.9 MB. */
	r = (struct ft_round){.dirty_pages = 800, .bytes_per_page = 4096};
	assert_true(ft_policy_switch_to_target(&on_output, &r, 125u << 20));
	r.dirty_pages = 1000;
	assert_false(ft_policy_switch_to_target(&on_output, &r, 125u << 20));
	/* Pages that pack well are sooner there. */
	r.bytes_per_page = 1000;
	assert_true(ft_policy_switch_to_target(&on_output, &r, 125u << 20));
	/* A fast link does not make copying free. */
	r = (struct ft_round){.dirty_pages = 20000, .bytes_per_page = 1};
	assert_false(ft_policy_switch_to_target(&on_output, &r, UINT64_MAX));
	/* No bound of rounds makes it fit. */
	r = (struct ft_round){.dirty_pages = 100000, .rounds = FT_ROUNDS_MAX};
	assert_false(ft_policy_switch_to_target(&on_output, &r, 125u << 20));
	r = (struct ft_round){.disk_bytes_behind = 16u << 20};
	assert_false(ft_policy_switch_to_target(&on_output, &r, 125u << 20));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_output),	  cmocka_unit_test(test_idle),
		cmocka_unit_test(test_interval),  cmocka_unit_test(test_budget),
		cmocka_unit_test(test_in_flight), cmocka_unit_test(test_reasons_of_the_caller),
		cmocka_unit_test(test_extremes),  cmocka_unit_test(test_life),
		cmocka_unit_test(test_switch),	  cmocka_unit_test(test_switch_to_target),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
