// SPDX-License-Identifier: Apache-2.0
// What a guest may ask of the network tap, and what a slow way on costs: more than the bound,
// frames that are too long, too short, or too many, and connections that come and go. None of it
// stops the guest or loses a frame that fits.
#include <arpa/inet.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/fixture/clock.h"
#include "tests/fixture/net_lab.h"

#define FLOOD_FRAMES   100000u
#define FLOOD_WRITE_NS 5000000000u // half a megabyte; minutes if anybody waited for anybody
#ifdef __SANITIZE_THREAD__
#define FLOOD_SLACK ((8u << 20) + 4 * NET_LAB_HELD_BYTES) /* its shadow of what is held */
#else
#define FLOOD_SLACK (8u << 20)
#endif

static unsigned long rss_kib(void)
{
	unsigned long pages = 0;
	FILE *f = fopen("/proc/self/statm", "re");

	assert_non_null(f);
	assert_int_equal(fscanf(f, "%*u %lu", &pages), 1);
	fclose(f);
	return pages * 4;
}

static void a_slow_reader_gets_everything_and_stops_nobody(void **state)
{
	struct net_lab *l = *state;
	uint32_t n = 0;

	setsockopt(l->in, SOL_SOCKET, SO_RCVBUF, &(int){4096}, sizeof(int));
	net_lab_hold(l, 1);
	for (uint64_t bytes = 0; bytes < NET_LAB_HELD_BYTES / 2;
	     bytes += net_lab_length_of(n++) + 16)
		net_lab_send(l->out, n, net_lab_length_of(n));
	net_lab_close_epoch(l, 2);
	net_lab_release(l, 2);
	// Nobody reads IN, and OUT is taken all the same, in order, behind what waits.
	for (uint32_t i = 0; i < 100; i++)
		net_lab_send(l->out, n + i, net_lab_length_of(n + i));
	net_lab_close_epoch(l, 3);
	net_lab_release(l, 3);
	assert_true(net_lab_stats(l).held_bytes > NET_LAB_HELD_BYTES / 4);
	for (uint32_t i = 0; i < n + 100; i++)
		net_lab_expect(l->in, i, net_lab_length_of(i));
	net_lab_expect_silence(l->in);
	assert_int_equal(net_lab_stats(l).held_bytes, 0);
	assert_int_equal(net_lab_stats(l).dropped, 0);
}

static void over_the_bound_frames_are_dropped_and_counted(void **state)
{
	struct net_lab *l = net_lab_new(NET_TAP_HELD_BYTES_MIN);
	void *own = l;
	uint32_t fit = NET_TAP_HELD_BYTES_MIN / (1000 + TAP_RECORD_HEADER);

	(void)state;
	net_lab_plug(l);
	net_lab_hold(l, 1);
	for (uint32_t i = 0; i < 4 * fit; i++)
		net_lab_send(l->out, i, 1000);
	net_lab_wait_captured(l, 4 * fit);
	assert_int_equal(net_lab_stats(l).held_outputs, fit);
	assert_int_equal(net_lab_stats(l).dropped, 3 * fit);
	assert_int_equal(atomic_load(&l->pressure), 1);
	net_lab_close_epoch(l, 2);
	net_lab_release(l, 2);
	for (uint32_t i = 0; i < fit; i++)
		net_lab_expect(l->in, i, 1000);
	net_lab_send(l->out, 7, 1000);
	net_lab_close_epoch(l, 3);
	net_lab_release(l, 3);
	net_lab_expect(l->in, 7, 1000);
	net_lab_teardown(&own);
}

static void expect_closed(int fd)
{
	char byte;

	assert_true(net_lab_readable(fd, NET_LAB_DEADLINE_MS));
	assert_true(read(fd, &byte, 1) <= 0);
}

static void a_frame_of_nothing_ends_the_connection(void **state)
{
	struct net_lab *l = *state;
	uint32_t be = 0;

	net_lab_send(l->out, 0, 80);
	net_lab_write(l->out, &be, 4);
	net_lab_expect(l->in, 0, 80); // what came before is whole
	expect_closed(l->out);
	close(l->out);
	l->out = net_lab_dial(l->out_path);
	net_lab_send(l->out, 100, 80);
	net_lab_expect(l->in, 100, 80);
}

// A guest decides how much it hands its NIC in one piece: that is lost, and nothing else, held or
// not. No checkpoint ends in the middle of it.
static void a_giant_frame_costs_only_itself(void **state)
{
	static const uint32_t lengths[] = {TAP_NET_FRAME_MAX + 1, 1u << 20, 20u << 20};
	static uint8_t piece[1u << 16];
	struct net_lab *l = *state;
	struct ft_err err;

	net_lab_hold(l, 1);
	for (uint32_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
		uint32_t be = htonl(lengths[i]), left = lengths[i];

		net_lab_send(l->out, 2 * i, 80);
		net_lab_write(l->out, &be, 4);
		for (uint32_t n; left > 1; left -= n) {
			n = left - 1 < sizeof piece ? left - 1 : sizeof piece;
			net_lab_write(l->out, piece, n);
		}
		assert_int_equal(l->tap->ops->close_epoch(l->tap, 2 + i, &err), -EBUSY);
		net_lab_write(l->out, piece, 1);
		net_lab_send(l->out, 2 * i + 1, 80);
		net_lab_close_epoch(l, 2 + i);
		assert_int_equal(net_lab_stats(l).held_outputs, 2);
		assert_int_equal(net_lab_stats(l).dropped, i + 1);
		net_lab_release(l, 2 + i);
		net_lab_expect(l->in, 2 * i, 80);
		net_lab_expect(l->in, 2 * i + 1, 80);
	}
}

// The smallest frames cost the most: what is held stays within its bound whatever they are, the
// sender, which is QEMU with its lock held, never waits for it, and memory does not grow.
static void a_flood_costs_no_more_than_its_bound(void **state)
{
	static uint8_t flood[FLOOD_FRAMES * 5];
	struct net_lab *l = *state;
	struct tap_stats s;
	unsigned long before;

	for (size_t i = 0; i < FLOOD_FRAMES; i++)
		flood[5 * i + 3] = 1; // be32 length 1, one byte
	net_lab_hold(l, 1);
	net_lab_write(l->out, flood, sizeof flood);
	net_lab_wait_captured(l, FLOOD_FRAMES);
	before = rss_kib();
	for (unsigned i = 0; i < 20; i++) {
		uint64_t began = now_ns();

		net_lab_write(l->out, flood, sizeof flood);
		assert_true(now_ns() - began < FLOOD_WRITE_NS);
	}
	net_lab_wait_captured(l, 21 * FLOOD_FRAMES);
	s = net_lab_stats(l);
	assert_true(s.held_bytes <= NET_LAB_HELD_BYTES && s.dropped > 0);
	assert_int_equal(s.held_outputs + s.dropped, 21 * FLOOD_FRAMES);
	assert_true(rss_kib() <= before + (NET_LAB_HELD_BYTES + FLOOD_SLACK) / 1024);
	l->tap->ops->discard(l->tap);
}

static void connections_come_and_go(void **state)
{
	struct net_lab *l = *state;
	uint32_t be = htonl(500);

	for (uint32_t i = 0; i < 20; i++) {
		net_lab_send(l->out, i, 80);
		net_lab_expect(l->in, i, 80);
		// Half a frame does not live on into the next connection.
		net_lab_write(l->out, &be, 4);
		net_lab_write(l->out, "half", 4);
		net_lab_unplug(l);
		net_lab_plug(l);
	}
	// Taken in before the tap's thread has even accepted.
	for (uint64_t epoch = 1; epoch < 20; epoch++) {
		net_lab_unplug(l);
		net_lab_plug(l);
		net_lab_hold(l, epoch);
		net_lab_send(l->out, 1, 80);
		net_lab_close_epoch(l, epoch + 1);
		assert_int_equal(net_lab_exported(l, epoch + 1, 1), 1);
		net_lab_release(l, epoch + 1);
		net_lab_expect(l->in, 1, 80);
		l->tap->ops->set_mode(l->tap, TAP_PASS);
	}
	// A new connection replaces one that was not closed.
	int old_out = l->out, old_in = l->in;

	net_lab_plug(l);
	expect_closed(old_out);
	expect_closed(old_in);
	close(old_out);
	close(old_in);
	net_lab_send(l->out, 9, 80);
	net_lab_expect(l->in, 9, 80);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_slow_reader_gets_everything_and_stops_nobody,
						net_lab_setup, net_lab_teardown),
		cmocka_unit_test(over_the_bound_frames_are_dropped_and_counted),
		cmocka_unit_test_setup_teardown(a_giant_frame_costs_only_itself, net_lab_setup,
						net_lab_teardown),
		cmocka_unit_test_setup_teardown(a_flood_costs_no_more_than_its_bound, net_lab_setup,
						net_lab_teardown),
		cmocka_unit_test_setup_teardown(a_frame_of_nothing_ends_the_connection,
						net_lab_setup, net_lab_teardown),
		cmocka_unit_test_setup_teardown(connections_come_and_go, net_lab_setup,
						net_lab_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
