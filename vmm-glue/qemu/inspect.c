// SPDX-License-Identifier: Apache-2.0
// What a running QEMU has. All of it comes from the monitor and the kernel, so that it is the same
// for a guest that we started and for one that we found; only how a disk was opened (aio, discard)
// the monitor does not tell, and its command line does.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm-glue/qemu/internal.h"
#include "vmm-glue/qemu/options.h"

static const char *text(const json_t *object, const char *key)
{
	const char *s = json_string_value(json_object_get(object, key));

	return s ? s : "";
}

#define COPY(array, string) snprintf(array, sizeof(array), "%s", string)

static const json_t *find_named(const json_t *list, const char *key, const char *name)
{
	const json_t *item;
	size_t i;

	json_array_foreach(list, i, item) if (!strcmp(text(item, key), name)) return item;
	return NULL;
}

/* The node that is the `file` of another, in the block graph. */
static const json_t *find_child(const json_t *graph, const json_t *nodes, const char *parent)
{
	const json_t *vertices = json_object_get(graph, "nodes"),
		     *edges = json_object_get(graph, "edges"), *edge;
	const json_t *from = find_named(vertices, "name", parent);
	size_t i;

	json_array_foreach(edges, i, edge)
	{
		const json_t *to;
		size_t j;

		if (!from ||
		    !json_equal(json_object_get(edge, "parent"), json_object_get(from, "id")) ||
		    strcmp(text(edge, "name"), "file"))
			continue;
		json_array_foreach(
			vertices, j,
			to) if (json_equal(json_object_get(to, "id"),
					   json_object_get(
						   edge,
						   "child"))) return find_named(nodes, "node-name",
										text(to, "name"));
	}
	return NULL;
}

/* The arguments that opened a disk: `-drive file=IMAGE...`, or the `-blockdev` of either of its
 * nodes. */
static void read_disk_options(struct qemu_disk *d, const struct argv *argv)
{
	for (unsigned i = 0; i + 1 < argv->n; i++) {
		bool drive = !strcmp(argv->v[i], "-drive"),
		     blockdev = !strcmp(argv->v[i], "-blockdev");
		json_t *o = drive || blockdev
				    ? options_parse(argv->v[i + 1], drive ? NULL : "driver")
				    : NULL;
		const char *file = options_get(o, "file"), *node = options_get(o, "node-name"),
			   *value;

		if (!o)
			continue;
		if (drive ? file && !strcmp(file, d->image)
			  : node && (!strcmp(node, d->node) || !strcmp(node, d->protocol))) {
			value = options_get(o, "discard");
			if (value)
				d->unmap = !strcmp(value, "unmap") || !strcmp(value, "on");
			value = options_get(o, "aio");
			value = value ? value : options_get(o, "file.aio");
			if (value)
				COPY(d->aio, value);
		}
		json_decref(o);
	}
}

static void read_protocol(struct qemu_disk *d, const json_t *node)
{
	const json_t *cache = json_object_get(node, "cache");

	COPY(d->protocol, text(node, "node-name"));
	COPY(d->driver, text(node, "drv"));
	COPY(d->image, text(node, "file"));
	d->direct = json_is_true(json_object_get(cache, "direct"));
	d->no_flush = json_is_true(json_object_get(cache, "no-flush"));
}

static int read_disks(struct qemu *vm, const json_t *block, const json_t *nodes,
		      const json_t *graph, const struct argv *argv, struct ft_err *err)
{
	const json_t *entry;
	size_t i;

	vm->disks_n = 0;
	json_array_foreach(block, i, entry)
	{
		const json_t *in = json_object_get(entry, "inserted"), *child;
		struct qemu_disk *d = &vm->disks[vm->disks_n];

		if (!in || json_is_true(json_object_get(in, "ro")))
			continue; /* nothing is written there */
		if (vm->disks_n == VMM_DISKS_MAX)
			return ft_err_set(err, E2BIG, "qemu: more than %d disks", VMM_DISKS_MAX);
		*d = (struct qemu_disk){0};
		COPY(d->node, text(in, "node-name"));
		COPY(d->id, *text(entry, "device") ? text(entry, "device") : d->node);
		COPY(d->format, text(in, "drv"));
		COPY(d->detect_zeroes, text(in, "detect_zeroes"));
		COPY(d->image, text(in, "file"));
		d->bytes = (uint64_t)json_integer_value(
			json_object_get(json_object_get(in, "image"), "virtual-size"));
		child = find_child(graph, nodes, d->node);
		if (child)
			read_protocol(d, child);
		read_disk_options(d, argv);
		vm->disks_n++;
	}
	return 0;
}

static int inspect_disks(struct qemu *vm, struct ft_err *err)
{
	json_t *block = NULL, *nodes = NULL, *graph = NULL;
	struct argv argv = {0};
	int r = options_read(vm->process.pid, &argv, err);

	if (r == 0)
		r = qmp_call(&vm->qmp, &block, err, "query-block", NULL);
	if (r == 0)
		r = qmp_call(&vm->qmp, &nodes, err, "query-named-block-nodes", "{s:b}", "flat", 1);
	if (r == 0)
		r = qmp_call(&vm->qmp, &graph, err, "x-debug-query-block-graph", NULL);
	if (r == 0)
		r = read_disks(vm, block, nodes, graph, &argv, err);
	json_decref(block);
	json_decref(nodes);
	json_decref(graph);
	argv_free(&argv);
	return r;
}

/* `info network`: one line a NIC and below it, indented, its peer; ports of a hub are indented,
 *too: net0-dev: index=0,type=nic,model=virtio-net-pci,macaddr=... \ net0:
 *index=0,type=tap,ifname=... hub 0 \ port0: nic1: index=0,type=nic,... */
static bool parse_nic(const char *line, struct qemu_nic *nic)
{
	const char *how;
	int end = 0;

	*nic = (struct qemu_nic){.fd = -1};
	if (sscanf(line, " \\ %63[^:]: index=%*d,type=%15[^,]", nic->id, nic->type) == 2) {
		how = strstr(line, "type=tap,");
		if (how && sscanf(how, "type=tap,ifname=%15[^,]", nic->ifname) != 1)
			(void)sscanf(how, "type=tap,fd=%d", &nic->fd);
		return true;
	}
	COPY(nic->type, "hub");
	return sscanf(line, " \\ %63[^:]: %*[^:]: index=%n", nic->id, &end) == 1 && end > 0;
}

static int inspect_nics(struct qemu *vm, struct ft_err *err)
{
	char *info, *save = NULL;
	bool virtio = false;
	int r = qmp_human(&vm->qmp, &info, err, "info network");

	if (r < 0)
		return r;
	vm->nics_n = 0;
	for (char *line = strtok_r(info, "\r\n", &save); line;
	     line = strtok_r(NULL, "\r\n", &save)) {
		struct qemu_nic nic;

		if (!parse_nic(line, &nic)) {
			virtio = strstr(line, ",type=nic,model=virtio-net");
			continue;
		}
		nic.virtio = virtio;
		if (vm->nics_n == VMM_NICS_MAX)
			r = ft_err_set(err, E2BIG, "qemu: more than %d network interfaces",
				       VMM_NICS_MAX);
		else
			vm->nics[vm->nics_n++] = nic;
	}
	free(info);
	return r;
}

static int inspect_machine(struct qemu *vm, struct ft_err *err)
{
	json_t *ret;
	char *dash;
	int r = qmp_call(&vm->qmp, &ret, err, "qom-get", "{s:s, s:s}", "path", "/machine",
			 "property", "type");

	if (r < 0)
		return r;
	COPY(vm->machine, json_is_string(ret) ? json_string_value(ret) : "");
	json_decref(ret);
	dash = strstr(vm->machine, "-machine");
	if (!dash)
		return ft_err_set(err, EPROTO, "qemu: a machine without a type");
	*dash = '\0';
	r = qmp_call(&vm->qmp, &ret, err, "query-uuid", NULL);
	if (r < 0)
		return r;
	COPY(vm->uuid, text(ret, "UUID"));
	json_decref(ret);
	snprintf(vm->version, sizeof vm->version, "%u.%u", vm->qmp.major, vm->qmp.minor);
	return 0;
}

int qemu_inspect(struct qemu *vm, struct ft_err *err)
{
	int r = inspect_machine(vm, err);

	if (r == 0)
		r = ram_find(&vm->ram, &vm->qmp, vm->process.pid, err);
	if (r == 0)
		r = inspect_disks(vm, err);
	if (r == 0)
		r = inspect_nics(vm, err);
	if (r == 0)
		qemu_refresh_status(vm);
	return r;
}

const char *qemu_machine(struct vmm *vmm)
{
	return qemu_of(vmm)->machine;
}

int qemu_command_line(struct vmm *vmm, char ***out, struct ft_err *err)
{
	struct argv argv;
	int r = options_read(qemu_of(vmm)->process.pid, &argv, err);

	if (r < 0)
		return r;
	*out = calloc(argv.n + 1, sizeof **out);
	if (*out)
		memcpy(*out, argv.v, argv.n * sizeof **out);
	else
		argv_free(&argv);
	return *out ? 0 : ft_err_set(err, ENOMEM, "qemu: no memory");
}

void qemu_command_line_free(char **argv)
{
	for (char **a = argv; a && *a; a++)
		free(*a);
	free(argv);
}
