// SPDX-License-Identifier: Apache-2.0
// The network and console taps on a running, unmodified QEMU, in a network namespace of this
// process's own: the filter goes in and out while the guest talks, its answers wait for their
// epochs, nothing is lost or doubled.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "eventtap/console/console_tap.h"
#include "eventtap/net/net_tap.h"

#define GUEST_ADDRESS "10.9.0.2" // the test guest's own idea
#define HOST_ADDRESS  "10.9.0.1"
#define PORT_UDP_ECHO 9
#define PORT_TCP_ECHO 7
#define PORT_HTTP     80
#define BIG_BYTES     (32 << 20) // of the file that the guest serves
#define DEADLINE_MS   60000	 // the guest is slow where there is no KVM
#define SILENCE_MS    300	 // an answer would have come in a tenth of it

static struct {
	char folder[64], qmp_path[128], serial_path[128], out_path[128], in_path[128],
		socket_path[128];
	pid_t pid;
	int qmp;
	struct tap *net, *console;
} lab;

static int64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

static bool readable(int fd, int timeout_ms)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, timeout_ms) == 1;
}

static int try_dial(const char *path)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(sun.sun_path, sizeof sun.sun_path, "%s", path);
	if (connect(fd, (struct sockaddr *)&sun, sizeof sun) == 0)
		return fd;
	close(fd);
	return -1;
}

// ---- QMP ----

// One line; events are passed over.
static void qmp_answer(char *line, size_t room)
{
	do {
		size_t n = 0;

		do {
			assert_true(n < room - 1);
			assert_true(readable(lab.qmp, DEADLINE_MS));
			assert_int_equal(read(lab.qmp, line + n, 1), 1);
		} while (line[n++] != '\n');
		line[n] = 0;
	} while (strstr(line, "\"event\""));
}

static void qmp(const char *command)
{
	char line[4096];

	assert_int_equal(send(lab.qmp, command, strlen(command), MSG_NOSIGNAL), strlen(command));
	qmp_answer(line, sizeof line);
	if (!strstr(line, "\"return\""))
		fail_msg("%s: %s", command, line);
}

static void add_chardev(const char *id, const char *path)
{
	char command[512];

	snprintf(command, sizeof command,
		 "{\"execute\":\"chardev-add\",\"arguments\":{\"id\":\"%s\",\"backend\":{\"type\":"
		 "\"socket\",\"data\":{"
		 "\"addr\":{\"type\":\"unix\",\"data\":{\"path\":\"%s\"}},\"server\":false}}}}",
		 id, path);
	qmp(command);
}

static void taps_in(void)
{
	add_chardev("co", lab.out_path);
	add_chardev("ci", lab.in_path);
	qmp("{\"execute\":\"object-add\",\"arguments\":{\"qom-type\":\"filter-redirector\",\"id\":"
	    "\"tap\",\"netdev\":\"n0\","
	    "\"queue\":\"rx\",\"outdev\":\"co\",\"indev\":\"ci\"}}");
}

static void taps_out(void)
{
	qmp("{\"execute\":\"object-del\",\"arguments\":{\"id\":\"tap\"}}");
	qmp("{\"execute\":\"chardev-remove\",\"arguments\":{\"id\":\"co\"}}");
	qmp("{\"execute\":\"chardev-remove\",\"arguments\":{\"id\":\"ci\"}}");
}

// Ends the epoch of both taps as a checkpoint would.
static void close_epoch(uint64_t epoch)
{
	struct tap *taps[] = {lab.console, lab.net};
	struct ft_err err;

	qmp("{\"execute\":\"stop\"}");
	for (int i = 0; i < 2; i++)
		if (taps[i]->ops->close_epoch(taps[i], epoch, &err))
			fail_msg("close epoch: %s", err.text);
	qmp("{\"execute\":\"cont\"}");
}

static void release(uint64_t epoch)
{
	assert_int_equal(lab.console->ops->release(lab.console, epoch, NULL), 0);
	assert_int_equal(lab.net->ops->release(lab.net, epoch, NULL), 0);
}

static void set_mode(enum tap_mode mode)
{
	lab.console->ops->set_mode(lab.console, mode);
	lab.net->ops->set_mode(lab.net, mode);
}

static struct tap_stats stats_of(struct tap *tap)
{
	struct tap_stats stats;

	tap->ops->stats(tap, &stats);
	return stats;
}

// ---- the guest's clients ----

static int client(int type, uint16_t port)
{
	struct sockaddr_in sin = {.sin_family = AF_INET, .sin_port = htons(port)};
	int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);

	inet_pton(AF_INET, GUEST_ADDRESS, &sin.sin_addr);
	assert_int_equal(connect(fd, (struct sockaddr *)&sin, sizeof sin), 0);
	return fd;
}

static void ask(int udp, uint32_t number)
{
	assert_int_equal(send(udp, &number, sizeof number, 0), sizeof number);
}

static void expect_answer(int udp, uint32_t number)
{
	uint32_t got = 0;

	assert_true(readable(udp, DEADLINE_MS));
	assert_int_equal(recv(udp, &got, sizeof got, 0), sizeof got);
	assert_int_equal(got, number);
}

// The guest says that it is ready when it has started its servers; they may take a moment to be
// there.
static void wait_echo(void)
{
	uint32_t number = 0;
	ssize_t n;
	int udp = client(SOCK_DGRAM, PORT_UDP_ECHO);

	for (int64_t deadline = now_us() + DEADLINE_MS * 1000ll;;) {
		assert_true(now_us() < deadline);
		n = send(udp, &number, sizeof number, 0); // may tell of the refusal before
		if (n > 0 && readable(udp, SILENCE_MS) && recv(udp, &number, sizeof number, 0) > 0)
			break;
	}
	close(udp);
}

static int compare(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return x < y ? -1 : x > y;
}

static void print_round_trips(const char *what)
{
	int udp = client(SOCK_DGRAM, PORT_UDP_ECHO);
	int64_t us[300];

	for (uint32_t i = 0; i < 300; i++) {
		us[i] = now_us();
		ask(udp, i);
		expect_answer(udp, i);
		us[i] = now_us() - us[i];
	}
	qsort(us, 300, sizeof *us, compare);
	print_message("UDP echo, %s: min %d us, p50 %d us\n", what, (int)us[0], (int)us[150]);
	close(udp);
}

// ---- tests ----

static void filter_goes_in_and_out_while_the_guest_talks(void **state)
{
	int udp = client(SOCK_DGRAM, PORT_UDP_ECHO);
	uint64_t before;

	(void)state;
	print_round_trips("no tap");
	for (uint32_t i = 0; i < 5; i++) {
		before = stats_of(lab.net).outputs;
		taps_in();
		ask(udp, 2 * i);
		expect_answer(udp, 2 * i);
		assert_true(stats_of(lab.net).outputs > before); // it did come by us
		if (i == 4)
			print_round_trips("through the tap");
		taps_out();
		before = stats_of(lab.net).outputs;
		ask(udp, 2 * i + 1);
		expect_answer(udp, 2 * i + 1);
		assert_int_equal(stats_of(lab.net).outputs, before);
	}
	close(udp);
}

static void answers_wait_for_their_epoch(void **state)
{
	int udp = client(SOCK_DGRAM, PORT_UDP_ECHO);

	(void)state;
	taps_in();
	set_mode(TAP_HOLD);
	close_epoch(1);
	for (uint32_t i = 0; i < 3; i++)
		ask(udp, i);
	assert_false(readable(udp, SILENCE_MS));
	close_epoch(2);
	ask(udp, 3);
	release(1);
	assert_false(readable(udp, SILENCE_MS));
	release(2);
	for (uint32_t i = 0; i < 3; i++)
		expect_answer(udp, i);
	assert_false(readable(udp, SILENCE_MS)); // once each, and 3 is of the next epoch
	close_epoch(3);
	release(3);
	expect_answer(udp, 3);

	// What is released while the guest is stopped leaves when it runs again.
	ask(udp, 4);
	assert_false(readable(udp, SILENCE_MS));
	close_epoch(4);
	qmp("{\"execute\":\"stop\"}");
	release(4);
	assert_false(readable(udp, SILENCE_MS));
	qmp("{\"execute\":\"cont\"}");
	expect_answer(udp, 4);
	set_mode(TAP_PASS);
	taps_out();
	close(udp);
}

static void tcp_goes_on_under_checkpoints(void **state)
{
	static uint8_t sent[128 << 10], got[sizeof sent];
	size_t in = 0, out = 0;
	uint64_t epoch = 1;
	int64_t deadline = now_us() + DEADLINE_MS * 1000ll;
	int tcp;

	(void)state;
	taps_in();
	tcp = client(SOCK_STREAM, PORT_TCP_ECHO); // PASS: the handshake needs no checkpoint
	set_mode(TAP_HOLD);
	for (size_t i = 0; i < sizeof sent; i++)
		sent[i] = (uint8_t)(i * 7 + i / 251);
	while (out < sizeof sent) {
		ssize_t n = in < sizeof sent ? send(tcp, sent + in, sizeof sent - in,
						    MSG_DONTWAIT | MSG_NOSIGNAL)
					     : 0;

		in += n > 0 ? (size_t)n : 0;
		close_epoch(epoch);
		release(epoch++);
		while (readable(tcp, 10)) {
			n = recv(tcp, got + out, sizeof got - out, 0);
			assert_true(n > 0);
			out += (size_t)n;
			if (out == sizeof got)
				break;
		}
		assert_true(now_us() < deadline);
	}
	assert_memory_equal(sent, got, sizeof sent);
	assert_true(epoch > 3);
	set_mode(TAP_PASS);
	taps_out();
	close(tcp);
}

static void bulk_passes(void **state)
{
	static const char get[] = "GET /big HTTP/1.0\r\n\r\n";
	static char buf[1 << 16];
	uint64_t dropped = stats_of(lab.net).dropped;
	int64_t start = now_us();
	size_t total = 0;
	int tcp;

	(void)state;
	taps_in();
	tcp = client(SOCK_STREAM, PORT_HTTP);
	assert_int_equal(send(tcp, get, sizeof get - 1, 0), sizeof get - 1);
	for (ssize_t n = 1; n > 0; total += (size_t)n) {
		assert_true(readable(tcp, DEADLINE_MS));
		n = recv(tcp, buf, sizeof buf, 0);
		assert_true(n >= 0);
	}
	assert_true(total >= BIG_BYTES);
	print_message("TCP from the guest through the tap: %.0f MB/s\n",
		      (double)total / (double)(now_us() - start));
	assert_int_equal(stats_of(lab.net).dropped, dropped);
	taps_out();
	close(tcp);
}

static bool printed(int terminal, const char *text, int timeout_ms)
{
	static char seen[1 << 16];
	int64_t deadline = now_us() + timeout_ms * 1000ll;
	size_t len = 0;

	while (now_us() < deadline && len < sizeof seen - 1) {
		ssize_t n = readable(terminal, (int)((deadline - now_us()) / 1000 + 1))
				    ? read(terminal, seen + len, sizeof seen - 1 - len)
				    : 0;

		if (n <= 0)
			continue;
		len += (size_t)n;
		seen[len] = 0;
		if (strstr(seen, text))
			return true;
	}
	return false;
}

static void console_waits_too(void **state)
{
	static const char first[] = "echo one $((2 + 3)) two\n",
			  second[] = "echo three $((3 + 3)) four\n";
	int terminal = try_dial(lab.socket_path);

	(void)state;
	assert_true(terminal >= 0);
	taps_in();
	assert_int_equal(send(terminal, first, sizeof first - 1, 0), sizeof first - 1);
	assert_true(printed(terminal, "one 5 two", DEADLINE_MS));
	set_mode(TAP_HOLD);
	close_epoch(1);
	assert_int_equal(send(terminal, second, sizeof second - 1, 0), sizeof second - 1);
	assert_false(printed(terminal, "three 6 four", SILENCE_MS));
	close_epoch(2);
	assert_false(printed(terminal, "three 6 four", SILENCE_MS));
	release(2);
	assert_true(printed(terminal, "three 6 four", DEADLINE_MS));
	set_mode(TAP_PASS);
	taps_out();
	close(terminal);
}

// ---- the lab ----

static void skip_all(const char *reason)
{
	printf("skipped: %s\n", reason);
	exit(77);
}

static const char *guest_file(const char *name)
{
	static char path[2][512];
	static int i;
	const char *folder = getenv("FT_GUEST_DIR"), *source = getenv("FT_SOURCE_DIR");

	i = !i;
	if (folder)
		snprintf(path[i], sizeof path[i], "%s/%s", folder, name);
	else
		snprintf(path[i], sizeof path[i], "%s/.cache/guest/%s", source ? source : ".",
			 name);
	if (access(path[i], R_OK)) {
		printf("%s: ", path[i]);
		skip_all("there is no test guest");
	}
	return path[i];
}

// A namespace in which nothing can be disturbed, with one tap device on the guest's network.
static void network_new(void)
{
	struct ifreq req = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	struct sockaddr_in *sin = (struct sockaddr_in *)&req.ifr_addr;
	int tun, fd;

	if (unshare(CLONE_NEWNET))
		skip_all("no privilege for a network namespace");
	tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	strcpy(req.ifr_name, "tap0");
	if (tun < 0 || ioctl(tun, TUNSETIFF, &req) || ioctl(tun, TUNSETPERSIST, 1))
		skip_all("no tap devices");
	close(tun);
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	*sin = (struct sockaddr_in){.sin_family = AF_INET};
	inet_pton(AF_INET, HOST_ADDRESS, &sin->sin_addr);
	assert_int_equal(ioctl(fd, SIOCSIFADDR, &req), 0);
	inet_pton(AF_INET, "255.255.255.0", &sin->sin_addr);
	assert_int_equal(ioctl(fd, SIOCSIFNETMASK, &req), 0);
	req.ifr_flags = IFF_UP | IFF_RUNNING;
	assert_int_equal(ioctl(fd, SIOCSIFFLAGS, &req), 0);
	close(fd);
}

static void qemu_start(void)
{
	char qmp_arg[256], serial_arg[256];
	const char *kernel = guest_file("vmlinuz"), *initrd = guest_file("initrd.gz");

	snprintf(qmp_arg, sizeof qmp_arg, "unix:%s,server=on,wait=off", lab.qmp_path);
	snprintf(serial_arg, sizeof serial_arg, "socket,id=ser,path=%s,server=on,wait=off",
		 lab.serial_path);
	lab.pid = fork();
	assert_true(lab.pid >= 0);
	if (lab.pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execlp("qemu-system-x86_64", "qemu-system-x86_64", "-machine", "pc,accel=tcg",
		       "-cpu", "max", "-m", "128", "-nodefaults", "-no-user-config", "-display",
		       "none", "-vga", "none", "-kernel", kernel, "-initrd", initrd, "-append",
		       "console=ttyS0 quiet panic=1 tsc=unstable quietguest", "-chardev",
		       serial_arg, "-serial", "chardev:ser", "-qmp", qmp_arg, "-netdev",
		       "tap,id=n0,ifname=tap0,script=no,downscript=no,vhost=off", "-device",
		       "virtio-net-pci,netdev=n0,mac=52:54:00:00:00:02", (char *)NULL);
		_exit(127);
	}
}

static void qmp_connect(void)
{
	char greeting[4096];

	for (int64_t deadline = now_us() + DEADLINE_MS * 1000ll;
	     (lab.qmp = try_dial(lab.qmp_path)) < 0; poll(NULL, 0, 10)) {
		assert_true(now_us() < deadline);
		assert_int_equal(waitpid(lab.pid, NULL, WNOHANG), 0);
	}
	qmp_answer(greeting, sizeof greeting);
	qmp("{\"execute\":\"qmp_capabilities\"}");
}

static int lab_new(void **state)
{
	int terminal;
	struct ft_err err;

	(void)state;
	strcpy(lab.folder, "/tmp/net-tap-qemu-XXXXXX");
	assert_non_null(mkdtemp(lab.folder));
	snprintf(lab.qmp_path, sizeof lab.qmp_path, "%s/qmp", lab.folder);
	snprintf(lab.serial_path, sizeof lab.serial_path, "%s/serial", lab.folder);
	snprintf(lab.out_path, sizeof lab.out_path, "%s/out", lab.folder);
	snprintf(lab.in_path, sizeof lab.in_path, "%s/in", lab.folder);
	snprintf(lab.socket_path, sizeof lab.socket_path, "%s/console", lab.folder);
	qemu_start();
	if (net_tap_open(&(struct net_tap_config){.id = "net0",
						  .out_path = lab.out_path,
						  .in_path = lab.in_path,
						  .held_bytes_max = 64u << 20},
			 &lab.net, &err) ||
	    console_tap_open(&(struct console_tap_config){.id = "console",
							  .vmm_path = lab.serial_path,
							  .socket_path = lab.socket_path,
							  .held_bytes_max = 1u << 20},
			     &lab.console, &err))
		fail_msg("%s", err.text);
	terminal = try_dial(lab.socket_path);
	qmp_connect();
	assert_true(printed(terminal, "GUEST-READY", DEADLINE_MS));
	close(terminal);
	wait_echo();
	return 0;
}

static int lab_free(void **state)
{
	(void)state;
	kill(lab.pid, SIGKILL);
	waitpid(lab.pid, NULL, 0);
	lab.net->ops->free(lab.net);
	lab.console->ops->free(lab.console);
	close(lab.qmp);
	unlink(lab.qmp_path);
	unlink(lab.serial_path);
	return rmdir(lab.folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(filter_goes_in_and_out_while_the_guest_talks),
		cmocka_unit_test(answers_wait_for_their_epoch),
		cmocka_unit_test(tcp_goes_on_under_checkpoints),
		cmocka_unit_test(bulk_passes),
		cmocka_unit_test(console_waits_too),
	};

	if (system("qemu-system-x86_64 -version >/dev/null 2>&1"))
		skip_all("there is no qemu-system-x86_64");
	guest_file("vmlinuz");
	guest_file("initrd.gz");
	network_new();
	return cmocka_run_group_tests(tests, lab_new, lab_free);
}
