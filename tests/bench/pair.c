// SPDX-License-Identifier: Apache-2.0
// The pair is built from the very programs that operators run, and asked by the same requests.
#include "pair.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
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

#define GUEST	   "bench"
#define PORT	   7000
#define PROTECT_MS 60000
#define ASK_MS	   15000
#define UP_MS	   3000

struct pair {
	struct bench *b;
	unsigned serial; /* how many there were before in this run */
	struct host host[2];
	unsigned active; /* which has the guest */
	int switch_ns, client_ns;
	bool ready, skipped;
	struct ft_err broken; /* why it could not be made */
};

static struct host *active(struct pair *p)
{
	return &p->host[p->active];
}

static struct host *other(struct pair *p)
{
	return &p->host[!p->active];
}

int pair_client(const struct pair *p)
{
	return p->client_ns;
}

/* ---- network ---- */

static int host_network(struct pair *p, struct host *h, struct ft_err *err)
{
	char port[16];
	int rc;

	h->ns = net_new(err);
	if (h->ns < 0)
		return h->ns;
	snprintf(port, sizeof port, "host%u", h->number);
	rc = net_cable(h->ns, "uplink", p->switch_ns, port, err);
	if (!rc)
		rc = net_run(h->ns, err,
			     "ip link set lo up && ip link add br0 type bridge forward_delay 0 && "
			     "ip link set br0 up && ip link set uplink master br0 up");
	return rc ? rc : net_run(p->switch_ns, err, "ip link set %s master br0 up", port);
}

static int make_network(struct pair *p, struct ft_err *err)
{
	int rc;

	p->switch_ns = net_new(err);
	p->client_ns = p->switch_ns < 0 ? -1 : net_new(err);
	if (p->client_ns < 0)
		return -err->code;
	rc = net_run(p->switch_ns, err,
		     "ip link add br0 type bridge forward_delay 0 && ip link set br0 up");
	if (!rc)
		rc = net_cable(p->client_ns, "eth0", p->switch_ns, "client", err);
	if (!rc)
		rc = net_run(p->switch_ns, err, "ip link set client master br0 up");
	if (!rc)
		rc = net_run(p->client_ns, err,
			     "ip addr add " CLIENT_ADDRESS " dev eth0 && ip link set eth0 up");
	for (unsigned i = 0; i < 2 && !rc; i++)
		rc = host_network(p, &p->host[i], err);
	if (!rc)
		rc = net_cable(p->host[0].ns, "peer", p->host[1].ns, "peer", err);
	for (unsigned i = 0; i < 2 && !rc; i++)
		rc = net_run(p->host[i].ns, err,
			     "ip addr add 10.8.0.%u/24 dev peer && ip link set peer up", i + 1);
	return rc;
}

/* ---- agents ---- */

static int write_file(struct pair *p, struct host *h, struct ft_err *err)
{
	const char *dir = p->b->dir;
	FILE *f = fopen(h->file, "we");

	if (!f)
		return ft_err_set(err, errno, "%s: %s", h->file, strerror(errno));
	fprintf(f,
		"name = \"" GUEST "\"\nmemory = \"256M\"\nkernel = \"%s\"\ninitrd = \"%s\"\n"
		"append = \"" GUEST_APPEND "\"\n"
		"disk root { image = \"%s/disk.img\" size = \"128M\" }\n"
		"nic net0 { mac = \"52:54:00:12:34:56\" attach = \"bridge:br0\" }\n"
		"console { log = \"%s\" socket = \"%s\" }\n"
		"ft { trigger = \"both\" interval_ms = 100 takeover_ms = %d }\n"
		"tls { ca = \"%s/pki/ca.pem\" cert = \"%s/pki/" TLS_NAME
		".pem\" key = \"%s/pki/" TLS_NAME ".key\" }\n"
		"arbiter { type = \"none\" survivor = \"standby\" }\n",
		p->b->kernel, p->b->initrd, h->run_dir, h->console, h->tty, PAIR_TAKEOVER_MS, dir,
		dir, dir);
	fclose(f);
	return 0;
}

static int ask(struct host *h, const char *command, const char *argument, unsigned within_ms,
	       Ctl__Reply **reply, struct ft_err *err)
{
	Ctl__Request request = CTL__REQUEST__INIT;

	request.command = (char *)(uintptr_t)command;
	if (!strcmp(command, "wait"))
		request.state = (char *)(uintptr_t)argument;
	else if (argument)
		request.uri = (char *)(uintptr_t)argument;
	request.timeout_ms = within_ms;
	return host_ask(h, &request, reply, within_ms, err);
}

static int tell(struct host *h, const char *command, const char *argument, unsigned within_ms,
		struct ft_err *err)
{
	Ctl__Reply *reply;
	int rc = ask(h, command, argument, within_ms, &reply, err);

	if (!rc)
		ctl__reply__free_unpacked(reply, NULL);
	return rc;
}

static int start_standby(struct host *h, struct ft_err *err)
{
	char uri[48];

	snprintf(uri, sizeof uri, "kemari:tls:10.8.0.%u:%d", h->number + 1, PORT);
	return host_start(h, uri, err);
}

/* ---- up ---- */

static int start_pair(struct pair *p, struct ft_err *err)
{
	int rc = tls_files_make(p->b, err);
	char folder[32];

	for (unsigned i = 0; i < 2 && !rc; i++) {
		struct host *h = &p->host[i];

		h->number = i;
		snprintf(folder, sizeof folder, "%u.host%u", p->serial, i);
		rc = host_place(h, p->b, GUEST, "host", folder, err);
		if (!rc)
			rc = write_file(p, h, err);
	}
	if (!rc)
		rc = make_network(p, err);
	if (!rc)
		rc = host_start(&p->host[0], NULL, err);
	if (!rc)
		rc = start_standby(&p->host[1], err);
	return rc;
}

void pair_begin(struct bench *b)
{
	struct pair *p = b->pair;
	int rc;

	if (p)
		return;
	b->pair = p = calloc(1, sizeof *p);
	assert(p);
	p->b = b;
	p->serial = b->pairs++;
	rc = guest_available(b, &p->broken);
	p->skipped = rc == BENCH_SKIPPED;
	if (!rc)
		start_pair(p, &p->broken);
}

int pair_up(struct bench *b, struct ft_err *err)
{
	struct pair *p;
	int rc;

	pair_begin(b);
	p = b->pair;
	if (p->broken.code) {
		*err = p->broken;
		return p->skipped ? BENCH_SKIPPED : -err->code;
	}
	if (p->ready)
		return tell(active(p), "wait", "protected", UP_MS, err);
	rc = guest_wait_ready(p->host[0].console, err);
	if (!rc)
		rc = pair_protect(p, err);
	p->ready = !rc;
	if (rc)
		p->broken = *err;
	return rc;
}

void pair_end(struct pair *p)
{
	if (!p)
		return;
	for (unsigned i = 0; i < 2; i++) {
		host_kill(&p->host[i]);
		if (p->host[i].ns > 0)
			close(p->host[i].ns);
	}
	if (p->switch_ns > 0)
		close(p->switch_ns);
	if (p->client_ns > 0)
		close(p->client_ns);
	free(p);
}

/* ---- requests ---- */

int pair_checkpoint(struct pair *p, struct ft_err *err)
{
	return tell(active(p), "checkpoint", NULL, ASK_MS, err);
}

int pair_protect(struct pair *p, struct ft_err *err)
{
	char uri[48];
	int rc;

	snprintf(uri, sizeof uri, "kemari:tls:10.8.0.%u:%d", other(p)->number + 1, PORT);
	rc = tell(active(p), "migrate", uri, PROTECT_MS, err);
	return rc ? rc : tell(active(p), "wait", "protected", PROTECT_MS, err);
}

int pair_cancel(struct pair *p, struct ft_err *err)
{
	int rc = tell(active(p), "cancel", NULL, ASK_MS, err);

	return rc ? rc : tell(active(p), "wait", "solo", ASK_MS, err);
}

int pair_status(struct pair *p, struct pair_status *out, struct ft_err *err)
{
	Ctl__Reply *reply;
	int rc = ask(active(p), "status", NULL, ASK_MS, &reply, err);

	if (rc)
		return rc;
	*out = (struct pair_status){.pause_ms = (double)reply->status->pause_us->p50 / 1e3,
				    .commit_ms = (double)reply->status->commit_us->p50 / 1e3,
				    .pause_last_ms = (double)reply->status->pause_us->last / 1e3,
				    .commit_last_ms = (double)reply->status->commit_us->last / 1e3,
				    .raw = reply->status->bytes_raw,
				    .sent = reply->status->bytes_sent,
				    .checkpoints = reply->status->checkpoints};
	ctl__reply__free_unpacked(reply, NULL);
	return 0;
}

/* ---- console ---- */

/* Somebody has to read what the guest writes, or its shell waits. */
static void *drain(void *fd)
{
	char text[4096];

	while (read((int)(intptr_t)fd, text, sizeof text) > 0)
		;
	close((int)(intptr_t)fd);
	return NULL;
}

int pair_type(struct pair *p, const char *line, struct ft_err *err)
{
	struct sockaddr_un at = {.sun_family = AF_UNIX};
	struct timeval limit = {.tv_sec = 1};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), rc = 0;
	pthread_t thread;

	snprintf(at.sun_path, sizeof at.sun_path, "%s", active(p)->tty);
	if (connect(fd, (struct sockaddr *)&at, sizeof at) ||
	    dprintf(fd, "%s\n", line) != (int)strlen(line) + 1)
		rc = ft_err_set(err, errno, "%s: %s", at.sun_path, strerror(errno));
	/* Ends by itself when the guest has been silent for a second. */
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	if (pthread_create(&thread, NULL, drain, (void *)(intptr_t)fd) == 0)
		pthread_detach(thread);
	return rc;
}

/* ---- the end of a host ---- */

int pair_strike(struct pair *p, uint64_t *at_ns, struct ft_err *err)
{
	(void)err;
	*at_ns = bench_now_ns();
	host_kill(active(p));
	p->active = !p->active;
	return 0;
}

int pair_silence(struct pair *p, uint64_t *at_ns, struct ft_err *err)
{
	int rc;

	*at_ns = bench_now_ns();
	rc = net_run(active(p)->ns, err, "ip link set peer down; ip link set uplink down");
	host_kill(active(p));
	p->active = !p->active;
	return rc;
}

int pair_heal(struct pair *p, struct ft_err *err)
{
	int rc = tell(active(p), "wait", "solo", ASK_MS, err);

	if (!rc)
		rc = net_run(other(p)->ns, err, "ip link set peer up && ip link set uplink up");
	if (!rc)
		rc = start_standby(other(p), err);
	return rc ? rc : pair_protect(p, err);
}
