// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/tun.h"

#include <errno.h>
#include <net/if.h>
#include <linux/if_tun.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/pidfd.h>
#include <unistd.h>

#include "vmm-glue/helper.h"

int tun_fetch(pid_t pid, int pidfd, int number, int *fd, struct ft_err *err)
{
	struct ifreq req;
	int copy;

	if (helper_here())
		return helper_tun(pid, pidfd, number, fd, err);
	copy = pidfd_getfd(pidfd, number, 0);
	if (copy < 0)
		return ft_err_set(err, ENOTSUP, "process %d: fetch descriptor: %s", pid,
				  strerror(errno));
	if (ioctl(copy, TUNGETIFF, &req) < 0) {
		close(copy);
		return ft_err_set(err, ENOTSUP, "process %d: descriptor %d: not of an interface",
				  pid, number);
	}
	*fd = copy;
	return 0;
}
