// SPDX-License-Identifier: Apache-2.0
// Records against hostile bytes; the chain against small taps that write down how they are called.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "eventtap/tap.h"

static void record_survives_the_wire(void **state)
{
	uint8_t data[300], wire[TAP_RECORD_HEADER + sizeof data];
	struct tap_record in = {.kind = TAP_DISK_WRITE,
				.device = 7,
				.len = sizeof data,
				.arg = 0x1122334455667788,
				.data = data};
	struct tap_record out;
	size_t need;

	(void)state;
	memset(data, 0x5a, sizeof data);
	tap_record_put_header(wire, &in);
	memcpy(wire + TAP_RECORD_HEADER, data, sizeof data);
	// The layout is fixed, not only symmetric.
	assert_memory_equal(wire,
			    "\x03\x07\x00\x00\x2c\x01\x00\x00\x88\x77\x66\x55\x44\x33\x22\x11", 16);
	for (size_t len = 0; len < sizeof wire; len++) {
		assert_int_equal(tap_record_parse(wire, len, &out, &need), 0);
		assert_int_equal(need, len < TAP_RECORD_HEADER ? TAP_RECORD_HEADER : sizeof wire);
	}
	assert_int_equal(tap_record_parse(wire, sizeof wire, &out, NULL), sizeof wire);
	assert_int_equal(out.kind, TAP_DISK_WRITE);
	assert_int_equal(out.device, 7);
	assert_int_equal(out.len, sizeof data);
	assert_int_equal(out.arg, in.arg);
	assert_ptr_equal(out.data, wire + TAP_RECORD_HEADER);
}

static long parse(uint8_t kind, uint8_t flags, uint32_t len)
{
	uint8_t wire[TAP_RECORD_HEADER] = {kind,
					   0,
					   0,
					   flags,
					   (uint8_t)len,
					   (uint8_t)(len >> 8),
					   (uint8_t)(len >> 16),
					   (uint8_t)(len >> 24)};
	struct tap_record rec;

	return tap_record_parse(wire, sizeof wire, &rec, NULL);
}

static void hostile_headers_are_refused_by_themselves(void **state)
{
	(void)state;
	assert_int_equal(parse(0, 0, 1), -EPROTO);
	assert_int_equal(parse(TAP_KIND_MAX, 0, 1), -EPROTO);
	assert_int_equal(parse(255, 0, 1), -EPROTO);
	assert_int_equal(parse(TAP_NET, 1, 64), -EPROTO);
	assert_int_equal(parse(TAP_NET, 0, 0), -EPROTO);
	assert_int_equal(parse(TAP_NET, 0, TAP_NET_FRAME_MAX), 0);
	assert_int_equal(parse(TAP_NET, 0, TAP_NET_FRAME_MAX + 1), -EPROTO);
	assert_int_equal(parse(TAP_DISK_WRITE, 0, TAP_RECORD_DATA_MAX), 0);
	assert_int_equal(parse(TAP_DISK_WRITE, 0, TAP_RECORD_DATA_MAX + 1), -EPROTO);
	assert_int_equal(parse(TAP_DISK_WRITE, 0, UINT32_MAX), -EPROTO);
	assert_int_equal(parse(TAP_DISK_ZERO, 0, 7), -EPROTO);
	assert_int_equal(parse(TAP_DISK_TRIM, 0, 9), -EPROTO);
	assert_int_equal(parse(TAP_DISK_FLUSH, 0, 0), TAP_RECORD_HEADER);
	assert_int_equal(parse(TAP_DISK_FLUSH, 0, 1), -EPROTO);
	for (uint32_t width = 0; width < 20; width++) {
		bool register_width = width == 1 || width == 2 || width == 4 || width == 8;

		assert_int_equal(parse(TAP_PIO, 0, width), register_width ? 0 : -EPROTO);
		assert_int_equal(parse(TAP_MMIO, 0, width), register_width ? 0 : -EPROTO);
	}
}

// A tap that logs "CALL:ID " and exports its id, byte by byte if need be.
static char calls[512];

struct fake {
	struct tap tap;
	int fail;
};

static void note(const char *call, struct tap *tap)
{
	snprintf(calls + strlen(calls), sizeof calls - strlen(calls), "%s:%s ", call, tap->id);
}

static int fake_set_mode(struct tap *tap, enum tap_mode mode)
{
	note(mode == TAP_HOLD ? "hold" : "pass", tap);
	return -((struct fake *)tap)->fail;
}

static int fake_close(struct tap *tap, uint64_t epoch, struct ft_err *err)
{
	struct fake *f = (struct fake *)tap;

	note("close", tap);
	return f->fail ? ft_err_set(err, f->fail, "close epoch %d: no", (int)epoch) : 0;
}

static size_t fake_export(struct tap *tap, uint64_t epoch, struct tap_cursor *cursor, uint8_t *out,
			  size_t room)
{
	size_t left = strlen(tap->id) - cursor->at;

	(void)epoch;
	if (room > left)
		room = left;
	memcpy(out, tap->id + cursor->at, room);
	cursor->at += room;
	return room;
}

static int fake_release(struct tap *tap, uint64_t epoch, struct ft_err *err)
{
	struct fake *f = (struct fake *)tap;

	(void)epoch;
	note("release", tap);
	return f->fail ? ft_err_set(err, f->fail, "write: no") : 0;
}

static void fake_discard(struct tap *tap)
{
	note("discard", tap);
}

static int fake_replay(struct tap *tap, const struct tap_record *rec, struct ft_err *err)
{
	struct fake *f = (struct fake *)tap;

	(void)rec;
	note("replay", tap);
	return f->fail ? ft_err_set(err, f->fail, "write: no") : 0;
}

static void fake_stats(struct tap *tap, struct tap_stats *stats)
{
	(void)tap;
	*stats = (struct tap_stats){1, 2, 3, 4, 5, 6};
}

static void fake_free(struct tap *tap)
{
	note("free", tap);
	free(tap);
}

#define FAKE_OPS(name)                                                                             \
	{                                                                                          \
		.kind = (name), .set_mode = fake_set_mode, .close_epoch = fake_close,              \
		.export = fake_export, .release = fake_release, .discard = fake_discard,           \
		.replay = fake_replay, .stats = fake_stats, .free = fake_free,                     \
	}
static const struct tap_ops disk_ops = FAKE_OPS("disk"), console_ops = FAKE_OPS("console"),
			    pio_ops = FAKE_OPS("pio"), net_ops = FAKE_OPS("net");

static struct fake *add(struct tap_chain *chain, const struct tap_ops *ops, const char *id,
			uint8_t device)
{
	struct fake *f = calloc(1, sizeof *f);

	assert_non_null(f);
	f->tap.ops = ops;
	f->tap.device = device;
	snprintf(f->tap.id, sizeof f->tap.id, "%s", id);
	tap_chain_add(chain, &f->tap);
	return f;
}

static int chain_new(void **state)
{
	struct tap_chain *chain = calloc(1, sizeof *chain);

	add(chain, &net_ops, "n0", 0);
	add(chain, &disk_ops, "d0", 0);
	add(chain, &pio_ops, "p0", 0);
	add(chain, &console_ops, "c0", 0);
	add(chain, &net_ops, "n1", 1);
	add(chain, &disk_ops, "d1", 1);
	calls[0] = 0;
	*state = chain;
	return 0;
}

static int chain_free(void **state)
{
	struct tap_chain *chain = *state;

	calls[0] = 0;
	tap_chain_free(chain);
	assert_string_equal(calls, "free:d0 free:d1 free:c0 free:p0 free:n0 free:n1 ");
	assert_null(chain->first);
	free(chain);
	return 0;
}

static void disks_come_first_and_nets_last(void **state)
{
	struct tap_chain *chain = *state;
	struct ft_err err = {0};

	assert_int_equal(tap_chain_release(chain, 1, &err), 0);
	assert_string_equal(calls,
			    "release:d0 release:d1 release:c0 release:p0 release:n0 release:n1 ");
	calls[0] = 0;
	assert_int_equal(tap_chain_set_mode(chain, TAP_HOLD), 0);
	assert_string_equal(calls, "hold:d0 hold:d1 hold:c0 hold:p0 hold:n0 hold:n1 ");
	calls[0] = 0;
	tap_chain_discard(chain);
	assert_string_equal(calls,
			    "discard:d0 discard:d1 discard:c0 discard:p0 discard:n0 discard:n1 ");
}

static void first_error_stops_the_chain_and_names_the_tap(void **state)
{
	struct tap_chain *chain = *state;
	struct fake *d1 = (struct fake *)chain->first->next;
	struct ft_err err = {0};

	d1->fail = EIO;
	assert_int_equal(tap_chain_close_epoch(chain, 9, &err), -EIO);
	assert_string_equal(err.text, "d1: close epoch 9: no");
	assert_string_equal(calls, "close:d0 close:d1 ");
	calls[0] = 0;
	assert_int_equal(tap_chain_release(chain, 9, &err), -EIO);
	assert_string_equal(err.text, "d1: write: no");
	assert_string_equal(calls, "release:d0 release:d1 ");
	calls[0] = 0;
	// Nobody is told of what a disk did not take.
	assert_int_equal(tap_chain_set_mode(chain, TAP_PASS), -EIO);
	assert_string_equal(calls, "pass:d0 pass:d1 ");
	assert_int_equal(tap_chain_release(chain, 9, NULL), -EIO);
}

static void export_goes_through_all_links_in_any_room(void **state)
{
	struct tap_chain *chain = *state;

	for (size_t room = 1; room < 20; room++) {
		struct tap_chain_cursor at = {0};
		uint8_t out[64];
		size_t len = 0, n;

		while ((n = tap_chain_export(chain, 1, &at, out + len, room)))
			len += n;
		assert_int_equal(len, 12);
		assert_memory_equal(out, "d0d1c0p0n0n1", 12);
	}
}

static void replay_finds_the_tap_of_a_record(void **state)
{
	static const struct {
		enum tap_kind kind;
		uint8_t device;
		uint32_t len;
		const char *call;
	} cases[] = {
		{TAP_NET, 1, 60, "replay:n1 "},	      {TAP_CONSOLE, 0, 1, "replay:c0 "},
		{TAP_DISK_WRITE, 1, 1, "replay:d1 "}, {TAP_DISK_ZERO, 0, 8, "replay:d0 "},
		{TAP_DISK_TRIM, 0, 8, "replay:d0 "},  {TAP_DISK_FLUSH, 1, 0, "replay:d1 "},
		{TAP_PIO, 0, 2, "replay:p0 "},	      {TAP_MMIO, 0, 8, "replay:p0 "},
	};
	struct tap_chain *chain = *state;
	struct ft_err err = {0};

	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct tap_record rec = {
			.kind = cases[i].kind, .device = cases[i].device, .len = cases[i].len};

		calls[0] = 0;
		assert_int_equal(tap_chain_replay(chain, &rec, &err), 0);
		assert_string_equal(calls, cases[i].call);
	}
	assert_int_equal(tap_chain_replay(chain,
					  &(struct tap_record){.kind = TAP_DISK_FLUSH, .device = 2},
					  &err),
			 -ENODEV);
	assert_string_equal(err.text, "replay: disk 2: there is no such tap");
	((struct fake *)chain->first)->fail = EIO;
	assert_int_equal(
		tap_chain_replay(chain, &(struct tap_record){.kind = TAP_DISK_FLUSH}, &err), -EIO);
	assert_string_equal(err.text, "d0: write: no");
}

static void stats_are_summed(void **state)
{
	struct tap_chain *chain = *state;
	struct tap_stats sum;

	tap_chain_stats(chain, &sum);
	assert_int_equal(sum.held_outputs, 6);
	assert_int_equal(sum.held_bytes, 12);
	assert_int_equal(sum.outputs, 18);
	assert_int_equal(sum.bytes, 24);
	assert_int_equal(sum.dropped, 30);
	assert_int_equal(sum.behind_bytes, 36);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(record_survives_the_wire),
		cmocka_unit_test(hostile_headers_are_refused_by_themselves),
		cmocka_unit_test_setup_teardown(disks_come_first_and_nets_last, chain_new,
						chain_free),
		cmocka_unit_test_setup_teardown(first_error_stops_the_chain_and_names_the_tap,
						chain_new, chain_free),
		cmocka_unit_test_setup_teardown(export_goes_through_all_links_in_any_room,
						chain_new, chain_free),
		cmocka_unit_test_setup_teardown(replay_finds_the_tap_of_a_record, chain_new,
						chain_free),
		cmocka_unit_test_setup_teardown(stats_are_summed, chain_new, chain_free),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
