// SPDX-License-Identifier: Apache-2.0
// The ring of held outputs: order, epochs, the bound, and that nothing is lost when records wrap.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "eventtap/queue.h"

#define BYTES_MAX 8192

static int setup(void **state)
{
	struct queue *q;
	struct ft_err err;

	assert_int_equal(queue_new(BYTES_MAX, &q, &err), 0);
	assert_int_equal(queue_bytes_max(q), BYTES_MAX);
	*state = q;
	return 0;
}

static int teardown(void **state)
{
	queue_free(*state);
	return 0;
}

// A record whose content tells its number.
static int append(struct queue *q, uint32_t number, uint32_t len)
{
	uint8_t data[4096];
	struct tap_record rec = {.kind = TAP_NET, .len = len, .arg = number, .data = data};

	memset(data, (int)number, len);
	return queue_append(q, &rec, NULL);
}

static bool pop(struct queue *q, uint32_t number, uint32_t len)
{
	struct tap_record rec;
	size_t at = 0;

	if (!queue_peek(q, &at, &rec))
		return false;
	assert_int_equal(rec.kind, TAP_NET);
	assert_int_equal(rec.arg, number);
	assert_int_equal(rec.len, len);
	for (uint32_t i = 0; i < len; i++)
		assert_int_equal(rec.data[i], (uint8_t)number);
	queue_pop(q);
	return true;
}

static size_t export_all(struct queue *q, uint64_t epoch, uint8_t *out, size_t step)
{
	struct tap_cursor cursor = {0};
	size_t len = 0, n;

	while ((n = queue_export(q, epoch, &cursor, out + len, step)))
		len += n;
	return len;
}

static void sizes_are_checked(void **state)
{
	struct queue *q;
	struct ft_err err;

	(void)state;
	assert_int_equal(queue_new(0, &q, &err), -EINVAL);
	assert_int_equal(queue_new(SIZE_MAX, &q, &err), -EINVAL);
	assert_int_equal(strncmp(err.text, "queue: ", 7), 0);
	assert_int_equal(queue_new(1, &q, &err), 0);
	assert_true(queue_bytes_max(q) >= 4096);
	queue_free(q);
	queue_free(NULL);
}

static void epochs_are_released_one_by_one_and_in_order(void **state)
{
	struct queue *q = *state;
	struct ft_err err;
	struct tap_stats stats;

	assert_int_equal(append(q, 1, 10), 0);
	assert_true(queue_open(q));
	assert_int_equal(queue_close(q, 5, &err), 0);
	assert_false(queue_open(q));
	assert_int_equal(append(q, 2, 20), 0);
	assert_int_equal(append(q, 3, 30), 0);
	assert_int_equal(queue_close(q, 6, &err), 0);
	assert_int_equal(queue_close(q, 7, &err), 0); // an epoch may be empty
	assert_int_equal(append(q, 4, 40), 0);

	assert_false(pop(q, 1, 10));
	queue_release(q, 4);
	assert_false(pop(q, 1, 10));
	queue_release(q, 5);
	assert_true(pop(q, 1, 10));
	assert_false(pop(q, 2, 20));
	queue_release(q, 7);
	assert_true(pop(q, 2, 20));
	assert_true(pop(q, 3, 30));
	assert_false(pop(q, 4, 40)); // still open
	queue_release(q, UINT64_MAX);
	assert_false(pop(q, 4, 40));
	queue_stats(q, &stats);
	assert_int_equal(stats.held_outputs, 1);
	assert_int_equal(stats.held_bytes, TAP_RECORD_HEADER + 40);
	assert_true(queue_holds(q));
	queue_release_all(q);
	assert_false(queue_holds(q));
	assert_true(pop(q, 4, 40));
	queue_stats(q, &stats);
	assert_int_equal(stats.held_bytes, 0);
}

static void export_is_exactly_one_epoch_in_any_room(void **state)
{
	struct queue *q = *state;
	struct ft_err err;
	uint8_t out[1024];

	append(q, 1, 10);
	queue_close(q, 1, &err);
	append(q, 2, 20);
	append(q, 3, 30);
	queue_close(q, 2, &err);
	append(q, 4, 40);
	for (size_t step = 1; step < 200; step++) {
		struct tap_record rec;
		long n;

		assert_int_equal(export_all(q, 1, out, step), TAP_RECORD_HEADER + 10);
		assert_int_equal(export_all(q, 2, out, step), 2 * TAP_RECORD_HEADER + 50);
		n = tap_record_parse(out, sizeof out, &rec, NULL);
		assert_int_equal(n, TAP_RECORD_HEADER + 20);
		assert_int_equal(rec.arg, 2);
		n = tap_record_parse(out + n, sizeof out, &rec, NULL);
		assert_int_equal(rec.arg, 3);
		assert_int_equal(rec.data[29], 3);
		assert_int_equal(export_all(q, 3, out, step), 0);
	}
	queue_release(q, 1); // released epochs are no longer for export
	assert_int_equal(export_all(q, 1, out, 64), 0);
	assert_int_equal(export_all(q, 2, out, 64), 2 * TAP_RECORD_HEADER + 50);
}

static void a_failed_checkpoints_epoch_is_closed_again(void **state)
{
	struct queue *q = *state;
	struct ft_err err;
	uint8_t out[256];

	append(q, 1, 10);
	assert_int_equal(queue_close(q, 3, &err), 0);
	append(q, 2, 20);
	assert_int_equal(queue_close(q, 3, &err), 0);
	assert_int_equal(export_all(q, 3, out, sizeof out), 2 * TAP_RECORD_HEADER + 30);
	queue_release(q, 3);
	assert_true(pop(q, 1, 10));
	assert_true(pop(q, 2, 20));
}

static void discard_forgets_what_is_not_released(void **state)
{
	struct queue *q = *state;
	struct ft_err err;
	uint8_t out[64];

	append(q, 1, 10);
	queue_close(q, 8, &err);
	append(q, 2, 10);
	queue_close(q, 9, &err);
	append(q, 3, 10);
	queue_release(q, 8);
	assert_int_equal(queue_discard(q), 2);
	assert_int_equal(export_all(q, 9, out, sizeof out), 0);
	queue_release_all(q);
	assert_true(pop(q, 1, 10));
	assert_false(pop(q, 2, 10));
	append(q, 4, 10);
	assert_int_equal(queue_close(q, 1, &err), 0); // a new life, other numbers
	queue_release(q, 1);
	assert_true(pop(q, 4, 10));
}

static void the_bound_holds_and_nothing_is_lost_below_it(void **state)
{
	struct queue *q = *state;
	struct tap_stats stats;
	uint32_t n = 0;

	while (append(q, n, 1000) == 0)
		n++;
	assert_int_equal(n, BYTES_MAX / (1000 + TAP_RECORD_HEADER));
	assert_int_equal(append(q, n, 1000), -ENOBUFS);
	queue_stats(q, &stats);
	assert_int_equal(stats.held_outputs, n);
	assert_int_equal(stats.held_bytes, n * (1000 + TAP_RECORD_HEADER));
	queue_release_all(q);
	for (uint32_t i = 0; i < n; i++)
		assert_true(pop(q, i, 1000));
	// The whole ring can be one record.
	uint8_t *big = calloc(1, BYTES_MAX);
	struct tap_record rec = {
		.kind = TAP_CONSOLE, .len = BYTES_MAX - TAP_RECORD_HEADER, .data = big};

	assert_int_equal(queue_append(q, &rec, NULL), 0);
	free(big);
}

static void too_many_epochs_are_refused_and_the_open_one_stays(void **state)
{
	struct queue *q = *state;
	struct ft_err err;

	for (uint32_t e = 1; e <= QUEUE_EPOCHS_MAX; e++) {
		append(q, e, 1);
		assert_int_equal(queue_close(q, e, &err), 0);
	}
	append(q, 99, 1);
	assert_int_equal(queue_close(q, 99, &err), -ENOBUFS);
	assert_true(queue_open(q));
	queue_release(q, 1);
	assert_int_equal(queue_close(q, 99, &err), 0);
	queue_release(q, 99);
	for (uint32_t e = 1; e <= QUEUE_EPOCHS_MAX; e++)
		assert_true(pop(q, e, 1));
	assert_true(pop(q, 99, 1));
}

// A long random life, always compared with what a list of lengths says.
static void random_lives_wrap_without_loss(void **state)
{
	struct queue *q = *state;
	struct ft_err err;
	uint32_t in = 0, closed = 0, released = 0, out = 0, lens[4096];
	uint32_t closed_at[8] = {0}; // number of the first record after epoch e, by e % 8
	uint64_t epoch = 1, released_epoch = 0;

	srand(42);
	for (int step = 0; step < 200000; step++) {
		uint32_t len = 1 + (uint32_t)rand() % 700;

		switch (rand() % 8) {
		case 0:
			if (epoch - released_epoch == 8)
				break;
			assert_int_equal(queue_close(q, epoch, &err), 0);
			closed = in;
			closed_at[epoch++ % 8] = closed;
			break;
		case 1:
			if (released_epoch + 1 == epoch)
				break;
			queue_release(q, ++released_epoch);
			released = closed_at[released_epoch % 8];
			break;
		case 2:
		case 3:
		case 4:
			if (out < released) {
				assert_true(pop(q, out, lens[out % 4096]));
				out++;
			} else {
				assert_false(pop(q, out, 0));
			}
			break;
		default:
			lens[in % 4096] = len;
			if (append(q, in, len) == 0)
				in++;
		}
	}
	assert_true(in > 10000);
	queue_release_all(q);
	for (; out < in; out++)
		assert_true(pop(q, out, lens[out % 4096]));
	assert_false(pop(q, out, 0));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sizes_are_checked),
		cmocka_unit_test_setup_teardown(epochs_are_released_one_by_one_and_in_order, setup,
						teardown),
		cmocka_unit_test_setup_teardown(export_is_exactly_one_epoch_in_any_room, setup,
						teardown),
		cmocka_unit_test_setup_teardown(a_failed_checkpoints_epoch_is_closed_again, setup,
						teardown),
		cmocka_unit_test_setup_teardown(discard_forgets_what_is_not_released, setup,
						teardown),
		cmocka_unit_test_setup_teardown(the_bound_holds_and_nothing_is_lost_below_it, setup,
						teardown),
		cmocka_unit_test_setup_teardown(too_many_epochs_are_refused_and_the_open_one_stays,
						setup, teardown),
		cmocka_unit_test_setup_teardown(random_lives_wrap_without_loss, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
