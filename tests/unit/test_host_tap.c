// SPDX-License-Identifier: Apache-2.0
// The network tap that writes to the host's interface, on real tap interfaces in a network
// namespace of this process's own. What arrives is read where the host would read it: from a packet
// socket on the interface, or behind a bridge.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "eventtap/net/host_tap.h"
#include "eventtap/net/net_tap.h"
#include "tests/fixture/clock.h"

#define HELD_BYTES_MAX (4u << 20)
#define DEADLINE_MS    10000
#define HEADER	       12     // of a modern virtio-net
#define TYPE	       0x88b5 // of Ethernet, for experiments: nobody else's frames have it

struct lab {
	char folder[64], out_path[100];
	struct tap *tap;
	int out, host, wire; // QEMU's end, the interface, a packet socket on it
	bool headers;
};

static void run(const char *line)
{
	if (system(line))
		fail_msg("%s", line);
}

static int interface_open(const char *name, int flags)
{
	struct ifreq req = {.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | flags)};
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK), header = HEADER;

	assert_true(fd >= 0);
	strcpy(req.ifr_name, name);
	assert_int_equal(ioctl(fd, TUNSETIFF, &req), 0);
	if (flags & IFF_VNET_HDR)
		assert_int_equal(ioctl(fd, TUNSETVNETHDRSZ, &header), 0);
	return fd;
}

static int listen_on(const char *name)
{
	struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0), bytes = 8 << 20;
	struct ifreq req = {0};

	assert_true(fd >= 0);
	strcpy(req.ifr_name, name);
	assert_int_equal(ioctl(fd, SIOCGIFINDEX, &req), 0);
	at.sll_ifindex = req.ifr_ifindex;
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes);
	assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
	return fd;
}

static void plug(struct lab *l)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};

	snprintf(sun.sun_path, sizeof sun.sun_path, "%s", l->out_path);
	l->out = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(l->out, (struct sockaddr *)&sun, sizeof sun), 0);
}

static void lab_open(struct lab *l)
{
	struct ft_err err;

	strcpy(l->folder, "/tmp/host-tap-XXXXXX");
	assert_non_null(mkdtemp(l->folder));
	snprintf(l->out_path, sizeof l->out_path, "%s/out", l->folder);
	if (net_tap_open(&(struct net_tap_config){.id = "net0",
						  .out_path = l->out_path,
						  .host_fd = l->host,
						  .held_bytes_max = HELD_BYTES_MAX},
			 &l->tap, &err))
		fail_msg("%s", err.text);
	plug(l);
}

static struct lab *lab_new(bool headers)
{
	struct lab *l = calloc(1, sizeof *l);

	l->headers = headers;
	l->host = interface_open("tapa", headers ? IFF_VNET_HDR : 0);
	run("ip link set tapa up");
	l->wire = listen_on("tapa");
	lab_open(l);
	return l;
}

static void lab_free(struct lab *l)
{
	if (l->out >= 0)
		close(l->out);
	if (l->tap)
		l->tap->ops->free(l->tap);
	assert_int_equal(fcntl(l->host, F_GETFD), -1); // it was the tap's
	if (l->wire >= 0)
		close(l->wire);
	assert_int_equal(rmdir(l->folder), 0);
	free(l);
}

// ---- frames ----

static size_t frame_make(uint8_t *frame, uint32_t number, size_t len)
{
	struct ethhdr eth = {.h_dest = {2, 0, 0, 0, 0, 1},
			     .h_source = {2, 0, 0, 0, 0, 2},
			     .h_proto = htons(TYPE)};

	memset(frame, (int)number, len);
	memcpy(frame, &eth, sizeof eth);
	memcpy(frame + sizeof eth, &number, sizeof number);
	return len;
}

static void send_raw(struct lab *l, const uint8_t *frame, size_t len)
{
	uint8_t wire[4 + HEADER + 2048];
	uint32_t be = htonl((uint32_t)len);

	memcpy(wire, &be, 4);
	memcpy(wire + 4, frame, len);
	assert_int_equal(send(l->out, wire, 4 + len, MSG_NOSIGNAL), 4 + len);
}

static void transmit(struct lab *l, uint32_t number)
{
	uint8_t frame[HEADER + 1514] = {0};
	size_t header = l->headers ? HEADER : 0;

	send_raw(l, frame, header + frame_make(frame + header, number, 60 + number % 1400));
}

// The next frame of ours, of an interface or of a packet socket.
static size_t take(int fd, uint8_t *frame, size_t room)
{
	for (uint64_t deadline = now_ms() + DEADLINE_MS;;) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		struct ethhdr eth;
		ssize_t n;

		assert_true(now_ms() < deadline);
		if (poll(&p, 1, 100) <= 0)
			continue;
		n = read(fd, frame, room);
		if (n < (ssize_t)sizeof eth)
			continue;
		memcpy(&eth, frame, sizeof eth);
		if (ntohs(eth.h_proto) == TYPE || ntohs(eth.h_proto) == ETH_P_RARP)
			return (size_t)n;
	}
}

static void expect(int fd, uint32_t number)
{
	uint8_t got[2048], frame[2048];
	size_t len = frame_make(frame, number, 60 + number % 1400);

	assert_int_equal(take(fd, got, sizeof got), len);
	assert_memory_equal(got, frame, len);
}

static void expect_silence(int fd)
{
	uint8_t frame[2048];
	struct pollfd p = {.fd = fd, .events = POLLIN};
	struct ethhdr eth;

	for (uint64_t until = now_ms() + 30; now_ms() < until;) {
		if (poll(&p, 1, 10) <= 0 || read(fd, frame, sizeof frame) < (ssize_t)sizeof eth)
			continue;
		memcpy(&eth, frame, sizeof eth);
		assert_int_not_equal(ntohs(eth.h_proto), TYPE);
	}
}

static struct tap_stats stats_of(struct lab *l)
{
	struct tap_stats stats;

	l->tap->ops->stats(l->tap, &stats);
	return stats;
}

static void wait_outputs(struct lab *l, uint64_t n)
{
	for (uint64_t deadline = now_ms() + DEADLINE_MS; stats_of(l).outputs < n; sched_yield())
		assert_true(now_ms() < deadline);
}

static void close_epoch(struct lab *l, uint64_t epoch)
{
	struct ft_err err;

	if (l->tap->ops->close_epoch(l->tap, epoch, &err))
		fail_msg("close epoch: %s", err.text);
}

// ---- tests ----

static void pass_and_hold(bool headers)
{
	struct lab *l = lab_new(headers);
	uint32_t n = 0;

	for (; n < 1000; n++)
		transmit(l, n);
	for (uint32_t i = 0; i < n; i++)
		expect(l->wire, i);
	l->tap->ops->set_mode(l->tap, TAP_HOLD);
	close_epoch(l, 1);
	for (uint64_t epoch = 2; epoch < 40; epoch++) {
		// More than one release() writes itself.
		uint32_t first = n, frames = epoch % 10 ? 5 : 700;

		for (; n < first + frames; n++)
			transmit(l, n);
		close_epoch(l, epoch);
		transmit(l, n);
		wait_outputs(l, n + 1);
		if (epoch % 13 == 0)
			expect_silence(l->wire);
		assert_int_equal(l->tap->ops->release(l->tap, epoch, NULL), 0);
		for (uint32_t i = first - (epoch > 2); i < n; i++)
			expect(l->wire, i);
		n++;
	}
	expect_silence(l->wire);
	l->tap->ops->set_mode(l->tap, TAP_PASS);
	transmit(l, n);
	expect(l->wire, n - 1);
	expect(l->wire, n);
	assert_true(net_tap_settle(l->tap, DEADLINE_MS));
	assert_int_equal(stats_of(l).dropped, 0);
	assert_int_equal(stats_of(l).outputs, n + 1);
	lab_free(l);
}

static void frames_leave_in_order_when_they_may(void **state)
{
	(void)state;
	pass_and_hold(true);
	pass_and_hold(false);
}

// The bridge hears of a guest that moved, though QEMU's frame for that has no header.
static void an_announcement_gets_its_header(void **state)
{
	struct lab *l = lab_new(true);
	uint8_t rarp[60] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 2, 0x80, 0x35},
		got[2048];

	(void)state;
	send_raw(l, rarp, sizeof rarp);
	assert_int_equal(take(l->wire, got, sizeof got), sizeof rarp);
	assert_memory_equal(got, rarp, sizeof rarp);
	transmit(l, 7);
	expect(l->wire, 7);
	assert_int_equal(stats_of(l).dropped, 0);
	lab_free(l);
}

static void what_the_interface_refuses_is_dropped_and_counted(void **state)
{
	struct lab *l = lab_new(true);
	uint8_t strange[80] = {0, 99};

	(void)state;
	send_raw(l, strange, sizeof strange); // no such kind of segmentation
	transmit(l, 1);
	expect(l->wire, 1);
	assert_int_equal(stats_of(l).dropped, 1);
	run("ip link set tapa down");
	for (uint32_t i = 2; i < 10; i++)
		transmit(l, i);
	for (uint64_t deadline = now_ms() + DEADLINE_MS; stats_of(l).dropped < 9; sched_yield())
		assert_true(now_ms() < deadline);
	assert_int_equal(stats_of(l).held_outputs, 0);
	run("ip link set tapa up");
	transmit(l, 10);
	expect(l->wire, 10);
	lab_free(l);
}

// Behind the interface is a network that takes less than the guest gives: what is on its way is
// bounded by the interface, the rest waits in the queue, nothing is lost and nobody spins or stops.
static void a_slow_network_is_waited_for(void **state)
{
	struct lab *l = lab_new(true);
	int far = interface_open("tapb", 0), bytes = 20000;
	uint32_t n = 0;

	(void)state;
	run("ip link add brx type bridge forward_delay 0 && ip link set brx up && "
	    "ip link set tapa master brx && ip link set tapb master brx && ip link set tapb up");
	if (system("tc qdisc add dev tapb root tbf rate 8mbit burst 3000 limit 8000000")) {
		print_message("skipped: no tc, or no token bucket in this kernel\n");
		close(far);
		run("ip link del brx");
		lab_free(l);
		return;
	}
	assert_int_equal(ioctl(l->host, TUNSETSNDBUF, &bytes), 0);
	for (; n < 600; n++)
		transmit(l, n);
	wait_outputs(l, n);
	assert_true(stats_of(l).held_outputs > 300);
	l->tap->ops->set_mode(l->tap, TAP_HOLD);
	close_epoch(l, 1);
	for (; n < 700; n++)
		transmit(l, n);
	close_epoch(l, 2);
	for (uint32_t i = 0; i < 600; i++)
		expect(far, i);
	expect_silence(far);
	assert_int_equal(l->tap->ops->release(l->tap, 2, NULL), 0);
	for (uint32_t i = 600; i < n; i++)
		expect(far, i);
	assert_int_equal(stats_of(l).dropped, 0);
	// Released and not gone: that is what is discarded.
	for (; n < 1000; n++)
		transmit(l, n);
	close_epoch(l, 3);
	assert_int_equal(l->tap->ops->release(l->tap, 3, NULL), 0);
	l->tap->ops->discard(l->tap);
	assert_int_equal(stats_of(l).held_outputs, 0);
	assert_true(stats_of(l).dropped > 0);
	close(far);
	run("ip link del brx");
	lab_free(l);
}

// The filter is taken out and the tap freed at once: what the guest said before leaves.
static void last_words_leave(void **state)
{
	(void)state;
	for (int round = 0; round < 20; round++) {
		struct lab *l = lab_new(true);
		int wire = l->wire;

		for (uint32_t i = 0; i < 100; i++)
			transmit(l, i);
		l->wire = -1;
		lab_free(l);
		for (uint32_t i = 0; i < 100; i++)
			expect(wire, i);
		close(wire);
	}
}

static void refused(int fd, const char *text)
{
	struct net_tap_config config = {.id = "net0",
					.out_path = "/tmp/host-tap-refused",
					.host_fd = fd,
					.held_bytes_max = HELD_BYTES_MAX};
	struct tap *tap;
	struct ft_err err;

	assert_int_equal(net_tap_open(&config, &tap, &err), -ENOTSUP);
	assert_string_equal(err.text, text);
	assert_int_equal(access(config.out_path, F_OK), -1);
	assert_true(fcntl(fd, F_GETFD) >= 0); // still the caller's
	close(fd);
}

static void only_an_interface_as_qemu_has_it_will_do(void **state)
{
	int fd = interface_open("tapa", IFF_VNET_HDR);

	(void)state;
	assert_int_equal(fcntl(fd, F_SETFL, 0), 0);
	refused(fd, "net0: tap interface tapa: not as QEMU opens one");
	refused(open("/dev/null", O_RDWR | O_CLOEXEC),
		"net0: tap interface: Inappropriate ioctl for device");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(frames_leave_in_order_when_they_may),
		cmocka_unit_test(an_announcement_gets_its_header),
		cmocka_unit_test(what_the_interface_refuses_is_dropped_and_counted),
		cmocka_unit_test(a_slow_network_is_waited_for),
		cmocka_unit_test(last_words_leave),
		cmocka_unit_test(only_an_interface_as_qemu_has_it_will_do),
	};

	if (unshare(CLONE_NEWNET) || access("/dev/net/tun", R_OK | W_OK) ||
	    system("command -v ip >/dev/null")) {
		printf("skipped: no privilege for a network namespace, no tap interfaces, or no "
		       "ip\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
