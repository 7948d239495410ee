// SPDX-License-Identifier: Apache-2.0
// The network tap: one filter-redirector on the netdev. What the guest transmits goes out by one
// socket; what the guest receives is not touched.
//
// The way on is the tap interface itself, by a copy of QEMU's descriptor: QEMU would read what
// comes back in pieces of 4 KiB, one a turn of its main loop, and not while it is stopped. That
// needs to know how frames look there, which is known of virtio-net on a tap with one queue. All
// others go back through QEMU, by a second socket: what is written to it goes on to the netdev
// behind the filter, so nothing loops.
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmm-glue/qemu/internal.h"
#include "vmm-glue/tun.h"

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
	if (r == 0 && nic->returns)
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
	nic->returns = *in_path;
	if (nic->returns)
		r = add_chardev(vm, in, in_path, err);
	if (r == 0)
		r = qmp_call(&vm->qmp, NULL, err, "object-add", "{s:s, s:s, s:s, s:s, s:s, s:s*}",
			     "qom-type", "filter-redirector", "id", filter, "netdev", nic->id,
			     "queue", "rx", "outdev", out, "indev", nic->returns ? in : NULL);
	if (r == 0) {
		nic->tapped = true;
		return 0;
	}
	if (nic->returns)
		qmp_call(&vm->qmp, NULL, NULL, "chardev-remove", "{s:s}", "id", in);
	qmp_call(&vm->qmp, NULL, NULL, "chardev-remove", "{s:s}", "id", out);
	return ft_err_context(err, "nic %s: tap", nic->id);
}

/* The interface behind a descriptor of QEMU's; false: it is of something else. */
static bool interface_of(pid_t pid, const char *number, char name[16])
{
	char path[64], line[128] = "";
	bool found = false;
	ssize_t n;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/fd/%.15s", pid, number);
	n = readlink(path, line, sizeof line - 1);
	if (n <= 0 || strcmp(line, "/dev/net/tun"))
		return false;
	snprintf(path, sizeof path, "/proc/%d/fdinfo/%.15s", pid, number);
	f = fopen(path, "re");
	while (f && !found && fgets(line, sizeof line, f))
		found = sscanf(line, "iff: %15s", name) == 1;
	if (f)
		fclose(f);
	return found;
}

/* Which descriptor QEMU has the interface open by. One that has several queues has several. */
static int find_number(pid_t pid, const char *ifname, int *number, struct ft_err *err)
{
	char path[32], name[16];
	struct dirent *e;
	unsigned n = 0;
	DIR *dir;

	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	dir = opendir(path);
	while (dir && (e = readdir(dir))) {
		if (!interface_of(pid, e->d_name, name) || strcmp(name, ifname))
			continue;
		*number = atoi(e->d_name);
		n++;
	}
	if (dir)
		closedir(dir);
	return n == 1 ? 0
		      : ft_err_set(err, ENOTSUP, "interface %s: process %d has it open %u times",
				   ifname, pid, n);
}

int qemu_nic_fd(struct vmm *vmm, unsigned i, struct ft_err *err)
{
	struct qemu *vm = qemu_of(vmm);
	const struct qemu_nic *nic = &vm->nics[i];
	int number = nic->fd, fd, r = 0;

	if (strcmp(nic->type, "tap") || !nic->virtio)
		r = ft_err_set(err, ENOTSUP, "not a virtio-net on a tap");
	else if (*nic->ifname)
		r = find_number(vm->process.pid, nic->ifname, &number, err);
	if (r == 0)
		r = tun_fetch(vm->process.pid, vm->process.pidfd, number, &fd, err);
	return r == 0 ? fd : ft_err_context(err, "qemu: nic %s", nic->id);
}
