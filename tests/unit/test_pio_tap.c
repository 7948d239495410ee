// SPDX-License-Identifier: Apache-2.0
// The port tap: every width arrives whole by every way there is, and in order.
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "eventtap/pio/pio_tap.h"

#define HELD_BYTES_MAX 4096
#define VALUE	       0x1122334455667788u

struct sink {
	struct tap *tap;
	unsigned delivered, outputs, pressure;
	enum tap_kind kind;
	uint64_t addr;
	uint8_t data[8];
	unsigned width;
};

static void deliver(void *ctx, enum tap_kind kind, uint64_t addr, const uint8_t *data,
		    unsigned width)
{
	struct sink *s = ctx;

	s->delivered++;
	s->kind = kind;
	s->addr = addr;
	s->width = width;
	memcpy(s->data, data, width);
}

static void on_output(void *ctx)
{
	((struct sink *)ctx)->outputs++;
}

static void on_pressure(void *ctx)
{
	((struct sink *)ctx)->pressure++;
}

static int setup(void **state)
{
	struct sink *s = calloc(1, sizeof *s);
	struct ft_err err;

	assert_int_equal(pio_tap_open(&(struct pio_tap_config){.id = "ports",
							       .device = 2,
							       .held_bytes_max = HELD_BYTES_MAX,
							       .deliver = deliver,
							       .ctx = s},
				      &s->tap, &err),
			 0);
	s->tap->notify = (struct tap_notify){on_output, on_pressure, s};
	*state = s;
	return 0;
}

static int teardown(void **state)
{
	struct sink *s = *state;

	s->tap->ops->free(s->tap);
	free(s);
	return 0;
}

static void hold(struct sink *s)
{
	s->tap->ops->set_mode(s->tap, TAP_HOLD);
	assert_int_equal(s->tap->ops->close_epoch(s->tap, 1, NULL), 0);
}

static void expect(struct sink *s, unsigned delivered, enum tap_kind kind, uint64_t addr,
		   unsigned width)
{
	uint64_t value = VALUE;

	assert_int_equal(s->delivered, delivered);
	assert_int_equal(s->kind, kind);
	assert_int_equal(s->addr, addr);
	assert_int_equal(s->width, width);
	assert_memory_equal(s->data, &value, width); // little endian, as here
}

static void every_width_is_whole_by_every_way(void **state)
{
	struct sink *s = *state;
	unsigned n = 0;

	for (unsigned width = 1; width <= 8; width *= 2)
		for (enum tap_kind kind = TAP_PIO; kind <= TAP_MMIO; kind++) {
			uint64_t addr = kind == TAP_PIO ? 0xcf8 : 0xfee00000fee00000;
			struct tap_cursor cursor = {0};
			struct tap_record rec;
			uint8_t wire[64];
			size_t len;

			assert_int_equal(pio_tap_emit(s->tap, kind, addr, VALUE, width), 0);
			expect(s, ++n, kind, addr, width);
			hold(s);
			assert_int_equal(pio_tap_emit(s->tap, kind, addr, VALUE, width), 0);
			assert_int_equal(s->delivered, n);
			assert_int_equal(s->tap->ops->close_epoch(s->tap, 2, NULL), 0);
			// over the wire to the standby, which replays it
			len = s->tap->ops->export(s->tap, 2, &cursor, wire, sizeof wire);
			assert_int_equal(tap_record_parse(wire, len, &rec, NULL),
					 TAP_RECORD_HEADER + width);
			assert_int_equal(rec.device, 2);
			assert_int_equal(s->tap->ops->release(s->tap, 2, NULL), 0);
			expect(s, ++n, kind, addr, width);
			memset(s->data, 0, sizeof s->data);
			assert_int_equal(s->tap->ops->replay(s->tap, &rec, NULL), 0);
			expect(s, ++n, kind, addr, width);
			s->tap->ops->set_mode(s->tap, TAP_PASS);
		}
}

static void held_by_epoch_and_let_go_in_order(void **state)
{
	struct sink *s = *state;
	struct ft_err err;
	struct tap_record rec = {.kind = TAP_PIO, .len = 1, .data = (const uint8_t *)"x"};

	s->tap->ops->set_mode(s->tap, TAP_HOLD);
	pio_tap_emit(s->tap, TAP_PIO, 1, 0, 1);
	assert_int_equal(s->delivered, 1); // HOLD begins with the next epoch
	assert_int_equal(s->outputs, 0);
	hold(s);
	for (uint64_t epoch = 2; epoch < 6; epoch++) {
		pio_tap_emit(s->tap, TAP_PIO, epoch, 0, 1);
		assert_int_equal(s->tap->ops->close_epoch(s->tap, epoch, NULL), 0);
	}
	assert_int_equal(s->outputs, 4);
	assert_int_equal(s->tap->ops->replay(s->tap, &rec, &err), -EBUSY);
	s->tap->ops->release(s->tap, 3, NULL);
	assert_int_equal(s->delivered, 3);
	assert_int_equal(s->addr, 3);
	s->tap->ops->discard(s->tap);
	s->tap->ops->release(s->tap, 5, NULL);
	s->tap->ops->set_mode(s->tap, TAP_PASS);
	assert_int_equal(s->delivered, 3);
}

static void over_the_bound_the_machine_has_to_wait(void **state)
{
	struct sink *s = *state;
	unsigned n = 0;

	hold(s);
	while (pio_tap_emit(s->tap, TAP_PIO, n, VALUE, 8) == 0)
		n++;
	assert_int_equal(n, HELD_BYTES_MAX / (TAP_RECORD_HEADER + 8));
	assert_int_equal(pio_tap_emit(s->tap, TAP_PIO, n, VALUE, 8), -ENOBUFS);
	assert_int_equal(s->pressure, 1);
	assert_int_equal(s->tap->ops->close_epoch(s->tap, 2, NULL), 0);
	s->tap->ops->release(s->tap, 2, NULL);
	assert_int_equal(s->delivered, n);
	assert_int_equal(pio_tap_emit(s->tap, TAP_PIO, n, VALUE, 8), 0);
}

static void *machine(void *arg)
{
	struct sink *s = arg;

	for (uint64_t i = 0; i < 20000; i++)
		while (pio_tap_emit(s->tap, TAP_MMIO, i, i, 8))
			sched_yield();
	return NULL;
}

static void machine_and_engine_on_threads_of_their_own(void **state)
{
	struct sink *s = *state;
	struct tap_stats stats;
	pthread_t thread;
	uint64_t epoch = 2;

	hold(s);
	pthread_create(&thread, NULL, machine, s);
	do {
		assert_int_equal(s->tap->ops->close_epoch(s->tap, epoch, NULL), 0);
		s->tap->ops->release(s->tap, epoch++, NULL);
		s->tap->ops->stats(s->tap, &stats);
	} while (stats.outputs < 20000 || stats.held_outputs);
	pthread_join(thread, NULL);
	assert_int_equal(s->delivered, 20000);
	assert_int_equal(s->addr, 19999);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(every_width_is_whole_by_every_way, setup, teardown),
		cmocka_unit_test_setup_teardown(held_by_epoch_and_let_go_in_order, setup, teardown),
		cmocka_unit_test_setup_teardown(over_the_bound_the_machine_has_to_wait, setup,
						teardown),
		cmocka_unit_test_setup_teardown(machine_and_engine_on_threads_of_their_own, setup,
						teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
