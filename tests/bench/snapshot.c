// SPDX-License-Identifier: Apache-2.0
// A snapshot of a guest that writes its memory: how long it takes, and how long at worst a client
// waits for the guest meanwhile. Floors: QEMU's own background-snapshot, and QEMU 10's mapped-ram,
// of the same guest, with the same load, to the same filesystem.
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "direct.h"
#include "vmm-glue/qemu/internal.h"
#include "vmm-glue/snapshot/snapshot.h"

#define LOAD	    "payload dirty 10000 100"
#define SETTLE_MS   1500 /* until the load has written most of its memory once */
#define GAP_MS	    100
#define SNAPSHOT_MS 60000
#define LOOK_MS	    2
#define ANSWER_MS   5000

#define BEYOND_MS 10 /* that a client may wait longer than the guest's pause */

struct side {
	struct samples total, stall, size, beyond, quiet;
};

/* A client that asks without a pause, and what it waited at most. */
struct client {
	int fd;
	atomic_bool stop;
	pthread_t thread;
	double longest_ms;
	int rc;
	struct ft_err err;
};

static void *ask(void *ctx)
{
	struct client *c = ctx;
	double ms;

	/* A question that meets a stopped guest may be lost, so it is asked again. */
	while (!c->stop && !c->rc) {
		c->rc = net_first_answer(c->fd, bench_now_ns(), ANSWER_MS, &ms, &c->err);
		if (!c->rc && ms > c->longest_ms)
			c->longest_ms = ms;
	}
	return NULL;
}

static int type(struct bench *b, const struct direct *d, const char *line, struct ft_err *err)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), rc = 0;
	size_t n = strlen(line);

	snprintf(to.sun_path, sizeof to.sun_path, "%s/%s.tty", b->dir, d == b->ten ? "ten" : "pc");
	if (connect(fd, (struct sockaddr *)&to, sizeof to) ||
	    send(fd, line, n, MSG_NOSIGNAL) != (ssize_t)n || send(fd, "\n", 1, MSG_NOSIGNAL) != 1)
		rc = ft_err_set(err, errno, "guest's console: %s", strerror(errno));
	close(fd);
	return rc;
}

/* ---- ours ---- */

static void on_done(void *ctx)
{
	eventfd_write(*(int *)ctx, 1);
}

static int take_ours(struct direct *d, const char *path, double *pause_ms, struct ft_err *err)
{
	int done = eventfd(0, EFD_CLOEXEC);
	struct snapshot_config config = {
		.path = path, .jobs = snapshot_jobs(1), .done = on_done, .ctx = &done};
	struct pollfd p = {.fd = done, .events = POLLIN};
	struct snapshot_progress progress;
	struct snapshot *s;
	int rc = snapshot_begin(&config, d->vmm, &s, err);

	if (!rc) {
		if (poll(&p, 1, SNAPSHOT_MS) == 0)
			snapshot_cancel(s, "takes too long");
		rc = snapshot_end(s, &progress, err);
		*pause_ms = (double)progress.pause_us / 1e3;
	}
	close(done);
	return rc;
}

/* ---- QEMU's ---- */

static int set_capability(struct qmp *q, const char *name, bool on, struct ft_err *err)
{
	return qmp_call(q, NULL, err, "migrate-set-capabilities", "{s:[{s:s, s:b}]}",
			"capabilities", "capability", name, "state", on);
}

static int wait_migrated(struct qmp *q, struct ft_err *err)
{
	uint64_t start = bench_now_ns();

	while (bench_ms_since(start) < SNAPSHOT_MS) {
		const char *status;
		json_t *ret;
		bool over, good;
		int rc = qmp_call(q, &ret, err, "query-migrate", NULL);

		if (rc)
			return rc;
		status = json_string_value(json_object_get(ret, "status"));
		good = status && !strcmp(status, "completed");
		over = good || (status && !strcmp(status, "failed"));
		json_decref(ret);
		if (over)
			return good ? 0 : ft_err_set(err, EIO, "QEMU's own snapshot failed");
		bench_idle_ms(LOOK_MS);
	}
	return ft_err_set(err, ETIMEDOUT, "QEMU's own snapshot does not end");
}

static int unlimited(struct qmp *q, struct ft_err *err)
{
	return qmp_call(q, NULL, err, "migrate-set-parameters", "{s:I}", "max-bandwidth",
			(json_int_t)1 << 34);
}

/* A QEMU that may start no program writes to a descriptor. */
static int migrate_to(struct qmp *q, const char *path, struct ft_err *err)
{
	int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600), rc;

	if (fd < 0)
		return ft_err_set(err, errno, "%s: %s", path, strerror(errno));
	qmp_pass_fd(q, fd);
	rc = qmp_call(q, NULL, err, "getfd", "{s:s}", "fdname", "bench");
	if (!rc)
		rc = qmp_call(q, NULL, err, "migrate", "{s:s}", "uri", "fd:bench");
	close(fd);
	return rc ? rc : wait_migrated(q, err);
}

static int take_background(struct direct *d, const char *path, double *pause_ms, struct ft_err *err)
{
	struct qmp *q = &qemu_of(d->vmm)->qmp;
	int rc = unlimited(q, err);

	*pause_ms = 0;
	if (!rc)
		rc = set_capability(q, "background-snapshot", true, err);
	if (!rc)
		rc = migrate_to(q, path, err);
	(void)set_capability(q, "background-snapshot", false, NULL);
	return rc;
}

/* With multifd, its quickest way. The guest stands still at the end, and is let go again. */
static int take_mapped(struct direct *d, const char *path, double *pause_ms, struct ft_err *err)
{
	struct qmp *q = &qemu_of(d->vmm)->qmp;
	char uri[BENCH_PATH_MAX + 8];
	int rc = unlimited(q, err);

	*pause_ms = 0;
	snprintf(uri, sizeof uri, "file:%s", path);
	if (!rc)
		rc = set_capability(q, "mapped-ram", true, err);
	if (!rc)
		rc = set_capability(q, "multifd", true, err);
	if (!rc)
		rc = qmp_call(q, NULL, err, "migrate", "{s:s}", "uri", uri);
	if (!rc)
		rc = wait_migrated(q, err);
	if (!rc)
		rc = qmp_call(q, NULL, err, "cont", NULL);
	(void)set_capability(q, "multifd", false, NULL);
	(void)set_capability(q, "mapped-ram", false, NULL);
	return rc;
}

/* ---- both ---- */

typedef int take_fn(struct direct *d, const char *path, double *pause_ms, struct ft_err *err);

static int client_start(struct client *c, struct direct *d, struct ft_err *err)
{
	*c = (struct client){.fd = net_udp(d->ns, GUEST_UDP_ECHO, err)};
	if (c->fd < 0)
		return c->fd;
	if (!pthread_create(&c->thread, NULL, ask, c))
		return 0;
	close(c->fd);
	return ft_err_set(err, EAGAIN, "a thread");
}

static int client_end(struct client *c, struct ft_err *err)
{
	c->stop = true;
	pthread_join(c->thread, NULL);
	close(c->fd);
	if (c->rc)
		*err = c->err;
	return c->rc;
}

/* What a client waits at worst in so much time with nothing going on. */
static int measure_quiet(struct direct *d, double ms, struct side *side, struct ft_err *err)
{
	struct client c;
	int rc = client_start(&c, d, err);

	if (rc)
		return rc;
	direct_idle(d, GAP_MS + (unsigned)ms);
	rc = client_end(&c, err);
	if (!rc)
		samples_add(&side->quiet, c.longest_ms);
	return rc;
}

static int measure(struct bench *b, struct direct *d, take_fn *take, struct side *side,
		   struct ft_err *err)
{
	char path[BENCH_PATH_MAX];
	struct stat st = {0};
	double pause_ms = 0, total_ms;
	struct client c;
	uint64_t start;
	int rc, waited;

	snprintf(path, sizeof path, "%s/snapshot", b->dir);
	unlink(path);
	rc = client_start(&c, d, err);
	if (rc)
		return rc;
	direct_idle(d, GAP_MS);
	start = bench_now_ns();
	rc = take(d, path, &pause_ms, err);
	total_ms = bench_ms_since(start);
	waited = client_end(&c, rc ? &(struct ft_err){0} : err);
	if (rc || waited)
		return rc ? rc : waited;
	samples_add(&side->total, total_ms);
	if (!stat(path, &st)) {
		samples_add(&side->stall, c.longest_ms);
		samples_add(&side->beyond, c.longest_ms - pause_ms);
		samples_add(&side->size, (double)st.st_blocks * 512 / (1 << 20));
	}
	unlink(path);
	return measure_quiet(d, total_ms, side, err);
}

static void side_free(struct side *s)
{
	samples_free(&s->total);
	samples_free(&s->stall);
	samples_free(&s->size);
	samples_free(&s->beyond);
	samples_free(&s->quiet);
}

/* In turn, while the guest writes. */
static int compare(struct bench *b, struct direct *d, take_fn *qemus, struct side *here,
		   struct side *there, struct ft_err *err)
{
	int rc;

	/* One userfaultfd an area: the tracker's gives way. */
	vmm_track_stop(d->vmm);
	rc = type(b, d, LOAD, err);
	direct_idle(d, SETTLE_MS);
	for (unsigned i = 0; i < (b->quick ? 3 : 10) && !rc; i++) {
		rc = measure(b, d, take_ours, here, err);
		if (!rc)
			rc = measure(b, d, qemus, there, err);
	}
	(void)type(b, d, GUEST_END("dirty"), NULL);
	if (vmm_track_start(d->vmm, rc ? NULL : err) && !rc)
		rc = -err->code;
	return rc;
}

int bench_snapshot(struct bench *b, struct ft_err *err)
{
	struct side here = {0}, there = {0};
	int rc = direct_pc(b, err);

	if (!rc)
		rc = compare(b, b->pc, take_background, &here, &there, err);
	if (!rc) {
		bench_report_samples("snapshot", "ms", &here.total, &there.total, BENCH_AT_MOST,
				     0.7, "256 MiB, 10,000 pages/s; QEMU's background-snapshot");
		bench_report_samples("snapshot-stall", "ms", &here.stall, &there.stall,
				     BENCH_AT_MOST, 1, "longest UDP echo meanwhile");
		bench_report_samples("snapshot-size", "MiB", &here.size, &there.size, BENCH_AT_MOST,
				     1.02, "on the disk");
		bench_report_samples("snapshot-beyond", "ms", &here.beyond, &here.quiet, BENCH_PLUS,
				     BEYOND_MS, "that less the pause; the same time without");
	}
	side_free(&here);
	side_free(&there);
	return rc;
}

int bench_mapped_ram(struct bench *b, struct ft_err *err)
{
	struct side here = {0}, there = {0};
	int rc = direct_ten(b, err);

	if (!rc)
		rc = compare(b, b->ten, take_mapped, &here, &there, err);
	if (!rc) {
		bench_report_samples("mapped-ram-size", "MiB", &here.size, &there.size,
				     BENCH_AT_MOST, 1, "on the disk; QEMU 10's, with multifd");
	}
	side_free(&here);
	side_free(&there);
	return rc;
}
