// SPDX-License-Identifier: Apache-2.0
// Taps go in one after the other, NICs first because they are quick and refuse early; an error
// takes out those that went in before it. A tap that is in stays as it is, and one that has no
// place is left out: a standby's disks get theirs only if the guest is to have them from its first
// moment, shortly before it runs. A VM that waits has its nodes, inactive, and they can be reopened
// as those of a running one.
#include "vmm-glue/qemu/internal.h"

static int disks_out(struct qemu *vm, unsigned stay, struct ft_err *err)
{
	int r = 0;

	for (unsigned i = vm->disks_n; i-- > 0 && r == 0;)
		if (vm->disks[i].tapped && !(stay & 1u << i))
			r = disk_tap_out(vm, i, err);
	return r;
}

static int nics_out(struct qemu *vm, unsigned stay, struct ft_err *err)
{
	int r = 0;

	for (unsigned i = vm->nics_n; i-- > 0 && r == 0;)
		if (vm->nics[i].tapped && !(stay & 1u << i))
			r = nic_tap_out(vm, &vm->nics[i], err);
	return r;
}

int qemu_taps_out(struct vmm *vmm, unsigned stay, struct ft_err *err)
{
	struct qemu *vm = qemu_of(vmm);
	int r = qemu_ready(vm, err);

	if (r == 0)
		r = disks_out(vm, stay, err);
	return r == 0 ? nics_out(vm, 0, err) : r;
}

int qemu_taps_in(struct vmm *vmm, const struct vmm_tap_points *points, struct ft_err *err)
{
	struct qemu *vm = qemu_of(vmm);
	unsigned disks = 0, nics = 0; /* that are in already */
	int r = qemu_ready(vm, err);

	for (unsigned i = 0; i < vm->nics_n; i++)
		nics |= vm->nics[i].tapped ? 1u << i : 0;
	for (unsigned i = 0; i < vm->disks_n; i++)
		disks |= vm->disks[i].tapped ? 1u << i : 0;
	for (unsigned i = 0; i < vm->nics_n && r == 0; i++)
		if (!(nics & 1u << i) && *points->nics[i].out)
			r = nic_tap_in(vm, &vm->nics[i], points->nics[i].out, points->nics[i].in,
				       err);
	for (unsigned i = 0; i < vm->disks_n && r == 0; i++)
		if (!(disks & 1u << i) && *points->disks[i].nbd)
			r = disk_tap_in(vm, i, points->disks[i].nbd, err);
	if (r < 0) {
		disks_out(vm, disks, NULL);
		nics_out(vm, nics, NULL);
	}
	return r;
}
