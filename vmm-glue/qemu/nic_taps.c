// SPDX-License-Identifier: Apache-2.0
// The network tap: one filter-redirector on the netdev. What the guest transmits goes out by one
// socket, what is written to the other goes on to the netdev behind the filter, so nothing loops;
// what the guest receives is not touched.
#include <stdio.h>
#include <string.h>

#include "vmm-glue/qemu/internal.h"

#define ID_MAX (VMM_NAME_MAX + 16)

static void name(char out[ID_MAX], const char *part, const struct qemu_nic *nic)
{
	snprintf(out, ID_MAX, QEMU_OURS "%s-%s", part, nic->id);
}

static int add_chardev(struct qemu *vm, const char *id, const char *path, struct ft_err *err)
{
	return qmp_call(&vm->qmp, NULL, err, "chardev-add",
			"{s:s, s:{s:s, s:{s:{s:s, s:{s:s}}, s:b}}}", "id", id, "backend", "type",
			"socket", "data", "addr", "type", "unix", "data", "path", path, "server",
			0);
}

int nic_tap_out(struct qemu *vm, struct qemu_nic *nic, struct ft_err *err)
{
	char filter[ID_MAX], out[ID_MAX], in[ID_MAX];
	int r;

	name(filter, "tap", nic);
	name(out, "out", nic);
	name(in, "in", nic);
	r = qmp_call(&vm->qmp, NULL, err, "object-del", "{s:s}", "id", filter);
	if (r < 0)
		return ft_err_context(err, "nic %s: tap", nic->id);
	nic->tapped = false;
	r = qmp_call(&vm->qmp, NULL, err, "chardev-remove", "{s:s}", "id", out);
	if (r == 0)
		r = qmp_call(&vm->qmp, NULL, err, "chardev-remove", "{s:s}", "id", in);
	return r < 0 ? ft_err_context(err, "nic %s: tap", nic->id) : 0;
}

int nic_tap_in(struct qemu *vm, struct qemu_nic *nic, const char *out_path, const char *in_path,
	       struct ft_err *err)
{
	char filter[ID_MAX], out[ID_MAX], in[ID_MAX];
	int r;

	name(filter, "tap", nic);
	name(out, "out", nic);
	name(in, "in", nic);
	r = add_chardev(vm, out, out_path, err);
	if (r < 0)
		return ft_err_context(err, "nic %s: tap", nic->id);
	r = add_chardev(vm, in, in_path, err);
	if (r == 0)
		r = qmp_call(&vm->qmp, NULL, err, "object-add", "{s:s, s:s, s:s, s:s, s:s, s:s}",
			     "qom-type", "filter-redirector", "id", filter, "netdev", nic->id,
			     "queue", "rx", "outdev", out, "indev", in);
	if (r == 0) {
		nic->tapped = true;
		return 0;
	}
	qmp_call(&vm->qmp, NULL, NULL, "chardev-remove", "{s:s}", "id", in);
	qmp_call(&vm->qmp, NULL, NULL, "chardev-remove", "{s:s}", "id", out);
	return ft_err_context(err, "nic %s: tap", nic->id);
}
