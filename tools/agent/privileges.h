/* SPDX-License-Identifier: Apache-2.0 */
/* What an agent may do once it is set up: these capabilities, these system calls. Each has its
 * reason in privileges.c and seccomp.c. */
#ifndef TOOLS_AGENT_PRIVILEGES_H
#define TOOLS_AGENT_PRIVILEGES_H

#include <stdint.h>

#include "ft/err.h"
#include "tools/agent/config.h"

/* Start-up, single-threaded, before anything that a peer, a guest or an operator can reach. Forks
 * the helper (vmm-glue/helper.h), then gives up every capability but those that this guest needs.
 */
int privileges_drop(const struct ft_config *config, struct ft_err *err);

/* When everything is set up: from now on, on every thread, a system call that is not on the list
 * does not exist (ENOSYS). CONFIG_SECCOMP_LOG: it works, and the kernel logs it. A kernel without
 * seccomp is an error, unless it is off. */
int seccomp_install(enum config_seccomp how, struct ft_err *err);

#endif
