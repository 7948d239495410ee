// SPDX-License-Identifier: Apache-2.0
// The dirtier: writes one line of 64 bytes into each of so many pages a second, in slices of a
// millisecond. Pages come in an order that visits the whole working set before any page again,
// scattered as a guest's writes are. Each page it wrote says at its start which write that was, so
// a stale page shows.
#include <errno.h>
#include <string.h>

#include "vmm-glue/pocket/machine.h"

#define SLICE_NS    1000000ull
#define SLICE_PAGES 64u // of one step, so that a pause never waits long
#define STRIDE                                                                                     \
	2654435761u // a prime larger than any working set, so index * STRIDE visits every page
#define NS_PER_S 1000000000ull

struct dirty_page {
	uint64_t write, line; // number of the write, counted from 1, and where its line went
};

_Static_assert(MACHINE_RAM_MAX / VMM_PAGE_BYTES < STRIDE, "coprime to every working set");

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static uint64_t page_of(const struct machine *m, uint64_t write)
{
	uint64_t pages = m->s.cpu.reg[REG_SET_PAGES];

	return m->s.cpu.reg[REG_SET_FIRST] + (write % pages) * STRIDE % pages;
}

static bool write_page(struct machine *m)
{
	uint64_t *reg = m->s.cpu.reg, line[8];
	uint8_t *page =
		machine_at(m, page_of(m, reg[REG_DIRTIED]) * VMM_PAGE_BYTES, VMM_PAGE_BYTES);
	struct dirty_page head;

	if (!page) {
		machine_halt(m, EFAULT);
		return false;
	}
	for (unsigned i = 0; i < 8; i++)
		line[i] = next_random(&reg[REG_RANDOM]);
	head = (struct dirty_page){.write = ++reg[REG_DIRTIED], .line = 1 + line[0] % 63};
	memcpy(page, &head, sizeof head);
	memcpy(page + head.line * sizeof line, line, sizeof line);
	reg[REG_DONE]++;
	return true;
}

void dirtier_rate(struct machine *m, uint64_t pages_per_s)
{
	m->s.cpu.reg[REG_RATE] = pages_per_s;
	m->s.cpu.reg[REG_SINCE_NS] = m->s.cpu.time_ns;
	m->s.cpu.reg[REG_DONE] = 0;
	m->s.cpu.reg[REG_SLICE_NS] = 0;
}

bool dirtier_step(struct machine *m)
{
	uint64_t *reg = m->s.cpu.reg, now = m->s.cpu.time_ns, due;

	if (!reg[REG_RATE] || !reg[REG_SET_PAGES] || now < reg[REG_SLICE_NS])
		return false;
	due = (uint64_t)((unsigned __int128)reg[REG_RATE] * (now - reg[REG_SINCE_NS]) / NS_PER_S);
	due = due > reg[REG_DONE] ? due - reg[REG_DONE] : 0;
	// A machine that cannot keep up writes as fast as it can, but does not owe for ever.
	if (due > reg[REG_RATE] / 10 + SLICE_PAGES) {
		due = SLICE_PAGES;
		reg[REG_SINCE_NS] = now;
		reg[REG_DONE] = 0;
	}
	for (unsigned i = 0; i < SLICE_PAGES && due; i++, due--)
		if (!write_page(m))
			return true;
	if (!due)
		reg[REG_SLICE_NS] = now + SLICE_NS;
	return true;
}

uint64_t dirtier_wake(const struct machine *m)
{
	return m->s.cpu.reg[REG_RATE] && m->s.cpu.reg[REG_SET_PAGES] ? m->s.cpu.reg[REG_SLICE_NS]
								     : MACHINE_NEVER;
}

static void dirty_boot(struct machine *m)
{
	machine_print(m, "dirty: ready, %llu pages/s in %llu pages\n",
		      (unsigned long long)m->s.cpu.reg[REG_RATE],
		      (unsigned long long)m->s.cpu.reg[REG_SET_PAGES]);
}

static void dirty_tick(struct machine *m)
{
	uint64_t dirtied = m->s.cpu.reg[REG_DIRTIED];

	if (dirtied != m->s.cpu.reg[REG_REPORTED])
		machine_print(m, "dirty: %llu pages\n", (unsigned long long)dirtied);
	m->s.cpu.reg[REG_REPORTED] = dirtied;
}

// Every page of the last round over the working set must carry exactly its write's number.
static int dirty_verify(const struct machine *m, struct ft_err *err)
{
	const uint64_t *reg = m->s.cpu.reg, pages = reg[REG_SET_PAGES];
	uint64_t from = reg[REG_DIRTIED] > pages ? reg[REG_DIRTIED] - pages : 0;

	for (uint64_t write = from; write < reg[REG_DIRTIED]; write++) {
		uint64_t at = page_of(m, write) * VMM_PAGE_BYTES;
		const struct dirty_page *head = machine_at(m, at, sizeof *head);

		if (!head || head->write != write + 1 || head->line < 1 || head->line > 63)
			return ft_err_set(err, EBADMSG,
					  "pocket: dirty: page %llu is not of write %llu",
					  (unsigned long long)(at / VMM_PAGE_BYTES),
					  (unsigned long long)write + 1);
	}
	return 0;
}

static uint64_t dirty_heap(uint64_t ram_bytes)
{
	(void)ram_bytes;
	return 0;
}

// Nobody talks to this program; frames are taken off the ring so that it never fills.
static bool dirty_step(struct machine *m)
{
	if (m->s.nic.rx_in != m->s.nic.rx_out) {
		machine_store(m, MACHINE_NIC_RX_OUT, m->s.nic.rx_in, 8);
		return true;
	}
	return dirtier_step(m);
}

const struct machine_program machine_dirty = {
	.boot = dirty_boot,
	.step = dirty_step,
	.tick = dirty_tick,
	.wake = dirtier_wake,
	.verify = dirty_verify,
	.heap_bytes = dirty_heap,
};
