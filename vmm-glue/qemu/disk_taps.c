// SPDX-License-Identifier: Apache-2.0
// The disk tap: our NBD server slips between the guest's raw node and its file, and out again,
// while the guest writes.
//
//	guest device -- raw node -- file node -- IMAGE                                as found
//	guest device -- raw node -- "kemari-nbd-N" ~~socket~~ our server -- IMAGE     tapped
//
// A node with a name is reopened with another child. A node whose name QEMU made up (-drive) cannot
// be reopened: a mirror of nothing (sync=none: both ends are the same bytes) moves the guest's
// device to a raw node of ours, once and for all; from then on it has a name. The way back is
// always a reopen, onto the file node if it is still there, else onto a new one with the old
// options.
//
// How to go back is also written to RUN/NAME.taps, for the agent that comes after a dead one.
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmm-glue/qemu/clock.h"
#include "vmm-glue/qemu/internal.h"

#define JOB_MS 8000
#define REOPEN_MS                                                                                  \
	20000 /* it waits for requests, and they for a server that comes back: QEMU tries every 16 \
		 s */
#define RECONNECT_SECONDS                                                                          \
	60 /* the guest's requests wait that long for a server that went away, then fail */

static void our_node(char out[QEMU_NODE_MAX], const char *part, unsigned i)
{
	snprintf(out, QEMU_NODE_MAX, QEMU_OURS "%s-%u", part, i);
}

/* ---- RUN/NAME.taps ---- */

static void record_path(const struct qemu *vm, char *out, size_t room)
{
	snprintf(out, room, "%s/%s.taps", vm->run_dir, vm->name);
}

int disk_taps_record(struct qemu *vm, struct ft_err *err)
{
	char path[VMM_PATH_MAX + 80];
	json_t *list = json_array(), *all;
	int r = 0;

	for (unsigned i = 0; i < vm->disks_n; i++) {
		const struct qemu_disk *d = &vm->disks[i];

		if (d->tapped)
			json_array_append_new(
				list,
				json_pack("{s:s, s:s, s:s, s:s, s:s, s:b, s:b, s:b, s:s, s:s}",
					  "id", d->id, "node", d->node, "protocol", d->protocol,
					  "driver", d->driver, "image", d->image, "direct",
					  d->direct, "no-flush", d->no_flush, "unmap", d->unmap,
					  "aio", d->aio, "nbd", d->nbd));
	}
	record_path(vm, path, sizeof path);
	all = json_pack("{s:i, s:O}", "pid", (int)vm->process.pid, "disks", list);
	if (json_array_size(list) == 0)
		unlink(path);
	else if (!all || json_dump_file(all, path, JSON_INDENT(1)) < 0)
		r = ft_err_set(err, EIO, "qemu: %s: cannot be written", path);
	json_decref(all);
	json_decref(list);
	return r;
}

static void recall(struct qemu_disk *d, const json_t *entry)
{
	const char *id, *protocol, *driver, *image, *aio, *nbd;
	int direct, no_flush, unmap;

	if (json_unpack((json_t *)entry, "{s:s, s:s, s:s, s:s, s:b, s:b, s:b, s:s, s:s}", "id", &id,
			"protocol", &protocol, "driver", &driver, "image", &image, "direct",
			&direct, "no-flush", &no_flush, "unmap", &unmap, "aio", &aio, "nbd",
			&nbd) < 0)
		return;
	snprintf(d->protocol, sizeof d->protocol, "%s", protocol);
	snprintf(d->driver, sizeof d->driver, "%s", driver);
	snprintf(d->image, sizeof d->image, "%s", image);
	snprintf(d->aio, sizeof d->aio, "%s", aio);
	snprintf(d->nbd, sizeof d->nbd, "%s", nbd);
	d->direct = direct;
	d->no_flush = no_flush;
	d->unmap = unmap;
	d->tapped = true;
}

int disk_taps_recall(struct qemu *vm, struct ft_err *err)
{
	char path[VMM_PATH_MAX + 80];
	json_t *all, *entry;
	int pid = 0;
	size_t i;

	record_path(vm, path, sizeof path);
	all = json_load_file(path, 0, NULL);
	json_unpack(all, "{s:i}", "pid", &pid);
	for (unsigned k = 0; k < vm->disks_n; k++) {
		struct qemu_disk *d = &vm->disks[k];

		if (strncmp(d->protocol, QEMU_OURS "nbd-", strlen(QEMU_OURS "nbd-")))
			continue;
		json_array_foreach(json_object_get(all, "disks"), i, entry)
		{
			const char *node = json_string_value(json_object_get(entry, "node"));

			if (pid == vm->process.pid && node && !strcmp(node, d->node))
				recall(d, entry);
		}
		if (!d->tapped) {
			json_decref(all);
			return ft_err_set(err, ENOENT,
					  "qemu: disk %s hangs on an agent's NBD server, and %s "
					  "does not say whose it was",
					  d->id, path);
		}
	}
	json_decref(all);
	return 0;
}

/* ---- nodes ---- */

static json_t *cache_options(const struct qemu_disk *d)
{
	return json_pack("{s:b, s:b}", "direct", d->direct, "no-flush", d->no_flush);
}

static int add_nbd(struct qemu *vm, unsigned i, const char *path, struct ft_err *err)
{
	char node[QEMU_NODE_MAX];

	our_node(node, "nbd", i);
	return qmp_call(&vm->qmp, NULL, err, "blockdev-add", "{s:s, s:s, s:{s:s, s:s}, s:i, s:s}",
			"driver", "nbd", "node-name", node, "server", "type", "unix", "path", path,
			"reconnect-delay", RECONNECT_SECONDS, "discard", "unmap");
}

static int add_file(struct qemu *vm, const struct qemu_disk *d, const char *node,
		    struct ft_err *err)
{
	return qmp_call(&vm->qmp, NULL, err, "blockdev-add", "{s:s, s:s, s:s, s:o, s:s, s:s*}",
			"driver", d->driver, "node-name", node, "filename", d->image, "cache",
			cache_options(d), "discard", d->unmap ? "unmap" : "ignore", "aio",
			*d->aio ? d->aio : NULL);
}

static json_t *raw_options(const struct qemu_disk *d, const char *node, const char *child)
{
	return json_pack("{s:s, s:s, s:s, s:o, s:s, s:s*}", "driver", "raw", "node-name", node,
			 "file", child, "cache", cache_options(d), "discard",
			 d->unmap ? "unmap" : "ignore", "detect-zeroes",
			 *d->detect_zeroes ? d->detect_zeroes : NULL);
}

static int reopen(struct qemu *vm, const struct qemu_disk *d, const char *child, struct ft_err *err)
{
	return qmp_call_args(&vm->qmp, NULL, err, REOPEN_MS, "blockdev-reopen",
			     json_pack("{s:[o]}", "options", raw_options(d, d->node, child)));
}

static void delete_node(struct qemu *vm, const char *node)
{
	qmp_call(&vm->qmp, NULL, NULL, "blockdev-del", "{s:s}", "node-name", node);
}

static bool node_exists(struct qemu *vm, const char *node)
{
	json_t *nodes, *item;
	bool found = false;
	size_t i;

	if (qmp_call(&vm->qmp, &nodes, NULL, "query-named-block-nodes", "{s:b}", "flat", 1) < 0)
		return false;
	json_array_foreach(nodes, i, item)
	{
		const char *name = json_string_value(json_object_get(item, "node-name"));

		found = found || (name && !strcmp(name, node));
	}
	json_decref(nodes);
	return found;
}

/* ---- the mirror that moves a device to a node of ours ---- */

/* Waits for an event of the only job that we run. */
static int wait_job(struct qemu *vm, enum qemu_job want, struct ft_err *err)
{
	uint64_t deadline_ns = qemu_deadline_ns(JOB_MS);

	while (vm->job != want) {
		struct pollfd p = {.fd = vm->qmp.fd, .events = POLLIN};

		if (vm->job == QEMU_JOB_FAILED)
			return ft_err_set(err, EIO, "qemu: mirror: %s",
					  *vm->job_error ? vm->job_error : "failed");
		if (poll(&p, 1, qemu_ms_left(deadline_ns)) == 0)
			return ft_err_set(err, ETIMEDOUT, "qemu: mirror: not done within %u ms",
					  JOB_MS);
		if (qmp_poll(&vm->qmp) < 0)
			return ft_err_set(err, EPIPE, "qemu: mirror: connection closed");
	}
	return 0;
}

static int pivot(struct qemu *vm, const struct qemu_disk *d, const char *target, struct ft_err *err)
{
	int r;

	vm->job = QEMU_JOB_RUNS;
	*vm->job_error = '\0';
	r = qmp_call(&vm->qmp, NULL, err, "blockdev-mirror", "{s:s, s:s, s:s, s:s, s:s}", "job-id",
		     QEMU_JOB, "device", d->node, "target", target, "sync", "none", "copy-mode",
		     "write-blocking");
	if (r < 0)
		return r;
	r = wait_job(vm, QEMU_JOB_READY, err);
	if (r == 0)
		r = qmp_call(&vm->qmp, NULL, err, "job-complete", "{s:s}", "id", QEMU_JOB);
	if (r == 0)
		r = wait_job(vm, QEMU_JOB_DONE, err);
	if (r < 0 && vm->job != QEMU_JOB_FAILED) {
		qmp_call(&vm->qmp, NULL, NULL, "block-job-cancel", "{s:s, s:b}", "device", QEMU_JOB,
			 "force", 1);
		wait_job(vm, QEMU_JOB_DONE, NULL);
	}
	return r;
}

/* The image stays in d->image, so the way back is known even if QEMU's own node is gone. */
static int move_to_our_node(struct qemu *vm, unsigned i, const char *nbd, struct ft_err *err)
{
	struct qemu_disk *d = &vm->disks[i];
	char raw[QEMU_NODE_MAX];
	int r;

	our_node(raw, "raw", i);
	r = qmp_call_args(&vm->qmp, NULL, err, QMP_CALL_MS, "blockdev-add",
			  raw_options(d, raw, nbd));
	if (r < 0)
		return r;
	r = pivot(vm, d, raw, err);
	if (r < 0) {
		delete_node(vm, raw);
		return r;
	}
	snprintf(d->node, sizeof d->node, "%s", raw);
	our_node(d->protocol, "file", i);
	return 0;
}

int disk_tap_in(struct qemu *vm, unsigned i, const char *path, struct ft_err *err)
{
	struct qemu_disk *d = &vm->disks[i];
	char nbd[QEMU_NODE_MAX];
	int r;

	our_node(nbd, "nbd", i);
	r = add_nbd(vm, i, path, err);
	if (r < 0)
		return ft_err_context(err, "disk %s: tap", d->id);
	r = *d->node == '#' ? move_to_our_node(vm, i, nbd, err) : reopen(vm, d, nbd, err);
	if (r < 0) {
		delete_node(vm, nbd);
		return ft_err_context(err, "disk %s: tap", d->id);
	}
	snprintf(d->nbd, sizeof d->nbd, "%s", path);
	d->tapped = true;
	/* A crash between the two is the only gap, and then the disk goes on through the socket as
	 * soon as an agent serves it again. */
	return disk_taps_record(vm, err);
}

int disk_tap_out(struct qemu *vm, unsigned i, struct ft_err *err)
{
	struct qemu_disk *d = &vm->disks[i];
	char nbd[QEMU_NODE_MAX];
	bool added = false;
	int r = 0;

	our_node(nbd, "nbd", i);
	if (*d->protocol == '#' || !node_exists(vm, d->protocol)) {
		our_node(d->protocol, "file", i);
		r = add_file(vm, d, d->protocol, err);
		added = r == 0;
	}
	if (r == 0)
		r = reopen(vm, d, d->protocol, err);
	if (r < 0) {
		if (added)
			delete_node(vm, d->protocol);
		return ft_err_context(err, "disk %s: tap", d->id);
	}
	d->tapped = false;
	delete_node(vm, nbd);
	return disk_taps_record(vm, err);
}
