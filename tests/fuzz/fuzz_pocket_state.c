// SPDX-License-Identifier: Apache-2.0
// The device state of a pocket machine, and the RAM that came with it: a peer wrote both. The input
// says how a good state and a good RAM are spoilt, three bytes a place, and the checksum is put
// right again, for it only says that nobody garbled the bytes on the way. A machine that takes them
// runs on, frames come in, and it never leaves its RAM or its disk.
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "vmm-glue/pocket/kv.h"
#include "vmm-glue/pocket/machine.h"

#define RAM_BYTES  (1u << 20)
#define DISK_BYTES (1u << 20)
#define BODY_AT	   24 /* state.c: magic, version, length, sum */
#define SUM_AT	   16
#define STEPS	   64

static uint8_t *ram, *good_ram, good[MACHINE_SAVED_MAX];
static size_t good_len;
static struct pocket_config config = {
	.name = "fuzz",
	.uuid = "0",
	.memory_bytes = RAM_BYTES,
	.program = POCKET_KV,
	.disks_n = 1,
	.disks = {{.id = "root", .bytes = DISK_BYTES}},
};

static void net_send(void *ctx, const uint8_t *frame, size_t len)
{
	(void)ctx;
	assert(len >= POCKET_FRAME_ADDR && len <= POCKET_FRAME_MAX);
	assert(frame >= ram && frame + len <= ram + RAM_BYTES);
}

static void console_write(void *ctx, const uint8_t *bytes, size_t len)
{
	(void)ctx;
	(void)bytes;
	assert(len <= MACHINE_LINE_MAX);
}

static int disk_read(void *ctx, unsigned disk, uint64_t offset, uint8_t *data, size_t len)
{
	(void)ctx;
	assert(disk == 0 && offset <= DISK_BYTES && len <= DISK_BYTES - offset);
	memset(data, 0, len);
	return 0;
}

static int disk_write(void *ctx, unsigned disk, uint64_t offset, const uint8_t *data, size_t len)
{
	(void)ctx;
	(void)data;
	assert(disk == 0 && offset <= DISK_BYTES && len <= DISK_BYTES - offset);
	return 0;
}

static int disk_flush(void *ctx, unsigned disk)
{
	(void)ctx;
	assert(disk == 0);
	return 0;
}

static int doorbell(void *ctx, enum tap_kind kind, uint64_t addr, uint64_t value, unsigned width)
{
	(void)ctx;
	(void)addr;
	assert(kind == TAP_PIO || kind == TAP_MMIO);
	assert(width == 8 || value >> 8 * width == 0);
	return 0;
}

static const struct pocket_world world = {.net_send = net_send,
					  .console_write = console_write,
					  .disk_read = disk_read,
					  .disk_write = disk_write,
					  .disk_flush = disk_flush,
					  .doorbell = doorbell};

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct machine m;
	struct ft_err err = {0};

	(void)argc;
	(void)argv;
	ram = calloc(1, RAM_BYTES);
	good_ram = malloc(RAM_BYTES);
	if (machine_init(&m, &config, ram, &world, &err))
		abort();
	for (unsigned i = 0; i < STEPS && machine_step(&m); i++)
		;
	good_len = machine_save(&m, good);
	memcpy(good_ram, ram, RAM_BYTES);
	return 0;
}

/* Where the program's variables are, and where its tables begin. */
static void spoil_ram(const uint8_t *how)
{
	uint32_t at = (uint32_t)(how[0] & 0x7f) << 3;

	at += how[0] & 0x80 ? MACHINE_HEAP_AT : MACHINE_VARS_AT;
	ram[at + (how[1] & 7)] ^= how[2];
}

static void touch(const uint8_t *data, size_t len, uint8_t *state, size_t state_len)
{
	for (; len >= 3; data += 3, len -= 3) {
		if (data[1] & 0x80)
			spoil_ram(data);
		else
			state[BODY_AT + (data[0] | (size_t)data[1] << 8) % (state_len - BODY_AT)] ^=
				data[2];
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	uint8_t state[MACHINE_SAVED_MAX], again[MACHINE_SAVED_MAX];
	unsigned how = len ? data[0] : 0;
	size_t n = good_len, frame = len / 2;
	struct machine m;
	struct ft_err err = {0};
	uint64_t sum;

	memcpy(state, good, n);
	memcpy(ram, good_ram, MACHINE_HEAP_AT + 4096);
	if (machine_init(&m, &config, ram, &world, &err))
		abort();
	memcpy(ram, good_ram, RAM_BYTES);
	if (len)
		touch(data + 1, len - 1, state, n);
	sum = XXH3_64bits(state + BODY_AT, n - BODY_AT);
	if (!(how & 1))
		memcpy(state + SUM_AT, &sum, sizeof sum);
	if (how & 2)
		n -= how >> 3;
	if (machine_load(&m, state, n, &err)) {
		assert(err.text[0]);
		return 0;
	}
	assert(machine_save(&m, again) == n && !memcmp(state, again, n));
	(void)machine_verify(&m, &err);
	for (unsigned i = 0; i < STEPS; i++) {
		if (i % 8 == 0 && machine_can_receive(&m))
			machine_receive(&m, data, frame < POCKET_FRAME_MAX ? frame : 0);
		if (!machine_step(&m) && machine_wake(&m) != MACHINE_NEVER &&
		    machine_wake(&m) > m.s.cpu.time_ns)
			m.s.cpu.time_ns = machine_wake(&m);
	}
	(void)machine_trial(&config, ram, state, n, &err);
	return 0;
}
