// SPDX-License-Identifier: Apache-2.0
/* Guest files, and clients that notice everything. */
#include "tests/agent/harness.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

#include "vmm-glue/pocket/kv.h"

#define KV_REPEAT_MS 100
#define KV_KEYS	     50

/* ---- pocket ---- */

void kv_open(struct kv_client *c)
{
	struct sockaddr_in to = {.sin_family = AF_INET,
				 .sin_port = htons(KV_PORT),
				 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

	*c = (struct kv_client){.chain = KV_CHAIN_START};
	c->fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(c->fd, (struct sockaddr *)&to, sizeof to), 0);
}

void kv_close(struct kv_client *c)
{
	close(c->fd);
}

/* Sends until the answer to this very operation is there. */
static void exchange(struct kv_client *c, const char *text, struct kv_answer *answer)
{
	uint64_t began = now_ms(), until = began + GOES_ON_MS, took;
	char got[KV_ANSWER_MAX + 1];

	for (;;) {
		struct pollfd p = {.fd = c->fd, .events = POLLIN};
		ssize_t n;

		(void)!send(c->fd, text, strlen(text), MSG_NOSIGNAL);
		if (now_ms() > until)
			fail_msg("no answer to '%s'", text);
		/* An error of the socket (nobody bound the port for a moment) would spin. */
		if (poll(&p, 1, KV_REPEAT_MS) <= 0 || (p.revents & POLLERR)) {
			(void)!recv(c->fd, got, sizeof got, MSG_DONTWAIT);
			poll(NULL, 0, 1);
			continue;
		}
		n = recv(c->fd, got, sizeof got - 1, MSG_DONTWAIT);
		if (n <= 0)
			continue;
		got[n] = '\0';
		if (!kv_answer_parse(got, (size_t)n, answer))
			fail_msg("'%s' is no answer", got);
		if (answer->seq == c->seq + 1)
			break;
		assert_true(answer->seq <= c->seq); /* a late repetition */
	}
	took = now_ms() - began;
	if (took > c->longest_ms)
		c->longest_ms = took;
}

/* False: an error of the disk. */
static bool operate(struct kv_client *c, bool put, unsigned key, const char *value)
{
	char text[KV_REQUEST_MAX];
	struct kv_answer answer;

	snprintf(text, sizeof text, put ? "PUT 77 %lu key%u %s" : "GET 77 %lu key%u", c->seq + 1,
		 key, value);
	exchange(c, text, &answer);
	if (answer.status == KV_ERR && !strcmp(answer.text, "io"))
		return false;
	if (answer.status == KV_ERR)
		fail_msg("'%s' was answered '%s'", text, answer.text);
	c->seq++;
	c->number++;
	c->chain = kv_chain(c->chain, text, strlen(text));
	assert_int_equal(answer.status, put ? KV_OK : KV_VALUE);
	assert_int_equal(answer.number, c->number);
	assert_true(answer.chain == c->chain);
	if (!put)
		assert_string_equal(answer.text, value);
	return true;
}

void kv_work(struct kv_client *c, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		char value[32];

		snprintf(value, sizeof value, "value-%lu", c->number);
		assert_true(operate(c, true, i % KV_KEYS, value));
		assert_true(operate(c, false, i % KV_KEYS, value));
	}
}

void kv_until_error(struct kv_client *c, unsigned n)
{
	while (operate(c, true, n % KV_KEYS, "v"))
		if (!n--)
			fail_msg("no error of the disk");
}

void kv_go_on(const struct kv_client *then, unsigned n)
{
	struct kv_client c;

	kv_open(&c);
	c.seq = then->seq;
	c.number = then->number;
	c.chain = then->chain;
	kv_work(&c, n);
	kv_close(&c);
}

void pocket_conf(const char *path, const char *ft, const char *extra)
{
	write_file(path,
		   "name = \"%s\"\nvmm = \"pocket\"\nmemory = \"32M\"\nprogram = \"kv\"\n"
		   "disk root { image = \"A.img\" size = \"8M\" }\n"
		   "nic net0 { attach = \"udp:127.0.0.1:%d\" }\n"
		   "tls { insecure = true }\nft { takeover_ms = 1000 %s }\n%s\n",
		   GUEST, KV_PORT, ft, extra);
}

void pocket_image(const char *path)
{
	/* The kv program writes its journal and reads nothing. */
	shell("truncate -s 8M %s && dd if=/dev/urandom of=%s bs=1M count=2 conv=notrunc "
	      "status=none "
	      "&& dd if=/dev/urandom of=%s bs=1M count=2 seek=6 conv=notrunc status=none",
	      path, path, path);
}

const char *unix_uri(const char *name)
{
	static char uri[4][200];
	static unsigned next;

	next = (next + 1) % 4;
	snprintf(uri[next], sizeof uri[next], "kemari:unix:%s", at("%s", name));
	return uri[next];
}

void pocket_pair(struct host *a, struct host *b, const char *ft, const char *extra)
{
	const char *conf = at("g.conf");

	*a = host_make("A");
	*b = host_make("B");
	pocket_conf(conf, ft, extra);
	host_start(a, conf, NULL);
	host_start(b, conf, "--set", "disk.root.image=B.img", "--incoming", unix_uri("b.sock"),
		   NULL);
	wait_state(a, "solo", START_MS);
	wait_state(b, "standby", START_MS);
}

void pocket_writer_conf(const char *path, const char *memory)
{
	write_file(path,
		   "name = \"%s\"\nvmm = \"pocket\"\nmemory = \"%s\"\nprogram = \"dirty\"\n"
		   "tls { insecure = true }\n",
		   GUEST, memory);
}

void pocket_writer_start(struct host *h, const char *conf)
{
	uint64_t until = now_ms() + 1000;

	host_start(h, conf, NULL);
	wait_state(h, "solo", START_MS);
	while (now_ms() < until - 5)
		breathe(until, "the guest writes");
}

/* ---- QEMU ---- */

static char kernel[200], initrd[200];

void need_qemu(void)
{
	const char *folder = getenv("FT_GUEST_DIR"), *source = getenv("FT_SOURCE_DIR");

	if (folder)
		snprintf(kernel, sizeof kernel, "%s/vmlinuz", folder);
	else
		snprintf(kernel, sizeof kernel, "%s/.cache/guest/vmlinuz", source ? source : ".");
	snprintf(initrd, sizeof initrd, "%.*s/initrd.gz", (int)(strrchr(kernel, '/') - kernel),
		 kernel);
	if (access(kernel, R_OK) || access(initrd, R_OK)) {
		printf("skipped: no test guest at %s (tests/guest/build makes it)\n", kernel);
		exit(77);
	}
	if (system("command -v qemu-system-x86_64 >/dev/null") != 0) {
		printf("skipped: qemu-system-x86_64 is not installed\n");
		exit(77);
	}
}

void bridge(void)
{
	shell("ip link add br0 type bridge forward_delay 0 && ip addr add 10.9.0.1/24 dev br0 && "
	      "ip link set br0 up && "
	      "ip tuntap add tapb mode tap vnet_hdr && ip link set tapb master br0 up");
}

void qemu_conf(const char *path, const char *append, const char *ft, const char *extra)
{
	write_file(path,
		   "name = \"%s\"\nmemory = \"256M\"\nkernel = \"%s\"\ninitrd = \"%s\"\n"
		   "append = \"console=ttyS0 quiet panic=1 tsc=unstable %s\"\n"
		   "disk root { image = \"A.img\" size = \"64M\" }\n"
		   "console { log = \"A.console\" socket = \"A.tty.sock\" }\n"
		   "tls { insecure = true }\nft { takeover_ms = 1000 %s }\n%s\n",
		   GUEST, kernel, initrd, append, ft, extra);
}

int guest_connect(void)
{
	struct sockaddr_in to = {
		.sin_family = AF_INET, .sin_port = htons(7), .sin_addr.s_addr = htonl(0x0a090002)};
	struct timeval limit = {GOES_ON_MS / 1000, 0};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
		fail_msg("connecting to the guest: %s", strerror(errno));
	return fd;
}

void guest_echo(int fd, unsigned n)
{
	static unsigned number;

	for (unsigned i = 0; i < n; i++) {
		char sent[16], got[16];

		snprintf(sent, sizeof sent, "message %6u\n", number++ % 1000000);
		assert_int_equal(send(fd, sent, 15, MSG_NOSIGNAL), 15);
		if (recv(fd, got, 15, MSG_WAITALL) != 15)
			fail_msg("the guest does not answer: %s", strerror(errno));
		assert_memory_equal(sent, got, 15);
	}
}

void guest_type(const struct host *h, const char *line)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(to.sun_path, sizeof to.sun_path, "%s", at("%s.tty.sock", h->id));
	assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
	assert_int_equal(send(fd, line, strlen(line), MSG_NOSIGNAL), strlen(line));
	assert_int_equal(send(fd, "\n", 1, MSG_NOSIGNAL), 1);
	close(fd);
}

void qemu_start(struct host *h, const char *conf)
{
	uint64_t until = now_ms() + BOOT_MS;

	host_start(h, conf, NULL);
	wait_state(h, "solo", START_MS);
	while (!strstr(file_text(at("%s.console", h->id)), "GUEST-READY"))
		breathe(until, "the guest boots");
}

void qemu_standby(struct host *h, const char *uri, const char *set)
{
	char image[64], console[64], tty[64];

	snprintf(image, sizeof image, "disk.root.image=%s.img", h->id);
	snprintf(console, sizeof console, "console.log=%s.console", h->id);
	snprintf(tty, sizeof tty, "console.socket=%s.tty.sock", h->id);
	host_start(h, at("g.conf"), "--set", image, "--set", console, "--set", tty, "--incoming",
		   uri, set ? "--set" : NULL, set, NULL);
	wait_state(h, "standby", START_MS);
}

void guest_noise(const struct host *h, unsigned block_bytes, unsigned first, unsigned n)
{
	static unsigned number;
	char line[200], done[32];
	uint64_t until = now_ms() + GOES_ON_MS;

	snprintf(done, sizeof done, "WROTE-%u", ++number);
	snprintf(line, sizeof line,
		 "dd if=/dev/urandom of=/dev/vda bs=%u seek=%u count=%u conv=notrunc,fsync "
		 "2>/dev/null; echo WROTE-$((%u))",
		 block_bytes, first, n, number);
	guest_type(h, line);
	while (!strstr(file_text(at("%s.console", h->id)), done))
		breathe(until, done);
}

int last_tick(const struct host *h)
{
	int tick = -1, n;
	char end;

	for (const char *t = file_text(at("%s.console", h->id)); (t = strstr(t, "tick ")); t++)
		if (sscanf(t, "tick %d%c", &n, &end) == 2)
			tick = n;
	return tick;
}

int wait_tick(const struct host *h, int after, unsigned within_ms)
{
	uint64_t until = now_ms() + within_ms;

	while (last_tick(h) <= after) {
		if (now_ms() >= until)
			fail_msg("%s: the guest does not tick beyond %d; its agent said: %s", h->id,
				 after, file_text(h->log));
		breathe(until, "tick");
	}
	return last_tick(h);
}

void ticks_on(const struct host *h)
{
	wait_tick(h, last_tick(h) + 2, GOES_ON_MS);
}
