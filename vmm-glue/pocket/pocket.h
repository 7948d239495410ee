/* SPDX-License-Identifier: Apache-2.0 */
/* pocket: a small machine in this process, behind the same struct vmm_ops as QEMU. RAM in a memfd,
 * tracked by the same tracker; CPU, timer, NIC, disks, console with MMIO and PIO doorbells;
 * built-in programs that behave as guests do. Its whole state is plain data (machine.h), so it can
 * be compared byte for byte across a failover. For tests, benchmarks, first steps, and as an
 * example of how a VMM embeds the engine.
 *
 * The outside world:
 *   NIC      a UDP socket. A frame is 4 bytes IPv4 address and 2 bytes port of the peer, both in
 * network order, and the datagram. With taps in, what the machine sends goes to nics[0].out and
 * what comes from nics[0].in goes out by the UDP socket, both as u32 big-endian length and frame
 * (QEMU's filter-redirector); receiving is untouched. As in QEMU, frames on `in` wait while the
 * machine is stopped, and if `out` breaks, frames are dropped. disks    raw image files; with taps
 * in, NBD (export "") at disks[i].nbd. Requests are synchronous: when the machine is paused, none
 * is in flight. console  a unix socket that we listen on, one client at a time, output is lost
 * without one (QEMU's chardev server=on,wait=off); and a log file. Taps make no difference.
 *   doorbells  port and memory writes that no device claims: pocket_config.emit.
 *
 * Threads: a machine has one of its own, which calls emit(). All functions here are for the
 * engine's thread. */
#ifndef VMM_GLUE_POCKET_POCKET_H
#define VMM_GLUE_POCKET_POCKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "eventtap/tap.h"
#include "ft/err.h"
#include "vmm-glue/vmm.h"

#define POCKET_FRAME_ADDR 6    /* bytes in front of the datagram */
#define POCKET_FRAME_MAX  2044 /* whole frame; the machine's ring has 2 KiB slots */

#define POCKET_PORT_TICK                                                                           \
	0x80 /* PIO: both programs write their tick count here each second, 1, 2 and 4 bytes wide  \
		in turn */
#define POCKET_MMIO_COUNTER                                                                        \
	0xfe010000u /* MMIO: kv writes its operation number here after each PUT, 8 bytes */

enum pocket_program {
	POCKET_KV = 1, /* key-value server over UDP that journals to its disks: kv.h */
	POCKET_DIRTY   /* writes memory at a set rate */
};
/* "kv" | "dirty"; -EINVAL for anything else. */
int pocket_program_parse(const char *name);

/* What a machine does to the world. The default goes to the sockets and files above; the simulator
 * brings its own. Called from the machine's step. */
struct pocket_world {
	void (*net_send)(void *ctx, const uint8_t *frame, size_t len);
	void (*console_write)(void *ctx, const uint8_t *bytes, size_t len);
	/* 0 or -errno; the guest sees the error. The range is within the disk. */
	int (*disk_read)(void *ctx, unsigned disk, uint64_t offset, uint8_t *data, size_t len);
	int (*disk_write)(void *ctx, unsigned disk, uint64_t offset, const uint8_t *data,
			  size_t len);
	int (*disk_flush)(void *ctx, unsigned disk);
	/* kind: TAP_PIO or TAP_MMIO; width: 1, 2, 4 or 8 bytes, value has no bits beyond. 0 or
	 * -errno, e.g. -ENOBUFS: there is no room for it. The machine then stalls and tries again,
	 * once a millisecond, for a port loses nothing. */
	int (*doorbell)(void *ctx, enum tap_kind kind, uint64_t addr, uint64_t value,
			unsigned width);
	void *ctx;
};

/* The same on both hosts but for local paths and addresses; what a state must agree with on load:
 * uuid, memory, program, disk sizes. */
struct pocket_config {
	char name[VMM_NAME_MAX];
	char uuid[37];
	uint64_t memory_bytes; /* whole pages, 1 MiB to 1 TiB */
	enum pocket_program program;
	uint64_t dirty_pages_per_s; /* kv too can have a dirtier behind it; 0 = none */
	uint64_t dirty_set_pages; /* its working set, 0 = all memory that the program leaves free */
	char nic_id[VMM_NAME_MAX];
	char nic_attach[VMM_PATH_MAX]; /* "udp:HOST:PORT", HOST a numeric IPv4 address, PORT 0 =
					  any; "" = no NIC */
	unsigned disks_n;
	struct {
		char id[VMM_NAME_MAX];
		char image[VMM_PATH_MAX];
		uint64_t bytes; /* 0: as large as the image; else an absent or empty image is
				   created with this size */
	} disks[VMM_DISKS_MAX];
	bool stopped;			   /* pocket_start(): until ops->cont() */
	char console_log[VMM_PATH_MAX];	   /* "" = none */
	char console_socket[VMM_PATH_MAX]; /* "" = none */
	/* As pocket_world.doorbell; NULL: doorbells go nowhere. On the machine's thread; must not
	 * call back. */
	int (*emit)(void *ctx, enum tap_kind kind, uint64_t addr, uint64_t value, unsigned width);
	void *emit_ctx;

	/* For simulators and tests. A world given here (it outlives the machine) replaces the
	 * sockets, images and console above; taps_in() and taps_out() then do nothing, for its
	 * owner decides what a tap is. manual: no thread, see pocket_step(). */
	const struct pocket_world *world;
	bool manual;
};

/* Powers a machine on; it runs when this returns (manual: at the first pocket_step()). */
int pocket_start(const struct pocket_config *config, struct vmm **out, struct ft_err *err);
/* A standby: RAM is there to be written (vmm image()), disks, NIC and console are opened by
 * resume(). The last to bind a UDP address gets its datagrams, so a resumed machine takes the
 * address over even from an old one that is still there. */
int pocket_arm(const struct pocket_config *config, struct vmm **out, struct ft_err *err);

/* Manual machines: at most one step, at host time now_ns (never less than before). True: it did
 * something and may have more to do. False: idle until *wake_ns (may be NULL; UINT64_MAX = for
 * ever) or the next frame. Virtual time follows now_ns, but does not run while the machine is
 * stopped. */
bool pocket_step(struct vmm *vmm, uint64_t now_ns, uint64_t *wake_ns);
/* Manual machines: a frame arrives. Dropped when the machine is not running or has no room, as
 * networks do. */
void pocket_receive(struct vmm *vmm, const uint8_t *frame, size_t len);

/* Port of the UDP socket, 0 = none. */
uint16_t pocket_port(struct vmm *vmm);
/* A dirtier's rate from now on. */
int pocket_dirty_rate(struct vmm *vmm, uint64_t pages_per_s, struct ft_err *err);
/* Pages that the dirtier has written in all, 0 when the machine does not pause. */
uint64_t pocket_dirtied(struct vmm *vmm);
/* The machine's state, as checkpoint() saves it; stopped or manual machines only. Room for
 * VMM_STATE_BYTES_MAX. */
size_t pocket_state(struct vmm *vmm, uint8_t *out);

/* Faults for tests: the next call that comes to this point fails with EIO. */
enum pocket_fault {
	POCKET_FAULT_NONE,
	POCKET_FAULT_STOPPED, /* checkpoint: after hooks->stopped, before the harvest */
	POCKET_FAULT_COPY,    /* checkpoint: in the middle of the pages */
	POCKET_FAULT_SAVE,    /* checkpoint: when the state is saved */
	POCKET_FAULT_HARVEST, /* harvest() */
	POCKET_FAULT_TAPS,    /* taps_in: when everything is connected */
	POCKET_FAULT_TRIAL,
	POCKET_FAULT_RESUME
};
void pocket_fault_next(struct vmm *vmm, enum pocket_fault fault);
/* As if the VMM's process had died: it does not run another step, nothing is flushed, and
 * vmm_events.lost tells. */
void pocket_crash(struct vmm *vmm);

#endif
