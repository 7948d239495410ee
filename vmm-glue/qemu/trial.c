// SPDX-License-Identifier: Apache-2.0
// A trial load: a throw-away QEMU of the same machine maps the image privately, has null disks, a
// tap that leads nowhere and no console, loads the state and stays stopped. What it writes into RAM
// while it loads stays its own.
//
// The NIC needs a real tap: a virtio-net that has negotiated offloads with a vnet header refuses to
// load on a backend without one. It is made for the trial, is never brought up and goes with its
// descriptor.
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/if.h>
#include <linux/if_tun.h>

#include "vmm-glue/qemu/clock.h"
#include "vmm-glue/qemu/internal.h"

#define TRIAL_MS 8000

static void file_name(const struct qemu *vm, const char *suffix, char *out, size_t room)
{
	snprintf(out, room, "%s/%s.trial.%s", vm->run_dir, vm->name, suffix);
}

void qemu_trial_drop(struct qemu *vm)
{
	char path[VMM_PATH_MAX + 80];

	if (vm->trial.pidfd < 0)
		return;
	qmp_close(&vm->trial_qmp);
	process_kill(&vm->trial);
	process_ended(&vm->trial, TRIAL_MS);
	process_close(&vm->trial);
	file_name(vm, "qmp", path, sizeof path);
	unlink(path);
	file_name(vm, "log", path, sizeof path);
	unlink(path);
}

static int make_tap(struct ft_err *err)
{
	struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK), code;

	if (fd >= 0 && ioctl(fd, TUNSETIFF, &request) == 0)
		return fd;
	code = errno;
	if (fd >= 0)
		close(fd);
	return ft_err_set(err, code, "qemu: trial: a tap interface: %s", strerror(code));
}

int qemu_trial_prepare(struct vmm *vmm, struct ft_err *err)
{
	char qmp_path[VMM_PATH_MAX + 80], log[VMM_PATH_MAX + 80];
	struct qemu *vm = qemu_of(vmm);
	int fds[1 + VMM_NICS_MAX], r = 0;
	unsigned n = 0;

	assert(vm->armed);
	if (vm->trial.pidfd >= 0)
		return 0;
	fds[n++] = vm->image_fd;
	while (n <= vm->nics_n && r >= 0) {
		r = make_tap(err);
		if (r >= 0)
			fds[n++] = r;
	}
	if (r >= 0) {
		file_name(vm, "qmp", qmp_path, sizeof qmp_path);
		file_name(vm, "log", log, sizeof log);
		unlink(log);
		r = qemu_launch(&vm->trial, &vm->trial_qmp, &vm->trial_argv, fds, n, qmp_path, log,
				err);
	}
	while (n-- > 1)
		close(fds[n]);
	return r < 0 ? ft_err_context(err, "trial") : 0;
}

/* 0: loaded. 1: not yet. */
static int outcome(struct qemu *vm, struct ft_err *err)
{
	const char *status, *why;
	json_t *ret;
	int r = qmp_call(&vm->trial_qmp, &ret, err, "query-migrate", NULL);

	if (r < 0)
		return r;
	status = json_string_value(json_object_get(ret, "status"));
	why = json_string_value(json_object_get(ret, "error-desc"));
	r = 1;
	if (status && !strcmp(status, "completed"))
		r = 0;
	else if (status && !strcmp(status, "failed"))
		r = ft_err_set(err, EIO, "%s", why ? why : "failed");
	json_decref(ret);
	return r;
}

static void migration_event(void *ctx, const char *name, const json_t *event)
{
	(void)event;
	if (!strcmp(name, "MIGRATION"))
		*(bool *)ctx = true;
}

static int load(struct qemu *vm, const uint8_t *state, size_t len, struct ft_err *err)
{
	uint64_t deadline_ns = qemu_deadline_ns(TRIAL_MS);
	char log[VMM_PATH_MAX + 80], words[256];
	bool changed = false;
	int fd = -1, r;

	vm->trial_qmp.event = migration_event;
	vm->trial_qmp.ctx = &changed;
	r = qmp_call(&vm->trial_qmp, NULL, err, "migrate-set-capabilities", "{s:[{s:s, s:b}]}",
		     "capabilities", "capability", "events", "state", 1);
	if (r == 0)
		r = qemu_incoming(&vm->trial_qmp, &fd, err);
	if (r < 0)
		return r;
	r = qemu_write_state(fd, vm->machine, state, len, TRIAL_MS, err);
	if (r < 0 && r != -EPIPE && r != -ECONNRESET) {
		close(fd);
		return r;
	}
	r = 0; /* a QEMU that stops reading has something to say */
	/* Each change of the migration is an event; a QEMU that cannot load the state exits. */
	while (r == 0) {
		struct pollfd p = {.fd = vm->trial_qmp.fd, .events = POLLIN};

		changed = false;
		r = outcome(vm, err);
		if (r <= 0)
			break;
		for (r = 0; r == 0 && !changed;) {
			if (poll(&p, 1, qemu_ms_left(deadline_ns)) == 0)
				r = ft_err_set(err, ETIMEDOUT, "does not end");
			else if (qmp_poll(&vm->trial_qmp) < 0)
				r = ft_err_set(err, EPIPE, "QEMU ended");
		}
	}
	close(fd);
	if (r < 0 && process_ended(&vm->trial, 100)) {
		file_name(vm, "log", log, sizeof log);
		process_last_words(log, words, sizeof words);
		ft_err_set(err, EIO, "%s", *words ? words : "QEMU ended");
		r = -EIO;
	}
	return r;
}

int qemu_trial(struct vmm *vmm, const uint8_t *state, size_t len, struct ft_err *err)
{
	struct qemu *vm = qemu_of(vmm);
	int r = qemu_trial_prepare(vmm, err);

	if (r < 0)
		return r;
	r = load(vm, state, len, err);
	qemu_trial_drop(vm);
	return r < 0 ? ft_err_context(err, "qemu: trial load") : 0;
}
