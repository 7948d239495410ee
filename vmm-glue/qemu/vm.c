// SPDX-License-Identifier: Apache-2.0
// The object: made, connected to its process, asked for its status, ended. What it can do is in the
// other files; the table is here.
#include "vmm-glue/vmm.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "ft/log.h"
#include "vmm-glue/qemu/clock.h"
#include "vmm-glue/qemu/internal.h"

#define QUIT_MS 1000 /* from QMP quit to SIGKILL */
#define REAP_MS 5000 /* a killed process gives back its memory */

/* QAPI: RunState. */
static const char *const statuses[] = {
	"debug",     "inmigrate",      "internal-error", "io-error", "paused",	"postmigrate",
	"prelaunch", "finish-migrate", "restore-vm",	 "running",  "save-vm", "shutdown",
	"suspended", "watchdog",       "guest-panicked", "colo"};

static void info(struct vmm *vmm, struct vmm_info *out)
{
	struct qemu *vm = qemu_of(vmm);

	*out = (struct vmm_info){
		.kind = "qemu", .pid = vm->process.pid, .ram_bytes = vm->ram.bytes};
	snprintf(out->version, sizeof out->version, "%s", vm->version);
	snprintf(out->uuid, sizeof out->uuid, "%s", vm->uuid);
	out->disks_n = vm->disks_n;
	out->nics_n = vm->nics_n;
	for (unsigned i = 0; i < vm->disks_n; i++) {
		snprintf(out->disks[i].id, VMM_NAME_MAX, "%s", vm->disks[i].id);
		snprintf(out->disks[i].image, VMM_PATH_MAX, "%s", vm->disks[i].image);
		out->disks[i].bytes = vm->disks[i].bytes;
		out->disks[i].direct = vm->disks[i].direct;
	}
	for (unsigned i = 0; i < vm->nics_n; i++)
		snprintf(out->nics[i].id, VMM_NAME_MAX, "%s", vm->nics[i].id);
}

static void ram(struct vmm *vmm, struct vmm_ram *out)
{
	struct qemu *vm = qemu_of(vmm);

	*out = (struct vmm_ram){.pid = vm->process.pid,
				.pidfd = vm->process.pidfd,
				.address = vm->ram.hva,
				.bytes = vm->ram.bytes,
				.fd = vm->ram.fd > 0 ? vm->ram.fd : -1,
				.offset = vm->ram.file_offset};
	snprintf(out->block, sizeof out->block, "%s", vm->ram.region);
	snprintf(out->machine, sizeof out->machine, "%s", vm->machine);
}

static const char *status(struct vmm *vmm)
{
	return qemu_of(vmm)->powered_off ? "shutdown" : qemu_of(vmm)->status;
}

static void moments(struct vmm *vmm, uint64_t *stopped_us, uint64_t *resumed_us)
{
	*stopped_us = qemu_of(vmm)->stop_us;
	*resumed_us = qemu_of(vmm)->resume_us;
}

static int poll_fd(struct vmm *vmm)
{
	return qemu_of(vmm)->epoll_fd;
}

void qemu_lose(struct qemu *vm, const char *why)
{
	if (vm->lost)
		return;
	vm->lost = true;
	vm->status = "lost";
	snprintf(vm->lost_why, sizeof vm->lost_why, "%s", why);
	/* Whoever polls hears of it even when it was met inside another call. */
	eventfd_write(vm->wake_fd, 1);
}

static uint64_t event_time_us(const json_t *event)
{
	const json_t *t = json_object_get(event, "timestamp");

	return (uint64_t)json_integer_value(json_object_get(t, "seconds")) * 1000000 +
	       (uint64_t)json_integer_value(json_object_get(t, "microseconds"));
}

/* BLOCK_JOB_READY, BLOCK_JOB_COMPLETED, BLOCK_JOB_CANCELLED, BLOCK_JOB_ERROR (which a retry may
 * follow, so it is no end). */
static void on_job_event(struct qemu *vm, const char *name, const json_t *data)
{
	const char *id = json_string_value(json_object_get(data, "device"));
	const char *error = json_string_value(json_object_get(data, "error"));

	if (!id || strcmp(id, QEMU_JOB))
		return;
	if (!strcmp(name, "BLOCK_JOB_READY"))
		vm->job = QEMU_JOB_READY;
	else if (!strcmp(name, "BLOCK_JOB_COMPLETED"))
		vm->job = error ? QEMU_JOB_FAILED : QEMU_JOB_DONE;
	else if (!strcmp(name, "BLOCK_JOB_CANCELLED"))
		vm->job = QEMU_JOB_FAILED;
	if (error)
		snprintf(vm->job_error, sizeof vm->job_error, "%s", error);
}

static void on_event(void *ctx, const char *name, const json_t *event)
{
	struct qemu *vm = ctx;

	if (!strcmp(name, "STOP")) {
		vm->stop_us = event_time_us(event);
		vm->status = "paused";
	} else if (!strcmp(name, "RESUME")) {
		vm->resume_us = event_time_us(event);
		vm->resumes++;
		vm->status = "running";
	} else if (!strncmp(name, "BLOCK_JOB_", 10)) {
		on_job_event(vm, name, json_object_get(event, "data"));
	} else if (!strcmp(name, "GUEST_PANICKED")) {
		vm->status = "guest-panicked";
		ft_warn("qemu: %s: the guest panicked", vm->name);
	} else if (!strcmp(name, "SHUTDOWN")) {
		bool by_guest =
			json_is_true(json_object_get(json_object_get(event, "data"), "guest"));

		vm->powered_off = vm->powered_off || by_guest;
		qemu_lose(vm, by_guest ? "qemu: the guest shut down" : "qemu: ended by request");
	}
}

static void process_gone(struct qemu *vm)
{
	char words[160], why[256];

	process_last_words(vm->log, words, sizeof words);
	snprintf(why, sizeof why, "qemu: process %d ended%s%s", vm->process.pid, *words ? ": " : "",
		 words);
	qemu_lose(vm, why);
}

static void poll_vm(struct vmm *vmm)
{
	struct qemu *vm = qemu_of(vmm);
	bool ended = !vm->lost && process_ended(&vm->process, 0);
	eventfd_t n;

	eventfd_read(vm->wake_fd, &n);
	if (!vm->qmp.closed)
		qmp_poll(&vm->qmp);
	/* Why it ended, that is whether the guest wanted it, may not have been read yet. */
	if (!vm->lost && (ended || vm->qmp.closed))
		qmp_last_words(&vm->qmp);
	if (!vm->lost && (ended || vm->qmp.closed)) {
		/* The socket closes a moment before the process is gone. */
		if (ended || process_ended(&vm->process, 100))
			process_gone(vm);
		else
			qemu_lose(vm, "qemu: the monitor closed its connection");
	}
	if (!vm->lost || vm->lost_told)
		return;
	vm->lost_told = true;
	epoll_ctl(vm->epoll_fd, EPOLL_CTL_DEL, vm->process.pidfd, NULL);
	if (vm->qmp.fd >= 0)
		epoll_ctl(vm->epoll_fd, EPOLL_CTL_DEL, vm->qmp.fd, NULL);
	if (vmm->events.lost)
		vmm->events.lost(vmm->events.ctx, vm->lost_why);
}

int qemu_ready(struct qemu *vm, struct ft_err *err)
{
	if (vm->lost || vm->qmp.closed)
		return ft_err_set(err, EPIPE, "%s",
				  vm->lost ? vm->lost_why
					   : "qemu: the monitor closed its connection");
	return save_discard(&vm->save, &vm->qmp, err);
}

void qemu_refresh_status(struct qemu *vm)
{
	const char *now;
	json_t *ret;

	if (qmp_call(&vm->qmp, &ret, NULL, "query-status", NULL) < 0)
		return;
	now = json_string_value(json_object_get(ret, "status"));
	for (size_t i = 0; now && i < sizeof statuses / sizeof *statuses; i++)
		if (!strcmp(now, statuses[i]))
			vm->status = statuses[i];
	json_decref(ret);
}

static int command(struct vmm *vmm, const char *name, struct ft_err *err)
{
	struct qemu *vm = qemu_of(vmm);
	int r = qemu_ready(vm, err);

	if (r == 0)
		r = qmp_call(&vm->qmp, NULL, err, name, NULL);
	if (r == 0)
		qemu_refresh_status(vm);
	return r;
}

static int stop(struct vmm *vmm, struct ft_err *err)
{
	return command(vmm, "stop", err);
}

static int cont(struct vmm *vmm, struct ft_err *err)
{
	return command(vmm, "cont", err);
}

void qemu_quit(struct vmm *vmm, bool orderly, unsigned within_ms)
{
	struct qemu *vm = qemu_of(vmm);

	if (process_ended(&vm->process, 0))
		return;
	/* With -no-shutdown QEMU stays after the guest has gone, so this is only the wait, not the
	 * end. */
	if (orderly && !vm->armed && qemu_ready(vm, NULL) == 0 &&
	    qmp_call(&vm->qmp, NULL, NULL, "system_powerdown", NULL) == 0 &&
	    process_ended(&vm->process, within_ms))
		return;
	if (!vm->qmp.closed && save_discard(&vm->save, &vm->qmp, NULL) == 0)
		qmp_call_args(&vm->qmp, NULL, NULL, QUIT_MS, "quit", NULL);
	if (process_ended(&vm->process, QUIT_MS))
		return;
	process_kill(&vm->process);
	process_ended(&vm->process, REAP_MS);
}

static int digest(struct vmm *vmm, uint64_t *out, struct ft_err *err)
{
	return ram_digest(&qemu_of(vmm)->ram, out, err);
}

static int read_pages(struct vmm *vmm, const uint64_t *pfns, size_t n, uint8_t *target,
		      struct ft_err *err)
{
	struct qemu *vm = qemu_of(vmm);

	return ram_copy_bulk(&vm->ram, pfns, n, target) < 0
		       ? ft_err_set(err, EIO, "qemu: RAM of process %d cannot be read",
				    vm->process.pid)
		       : 0;
}

static const uint8_t *view(struct vmm *vmm, uint64_t pfn, size_t n)
{
	return ram_view(&qemu_of(vmm)->ram, pfn, n);
}

void qemu_free(struct vmm *vmm)
{
	struct qemu *vm = qemu_of(vmm);

	if (!vm)
		return;
	qemu_track_stop(vmm);
	qemu_trial_drop(vm);
	argv_free(&vm->trial_argv);
	save_free(&vm->save);
	qmp_close(&vm->qmp);
	ram_unmap(&vm->ram);
	if (vm->incoming >= 0)
		close(vm->incoming);
	if (vm->image_fd >= 0)
		close(vm->image_fd);
	process_close(&vm->process);
	if (vm->epoll_fd >= 0)
		close(vm->epoll_fd);
	if (vm->wake_fd >= 0)
		close(vm->wake_fd);
	free(vm);
}

static const struct vmm_ops ops = {
	.kind = "qemu",
	.info = info,
	.ram = ram,
	.status = status,
	.moments = moments,
	.poll_fd = poll_fd,
	.poll = poll_vm,
	.check = qemu_check,
	.taps_in = qemu_taps_in,
	.taps_out = qemu_taps_out,
	.nic_fd = qemu_nic_fd,
	.track_start = qemu_track_start,
	.track_stop = qemu_track_stop,
	.harvest = qemu_harvest,
	.dirty_peek = qemu_dirty_peek,
	.read_pages = read_pages,
	.view = view,
	.checkpoint_prepare = qemu_checkpoint_prepare,
	.checkpoint = qemu_checkpoint,
	.save = qemu_save,
	.stop = stop,
	.cont = cont,
	.quit = qemu_quit,
	.ram_digest = digest,
	.image = qemu_image,
	.image_write = qemu_image_write,
	.image_empty = qemu_image_empty,
	.trial = qemu_trial,
	.resume = qemu_resume,
	.free = qemu_free,
};

int qemu_new(const char *name, const char *run_dir, struct keeper *keeper, struct qemu **out,
	     struct ft_err *err)
{
	struct qemu *vm;
	int r = qemu_name_check("guest", name, QEMU_NODE_MAX - 1, err);

	if (r < 0)
		return r;
	if (strlen(run_dir) >= sizeof vm->run_dir)
		return ft_err_set(err, ENAMETOOLONG, "qemu: run directory %s: too long", run_dir);
	vm = calloc(1, sizeof *vm);
	if (!vm)
		return ft_err_set(err, ENOMEM, "qemu: no memory");
	vm->vmm.ops = &ops;
	vm->keeper = keeper;
	vm->status = "starting";
	vm->process.pidfd = vm->trial.pidfd = vm->incoming = vm->image_fd = -1;
	vm->qmp.fd = vm->trial_qmp.fd = -1;
	vm->qmp.closed = vm->trial_qmp.closed = true;
	save_init(&vm->save);
	snprintf(vm->name, sizeof vm->name, "%s", name);
	snprintf(vm->run_dir, sizeof vm->run_dir, "%s", run_dir);
	snprintf(vm->log, sizeof vm->log, "%s/%s.qemu.log", run_dir, name);
	vm->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	vm->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (vm->epoll_fd < 0 || vm->wake_fd < 0) {
		qemu_free(&vm->vmm);
		return ft_err_set(err, EMFILE, "qemu: no descriptors");
	}
	*out = vm;
	return 0;
}

int qemu_adopt(struct qemu *vm, struct ft_err *err)
{
	int fds[] = {vm->process.pidfd, vm->qmp.fd, vm->wake_fd};
	int r;

	vm->qmp.event = on_event;
	vm->qmp.ctx = vm;
	for (unsigned i = 0; i < sizeof fds / sizeof *fds; i++) {
		struct epoll_event e = {.events = EPOLLIN};

		if (epoll_ctl(vm->epoll_fd, EPOLL_CTL_ADD, fds[i], &e) < 0)
			return ft_err_set(err, errno, "qemu: epoll: %s", strerror(errno));
	}
	r = qemu_inspect(vm, err);
	if (r == 0 && vm->keeper)
		r = keeper_watch(vm->keeper, vm->process.pid, err);
	return r;
}
