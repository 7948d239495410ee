// SPDX-License-Identifier: Apache-2.0
// Everything that would make protection impossible or wrong, asked before anything is touched. One
// line each, for an operator.
#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmm-glue/qemu/internal.h"

#define VERSION_MIN_MAJOR 7
#define VERSION_MIN_MINOR 2

static int check_migratable(struct qemu *vm, struct ft_err *err)
{
	const char *why;
	json_t *ret;
	int r = qmp_call(&vm->qmp, &ret, err, "query-migrate", NULL);

	if (r < 0)
		return r;
	why = json_string_value(json_array_get(json_object_get(ret, "blocked-reasons"), 0));
	if (why)
		r = ft_err_set(err, ENOTSUP, "qemu: its state cannot be saved: %s", why);
	json_decref(ret);
	return r;
}

/* A balloon, and what reports free pages through it, gives RAM back to the host. Such pages read as
 * zeroes then, which no tracker of writes sees, and the standby keeps what was in them. (Memory
 * that is plugged is refused as memory besides RAM.) */
static int check_balloon(struct qemu *vm, struct ft_err *err)
{
	if (qmp_call(&vm->qmp, NULL, NULL, "query-balloon", NULL) < 0)
		return vm->qmp.closed
			       ? ft_err_set(err, EPIPE, "qemu: the monitor closed its connection")
			       : 0;
	return ft_err_set(err, ENOTSUP,
			  "qemu: it has a memory balloon, which takes pages away unseen; start it "
			  "without virtio-balloon");
}

static int check_iothreads(struct qemu *vm, struct ft_err *err)
{
	json_t *ret;
	int r = qmp_call(&vm->qmp, &ret, err, "query-iothreads", NULL);

	if (r < 0)
		return r;
	if (json_array_size(ret))
		r = ft_err_set(err, ENOTSUP,
			       "qemu: it has iothreads: devices in threads of their own are not "
			       "held with the guest");
	json_decref(ret);
	return r;
}

/* Devices that somebody else than QEMU's main thread works for. */
static int check_descriptors(struct qemu *vm, struct ft_err *err)
{
	static const struct {
		const char *prefix, *what;
	} bad[] = {{"/dev/vhost-net", "vhost-net: the kernel sends for the guest; use vhost=off"},
		   {"/dev/vhost-", "a vhost device: the kernel works for the guest"},
		   {"/dev/vfio/", "a device that is passed through"},
		   {"/dev/sgx", "SGX memory"}};
	char path[32], target[64];
	struct dirent *e;
	DIR *dir;
	int r = 0;

	snprintf(path, sizeof path, "/proc/%d/fd", vm->process.pid);
	dir = opendir(path);
	if (!dir)
		return ft_err_set(err, ENOTSUP, "qemu: %s: %s", path, strerror(errno));
	while (r == 0 && (e = readdir(dir))) {
		ssize_t n = readlinkat(dirfd(dir), e->d_name, target, sizeof target - 1);

		target[n > 0 ? n : 0] = '\0';
		for (size_t i = 0; i < sizeof bad / sizeof *bad && r == 0; i++)
			if (!strncmp(target, bad[i].prefix, strlen(bad[i].prefix)))
				r = ft_err_set(err, ENOTSUP, "qemu: it uses %s (%s)", target,
					       bad[i].what);
	}
	closedir(dir);
	return r;
}

/* ROMs are made again by the same QEMU with the same options on the other host; flash
 * and video memory are not. */
static bool is_rom(const char *name)
{
	size_t n = strlen(name);

	return !strcmp(name, "pc.bios") || !strcmp(name, "pc.rom") || !strcmp(name, "isa-bios") ||
	       !strncmp(name, "/rom@", 5) || (n > 4 && !strcmp(name + n - 4, ".rom"));
}

/* `info ramblock`: a heading, then "NAME  PAGESIZE  OFFSET  USED  TOTAL" with sizes in hexadecimal.
 */
static int check_memory(struct qemu *vm, struct ft_err *err)
{
	char *info, *save = NULL;
	bool seen = false;
	int r = qmp_human(&vm->qmp, &info, err, "info ramblock");

	if (r < 0)
		return r;
	for (char *line = strtok_r(info, "\r\n", &save); line && r == 0;
	     line = strtok_r(NULL, "\r\n", &save)) {
		char name[256], *base;
		uint64_t bytes;

		if (sscanf(line, " %255s %*s %*s %*x %*x %" SCNx64, name, &bytes) != 2 ||
		    !strcmp(name, "Block"))
			continue;
		base = strrchr(name, '/') && strncmp(name, "/rom@", 5) ? strrchr(name, '/') + 1
								       : name;
		if (!strcmp(base, vm->ram.region) && bytes == vm->ram.bytes)
			seen = true;
		else if (!strcmp(base, "vga.vram"))
			r = ft_err_set(err, ENOTSUP,
				       "qemu: it has a graphics card, whose %" PRIu64
				       " MiB of video memory cannot be followed; use -vga none and "
				       "a serial console",
				       bytes >> 20);
		else if (!is_rom(base))
			r = ft_err_set(err, ENOTSUP,
				       "qemu: it has memory besides RAM that the guest may write: "
				       "%s, %" PRIu64 " KiB",
				       name, bytes >> 10);
	}
	free(info);
	if (r == 0 && !seen)
		r = ft_err_set(err, ENOTSUP,
			       "qemu: its RAM is not one block (NUMA nodes, memory slots)");
	return r;
}

static int check_disk(const struct qemu_disk *d, struct ft_err *err)
{
	if (strcmp(d->format, "raw"))
		return ft_err_set(err, ENOTSUP,
				  "qemu: disk %s: format %s: only raw disks can be protected",
				  d->id, d->format);
	if (strcmp(d->driver, "file") && strcmp(d->driver, "host_device"))
		return ft_err_set(
			err, ENOTSUP,
			"qemu: disk %s: on %s: only files and block devices can be protected",
			d->id, *d->driver ? d->driver : "something unknown");
	return 0;
}

static int check_nic(const struct qemu_nic *nic, struct ft_err *err)
{
	if (!strcmp(nic->type, "tap") || !strcmp(nic->type, "user"))
		return 0;
	return ft_err_set(err, ENOTSUP, "qemu: nic %s: type %s: only tap and user can be protected",
			  nic->id, nic->type);
}

int qemu_check(struct vmm *vmm, struct ft_err *err)
{
	struct qemu *vm = qemu_of(vmm);
	int r = qemu_ready(vm, err);

	if (r == 0 && (vm->qmp.major < VERSION_MIN_MAJOR ||
		       (vm->qmp.major == VERSION_MIN_MAJOR && vm->qmp.minor < VERSION_MIN_MINOR)))
		r = ft_err_set(err, ENOTSUP, "qemu: version %s: at least %d.%d is needed",
			       vm->version, VERSION_MIN_MAJOR, VERSION_MIN_MINOR);
	if (r == 0)
		r = check_descriptors(vm, err);
	if (r == 0)
		r = check_memory(vm, err);
	if (r == 0)
		r = check_balloon(vm, err);
	if (r == 0)
		r = check_iothreads(vm, err);
	for (unsigned i = 0; i < vm->disks_n && r == 0; i++)
		r = check_disk(&vm->disks[i], err);
	for (unsigned i = 0; i < vm->nics_n && r == 0; i++)
		r = check_nic(&vm->nics[i], err);
	if (r == 0)
		r = check_migratable(vm, err);
	if (r == 0)
		r = tracker_check(vm->process.pid, err);
	return r;
}
