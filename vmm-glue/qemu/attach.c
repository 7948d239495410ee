// SPDX-License-Identifier: Apache-2.0
// Taking over the control of a QEMU that runs. Which process it is says the monitor's socket
// (SO_PEERCRED: who listened), and if that is somebody who handed the socket to QEMU (a management
// layer, an agent before us) we ask all processes who holds the descriptor that we have just passed
// over the monitor; in any case that descriptor is the proof.
//
// Then everything that a dead agent has left behind is removed; its names begin with "kemari-". A
// half command needs nothing: QEMU forgot it when the connection closed.
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "eventtap/block/disk_tap.h"
#include "ft/log.h"
#include "vmm-glue/qemu/internal.h"

#define GREETING_MS 2000

static bool holds(pid_t pid, int number, const struct stat *what)
{
	char path[48];
	struct stat st;

	if (pid <= 0 || pid == getpid())
		return false;
	snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, number);
	return stat(path, &st) == 0 && st.st_ino == what->st_ino && st.st_dev == what->st_dev;
}

static pid_t search_holder(int number, const struct stat *what)
{
	DIR *proc = opendir("/proc");
	struct dirent *e;
	pid_t found = 0;

	while (proc && !found && (e = readdir(proc))) {
		pid_t pid = isdigit((unsigned char)*e->d_name) ? atoi(e->d_name) : 0;

		if (holds(pid, number, what))
			found = pid;
	}
	if (proc)
		closedir(proc);
	return found;
}

static int find_process(struct qmp *q, pid_t *pid, struct ft_err *err)
{
	struct ucred peer = {0};
	socklen_t len = sizeof peer;
	int ends[2], fdset, number, r;
	struct stat st;
	json_t *ret;

	getsockopt(q->fd, SOL_SOCKET, SO_PEERCRED, &peer, &len);
	if (pipe2(ends, O_CLOEXEC) < 0 || fstat(ends[1], &st) < 0)
		return ft_err_set(err, errno, "qemu: attach: pipe: %s", strerror(errno));
	qmp_pass_fd(q, ends[1]);
	r = qmp_call(q, &ret, err, "add-fd", "{s:s}", "opaque", QEMU_OURS "proof");
	if (r == 0) {
		r = json_unpack(ret, "{s:i, s:i}", "fdset-id", &fdset, "fd", &number);
		json_decref(ret);
		if (r < 0)
			r = ft_err_set(err, EPROTO,
				       "qemu: attach: add-fd did not say where the descriptor is");
	}
	if (r == 0) {
		*pid = holds(peer.pid, number, &st) ? peer.pid : search_holder(number, &st);
		r = qmp_call(q, NULL, err, "remove-fd", "{s:i}", "fdset-id", fdset);
		if (*pid == 0)
			r = ft_err_set(err, ENOTSUP,
				       "qemu: attach: its process is not on this host, or we may "
				       "not look into it");
	}
	close(ends[0]);
	close(ends[1]);
	return r;
}

static bool is_ours(const json_t *item, const char *key)
{
	const char *name = json_string_value(json_object_get(item, key));

	return name && !strncmp(name, QEMU_OURS, strlen(QEMU_OURS));
}

/* Each object of a list whose `key` is a name of ours is given to `command` as its `argument`. */
static int remove_each(struct qmp *q, json_t *list, const char *key, const char *value_key,
		       const char *command, const char *argument, struct ft_err *err)
{
	json_t *item;
	size_t i;
	int r = 0;

	json_array_foreach(list, i, item)
	{
		/* The monitor that we speak through may be of our making. */
		if (r < 0 || !is_ours(item, key) ||
		    !strcmp(json_string_value(json_object_get(item, key)), QEMU_OURS "qmp"))
			continue;
		r = qmp_call(q, NULL, err, command, "{s:O}", argument,
			     json_object_get(item, value_key));
	}
	return r;
}

static int remove_fdsets(struct qmp *q, struct ft_err *err)
{
	json_t *sets, *set;
	size_t i;
	int r = qmp_call(q, &sets, err, "query-fdsets", NULL);

	if (r < 0)
		return r;
	json_array_foreach(sets, i, set)
	{
		if (r == 0 && is_ours(json_array_get(json_object_get(set, "fds"), 0), "opaque"))
			r = qmp_call(q, NULL, err, "remove-fd", "{s:O}", "fdset-id",
				     json_object_get(set, "fdset-id"));
	}
	json_decref(sets);
	return r;
}

static int remove_nic_taps(struct qmp *q, struct ft_err *err)
{
	json_t *list;
	int r = qmp_call(q, &list, err, "qom-list", "{s:s}", "path", "/objects");

	if (r < 0)
		return r;
	r = remove_each(q, list, "name", "name", "object-del", "id", err);
	json_decref(list);
	if (r == 0)
		r = qmp_call(q, &list, err, "query-chardev", NULL);
	if (r < 0)
		return r;
	r = remove_each(q, list, "label", "label", "chardev-remove", "id", err);
	json_decref(list);
	return r;
}

/* Requests of the guest wait for the dead agent's NBD server, and QEMU waits for them before it
 * changes anything. So it gets a server again, for as long as that takes. */
static int bring_back(struct qemu *vm, unsigned i, struct ft_err *err)
{
	struct qemu_disk *d = &vm->disks[i];
	struct disk_tap_config config = {.id = d->id,
					 .image = d->image,
					 .format_raw = true,
					 .socket = d->nbd,
					 .log_bytes_max = DISK_TAP_LOG_BYTES,
					 .spill_dir = vm->run_dir};
	struct tap *tap;
	int r = disk_tap_open(&config, &tap, err);

	if (r < 0)
		return ft_err_context(err, "qemu: attach");
	r = disk_tap_out(vm, i, err);
	disk_tap_leave(tap);
	if (r == 0)
		ft_info("qemu: %s: disk %s is back on %s", vm->name, d->id, d->image);
	tap->ops->free(tap);
	return r;
}

static int clean_up(struct qemu *vm, struct ft_err *err)
{
	int r = remove_fdsets(&vm->qmp, err);

	if (r == 0)
		r = remove_nic_taps(&vm->qmp, err);
	if (r == 0)
		r = disk_taps_recall(vm, err);
	for (unsigned i = 0; i < vm->disks_n && r == 0; i++)
		if (vm->disks[i].tapped)
			r = bring_back(vm, i, err);
	return r;
}

int qemu_attach(const char *qmp_path, const char *name, const char *run_dir, struct keeper *keeper,
		struct vmm **out, struct ft_err *err)
{
	struct qemu *vm;
	pid_t pid = 0;
	int r = qemu_new(name, run_dir, keeper, &vm, err);

	if (r < 0)
		return r;
	r = qmp_connect(&vm->qmp, qmp_path, -1, GREETING_MS, err);
	if (r == 0)
		r = find_process(&vm->qmp, &pid, err);
	if (r == 0)
		r = process_open(&vm->process, pid, err);
	if (r == 0)
		r = qemu_adopt(vm, err);
	if (r == 0)
		r = clean_up(vm, err);
	if (r < 0) {
		qemu_free(&vm->vmm);
		return r;
	}
	*out = &vm->vmm;
	return 0;
}
