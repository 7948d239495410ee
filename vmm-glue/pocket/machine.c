// SPDX-License-Identifier: Apache-2.0
// The machine: bus, devices and the step. Devices do their work inside the store that starts it, so
// between two steps nothing is in flight and the registers are the whole of a device.
#include "vmm-glue/pocket/machine.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define TICK_NS	 1000000000ull
#define STALL_NS 1000000ull

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "guest RAM holds host-order numbers");
_Static_assert(MACHINE_RX_AT + MACHINE_RX_SLOTS * MACHINE_RX_BYTES <= MACHINE_HEAP_AT, "map");
_Static_assert(POCKET_FRAME_MAX + 4 == MACHINE_RX_BYTES, "a frame fills a slot");
_Static_assert((MACHINE_RX_SLOTS & (MACHINE_RX_SLOTS - 1)) == 0, "indices wrap by mask");

static const struct machine_program *program_of(const struct machine *m)
{
	return m->s.program == POCKET_KV ? &machine_kv : &machine_dirty;
}

void *machine_at(const struct machine *m, uint64_t addr, uint64_t len)
{
	if (len > m->s.ram_bytes || addr > m->s.ram_bytes - len)
		return NULL;
	return m->ram + addr;
}

void machine_halt(struct machine *m, uint64_t why)
{
	m->s.cpu.pc = PC_HALT;
	m->s.cpu.reg[REG_HALT] = why;
}

bool machine_halted(const struct machine *m)
{
	return m->s.cpu.pc == PC_HALT;
}

// ---- NIC

bool machine_can_receive(const struct machine *m)
{
	return m->s.nic.rx_in - m->s.nic.rx_out < MACHINE_RX_SLOTS;
}

void machine_receive(struct machine *m, const uint8_t *frame, size_t len)
{
	uint32_t frame_len = (uint32_t)len;
	uint8_t *slot;

	if (len > POCKET_FRAME_MAX || !machine_can_receive(m)) {
		m->s.nic.rx_dropped++;
		return;
	}
	slot = m->ram + MACHINE_RX_AT + (m->s.nic.rx_in % MACHINE_RX_SLOTS) * MACHINE_RX_BYTES;
	memcpy(slot, &frame_len, sizeof frame_len);
	memcpy(slot + sizeof frame_len, frame, len);
	m->s.nic.rx_in++;
}

static void nic_send(struct machine *m, uint64_t len)
{
	const uint8_t *frame = machine_at(m, m->s.nic.tx_addr, len);

	if (!frame || len < POCKET_FRAME_ADDR || len > POCKET_FRAME_MAX)
		return;
	m->s.nic.tx_frames++;
	m->world->net_send(m->world->ctx, frame, (size_t)len);
}

static void nic_store(struct machine *m, uint64_t addr, uint64_t value)
{
	if (addr == MACHINE_NIC_TX_ADDR)
		m->s.nic.tx_addr = value;
	else if (addr == MACHINE_NIC_TX_LEN)
		nic_send(m, value);
	else if (addr == MACHINE_NIC_RX_OUT &&
		 value - m->s.nic.rx_out <= m->s.nic.rx_in - m->s.nic.rx_out)
		m->s.nic.rx_out = value;
}

// ---- disks

static int disk_run(struct machine *m, unsigned d, uint64_t cmd)
{
	const struct pocket_world *w = m->world;
	uint64_t offset = m->s.disks[d].offset, len = m->s.disks[d].len;
	uint8_t *data;

	if (cmd == MACHINE_DISK_FLUSH)
		return w->disk_flush(w->ctx, d);
	data = machine_at(m, m->s.disks[d].addr, len);
	if (!data || len > MACHINE_DISK_IO_MAX || len > m->s.disks[d].bytes ||
	    offset > m->s.disks[d].bytes - len)
		return -EINVAL;
	if (cmd == MACHINE_DISK_READ)
		return w->disk_read(w->ctx, d, offset, data, (size_t)len);
	if (cmd == MACHINE_DISK_WRITE)
		return w->disk_write(w->ctx, d, offset, data, (size_t)len);
	return -EINVAL;
}

static void disk_store(struct machine *m, unsigned d, uint64_t reg, uint64_t value)
{
	if (reg == MACHINE_DISK_OFFSET)
		m->s.disks[d].offset = value;
	else if (reg == MACHINE_DISK_ADDR)
		m->s.disks[d].addr = value;
	else if (reg == MACHINE_DISK_LEN)
		m->s.disks[d].len = value;
	else if (reg == MACHINE_DISK_CMD)
		m->s.disks[d].status = (uint64_t)-disk_run(m, d, value);
}

uint64_t machine_disk_status(const struct machine *m, unsigned disk)
{
	return m->s.disks[disk].status;
}

// ---- timer, console, bus

static void timer_store(struct machine *m, uint64_t period_ns)
{
	m->s.timer.period_ns = period_ns;
	m->s.timer.next_ns = period_ns ? m->s.cpu.time_ns + period_ns : MACHINE_NEVER;
}

static void console_put(struct machine *m, char c)
{
	m->s.console.line[m->s.console.len++] = c;
	if (c != '\n' && m->s.console.len < MACHINE_LINE_MAX)
		return;
	m->world->console_write(m->world->ctx, (const uint8_t *)m->s.console.line,
				(size_t)m->s.console.len);
	m->s.console.bytes_out += m->s.console.len;
	m->s.console.len = 0;
}

static uint64_t narrow(uint64_t value, unsigned width)
{
	assert(width == 1 || width == 2 || width == 4 || width == 8);
	return width == 8 ? value : value & ((1ull << (8 * width)) - 1);
}

// A step rings once at most, so one place to wait is enough.
static void doorbell(struct machine *m, enum tap_kind kind, uint64_t addr, uint64_t value,
		     unsigned width)
{
	assert(!m->s.stalled.kind);
	if (!m->world->doorbell(m->world->ctx, kind, addr, value, width))
		return;
	m->s.stalled.kind = kind;
	m->s.stalled.addr = addr;
	m->s.stalled.value = value;
	m->s.stalled.width = width;
}

static bool ring_again(struct machine *m)
{
	if (m->world->doorbell(m->world->ctx, (enum tap_kind)m->s.stalled.kind, m->s.stalled.addr,
			       m->s.stalled.value, (unsigned)m->s.stalled.width))
		return false;
	memset(&m->s.stalled, 0, sizeof m->s.stalled);
	return true;
}

void machine_store(struct machine *m, uint64_t addr, uint64_t value, unsigned width)
{
	uint64_t disks_end = MACHINE_DISK(m->s.disks_n);

	value = narrow(value, width);
	if (addr >= MACHINE_NIC_TX_ADDR && addr <= MACHINE_NIC_RX_OUT)
		nic_store(m, addr, value);
	else if (addr >= MACHINE_DISK(0) && addr < disks_end)
		disk_store(m, (unsigned)((addr - MACHINE_DISK(0)) / 0x40), addr % 0x40, value);
	else if (addr == MACHINE_TIMER_PERIOD)
		timer_store(m, value);
	else
		doorbell(m, TAP_MMIO, addr, value, width);
}

void machine_out(struct machine *m, uint16_t port, uint64_t value, unsigned width)
{
	value = narrow(value, width);
	if (port == MACHINE_CONSOLE_PORT)
		console_put(m, (char)value);
	else
		doorbell(m, TAP_PIO, port, value, width);
}

void machine_print(struct machine *m, const char *fmt, ...)
{
	char line[MACHINE_LINE_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof line, fmt, ap);
	va_end(ap);
	for (const char *c = line; *c; c++)
		machine_out(m, MACHINE_CONSOLE_PORT, (uint8_t)*c, 1);
}

// ---- the CPU

int machine_init(struct machine *m, const struct pocket_config *config, uint8_t *ram,
		 const struct pocket_world *world, struct ft_err *err)
{
	const struct machine_program *program =
		config->program == POCKET_KV ? &machine_kv : &machine_dirty;
	uint64_t first, pages = config->memory_bytes / VMM_PAGE_BYTES;

	if (config->program != POCKET_KV && config->program != POCKET_DIRTY)
		return ft_err_set(err, EINVAL, "pocket: program: no such program");
	if (config->memory_bytes < MACHINE_RAM_MIN || config->memory_bytes > MACHINE_RAM_MAX ||
	    config->memory_bytes % VMM_PAGE_BYTES)
		return ft_err_set(
			err, EINVAL,
			"pocket: memory: %llu bytes is not whole pages from 1 MiB to 1 TiB",
			(unsigned long long)config->memory_bytes);
	first = (MACHINE_HEAP_AT + program->heap_bytes(config->memory_bytes) + VMM_PAGE_BYTES - 1) /
		VMM_PAGE_BYTES;
	if (config->dirty_set_pages > pages - first)
		return ft_err_set(err, EINVAL,
				  "pocket: working set: %llu pages, only %llu are free",
				  (unsigned long long)config->dirty_set_pages,
				  (unsigned long long)(pages - first));
	*m = (struct machine){.ram = ram, .world = world};
	m->s.program = config->program;
	m->s.ram_bytes = config->memory_bytes;
	snprintf(m->s.uuid, sizeof m->s.uuid, "%s", config->uuid);
	m->s.disks_n = config->disks_n;
	for (unsigned i = 0; i < config->disks_n; i++)
		m->s.disks[i].bytes = config->disks[i].bytes;
	m->s.timer.next_ns = MACHINE_NEVER;
	m->s.cpu.reg[REG_RATE] = config->dirty_pages_per_s;
	m->s.cpu.reg[REG_SET_FIRST] = first;
	m->s.cpu.reg[REG_SET_PAGES] =
		config->dirty_set_pages ? config->dirty_set_pages : pages - first;
	m->s.cpu.reg[REG_RANDOM] = 0x9e3779b97f4a7c15ull;
	return 0;
}

static void tick(struct machine *m)
{
	uint64_t period = m->s.timer.period_ns, late = m->s.cpu.time_ns - m->s.timer.next_ns;

	// Ticks that were missed are not made up for: a guest that was slow is not to be made
	// slower.
	m->s.timer.next_ns =
		late < period ? m->s.timer.next_ns + period : m->s.cpu.time_ns + period;
	m->s.timer.ticks++;
	machine_out(m, POCKET_PORT_TICK, m->s.timer.ticks, 1u << (m->s.timer.ticks % 3));
	program_of(m)->tick(m);
}

bool machine_step(struct machine *m)
{
	bool worked = true;

	if (m->s.cpu.pc == PC_HALT)
		return false;
	if (m->s.stalled.kind) {
		worked = ring_again(m);
	} else if (m->s.cpu.pc == PC_BOOT) {
		machine_store(m, MACHINE_TIMER_PERIOD, TICK_NS, 8);
		m->s.cpu.reg[REG_SINCE_NS] = m->s.cpu.time_ns;
		m->s.cpu.pc = PC_IDLE;
		program_of(m)->boot(m);
	} else if (m->s.cpu.time_ns >= m->s.timer.next_ns) {
		tick(m);
	} else {
		worked = program_of(m)->step(m);
	}
	if (worked)
		m->s.cpu.steps++;
	return worked;
}

uint64_t machine_wake(const struct machine *m)
{
	uint64_t wake = program_of(m)->wake(m);

	if (m->s.cpu.pc == PC_HALT)
		return MACHINE_NEVER;
	if (m->s.stalled.kind)
		return m->s.cpu.time_ns + STALL_NS;
	if (m->s.cpu.pc != PC_IDLE)
		return m->s.cpu.time_ns;
	return wake < m->s.timer.next_ns ? wake : m->s.timer.next_ns;
}
