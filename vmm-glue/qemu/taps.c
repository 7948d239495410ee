// SPDX-License-Identifier: Apache-2.0
// Taps go in one after the other, NICs first because they are quick and refuse early; an error
// takes out those that are in. On an armed VM only the NICs' go in: its disks are not open yet. A
// tap that is in stays as it is, so that taps_in() after a takeover adds the disks'.
#include "vmm-glue/qemu/internal.h"

int qemu_taps_out(struct vmm *vmm, struct ft_err *err)
{
	struct qemu *vm = qemu_of(vmm);
	int r = qemu_ready(vm, err);

	for (unsigned i = vm->disks_n; i-- > 0 && r == 0;)
		if (vm->disks[i].tapped)
			r = disk_tap_out(vm, i, err);
	for (unsigned i = vm->nics_n; i-- > 0 && r == 0;)
		if (vm->nics[i].tapped)
			r = nic_tap_out(vm, &vm->nics[i], err);
	return r;
}

int qemu_taps_in(struct vmm *vmm, const struct vmm_tap_points *points, struct ft_err *err)
{
	struct qemu *vm = qemu_of(vmm);
	int r = qemu_ready(vm, err);

	for (unsigned i = 0; i < vm->nics_n && r == 0; i++)
		if (!vm->nics[i].tapped && points->nics[i].out[0])
			r = nic_tap_in(vm, &vm->nics[i], points->nics[i].out, points->nics[i].in,
				       err);
	for (unsigned i = 0; i < vm->disks_n && !vm->armed && r == 0; i++)
		if (!vm->disks[i].tapped && points->disks[i].nbd[0])
			r = disk_tap_in(vm, i, points->disks[i].nbd, err);
	if (r < 0)
		qemu_taps_out(vmm, NULL);
	return r;
}
