// SPDX-License-Identifier: Apache-2.0
/* Makes the VMs of an agent from its guest file: started, attached to, found again after a restart,
 * or armed for a primary's guest. */
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "eventtap/block/bitmaps.h"
#include "eventtap/block/disk_tap.h"
#include "eventtap/block/image.h"
#include "eventtap/block/journal.h"
#include "eventtap/console/console_tap.h"
#include "eventtap/pio/pio_tap.h"
#include "ft/log.h"
#include "tools/agent/agent.h"
#include "vmm-glue/pocket/pocket.h"
#include "vmm-glue/qemu/qemu.h"

#define DOORBELL_BYTES	   (256u << 10)
#define CONSOLE_HELD_BYTES (1u << 20)

/* ---- configuration, translated ---- */

struct qemu_strings {
	char ifnames[VMM_NICS_MAX][16];
	char console[VMM_PATH_MAX];
	const char *args[CONFIG_LIST_MAX + 1];
	const char *replace[CONFIG_LIST_MAX + 1];
	const char *directories[CONFIG_LIST_MAX + 1];
};

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

static void console_path(struct agent *a, char out[VMM_PATH_MAX])
{
	agent_path(a, out, ".con");
}

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
	console_path(a, s->console);
	q->console = s->console;
	return 0;
}

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
	console_path(a, p->console_socket);
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

/* ---- the VM and the loop ---- */

static void on_vm_event(evutil_socket_t fd, short what, void *ctx)
{
	struct agent *a = ctx;

	(void)fd;
	(void)what;
	if (a->vmm)
		vmm_poll(a->vmm);
}

static void on_vm_lost_now(evutil_socket_t fd, short what, void *ctx)
{
	struct agent *a = ctx;

	(void)fd;
	(void)what;
	if (a->vmm)
		ft_engine_vm_lost(a->engine, !strcmp(vmm_status(a->vmm), "shutdown"),
				  a->vm_lost_why);
}

/* From inside vmm_poll(): the engine may end the VM, so it hears of it one turn of the loop later.
 */
static void on_vm_lost(void *ctx, const char *why)
{
	struct agent *a = ctx;
	struct timeval now = {0};

	snprintf(a->vm_lost_why, sizeof a->vm_lost_why, "%s", why);
	event_base_once(a->base, -1, EV_TIMEOUT, on_vm_lost_now, a, &now);
}

static void on_vm_ending(void *ctx)
{
	follow_close(ctx);
}

static void remember_vm(struct agent *a)
{
	struct memory m;
	struct ft_err err = {0};

	memory_load(a->run_dir, a->config.name, &m);
	m.vmm_pid = a->vmm ? a->vm_info.pid : 0;
	m.vmm_start = memory_start_time(m.vmm_pid);
	if (memory_save(a->run_dir, a->config.name, &m, &err))
		ft_warn("%s: %s", a->config.name, err.text);
}

static int console_open(struct agent *a, struct ft_err *err)
{
	char path[VMM_PATH_MAX];
	struct console_tap_config config = {
		.id = "console",
		.vmm_path = path,
		.log_path = or_null(a->config.console.log),
		.socket_path = or_null(a->config.console.socket),
		.held_bytes_max = CONSOLE_HELD_BYTES,
	};
	int rc;

	if (a->console_tap || a->config.source != CONFIG_LAUNCH ||
	    (!config.log_path && !config.socket_path))
		return 0;
	console_path(a, path);
	rc = console_tap_open(&config, &a->console_tap, err);
	if (!rc)
		a->console_tap->notify = taps_notify(a);
	return rc;
}

void guest_adopt(struct agent *a, struct vmm *vmm)
{
	int fd;

	assert(vmm);
	a->vmm = vmm;
	vmm->events = (struct vmm_events){.lost = on_vm_lost, .ending = on_vm_ending, .ctx = a};
	vmm_info(vmm, &a->vm_info);
	fd = vmm_poll_fd(vmm);
	if (fd >= 0) {
		a->vm_event = event_new(a->base, fd, EV_READ | EV_PERSIST, on_vm_event, a);
		if (a->vm_event)
			event_add(a->vm_event, NULL);
	}
	ft_engine_set_vmm(a->engine, vmm);
	remember_vm(a);
}

void guest_release(struct agent *a)
{
	snapshot_drop(a, "the guest has ended");
	follow_close(a);
	if (a->vm_event)
		event_free(a->vm_event);
	a->vm_event = NULL;
	if (a->console_tap) {
		ft_engine_chain(a->engine)->first = NULL;
		a->console_tap->ops->free(a->console_tap);
		a->console_tap = NULL;
	}
	if (a->vmm)
		vmm_free(a->vmm);
	a->vmm = NULL;
	ft_engine_set_vmm(a->engine, NULL);
}

void guest_end(struct agent *a)
{
	/* With its taps: a QEMU without its disks takes long to end. */
	if (a->vmm)
		vmm_quit(a->vmm, false, 0);
	keeper_set_protected(a->keeper, false);
	taps_free(a);
	guest_release(a);
	remember_vm(a);
}

/* ---- start, find again ---- */

static int images_check(struct agent *a, struct ft_err *err)
{
	for (unsigned i = 0; i < a->config.disks_n; i++) {
		const struct config_disk *d = &a->config.disks[i];
		struct image image;
		int rc;

		if (!d->image[0])
			continue;
		rc = store_check_startable(d->image, a->right, err);
		if (!rc)
			rc = d->size ? image_open_or_create(d->image, false, d->size, &image, err)
				     : image_open(d->image, false, &image, err);
		if (!rc)
			image_close(&image);
		if (rc)
			return ft_err_context(err, "disk %s", d->id);
	}
	return 0;
}

int guest_adopt_running(struct agent *a, struct vmm *vmm, struct ft_err *err)
{
	guest_adopt(a, vmm);
	/* It runs with its disks as they are: what was noted of them before is of no use. */
	taps_in_solo(a, false);
	return console_open(a, err);
}

int guest_find_again(struct agent *a, struct ft_err *err)
{
	struct vmm *vmm = NULL;
	char qmp[VMM_PATH_MAX];
	struct memory m;
	int rc;

	if (a->config.vmm != CONFIG_VMM_QEMU || a->config.source == CONFIG_ATTACH ||
	    memory_load(a->run_dir, a->config.name, &m) || !memory_vmm_lives(&m))
		return -ENOENT;
	agent_path(a, qmp, ".qmp");
	rc = qemu_attach(qmp, a->config.name, a->run_dir, a->keeper, &vmm, err);
	/* Nobody listens: what has that number is dead and only not reaped yet. */
	if (rc == -ECONNREFUSED)
		return -ENOENT;
	if (rc)
		return rc == -ENOENT ? -EIO : rc;
	ft_info("%s: found the guest running (pid %d) and took it over", a->config.name,
		(int)m.vmm_pid);
	a->vm_ours = a->vm_found = true;
	return guest_adopt_running(a, vmm, err);
}

/* A disk is to have its tap before the guest's first write. */
static bool tracks(const struct agent *a)
{
	bool any = false;

	for (unsigned i = 0; i < a->config.disks_n; i++)
		any |= a->config.disks[i].track || bitmaps_exist(a->config.disks[i].image);
	return any;
}

int guest_start(struct agent *a, struct ft_err *err)
{
	struct vmm *vmm = NULL;
	int rc;

	if (a->config.source == CONFIG_FROM_PEER)
		return ft_err_set(err, EINVAL,
				  "%s: the guest file describes no machine and attaches to none: "
				  "only a standby can use it (--incoming)",
				  a->config.name);
	a->vm_ours = a->config.source == CONFIG_LAUNCH;
	if (a->config.vmm == CONFIG_VMM_POCKET) {
		struct pocket_config p;

		rc = images_check(a, err);
		if (!rc)
			rc = pocket_config_fill(a, &p, err);
		p.stopped = tracks(a);
		if (!rc)
			rc = pocket_start(&p, &vmm, err);
	} else if (a->config.source == CONFIG_ATTACH) {
		rc = qemu_attach(a->config.qemu.attach, a->config.name, a->run_dir, a->keeper, &vmm,
				 err);
	} else {
		struct qemu_config q;
		struct qemu_strings s;

		rc = images_check(a, err);
		if (!rc)
			rc = qemu_config_fill(a, &q, &s, err);
		q.stopped = tracks(a);
		if (!rc)
			rc = qemu_start(&q, &vmm, err);
	}
	if (rc)
		return rc;
	if (a->config.source != CONFIG_LAUNCH)
		return guest_adopt_running(a, vmm, err);
	guest_adopt(a, vmm);
	taps_in_solo(a, true);
	rc = console_open(a, err);
	if (!rc && tracks(a))
		rc = vmm_cont(vmm, err);
	return rc;
}

int guest_make_waiting(struct agent *a, struct vmm **out, struct ft_err *err)
{
	int rc = images_check(a, err);

	for (unsigned i = 0; i < a->config.disks_n; i++)
		disk_tap_forget(a->config.disks[i].image);
	a->vm_ours = true;
	if (!rc && a->config.vmm == CONFIG_VMM_POCKET) {
		struct pocket_config p;

		rc = pocket_config_fill(a, &p, err);
		return rc ? rc : pocket_arm(&p, out, err);
	} else if (!rc) {
		struct qemu_config q;
		struct qemu_strings s;

		rc = qemu_config_fill(a, &q, &s, err);
		if (!rc)
			rc = qemu_arm(&q, out, err);
	}
	if (!rc)
		keeper_set_protected(a->keeper, true);
	return rc;
}

/* ---- arm ---- */

static const struct config_disk *config_disk(struct agent *a, const char *id)
{
	for (unsigned i = 0; i < a->config.disks_n; i++)
		if (!strcmp(a->config.disks[i].id, id))
			return &a->config.disks[i];
	return NULL;
}

/* Whole paths or leading folders, as in qemu { replace }. */
static void local_path(struct agent *a, const char *path, char out[VMM_PATH_MAX])
{
	const struct config_list *r = &a->config.qemu.replace;

	snprintf(out, VMM_PATH_MAX, "%s", path);
	for (unsigned i = 0; i + 1 < r->n; i += 2) {
		size_t n = strlen(r->item[i]);

		if (strncmp(path, r->item[i], n) ||
		    (path[n] && path[n] != '/' && r->item[i][n - 1] != '/'))
			continue;
		snprintf(out, VMM_PATH_MAX, "%s%s", r->item[i + 1], path + n);
		return;
	}
}

static bool allowed_path(struct agent *a, const char *path)
{
	const struct config_list *d = &a->config.qemu.directories;

	if (strstr(path, "/../"))
		return false;
	for (unsigned i = 0; i < d->n; i++) {
		size_t n = strlen(d->item[i]);

		if (!strncmp(path, d->item[i], n) && (path[n] == '/' || (n && path[n - 1] == '/')))
			return true;
	}
	return false;
}

/* The place of a disk's image here, and whether it may be overwritten. */
static int store_path(struct agent *a, const Ft__Setup *setup, const Ft__Disk *d,
		      char path[VMM_PATH_MAX], struct ft_err *err)
{
	const struct config_disk *c = config_disk(a, d->id);

	if (c && c->image[0]) {
		snprintf(path, VMM_PATH_MAX, "%s", c->image);
	} else {
		local_path(a, d->image, path);
		if (!allowed_path(a, path))
			return ft_err_set(err, EPERM,
					  "disk %.64s: %s: not below a folder of qemu { "
					  "directories }",
					  d->id, path);
	}
	/* An older history must not overwrite a newer one, unless an operator said so. */
	if (!a->force && setup->generation && store_generation(path) > setup->generation)
		return ft_err_set(err, ESTALE,
				  "disk %.64s: %s is of generation %llu, the primary acts under "
				  "%llu: the copy here is the newer one (--force gives it up)",
				  d->id, path, (unsigned long long)store_generation(path),
				  (unsigned long long)setup->generation);
	if (c && (c->mode == STORE_SHARED) != d->shared)
		return ft_err_set(err, EINVAL, "disk %.64s: %s here, %s at the primary", d->id,
				  c->mode == STORE_SHARED ? "shared" : "replicated",
				  d->shared ? "shared" : "replicated");
	return 0;
}

static int open_stores(struct agent *a, const Ft__Setup *setup, struct ft_err *err)
{
	a->journal_path[0] = 0;
	if (setup->n_disks > VMM_DISKS_MAX)
		return ft_err_set(err, EPROTO, "set-up: %zu disks: at most %d", setup->n_disks,
				  VMM_DISKS_MAX);
	for (unsigned i = 0; i < setup->n_disks; i++) {
		const Ft__Disk *d = setup->disks[i];
		char path[VMM_PATH_MAX];
		int rc = store_path(a, setup, d, path, err);

		if (!rc && !d->shared && !a->journal_path[0]) {
			snprintf(a->journal_path, sizeof a->journal_path, "%s%s", path,
				 JOURNAL_SUFFIX);
			/* Of another session: what it has must never be replayed again. */
			rc = journal_remove(a->journal_path, err);
		}
		if (rc)
			return rc;
		rc = store_open(d->id, path, d->shared ? STORE_SHARED : STORE_REPLICATED, d->bytes,
				a->config.uuid, &a->stores[i], err);
		if (rc)
			return rc;
		a->stores_n = i + 1;
		rc = store_join(a->stores[i], setup->session, d->since, err);
		if (rc)
			return rc;
	}
	return durable_begin(a, err);
}

static bool has_images(const struct agent *a)
{
	for (unsigned i = 0; i < a->config.disks_n; i++)
		if (access(a->config.disks[i].image, F_OK))
			return false;
	return true;
}

void guest_arm_ahead(struct agent *a)
{
	struct ft_err err = {0};
	struct qemu_strings s;
	struct qemu_config q;

	if (a->config.vmm != CONFIG_VMM_QEMU || a->config.source != CONFIG_LAUNCH || !has_images(a))
		return;
	if (qemu_config_fill(a, &q, &s, &err) || qemu_arm(&q, &a->spare, &err)) {
		ft_warn("%s: not armed ahead: %s", a->config.name, err.text);
		return;
	}
	keeper_set_protected(a->keeper, true);
}

void guest_drop_spare(struct agent *a)
{
	if (!a->spare)
		return;
	vmm_quit(a->spare, false, 0);
	vmm_free(a->spare);
	a->spare = NULL;
}

/* One that died meanwhile is none. */
static struct vmm *take_spare(struct agent *a)
{
	struct vmm *vmm = a->spare;

	if (!vmm)
		return NULL;
	vmm_poll(vmm);
	if (!strcmp(vmm_status(vmm), "lost")) {
		guest_drop_spare(a);
		return NULL;
	}
	a->spare = NULL;
	return vmm;
}

static int arm_qemu(struct agent *a, const Ft__Setup *setup, struct vmm **vmm, struct ft_err *err)
{
	struct qemu_strings s;
	int rc;

	if (a->config.source == CONFIG_LAUNCH) {
		struct qemu_config q;

		*vmm = take_spare(a);
		if (*vmm)
			return 0;
		rc = qemu_config_fill(a, &q, &s, err);
		return rc ? rc : qemu_arm(&q, vmm, err);
	} else {
		struct qemu_arm_rules rules = {
			.name = a->config.name,
			.run_dir = a->run_dir,
			.binary = or_null(a->config.qemu.binary),
			.replace = s.replace,
			.directories = s.directories,
			.keeper = a->keeper,
		};
		const char **argv;

		if (!setup->n_command_line)
			return ft_err_set(err, EINVAL,
					  "set-up: the guest file here describes no machine and "
					  "the primary sent no command line");
		list(&a->config.qemu.replace, s.replace);
		list(&a->config.qemu.directories, s.directories);
		argv = calloc(setup->n_command_line + 1, sizeof *argv);
		if (!argv)
			return ft_err_set(err, ENOMEM, "set-up: out of memory");
		for (size_t i = 0; i < setup->n_command_line; i++)
			argv[i] = setup->command_line[i];
		rc = qemu_arm_command_line(argv, &rules, vmm, err);
		free(argv);
		return rc;
	}
}

const char *guest_machine(struct agent *a)
{
	return a->vmm && !strcmp(a->vm_info.kind, "qemu") ? qemu_machine(a->vmm) : "";
}

static int check_armed(struct agent *a, const Ft__Setup *setup, struct ft_err *err)
{
	if (setup->machine[0] && strcmp(guest_machine(a), setup->machine))
		return ft_err_set(err, EINVAL,
				  "machine: '%s' here, '%.64s' at the primary: name one that both "
				  "QEMUs have (machine = \"...\")",
				  guest_machine(a), setup->machine);
	if (a->vm_info.ram_bytes != setup->ram_bytes)
		return ft_err_set(err, EINVAL, "memory: %llu bytes here, %llu at the primary",
				  (unsigned long long)a->vm_info.ram_bytes,
				  (unsigned long long)setup->ram_bytes);
	if (a->vm_info.disks_n != setup->n_disks)
		return ft_err_set(err, EINVAL, "disks: %u here, %zu at the primary",
				  a->vm_info.disks_n, setup->n_disks);
	if (a->vm_info.nics_n != setup->nics)
		return ft_err_set(err, EINVAL, "nics: %u here, %u at the primary",
				  a->vm_info.nics_n, setup->nics);
	for (unsigned i = 0; i < a->vm_info.disks_n; i++)
		if (strcmp(a->vm_info.disks[i].id, setup->disks[i]->id))
			return ft_err_set(err, EINVAL, "disk %u: '%s' here, '%s' at the primary", i,
					  a->vm_info.disks[i].id, setup->disks[i]->id);
	return 0;
}

int guest_arm(struct agent *a, const Ft__Setup *setup, struct ft_err *err)
{
	struct vmm *vmm = NULL;
	bool pocket = a->config.vmm == CONFIG_VMM_POCKET;
	int rc;

	if (strcmp(setup->vmm, pocket ? "pocket" : "qemu"))
		return ft_err_set(err, EINVAL, "vmm: %s here, %s at the primary",
				  pocket ? "pocket" : "qemu", setup->vmm);
	if (a->incoming && a->target != setup->migrate)
		return ft_err_set(
			err, EINVAL, "%s",
			a->target ? "this agent waits for a guest that moves, and protects none "
				    "(--incoming without kemari:)"
				  : "this agent is a standby (--incoming kemari:...), and no "
				    "guest's new place");
	rc = open_stores(a, setup, err);
	if (!rc && pocket) {
		struct pocket_config p;

		rc = pocket_config_fill(a, &p, err);
		if (!rc)
			rc = pocket_arm(&p, &vmm, err);
	} else if (!rc) {
		rc = arm_qemu(a, setup, &vmm, err);
	}
	if (!rc) {
		guest_adopt(a, vmm);
		a->vm_ours = true;
		/* An armed VM must not outlive its agent. */
		keeper_set_protected(a->keeper, true);
		rc = check_armed(a, setup, err);
	}
	if (!rc && !pocket && !setup->migrate)
		rc = qemu_trial_prepare(vmm, err);
	if (!rc)
		rc = console_open(a, err);
	if (!rc)
		rc = taps_make(a, false, err);
	if (!rc)
		rc = vmm_taps_in(vmm, &a->points, err);
	if (rc)
		agent_env.disarm(a);
	return rc;
}
