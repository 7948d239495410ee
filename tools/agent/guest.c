// SPDX-License-Identifier: Apache-2.0
/* The agent's VM: how it comes to be here (started, attached to, found again after a restart), how
 * loop and engine hear of it, and how it ends. The VM for a primary's guest is arm.c's. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "eventtap/block/bitmaps.h"
#include "eventtap/block/disk_tap.h"
#include "eventtap/block/image.h"
#include "ft/log.h"
#include "tools/agent/agent.h"
#include "vmm-glue/qemu/qemu.h"

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
	taps_console_free(a);
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

/* The agent before this one died while it moved this guest, which nobody else has: if it stands
 * still, that agent stopped it. */
static bool died_moving(const struct agent *a, struct vmm *vmm)
{
	struct vmm_info info;
	struct memory m;

	vmm_info(vmm, &info);
	return memory_load(a->run_dir, a->config.name, &m) == 0 && m.moving && !m.elsewhere &&
	       memory_vmm_lives(&m) && m.vmm_pid == info.pid && !strcmp(vmm_status(vmm), "paused");
}

int guest_adopt_running(struct agent *a, struct vmm *vmm, struct ft_err *err)
{
	bool stopped = died_moving(a, vmm);
	int rc;

	guest_adopt(a, vmm);
	/* It runs with its disks as they are: what was noted of them before is of no use. */
	taps_in_solo(a, false);
	rc = taps_console_open(a, err);
	if (!rc && stopped) {
		ft_warn("%s: the guest was stopped for a migration when its agent died: it goes on "
			"here",
			a->config.name);
		rc = vmm_cont(vmm, err);
	}
	if (!rc)
		memory_note_moving(a->run_dir, a->config.name, false);
	return rc;
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
	if (a->config.vmm == CONFIG_VMM_QEMU && a->config.source == CONFIG_ATTACH) {
		rc = qemu_attach(a->config.qemu.attach, a->config.name, a->run_dir, a->keeper, &vmm,
				 err);
	} else {
		rc = images_check(a, err);
		if (!rc)
			rc = machine_start(a, tracks(a), &vmm, err);
	}
	if (rc)
		return rc;
	if (a->config.source != CONFIG_LAUNCH)
		return guest_adopt_running(a, vmm, err);
	guest_adopt(a, vmm);
	taps_in_solo(a, true);
	rc = taps_console_open(a, err);
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
	if (!rc)
		rc = machine_arm(a, out, err);
	if (!rc && a->config.vmm == CONFIG_VMM_QEMU)
		keeper_set_protected(a->keeper, true);
	return rc;
}
