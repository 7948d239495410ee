/* SPDX-License-Identifier: Apache-2.0 */
/* The network tap: behind a QEMU filter-redirector (queue=rx: what the guest transmits) there is a
 * unix socket OUT, and the way on is one of two:
 *
 *      guest NIC --> filter-redirector --OUT--> net tap --host_fd--> the host's network
 *      guest NIC --> filter-redirector --OUT--> net tap --IN--> the same filter --> the host's
 * network
 *
 * Both sockets carry frames as be32 length, frame (QEMU: net/filter-mirror.c), opaque to us; a
 * frame may begin with a virtio-net header. QEMU writes OUT with its big lock held and spins while
 * the socket is full, so OUT is always read, by a thread of the tap's own that never blocks: what
 * the way on does not take stays in the queue, and over the queue's bound frames are dropped, as on
 * any network.
 *
 * Connections come and go with the filter; a new one replaces the old. A frame that is longer than
 * any (TAP_NET_FRAME_MAX) is dropped; one of no bytes, which QEMU never sends, ends the connection,
 * upon which QEMU drops what the guest transmits. Frames on their way when IN
 * goes are lost; frames that go out before IN comes wait for it. A frame that the host's interface
 * refuses is dropped and counted. */
#ifndef EVENTTAP_NET_NET_TAP_H
#define EVENTTAP_NET_NET_TAP_H

#include <stddef.h>
#include <stdint.h>

#include "eventtap/tap.h"
#include "ft/err.h"

struct net_tap_config {
	const char *id;
	uint8_t device;
	const char *out_path, *in_path; /* unix sockets that we listen on. in_path NULL or "": */
	int host_fd;	       /* to the tap interface (host_tap.h); a tap that opens has it */
	size_t held_bytes_max; /* hard bound; notify.pressure past half of it. At least
				  NET_TAP_HELD_BYTES_MIN */
};

/* Room for the bursts of one epoch even where the operator is thrifty. */
#define NET_TAP_HELD_BYTES_MIN (1u << 20)

/* Listens on its sockets; the mode is PASS. The strings are copied.
 *
 * More than the contract in tap.h says:
 *   close_epoch  to and in HOLD: -ENOTCONN when QEMU is not connected (it may put out what we do
 *not see), -EBUSY when OUT does not run dry or ends within a frame: the guest is not paused;
 *   release	  writes to IN at once what the socket takes, up to a bound; the thread does the
 *rest; discard	  also drops released frames; a frame of which IN has a part ends that connection;
 *   replay	  -EBUSY while anything is held. A frame over the bound is dropped and counted, no
 *error. */
int net_tap_open(const struct net_tap_config *config, struct tap **out, struct ft_err *err);
/* Waits until nothing is held and QEMU has read all that was let go, so that the filter may be
 * taken out without losing a frame. Engine's thread; false after within_ms. */
bool net_tap_settle(struct tap *tap, unsigned within_ms);

#endif
