// SPDX-License-Identifier: Apache-2.0
// The pause of an idle guest for one vmm_checkpoint(), tracker and copies included. Floor: the
// pause that QEMU itself takes for xen-save-devices-state of the same running guest into a pipe
// that never fills. Both by QEMU's own STOP and RESUME events, in turn. The time from the command
// to STOP is QEMU's too, and no pause, but every commit has it in it.
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "direct.h"
#include "vmm-glue/qemu/internal.h"

#define PIPE_BYTES (1 << 20) /* far above any state here */
#define GAP_MS	   10	     /* of running between two pauses */

struct drained {
	int end; /* ours */
	int fd;	 /* QEMU's number of the other */
};

static int drained_open(struct vmm *vmm, struct drained *d, struct ft_err *err)
{
	struct qemu *vm = qemu_of(vmm);
	json_t *ret;
	int ends[2], rc = qemu_ready(vm, err);

	if (rc)
		return rc;
	if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) || fcntl(ends[0], F_SETPIPE_SZ, PIPE_BYTES) < 0)
		return ft_err_set(err, errno, "pipe: %s", strerror(errno));
	d->end = ends[0];
	qmp_pass_fd(&vm->qmp, ends[1]);
	rc = qmp_call(&vm->qmp, &ret, err, "add-fd", NULL);
	close(ends[1]);
	if (rc)
		return rc;
	d->fd = (int)json_integer_value(json_object_get(ret, "fd"));
	json_decref(ret);
	return 0;
}

static int bare(struct vmm *vmm, struct drained *d, double *ms, struct ft_err *err)
{
	struct qemu *vm = qemu_of(vmm);
	char path[40], scratch[65536];
	int rc = qemu_ready(vm, err);

	snprintf(path, sizeof path, "/proc/self/fd/%d", d->fd);
	if (!rc)
		rc = qmp_call(&vm->qmp, NULL, err, "xen-save-devices-state", "{s:s}", "filename",
			      path);
	if (rc)
		return rc;
	*ms = (double)(vm->resume_us - vm->stop_us) / 1e3;
	while (read(d->end, scratch, sizeof scratch) > 0)
		;
	return 0;
}

/* As QEMU's events have it. */
static double wall_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec / 1e3;
}

static int measure(struct direct *d, unsigned rounds, const char *name, double reach,
		   struct ft_err *err)
{
	struct samples here = {0}, floor = {0}, held = {0}, stop = {0};
	struct drained drained = {.end = -1};
	struct capture *c = NULL;
	size_t pages = 0;
	double ms, fired_us;
	char what[96];
	int rc = capture_new(GUEST_PAGES, &c, err);

	if (!rc)
		rc = drained_open(d->vmm, &drained, err);
	for (unsigned i = 0; i < rounds + 2 && !rc; i++) {
		direct_idle(d, GAP_MS);
		rc = bare(d->vmm, &drained, &ms, err);
		if (!rc && i >= 2)
			samples_add(&floor, ms);
		if (!rc)
			rc = vmm_checkpoint_prepare(d->vmm, err);
		direct_idle(d, GAP_MS);
		if (i < 2)
			pages = 0;
		fired_us = wall_us();
		if (!rc)
			rc = capture_take(c, d->vmm, &ms, &pages, err);
		if (rc || i < 2)
			continue;
		samples_add(&here, ms);
		samples_add(&held, (double)capture_of(c)->held_ns / 1e6);
		samples_add(&stop, ((double)qemu_of(d->vmm)->stop_us - fired_us) / 1e3);
	}
	if (!rc) {
		snprintf(what, sizeof what,
			 "%zu bytes of state, %zu pages, command to STOP %.3f, held %.3f",
			 capture_of(c)->state_len, pages / here.n, samples_median(&stop),
			 samples_median(&held));
		bench_report_samples(name, "ms", &here, &floor, BENCH_AT_MOST, reach, what);
	}
	if (drained.end >= 0)
		close(drained.end);
	capture_free(c);
	samples_free(&here);
	samples_free(&floor);
	samples_free(&held);
	samples_free(&stop);
	return rc;
}

int bench_pause(struct bench *b, struct ft_err *err)
{
	int rc = direct_pc(b, err);

	if (!rc)
		rc = measure(b->pc, b->quick ? 60 : 300, "pause-pc", 1.2, err);
	if (!rc)
		rc = direct_q35(b, err);
	if (!rc)
		rc = measure(b->q35, b->quick ? 60 : 300, "pause-q35", 1.15, err);
	return rc;
}
