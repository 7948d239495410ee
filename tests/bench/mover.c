// SPDX-License-Identifier: Apache-2.0
// Ours: the programs that operators run, asked by the same requests. A new target for each move;
// the one before has ended.
#include "mover.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host.h"
#include "tls.h"

#define GUEST	"mover"
#define ASK_MS	20000
#define MOVE_MS 60000
#define FILL_MS 60000
#define PORT	7100 /* and a new one each time: the one before may be in use for a while */

struct mover {
	struct bench *b;
	struct mover_kind kind;
	struct host host[2];
	unsigned active;
	pid_t frozen;
};

/* ---- the guest ---- */

static int type(const char *tty, const char *line, struct ft_err *err)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), rc = 0;

	snprintf(to.sun_path, sizeof to.sun_path, "%s", tty);
	if (connect(fd, (struct sockaddr *)&to, sizeof to) ||
	    dprintf(fd, "%s\n", line) != (int)strlen(line) + 1)
		rc = ft_err_set(err, errno, "%s: %s", tty, strerror(errno));
	/* QEMU's end reads it before it sees the close. */
	shutdown(fd, SHUT_WR);
	bench_idle_ms(50);
	close(fd);
	return rc;
}

static bool has(const char *path, const char *text)
{
	static char all[1 << 20];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, all, sizeof all - 1);

	if (fd >= 0)
		close(fd);
	all[n > 0 ? n : 0] = '\0';
	return strstr(all, text) != NULL;
}

int mover_load(const char *tty, const char *console, struct ft_err *err)
{
	uint64_t start = bench_now_ns();
	char line[160];
	int rc = guest_wait_ready(console, err);

	snprintf(line, sizeof line,
		 "dd if=/dev/urandom of=/fill bs=1M count=%d 2>/dev/null; %s; echo FIL''LED",
		 MOVER_FILL_MIB, MOVER_LOAD);
	if (!rc)
		rc = type(tty, line, err);
	while (!rc && !has(console, "FILLED")) {
		if (bench_ms_since(start) > FILL_MS)
			return ft_err_set(err, ETIMEDOUT, "the guest does not fill its memory");
		bench_idle_ms(20);
	}
	return rc;
}

/* ---- agents ---- */

/* Each move has a port of its own. */
static unsigned next_port = PORT;

static int write_file(struct mover *m, struct host *h, struct ft_err *err)
{
	const char *dir = m->b->dir, *binary = m->kind.binary;
	FILE *f = fopen(h->file, "we");

	if (!f)
		return ft_err_set(err, errno, "%s: %s", h->file, strerror(errno));
	fprintf(f,
		"name = \"" GUEST "\"\nmemory = \"256M\"\nkernel = \"%s\"\ninitrd = \"%s\"\n"
		"append = \"" GUEST_APPEND "\"\n"
		"console { log = \"%s\" socket = \"%s\" }\n"
		"ft { max_downtime_ms = %d }\n"
		"%s%s%s"
		"tls { ca = \"%s/pki/ca.pem\" cert = \"%s/pki/" TLS_NAME
		".pem\" key = \"%s/pki/" TLS_NAME ".key\" insecure = true }\n",
		m->b->kernel, m->b->initrd, h->console, h->tty, MOVER_DOWNTIME_MS,
		binary ? "qemu { binary = \"" : "", binary ? binary : "", binary ? "\" }\n" : "",
		dir, dir, dir);
	fclose(f);
	return 0;
}

int mover_start(struct bench *b, const struct mover_kind *kind, struct mover **out,
		struct ft_err *err)
{
	struct mover *m = calloc(1, sizeof *m);
	int rc = guest_available(b, err);
	char folder[16];

	assert(m);
	m->b = b;
	m->kind = *kind;
	*out = m;
	if (!rc)
		rc = tls_files_make(b, err);
	for (unsigned i = 0; i < 2 && !rc; i++) {
		struct host *h = &m->host[i];

		h->number = i;
		snprintf(folder, sizeof folder, "%s%u", kind->tag, i);
		rc = host_place(h, b, GUEST, kind->tag, folder, err);
		if (!rc)
			rc = write_file(m, h, err);
	}
	return rc ? rc : host_start(&m->host[0], NULL, err);
}

int mover_ready(struct mover *m, struct ft_err *err)
{
	return mover_load(m->host[0].tty, m->host[0].console, err);
}

static pid_t vmm_of(struct host *h)
{
	Ctl__Request r = CTL__REQUEST__INIT;
	Ctl__Reply *reply;
	pid_t pid;

	r.command = (char *)"status";
	if (host_ask(h, &r, &reply, ASK_MS, NULL))
		return 0;
	pid = (pid_t)reply->status->vmm->pid;
	ctl__reply__free_unpacked(reply, NULL);
	return pid;
}

void mover_freeze(struct mover *m, bool on)
{
	if (!m)
		return;
	if (on)
		m->frozen = vmm_of(&m->host[m->active]);
	if (m->frozen > 0)
		kill(m->frozen, on ? SIGSTOP : SIGCONT);
}

/* ---- a move ---- */

/* stopped_us: by the word of the VMM that the guest left. Both have the same clock. */
static int target_figures(struct host *h, uint64_t stopped_us, struct move *move,
			  struct ft_err *err)
{
	Ctl__Request r = CTL__REQUEST__INIT;
	Ctl__Reply *reply;
	int rc;

	r.command = (char *)"status";
	rc = host_ask(h, &r, &reply, ASK_MS, err);
	if (rc)
		return rc;
	move->downtime_ms = ((double)reply->status->vmm->resumed_us - (double)stopped_us) / 1e3;
	if (reply->status->migration && reply->status->migration->fault_us) {
		const Ctl__Migration *g = reply->status->migration;

		move->fault_p50_us = (double)g->fault_us->p50;
		move->fault_p99_us = (double)g->fault_us->p99;
		move->faults = g->faults;
	}
	ctl__reply__free_unpacked(reply, NULL);
	return 0;
}

int mover_move(struct mover *m, struct move *move, struct ft_err *err)
{
	struct host *from = &m->host[m->active], *to = &m->host[!m->active];
	Ctl__Request r = CTL__REQUEST__INIT;
	Ctl__Reply *reply;
	uint64_t start, stopped_us;
	char uri[48];
	int rc, status;

	snprintf(uri, sizeof uri, "%s:127.0.0.1:%u", move->tls ? "tls" : "tcp", next_port++);
	rc = host_start(to, uri, err);
	if (rc)
		return rc;
	r.command = (char *)"migrate";
	r.uri = uri;
	r.postcopy = move->postcopy;
	start = bench_now_ns();
	rc = host_ask(from, &r, &reply, MOVE_MS, err);
	move->total_ms = bench_ms_since(start);
	if (rc)
		return rc;
	stopped_us = reply->status->vmm->stopped_us;
	ctl__reply__free_unpacked(reply, NULL);
	waitpid(from->agent, &status, 0);
	from->agent = 0;
	m->active = !m->active;
	return target_figures(to, stopped_us, move, err);
}

void mover_end(struct mover *m)
{
	if (!m)
		return;
	for (unsigned i = 0; i < 2; i++) {
		if (m->host[i].agent <= 0)
			continue;
		kill(m->host[i].agent, SIGTERM);
		bench_idle_ms(20);
		kill(m->host[i].agent, SIGKILL);
		waitpid(m->host[i].agent, NULL, 0);
	}
	free(m);
}
