// SPDX-License-Identifier: Apache-2.0
/* The failure detector in virtual time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "ft/detector.h"

#define MS	     UINT64_C(1000000)
#define HEARTBEAT_MS 50
#define SILENCE_MS   300

static void test_heartbeats(void **state)
{
	struct ft_detector d;

	(void)state;
	ft_detector_start(&d, 0, HEARTBEAT_MS, SILENCE_MS);
	assert_false(ft_detector_due(&d, 49 * MS));
	assert_true(ft_detector_due(&d, 50 * MS));
	assert_false(ft_detector_due(&d, 50 * MS));
	assert_false(ft_detector_due(&d, 99 * MS));
	/* After a delay one is sent, not all that were missed. */
	assert_true(ft_detector_due(&d, 500 * MS));
	assert_false(ft_detector_due(&d, 501 * MS));
}

/* Calls the detector as its owner's loop does, until `end`; the peer beats until `peer_end`.
 * Returns when it was suspected, or 0. */
static uint64_t loop(struct ft_detector *d, uint64_t now, uint64_t end, uint64_t peer_end,
		     uint64_t late_ns, unsigned *calls)
{
	uint64_t beat = now;

	for (*calls = 0; now < end; ++*calls) {
		uint64_t wake;

		for (; beat <= now && beat < peer_end; beat += HEARTBEAT_MS * MS)
			ft_detector_heard(d, beat);
		ft_detector_due(d, now);
		if (ft_detector_suspect(d, now))
			return now;
		wake = ft_detector_wake(d);
		assert_true(wake > now);
		now = wake + late_ns;
	}
	return 0;
}

/* Silence that was announced is not held against the peer; a heartbeat after it is worth no more
 * than any other. */
static void test_announced_silence(void **state)
{
	struct ft_detector d;
	unsigned calls;
	uint64_t at;

	(void)state;
	ft_detector_start(&d, 1, HEARTBEAT_MS, SILENCE_MS);
	ft_detector_beat(&d, 1, 2000 * MS);
	assert_int_equal(loop(&d, 1, 1900 * MS, 0, 0, &calls), 0);
	ft_detector_beat(&d, 1900 * MS, 0);
	at = loop(&d, 1900 * MS, 4000 * MS, 0, 0, &calls);
	assert_in_range(at, 2200 * MS, 2210 * MS);
}

static void test_silence(void **state)
{
	struct ft_detector d;
	unsigned calls;
	uint64_t at;

	(void)state;
	ft_detector_start(&d, 1, HEARTBEAT_MS, SILENCE_MS);
	assert_int_equal(loop(&d, 1, 10000 * MS, UINT64_MAX, 0, &calls), 0);
	assert_true(calls < 500);

	/* Dead after 1000 ms: suspected exactly `silence` after its last beat. */
	ft_detector_start(&d, 1, HEARTBEAT_MS, SILENCE_MS);
	at = loop(&d, 1, 10000 * MS, 1000 * MS, 0, &calls);
	assert_int_equal(at, d.heard_ns + SILENCE_MS * MS);
	assert_in_range(at, 1250 * MS, 1300 * MS);
	/* It stays suspected, and asking does not spin. */
	assert_true(ft_detector_suspect(&d, at + MS));
	assert_true(ft_detector_wake(&d) > at + MS);

	/* A loop that is somewhat late each time still suspects. */
	ft_detector_start(&d, 1, HEARTBEAT_MS, SILENCE_MS);
	at = loop(&d, 1, 10000 * MS, 1000 * MS, 70 * MS, &calls);
	assert_in_range(at, 1250 * MS, 1450 * MS);

	/* Heartbeats rarer than the silence is long: waking does not depend on them. */
	ft_detector_start(&d, 1, 10000, SILENCE_MS);
	at = loop(&d, 1, 60000 * MS, 1000 * MS, 0, &calls);
	assert_in_range(at, 1250 * MS, 1300 * MS);
}

static void test_frozen_ourselves(void **state)
{
	struct ft_detector d;

	(void)state;
	ft_detector_start(&d, 0, HEARTBEAT_MS, SILENCE_MS);
	assert_false(ft_detector_suspect(&d, 100 * MS));
	/* SIGSTOP for 10 s, and its heartbeats are still in the socket: it is not accused. */
	assert_false(ft_detector_suspect(&d, 10100 * MS));
	assert_false(ft_detector_suspect(&d, 10200 * MS));
	assert_false(ft_detector_suspect(&d, 10300 * MS));
	assert_false(ft_detector_suspect(&d, 10399 * MS));
	/* Listened for a whole silence and heard nothing. */
	assert_true(ft_detector_suspect(&d, 10400 * MS));

	/* Exactly half is not a freeze. */
	ft_detector_start(&d, 0, HEARTBEAT_MS, SILENCE_MS);
	assert_false(ft_detector_suspect(&d, 150 * MS));
	assert_true(ft_detector_suspect(&d, 300 * MS));
}

static void test_old_times(void **state)
{
	struct ft_detector d;

	(void)state;
	ft_detector_start(&d, 1000 * MS, HEARTBEAT_MS, SILENCE_MS);
	ft_detector_heard(&d, 1100 * MS);
	/* The loop's cached time is older than the message's. */
	assert_false(ft_detector_suspect(&d, 1090 * MS));
	assert_false(ft_detector_due(&d, 990 * MS));
	ft_detector_heard(&d, 1050 * MS);
	assert_int_equal(d.heard_ns, 1100 * MS);
	assert_false(ft_detector_suspect(&d, 1080 * MS));
	assert_int_equal(d.checked_ns, 1090 * MS);
}

static void test_patience(void **state)
{
	struct ft_detector d;
	uint64_t ms = 1000000, now = 1000 * ms;

	(void)state;
	ft_detector_start(&d, now, 50, 300);
	ft_detector_beat(&d, now, 2000 * ms);
	for (uint64_t t = 0; t < 2000; t += 50)
		assert_false(ft_detector_suspect(&d, now + t * ms));
	assert_true(ft_detector_suspect(&d, now + 2000 * ms));
	/* An ordinary heartbeat takes the request back: silence counts again from there. */
	ft_detector_beat(&d, now + 2010 * ms, 9000 * ms);
	ft_detector_beat(&d, now + 2020 * ms, 0);
	for (uint64_t t = 2020; t < 2320; t += 50)
		assert_false(ft_detector_suspect(&d, now + t * ms));
	assert_true(ft_detector_suspect(&d, now + 2320 * ms));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_patience),	  cmocka_unit_test(test_heartbeats),
		cmocka_unit_test(test_announced_silence), cmocka_unit_test(test_silence),
		cmocka_unit_test(test_frozen_ourselves),  cmocka_unit_test(test_old_times),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
