// SPDX-License-Identifier: Apache-2.0
/* The other host's side of a guest: an armed VM for a primary's set-up, its disks' stores and its
 * taps, all of it like the primary's or refused by name. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "ft/log.h"
#include "tools/agent/agent.h"
#include "vmm-glue/qemu/qemu.h"

/* ---- ahead ---- */

static bool has_images(const struct agent *a)
{
	for (unsigned i = 0; i < a->config.disks_n; i++)
		if (access(a->config.disks[i].image, F_OK))
			return false;
	return true;
}

void arm_ahead(struct agent *a)
{
	struct ft_err err = {0};

	if (a->config.vmm != CONFIG_VMM_QEMU || a->config.source != CONFIG_LAUNCH || !has_images(a))
		return;
	if (machine_arm(a, &a->spare, &err)) {
		ft_warn("%s: not armed ahead: %s", a->config.name, err.text);
		return;
	}
	keeper_set_protected(a->keeper, true);
}

void arm_drop_spare(struct agent *a)
{
	if (!a->spare)
		return;
	vmm_quit(a->spare, false, 0);
	vmm_free(a->spare);
	a->spare = NULL;
}

/* One that died meanwhile is none. */
static struct vmm *take_spare(struct agent *a)
{
	struct vmm *vmm = a->spare;

	if (!vmm)
		return NULL;
	vmm_poll(vmm);
	if (!strcmp(vmm_status(vmm), "lost")) {
		arm_drop_spare(a);
		return NULL;
	}
	a->spare = NULL;
	return vmm;
}

/* ---- for a set-up ---- */

static int arm_qemu(struct agent *a, const Ft__Setup *setup, struct vmm **vmm, struct ft_err *err)
{
	if (a->config.source != CONFIG_LAUNCH)
		return machine_arm_command_line(a, setup, vmm, err);
	*vmm = take_spare(a);
	return *vmm ? 0 : machine_arm(a, vmm, err);
}

static int check_armed(struct agent *a, const Ft__Setup *setup, struct ft_err *err)
{
	if (setup->machine[0] && strcmp(machine_type(a), setup->machine))
		return ft_err_set(err, EINVAL,
				  "machine: '%s' here, '%.64s' at the primary: name one that both "
				  "QEMUs have (machine = \"...\")",
				  machine_type(a), setup->machine);
	if (a->vm_info.ram_bytes != setup->ram_bytes)
		return ft_err_set(err, EINVAL, "memory: %llu bytes here, %llu at the primary",
				  (unsigned long long)a->vm_info.ram_bytes,
				  (unsigned long long)setup->ram_bytes);
	if (a->vm_info.disks_n != setup->n_disks)
		return ft_err_set(err, EINVAL, "disks: %u here, %zu at the primary",
				  a->vm_info.disks_n, setup->n_disks);
	if (a->vm_info.nics_n != setup->nics)
		return ft_err_set(err, EINVAL, "nics: %u here, %u at the primary",
				  a->vm_info.nics_n, setup->nics);
	for (unsigned i = 0; i < a->vm_info.disks_n; i++)
		if (strcmp(a->vm_info.disks[i].id, setup->disks[i]->id))
			return ft_err_set(err, EINVAL, "disk %u: '%s' here, '%s' at the primary", i,
					  a->vm_info.disks[i].id, setup->disks[i]->id);
	return 0;
}

int arm_guest(struct agent *a, const Ft__Setup *setup, struct ft_err *err)
{
	struct vmm *vmm = NULL;
	bool pocket = a->config.vmm == CONFIG_VMM_POCKET;
	int rc;

	if (strcmp(setup->vmm, pocket ? "pocket" : "qemu"))
		return ft_err_set(err, EINVAL, "vmm: %s here, %s at the primary",
				  pocket ? "pocket" : "qemu", setup->vmm);
	if (a->incoming && a->target != setup->migrate)
		return ft_err_set(
			err, EINVAL, "%s",
			a->target ? "this agent waits for a guest that moves, and protects none "
				    "(--incoming without kemari:)"
				  : "this agent is a standby (--incoming kemari:...), and no "
				    "guest's new place");
	rc = stores_open(a, setup, err);
	if (!rc)
		rc = pocket ? machine_arm(a, &vmm, err) : arm_qemu(a, setup, &vmm, err);
	if (!rc) {
		guest_adopt(a, vmm);
		a->vm_ours = true;
		/* An armed VM must not outlive its agent. */
		keeper_set_protected(a->keeper, true);
		rc = check_armed(a, setup, err);
	}
	if (!rc && !pocket && !setup->migrate)
		rc = qemu_trial_prepare(vmm, err);
	if (!rc)
		rc = taps_console_open(a, err);
	if (!rc)
		rc = taps_make(a, false, err);
	if (!rc)
		rc = vmm_taps_in(vmm, &a->points, err);
	if (rc)
		agent_env.disarm(a);
	return rc;
}
