// SPDX-License-Identifier: Apache-2.0
/* nic { attach = "bridge:NAME" }: a persistent tap interface of the guest's own, on the operator's
 * bridge. QEMU opens it by name. */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/sockios.h>
#include <xxhash.h>

#include "tools/agent/agent.h"

void bridge_tap_name(const char *guest, unsigned nic, char out[16])
{
	/* Interface names have 15 characters: the guest's name may not fit, its hash does. */
	snprintf(out, 16, "ft%08x%u", (unsigned)(XXH3_64bits(guest, strlen(guest)) & 0xffffffff),
		 nic % 100);
}

static int tun_open(const char *ifname)
{
	struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC), saved;

	if (fd < 0)
		return -errno;
	snprintf(ifr.ifr_name, sizeof ifr.ifr_name, "%s", ifname);
	if (ioctl(fd, TUNSETIFF, &ifr) < 0) {
		saved = errno;
		close(fd);
		return -saved;
	}
	return fd;
}

static int join(int control, const char *ifname, const char *bridge)
{
	struct ifreq ifr = {0};

	snprintf(ifr.ifr_name, sizeof ifr.ifr_name, "%s", bridge);
	ifr.ifr_ifindex = (int)if_nametoindex(ifname);
	if (ioctl(control, SIOCBRADDIF, &ifr) < 0 &&
	    errno != EBUSY) /* EBUSY: it is on a bridge already */
		return -errno;
	memset(&ifr, 0, sizeof ifr);
	snprintf(ifr.ifr_name, sizeof ifr.ifr_name, "%s", ifname);
	if (ioctl(control, SIOCGIFFLAGS, &ifr) < 0)
		return -errno;
	ifr.ifr_flags |= IFF_UP;
	return ioctl(control, SIOCSIFFLAGS, &ifr) < 0 ? -errno : 0;
}

int bridge_tap_make(const char *ifname, const char *bridge, struct ft_err *err)
{
	int fd, control, rc = 0;

	if (!if_nametoindex(bridge))
		return ft_err_set(err, ENODEV, "bridge %s: no such interface", bridge);
	if (!if_nametoindex(ifname)) {
		fd = tun_open(ifname);
		if (fd < 0)
			return ft_err_set(err, -fd, "tap %s: cannot create: %s", ifname,
					  strerror(-fd));
		if (ioctl(fd, TUNSETPERSIST, 1) < 0)
			rc = -errno;
		close(fd);
		if (rc)
			return ft_err_set(err, -rc, "tap %s: cannot create: %s", ifname,
					  strerror(-rc));
	}
	control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (control < 0)
		return ft_err_set(err, errno, "tap %s: no socket: %s", ifname, strerror(errno));
	rc = join(control, ifname, bridge);
	close(control);
	return rc ? ft_err_set(err, -rc, "tap %s: cannot put it on bridge %s: %s", ifname, bridge,
			       strerror(-rc))
		  : 0;
}

void bridge_taps_remove(const struct agent *a)
{
	for (unsigned i = 0; i < a->config.nics_n; i++) {
		char ifname[16];
		int fd;

		bridge_tap_name(a->config.name, i, ifname);
		if (a->config.nics[i].attach.kind != CONFIG_NIC_BRIDGE || !if_nametoindex(ifname))
			continue;
		fd = tun_open(ifname);
		if (fd < 0)
			continue; /* the guest runs on */
		(void)ioctl(fd, TUNSETPERSIST, 0);
		close(fd);
	}
}
