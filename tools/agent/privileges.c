// SPDX-License-Identifier: Apache-2.0
/* Why an agent keeps what it keeps. It is started as root, with everything; a peer, a guest and an
 * operator talk to what is left of that. */
#include "tools/agent/privileges.h"

#include <errno.h>
#include <string.h>
#include <sys/resource.h>

#include "vmm-glue/capabilities.h"
#include "vmm-glue/helper.h"
#include "vmm-glue/snapshot/urgency.h"

static const uint64_t any_agent =
	/* an operator may have chosen a port below 1024 */
	CAPABILITY(CAP_NET_BIND_SERVICE) |
	/* disk images and their metadata belong to whom they belong */
	CAPABILITY(CAP_DAC_OVERRIDE);

/* QEMU may run as another user: one that is attached to, or a former agent's. */
static const uint64_t with_qemu =
	/* its memory: process_vm_readv(), /proc/PID/pagemap, and which descriptors it has; again
	   with each protection and after each takeover */
	CAPABILITY(CAP_SYS_PTRACE) |
	/* to end it */
	CAPABILITY(CAP_KILL) |
	/* the pipe of its device state, which it must be able to open */
	CAPABILITY(CAP_CHOWN) |
	/* the file behind its memory, where it closed the descriptor: /proc/PID/map_files */
	CAPABILITY(CAP_CHECKPOINT_RESTORE);

/* Tap interfaces: the guest's own on a bridge, made and removed; those of trials, which lead
 * nowhere. Both come again with each standby. */
static const uint64_t with_taps = CAPABILITY(CAP_NET_ADMIN);

static const uint64_t helper_with_qemu =
	/* to borrow a thread of QEMU's */
	CAPABILITY(CAP_SYS_PTRACE) |
	/* and to look for one in /proc, if another user runs it */
	CAPABILITY(CAP_DAC_READ_SEARCH);

/* A QEMU that was started by somebody else may be under a system call filter of his, which has to
 * be suspended meanwhile (PTRACE_O_SUSPEND_SECCOMP). */
static const uint64_t helper_with_foreign_qemu = CAPABILITY(CAP_SYS_ADMIN);

static uint64_t agent_needs(const struct ft_config *config)
{
	/* A standby may learn of the guest's NICs from its primary only. */
	bool taps = config->source != CONFIG_LAUNCH;

	if (config->vmm == CONFIG_VMM_POCKET)
		return any_agent;
	for (unsigned i = 0; i < config->nics_n; i++)
		taps |= config->nics[i].attach.kind != CONFIG_NIC_UDP;
	return any_agent | with_qemu | (taps ? with_taps : 0);
}

static uint64_t helper_needs(const struct ft_config *config)
{
	if (config->vmm == CONFIG_VMM_POCKET)
		return 0;
	return helper_with_qemu | (config->source == CONFIG_ATTACH ? helper_with_foreign_qemu : 0);
}

/* Not for QEMU, whose parent is the helper. Without CAP_SYS_RESOURCE it takes somebody else who
 * gives it (the unit's LimitRTPRIO); or the agent does without. */
static void allow_urgency(void)
{
	(void)setrlimit(RLIMIT_RTPRIO, &(struct rlimit){URGENCY_PRIORITY, URGENCY_PRIORITY});
}

int privileges_drop(const struct ft_config *config, struct ft_err *err)
{
	int rc = helper_start(helper_needs(config), err);

	if (rc)
		return rc;
	allow_urgency();
	rc = capabilities_keep(agent_needs(config));
	return rc ? ft_err_set(err, -rc, "privileges: cannot give them up: %s", strerror(-rc)) : 0;
}
