/* SPDX-License-Identifier: Apache-2.0 */
/* A small Linux guest for the tests of the QEMU glue: its files, a network namespace with taps, its
 * console, and a standby's image. The guest: prints "GUEST-READY", then "tick N" five times a
 * second; echoes TCP on port 7 and UDP on port 9 of 10.9.0.2. */
#ifndef TEST_QEMU_GUEST_H
#define TEST_QEMU_GUEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "vmm-glue/qemu/clock.h"
#include "vmm-glue/qemu/qemu.h"

#define GUEST_MEMORY (256u << 20)
#define GUEST_DISK   (64u << 20)
#define BOOT_MS	     90000
#define GUEST_PAGES  (GUEST_MEMORY / VMM_PAGE_BYTES)

#define assert_ok(call)                                                                            \
	do {                                                                                       \
		struct ft_err err_ = {0}, *err = &err_;                                            \
		if ((call) != 0)                                                                   \
			fail_msg("%s: %s", #call, err_.text);                                      \
	} while (0)

static char guest_run[VMM_PATH_MAX - 64], guest_kernel[VMM_PATH_MAX], guest_initrd[VMM_PATH_MAX];

static inline const char *guest_path(const char *name)
{
	static char path[8][VMM_PATH_MAX];
	static unsigned next;

	next = (next + 1) % 8;
	snprintf(path[next], sizeof path[next], "%s/%s", guest_run, name);
	return path[next];
}

static inline void guest_command(const char *fmt, ...)
{
	char line[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof line, fmt, ap);
	va_end(ap);
	if (system(line) != 0)
		fail_msg("%s", line);
}

/* Files, run directory, and a network of our own with the taps tapp and taps on a bridge. Exits 77
 * when the machine lacks something. */
static inline void guest_setup(void)
{
	const char *folder = getenv("FT_GUEST_DIR"), *source = getenv("FT_SOURCE_DIR");

	if (folder)
		snprintf(guest_kernel, sizeof guest_kernel, "%s/vmlinuz", folder);
	else
		snprintf(guest_kernel, sizeof guest_kernel, "%s/.cache/guest/vmlinuz",
			 source ? source : ".");
	snprintf(guest_initrd, sizeof guest_initrd, "%.*s/initrd.gz",
		 (int)(strrchr(guest_kernel, '/') - guest_kernel), guest_kernel);
	if (access(guest_kernel, R_OK) || access(guest_initrd, R_OK)) {
		printf("skipped: no guest at %s\n", guest_kernel);
		exit(77);
	}
	if (system("command -v qemu-system-x86_64 >/dev/null && command -v ip >/dev/null")) {
		printf("skipped: qemu-system-x86_64 or ip is not installed\n");
		exit(77);
	}
	if (unshare(CLONE_NEWNET) < 0) {
		printf("skipped: no network namespace: %s\n", strerror(errno));
		exit(77);
	}
	strcpy(guest_run, "/dev/shm/ft-qemu-XXXXXX");
	if (!mkdtemp(guest_run))
		exit(1);
	signal(SIGPIPE, SIG_IGN);
	guest_command("ip link set lo up && ip link add br0 type bridge forward_delay 0 && ip addr "
		      "add 10.9.0.1/24 dev br0 && ip link set br0 up");
	for (const char *const *tap = (const char *const[]){"tapp", "taps", NULL}; *tap; tap++)
		guest_command("ip tuntap add %s mode tap && ip link set %s master br0 && ip link "
			      "set %s up",
			      *tap, *tap, *tap);
}

/* Also ends what a failed test has left running: our children. */
static inline void guest_teardown(void)
{
	char path[64];
	int pid;
	FILE *children;

	snprintf(path, sizeof path, "/proc/self/task/%d/children", getpid());
	children = fopen(path, "re");
	while (children && fscanf(children, "%d", &pid) == 1)
		kill(pid, SIGKILL);
	if (children)
		fclose(children);
	guest_command("rm -rf %s", guest_run);
}

static inline void guest_make_disk(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, GUEST_DISK), 0);
	close(fd);
}

/* name: "p" with tapp, anything else with taps. Disk and NIC as configured; the caller may change
 * what it likes. Once per name. */
static inline struct qemu_config guest_config(const char *name, const char *append)
{
	static struct {
		char append[256], tty[VMM_PATH_MAX], log[VMM_PATH_MAX], disk[VMM_PATH_MAX];
	} texts[2], *t;
	bool is_p = !strcmp(name, "p");

	t = &texts[is_p];
	snprintf(t->append, sizeof t->append, "console=ttyS0 quiet panic=1 tsc=unstable %s",
		 append);
	snprintf(t->tty, sizeof t->tty, "%s/%s.tty", guest_run, name);
	snprintf(t->log, sizeof t->log, "%s/%s.console", guest_run, name);
	snprintf(t->disk, sizeof t->disk, "%s/disk.img", guest_run);
	return (struct qemu_config){
		.name = name,
		.run_dir = guest_run,
		.memory_bytes = GUEST_MEMORY,
		.cpus = 1,
		.kernel = guest_kernel,
		.initrd = guest_initrd,
		.append = t->append,
		.uuid = "3f6f1c1e-8d3c-4f0e-9d44-0123456789ab",
		.disks_n = 1,
		.nics_n = 1,
		.disks = {{.id = "root", .image = t->disk}},
		.nics = {{.id = "net0",
			  .mac = "52:54:00:00:00:02",
			  .ifname = is_p ? "tapp" : "taps"}},
		.console = t->tty,
		.console_log = t->log,
	};
}

/* Everything that a file holds, "" when there is none. Static buffer. */
static inline const char *file_text(const char *path)
{
	static char text[1 << 20];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);

	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = '\0';
	return text;
}

static inline int last_tick(const char *console)
{
	int tick = 0, at;
	char end;

	for (const char *t = file_text(console); (t = strstr(t, "tick ")); t++)
		if (sscanf(t, "tick %d%c", &at, &end) == 2)
			tick = at;
	return tick;
}

/* Waits until done() says so, looking again whenever the file changes. */
static inline void wait_file(const char *path, bool (*done)(const char *path, int n), int n,
			     unsigned within_ms)
{
	uint64_t deadline = qemu_deadline_ns(within_ms);
	int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	char events[4096];

	assert_true(inotify_add_watch(fd, path, IN_MODIFY) >= 0);
	while (!done(path, n)) {
		struct pollfd p = {.fd = fd, .events = POLLIN};

		if (poll(&p, 1, qemu_ms_left(deadline)) == 0)
			fail_msg("%s: waited %u ms in vain; it ends: %s", path, within_ms,
				 file_text(path) + (strlen(file_text(path)) > 300
							    ? strlen(file_text(path)) - 300
							    : 0));
		while (read(fd, events, sizeof events) > 0)
			;
	}
	close(fd);
}

static inline bool is_ready(const char *path, int n)
{
	(void)n;
	return strstr(file_text(path), "GUEST-READY") != NULL;
}

static inline bool has_ticked(const char *path, int n)
{
	return last_tick(path) >= n;
}

static inline bool has_line(const char *path, int n)
{
	char line[32];

	snprintf(line, sizeof line, "LINE-%d\r", n);
	return strstr(file_text(path), line) != NULL;
}

/* Types a command into the guest's shell. */
static inline void guest_type(int tty, const char *fmt, ...)
{
	char line[512];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(line, sizeof line, fmt, ap);
	va_end(ap);
	assert_int_equal(write(tty, line, (size_t)n), n);
}

static inline int unix_connect(const char *path)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(addr.sun_path, sizeof addr.sun_path, "%s", path);
	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof addr), 0);
	return fd;
}

static inline void *tty_drain(void *fd)
{
	char text[4096];

	while (read((int)(intptr_t)fd, text, sizeof text) > 0)
		;
	close((int)(intptr_t)fd);
	return NULL;
}

/* A terminal at a serial port: somebody has to read what comes, or the guest waits for its output.
 * End it with shutdown(). */
static inline int tty_open(const char *path)
{
	int fd = unix_connect(path);
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, tty_drain, (void *)(intptr_t)fd), 0);
	pthread_detach(thread);
	return fd;
}

static inline int unix_listen(const char *path)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	snprintf(addr.sun_path, sizeof addr.sun_path, "%s", path);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof addr), 0);
	assert_int_equal(listen(fd, 4), 0);
	return fd;
}

/* A TCP connection to the guest's echo server. */
static inline int guest_tcp(void)
{
	struct sockaddr_in addr = {
		.sin_family = AF_INET, .sin_port = htons(7), .sin_addr.s_addr = htonl(0x0a090002)};
	struct timeval limit = {20, 0};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	if (connect(fd, (struct sockaddr *)&addr, sizeof addr) < 0)
		fail_msg("connecting to the guest: %s", strerror(errno));
	return fd;
}

static inline void tcp_echo(int fd, int number)
{
	char sent[24], got[24];

	snprintf(sent, sizeof sent, "message %6d\n", number);
	assert_int_equal(send(fd, sent, 15, MSG_NOSIGNAL), 15);
	assert_int_equal(recv(fd, got, 15, MSG_WAITALL), 15);
	assert_memory_equal(sent, got, 15);
}

/* The relay of a network tap that lets everything through. */
struct relay {
	int out_listener, in_listener, out, in;
	unsigned frames;
};

static inline void relay_listen(struct relay *r)
{
	unlink(guest_path("net.out"));
	unlink(guest_path("net.in"));
	*r = (struct relay){unix_listen(guest_path("net.out")), unix_listen(guest_path("net.in")),
			    -1, -1, 0};
}

static inline void relay_accept(struct relay *r)
{
	r->out = accept4(r->out_listener, NULL, NULL, SOCK_CLOEXEC);
	r->in = accept4(r->in_listener, NULL, NULL, SOCK_CLOEXEC);
	assert_true(r->out >= 0 && r->in >= 0);
}

static inline void relay_close(struct relay *r)
{
	close(r->out);
	close(r->in);
	close(r->out_listener);
	close(r->in_listener);
}

/* Sends one message through the tap: relays what the guest transmits until the echo is there. */
static inline void echo_through(struct relay *r, int tcp)
{
	char got[32];
	size_t have = 0;

	assert_int_equal(send(tcp, "through the tap", 15, 0), 15);
	while (have < 15) {
		struct pollfd p[2] = {{.fd = r->out, .events = POLLIN},
				      {.fd = tcp, .events = POLLIN}};
		char frame[65536];
		ssize_t n;

		assert_true(poll(p, 2, 10000) > 0);
		if (p[0].revents) {
			n = recv(r->out, frame, sizeof frame, 0);
			assert_true(n > 0);
			assert_int_equal(send(r->in, frame, (size_t)n, 0), n);
			r->frames++;
		}
		if (p[1].revents) {
			n = recv(tcp, got + have, sizeof got - have, 0);
			assert_true(n > 0);
			have += (size_t)n;
		}
	}
	assert_memory_equal(got, "through the tap", 15);
}

/* A primary's staging, written into a standby's image (NULL: dropped). */
struct staging {
	struct vmm_capture capture;
	struct ft_bitmap pending;
	struct vmm_hold_hooks hooks;
	uint8_t *image;
	unsigned stopped;
	uint64_t pages; /* of all checkpoints */
};

static inline void staging_flush(struct staging *s)
{
	for (size_t i = 0; i < s->capture.pages_n && s->image; i++)
		memcpy(s->image + s->capture.pfns[i] * VMM_PAGE_BYTES,
		       s->capture.pages + i * VMM_PAGE_BYTES, VMM_PAGE_BYTES);
	s->pages += s->capture.pages_n;
	s->capture.pages_n = 0;
}

static inline int staging_full(void *ctx, struct vmm_capture *capture)
{
	(void)capture;
	staging_flush(ctx);
	return 0;
}

static inline void staging_stopped(void *ctx)
{
	((struct staging *)ctx)->stopped++;
}

static inline void staging_init(struct staging *s, size_t pages_max, uint8_t *image)
{
	*s = (struct staging){.image = image};
	s->capture.pages_max = pages_max;
	s->capture.pages = malloc(pages_max * VMM_PAGE_BYTES);
	s->capture.pfns = malloc(pages_max * sizeof *s->capture.pfns);
	s->capture.state = malloc(VMM_STATE_BYTES_MAX);
	memset(s->capture.pages, 1, pages_max * VMM_PAGE_BYTES);
	assert_int_equal(ft_bitmap_init(&s->pending, GUEST_PAGES), 0);
	ft_bitmap_set_all(&s->pending);
	s->hooks =
		(struct vmm_hold_hooks){.stopped = staging_stopped, .full = staging_full, .ctx = s};
}

static inline void staging_free(struct staging *s)
{
	free(s->capture.pages);
	free(s->capture.pfns);
	free(s->capture.state);
	ft_bitmap_free(&s->pending);
}

/* One checkpoint, "acknowledged" at once. */
static inline void staging_checkpoint(struct staging *s, struct vmm *vmm, bool keep_stopped)
{
	struct ft_err why = {0};
	unsigned before;
	int rc;

	/* On a machine that is busy elsewhere QEMU may not come to the end of its state in time:
	 * that checkpoint is void and nothing is lost, as the engine too takes it. */
	for (unsigned tries = 0;; tries++) {
		before = s->stopped;
		rc = vmm->ops->checkpoint(vmm, &s->pending, &s->capture, &s->hooks, keep_stopped,
					  &why);
		if (rc != -EAGAIN || tries == 5)
			break;
	}
	if (rc)
		fail_msg("checkpoint: %s", why.text);
	assert_int_equal(s->stopped, before + 1);
	staging_flush(s);
	ft_bitmap_clear_all(&s->pending);
}

/* Lets the VM run for a while: waits for an event of it that does not come. */
static inline void let_run(struct vmm *vmm, unsigned ms)
{
	struct pollfd p = {.fd = vmm->ops->poll_fd(vmm), .events = POLLIN};
	uint64_t deadline = qemu_deadline_ns(ms);

	while (poll(&p, 1, qemu_ms_left(deadline)) > 0)
		vmm->ops->poll(vmm);
}

#endif
