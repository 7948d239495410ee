// SPDX-License-Identifier: Apache-2.0
// From a configuration to a QEMU. One list of arguments serves the guest that runs, the one that
// waits and the trial, so that their machines cannot differ.
//
// RAM is a memfd of ours that QEMU opens by name: an agent that comes later finds it in
// /proc/PID/maps (ram.c), a standby writes into it, a trial maps it privately. The monitor listens
// on a socket that we have bound before QEMU starts: connect() works at once and the greeting says
// when QEMU is ready; no waiting for a path to appear.
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <linux/memfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "vmm-glue/qemu/internal.h"

#define BINARY	     "qemu-system-x86_64"
#define MACHINE	     "pc"
#define CPU	     "max"
#define QEMU_SANDBOX "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

bool qemu_kvm_works(void)
{
	char line[4096];
	bool flag = false;
	FILE *f = fopen("/proc/cpuinfo", "re");
	int kvm, machine;

	/* Containers often have a /dev/kvm that opens and does nothing. */
	while (f && !flag && fgets(line, sizeof line, f))
		flag = !strncmp(line, "flags", 5) && (strstr(line, " vmx") || strstr(line, " svm"));
	if (f)
		fclose(f);
	kvm = flag ? open("/dev/kvm", O_RDWR | O_CLOEXEC) : -1;
	if (kvm < 0)
		return false;
	machine = ioctl(kvm, KVM_CREATE_VM, 0);
	if (machine >= 0)
		close(machine);
	close(kvm);
	return machine >= 0;
}

int qemu_name_check(const char *what, const char *name, size_t max, struct ft_err *err)
{
	size_t n = name ? strlen(name) : 0;

	if (n == 0 || n > max || !isalpha((unsigned char)*name))
		return ft_err_set(err, EINVAL,
				  "qemu: %s name '%s': must begin with a letter and have at most "
				  "%zu characters",
				  what, name ? name : "", max);
	for (const char *p = name; *p; p++)
		if (!isalnum((unsigned char)*p) && !strchr("-_.", *p))
			return ft_err_set(
				err, EINVAL,
				"qemu: %s name '%s': letters, digits, '-', '_' and '.' only", what,
				name);
	return 0;
}

/* What decides on the devices. */
struct board {
	const char *machine;
	bool kvm;
};

/* Virtio devices of this machine: legacy virtio-pci keeps the state and with it the pause small. */
static bool is_mmio(const struct board *board)
{
	return !strncmp(board->machine, "microvm", 7);
}

/* An ioeventfd takes a guest's doorbell to the main loop without its vCPU having to leave the
 * kernel. Without KVM there is no such thing to save: the doorbell only takes a thread more, and
 * every stop and start of the guest, two for each checkpoint, takes them all down and up again. */
static bool wants_ioeventfd(const struct board *board)
{
	return board->kvm;
}

static int disk_bytes(const char *image, uint64_t *bytes, struct ft_err *err)
{
	int fd = open(image, O_RDONLY | O_CLOEXEC);
	off_t end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
	int r = end < 0 ? ft_err_set(err, errno, "qemu: disk %s: %s", image, strerror(errno)) : 0;

	if (fd >= 0)
		close(fd);
	*bytes = (uint64_t)end;
	return r;
}

static int add_disks(const struct qemu_config *c, const struct board *board,
		     enum qemu_purpose purpose, struct argv *a, struct ft_err *err)
{
	for (unsigned i = 0; i < c->disks_n; i++) {
		const char *id = c->disks[i].id, *image = c->disks[i].image;
		int r = qemu_name_check("disk", id, QEMU_NODE_MAX - 1 - 5, err);
		uint64_t bytes = c->disks[i].bytes;

		if (r == 0 && purpose == QEMU_TRIAL && bytes == 0)
			r = disk_bytes(image, &bytes, err);
		if (r < 0)
			return r;
		if (purpose == QEMU_TRIAL)
			argv_json(a, "-blockdev", "{s:s, s:s+, s:I}", "driver", "null-co",
				  "node-name", id, "-file", "size", (json_int_t)bytes);
		else
			argv_json(a, "-blockdev", "{s:s, s:s+, s:s, s:s}", "driver", "file",
				  "node-name", id, "-file", "filename", image, "discard", "unmap");
		argv_json(a, "-blockdev", "{s:s, s:s, s:s+, s:s}", "driver", "raw", "node-name", id,
			  "file", id, "-file", "discard", "unmap");
		if (is_mmio(board))
			argv_json(a, "-device", "{s:s, s:s+, s:s}", "driver", "virtio-blk-device",
				  "id", id, "-dev", "drive", id);
		else
			argv_json(a, "-device", "{s:s, s:s+, s:s, s:b, s:b, s:b}", "driver",
				  "virtio-blk-pci", "id", id, "-dev", "drive", id, "disable-modern",
				  1, "migrate-extra", 0, "ioeventfd", wants_ioeventfd(board));
	}
	return 0;
}

static int add_nics(const struct qemu_config *c, const struct board *board,
		    enum qemu_purpose purpose, struct argv *a, struct ft_err *err)
{
	for (unsigned i = 0; i < c->nics_n; i++) {
		const char *id = c->nics[i].id, *mac = c->nics[i].mac;
		int r = qemu_name_check("nic", id, QEMU_NODE_MAX - 1 - 5, err);

		if (r < 0)
			return r;
		if (purpose == QEMU_TRIAL)
			argv_opt(a, "-netdev", "tap,id=%s,vhost=off,fd=%u", id, QEMU_FD_NIC + i);
		else
			argv_json(a, "-netdev", "{s:s, s:s, s:s, s:s, s:s, s:b}", "type", "tap",
				  "id", id, "ifname", c->nics[i].ifname, "script", "no",
				  "downscript", "no", "vhost", 0);
		if (is_mmio(board))
			argv_json(a, "-device", "{s:s, s:s+, s:s, s:s}", "driver",
				  "virtio-net-device", "id", id, "-dev", "netdev", id, "mac", mac);
		else
			argv_json(a, "-device", "{s:s, s:s+, s:s, s:s, s:b, s:b, s:b, s:s}",
				  "driver", "virtio-net-pci", "id", id, "-dev", "netdev", id, "mac",
				  mac, "disable-modern", 1, "migrate-extra", 0, "ioeventfd",
				  wants_ioeventfd(board), "romfile", "");
	}
	return 0;
}

static int add_console(const struct qemu_config *c, enum qemu_purpose purpose, struct argv *a,
		       struct ft_err *err)
{
	char path[2 * VMM_PATH_MAX], log[2 * VMM_PATH_MAX] = "";

	if (!c->console)
		return 0;
	if (!argv_escape(path, sizeof path, c->console) ||
	    (c->console_log && !argv_escape(log, sizeof log, c->console_log)))
		return ft_err_set(err, ENAMETOOLONG, "qemu: console: path too long");
	if (purpose == QEMU_TRIAL)
		argv_opt(a, "-chardev", "null,id=console");
	else
		argv_opt(a, "-chardev", "socket,id=console,path=%s,server=on,wait=off%s%s%s", path,
			 *log ? ",logfile=" : "", log, *log ? ",logappend=on" : "");
	argv_opt(a, "-serial", "chardev:console");
	return 0;
}

void qemu_common_argv(struct argv *a, enum qemu_purpose purpose, uint64_t memory_bytes)
{
	argv_opt(a, "-m", "%" PRIu64 "K", memory_bytes / 1024);
	argv_json(a, "-object", "{s:s, s:s, s:I, s:s, s:b}", "qom-type", "memory-backend-file",
		  "id", "ram0", "size", (json_int_t)memory_bytes, "mem-path", "/proc/self/fd/4",
		  "share", purpose != QEMU_TRIAL);
	static_assert(QEMU_FD_RAM == 4, "mem-path above");
	argv_add(a, "-no-user-config");
	/* It was given all that it needs; a guest that breaks out into it gains no program and no
	 * rights. */
	argv_opt(a, "-sandbox", QEMU_SANDBOX);
	argv_opt(a, "-display", "none");
	argv_opt(a, "-vga", "none");
	argv_opt(a, "-chardev", "socket,id=%sqmp,fd=%d,server=on,wait=off", QEMU_OURS, QEMU_FD_QMP);
	argv_opt(a, "-mon", "chardev=%sqmp,mode=control", QEMU_OURS);
	if (purpose != QEMU_RUN)
		argv_opt(a, "-incoming", "defer");
	if (purpose == QEMU_TRIAL)
		argv_add(a, "-S");
}

static void add_base(const struct qemu_config *c, const struct board *board,
		     enum qemu_purpose purpose, struct argv *a)
{
	argv_add(a, "%s", c->binary ? c->binary : BINARY);
	argv_opt(a, "-name", "%s%s", c->name, purpose == QEMU_TRIAL ? "-trial" : "");
	if (c->uuid)
		argv_opt(a, "-uuid", "%s", c->uuid);
	argv_opt(a, "-machine", "%s,accel=%s,memory-backend=ram0", board->machine,
		 board->kvm ? "kvm" : "tcg");
	argv_opt(a, "-cpu", "%s", c->cpu ? c->cpu : CPU);
	argv_opt(a, "-smp", "%u", c->cpus);
	argv_add(a, "-nodefaults");
	if (c->kernel)
		argv_opt(a, "-kernel", "%s", c->kernel);
	if (c->initrd)
		argv_opt(a, "-initrd", "%s", c->initrd);
	if (c->append)
		argv_opt(a, "-append", "%s", c->append);
	qemu_common_argv(a, purpose, c->memory_bytes);
}

int qemu_config_argv(const struct qemu_config *c, enum qemu_purpose purpose, struct argv *a,
		     struct ft_err *err)
{
	const struct board board = {
		.machine = c->machine ? c->machine : MACHINE,
		.kvm = c->accel == QEMU_ACCEL_KVM ||
		       (c->accel == QEMU_ACCEL_AUTO && qemu_kvm_works()),
	};
	int r;

	assert(c->disks_n <= VMM_DISKS_MAX && c->nics_n <= VMM_NICS_MAX);
	*a = (struct argv){0};
	if (c->memory_bytes < (16u << 20) || c->memory_bytes % (1u << 20))
		return ft_err_set(err, EINVAL, "qemu: memory: whole MiB, at least 16");
	if (c->cpus == 0)
		return ft_err_set(err, EINVAL, "qemu: cpus: at least 1");
	add_base(c, &board, purpose, a);
	r = add_console(c, purpose, a, err);
	if (r == 0)
		r = add_disks(c, &board, purpose, a, err);
	if (r == 0)
		r = add_nics(c, &board, purpose, a, err);
	if (c->stopped && purpose == QEMU_RUN)
		argv_add(a, "-S");
	for (const char *const *arg = c->args; arg && *arg; arg++)
		argv_add(a, "%s", *arg);
	if (r == 0)
		r = argv_check(a, err);
	if (r < 0)
		argv_free(a);
	return r;
}

int qemu_memfd(const char *name, uint64_t bytes, bool huge_pages, struct ft_err *err)
{
	unsigned kind = huge_pages ? MFD_HUGETLB | MFD_HUGE_2MB : 0;
	int fd = memfd_create(name, MFD_CLOEXEC | kind), code;

	if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0)
		return fd;
	code = errno;
	if (fd >= 0)
		close(fd);
	return ft_err_set(err, code, "qemu: %" PRIu64 " MiB of RAM: %s", bytes >> 20,
			  strerror(code));
}

/* A monitor's socket of that name is alive: a guest runs there, and taking the name from it would
 * leave it without control. */
static bool is_served(const struct sockaddr_un *addr)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	bool served = fd >= 0 && (connect(fd, (const struct sockaddr *)addr, sizeof *addr) == 0 ||
				  errno == EAGAIN);

	if (fd >= 0)
		close(fd);
	return served;
}

static int listen_at(const char *path, struct ft_err *err)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd, code;

	if (strlen(path) >= sizeof addr.sun_path)
		return ft_err_set(err, ENAMETOOLONG, "qemu: %s: path too long for a socket", path);
	memcpy(addr.sun_path, path, strlen(path) + 1);
	if (is_served(&addr))
		return ft_err_set(err, EBUSY,
				  "qemu: %s: another QEMU serves it; attach to that one or end it",
				  path);
	unlink(path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && bind(fd, (struct sockaddr *)&addr, sizeof addr) == 0 &&
	    chmod(path, 0600) == 0 && listen(fd, 1) == 0)
		return fd;
	code = errno;
	if (fd >= 0)
		close(fd);
	return ft_err_set(err, code, "qemu: %s: %s", path, strerror(code));
}

int qemu_launch(struct process *p, struct qmp *q, const struct argv *argv, const int *fds,
		unsigned fds_n, const char *qmp_path, const char *log, struct ft_err *err)
{
	int all[SPAWN_FDS_MAX], r;
	char words[256];

	assert(fds_n < SPAWN_FDS_MAX);
	all[0] = listen_at(qmp_path, err);
	if (all[0] < 0)
		return all[0];
	memcpy(all + 1, fds, fds_n * sizeof *fds);
	r = process_spawn(p, argv->v, all, fds_n + 1, log, err);
	close(all[0]);
	if (r < 0)
		return r;
	r = qmp_connect(q, qmp_path, p->pidfd, QEMU_START_MS, err);
	if (r == 0)
		return 0;
	if (process_ended(p, 100)) {
		process_last_words(log, words, sizeof words);
		ft_err_set(err, EIO, "qemu: %s", *words ? words : "ended at once and said nothing");
	}
	process_kill(p);
	process_ended(p, QEMU_START_MS);
	process_close(p);
	return r;
}

int qemu_start(const struct qemu_config *config, struct vmm **out, struct ft_err *err)
{
	char qmp_path[VMM_PATH_MAX + 80];
	struct qemu *vm = NULL;
	struct argv argv = {0};
	int ram_fd = -1, r;

	r = qemu_new(config->name, config->run_dir, config->keeper, &vm, err);
	if (r < 0)
		return r;
	snprintf(qmp_path, sizeof qmp_path, "%s/%s.qmp", vm->run_dir, vm->name);
	r = qemu_config_argv(config, QEMU_RUN, &argv, err);
	if (r == 0)
		r = ram_fd = qemu_memfd(vm->name, config->memory_bytes, config->huge_pages, err);
	if (r >= 0)
		r = qemu_launch(&vm->process, &vm->qmp, &argv, &ram_fd, 1, qmp_path, vm->log, err);
	if (r == 0)
		r = qemu_adopt(vm, err);
	if (ram_fd >= 0)
		close(ram_fd);
	argv_free(&argv);
	if (r < 0) {
		process_kill(&vm->process);
		process_ended(&vm->process, QEMU_START_MS);
		qemu_free(&vm->vmm);
		return r;
	}
	*out = &vm->vmm;
	return 0;
}
