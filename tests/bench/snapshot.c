// SPDX-License-Identifier: Apache-2.0
// A snapshot of a guest that writes its memory: how long it takes, and how long at worst a client
// waits for the guest meanwhile. Floor: QEMU's own background-snapshot of the same guest, with the
// same load, to the same filesystem.
#include "bench.h"

#include <errno.h>
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
#define JOBS	    2

struct side {
	struct samples total, stall, size;
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

static int type(struct bench *b, const char *line, struct ft_err *err)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), rc = 0;
	size_t n = strlen(line);

	snprintf(to.sun_path, sizeof to.sun_path, "%s/pc.tty", b->dir);
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

static int take_ours(struct bench *b, const char *path, struct ft_err *err)
{
	int done = eventfd(0, EFD_CLOEXEC);
	struct snapshot_config config = {.path = path, .jobs = JOBS, .done = on_done, .ctx = &done};
	struct pollfd p = {.fd = done, .events = POLLIN};
	struct snapshot_progress progress;
	struct snapshot *s;
	int rc = snapshot_begin(&config, b->pc->vmm, &s, err);

	if (!rc) {
		if (poll(&p, 1, SNAPSHOT_MS) == 0)
			snapshot_cancel(s, "takes too long");
		rc = snapshot_end(s, &progress, err);
	}
	close(done);
	return rc;
}

/* ---- QEMU's ---- */

static int set_capability(struct qmp *q, bool on, struct ft_err *err)
{
	return qmp_call(q, NULL, err, "migrate-set-capabilities", "{s:[{s:s, s:b}]}",
			"capabilities", "capability", "background-snapshot", "state", on);
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
			return good ? 0 : ft_err_set(err, EIO, "QEMU's background-snapshot failed");
		bench_idle_ms(LOOK_MS);
	}
	return ft_err_set(err, ETIMEDOUT, "QEMU's background-snapshot does not end");
}

static int take_qemus(struct bench *b, const char *path, struct ft_err *err)
{
	struct qmp *q = &qemu_of(b->pc->vmm)->qmp;
	char uri[BENCH_PATH_MAX + 16];
	int rc;

	snprintf(uri, sizeof uri, "exec:cat > %s", path);
	rc = qmp_call(q, NULL, err, "migrate-set-parameters", "{s:I}", "max-bandwidth",
		      (json_int_t)1 << 34);
	if (!rc)
		rc = set_capability(q, true, err);
	if (!rc)
		rc = qmp_call(q, NULL, err, "migrate", "{s:s}", "uri", uri);
	if (!rc)
		rc = wait_migrated(q, err);
	(void)set_capability(q, false, NULL);
	return rc;
}

/* ---- both ---- */

typedef int take_fn(struct bench *b, const char *path, struct ft_err *err);

static int measure(struct bench *b, take_fn *take, struct side *side, struct ft_err *err)
{
	struct client c = {.fd = net_udp(b->pc->ns, GUEST_UDP_ECHO, err)};
	char path[BENCH_PATH_MAX];
	struct stat st = {0};
	uint64_t start;
	int rc;

	if (c.fd < 0)
		return c.fd;
	snprintf(path, sizeof path, "%s/snapshot", b->dir);
	unlink(path);
	if (pthread_create(&c.thread, NULL, ask, &c)) {
		close(c.fd);
		return ft_err_set(err, EAGAIN, "a thread");
	}
	direct_idle(b->pc, GAP_MS);
	start = bench_now_ns();
	rc = take(b, path, err);
	if (!rc)
		samples_add(&side->total, bench_ms_since(start));
	c.stop = true;
	pthread_join(c.thread, NULL);
	close(c.fd);
	if (!rc && c.rc) {
		*err = c.err;
		rc = c.rc;
	}
	if (!rc && !stat(path, &st)) {
		samples_add(&side->stall, c.longest_ms);
		samples_add(&side->size, (double)st.st_blocks * 512 / (1 << 20));
	}
	unlink(path);
	direct_idle(b->pc, GAP_MS);
	return rc;
}

static void side_free(struct side *s)
{
	samples_free(&s->total);
	samples_free(&s->stall);
	samples_free(&s->size);
}

int bench_snapshot(struct bench *b, struct ft_err *err)
{
	struct side ours = {0}, qemus = {0};
	int rc = direct_pc(b, err);

	if (rc)
		return rc;
	/* One userfaultfd an area: the tracker's gives way. */
	vmm_track_stop(b->pc->vmm);
	rc = type(b, LOAD, err);
	direct_idle(b->pc, SETTLE_MS);
	for (unsigned i = 0; i < (b->quick ? 3 : 10) && !rc; i++) {
		rc = measure(b, take_ours, &ours, err);
		if (!rc)
			rc = measure(b, take_qemus, &qemus, err);
	}
	(void)type(b, GUEST_END("dirty"), NULL);
	if (!rc) {
		bench_report_samples("snapshot", "ms", &ours.total, &qemus.total, BENCH_AT_MOST,
				     0.7, "256 MiB, 10,000 pages/s; QEMU's background-snapshot");
		bench_report_samples("snapshot-stall", "ms", &ours.stall, &qemus.stall,
				     BENCH_AT_MOST, 1, "longest UDP echo meanwhile");
		bench_report_samples("snapshot-size", "MiB", &ours.size, &qemus.size, BENCH_AT_MOST,
				     1.02, "on the disk");
	}
	side_free(&ours);
	side_free(&qemus);
	if (vmm_track_start(b->pc->vmm, rc ? NULL : err) && !rc)
		rc = -err->code;
	return rc;
}
