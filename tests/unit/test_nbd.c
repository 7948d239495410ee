// SPDX-License-Identifier: Apache-2.0
// The NBD server as its clients see it: libnbd, the tools that people use (qemu-img, qemu-io,
// nbdinfo, nbdcopy), and clients that mean harm. The export is a disk tap in PASS, so the image
// backend is tested along.
#include <errno.h>
#include <fcntl.h>
#include <libnbd.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "eventtap/block/bitmaps.h"
#include "eventtap/block/disk_tap.h"
#include "eventtap/block/nbd_proto.h"
#include "eventtap/block/nbd_server.h"

#define BYTES (16u << 20)

static char dir[64], image[128], sock[96];
static struct tap *tap;
static struct ft_err err;

static int open_tap(bool raw)
{
	const struct disk_tap_config config = {
		.id = "root",
		.image = image,
		.format_raw = raw,
		.socket = sock,
		.log_bytes_max = DISK_TAP_LOG_BYTES,
		.spill_dir = dir,
	};
	return disk_tap_open(&config, &tap, &err);
}

static int setup(void **state)
{
	(void)state;
	strcpy(dir, "/tmp/kemari-nbd-XXXXXX");
	assert_non_null(mkdtemp(dir));
	snprintf(image, sizeof(image), "%s/disk.img", dir);
	snprintf(sock, sizeof(sock), "%s/disk.sock", dir);
	int fd = open(image, O_RDWR | O_CREAT | O_EXCL, 0600);
	assert_int_equal(ftruncate(fd, BYTES), 0);
	close(fd);
	if (open_tap(false) < 0)
		fail_msg("%s", err.text);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	if (tap)
		tap->ops->free(tap);
	tap = NULL;
	char command[256];
	assert_int_equal(access(sock, F_OK), -1); // removed with the server
	snprintf(command, sizeof(command), "rm -rf '%s'", dir);
	return system(command);
}

// Runs a shell command with $S (socket), $I (image), $D (folder), $U (URI); fails the test when the
// command fails.
static void sh(const char *script)
{
	char command[4096];
	snprintf(command, sizeof(command),
		 "S='%s' I='%s' D='%s' U='nbd+unix:///root?socket=%s' timeout 60 bash -euc '%s' >"
		 "'%s/out' 2>&1",
		 sock, image, dir, sock, script, dir);
	int status = system(command);
	if (status == 0)
		return;
	snprintf(command, sizeof(command), "cat '%s/out' >&2", dir);
	if (system(command) != 0)
		print_error("no output\n");
	fail_msg("status %d of: %s", status, script);
}

static bool have(const char *tool)
{
	char command[128];
	snprintf(command, sizeof(command), "command -v %s >/dev/null", tool);
	return system(command) == 0;
}

static struct nbd_handle *connect_nbd(void)
{
	struct nbd_handle *nbd = nbd_create();
	assert_non_null(nbd);
	nbd_add_meta_context(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION);
	// The server is to judge, not the library.
	nbd_set_strict_mode(nbd, 0);
	if (nbd_connect_unix(nbd, sock) < 0)
		fail_msg("%s", nbd_get_error());
	return nbd;
}

static void test_tools(void **state)
{
	(void)state;
	if (!have("qemu-img") || !have("nbdinfo") || !have("nbdcopy"))
		skip();
	sh("head -c 3000000 /dev/urandom >$D/a; truncate -s 16M $D/a; head -c 500000 /dev/urandom "
	   "| dd of=$D/a bs=1 seek=9000000 conv=notrunc status=none oflag=seek_bytes "
	   "iflag=fullblock bs=500000");
	sh("qemu-img convert -n -f raw -O raw $D/a $U; qemu-img compare -f raw -F raw $D/a $U; cmp "
	   "$D/a $I");
	// Holes stay holes on the way in, and are told on the way out.
	sh("[ $(stat -c %b $I) -lt 8000 ]; qemu-img map --output=json $U | grep -q \"\\\"zero\\\": "
	   "true\"");
	sh("nbdinfo $U; nbdinfo --json $U | grep -q can_multi_conn.*true; nbdinfo --list $U | grep "
	   "root; [ $(nbdinfo --size $U) = 16777216 ]");
	sh("nbdinfo --map $U | tee $D/map; grep -q hole,zero $D/map; grep -q data $D/map; nbdinfo "
	   "--map --totals $U");
	sh("nbdcopy $U $D/b; cmp $D/a $D/b; nbdcopy --connections=4 --requests=16 $U - | cmp - "
	   "$D/a");
	sh("head -c 16777216 /dev/urandom >$D/c; nbdcopy --flush $D/c $U; cmp $D/c $I");
	sh("nbdcopy --destination-is-zero $D/a $U || true; nbdcopy $D/a $U; cmp $D/a $I; qemu-img "
	   "convert -f raw -O qcow2 $U $D/d; qemu-img compare $D/d $D/a");
	// By the empty name, and not by a wrong one.
	sh("nbdinfo nbd+unix:///?socket=$S; ! nbdinfo nbd+unix:///other?socket=$S");
}

static void test_qemu_io(void **state)
{
	(void)state;
	if (!have("qemu-io"))
		skip();
	sh("q() { qemu-io -f raw -c \"$1\" $U | tee $D/q; ! grep -qi -e fail -e error -e mismatch "
	   "$D/q; }; "
	   "q \"write -P 17 4k 1M\"; q \"write -f -P 18 1M 64k\"; q \"read -P 17 4k 1020k\"; q "
	   "\"read -P 18 1M 64k\"; "
	   "q \"write -z 8k 4k\"; q \"read -P 0 8k 4k\"; q \"write -z -u 16k 64k\"; q \"read -P 0 "
	   "16k 64k\"; q \"write -z -n 4k 4k\"; "
	   "q \"discard 128k 128k\"; q \"read -P 0 128k 128k\"; q flush; q \"aio_write -P 3 2M "
	   "128k\"; q \"read -P 3 2M 128k\"");
}

static int count_extents(void *ctx, const char *context, uint64_t offset, uint32_t *entries,
			 size_t n, int *error)
{
	(void)offset;
	(void)error;
	uint64_t *sum = ctx; // data bytes, hole bytes
	assert_string_equal(context, LIBNBD_CONTEXT_BASE_ALLOCATION);
	for (size_t i = 0; i < n; i += 2)
		sum[entries[i + 1] == (LIBNBD_STATE_HOLE | LIBNBD_STATE_ZERO)] += entries[i];
	return 0;
}

static void test_requests(void **state)
{
	(void)state;
	struct nbd_handle *nbd = connect_nbd();
	assert_int_equal(nbd_get_size(nbd), BYTES);
	assert_int_equal(nbd_can_multi_conn(nbd), 1);
	assert_int_equal(nbd_can_df(nbd), 1);
	assert_int_equal(nbd_can_fast_zero(nbd), 1);
	assert_int_equal(nbd_get_structured_replies_negotiated(nbd), 1);
	assert_int_equal(nbd_is_read_only(nbd), 0);

	static uint8_t out[1 << 20], in[1 << 20];
	for (size_t i = 0; i < sizeof(out); i++)
		out[i] = (uint8_t)(i * 31 + i / 253);
	assert_int_equal(nbd_pwrite(nbd, out, sizeof(out), 65536, LIBNBD_CMD_FLAG_FUA), 0);
	assert_int_equal(nbd_pread(nbd, in, sizeof(in), 65536, LIBNBD_CMD_FLAG_DF), 0);
	assert_memory_equal(in, out, sizeof(in));
	assert_int_equal(nbd_flush(nbd, 0), 0);
	assert_int_equal(nbd_cache(nbd, 4096, 0, 0), 0);
	// Odd places and the very last byte.
	assert_int_equal(nbd_pwrite(nbd, out, 1, BYTES - 1, 0), 0);
	assert_int_equal(nbd_pread(nbd, in, 1, BYTES - 1, 0), 0);
	assert_int_equal(in[0], out[0]);
	assert_int_equal(nbd_zero(nbd, 65536 + 7, 513, LIBNBD_CMD_FLAG_NO_HOLE), 0);
	assert_int_equal(nbd_pread(nbd, in, 1024, 65536, 0), 0);
	for (int i = 0; i < 520; i++)
		assert_int_equal(in[i], 0);
	assert_int_equal(in[520], out[520]);
	assert_int_equal(nbd_trim(nbd, 1 << 18, 1 << 19, 0), 0);
	assert_int_equal(nbd_pread(nbd, in, 1 << 18, 1 << 19, 0), 0);
	for (int i = 0; i < 1 << 18; i++)
		assert_int_equal(in[i], 0);
	uint64_t sum[2] = {0, 0};
	assert_int_equal(
		nbd_block_status(nbd, BYTES, 0,
				 (nbd_extent_callback){.callback = count_extents, .user_data = sum},
				 0),
		0);
	assert_int_equal(sum[0] + sum[1], BYTES);
	assert_true(sum[1] >= BYTES - (3u << 20));
	assert_int_equal(nbd_zero(nbd, BYTES, 0, LIBNBD_CMD_FLAG_FAST_ZERO), 0);
	assert_int_equal(nbd_shutdown(nbd, 0), 0);
	nbd_close(nbd);
}

static void expect_refused(int ret, int want)
{
	assert_int_equal(ret, -1);
	if (nbd_get_errno() != want)
		fail_msg("%s, not %s", nbd_get_error(), strerror(want));
}

static void test_bad_requests(void **state)
{
	(void)state;
	struct nbd_handle *nbd = connect_nbd();
	static uint8_t buf[1 << 20];
	for (int round = 0; round < 3; round++) {
		expect_refused(nbd_pread(nbd, buf, 2, BYTES - 1, 0), EINVAL);
		expect_refused(nbd_pread(nbd, buf, 1, UINT64_MAX, 0), EINVAL);
		expect_refused(nbd_pwrite(nbd, buf, sizeof(buf), BYTES - 5, 0), ENOSPC);
		expect_refused(nbd_pwrite(nbd, buf, 1, UINT64_MAX - 1, 0), ENOSPC);
		expect_refused(nbd_zero(nbd, BYTES - 1, 2, 0), ENOSPC);
		expect_refused(nbd_trim(nbd, BYTES - 1, 2, 0), EINVAL);
		expect_refused(nbd_pwrite(nbd, buf, 512, 0, 1u << 9), EINVAL);
		expect_refused(nbd_pread(nbd, buf, 512, 0, LIBNBD_CMD_FLAG_NO_HOLE), EINVAL);
		expect_refused(nbd_flush(nbd, 1u << 8), EINVAL);
		// And the connection is as good as new.
		memset(buf, round + 1, 4096);
		assert_int_equal(nbd_pwrite(nbd, buf, 4096, 0, 0), 0);
		assert_int_equal(nbd_pread(nbd, buf + 8192, 4096, 0, 0), 0);
		assert_memory_equal(buf, buf + 8192, 4096);
	}
	nbd_close(nbd);
}

// ---- clients without a library ----

static int raw_connect(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", sock);
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
	assert_int_equal(nbd_get64(old), BYTES);
	put_request(fd, NBD_CMD_READ, 0, 512);
	assert_int_equal(get_simple(fd), 0);
	get(fd, junk, 512);
	close(fd);
}

static void test_hostile(void **state)
{
	(void)state;
	// A good client goes on through all of it.
	struct nbd_handle *good = connect_nbd();
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
	put_request(fd, NBD_CMD_WRITE, BYTES, sizeof(buf)); // the payload is taken off the wire
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
			assert_int_equal(nbd_pwrite(good, buf, 4096, BYTES / 2, 0), 0);
			assert_int_equal(nbd_pread(good, buf + 4096, 4096, BYTES / 2, 0), 0);
			assert_memory_equal(buf, buf + 4096, 4096);
		}
	}
	nbd_close(good);
	tap->ops->free(tap); // in time although `deaf` has replies outstanding
	tap = NULL;
	close(deaf);
}

static void wait_connections(unsigned n)
{
	struct disk_tap_info info;
	struct timespec start, now, tick = {.tv_nsec = 1000000};
	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		disk_tap_info(tap, &info);
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (now.tv_sec - start.tv_sec > 5)
			fail_msg("%u connections, not %u", info.connections, n);
		nanosleep(&tick, NULL);
	} while (info.connections != n);
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

static void test_start_errors(void **state)
{
	(void)state;
	struct tap *first = tap, *second = NULL;
	struct disk_tap_config config = {.id = "root",
					 .image = image,
					 .socket = sock,
					 .log_bytes_max = DISK_TAP_LOG_BYTES,
					 .spill_dir = dir};
	assert_int_equal(disk_tap_open(&config, &second, &err), -EBUSY); // the lock
	assert_non_null(strstr(err.text, "disk root: "));
	first->ops->free(first);
	tap = NULL;

	int fd = open(image, O_RDWR);
	assert_int_equal(pwrite(fd, "QFI\xfb", 4, 0), 4);
	assert_int_equal(open_tap(false), -EMEDIUMTYPE);
	assert_non_null(strstr(err.text, "qcow"));
	assert_int_equal(open_tap(true), 0);
	tap->ops->free(tap);
	tap = NULL;
	assert_int_equal(ftruncate(fd, 0), 0);
	close(fd);
	assert_int_equal(open_tap(false), -EINVAL);
	assert_non_null(strstr(err.text, "is empty"));
	config.image = dir;
	assert_true(disk_tap_open(&config, &second, &err) < 0);
	config.image = "/nonexistent/disk.img";
	assert_int_equal(disk_tap_open(&config, &second, &err), -ENOENT);
	config.image = "/dev/null";
	assert_int_equal(disk_tap_open(&config, &second, &err), -EMEDIUMTYPE);
	if (have("qemu-img")) {
		char path[160];
		const char *formats[] = {"qcow2", "vmdk", "vdi", "vhdx", "vpc", "qed", "parallels"};
		for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
			char script[128];
			snprintf(script, sizeof(script), "qemu-img create -f %s $D/x.%s 64M",
				 formats[i], formats[i]);
			sh(script);
			snprintf(path, sizeof(path), "%s/x.%s", dir, formats[i]);
			config.image = path;
			if (disk_tap_open(&config, &second, &err) != -EMEDIUMTYPE)
				fail_msg("%s was not refused", formats[i]);
		}
	}
	// A socket that a dead process left is replaced, one that lives is not.
	fd = open(image, O_RDWR);
	assert_int_equal(ftruncate(fd, BYTES), 0);
	close(fd);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", sock);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(fd, 1), 0);
	assert_int_equal(open_tap(false), -EADDRINUSE);
	close(fd);
	assert_int_equal(open_tap(false), 0);
}

// ---- backups: the read-only export, and bitmaps as contexts ----

struct seen {
	char list[1024]; // "offset+length=state " of the context asked for
	const char *context;
	uint64_t at;
};

static int on_extents(void *opaque, const char *context, uint64_t offset, uint32_t *entries,
		      size_t n, int *error)
{
	struct seen *seen = opaque;
	(void)error;
	if (strcmp(context, seen->context) != 0)
		return 0;
	assert_int_equal(offset, seen->at);
	for (size_t i = 0; i < n; i += 2) {
		size_t used = strlen(seen->list);
		snprintf(seen->list + used, sizeof(seen->list) - used, "%u=%u ", entries[i] >> 10,
			 entries[i + 1]);
		seen->at += entries[i];
	}
	return 0;
}

static void expect_status(struct nbd_handle *nbd, const char *context, uint64_t offset,
			  uint64_t len, const char *want)
{
	struct seen seen = {.context = context, .at = offset};
	nbd_extent_callback fn = {.callback = on_extents, .user_data = &seen};
	if (nbd_block_status(nbd, len, offset, fn, 0) < 0)
		fail_msg("%s", nbd_get_error());
	assert_string_equal(seen.list, want);
}

static int count_contexts(void *opaque, const char *context)
{
	(void)context;
	++*(unsigned *)opaque;
	return 0;
}

static unsigned listed(const char *query)
{
	struct nbd_handle *nbd = nbd_create();
	unsigned n = 0;
	nbd_context_callback fn = {.callback = count_contexts, .user_data = &n};
	char path[112];
	snprintf(path, sizeof(path), "%s.backup", sock);
	nbd_set_opt_mode(nbd, true);
	if (query)
		nbd_add_meta_context(nbd, query);
	assert_int_equal(nbd_connect_unix(nbd, path), 0);
	assert_true(nbd_opt_list_meta_context(nbd, fn) >= 0);
	nbd_opt_abort(nbd);
	nbd_close(nbd);
	return n;
}

static void test_backups(void **state)
{
	(void)state;
	struct bitmaps *s = disk_tap_bitmaps(tap);
	char path[112], block[4096] = {1};
	snprintf(path, sizeof(path), "%s.backup", sock);
	assert_int_equal(bitmaps_add(s, "b0", 65536, &err), 0);
	assert_int_equal(bitmaps_add(s, "fine", 4096, &err), 0);
	assert_int_equal(bitmaps_add(s, "off", 4096, &err), 0);
	assert_int_equal(bitmaps_enable(s, "off", false, &err), 0);
	assert_int_equal(disk_tap_backups(tap, path, &err), 0);
	assert_int_equal(disk_tap_backups(tap, path, &err), 0);
	struct nbd_handle *guest = connect_nbd(), *nbd = nbd_create();
	nbd_set_strict_mode(nbd, 0);
	nbd_add_meta_context(nbd, "qemu:dirty-bitmap:fine");
	nbd_add_meta_context(nbd, "qemu:dirty-bitmap:b0");
	nbd_add_meta_context(nbd, "qemu:dirty-bitmap:nonsense");
	nbd_add_meta_context(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION);
	assert_int_equal(nbd_connect_unix(nbd, path), 0);
	assert_int_equal(nbd_can_meta_context(nbd, "qemu:dirty-bitmap:b0"), 1);
	assert_int_equal(nbd_can_meta_context(nbd, "qemu:dirty-bitmap:nonsense"), 0);
	assert_int_equal(nbd_is_read_only(nbd), 1);
	assert_int_equal(nbd_get_size(nbd), BYTES);
	// It reads what the guest writes, and writes nothing.
	assert_int_equal(nbd_pwrite(guest, block, 4096, 1u << 20, 0), 0);
	assert_int_equal(nbd_zero(guest, 8192, (1u << 20) + 65536, 0), 0);
	assert_int_equal(nbd_trim(guest, 4096, 8u << 20, 0), 0);
	block[0] = 0;
	assert_int_equal(nbd_pread(nbd, block, 4096, 1u << 20, 0), 0);
	assert_int_equal(block[0], 1);
	assert_int_equal(nbd_pwrite(nbd, block, 4096, 0, 0), -1);
	assert_int_equal(nbd_get_errno(), EPERM);
	assert_int_equal(nbd_zero(nbd, 4096, 0, 0), -1);
	assert_int_equal(nbd_trim(nbd, 4096, 0, 0), -1);
	expect_status(nbd, "qemu:dirty-bitmap:fine", 0, BYTES,
		      "1024=0 4=1 60=0 8=1 7096=0 4=1 8188=0 ");
	expect_status(nbd, "qemu:dirty-bitmap:b0", 0, BYTES, "1024=0 128=1 7040=0 64=1 8128=0 ");
	expect_status(nbd, "qemu:dirty-bitmap:fine", (1u << 20) + 512, 4096, "3=1 0=0 ");
	expect_status(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION, 1u << 20, 4096, "4=0 ");
	assert_int_equal(listed(NULL), 4);
	assert_int_equal(listed("qemu:"), 3);
	assert_int_equal(listed("qemu:dirty-bitmap:"), 3);
	assert_int_equal(listed("base:"), 1);
	assert_int_equal(listed("qemu:dirty-bitmap:fine"), 1);
	assert_int_equal(listed("qemu:dirty"), 0);
	// A bitmap that goes while it is read is an error, and the connection stays.
	assert_int_equal(bitmaps_remove(s, "b0", &err), 0);
	struct seen seen = {.context = "none"};
	nbd_extent_callback fn = {.callback = on_extents, .user_data = &seen};
	assert_int_equal(nbd_block_status(nbd, 4096, 0, fn, 0), -1);
	assert_int_equal(nbd_pread(nbd, block, 4096, 0, 0), 0);
	nbd_close(nbd);
	nbd_close(guest);
	// The tools that people use.
	if (have("nbdinfo"))
		sh("nbdinfo --map=qemu:dirty-bitmap:fine \"nbd+unix:///root?socket=$S.backup\" | "
		   "grep -q \"1048576 *4096 *1\"");
	if (have("qemu-img"))
		sh("qemu-img map --output=json --image-opts driver=nbd,export=root,server.type="
		   "unix,server.path=$S.backup,x-dirty-bitmap=qemu:dirty-bitmap:fine | "
		   "grep -q \"start.*1048576.*length.*4096.*data.*false\"");
	if (have("nbdcopy"))
		sh("nbdcopy \"nbd+unix:///root?socket=$S.backup\" $D/full && cmp $D/full $I");
	disk_tap_backups_end(tap);
	assert_int_equal(access(path, F_OK), -1);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(bitmaps_remove(s, i ? "fine" : "off", &err), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_tools, setup, teardown),
		cmocka_unit_test_setup_teardown(test_qemu_io, setup, teardown),
		cmocka_unit_test_setup_teardown(test_requests, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_requests, setup, teardown),
		cmocka_unit_test_setup_teardown(test_handshake_limits, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hostile, setup, teardown),
		cmocka_unit_test_setup_teardown(test_many, setup, teardown),
		cmocka_unit_test_setup_teardown(test_backups, setup, teardown),
		cmocka_unit_test_setup_teardown(test_start_errors, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
