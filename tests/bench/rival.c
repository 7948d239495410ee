// SPDX-License-Identifier: Apache-2.0
// QEMU's own migration: the same command line but for what waits at the other end, the same load,
// over the same loopback. The guest stands still from the source's event STOP to the target's
// RESUME. How long a demanded page takes is in its traces: from the request of the fault thread to
// the page's placement.
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "mover.h"
#include "tls.h"
#include "vmm-glue/qemu/internal.h"

#define MOVE_MS	  60000
#define RESUME_MS 10000
#define LOOK_MS	  1
#define PENDING	  256 /* demanded pages at a time */

struct end {
	struct process process;
	struct qmp qmp;
	char console[BENCH_PATH_MAX], tty[BENCH_PATH_MAX], log[BENCH_PATH_MAX],
		qmp_path[BENCH_PATH_MAX];
	uint64_t stop_us, resume_us;
	bool creds;
};

struct rival {
	struct bench *b;
	struct mover_kind kind;
	struct end *at; /* has the guest */
	unsigned ends;	/* so far */
};

static void on_event(void *ctx, const char *name, const json_t *event)
{
	struct end *e = ctx;
	const json_t *t = json_object_get(event, "timestamp");
	uint64_t us = (uint64_t)json_integer_value(json_object_get(t, "seconds")) * 1000000 +
		      (uint64_t)json_integer_value(json_object_get(t, "microseconds"));

	if (!strcmp(name, "STOP"))
		e->stop_us = us;
	else if (!strcmp(name, "RESUME"))
		e->resume_us = us;
}

/* ---- ends ---- */

static int launch(struct rival *r, bool waits, struct end **out, struct ft_err *err)
{
	struct end *e = calloc(1, sizeof *e);
	struct qemu_config config = {.name = "rival",
				     .run_dir = r->b->dir,
				     .binary = r->kind.binary,
				     .memory_bytes = GUEST_MEMORY,
				     .cpus = 1,
				     .kernel = r->b->kernel,
				     .initrd = r->b->initrd,
				     .append = GUEST_APPEND};
	static const char *const args[] = {"-msg", "timestamp=on", NULL}; /* in its traces, too */
	struct argv argv = {0};
	int rc, fd;

	assert(e);
	*out = e;
	e->process.pidfd = e->qmp.fd = -1;
	snprintf(e->console, sizeof e->console, "%s/%s%u.console", r->b->dir, r->kind.tag, r->ends);
	snprintf(e->tty, sizeof e->tty, "%s/%s%u.tty", r->b->dir, r->kind.tag, r->ends);
	snprintf(e->log, sizeof e->log, "%s/%s%u.log", r->b->dir, r->kind.tag, r->ends);
	snprintf(e->qmp_path, sizeof e->qmp_path, "%s/%s%u.qmp", r->b->dir, r->kind.tag, r->ends);
	r->ends++;
	config.args = args;
	config.console = e->tty;
	config.console_log = e->console;
	rc = qemu_config_argv(&config, waits ? QEMU_WAIT : QEMU_RUN, &argv, err);
	fd = rc ? rc : qemu_memfd("rival", GUEST_MEMORY, false, err);
	if (fd >= 0) {
		rc = qemu_launch(&e->process, &e->qmp, &argv, &fd, 1, e->qmp_path, e->log, err);
		close(fd);
	} else {
		rc = fd;
	}
	argv_free(&argv);
	e->qmp.event = on_event;
	e->qmp.ctx = e;
	return rc;
}

static void end_end(struct end *e)
{
	if (!e)
		return;
	if (e->process.pidfd >= 0) {
		process_kill(&e->process);
		process_ended(&e->process, RESUME_MS);
		process_close(&e->process);
	}
	qmp_close(&e->qmp);
	free(e);
}

int rival_start(struct bench *b, const struct mover_kind *kind, struct rival **out,
		struct ft_err *err)
{
	struct rival *r = calloc(1, sizeof *r);
	int rc = guest_available(b, err);

	assert(r);
	r->b = b;
	r->kind = *kind;
	*out = r;
	return rc ? rc : launch(r, false, &r->at, err);
}

int rival_ready(struct rival *r, struct ft_err *err)
{
	return mover_load(r->at->tty, r->at->console, err);
}

void rival_freeze(struct rival *r, bool on)
{
	if (r)
		(void)kill(r->at->process.pid, on ? SIGSTOP : SIGCONT);
}

void rival_end(struct rival *r)
{
	if (!r)
		return;
	end_end(r->at);
	free(r);
}

/* ---- settings ---- */

/* What QEMU expects in a folder of certificates. */
static int make_creds(struct rival *r, struct end *e, bool server, struct ft_err *err)
{
	static const char script[] = "mkdir -p %s/creds && cd %s/creds && cp ../pki/ca.pem "
				     "ca-cert.pem && for e in client server; do "
				     "cp ../pki/" TLS_NAME ".pem $e-cert.pem && cp ../pki/" TLS_NAME
				     ".key $e-key.pem; done";
	char line[1024], dir[BENCH_PATH_MAX];

	if (e->creds)
		return 0;
	snprintf(line, sizeof line, script, r->b->dir, r->b->dir);
	snprintf(dir, sizeof dir, "%s/creds", r->b->dir);
	if (tls_files_make(r->b, err))
		return -err->code;
	if (system(line))
		return ft_err_set(err, EIO, "certificates for QEMU cannot be copied");
	e->creds = true;
	/* QEMU 10 wants a right in certificates that TLS 1.3 has no use for. */
	return qmp_call(&e->qmp, NULL, err, "object-add", "{s:s, s:s, s:s, s:s, s:b, s:b}",
			"qom-type", "tls-creds-x509", "id", server ? "tls-in" : "tls-out", "dir",
			dir, "endpoint", server ? "server" : "client", "verify-peer", 1,
			"sanity-check", 0);
}

static int set(struct rival *r, struct end *e, const struct move *move, bool server,
	       struct ft_err *err)
{
	int rc = qmp_call(&e->qmp, NULL, err, "migrate-set-capabilities",
			  "{s:[{s:s, s:b}, {s:s, s:b}]}", "capabilities", "capability", "multifd",
			  "state", move->multifd, "capability", "postcopy-ram", "state",
			  move->postcopy);

	if (!rc && move->preempt)
		rc = qmp_call(&e->qmp, NULL, err, "migrate-set-capabilities", "{s:[{s:s, s:b}]}",
			      "capabilities", "capability", "postcopy-preempt", "state", 1);
	if (!rc && move->tls) {
		e->creds = false; /* an end is a server once and a client once */
		rc = make_creds(r, e, server, err);
	}
	if (!rc && server)
		return qmp_call(&e->qmp, NULL, err, "migrate-set-parameters", "{s:s}", "tls-creds",
				move->tls ? "tls-in" : "");
	return rc ? rc
		  : qmp_call(&e->qmp, NULL, err, "migrate-set-parameters", "{s:s, s:s, s:I, s:i}",
			     "tls-creds", move->tls ? "tls-out" : "", "tls-hostname",
			     move->tls ? TLS_NAME : "", "max-bandwidth",
			     (json_int_t)1 << (move->postcopy ? 16 : 34), "downtime-limit",
			     MOVER_DOWNTIME_MS);
}

static int trace(struct end *e, struct ft_err *err)
{
	static const char *const names[] = {"postcopy_ram_fault_thread_request",
					    "postcopy_place_page", "postcopy_place_page_zero"};
	int rc = 0;

	for (unsigned i = 0; i < 3 && !rc; i++)
		rc = qmp_call(&e->qmp, NULL, err, "trace-event-set-state", "{s:s, s:b}", "name",
			      names[i], "enable", 1);
	return rc;
}

/* 4711@1732273046.123456:postcopy_place_page host=0x7f... */
static void read_trace(const char *path, struct samples *faults)
{
	struct {
		uint64_t page;
		double at;
	} pending[PENDING];
	unsigned n = 0;
	char line[512];
	FILE *f = fopen(path, "re");

	while (f && fgets(line, sizeof line, f)) {
		const char *at = strchr(line, '@'), *name = strstr(line, ":postcopy_"),
			   *hex = strstr(line, "0x");
		const char *hva = strstr(line, "HVA=");
		uint64_t page;
		double t;

		if (!at || !name || !hex || sscanf(at + 1, "%lf", &t) != 1)
			continue;
		page = strtoull(hva ? hva + 4 : hex, NULL, 16) & ~UINT64_C(4095);
		if (!strncmp(name, ":postcopy_ram_fault", 19)) {
			if (n < PENDING) {
				pending[n].page = page;
				pending[n++].at = t;
			}
			continue;
		}
		for (unsigned i = 0; i < n; i++) {
			if (pending[i].page != page)
				continue;
			samples_add(faults, (t - pending[i].at) * 1e6);
			pending[i] = pending[--n];
			break;
		}
	}
	if (f)
		fclose(f);
}

/* ---- a move ---- */

static int free_port(void)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof in;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (bind(fd, (struct sockaddr *)&in, sizeof in) ||
	    getsockname(fd, (struct sockaddr *)&in, &len))
		in.sin_port = 0;
	close(fd);
	return ntohs(in.sin_port);
}

/* "" unless it is there. */
static int status_of(struct end *e, char status[32], struct ft_err *err)
{
	const char *text;
	json_t *ret;
	int rc = qmp_call(&e->qmp, &ret, err, "query-migrate", NULL);

	if (rc)
		return rc;
	text = json_string_value(json_object_get(ret, "status"));
	snprintf(status, 32, "%s", text ? text : "");
	json_decref(ret);
	return 0;
}

static int wait_moved(struct end *from, struct ft_err *err)
{
	uint64_t start = bench_now_ns();
	char status[32];

	while (bench_ms_since(start) < MOVE_MS) {
		int rc = status_of(from, status, err);

		if (rc)
			return rc;
		if (!strcmp(status, "completed"))
			return 0;
		if (!strcmp(status, "failed"))
			return ft_err_set(err, EIO, "QEMU's migration failed");
		bench_idle_ms(LOOK_MS);
	}
	return ft_err_set(err, ETIMEDOUT, "QEMU's migration does not end");
}

/* Nearly nothing moves before: its bandwidth is a trickle. */
static int switch_over(struct end *from, struct ft_err *err)
{
	char status[32] = "";

	for (unsigned i = 0; i < 2000 && (!*status || !strcmp(status, "setup")); i++) {
		if (status_of(from, status, err))
			return -err->code;
		bench_idle_ms(LOOK_MS);
	}
	return qmp_call(&from->qmp, NULL, err, "migrate-start-postcopy", NULL);
}

static int run(struct rival *r, struct end *to, struct move *move, struct ft_err *err)
{
	struct end *from = r->at;
	uint64_t start;
	char uri[48];
	int rc = set(r, to, move, true, err);

	if (!rc)
		rc = set(r, from, move, false, err);
	if (!rc && move->traced)
		rc = trace(to, err);
	snprintf(uri, sizeof uri, "tcp:127.0.0.1:%d", free_port());
	if (!rc)
		rc = qmp_call(&to->qmp, NULL, err, "migrate-incoming", "{s:s}", "uri", uri);
	from->stop_us = to->resume_us = 0;
	start = bench_now_ns();
	if (!rc)
		rc = qmp_call(&from->qmp, NULL, err, "migrate", "{s:s}", "uri", uri);
	if (!rc && move->postcopy) {
		rc = switch_over(from, err);
		start = bench_now_ns();
	}
	if (!rc)
		rc = wait_moved(from, err);
	move->total_ms = bench_ms_since(start);
	for (start = bench_now_ns(); !rc && !to->resume_us; bench_idle_ms(LOOK_MS)) {
		(void)qmp_poll(&from->qmp);
		rc = qmp_poll(&to->qmp);
		if (bench_ms_since(start) > RESUME_MS)
			rc = ft_err_set(err, ETIMEDOUT, "QEMU's target does not run");
	}
	(void)qmp_poll(&from->qmp);
	move->downtime_ms = ((double)to->resume_us - (double)from->stop_us) / 1e3;
	return rc;
}

int rival_move(struct rival *r, struct move *move, struct ft_err *err)
{
	struct end *to = NULL;
	int rc = launch(r, true, &to, err);

	if (!rc)
		rc = run(r, to, move, err);
	if (rc) {
		end_end(to);
		return rc;
	}
	if (move->traced)
		read_trace(to->log, &move->faults_us);
	end_end(r->at);
	r->at = to;
	return 0;
}
