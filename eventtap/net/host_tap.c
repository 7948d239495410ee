// SPDX-License-Identifier: Apache-2.0
// QEMU's own announcement of a guest that it has just loaded (RARP, net/announce.c) has no header
// even where frames have one: QEMU marks it beside the frame, and the mark does not come through a
// filter. But it is a broadcast, and no header begins with the address of one: that would be an
// unknown kind of segmentation. So it gets an empty header here.
#include "eventtap/net/host_tap.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <linux/if_ether.h>
#include <linux/if_tun.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#define HEADER_MAX 64 // the kernel has one of 12 bytes, and may have longer ones

int host_tap_init(struct host_tap *tap, int fd, struct ft_err *err)
{
	struct ifreq req = {0};
	int flags = fcntl(fd, F_GETFL);

	if (ioctl(fd, TUNGETIFF, &req) < 0)
		return ft_err_set(err, ENOTSUP, "tap interface: %s", strerror(errno));
	if ((req.ifr_flags & (IFF_TAP | IFF_NO_PI)) != (IFF_TAP | IFF_NO_PI) || flags < 0 ||
	    !(flags & O_NONBLOCK))
		return ft_err_set(err, ENOTSUP, "tap interface %.15s: not as QEMU opens one",
				  req.ifr_name);
	*tap = (struct host_tap){.fd = fd, .headers = req.ifr_flags & IFF_VNET_HDR};
	return 0;
}

static bool is_bare_broadcast(const uint8_t *frame, uint32_t len)
{
	static const uint8_t everybody[ETH_ALEN] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

	return len >= ETH_HLEN && !memcmp(frame, everybody, ETH_ALEN);
}

int host_tap_write(const struct host_tap *tap, const uint8_t *frame, uint32_t len)
{
	static const uint8_t none[HEADER_MAX];
	struct iovec iov[2] = {{(void *)none, 0}, {(void *)frame, len}};
	int header = 0;
	ssize_t n;

	// Its length changes with the guest's driver.
	if (tap->headers && is_bare_broadcast(frame, len) &&
	    ioctl(tap->fd, TUNGETVNETHDRSZ, &header) == 0 && header > 0 && header <= HEADER_MAX)
		iov[0].iov_len = (size_t)header;
	do
		n = writev(tap->fd, iov, 2);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}
