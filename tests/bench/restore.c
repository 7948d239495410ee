// SPDX-License-Identifier: Apache-2.0
// From a snapshot of 1 GiB to the guest's first instruction. Here: a QEMU that waits gets its RAM
// lazily. Floor: the same QEMU's own restore of the same file, with multifd, which is eager. Both
// wait already when the time begins.
#include "bench.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include "direct.h"
#include "vmm-glue/qemu/argv.h"
#include "vmm-glue/qemu/internal.h"
#include "vmm-glue/qemu/options.h"
#include "vmm-glue/snapshot/lazy.h"
#include "vmm-glue/snapshot/snapshot.h"
#include "vmm-glue/snapshot/source.h"

#define BYTES	 (1ull << 30)
#define FIRMWARE (16ull << 20) /* of RAM that is left as it is */
#define PIECE	 (1u << 20)
#define END_MS	 60000
#define LOOK_MS	 1
#define START_MS 10000
#define REACH	 0.2
#define ROUNDS	 5

struct restore {
	struct bench *b;
	char path[BENCH_PATH_MAX];
	struct argv argv; /* of the QEMU that was saved */
};

static void on_done(void *ctx)
{
	eventfd_write(*(int *)ctx, 1);
}

static struct qemu_config config_of(const struct bench *b, const char *name)
{
	return (struct qemu_config){.name = name,
				    .run_dir = b->dir,
				    .binary = direct_qemu10(),
				    .machine = "pc-i440fx-7.2",
				    .memory_bytes = BYTES,
				    .cpus = 1};
}

/* No page of it is empty, but the firmware's. */
static int fill(struct vmm *vmm, struct ft_err *err)
{
	uint8_t *piece = malloc(PIECE);
	struct vmm_ram ram;
	int rc = piece ? 0 : ft_err_set(err, ENOMEM, "no memory");

	vmm_ram(vmm, &ram);
	for (uint64_t at = FIRMWARE; at < BYTES && !rc; at += PIECE) {
		for (unsigned i = 0; i < PIECE; i += 8)
			memcpy(piece + i, &(uint64_t){at + i + 1}, 8);
		if (process_vm_writev(ram.pid, &(struct iovec){piece, PIECE}, 1,
				      &(struct iovec){(void *)(uintptr_t)(ram.address + at), PIECE},
				      1, 0) != PIECE)
			rc = ft_err_set(err, errno, "filling RAM: %s", strerror(errno));
	}
	free(piece);
	return rc;
}

static int save(struct restore *r, struct vmm *vmm, struct ft_err *err)
{
	int done = eventfd(0, EFD_CLOEXEC);
	struct snapshot_config config = {.path = r->path, .jobs = 2, .done = on_done, .ctx = &done};
	struct pollfd p = {.fd = done, .events = POLLIN};
	struct snapshot_progress progress;
	struct snapshot *s;
	int rc = snapshot_begin(&config, vmm, &s, err);

	if (!rc) {
		if (poll(&p, 1, END_MS) == 0)
			snapshot_cancel(s, "takes too long");
		rc = snapshot_end(s, &progress, err);
	}
	close(done);
	return rc;
}

static int make(struct restore *r, struct ft_err *err)
{
	struct qemu_config c = config_of(r->b, "saved");
	struct vmm *vmm;
	int rc = qemu_start(&c, &vmm, err);

	if (rc)
		return rc;
	rc = fill(vmm, err);
	if (!rc)
		rc = options_read(qemu_of(vmm)->process.pid, &r->argv, err);
	if (!rc)
		rc = save(r, vmm, err);
	vmm_quit(vmm, false, 0);
	vmm_free(vmm);
	return rc;
}

/* ---- ours ---- */

static int resume(struct restore *r, struct vmm *vmm, int *done, struct lazy **lazy, double *ms,
		  struct ft_err *err)
{
	uint8_t *state = malloc(VMM_STATE_BYTES_MAX);
	uint64_t start = bench_now_ns();
	struct source source;
	struct vmm_ram ram;
	size_t len;
	int rc = source_open(r->path, &source, err);

	if (rc) {
		free(state);
		return rc;
	}
	vmm_ram(vmm, &ram);
	rc = source_state(&source, "qemu", state, &len, err);
	if (!rc)
		rc = source_empty(&ram, err);
	if (!rc)
		rc = lazy_begin(&source, &ram, on_done, done, lazy, err);
	if (!rc)
		rc = vmm_resume(vmm, state, len, err);
	*ms = bench_ms_since(start);
	source_close(&source);
	free(state);
	return rc;
}

static int ours(struct restore *r, double *ms, struct ft_err *err)
{
	struct qemu_config c = config_of(r->b, "lazy");
	int done = eventfd(0, EFD_CLOEXEC), rc;
	struct pollfd p = {.fd = done, .events = POLLIN};
	struct lazy *lazy = NULL;
	struct vmm *vmm;

	rc = qemu_arm(&c, &vmm, err);
	if (rc) {
		close(done);
		return rc;
	}
	rc = resume(r, vmm, &done, &lazy, ms, err);
	if (lazy) {
		if (rc || poll(&p, 1, END_MS) == 0)
			lazy_cancel(lazy);
		rc = lazy_end(lazy, rc ? NULL : err) ? -EIO : rc;
	}
	vmm_quit(vmm, false, 0);
	vmm_free(vmm);
	close(done);
	return rc;
}

/* ---- QEMU's ---- */

static bool begins(const char *text, const char *with)
{
	return !strncmp(text, with, strlen(with));
}

/* The same command line, but for what ties that QEMU to us. */
static void their_argv(struct restore *r, struct argv *argv, const char *monitor)
{
	argv_add(argv, "%s", direct_qemu10());
	for (unsigned i = 1; i < r->argv.n; i++) {
		const char *word = r->argv.v[i];

		if (begins(word, "{\"qom-type\":\"memory-backend-file\""))
			argv_add(argv, "memory-backend-memfd,id=ram0,size=1G,share=on");
		else if (begins(word, "socket,id=kemari-qmp"))
			argv_add(argv, "socket,id=kemari-qmp,path=%s,server=on,wait=off", monitor);
		else
			argv_add(argv, "%s", word);
	}
	argv_opt(argv, "-incoming", "defer");
}

static int wait_running(struct qmp *q, struct ft_err *err)
{
	uint64_t start = bench_now_ns();

	while (bench_ms_since(start) < END_MS) {
		const char *status;
		json_t *ret;
		bool runs;
		int rc = qmp_call_args(q, &ret, err, END_MS, "query-status", NULL);

		if (rc)
			return rc;
		status = json_string_value(json_object_get(ret, "status"));
		runs = status && !strcmp(status, "running");
		json_decref(ret);
		if (runs)
			return 0;
		bench_idle_ms(LOOK_MS);
	}
	return ft_err_set(err, ETIMEDOUT, "QEMU's own restore does not end");
}

static int load(struct restore *r, struct qmp *q, double *ms, struct ft_err *err)
{
	char uri[BENCH_PATH_MAX + 8];
	uint64_t start;
	int rc = qmp_call(q, NULL, err, "migrate-set-capabilities", "{s:[{s:s, s:b}, {s:s, s:b}]}",
			  "capabilities", "capability", "mapped-ram", "state", 1, "capability",
			  "multifd", "state", 1);

	snprintf(uri, sizeof uri, "file:%s", r->path);
	start = bench_now_ns();
	if (!rc)
		rc = qmp_call_args(q, NULL, err, END_MS, "migrate-incoming",
				   json_pack("{s:s}", "uri", uri));
	/* It does not answer while it reads. */
	if (!rc)
		rc = wait_running(q, err);
	*ms = bench_ms_since(start);
	return rc;
}

static int wait_monitor(const char *monitor, struct process *p, struct ft_err *err)
{
	uint64_t start = bench_now_ns();

	while (access(monitor, F_OK)) {
		if (process_ended(p, 0) || bench_ms_since(start) > START_MS)
			return ft_err_set(err, EIO, "QEMU 10 does not start");
		bench_idle_ms(LOOK_MS);
	}
	return 0;
}

static int theirs(struct restore *r, double *ms, struct ft_err *err)
{
	char monitor[BENCH_PATH_MAX], log[BENCH_PATH_MAX];
	struct argv argv = {0};
	struct process process;
	struct qmp qmp = {.fd = -1};
	int rc;

	snprintf(monitor, sizeof monitor, "%s/theirs.qmp", r->b->dir);
	snprintf(log, sizeof log, "%s/theirs.log", r->b->dir);
	unlink(monitor);
	their_argv(r, &argv, monitor);
	rc = process_spawn(&process, argv.v, NULL, 0, log, err);
	argv_free(&argv);
	if (rc)
		return rc;
	rc = wait_monitor(monitor, &process, err);
	if (!rc)
		rc = qmp_connect(&qmp, monitor, process.pidfd, START_MS, err);
	if (!rc)
		rc = load(r, &qmp, ms, err);
	qmp_close(&qmp);
	process_kill(&process);
	process_ended(&process, START_MS);
	process_close(&process);
	return rc;
}

int bench_restore(struct bench *b, struct ft_err *err)
{
	struct restore r = {.b = b};
	struct samples here = {0}, floor = {0};
	double ms = 0;
	int rc;

	if (!*direct_qemu10()) {
		ft_err_set(err, ENOENT, "no QEMU 10: tests/guest/qemu10 unpacks it");
		return BENCH_SKIPPED;
	}
	snprintf(r.path, sizeof r.path, "%s/big", b->dir);
	rc = make(&r, err);
	for (unsigned i = 0; i < (b->quick ? 1 : ROUNDS) && !rc; i++) {
		rc = ours(&r, &ms, err);
		if (!rc)
			samples_add(&here, ms);
		if (!rc)
			rc = theirs(&r, &ms, err);
		if (!rc)
			samples_add(&floor, ms);
	}
	if (!rc)
		bench_report_samples("restore-lazy", "ms", &here, &floor, BENCH_AT_MOST, REACH,
				     "1 GiB, to the first instruction; QEMU 10's own restore");
	unlink(r.path);
	argv_free(&r.argv);
	samples_free(&here);
	samples_free(&floor);
	return rc;
}
