// SPDX-License-Identifier: Apache-2.0
// The machine by itself: stepped by hand, with a world in memory. State bytes, hostile input, the
// kv rules, the dirtier's rate.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <xxhash.h>

#include "vmm-glue/pocket/kv.h"
#include "vmm-glue/pocket/machine.h"

#define RAM   (2u << 20)
#define DISK  (64u << 10)
#define DISKS 2

struct bench {
	struct machine m;
	struct pocket_config config;
	struct pocket_world world;
	uint8_t *ram, disk[DISKS][DISK];
	char answer[POCKET_FRAME_MAX];
	size_t answer_len;
	unsigned answers, flushes, doorbells, last_width;
	uint64_t last_addr, last_value;
	char console[4096];
	int disk_error;
	bool no_room;
};

static const uint8_t peer[POCKET_FRAME_ADDR] = {127, 0, 0, 1, 0x12, 0x34};

static void on_net(void *ctx, const uint8_t *frame, size_t len)
{
	struct bench *b = ctx;

	assert_memory_equal(frame, peer, sizeof peer);
	b->answer_len = len - sizeof peer;
	memcpy(b->answer, frame + sizeof peer, b->answer_len);
	b->answer[b->answer_len] = 0;
	b->answers++;
}

static void on_console(void *ctx, const uint8_t *bytes, size_t len)
{
	struct bench *b = ctx;
	size_t at = strlen(b->console);

	assert_true(at + len < sizeof b->console);
	memcpy(b->console + at, bytes, len);
}

static int on_read(void *ctx, unsigned disk, uint64_t offset, uint8_t *data, size_t len)
{
	struct bench *b = ctx;

	memcpy(data, b->disk[disk] + offset, len);
	return b->disk_error;
}

static int on_write(void *ctx, unsigned disk, uint64_t offset, const uint8_t *data, size_t len)
{
	struct bench *b = ctx;

	assert_true(disk < DISKS && offset + len <= DISK);
	if (!b->disk_error)
		memcpy(b->disk[disk] + offset, data, len);
	return b->disk_error;
}

static int on_flush(void *ctx, unsigned disk)
{
	struct bench *b = ctx;

	(void)disk;
	b->flushes++;
	return b->disk_error;
}

static int on_doorbell(void *ctx, enum tap_kind kind, uint64_t addr, uint64_t value, unsigned width)
{
	struct bench *b = ctx;

	if (b->no_room)
		return -ENOBUFS;
	assert_int_equal(kind, addr == POCKET_PORT_TICK ? TAP_PIO : TAP_MMIO);
	b->doorbells++;
	b->last_addr = addr;
	b->last_value = value;
	b->last_width = width;
	return 0;
}

static struct bench *bench_new(enum pocket_program program, uint64_t rate)
{
	struct bench *b = calloc(1, sizeof *b);

	b->ram = calloc(1, RAM);
	b->config = (struct pocket_config){.memory_bytes = RAM,
					   .program = program,
					   .dirty_pages_per_s = rate,
					   .disks_n = DISKS};
	strcpy(b->config.uuid, "00000000-1111-2222-3333-444444444444");
	for (unsigned i = 0; i < DISKS; i++)
		b->config.disks[i].bytes = DISK;
	b->world = (struct pocket_world){on_net,   on_console,	on_read, on_write,
					 on_flush, on_doorbell, b};
	assert_int_equal(machine_init(&b->m, &b->config, b->ram, &b->world, NULL), 0);
	return b;
}

static void bench_free(struct bench *b)
{
	free(b->ram);
	free(b);
}

static void settle(struct bench *b)
{
	while (machine_step(&b->m))
		;
}

static void send_text(struct bench *b, const char *text)
{
	uint8_t frame[POCKET_FRAME_MAX];

	memcpy(frame, peer, sizeof peer);
	memcpy(frame + sizeof peer, text, strlen(text));
	machine_receive(&b->m, frame, sizeof peer + strlen(text));
}

static const char *ask(struct bench *b, const char *text)
{
	b->answer_len = 0;
	b->answer[0] = 0;
	send_text(b, text);
	settle(b);
	return b->answer;
}

// "OK CLIENT SEQ NUMBER CHAIN[ VALUE]\n" as the model says.
static void expect(struct bench *b, const char *request, const char *status,
		   unsigned long long client, unsigned long long seq, unsigned long long number,
		   uint64_t *chain, const char *value)
{
	char want[KV_ANSWER_MAX];

	*chain = kv_chain(*chain, request, strlen(request));
	snprintf(want, sizeof want, "%s %llu %llu %llu %016llx%s%s\n", status, client, seq, number,
		 (unsigned long long)*chain, value ? " " : "", value ? value : "");
	assert_string_equal(ask(b, request), want);
}

static void kv_follows_its_rules(void **state)
{
	struct bench *b = bench_new(POCKET_KV, 0);
	uint64_t chain = KV_CHAIN_START;
	struct kv_record rec;
	char first[KV_ANSWER_MAX];

	(void)state;
	settle(b);
	assert_non_null(strstr(b->console, "kv: ready"));
	expect(b, "GET 7 1 a", "NONE", 7, 1, 1, &chain, NULL);
	expect(b, "PUT 7 2 a one", "OK", 7, 2, 2, &chain, NULL);
	strcpy(first, b->answer);
	assert_int_equal(b->flushes, 1);
	assert_int_equal(b->last_addr, POCKET_MMIO_COUNTER);
	assert_int_equal(b->last_value, 2);
	assert_int_equal(b->last_width, 8);
	memcpy(&rec, b->disk[0], sizeof rec);
	assert_true(kv_record_valid(&rec));
	assert_int_equal(rec.number, 2);
	assert_int_equal(rec.chain, chain);
	// The same again is answered, not executed.
	assert_string_equal(ask(b, "PUT 7 2 a one\n"), first);
	assert_int_equal(b->flushes, 1);
	assert_string_equal(ask(b, "PUT 7 9 a x"), "ERR 7 9 order\n");
	assert_string_equal(ask(b, "PUT 7 1 a x"), "ERR 7 1 order\n");
	expect(b, "GET 7 3 a", "VALUE", 7, 3, 3, &chain, "one");
	// A second client starts where it likes; the second record goes to the second disk.
	expect(b, "PUT 8 100 bb two", "OK", 8, 100, 4, &chain, NULL);
	memcpy(&rec, b->disk[1], sizeof rec);
	assert_true(kv_record_valid(&rec));
	assert_int_equal(rec.client, 8);
	b->disk_error = -EIO;
	assert_string_equal(ask(b, "PUT 8 101 c three"), "ERR 8 101 io\n");
	b->disk_error = 0;
	expect(b, "PUT 8 101 c three", "OK", 8, 101, 5, &chain, NULL);
	expect(b, "GET 8 102 bb", "VALUE", 8, 102, 6, &chain, "two");
	assert_int_equal(machine_verify(&b->m, NULL), 0);
	bench_free(b);
}

static void kv_refuses_bad_requests(void **state)
{
	static const char *const bad[] = {"",
					  "\n",
					  "PUT",
					  "PUT 1 1 a",
					  "GET 1 1 a b",
					  "GET 0 1 a",
					  "GET 1 1  a",
					  "GET 1 1 a ",
					  " GET 1 1 a",
					  "DEL 1 1 a",
					  "GET 1 x a",
					  "GET 18446744073709551616 1 a",
					  "GET 01 1 a",
					  "GET 1 1 a\tb",
					  "GET 1 1 0123456789012345678901234567890123",
					  "PUT 1 1 a b\n\n",
					  "GET -1 1 a",
					  "PUT 1 1 a \x80"};
	struct bench *b = bench_new(POCKET_KV, 0);
	char big[POCKET_FRAME_MAX];

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		const char *answer = ask(b, bad[i]);

		if (bad[i][0])
			assert_string_equal(answer, "ERR 0 0 syntax\n");
	}
	memset(big, 'a', sizeof big);
	big[POCKET_FRAME_MAX - POCKET_FRAME_ADDR] = 0;
	assert_string_equal(ask(b, big), "ERR 0 0 syntax\n");
	// A frame that is too large, or one too many, is dropped.
	big[POCKET_FRAME_MAX - POCKET_FRAME_ADDR] = 'a';
	machine_receive(&b->m, (uint8_t *)big, POCKET_FRAME_MAX + 1);
	for (unsigned i = 0; i < MACHINE_RX_SLOTS + 3; i++)
		send_text(b, "GET 1 1 a");
	assert_int_equal(b->m.s.nic.rx_dropped, 4);
	assert_false(machine_can_receive(&b->m));
	settle(b);
	assert_true(machine_can_receive(&b->m));
	bench_free(b);
}

static void kv_forgets_no_key_until_full(void **state)
{
	struct bench *b = bench_new(POCKET_KV, 0);
	char text[64], want[64];
	unsigned stored = 0;

	(void)state;
	for (unsigned i = 1; i < 10000 && stored + 1 == i; i++) {
		snprintf(text, sizeof text, "PUT 5 %u key%u value%u", i, i, i);
		if (!strncmp(ask(b, text), "OK", 2))
			stored++;
	}
	assert_in_range(stored, 1000, 9000);
	assert_non_null(strstr(b->answer, "full"));
	for (unsigned i = 1; i <= stored; i++) {
		snprintf(text, sizeof text, "GET 6 %u key%u", i, i);
		snprintf(want, sizeof want, " value%u\n", i);
		assert_non_null(strstr(ask(b, text), want));
	}
	assert_int_equal(machine_verify(&b->m, NULL), 0);
	bench_free(b);
}

static void saved_loaded_saved_is_the_same(void **state)
{
	struct bench *b = bench_new(POCKET_KV, 1000), *c = bench_new(POCKET_KV, 0);
	uint8_t one[MACHINE_SAVED_MAX], two[MACHINE_SAVED_MAX];
	size_t n;

	(void)state;
	// At every step of a request, the inner ones included.
	for (unsigned i = 1; i < 50; i++) {
		char text[64];

		snprintf(text, sizeof text, "PUT 3 %u k%u v", i, i % 7);
		send_text(b, text);
		b->m.s.cpu.time_ns += 700000000;
		do {
			n = machine_save(&b->m, one);
			assert_int_equal(machine_load(&c->m, one, n, NULL), 0);
			assert_int_equal(machine_save(&c->m, two), n);
			assert_memory_equal(one, two, n);
			assert_int_equal(machine_verify(&b->m, NULL), 0);
		} while (machine_step(&b->m));
	}
	bench_free(b);
	bench_free(c);
}

// Moved to a fresh machine between any two steps, the guest does exactly what it would have done.
static void moved_machine_goes_on_exactly(void **state)
{
	struct bench *stays = bench_new(POCKET_KV, 5000), *moves = bench_new(POCKET_KV, 5000);
	uint8_t one[MACHINE_SAVED_MAX], two[MACHINE_SAVED_MAX];

	(void)state;
	srand(1);
	for (unsigned i = 1; i < 2000; i++) {
		char text[64];

		snprintf(text, sizeof text, "%s 3 %u k%u%s", i % 3 ? "PUT" : "GET", i, i % 97,
			 i % 3 ? " v" : "");
		if (i % 2) {
			send_text(stays, text);
			send_text(moves, text);
		}
		stays->m.s.cpu.time_ns += 300000;
		moves->m.s.cpu.time_ns += 300000;
		for (int steps = rand() % 5; steps; steps--) {
			assert_int_equal(machine_step(&stays->m), machine_step(&moves->m));
			if (rand() % 4 == 0) {
				struct bench *fresh = bench_new(POCKET_KV, 0);

				memcpy(fresh->ram, moves->ram, RAM);
				memcpy(fresh->disk, moves->disk, sizeof fresh->disk);
				fresh->answers = moves->answers;
				assert_int_equal(machine_load(&fresh->m, one,
							      machine_save(&moves->m, one), NULL),
						 0);
				bench_free(moves);
				moves = fresh;
			}
		}
	}
	assert_int_equal(machine_save(&stays->m, one), machine_save(&moves->m, two));
	assert_memory_equal(one, two, machine_save(&stays->m, one));
	assert_memory_equal(stays->ram, moves->ram, RAM);
	assert_memory_equal(stays->disk, moves->disk, sizeof stays->disk);
	assert_int_equal(stays->answers, moves->answers);
	assert_true(stays->answers > 100);
	bench_free(stays);
	bench_free(moves);
}

static void refuses_states_of_other_machines(void **state)
{
	struct bench *b = bench_new(POCKET_KV, 0), *c;
	uint8_t bytes[MACHINE_SAVED_MAX];
	size_t n = machine_save(&b->m, bytes);
	struct ft_err err;

	(void)state;
	c = bench_new(POCKET_DIRTY, 0);
	assert_int_equal(machine_load(&c->m, bytes, n, &err), -EINVAL);
	assert_non_null(strstr(err.text, "pocket state: program"));
	bench_free(c);
	c = bench_new(POCKET_KV, 0);
	c->m.s.uuid[0] = 'x';
	assert_int_equal(machine_load(&c->m, bytes, n, &err), -EINVAL);
	assert_non_null(strstr(err.text, "uuid"));
	bench_free(c);
	c = bench_new(POCKET_KV, 0);
	c->m.s.disks[1].bytes++;
	assert_int_equal(machine_load(&c->m, bytes, n, &err), -EINVAL);
	assert_non_null(strstr(err.text, "disk 1"));
	bench_free(c);
	bench_free(b);
}

static void reseal(uint8_t *bytes, size_t n)
{
	uint64_t sum = XXH3_64bits(bytes + 24, n - 24);
	uint32_t len = (uint32_t)n - 24;

	memcpy(bytes + 12, &len, 4);
	memcpy(bytes + 16, &sum, 8);
}

static void hostile_state_is_survived(void **state)
{
	struct bench *b = bench_new(POCKET_KV, 1000), *c = bench_new(POCKET_KV, 0);
	uint8_t good[MACHINE_SAVED_MAX], bad[MACHINE_SAVED_MAX], was[MACHINE_SAVED_MAX],
		now[MACHINE_SAVED_MAX];
	size_t n;
	unsigned loaded = 0;

	(void)state;
	ask(b, "PUT 1 1 a b");
	n = machine_save(&b->m, good);
	machine_save(&c->m, was);
	for (size_t len = 0; len < n; len++)
		assert_int_equal(machine_load(&c->m, good, len, NULL), -EPROTO);
	for (size_t i = 0; i < n * 8; i++) {
		memcpy(bad, good, n);
		bad[i / 8] ^= (uint8_t)(1u << i % 8);
		assert_int_equal(machine_load(&c->m, bad, n, NULL), -EPROTO);
	}
	machine_save(&c->m, now);
	assert_memory_equal(was, now, machine_save(&c->m, now));
	// With a checksum that is right: either refused, or a machine that cannot hurt us, whatever
	// its RAM says.
	srand(2);
	for (unsigned round = 0; round < 3000; round++) {
		memcpy(bad, good, n);
		for (int k = 1 + rand() % 3; k; k--)
			bad[24 + rand() % (int)(n - 24)] = (uint8_t)(rand() % 3 ? rand() : 0xff);
		reseal(bad, n);
		if (machine_load(&c->m, bad, n, NULL))
			continue;
		loaded++;
		memcpy(c->ram, b->ram, MACHINE_HEAP_AT + 4096);
		for (unsigned i = 0; i < MACHINE_HEAP_AT / 512; i++)
			c->ram[rand() % (MACHINE_HEAP_AT + 4096)] = (uint8_t)rand();
		(void)machine_verify(&c->m, NULL);
		for (unsigned i = 0; i < 32 && machine_step(&c->m); i++)
			c->m.s.cpu.time_ns += 1000000;
	}
	assert_true(loaded > 100);
	reseal(good, n - 8);
	assert_int_equal(machine_load(&c->m, good, n - 8, NULL), -EPROTO);
	bench_free(b);
	bench_free(c);
}

static void verify_sees_a_stale_page(void **state)
{
	struct bench *b = bench_new(POCKET_DIRTY, 1000);
	struct ft_err err;

	(void)state;
	for (unsigned ms = 0; ms < 1000; ms++) {
		b->m.s.cpu.time_ns += 1000000;
		settle(b);
	}
	assert_int_equal(machine_verify(&b->m, NULL), 0);
	memset(b->ram + b->m.s.cpu.reg[REG_SET_FIRST] * 4096, 0, 4096);
	assert_int_equal(machine_verify(&b->m, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "pocket: dirty: page"));
	bench_free(b);
}

static void dirtier_keeps_its_rate(void **state)
{
	static const uint64_t rates[] = {0, 1, 100, 3000, 100000};

	(void)state;
	for (size_t i = 0; i < sizeof rates / sizeof *rates; i++) {
		struct bench *b = bench_new(POCKET_DIRTY, rates[i]);
		uint64_t end = 10000000000ull;

		while (b->m.s.cpu.time_ns < end) {
			uint64_t wake;

			settle(b);
			wake = machine_wake(&b->m);
			assert_true(wake > b->m.s.cpu.time_ns &&
				    wake <= b->m.s.cpu.time_ns + 1000000000ull);
			b->m.s.cpu.time_ns = wake < end ? wake : end;
		}
		settle(b);
		assert_int_equal(b->m.s.cpu.reg[REG_DIRTIED], rates[i] * 10);
		assert_int_equal(b->m.s.timer.ticks, 10);
		bench_free(b);
	}
}

static void ticks_ring_all_widths(void **state)
{
	struct bench *b = bench_new(POCKET_DIRTY, 0);
	static const unsigned widths[] = {2, 4, 1};

	(void)state;
	settle(b);
	for (unsigned i = 0; i < 3; i++) {
		b->m.s.cpu.time_ns += 1000000000;
		settle(b);
		assert_int_equal(b->last_addr, POCKET_PORT_TICK);
		assert_int_equal(b->last_width, widths[i]);
		assert_int_equal(b->last_value, i + 1);
	}
	machine_store(&b->m, 0xfe020000, 0x1122334455667788, 4);
	assert_int_equal(b->last_value, 0x55667788);
	bench_free(b);
}

// A doorbell that finds no room stops the machine, moves with it, and rings once when there is.
static void full_doorbell_stalls_the_machine(void **state)
{
	struct bench *b = bench_new(POCKET_KV, 1000), *c = bench_new(POCKET_KV, 0);
	uint8_t bytes[MACHINE_SAVED_MAX];

	(void)state;
	settle(b);
	b->no_room = true;
	assert_non_null(strstr(ask(b, "PUT 1 1 a b"), "OK 1 1 1 "));
	assert_string_equal(ask(b, "PUT 1 2 a b"), "");
	b->m.s.cpu.time_ns += 5000000000;
	assert_false(machine_step(&b->m));
	assert_int_equal(machine_wake(&b->m), b->m.s.cpu.time_ns + 1000000);
	memcpy(c->ram, b->ram, RAM);
	assert_int_equal(machine_load(&c->m, bytes, machine_save(&b->m, bytes), NULL), 0);
	assert_int_equal(machine_verify(&c->m, NULL), 0);
	assert_true(machine_step(&c->m));
	assert_int_equal(c->doorbells, 1);
	assert_int_equal(c->last_addr, POCKET_MMIO_COUNTER);
	assert_int_equal(c->last_value, 1);
	settle(c);
	assert_non_null(strstr(c->answer, "OK 1 2 2 "));
	bench_free(b);
	bench_free(c);
}

static void bad_configs_are_named(void **state)
{
	struct pocket_config config = {.memory_bytes = 4096, .program = POCKET_KV};
	struct machine m;
	struct ft_err err;

	(void)state;
	assert_int_equal(machine_init(&m, &config, NULL, NULL, &err), -EINVAL);
	assert_non_null(strstr(err.text, "pocket: memory"));
	config.memory_bytes = RAM;
	config.dirty_set_pages = RAM / 4096;
	assert_int_equal(machine_init(&m, &config, NULL, NULL, &err), -EINVAL);
	assert_non_null(strstr(err.text, "pocket: working set"));
	config.program = 9;
	assert_int_equal(machine_init(&m, &config, NULL, NULL, &err), -EINVAL);
	assert_non_null(strstr(err.text, "pocket: program"));
}

static void answers_parse(void **state)
{
	struct kv_answer a;

	(void)state;
	assert_true(kv_answer_parse("VALUE 1 2 3 00000000000000ff abc\n", 33, &a));
	assert_int_equal(a.status, KV_VALUE);
	assert_int_equal(a.chain, 255);
	assert_string_equal(a.text, "abc");
	assert_true(kv_answer_parse("ERR 1 2 io", 10, &a));
	assert_string_equal(a.text, "io");
	assert_false(kv_answer_parse("OK 1 2 3", 8, &a));
	assert_false(kv_answer_parse("OK 1 2 3 4 5", 12, &a));
	assert_false(kv_answer_parse("", 0, &a));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(kv_follows_its_rules),
		cmocka_unit_test(kv_refuses_bad_requests),
		cmocka_unit_test(kv_forgets_no_key_until_full),
		cmocka_unit_test(saved_loaded_saved_is_the_same),
		cmocka_unit_test(moved_machine_goes_on_exactly),
		cmocka_unit_test(refuses_states_of_other_machines),
		cmocka_unit_test(hostile_state_is_survived),
		cmocka_unit_test(verify_sees_a_stale_page),
		cmocka_unit_test(dirtier_keeps_its_rate),
		cmocka_unit_test(ticks_ring_all_widths),
		cmocka_unit_test(full_doorbell_stalls_the_machine),
		cmocka_unit_test(bad_configs_are_named),
		cmocka_unit_test(answers_parse),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
