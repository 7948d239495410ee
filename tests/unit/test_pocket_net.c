// SPDX-License-Identifier: Apache-2.0
// The machine with its own thread and real sockets: kv over loopback UDP, the console, taps in and
// out with a redirector and an NBD server at the other end, and takeover of the address from a
// machine that is still there.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "vmm-glue/pocket/kv.h"
#include "vmm-glue/pocket/nbd.h"
#include "vmm-glue/pocket/pocket.h"
#include "vmm-glue/pocket/sock.h"

#define RAM	    (1u << 20)
#define DISK	    (64u << 10)
#define DEADLINE_MS 5000

static char dir[] = "/tmp/pocket-XXXXXX";

static const char *in_dir(const char *name)
{
	static char path[4][VMM_PATH_MAX];
	static unsigned turn;

	turn = (turn + 1) % 4;
	snprintf(path[turn], sizeof path[turn], "%s/%s", dir, name);
	return path[turn];
}

static int make_dir(void **state)
{
	(void)state;
	return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
	static const char *const names[] = {"image", "image2", "log", "console",
					    "out",   "in",     "nbd", "pid"};

	(void)state;
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		unlink(in_dir(names[i]));
	return rmdir(dir);
}

// ---- a client with a model of the hash chain

struct client {
	int fd;
	uint64_t seq, number, chain;
	unsigned repeats;
};

static void client_open(struct client *c, uint16_t port)
{
	struct sockaddr_in sa = {.sin_family = AF_INET,
				 .sin_port = htons(port),
				 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

	*c = (struct client){.fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0),
			     .chain = KV_CHAIN_START};
	assert_int_equal(connect(c->fd, (struct sockaddr *)&sa, sizeof sa), 0);
}

static bool client_answered(struct client *c, struct kv_answer *a, int within_ms)
{
	struct pollfd p = {.fd = c->fd, .events = POLLIN};
	char text[KV_ANSWER_MAX];
	ssize_t n;

	while (poll(&p, 1, within_ms) == 1) {
		n = recv(c->fd, text, sizeof text, MSG_DONTWAIT);
		if (n < 0)
			continue; // the port was not there for a moment
		assert_true(kv_answer_parse(text, (size_t)n, a));
		if (a->seq == c->seq)
			return true;
	}
	return false;
}

static void client_say(struct client *c, char *request, size_t size)
{
	c->seq++;
	snprintf(request, size, "PUT 1 %llu key%llu value", (unsigned long long)c->seq,
		 (unsigned long long)c->seq % 50);
	(void)send(c->fd, request, strlen(request), 0);
}

static void client_check(struct client *c, const char *request, const struct kv_answer *a)
{
	c->number++;
	c->chain = kv_chain(c->chain, request, strlen(request));
	assert_int_equal(a->status, KV_OK);
	assert_int_equal(a->number, c->number);
	assert_true(a->chain == c->chain);
}

static void client_put(struct client *c)
{
	uint64_t deadline = psock_deadline(DEADLINE_MS);
	char request[KV_REQUEST_MAX];
	struct kv_answer a;

	client_say(c, request, sizeof request);
	while (!client_answered(c, &a, 200)) {
		assert_true(psock_now() < deadline);
		c->repeats++;
		(void)send(c->fd, request, strlen(request), 0);
	}
	client_check(c, request, &a);
}

// ---- machines

static void config_for(struct pocket_config *config, uint16_t port)
{
	*config = (struct pocket_config){.name = "test",
					 .memory_bytes = RAM,
					 .program = POCKET_KV,
					 .nic_id = "net0",
					 .disks_n = 1};
	snprintf(config->nic_attach, sizeof config->nic_attach, "udp:127.0.0.1:%u", port);
	strcpy(config->disks[0].id, "root");
	snprintf(config->disks[0].image, sizeof config->disks[0].image, "%s/image", dir);
	config->disks[0].bytes = DISK;
}

static struct vmm *start(const struct pocket_config *config)
{
	struct ft_err err = {0};
	struct vmm *vmm = NULL;

	if (pocket_start(config, &vmm, &err))
		fail_msg("%s", err.text);
	return vmm;
}

static void assert_journal(const struct client *c)
{
	int fd = open(in_dir("image"), O_RDONLY);
	struct kv_record rec;

	assert_true(fd >= 0);
	assert_int_equal(
		pread(fd, &rec, sizeof rec,
		      (off_t)((c->number - 1) % (DISK / KV_RECORD_BYTES) * KV_RECORD_BYTES)),
		sizeof rec);
	assert_true(kv_record_valid(&rec));
	assert_int_equal(rec.number, c->number);
	assert_true(rec.chain == c->chain);
	close(fd);
}

static void kv_answers_over_udp(void **state)
{
	struct pocket_config config;
	struct client c;
	struct vmm *vmm, *other;
	struct vmm_info info;
	struct ft_err err;
	char *log;
	int fd;

	(void)state;
	config_for(&config, 0);
	snprintf(config.console_log, sizeof config.console_log, "%s/log", dir);
	vmm = start(&config);
	vmm->ops->info(vmm, &info);
	assert_string_equal(info.kind, "pocket");
	assert_int_equal(info.disks[0].bytes, DISK);
	assert_string_equal(info.nics[0].id, "net0");
	client_open(&c, pocket_port(vmm));
	for (unsigned i = 0; i < 500; i++) {
		client_put(&c);
		assert_journal(&c);
	}
	// The address is taken, and that is told.
	config_for(&config, pocket_port(vmm));
	assert_int_equal(pocket_start(&config, &other, &err), -EADDRINUSE);
	assert_non_null(strstr(err.text, "nic: attach"));
	vmm->ops->quit(vmm, true, 1000);
	vmm->ops->free(vmm);
	close(c.fd);
	fd = open(in_dir("log"), O_RDONLY);
	log = calloc(1, 4096);
	assert_true(read(fd, log, 4095) > 0);
	assert_true(strstr(log, "kv: ready") == log);
	free(log);
	close(fd);
}

static void bad_configs_are_refused(void **state)
{
	static const char *const attach[] = {
		"127.0.0.1:1",	       "udp:127.0.0.1",	  "udp::1",	   "udp:localhost:1",
		"udp:127.0.0.1:70000", "udp:127.0.0.1:x", "udp:127.0.0.1:"};
	struct pocket_config config;
	struct ft_err err;
	struct vmm *vmm;

	(void)state;
	for (size_t i = 0; i < sizeof attach / sizeof *attach; i++) {
		config_for(&config, 0);
		strcpy(config.nic_attach, attach[i]);
		assert_int_equal(pocket_start(&config, &vmm, &err), -EINVAL);
		assert_non_null(strstr(err.text, attach[i]));
	}
	config_for(&config, 0);
	config.disks[0].bytes = DISK * 2;
	assert_int_equal(pocket_start(&config, &vmm, &err), -EINVAL);
	assert_non_null(strstr(err.text, "disk root: "));
	config.disks[0].bytes = 0;
	strcpy(config.disks[0].image, in_dir("nothing"));
	assert_int_equal(pocket_start(&config, &vmm, &err), -ENOENT);
	assert_int_equal(pocket_program_parse("kv"), POCKET_KV);
	assert_int_equal(pocket_program_parse("dirty"), POCKET_DIRTY);
	assert_int_equal(pocket_program_parse("vi"), -EINVAL);
}

static void console_serves_one_client_after_another(void **state)
{
	struct pocket_config config;
	struct ft_err err = {0};
	struct vmm *vmm;
	char line[64];

	(void)state;
	config_for(&config, 0);
	config.program = POCKET_DIRTY;
	config.dirty_pages_per_s = 1000;
	snprintf(config.console_socket, sizeof config.console_socket, "%s/console", dir);
	vmm = start(&config);
	for (unsigned i = 0; i < 2; i++) {
		int fd = psock_connect(config.console_socket, &err);

		assert_true(fd >= 0);
		assert_int_equal(
			psock_write_all(fd, (const uint8_t *)"hello", 5, psock_deadline(100)), 0);
		assert_int_equal(
			psock_read_all(fd, (uint8_t *)line, 7, psock_deadline(DEADLINE_MS)), 0);
		assert_memory_equal(line, "dirty: ", 7);
		close(fd);
	}
	vmm->ops->free(vmm);
	assert_int_equal(access(config.console_socket, F_OK), -1);
}

// ---- taps

struct relay {
	int out_listener, in_listener, out, in;
	pid_t nbd;
	struct vmm_tap_points points;
};

static void relay_open(struct relay *r)
{
	struct ft_err err = {0};
	int fd = -1;

	memset(r, 0, sizeof *r);
	r->out = r->in = -1;
	strcpy(r->points.nics[0].out, in_dir("out"));
	strcpy(r->points.nics[0].in, in_dir("in"));
	strcpy(r->points.disks[0].nbd, in_dir("nbd"));
	r->out_listener = psock_listen(r->points.nics[0].out, &err);
	r->in_listener = psock_listen(r->points.nics[0].in, &err);
	assert_true(r->out_listener >= 0 && r->in_listener >= 0);
	r->nbd = fork();
	if (!r->nbd) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execlp("qemu-nbd", "qemu-nbd", "-k", r->points.disks[0].nbd, "-f", "raw", "-t",
		       "-x", "", in_dir("image"), NULL);
		_exit(127);
	}
	// Its socket file is there a moment before it listens.
	for (uint64_t deadline = psock_deadline(DEADLINE_MS); fd < 0;) {
		fd = psock_connect(r->points.disks[0].nbd, NULL);
		assert_true(psock_now() < deadline);
		if (fd < 0)
			poll(NULL, 0, 5);
	}
	close(fd);
}

static void relay_accept(struct relay *r)
{
	r->out = accept4(r->out_listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	r->in = accept4(r->in_listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	assert_true(r->out >= 0 && r->in >= 0);
}

static void relay_close(struct relay *r)
{
	close(r->out);
	close(r->in);
	close(r->out_listener);
	close(r->in_listener);
	unlink(r->points.nics[0].out);
	unlink(r->points.nics[0].in);
	kill(r->nbd, SIGTERM);
	waitpid(r->nbd, NULL, 0);
	unlink(r->points.disks[0].nbd);
}

// One frame from the guest, length in front.
static size_t relay_take(struct relay *r, uint8_t *frame)
{
	uint32_t len;

	assert_int_equal(psock_read_all(r->out, frame, 4, psock_deadline(DEADLINE_MS)), 0);
	memcpy(&len, frame, 4);
	len = ntohl(len);
	assert_in_range(len, POCKET_FRAME_ADDR, POCKET_FRAME_MAX);
	assert_int_equal(psock_read_all(r->out, frame + 4, len, psock_deadline(DEADLINE_MS)), 0);
	return 4 + len;
}

static void taps_hold_and_release(void **state)
{
	struct pocket_config config;
	struct relay r;
	struct client c;
	struct kv_answer a;
	struct ft_err err = {0};
	struct vmm *vmm;
	uint8_t frame[4 + POCKET_FRAME_MAX];
	char request[KV_REQUEST_MAX];

	(void)state;
	if (access("/usr/bin/qemu-nbd", X_OK)) {
		print_message("skipped: no qemu-nbd\n");
		skip();
	}
	config_for(&config, 0);
	vmm = start(&config);
	client_open(&c, pocket_port(vmm));
	for (unsigned i = 0; i < 20; i++)
		client_put(&c);
	for (unsigned round = 0; round < 3; round++) {
		relay_open(&r);
		pocket_fault_next(vmm, POCKET_FAULT_TAPS);
		assert_int_equal(vmm->ops->taps_in(vmm, &r.points, &err), -EIO);
		close(accept(r.out_listener, NULL, NULL));
		close(accept(r.in_listener, NULL, NULL));
		client_put(&c);
		if (vmm->ops->taps_in(vmm, &r.points, &err))
			fail_msg("%s", err.text);
		relay_accept(&r);
		assert_int_equal(vmm->ops->taps_in(vmm, &r.points, &err), 0);
		for (unsigned i = 0; i < 20; i++) {
			size_t n;

			client_say(&c, request, sizeof request);
			n = relay_take(&r, frame);
			assert_false(client_answered(
				&c, &a, i ? 0 : 50)); // it is held by us, and nobody else has it
			if (i % 2) {		      // in pieces
				assert_int_equal(
					psock_write_all(r.in, frame, 3, psock_deadline(100)), 0);
				assert_int_equal(psock_write_all(r.in, frame + 3, n - 3,
								 psock_deadline(100)),
						 0);
			} else {
				assert_int_equal(
					psock_write_all(r.in, frame, n, psock_deadline(100)), 0);
			}
			assert_true(client_answered(&c, &a, DEADLINE_MS));
			client_check(&c, request, &a);
			assert_journal(&c);
		}
		// Stopped, it sends nothing; what was released meanwhile leaves when it goes on.
		client_say(&c, request, sizeof request);
		(void)relay_take(&r, frame);
		assert_int_equal(vmm->ops->stop(vmm, &err), 0);
		assert_int_equal(psock_write_all(r.in, frame, 4 + ntohl(*(uint32_t *)frame),
						 psock_deadline(100)),
				 0);
		assert_false(client_answered(&c, &a, 50));
		assert_int_equal(vmm->ops->cont(vmm, &err), 0);
		assert_true(client_answered(&c, &a, DEADLINE_MS));
		client_check(&c, request, &a);
		// What was released just before the taps come out leaves all the same.
		client_say(&c, request, sizeof request);
		assert_int_equal(
			psock_write_all(r.in, frame, relay_take(&r, frame), psock_deadline(100)),
			0);
		assert_int_equal(vmm->ops->taps_out(vmm, 0, &err), 0);
		assert_int_equal(vmm->ops->taps_out(vmm, 0, &err), 0);
		assert_true(client_answered(&c, &a, DEADLINE_MS));
		client_check(&c, request, &a);
		client_put(&c);
		assert_journal(&c);
		relay_close(&r);
	}
	assert_int_equal(c.repeats, 0);
	vmm->ops->free(vmm);
	close(c.fd);
}

static void broken_tap_stops_the_network_only(void **state)
{
	static const uint8_t no_frame[8] = {0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4};
	struct pocket_config config;
	struct relay r;
	struct client c;
	struct kv_answer a;
	struct ft_err err = {0};
	struct vmm *vmm;
	char request[KV_REQUEST_MAX];

	(void)state;
	if (access("/usr/bin/qemu-nbd", X_OK)) {
		print_message("skipped: no qemu-nbd\n");
		skip();
	}
	config_for(&config, 0);
	vmm = start(&config);
	client_open(&c, pocket_port(vmm));
	relay_open(&r);
	strcpy(r.points.disks[0].nbd, in_dir("nothing"));
	assert_int_equal(vmm->ops->taps_in(vmm, &r.points, &err), -ENOENT);
	assert_non_null(strstr(err.text, "pocket: taps: disk root: "));
	close(accept(r.out_listener, NULL, NULL));
	close(accept(r.in_listener, NULL, NULL));
	strcpy(r.points.disks[0].nbd, in_dir("nbd"));
	assert_int_equal(vmm->ops->taps_in(vmm, &r.points, &err), 0);
	relay_accept(&r);
	assert_int_equal(psock_write_all(r.in, no_frame, sizeof no_frame, psock_deadline(100)), 0);
	close(r.out);
	r.out = -1;
	client_say(&c, request, sizeof request);
	assert_false(client_answered(&c, &a, 100));
	assert_string_equal(vmm->ops->status(vmm), "running");
	// The NBD server dies: the guest sees an error, and goes on when the image is back.
	kill(r.nbd, SIGKILL);
	waitpid(r.nbd, NULL, 0);
	assert_int_equal(vmm->ops->taps_out(vmm, 0, &err), 0);
	(void)send(c.fd, request, strlen(request), 0);
	assert_true(client_answered(&c, &a, DEADLINE_MS));
	client_check(&c, request, &a);
	client_put(&c);
	r.nbd = fork();
	if (!r.nbd)
		_exit(0);
	relay_close(&r);
	vmm->ops->free(vmm);
	close(c.fd);
}

static void standby_takes_the_address_over(void **state)
{
	struct pocket_config config;
	struct vmm *old, *standby;
	uint8_t *bytes = malloc(VMM_STATE_BYTES_MAX);
	uint64_t pfns[RAM / 4096];
	struct ft_err err = {0};
	struct client c;

	(void)state;
	config_for(&config, 0);
	old = start(&config);
	client_open(&c, pocket_port(old));
	for (unsigned i = 0; i < 100; i++)
		client_put(&c);
	snprintf(config.nic_attach, sizeof config.nic_attach, "udp:127.0.0.1:%u", pocket_port(old));
	assert_int_equal(pocket_arm(&config, &standby, &err), 0);
	assert_string_equal(standby->ops->status(standby), "inmigrate");
	assert_int_equal(pocket_port(standby), 0);
	assert_int_equal(old->ops->stop(old, &err), 0);
	for (unsigned i = 0; i < RAM / 4096; i++)
		pfns[i] = i;
	assert_int_equal(
		old->ops->read_pages(old, pfns, RAM / 4096, standby->ops->image(standby), &err), 0);
	// The old one is frozen with its socket open, and the standby has its datagrams all the
	// same.
	if (standby->ops->resume(standby, bytes, pocket_state(old, bytes), &err))
		fail_msg("%s", err.text);
	for (unsigned i = 0; i < 100; i++)
		client_put(&c);
	assert_int_equal(c.repeats, 0);
	assert_journal(&c);
	old->ops->free(old);
	standby->ops->free(standby);
	free(bytes);
	close(c.fd);
}

// Taps go in while it still waits: frames of the last checkpoint that are given to them leave when
// it runs, its disk is behind the tap from its first write on.
static void armed_machine_resumes_behind_taps(void **state)
{
	struct pocket_config config;
	struct vmm *old, *standby;
	uint8_t *bytes = malloc(VMM_STATE_BYTES_MAX), frame[4 + POCKET_FRAME_MAX];
	uint64_t pfns[RAM / 4096];
	char request[KV_REQUEST_MAX];
	struct kv_answer a;
	struct ft_err err = {0};
	struct client c;
	struct relay r;
	size_t n;

	(void)state;
	if (access("/usr/bin/qemu-nbd", X_OK)) {
		print_message("skipped: no qemu-nbd\n");
		skip();
	}
	config_for(&config, 0);
	old = start(&config);
	client_open(&c, pocket_port(old));
	client_put(&c);
	snprintf(config.nic_attach, sizeof config.nic_attach, "udp:127.0.0.1:%u", pocket_port(old));
	relay_open(&r);
	assert_int_equal(old->ops->taps_in(old, &r.points, &err), 0);
	relay_accept(&r);
	client_say(&c, request, sizeof request);
	n = relay_take(&r, frame); // held, and in the checkpoint
	assert_int_equal(old->ops->stop(old, &err), 0);
	assert_int_equal(pocket_arm(&config, &standby, &err), 0);
	for (unsigned i = 0; i < RAM / 4096; i++)
		pfns[i] = i;
	assert_int_equal(
		old->ops->read_pages(old, pfns, RAM / 4096, standby->ops->image(standby), &err), 0);
	(void)pocket_state(old, bytes);
	pocket_crash(old);
	close(r.out);
	close(r.in);
	if (standby->ops->taps_in(standby, &r.points, &err))
		fail_msg("%s", err.text);
	relay_accept(&r);
	assert_int_equal(psock_write_all(r.in, frame, n, psock_deadline(100)), 0);
	assert_false(client_answered(&c, &a, 20));
	if (standby->ops->resume(standby, bytes, pocket_state(old, bytes), &err))
		fail_msg("%s", err.text);
	assert_true(client_answered(&c, &a, DEADLINE_MS));
	client_check(&c, request, &a);
	client_say(&c, request, sizeof request);
	n = relay_take(&r, frame);
	assert_int_equal(psock_write_all(r.in, frame, n, psock_deadline(100)), 0);
	assert_true(client_answered(&c, &a, DEADLINE_MS));
	client_check(&c, request, &a);
	assert_journal(&c);
	old->ops->free(old);
	standby->ops->free(standby);
	relay_close(&r);
	free(bytes);
	close(c.fd);
}

// ---- an NBD server that says what it likes

struct liar {
	int listener;
	const uint8_t *text;
	size_t len;
};

static void *lie(void *arg)
{
	struct liar *l = arg;
	struct pollfd p = {.fd = l->listener, .events = POLLIN};
	uint8_t junk[4096];
	int fd;

	if (poll(&p, 1, DEADLINE_MS) != 1)
		return NULL;
	fd = accept(l->listener, NULL, NULL);
	(void)!send(fd, l->text, l->len, MSG_NOSIGNAL);
	shutdown(fd, SHUT_WR);
	while (read(fd, junk, sizeof junk) > 0)
		;
	close(fd);
	return NULL;
}

// Greeting, NBD_REP_INFO with 64 KiB and flush, NBD_REP_ACK, one good reply, one bad.
static const uint8_t nbd_text[] = {
	'N',  'B',  'D',  'M',	'A',  'G',  'I',  'C',	'I',  'H', 'A', 'V', 'E', 'O', 'P', 'T', 0,
	3,    0,    3,	  0xe8, 0x89, 4,    0x55, 0x65, 0xa9, 0,   0,	0,   7,	  0,   0,   0,	 3,
	0,    0,    0,	  12,	0,    0,    0,	  0,	0,    0,   0,	1,   0,	  0,   0,   5,	 0,
	3,    0xe8, 0x89, 4,	0x55, 0x65, 0xa9, 0,	0,    0,   7,	0,   0,	  0,   1,   0,	 0,
	0,    0,    0x67, 0x44, 0x66, 0x98, 0,	  0,	0,    0,   0,	0,   0,	  0,   0,   0,	 0,
	1,    0x67, 0x44, 0x66, 0x98, 0,    0,	  0,	28,   0,   0,	0,   0,	  0,   0,   0,	 2,
	0x67, 0x44, 0x66, 0x98, 0,    0,    0,	  0,	0,    0,   0,	0,   0,	  0,   0,   9,
};
#define NBD_HANDSHAKE (18 + 32 + 20)

static int talk(const uint8_t *text, size_t len, struct pocket_nbd **n, pthread_t *thread,
		struct liar *l, struct ft_err *err)
{
	uint64_t bytes = 0;
	int rc;

	unlink(in_dir("nbd"));
	*l = (struct liar){.listener = psock_listen(in_dir("nbd"), err), .text = text, .len = len};
	assert_true(l->listener >= 0);
	assert_int_equal(pthread_create(thread, NULL, lie, l), 0);
	rc = pocket_nbd_open(in_dir("nbd"), n, &bytes, err);
	if (!rc)
		assert_int_equal(bytes, 65536);
	return rc;
}

static void lying_nbd_server_is_survived(void **state)
{
	struct pocket_nbd *n = NULL;
	struct ft_err err = {0};
	uint8_t text[sizeof nbd_text], data[512] = {0};
	pthread_t thread;
	struct liar l;
	unsigned refused = 0;

	(void)state;
	assert_int_equal(talk(nbd_text, sizeof nbd_text, &n, &thread, &l, &err), 0);
	assert_int_equal(pocket_nbd_write(n, 0, data, sizeof data), 0);
	assert_int_equal(pocket_nbd_write(n, 0, data, sizeof data), -ENOSPC);
	assert_int_equal(pocket_nbd_flush(n), -EIO); // a reply to another request
	assert_int_equal(pocket_nbd_flush(n), -EIO); // and that was the end of it
	pocket_nbd_close(n);
	pthread_join(thread, NULL);
	close(l.listener);
	for (size_t i = 0; i < NBD_HANDSHAKE; i++) {
		memcpy(text, nbd_text, sizeof text);
		text[i] ^= 0x41;
		n = NULL;
		if (i < 40 || i > 49) { // but for the size and flags, which may be anything
			assert_true(talk(text, NBD_HANDSHAKE, &n, &thread, &l, &err) || i == 17 ||
				    i == 16);
			refused += !n;
			pocket_nbd_close(n);
			pthread_join(thread, NULL);
			close(l.listener);
		}
		if (i % 8 == 0) { // ends early
			assert_int_equal(talk(nbd_text, i, &n, &thread, &l, &err), -EPIPE);
			pthread_join(thread, NULL);
			close(l.listener);
		}
	}
	assert_true(refused > 50);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(kv_answers_over_udp),
		cmocka_unit_test(bad_configs_are_refused),
		cmocka_unit_test(console_serves_one_client_after_another),
		cmocka_unit_test(taps_hold_and_release),
		cmocka_unit_test(broken_tap_stops_the_network_only),
		cmocka_unit_test(standby_takes_the_address_over),
		cmocka_unit_test(armed_machine_resumes_behind_taps),
		cmocka_unit_test(lying_nbd_server_is_survived),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
