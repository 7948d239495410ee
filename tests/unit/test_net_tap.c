// SPDX-License-Identifier: Apache-2.0
// The network tap in its modes: what goes on at once, what waits for which epoch, what is replayed,
// and what never leaves.
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/fixture/clock.h"
#include "tests/fixture/net_lab.h"

#define BULK_FRAMES 3000

static void *bulk(void *arg)
{
	struct net_lab *l = arg;

	for (uint32_t i = 0; i < BULK_FRAMES; i++) {
		sem_wait(&l->window);
		net_lab_send(l->out, i, NET_LAB_FRAME_MAX - 4 - i % 8);
	}
	return NULL;
}

static void pass_keeps_order_and_pace(void **state)
{
	struct net_lab *l = *state;
	uint64_t start = now_ns(), rtt_ns[500];
	pthread_t thread;

	sem_init(&l->window, 0, NET_LAB_HELD_BYTES / 2 / NET_LAB_FRAME_MAX);
	pthread_create(&thread, NULL, bulk, l);
	for (uint32_t i = 0; i < BULK_FRAMES; i++) {
		net_lab_expect(l->in, i, NET_LAB_FRAME_MAX - 4 - i % 8);
		sem_post(&l->window);
	}
	pthread_join(thread, NULL);
	print_message("bulk: %.0f MB/s\n",
		      BULK_FRAMES * (double)NET_LAB_FRAME_MAX / (double)(now_ns() - start) * 1e3);
	for (int i = 0; i < 500; i++) {
		start = now_ns();
		net_lab_send(l->out, (uint32_t)i, 64);
		net_lab_expect(l->in, (uint32_t)i, 64);
		rtt_ns[i] = now_ns() - start;
		for (int k = i; k && rtt_ns[k] < rtt_ns[k - 1]; k--) {
			uint64_t swap = rtt_ns[k];

			rtt_ns[k] = rtt_ns[k - 1];
			rtt_ns[k - 1] = swap;
		}
	}
	print_message("one frame through: min %.0f us, p50 %.0f us\n", (double)rtt_ns[0] / 1e3,
		      (double)rtt_ns[250] / 1e3);
	assert_int_equal(net_lab_stats(l).outputs, BULK_FRAMES + 500);
	assert_int_equal(net_lab_stats(l).dropped, 0);
}

static void epochs_are_exact(void **state)
{
	struct net_lab *l = *state;
	uint32_t out = 0, in = 0, before[3] = {0};

	srand(7);
	net_lab_hold(l, 1);
	// The socket still holds frames that the thread has not seen when the epoch is closed; they
	// are the epoch's all the same.
	for (uint64_t epoch = 2; epoch < 400; epoch++) {
		uint32_t first = out, n = (uint32_t)rand() % 12;

		for (uint32_t i = 0; i < n; i++, out++)
			net_lab_send(l->out, out, 64 + out % 900);
		net_lab_close_epoch(l, epoch);
		before[epoch % 3] = out;
		assert_int_equal(net_lab_exported(l, epoch, first), n);
		assert_int_equal(net_lab_exported(l, epoch + 1, first), 0);
		if (epoch % 3 == 0) {
			net_lab_release(l, epoch - 1);
			for (; in < before[(epoch - 1) % 3]; in++)
				net_lab_expect(l->in, in, 64 + in % 900);
			assert_false(net_lab_readable(l->in, 0));
		}
	}
	net_lab_expect_silence(l->in);
	net_lab_release(l, 400);
	for (; in < out; in++)
		net_lab_expect(l->in, in, 64 + in % 900);
	net_lab_expect_silence(l->in);
	assert_int_equal(net_lab_stats(l).held_outputs, 0);
	assert_int_equal(net_lab_stats(l).outputs, out);
}

static void hold_begins_and_ends_where_it_says(void **state)
{
	struct net_lab *l = *state;

	l->tap->ops->set_mode(l->tap, TAP_HOLD);
	net_lab_send(l->out, 0, 100);
	net_lab_expect(l->in, 0, 100); // still the epoch before
	net_lab_send(l->out, 1, 100);
	net_lab_close_epoch(l, 1);
	net_lab_expect(l->in, 1, 100);
	net_lab_send(l->out, 2, 100);
	net_lab_wait_captured(l, 3);
	net_lab_send(l->out, 3, 100);
	net_lab_close_epoch(l, 2);
	net_lab_send(l->out, 4, 100);
	net_lab_wait_captured(l, 5);
	net_lab_expect_silence(l->in);
	assert_int_equal(net_lab_stats(l).held_outputs, 3);
	l->tap->ops->set_mode(l->tap, TAP_PASS); // solo: everything goes, the open epoch too
	for (uint32_t i = 2; i < 5; i++)
		net_lab_expect(l->in, i, 100);
	net_lab_send(l->out, 5, 100);
	net_lab_expect(l->in, 5, 100);
	net_lab_hold(l, 1); // a new standby; epochs may begin anew
	net_lab_send(l->out, 6, 100);
	net_lab_close_epoch(l, 2);
	net_lab_expect_silence(l->in);
	net_lab_release(l, 2);
	net_lab_expect(l->in, 6, 100);
}

static void a_checkpoint_needs_a_paused_and_connected_guest(void **state)
{
	struct net_lab *l = *state;
	struct ft_err err;
	uint32_t be = htonl(80);
	uint8_t frame[80] = {5};

	net_lab_hold(l, 1);
	net_lab_write(l->out, &be, 4);
	net_lab_write(l->out, frame, 40);
	assert_int_equal(l->tap->ops->close_epoch(l->tap, 2, &err), -EBUSY);
	assert_string_equal(err.text, "drain OUT: half a frame: the guest is not paused");
	net_lab_write(l->out, frame, 40);
	net_lab_close_epoch(l, 2);
	assert_int_equal(net_lab_stats(l).held_outputs, 1);
	net_lab_release(l, 2);
	net_lab_unplug(l);
	assert_int_equal(l->tap->ops->close_epoch(l->tap, 3, &err), -ENOTCONN);
	assert_string_equal(err.text, "drain OUT: QEMU is not connected");
}

static struct tap_record record_of(uint32_t number, uint32_t len, uint8_t *data)
{
	memset(data, (int)number, len);
	memcpy(data, &number, 4);
	return (struct tap_record){.kind = TAP_NET, .device = 3, .len = len, .data = data};
}

static void replay_waits_for_the_vm_and_keeps_order(void **state)
{
	struct net_lab *l = net_lab_new(NET_LAB_HELD_BYTES); // QEMU is not there yet
	void *own = l;
	uint8_t data[2000];
	struct ft_err err;

	(void)state;
	for (uint32_t i = 1; i < 200; i++) {
		struct tap_record rec = record_of(i, 64 + i, data);

		if (i == 100)
			net_lab_plug(l);
		assert_int_equal(l->tap->ops->replay(l->tap, &rec, &err), 0);
	}
	net_lab_send(l->out, 200, 64);
	for (uint32_t i = 1; i < 200; i++)
		net_lab_expect(l->in, i, 64 + i);
	net_lab_expect(l->in, 200, 64);
	net_lab_hold(l, 1);
	net_lab_send(l->out, 201, 64);
	net_lab_close_epoch(l, 2);
	struct tap_record rec = record_of(1, 64, data);

	assert_int_equal(l->tap->ops->replay(l->tap, &rec, &err), -EBUSY);
	net_lab_expect_silence(l->in);
	net_lab_teardown(&own);
}

static void nothing_leaves_after_discard(void **state)
{
	struct net_lab *l = *state;

	net_lab_hold(l, 1);
	net_lab_send(l->out, 0, 64);
	net_lab_close_epoch(l, 2);
	net_lab_send(l->out, 1, 64);
	net_lab_wait_captured(l, 2);
	l->tap->ops->discard(l->tap);
	assert_int_equal(net_lab_stats(l).held_outputs, 0);
	assert_int_equal(net_lab_stats(l).dropped, 2);
	net_lab_release(l, 5);
	l->tap->ops->set_mode(l->tap, TAP_PASS);
	net_lab_expect_silence(l->in);
	net_lab_send(l->out, 2, 64);
	net_lab_expect(l->in, 2, 64); // the connection is still good
}

// Many released frames, nobody reads, discard. What is in the socket then; *closed: and nothing
// comes behind it.
static size_t left_by_discard(struct net_lab *l, uint32_t len, bool *closed)
{
	static char buf[1u << 20];
	size_t left = 0;
	ssize_t n = -1;

	net_lab_hold(l, 1);
	while (net_lab_stats(l).held_bytes < NET_LAB_HELD_BYTES / 2) {
		net_lab_send(l->out, 0, len);
		net_lab_close_epoch(l, 2);
	}
	net_lab_release(l, 2);
	// More than release() itself writes, so that the thread is at it and fills the socket
	// again.
	for (; left < 3 * sizeof buf; left += sizeof buf)
		net_lab_read(l->in, buf, sizeof buf);
	l->tap->ops->discard(l->tap);
	assert_int_equal(net_lab_stats(l).held_bytes, 0);
	while (net_lab_readable(l->in, 20) && (n = read(l->in, buf, sizeof buf)) > 0)
		left += (size_t)n;
	*closed = n == 0;
	l->tap->ops->set_mode(l->tap, TAP_PASS);
	net_lab_unplug(l);
	net_lab_plug(l);
	return left;
}

static void a_frame_cut_by_discard_ends_its_connection(void **state)
{
	struct net_lab *l = *state;
	unsigned cut = 0;

	// Where the socket is full depends on the kernel; somewhere it is not at a frame's end.
	for (uint32_t len = 50000; len < 50020; len++) {
		bool closed;
		size_t left = left_by_discard(l, len, &closed);

		assert_true(left > 0);
		assert_true(left < NET_LAB_HELD_BYTES / 2);
		assert_int_equal(closed, left % (4 + len) != 0);
		cut += closed;
	}
	assert_true(cut > 0);
}

static unsigned descriptors(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static void open_says_what_is_wrong_and_leaks_nothing(void **state)
{
	char long_path[200];
	struct net_tap_config config = {.id = "net9",
					.out_path = "/nonexistent/out",
					.in_path = "/nonexistent/in",
					.held_bytes_max = 1};
	struct tap *tap;
	struct ft_err err;
	unsigned before = descriptors();

	(void)state;
	assert_int_equal(net_tap_open(&config, &tap, &err), -EINVAL);
	assert_string_equal(err.text, "net9: queue: 1 bytes: at least 1048576");
	config.held_bytes_max = NET_LAB_HELD_BYTES;
	assert_int_equal(net_tap_open(&config, &tap, &err), -ENOENT);
	assert_string_equal(err.text, "net9: /nonexistent/out: listen: No such file or directory");
	memset(long_path, 'x', sizeof long_path - 1);
	long_path[sizeof long_path - 1] = 0;
	config.out_path = long_path;
	assert_int_equal(net_tap_open(&config, &tap, &err), -ENAMETOOLONG);
	assert_int_equal(descriptors(), before);

	struct net_lab *l = net_lab_new(NET_LAB_HELD_BYTES);
	void *own = l;

	net_lab_plug(l);
	net_lab_send(l->out, 1, 64);
	net_lab_expect(l->in, 1, 64);
	net_lab_teardown(&own);
	assert_int_equal(descriptors(), before);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(pass_keeps_order_and_pace, net_lab_setup,
						net_lab_teardown),
		cmocka_unit_test_setup_teardown(epochs_are_exact, net_lab_setup, net_lab_teardown),
		cmocka_unit_test_setup_teardown(hold_begins_and_ends_where_it_says, net_lab_setup,
						net_lab_teardown),
		cmocka_unit_test_setup_teardown(a_checkpoint_needs_a_paused_and_connected_guest,
						net_lab_setup, net_lab_teardown),
		cmocka_unit_test(replay_waits_for_the_vm_and_keeps_order),
		cmocka_unit_test_setup_teardown(nothing_leaves_after_discard, net_lab_setup,
						net_lab_teardown),
		cmocka_unit_test_setup_teardown(a_frame_cut_by_discard_ends_its_connection,
						net_lab_setup, net_lab_teardown),
		cmocka_unit_test(open_says_what_is_wrong_and_leaks_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
