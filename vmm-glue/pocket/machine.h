/* SPDX-License-Identifier: Apache-2.0 */
/* The machine itself: a CPU, guest RAM, a timer, a NIC, disks and a console, and the built-in
 * program that it runs. Pure: what it does follows from its RAM, its state and what comes in; what
 * it puts out goes through struct pocket_world. No clock, socket, file or thread here, so the
 * simulator can drive it; runner.c does so with real ones.
 *
 * It runs in steps. A step is one event (a frame taken in, one phase of a request, a timer tick) or
 * one slice of work, and between two steps RAM and struct machine_state are all there is: saved and
 * put back, the machine goes on exactly.
 *
 * Guest-physical map (RAM from 0):          Registers, all 8 bytes wide:
 *   0x00000  the program's variables          0xfe000000  NIC: transmit address, transmit length
 * (sends), receive index 0x01000  transmit buffer                  0xfe001000  disks, 0x40 each:
 * offset, address, length, command (starts), status 0x02000  disk buffer 0xfe002000  timer: period
 * in ns (arms) 0x10000  receive ring, 16 x 2 KiB         port 0x3f8  console, 1 byte 0x20000  the
 * program's tables and heap    any other address or port is a doorbell: it goes to the world
 *
 * RAM may hold anything (a peer wrote it): no value found there is used as an address or length
 * without a check. One thread at a time. */
#ifndef VMM_GLUE_POCKET_MACHINE_H
#define VMM_GLUE_POCKET_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ft/err.h"
#include "vmm-glue/pocket/pocket.h"
#include "vmm-glue/vmm.h"

#define MACHINE_RAM_MIN (1u << 20)
#define MACHINE_RAM_MAX (1ull << 40)

#define MACHINE_VARS_AT	 0x00000u
#define MACHINE_TX_AT	 0x01000u
#define MACHINE_DISK_AT	 0x02000u
#define MACHINE_RX_AT	 0x10000u
#define MACHINE_HEAP_AT	 0x20000u
#define MACHINE_RX_SLOTS 16u   /* more wait in the host's socket */
#define MACHINE_RX_BYTES 2048u /* one slot: u32 length, frame */

#define MACHINE_NIC_TX_ADDR 0xfe000000u
#define MACHINE_NIC_TX_LEN  0xfe000008u
#define MACHINE_NIC_RX_OUT  0xfe000010u

#define MACHINE_DISK(d)	    (0xfe001000u + 0x40u * (d))
#define MACHINE_DISK_OFFSET 0x00u
#define MACHINE_DISK_ADDR   0x08u
#define MACHINE_DISK_LEN    0x10u
#define MACHINE_DISK_CMD    0x18u
#define MACHINE_DISK_STATUS 0x20u
enum machine_disk_cmd { MACHINE_DISK_READ = 1, MACHINE_DISK_WRITE, MACHINE_DISK_FLUSH };
#define MACHINE_DISK_IO_MAX (64u << 10) /* bytes of one request */

#define MACHINE_TIMER_PERIOD 0xfe002000u
#define MACHINE_CONSOLE_PORT 0x3f8u
#define MACHINE_LINE_MAX     160u /* the console puts out whole lines, or this much */

#define MACHINE_NEVER UINT64_MAX

/* Where the program is. */
enum machine_pc { PC_BOOT, PC_IDLE, PC_JOURNAL, PC_FLUSH, PC_COMMIT, PC_HALT, PC_MAX };

enum machine_reg {
	REG_RATE,      /* dirtier: pages per second */
	REG_SET_FIRST, /* its working set, in pages of RAM */
	REG_SET_PAGES,
	REG_SINCE_NS, /* the rate counts from here ... */
	REG_DONE,     /* ... and so many pages were written since */
	REG_SLICE_NS, /* when its next slice is due */
	REG_RANDOM,
	REG_DIRTIED,  /* pages written in all */
	REG_TURN,     /* 1: the dirtier ran last, so a frame comes first */
	REG_REPORTED, /* what the last console line said */
	REG_HALT,     /* why it halted */
	REG_MAX = 16
};

struct machine_state {
	uint64_t program;
	uint64_t ram_bytes;
	char uuid[40];
	struct {
		uint64_t pc, time_ns, steps, reg[REG_MAX];
	} cpu;
	struct {
		uint64_t period_ns, next_ns, ticks;
	} timer;
	struct {
		uint64_t tx_addr;
		uint64_t rx_in, rx_out; /* frames put into, taken out of the ring since power-on */
		uint64_t rx_dropped, tx_frames;
	} nic;
	uint64_t disks_n;
	struct {
		uint64_t bytes, offset, addr, len, status; /* status: 0, or a positive errno */
	} disks[VMM_DISKS_MAX];
	struct {
		uint64_t len, bytes_out;
		char line[MACHINE_LINE_MAX];
	} console;
	/* A doorbell that the world had no room for. Until it has, no other step is made. */
	struct {
		uint64_t kind, addr, value, width; /* kind 0: none */
	} stalled;
};

struct machine {
	struct machine_state s;
	uint8_t *ram;
	const struct pocket_world *world;
};

/* Power-on. RAM is all zero. The dirtier's rate and working set (0 = all that the program leaves
 * free) come from the config. */
int machine_init(struct machine *m, const struct pocket_config *config, uint8_t *ram,
		 const struct pocket_world *world, struct ft_err *err);

/* Executes one step at virtual time m->s.cpu.time_ns, which the caller advances. False: there was
 * nothing to do before machine_wake() or the next frame. */
bool machine_step(struct machine *m);
/* Virtual time of the next step that is not caused by a frame; MACHINE_NEVER if there is none. */
uint64_t machine_wake(const struct machine *m);
bool machine_halted(const struct machine *m);

/* Is there room in the receive ring? */
bool machine_can_receive(const struct machine *m);
/* Puts a frame into the receive ring; drops it if it is too large or there is no room. */
void machine_receive(struct machine *m, const uint8_t *frame, size_t len);

/* ---- state.c ---- */
/* The state as bytes: the same state is always the same bytes. Returns the length, at most
 * MACHINE_SAVED_MAX. */
size_t machine_save(const struct machine *m, uint8_t *out);
#define MACHINE_SAVED_MAX 4096
/* Replaces the state of a machine of the same configuration. Input is hostile; on error nothing
 * changed. -EPROTO: not a state; -EINVAL: that of another machine. */
int machine_load(struct machine *m, const uint8_t *in, size_t len, struct ft_err *err);
/* Checks what holds between any two steps, in the state and in the program's data in RAM. -EBADMSG
 * and what is wrong. */
int machine_verify(const struct machine *m, struct ft_err *err);

/* ---- trial.c ---- */
/* Loads the state into a throw-away machine over `ram` (which it changes), connected to nothing,
 * verifies it and runs what it can at once. 0 or an error of machine_load() or machine_verify(). */
int machine_trial(const struct pocket_config *config, uint8_t *ram, const uint8_t *state,
		  size_t len, struct ft_err *err);

/* ---- for programs ---- */
/* Host address of [addr, addr + len) of guest RAM, or NULL where there is no RAM. */
void *machine_at(const struct machine *m, uint64_t addr, uint64_t len);
void machine_store(struct machine *m, uint64_t addr, uint64_t value, unsigned width);
void machine_out(struct machine *m, uint16_t port, uint64_t value, unsigned width);
uint64_t machine_disk_status(const struct machine *m, unsigned disk);
void machine_print(struct machine *m, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The guest has found its own memory impossible and gives up. */
void machine_halt(struct machine *m, uint64_t why);

struct machine_program {
	void (*boot)(struct machine *m);
	bool (*step)(struct machine *m); /* as machine_step() */
	void (*tick)(struct machine *m); /* the timer */
	uint64_t (*wake)(const struct machine *m);
	int (*verify)(const struct machine *m, struct ft_err *err);
	uint64_t (*heap_bytes)(uint64_t ram_bytes); /* what its tables take, from MACHINE_HEAP_AT */
};
extern const struct machine_program machine_kv, machine_dirty;

/* dirty.c: the dirtier, on its own or behind another program. */
bool dirtier_step(struct machine *m);
uint64_t dirtier_wake(const struct machine *m);
void dirtier_rate(struct machine *m, uint64_t pages_per_s);

#endif
