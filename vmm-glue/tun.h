/* SPDX-License-Identifier: Apache-2.0 */
/* A copy of a descriptor of /dev/net/tun that another process has (pidfd_getfd(2)), and of nothing
 * else. Needs the right to ptrace it; where there is a helper it does this (helper.h). */
#ifndef VMM_GLUE_TUN_H
#define VMM_GLUE_TUN_H

#include <sys/types.h>

#include "ft/err.h"

/* *fd is the caller's to close. -ENOTSUP: number is not of a tun or tap interface over there, or it
 * cannot be had. Any thread. */
int tun_fetch(pid_t pid, int pidfd, int number, int *fd, struct ft_err *err);

#endif
