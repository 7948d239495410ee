// SPDX-License-Identifier: Apache-2.0
/* The machine that a guest file describes, told to its VMM. Nobody else asks which VMM it is in
 * order to start or arm one. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eventtap/pio/pio_tap.h"
#include "ft/log.h"
#include "tools/agent/agent.h"
#include "vmm-glue/pocket/pocket.h"
#include "vmm-glue/qemu/qemu.h"

#define DOORBELL_BYTES (256u << 10)

static const char *or_null(const char *s)
{
	return s[0] ? s : NULL;
}

static void list(const struct config_list *from, const char **to)
{
	for (unsigned i = 0; i < from->n; i++)
		to[i] = from->item[i];
	to[from->n] = NULL;
}

/* ---- QEMU ---- */

struct qemu_strings {
	char ifnames[VMM_NICS_MAX][16];
	char console[VMM_PATH_MAX];
	const char *args[CONFIG_LIST_MAX + 1];
};

static int qemu_config_fill(struct agent *a, struct qemu_config *q, struct qemu_strings *s,
			    struct ft_err *err)
{
	const struct ft_config *c = &a->config;

	memset(q, 0, sizeof *q);
	memset(s, 0, sizeof *s);
	q->name = c->name;
	q->run_dir = a->run_dir;
	q->binary = or_null(c->qemu.binary);
	q->machine = or_null(c->machine);
	q->cpu = or_null(c->cpu);
	q->memory_bytes = c->memory_bytes;
	q->huge_pages = c->huge_pages;
	q->cpus = c->cpus;
	q->kernel = or_null(c->kernel);
	q->initrd = or_null(c->initrd);
	q->append = or_null(c->append);
	q->uuid = c->uuid;
	q->keeper = a->keeper;
	list(&c->qemu.args, s->args);
	q->args = s->args;
	q->disks_n = c->disks_n;
	for (unsigned i = 0; i < c->disks_n; i++) {
		q->disks[i].id = c->disks[i].id;
		q->disks[i].image = c->disks[i].image;
	}
	q->nics_n = c->nics_n;
	for (unsigned i = 0; i < c->nics_n; i++) {
		const struct config_nic *nic = &c->nics[i];

		q->nics[i].id = nic->id;
		q->nics[i].mac = nic->mac;
		if (nic->attach.kind == CONFIG_NIC_BRIDGE) {
			int rc;

			bridge_tap_name(c->name, i, s->ifnames[i]);
			rc = bridge_tap_make(s->ifnames[i], nic->attach.ifname, err);
			if (rc)
				return ft_err_context(err, "nic %s", nic->id);
		} else {
			snprintf(s->ifnames[i], sizeof s->ifnames[i], "%s", nic->attach.ifname);
		}
		q->nics[i].ifname = s->ifnames[i];
	}
	taps_console_path(a, s->console);
	q->console = s->console;
	return 0;
}

int machine_arm_command_line(struct agent *a, const Ft__Setup *setup, struct vmm **out,
			     struct ft_err *err)
{
	const char *replace[CONFIG_LIST_MAX + 1], *directories[CONFIG_LIST_MAX + 1];
	struct qemu_arm_rules rules = {
		.name = a->config.name,
		.run_dir = a->run_dir,
		.binary = or_null(a->config.qemu.binary),
		.replace = replace,
		.directories = directories,
		.huge_pages = a->config.huge_pages,
		.keeper = a->keeper,
	};
	const char **argv;
	int rc;

	if (!setup->n_command_line)
		return ft_err_set(err, EINVAL,
				  "set-up: the guest file here describes no machine and "
				  "the primary sent no command line");
	list(&a->config.qemu.replace, replace);
	list(&a->config.qemu.directories, directories);
	argv = calloc(setup->n_command_line + 1, sizeof *argv);
	if (!argv)
		return ft_err_set(err, ENOMEM, "set-up: out of memory");
	for (size_t i = 0; i < setup->n_command_line; i++)
		argv[i] = setup->command_line[i];
	rc = qemu_arm_command_line(argv, &rules, out, err);
	free(argv);
	return rc;
}

const char *machine_type(struct agent *a)
{
	return a->vmm && !strcmp(a->vm_info.kind, "qemu") ? qemu_machine(a->vmm) : "";
}

/* ---- the pocket machine ---- */

static int on_doorbell(void *ctx, enum tap_kind kind, uint64_t addr, uint64_t value, unsigned width)
{
	struct agent *a = ctx;

	return pio_tap_emit(a->pio_tap, kind, addr, value, width);
}

static void deliver_doorbell(void *ctx, enum tap_kind kind, uint64_t addr, const uint8_t *data,
			     unsigned width)
{
	struct agent *a = ctx;
	uint64_t value = 0;

	memcpy(&value, data, width);
	ft_debug("%s: %s %#llx = %#llx", a->config.name, kind == TAP_PIO ? "port" : "memory",
		 (unsigned long long)addr, (unsigned long long)value);
}

static int pocket_config_fill(struct agent *a, struct pocket_config *p, struct ft_err *err)
{
	const struct ft_config *c = &a->config;

	memset(p, 0, sizeof *p);
	snprintf(p->name, sizeof p->name, "%s", c->name);
	snprintf(p->uuid, sizeof p->uuid, "%s", c->uuid);
	p->memory_bytes = c->memory_bytes;
	p->program = c->program == CONFIG_PROGRAM_DIRTY ? POCKET_DIRTY : POCKET_KV;
	p->dirty_pages_per_s = c->program == CONFIG_PROGRAM_DIRTY ? 1000 : 0;
	if (c->nics_n) {
		snprintf(p->nic_id, sizeof p->nic_id, "%s", c->nics[0].id);
		snprintf(p->nic_attach, sizeof p->nic_attach, "udp:%.200s:%u",
			 c->nics[0].attach.host, c->nics[0].attach.port);
	}
	p->disks_n = c->disks_n;
	for (unsigned i = 0; i < c->disks_n; i++) {
		snprintf(p->disks[i].id, sizeof p->disks[i].id, "%s", c->disks[i].id);
		snprintf(p->disks[i].image, sizeof p->disks[i].image, "%s", c->disks[i].image);
		p->disks[i].bytes = c->disks[i].size;
	}
	taps_console_path(a, p->console_socket);
	p->emit = on_doorbell;
	p->emit_ctx = a;
	if (!a->pio_tap) {
		struct pio_tap_config pio = {.id = "doorbells",
					     .held_bytes_max = DOORBELL_BYTES,
					     .deliver = deliver_doorbell,
					     .ctx = a};
		int rc = pio_tap_open(&pio, &a->pio_tap, err);

		if (rc)
			return rc;
		a->pio_tap->notify = taps_notify(a);
	}
	return 0;
}

/* ---- whichever it is ---- */

int machine_start(struct agent *a, bool stopped, struct vmm **out, struct ft_err *err)
{
	struct pocket_config p;
	struct qemu_config q;
	struct qemu_strings s;
	int rc;

	if (a->config.vmm == CONFIG_VMM_POCKET) {
		rc = pocket_config_fill(a, &p, err);
		p.stopped = stopped;
		return rc ? rc : pocket_start(&p, out, err);
	}
	rc = qemu_config_fill(a, &q, &s, err);
	q.stopped = stopped;
	return rc ? rc : qemu_start(&q, out, err);
}

int machine_arm(struct agent *a, struct vmm **out, struct ft_err *err)
{
	struct pocket_config p;
	struct qemu_config q;
	struct qemu_strings s;
	int rc;

	if (a->config.vmm == CONFIG_VMM_POCKET) {
		rc = pocket_config_fill(a, &p, err);
		return rc ? rc : pocket_arm(&p, out, err);
	}
	rc = qemu_config_fill(a, &q, &s, err);
	return rc ? rc : qemu_arm(&q, out, err);
}
