// SPDX-License-Identifier: Apache-2.0
/* A thousand checkpoints, and fifty times protected and not: nothing grows. */
#include "tests/agent/harness.h"

#define CHECKPOINTS    1000
#define ROUNDS	       50
#define GROWTH_KIB_MAX 2048 /* malloc's arenas, the allocator of a sanitizer aside */

static struct host a, b;
static struct kv_client client;

struct size {
	unsigned descriptors;
	unsigned long kib;
};

static struct size size_of(const struct host *h)
{
	return (struct size){.descriptors = descriptors(h->agent), .kib = rss_kib(h->agent)};
}

static void assert_no_growth(const struct host *h, const struct size *before)
{
	uint64_t until = now_ms() + 5000;
	struct size now;

	/* The last request's connection may still be there, then as now. */
	while (now = size_of(h), now.descriptors > before->descriptors)
		breathe(until, "descriptors");
	printf("%s: %u descriptors, %lu KiB; before: %u, %lu\n", h->id, now.descriptors, now.kib,
	       before->descriptors, before->kib);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
	assert_true(now.kib <= before->kib + GROWTH_KIB_MAX);
#endif
}

static int setup(void **state)
{
	place_clear(state);
	pocket_pair(&a, &b, "trigger = \"both\" interval_ms = 5 max_overhead = 0.9", "");
	kv_open(&client);
	kv_work(&client, 100);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	return 0;
}

static int teardown(void **state)
{
	kv_close(&client);
	host_stop(&a);
	host_stop(&b);
	assert_int_equal(children(), 0);
	return place_clear(state);
}

static void thousand_checkpoints(void **state)
{
	struct size before_a, before_b;
	uint64_t first;

	(void)state;
	/* Buffers are touched for the first time, and the standby's image, which counts as its
	 * agent's memory from when it is looked at. */
	kv_work(&client, 100);
	ask_ok(&a, "verify", NULL);
	first = committed(&a);
	before_a = size_of(&a);
	before_b = size_of(&b);
	while (committed(&a) < first + CHECKPOINTS)
		kv_work(&client, 20);
	for (unsigned i = 0; i < 20; i++)
		ask_ok(&a, "checkpoint", NULL);
	ask_ok(&a, "verify", NULL);
	assert_no_growth(&a, &before_a);
	assert_no_growth(&b, &before_b);
}

static void protected_again_and_again(void **state)
{
	struct size before_a, before_b;

	(void)state;
	for (unsigned i = 0; i < ROUNDS; i++) {
		if (i == 5) {
			ask_ok(&a, "cancel", NULL);
			ask_ok(&a, "migrate", unix_uri("b.sock"));
			kv_work(&client, 5);
			ask_ok(&a, "verify", NULL);
			before_a = size_of(&a);
			before_b = size_of(&b);
		}
		ask_ok(&a, "cancel", NULL);
		kv_work(&client, 5);
		ask_ok(&a, "migrate", unix_uri("b.sock"));
		kv_work(&client, 5);
	}
	ask_ok(&a, "verify", NULL);
	assert_no_growth(&a, &before_a);
	assert_no_growth(&b, &before_b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(thousand_checkpoints, setup, teardown),
		cmocka_unit_test_setup_teardown(protected_again_and_again, setup, teardown),
	};
	int failed;

	place_open();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}
