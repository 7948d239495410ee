/* SPDX-License-Identifier: Apache-2.0 */
/* The host's side of a guest's tap interface, by a descriptor that QEMU has too: what is written
 * there, one frame a write, leaves the host as the guest's. Frames are as a virtio-net device hands
 * them to its netdev: behind a virtio-net header where the interface has headers (linux/if_tun.h,
 * IFF_VNET_HDR), and just frames where it has not. */
#ifndef EVENTTAP_NET_HOST_TAP_H
#define EVENTTAP_NET_HOST_TAP_H

#include <stdbool.h>
#include <stdint.h>

#include "ft/err.h"

struct host_tap {
	int fd; /* the owner's to close */
	bool headers;
};

/* -ENOTSUP: not a descriptor to which frames can be written so: of no tap interface, one that
 * blocks. Touches nothing. */
int host_tap_init(struct host_tap *tap, int fd, struct ft_err *err);
/* 0; -EAGAIN: it takes no more now, EPOLLOUT says when; any other -errno: the frame is lost, as
 * when the interface is down or the frame is none. Never blocks. */
int host_tap_write(const struct host_tap *tap, const uint8_t *frame, uint32_t len);

#endif
