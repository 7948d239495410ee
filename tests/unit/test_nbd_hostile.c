// SPDX-License-Identifier: Apache-2.0
// NBD clients without a library, which say what they like: each gets an answer or is hung up on,
// and whoever behaves is served all the while.
#include <libnbd.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "eventtap/block/nbd_proto.h"
#include "eventtap/block/nbd_server.h"
#include "tests/fixture/clock.h"
#include "tests/fixture/nbd_lab.h"

static int raw_connect(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", lab.sock);
	assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	return fd;
}

static void get(int fd, void *buf, size_t len)
{
	assert_int_equal(recv(fd, buf, len, MSG_WAITALL), len);
}

static void put(int fd, const void *buf, size_t len)
{
	assert_int_equal(send(fd, buf, len, MSG_NOSIGNAL), len);
}

static void put_option(int fd, uint32_t option, const void *data, uint32_t len)
{
	uint8_t header[16];
	nbd_put32(nbd_put32(nbd_put64(header, NBD_OPT_MAGIC), option), len);
	put(fd, header, sizeof(header));
	if (len > 0)
		put(fd, data, len);
}

// Type of the next option reply, whose data are skipped.
static uint32_t get_reply(int fd)
{
	uint8_t header[20], data[256];
	get(fd, header, sizeof(header));
	assert_true(nbd_get64(header) == NBD_OPT_REPLY_MAGIC);
	uint32_t len = nbd_get32(header + 16);
	assert_true(len <= sizeof(data));
	if (len > 0)
		get(fd, data, len);
	return nbd_get32(header + 12);
}

static int raw_hello(uint32_t flags)
{
	uint8_t hello[18], answer[4];
	int fd = raw_connect();
	get(fd, hello, sizeof(hello));
	assert_true(nbd_get64(hello) == NBD_MAGIC);
	nbd_put32(answer, flags);
	put(fd, answer, sizeof(answer));
	return fd;
}

static int raw_go(bool structured)
{
	int fd = raw_hello(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
	if (structured) {
		put_option(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
		assert_int_equal(get_reply(fd), NBD_REP_ACK);
	}
	put_option(fd, NBD_OPT_GO, "\0\0\0\0\0\0", 6);
	assert_int_equal(get_reply(fd), NBD_REP_INFO);
	assert_int_equal(get_reply(fd), NBD_REP_INFO);
	assert_int_equal(get_reply(fd), NBD_REP_ACK);
	return fd;
}

static void put_request(int fd, uint16_t command, uint64_t offset, uint32_t len)
{
	uint8_t raw[NBD_REQUEST_BYTES], *at = nbd_put32(raw, NBD_REQUEST_MAGIC);
	at = nbd_put16(at, 0);
	at = nbd_put16(at, command);
	at = nbd_put64(at, 0x1122334455667788);
	at = nbd_put64(at, offset);
	nbd_put32(at, len);
	put(fd, raw, sizeof(raw));
}

static uint32_t get_simple(int fd)
{
	uint8_t raw[16];
	get(fd, raw, sizeof(raw));
	assert_true(nbd_get32(raw) == NBD_SIMPLE_REPLY_MAGIC);
	assert_true(nbd_get64(raw + 8) == 0x1122334455667788);
	return nbd_get32(raw + 4);
}

// The server hangs up, whatever it said before, within the deadline.
static void expect_dropped(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	char buf[4096];
	ssize_t n;
	do {
		assert_int_equal(poll(&p, 1, 5000), 1);
		n = recv(fd, buf, sizeof(buf), 0);
	} while (n > 0);
	close(fd);
}

static void test_handshake_limits(void **state)
{
	(void)state;
	static uint8_t junk[70000];
	int fd = raw_hello(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
	put_option(fd, 77, junk, 100);
	assert_int_equal(get_reply(fd), NBD_REP_ERR_UNSUP);
	put_option(fd, 5, NULL, 0); // STARTTLS
	assert_int_equal(get_reply(fd), NBD_REP_ERR_UNSUP);
	put_option(fd, NBD_OPT_GO, junk, 60000);
	assert_int_equal(get_reply(fd), NBD_REP_ERR_TOO_BIG);
	put_option(fd, NBD_OPT_GO, "\xff\xff\xff\xff\0\0", 6);
	assert_int_equal(get_reply(fd), NBD_REP_ERR_INVALID);
	put_option(fd, NBD_OPT_GO, "\0\0\0\1x\0\0", 7);
	assert_int_equal(get_reply(fd), NBD_REP_ERR_UNKNOWN);
	put_option(fd, NBD_OPT_INFO, "\0\0\0\4root\0\1\0\1", 12);
	for (int i = 0; i < 3; i++)
		assert_int_equal(get_reply(fd), NBD_REP_INFO);
	assert_int_equal(get_reply(fd), NBD_REP_ACK);
	put_option(fd, NBD_OPT_LIST, "x", 1);
	assert_int_equal(get_reply(fd), NBD_REP_ERR_INVALID);
	put_option(fd, NBD_OPT_SET_META_CONTEXT, "\0\0\0\0\0\0\0\0",
		   8); // before structured replies
	assert_int_equal(get_reply(fd), NBD_REP_ERR_INVALID);
	put_option(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
	assert_int_equal(get_reply(fd), NBD_REP_ACK);
	put_option(fd, NBD_OPT_SET_META_CONTEXT, "\0\0\0\0\xff\xff\xff\xff", 8);
	assert_int_equal(get_reply(fd), NBD_REP_ERR_INVALID);
	put_option(fd, NBD_OPT_LIST_META_CONTEXT, "\0\0\0\0\0\0\0\0", 8);
	assert_int_equal(get_reply(fd), NBD_REP_META_CONTEXT);
	assert_int_equal(get_reply(fd), NBD_REP_ACK);
	put_option(fd, NBD_OPT_ABORT, NULL, 0);
	assert_int_equal(get_reply(fd), NBD_REP_ACK);
	expect_dropped(fd);

	fd = raw_hello(0xffffffff); // flags that nobody offered
	expect_dropped(fd);
	fd = raw_hello(NBD_FLAG_FIXED_NEWSTYLE);
	put(fd, junk, 16); // no option
	expect_dropped(fd);
	fd = raw_hello(NBD_FLAG_FIXED_NEWSTYLE);
	uint8_t huge[16];
	nbd_put32(nbd_put32(nbd_put64(huge, NBD_OPT_MAGIC), NBD_OPT_GO), UINT32_MAX);
	put(fd, huge, sizeof(huge));
	expect_dropped(fd);
	fd = raw_hello(NBD_FLAG_FIXED_NEWSTYLE);
	put_option(fd, NBD_OPT_EXPORT_NAME, "nope", 4);
	expect_dropped(fd);
	// The oldest client: EXPORT_NAME, padding and all, simple replies.
	fd = raw_hello(0);
	put_option(fd, NBD_OPT_EXPORT_NAME, "root", 4);
	uint8_t old[134];
	get(fd, old, sizeof(old));
	assert_int_equal(nbd_get64(old), NBD_LAB_BYTES);
	put_request(fd, NBD_CMD_READ, 0, 512);
	assert_int_equal(get_simple(fd), 0);
	get(fd, junk, 512);
	close(fd);
}

static void test_hostile(void **state)
{
	(void)state;
	// A good client goes on through all of it.
	struct nbd_handle *good = disk_lab_connect();
	static uint8_t buf[1 << 16];
	int fd = raw_go(false);
	put_request(fd, 99, 0, 0);
	assert_int_equal(get_simple(fd), 22);
	put_request(fd, NBD_CMD_READ, 0, NBD_REQUEST_MAX + 1);
	assert_int_equal(get_simple(fd), 22);
	put_request(fd, NBD_CMD_READ, 0, UINT32_MAX);
	assert_int_equal(get_simple(fd), 22);
	put_request(fd, NBD_CMD_BLOCK_STATUS, 0, 512); // not agreed on
	assert_int_equal(get_simple(fd), 22);
	put_request(fd, NBD_CMD_FLUSH, 1, 0);
	assert_int_equal(get_simple(fd), 22);
	put_request(fd, NBD_CMD_WRITE, NBD_LAB_BYTES,
		    sizeof(buf)); // the payload is taken off the wire
	put(fd, buf, sizeof(buf));
	assert_int_equal(get_simple(fd), 28);
	put_request(fd, NBD_CMD_FLUSH, 0, 0);
	assert_int_equal(get_simple(fd), 0);
	put_request(fd, NBD_CMD_WRITE, 0, NBD_REQUEST_MAX + 1);
	expect_dropped(fd);

	fd = raw_go(true);
	put(fd, buf, NBD_REQUEST_BYTES); // zeroes are no request
	expect_dropped(fd);
	fd = raw_go(true);
	put_request(fd, NBD_CMD_WRITE, 0, 4096); // truncated
	put(fd, buf, 1000);
	close(fd);
	fd = raw_go(true);
	put(fd, buf, 3);
	close(fd);
	// One that asks and never listens; hangs on until the server ends.
	int deaf = raw_go(true);
	for (int i = 0; i < 3; i++)
		put_request(deaf, NBD_CMD_READ, 0, 8u << 20);

	unsigned seed = 12345;
	for (int round = 0; round < 200; round++) {
		fd = round % 3 == 0   ? raw_connect()
		     : round % 3 == 1 ? raw_hello(3)
				      : raw_go(round % 2);
		size_t n = (size_t)rand_r(&seed) % 200;
		for (size_t i = 0; i < n; i++)
			buf[i] = (uint8_t)rand_r(&seed);
		if (round % 2 && n > 28)
			nbd_put32(buf, NBD_REQUEST_MAGIC),
				nbd_put16(buf + 6, (uint16_t)(round % 9));
		ssize_t sent = send(fd, buf, n, MSG_NOSIGNAL);
		(void)sent;
		close(fd);
		if (round % 20 == 0) {
			assert_int_equal(nbd_pwrite(good, buf, 4096, NBD_LAB_BYTES / 2, 0), 0);
			assert_int_equal(nbd_pread(good, buf + 4096, 4096, NBD_LAB_BYTES / 2, 0),
					 0);
			assert_memory_equal(buf, buf + 4096, 4096);
		}
	}
	nbd_close(good);
	lab.tap->ops->free(lab.tap); // in time although `deaf` has replies outstanding
	lab.tap = NULL;
	close(deaf);
}

static void wait_connections(unsigned n)
{
	struct disk_tap_info info;
	for (uint64_t end = now_ms() + 5000;; nap()) {
		disk_tap_info(lab.tap, &info);
		if (info.connections == n)
			return;
		if (now_ms() > end)
			fail_msg("%u connections, not %u", info.connections, n);
	}
}

static void test_many(void **state)
{
	(void)state;
	int fds[NBD_CONNECTIONS_MAX];
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < NBD_CONNECTIONS_MAX; i++)
			fds[i] = raw_go(true);
		wait_connections(NBD_CONNECTIONS_MAX);
		expect_dropped(raw_connect());
		for (int i = 0; i < NBD_CONNECTIONS_MAX; i++)
			close(fds[i]);
		wait_connections(0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_handshake_limits, nbd_lab_setup,
						nbd_lab_teardown),
		cmocka_unit_test_setup_teardown(test_hostile, nbd_lab_setup, nbd_lab_teardown),
		cmocka_unit_test_setup_teardown(test_many, nbd_lab_setup, nbd_lab_teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
