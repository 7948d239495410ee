// SPDX-License-Identifier: Apache-2.0
/* A pair of our own: guest file, certificates, images, agents. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/drill/ledger.h"
#include "tools/drill/scene.h"
#include "transport/pki.h"

#define QEMU_SERVE_PORT 7000
#define LINK_PORT	7001
#define QEMU_BINARY	"qemu-system-x86_64"
#define GUEST_INSTALLED "/usr/share/kemari-ft/guest"
#define SET_MAX		(HOST_PATH_MAX + 64) /* KEY=PATH */
#define POCKET_DISK	"8M"

const char *host_name(unsigned which)
{
	return which ? "host-b" : "host-a";
}

/* ---- what the machine has ---- */

bool drill_in_path(const char *program, char file[HOST_PATH_MAX])
{
	const char *path = getenv("PATH");

	for (const char *at = path ? path : "/usr/sbin:/usr/bin:/sbin:/bin"; *at;) {
		size_t len = strcspn(at, ":");

		snprintf(file, HOST_PATH_MAX, "%.*s/%s", (int)len, at, program);
		if (!access(file, X_OK))
			return true;
		at += len + (at[len] == ':');
	}
	return false;
}

/* FT_GUEST_DIR, the cache of the source tree that this was built from, the installed one. */
static bool find_guest(struct drill *d)
{
	const char *env = getenv("FT_GUEST_DIR");
	const char *const dirs[] = {env, FT_SOURCE_TREE "/.cache/guest", GUEST_INSTALLED};
	char path[HOST_PATH_MAX + 16];

	for (unsigned i = env ? 0 : 1; i < (env ? 1 : 3); i++) {
		snprintf(d->guest_dir, sizeof d->guest_dir, "%s", dirs[i]);
		snprintf(path, sizeof path, "%s/vmlinuz", d->guest_dir);
		if (access(path, R_OK))
			continue;
		snprintf(path, sizeof path, "%s/initrd.gz", d->guest_dir);
		if (!access(path, R_OK))
			return true;
	}
	return false;
}

static const char *why_not_qemu(struct drill *d)
{
	char file[HOST_PATH_MAX];
	struct ft_err err;

	if (!drill_in_path(QEMU_BINARY, file))
		return QEMU_BINARY " is not installed";
	if (!drill_in_path("ip", file))
		return "ip is not installed (package iproute2)";
	if (!find_guest(d))
		return "there is no test guest: tests/guest/build makes one";
	if (host_can_isolate(&err)) {
		snprintf(d->why_pocket_text, sizeof d->why_pocket_text,
			 "no namespaces without root: %s", err.text);
		return d->why_pocket_text;
	}
	return NULL;
}

static int choose_vmm(struct drill *d, struct ft_err *err)
{
	const char *why = d->o->vmm == DRILL_VMM_POCKET ? NULL : why_not_qemu(d);
	char etcd[HOST_PATH_MAX];

	d->vmm = d->o->vmm == DRILL_VMM_POCKET || why ? DRILL_VMM_POCKET : DRILL_VMM_QEMU;
	d->isolated = d->vmm == DRILL_VMM_QEMU;
	d->why_pocket = why;
	if (why && d->o->vmm == DRILL_VMM_QEMU)
		return ft_err_set(err, ENOTSUP, "no QEMU guest here: %s", why);
	if (d->o->attach && d->vmm == DRILL_VMM_POCKET)
		return ft_err_set(err, ENOTSUP, "--attach is for QEMU: %s", why ? why : "pocket");
	if (!d->isolated && d->o->kill == DRILL_LINK)
		return ft_err_set(err, ENOTSUP,
				  "pocket runs over loopback, which has no link to cut");
	if (!d->isolated && d->o->arbiter == DRILL_ARBITER_ETCD)
		return ft_err_set(err, ENOTSUP,
				  "the arbiter etcd needs the namespaces that QEMU has");
	return d->o->arbiter == DRILL_ARBITER_ETCD ? cluster_find(etcd, err) : 0;
}

/* Beside ourselves, as built and as installed. */
static int find_agent(struct drill *d, struct ft_err *err)
{
	static const char name[] = "/ft-agent";
	ssize_t n =
		readlink("/proc/self/exe", d->agent_program, sizeof d->agent_program - sizeof name);
	char *slash;

	d->agent_program[n > 0 ? n : 0] = 0;
	slash = strrchr(d->agent_program, '/');
	memcpy(slash ? slash : d->agent_program, name, sizeof name);
	return access(d->agent_program, X_OK)
		       ? ft_err_set(err, ENOENT, "%s: %s", d->agent_program, strerror(errno))
		       : 0;
}

/* ---- files ---- */

static const char *survivor(const struct drill *d)
{
	return d->o->kill == DRILL_LINK || d->o->kill == DRILL_STANDBY ? "primary" : "standby";
}

static void write_machine(const struct drill *d, unsigned which, FILE *f)
{
	const char *mode = d->o->shared_disk ? "shared" : "replicated";

	(void)which; /* the same for both */
	if (d->vmm == DRILL_VMM_POCKET) {
		fprintf(f,
			"vmm = \"pocket\"\nprogram = \"kv\"\nmemory = \"64M\"\n"
			"disk root { image = \"root.img\" mode = \"%s\" size = \"" POCKET_DISK
			"\" }\n"
			"nic net0 { attach = \"udp:127.0.0.1:%u\" }\n",
			mode, d->guest_port);
		return;
	}
	fprintf(f,
		"vmm = \"qemu\"\nmemory = \"256M\"\n"
		"kernel = \"%s/vmlinuz\"\ninitrd = \"%s/initrd.gz\"\n"
		"append = \"console=ttyS0 quiet panic=1 tsc=unstable ft.quiet "
		"ft.ip=" FIELD_GUEST_IP "/24 ft.serve=%u:/dev/vda\"\n"
		"disk root { image = \"root.img\" mode = \"%s\" size = \"%llu\" }\n"
		"nic net0 { attach = \"bridge:" FIELD_BRIDGE "\" }\n"
		"console { log = \"console\" }\n",
		d->guest_dir, d->guest_dir, d->guest_port, mode,
		(unsigned long long)LEDGER_DISK_BYTES);
}

typedef void machine_fn(const struct drill *d, unsigned which, FILE *f);

static int write_guest_file(struct drill *d, const char *name, unsigned which, machine_fn *machine,
			    struct ft_err *err)
{
	char path[HOST_PATH_MAX];
	FILE *f;

	snprintf(path, sizeof path, "%s/%s", d->dir, name);
	f = fopen(path, "we");
	if (!f)
		return ft_err_set(err, errno, "%s: %s", path, strerror(errno));
	fprintf(f, "name = \"" DRILL_GUEST "\"\n");
	machine(d, which, f);
	fprintf(f, "tls { ca = \"pki/ca.pem\" }\n");
	fprintf(f, "ft { durability = \"%s\"", d->o->durable ? "disk" : "memory");
	if (d->o->takeover_ms)
		fprintf(f, " takeover_ms = %u", d->o->takeover_ms);
	fprintf(f, " }\n");
	if (d->o->arbiter == DRILL_ARBITER_ETCD)
		cluster_write(f);
	else if (d->o->arbiter == DRILL_ARBITER_FILE)
		fprintf(f, "arbiter { type = \"file\" dir = \"arbiter\" }\n");
	else
		fprintf(f, "arbiter { type = \"none\" survivor = \"%s\" }\n", survivor(d));
	return fclose(f) ? ft_err_set(err, errno, "%s: %s", path, strerror(errno)) : 0;
}

/* One for both hosts; of a guest that was attached to, one for each role and host. */
static const char *guest_file(const struct drill *d, unsigned which, bool incoming)
{
	if (!d->o->attach)
		return "guest.conf";
	return !incoming ? "attach.conf" : which ? "standby-b.conf" : "standby-a.conf";
}

static int write_guest_files(struct drill *d, struct ft_err *err)
{
	int rc;

	if (!d->o->attach)
		return write_guest_file(d, guest_file(d, 0, false), 0, write_machine, err);
	rc = write_guest_file(d, guest_file(d, 0, false), d->primary, attach_primary_file, err);
	for (unsigned i = 0; i < 2 && !rc; i++)
		rc = write_guest_file(d, guest_file(d, i, true), i, attach_standby_file, err);
	return rc;
}

/* Keys that live as long as the drill. */
static int make_keys(struct drill *d, struct ft_err *err)
{
	char dir[HOST_PATH_MAX];
	int rc;

	snprintf(dir, sizeof dir, "%s/pki", d->dir);
	rc = pki_init(dir, err);
	for (unsigned i = 0; i < 2 && !rc; i++) {
		const char *const names[] = {field_address(i), "127.0.0.1"};

		rc = pki_issue(dir, host_name(i), names, 2, err);
	}
	return rc;
}

static int make_dir(const char *base, const char *name, struct ft_err *err)
{
	char path[HOST_PATH_MAX];

	snprintf(path, sizeof path, "%s/%s", base, name);
	return mkdir(path, 0700) ? ft_err_set(err, errno, "%s: %s", path, strerror(errno)) : 0;
}

static int make_files(struct drill *d, struct ft_err *err)
{
	const char *tmp = getenv("TMPDIR");
	int rc;

	/* Sockets below it have paths of at most 107 bytes. */
	snprintf(d->dir, sizeof d->dir, "%s/kemari-drill.%d.XXXXXX",
		 tmp && strlen(tmp) < 24 ? tmp : "/tmp", (int)getpid());
	if (!mkdtemp(d->dir)) {
		rc = ft_err_set(err, errno, "%s: %s", d->dir, strerror(errno));
		d->dir[0] = 0;
		return rc;
	}
	rc = make_dir(d->dir, "arbiter", err);
	if (!rc)
		rc = make_dir(d->dir, "shared", err);
	for (unsigned i = 0; i < 2 && !rc; i++)
		rc = make_dir(d->dir, host_name(i), err);
	if (!rc)
		rc = make_keys(d, err);
	return rc ? rc : write_guest_files(d, err);
}

/* A port that nobody has at the moment. */
static int free_port(int type, uint16_t *port, struct ft_err *err)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof at;
	int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
	bool bad = fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) ||
		   getsockname(fd, (struct sockaddr *)&at, &len);

	*port = ntohs(at.sin_port);
	if (fd >= 0)
		close(fd);
	return bad ? ft_err_set(err, EADDRINUSE, "no free port on 127.0.0.1") : 0;
}

static int choose_ports(struct drill *d, struct ft_err *err)
{
	int rc;

	d->guest_port = QEMU_SERVE_PORT;
	d->link_port[0] = d->link_port[1] = LINK_PORT;
	if (d->isolated)
		return 0;
	rc = free_port(SOCK_DGRAM, &d->guest_port, err);
	for (unsigned i = 0; i < 2 && !rc; i++)
		rc = free_port(SOCK_STREAM, &d->link_port[i], err);
	return rc;
}

int pair_prepare(struct drill *d, struct ft_err *err)
{
	int rc = find_agent(d, err);

	if (!rc)
		rc = choose_vmm(d, err);
	if (!rc)
		rc = choose_ports(d, err);
	if (!rc)
		rc = make_files(d, err);
	if (!rc && d->isolated)
		rc = field_up(&d->field, err);
	if (!rc && d->o->arbiter == DRILL_ARBITER_ETCD)
		rc = cluster_up(d, err);
	d->talk_ops = d->vmm == DRILL_VMM_QEMU ? &talk_ledger : &talk_kv;
	d->talk = d->vmm == DRILL_VMM_QEMU ? talk_ledger_new() : talk_kv_new();
	return rc || d->talk ? rc : ft_err_set(err, ENOMEM, "out of memory");
}

/* ---- agents ---- */

static const char *image_path(const struct drill *d, unsigned which)
{
	static char path[2][HOST_PATH_MAX];

	snprintf(path[which], sizeof path[which], "%s/%s/root.img", d->dir,
		 d->o->shared_disk ? "shared" : host_name(which));
	return path[which];
}

static void listen_uri(const struct drill *d, unsigned which, char out[64])
{
	snprintf(out, 64, "kemari:tls:%s:%u", d->isolated ? field_address(which) : "127.0.0.1",
		 d->link_port[which]);
}

/* The guest file is the same for both; this is what differs. */
static int start_agent(struct drill *d, unsigned which, bool incoming, struct ft_err *err)
{
	struct host *h = &d->hosts[which];
	char image[SET_MAX], cert[SET_MAX], key[SET_MAX], console[SET_MAX], uri[64];
	char file[SET_MAX];
	const char *argv[HOST_ARGS_MAX] = {d->agent_program, "--guest", file,	     "--foreground",
					   "--host-id",	     h->id,	"--run-dir", h->run_dir,
					   "--set",	     cert,	"--set",     key};
	unsigned n = 12;

	snprintf(file, sizeof file, "%s/%s", d->dir, guest_file(d, which, incoming));
	snprintf(image, sizeof image, "disk.root.image=%s", image_path(d, which));
	snprintf(cert, sizeof cert, "tls.cert=%s/pki/%s.pem", d->dir, h->id);
	snprintf(key, sizeof key, "tls.key=%s/pki/%s.key", d->dir, h->id);
	snprintf(console, sizeof console, "console.log=%s/console", h->run_dir);
	listen_uri(d, which, uri);
	if (!d->o->attach) {
		argv[n++] = "--set";
		argv[n++] = image;
	}
	if (d->vmm == DRILL_VMM_QEMU && !d->o->attach) {
		argv[n++] = "--set";
		argv[n++] = console;
	}
	for (unsigned i = 0; i < d->o->sets_n; i++) {
		argv[n++] = "--set";
		argv[n++] = d->o->sets[i];
	}
	if (incoming) {
		argv[n++] = "--incoming";
		argv[n++] = uri;
	}
	argv[n] = NULL;
	return host_run(h, argv, err);
}

static int bring_up(struct drill *d, unsigned which, bool incoming, struct ft_err *err)
{
	struct host *h = &d->hosts[which];
	char path[HOST_PATH_MAX];
	int rc = host_up(h, host_name(which), d->isolated, err);

	if (rc)
		return rc;
	snprintf(path, sizeof path, "%s/%s", d->dir, host_name(which));
	memcpy(h->run_dir, path, sizeof h->run_dir);
	snprintf(path, sizeof path, "%s/%s.log", d->dir, host_name(which));
	memcpy(h->log, path, sizeof h->log);
	if (d->isolated)
		rc = field_join(&d->field, d->hosts, which, err);
	if (!rc && d->o->attach)
		rc = attach_host(h, err);
	if (!rc && d->o->attach && !incoming)
		rc = attach_start_theirs(d, err);
	if (!rc)
		rc = start_agent(d, which, incoming, err);
	d->must_live[which] = !rc;
	d->now[which] = (struct seen){0};
	return rc;
}

int pair_start_primary(struct drill *d, struct ft_err *err)
{
	int rc = bring_up(d, d->primary, false, err);

	return rc ? rc : wait_state(d, d->primary, "solo", DRILL_BOOT_MS, err);
}

int pair_start_client(struct drill *d, struct ft_err *err)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(d->guest_port)};
	static const struct host outside; /* not isolated: our own network */
	int rc;

	inet_pton(AF_INET, d->isolated ? FIELD_GUEST_IP : "127.0.0.1", &to.sin_addr);
	rc = client_start(d->talk_ops, d->talk, d->isolated ? &d->field.client : &outside, &to,
			  &d->client, err);
	return rc ? rc : wait_answers(d, 0, DRILL_ANSWERS, DRILL_BOOT_MS, err);
}

int pair_protect(struct drill *d, struct ft_err *err)
{
	unsigned standby = !d->primary;
	char uri[64];
	int rc;

	d->must_live[standby] = false;
	if (d->hosts[standby].init) {
		if (d->isolated)
			field_leave(&d->field, d->hosts, standby);
		host_kill(&d->hosts[standby]);
	}
	rc = bring_up(d, standby, true, err);
	if (!rc)
		rc = wait_state(d, standby, "standby", DRILL_BOOT_MS, err);
	/* It may have been on its way to protection by the one that we took away. */
	if (!rc)
		rc = wait_state(d, d->primary, "solo", DRILL_TAKEOVER_MS, err);
	listen_uri(d, standby, uri);
	if (!rc)
		rc = ask_agent(d, d->primary, "migrate", uri, DRILL_PROTECT_MS, NULL, err);
	return rc ? rc : wait_state(d, d->primary, "protected", DRILL_PROTECT_MS, err);
}

/* ---- the end ---- */

static bool agent_gone(struct drill *d, void *ctx)
{
	return !host_agent_alive(&d->hosts[*(unsigned *)ctx]);
}

static int stop_agent(struct drill *d, unsigned which, struct ft_err *err)
{
	int rc;

	if (!host_agent_alive(&d->hosts[which]))
		return 0;
	d->must_live[which] = false;
	rc = ask_agent(d, which, "stop", NULL, DRILL_STOP_MS, NULL, err);
	if (rc == -EPROTO || rc == -ECONNRESET ||
	    rc == -EPIPE) /* it ended before we read its answer */
		rc = 0;
	return rc ? rc : drill_wait(d, agent_gone, &which, DRILL_STOP_MS, "stop", err);
}

int pair_compare(struct drill *d, bool both, struct ft_err *err)
{
	unsigned standby = !d->primary;
	int rc = 0;

	client_finish(d->client);
	both = both && !d->o->shared_disk && host_agent_alive(&d->hosts[standby]);
	if (both)
		rc = ask_agent(d, d->primary, "checkpoint", NULL, DRILL_PROTECT_MS, NULL, err);
	if (!rc && both)
		rc = ask_agent(d, d->primary, "cancel", NULL, DRILL_STOP_MS, NULL, err);
	d->must_live[standby] = false;
	if (!rc)
		rc = stop_agent(d, d->primary, err);
	if (!rc && both)
		rc = stop_agent(d, standby, err);
	for (unsigned i = 0; i < 2 && !rc; i++) {
		unsigned which = i ? standby : d->primary;

		if (which == standby && !both)
			continue;
		rc = d->talk_ops->compare(d->talk, image_path(d, which), &d->image_bytes,
					  &d->image_blocks, err);
		d->images += !rc;
	}
	return rc;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
	(void)st;
	(void)type;
	(void)at;
	return remove(path);
}

void pair_end(struct drill *d)
{
	for (unsigned i = 0; i < 2; i++)
		host_kill(&d->hosts[i]);
	client_free(d->client);
	d->client = NULL;
	if (d->isolated)
		field_down(&d->field);
	if (d->talk)
		d->talk_ops->free(d->talk);
	d->talk = NULL;
	if (d->dir[0] && !d->o->keep)
		nftw(d->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}
