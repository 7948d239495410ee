// SPDX-License-Identifier: Apache-2.0
// The NBD server as its clients see it: libnbd, and the tools that people use (qemu-img, qemu-io,
// nbdinfo, nbdcopy).
#include <errno.h>
#include <fcntl.h>
#include <libnbd.h>
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

#include "tests/fixture/nbd_lab.h"

static void test_tools(void **state)
{
	(void)state;
	if (!nbd_lab_has("qemu-img") || !nbd_lab_has("nbdinfo") || !nbd_lab_has("nbdcopy"))
		skip();
	nbd_lab_run("head -c 3000000 /dev/urandom >$D/a; truncate -s 16M $D/a; head -c 500000 "
		    "/dev/urandom "
		    "| dd of=$D/a bs=1 seek=9000000 conv=notrunc status=none oflag=seek_bytes "
		    "iflag=fullblock bs=500000");
	nbd_lab_run("qemu-img convert -n -f raw -O raw $D/a $U; qemu-img compare -f raw -F raw "
		    "$D/a $U; cmp "
		    "$D/a $I");
	// Holes stay holes on the way in, and are told on the way out.
	nbd_lab_run("[ $(stat -c %b $I) -lt 8000 ]; qemu-img map --output=json $U | grep -q "
		    "\"\\\"zero\\\": "
		    "true\"");
	nbd_lab_run("nbdinfo $U; nbdinfo --json $U | grep -q can_multi_conn.*true; nbdinfo --list "
		    "$U | grep "
		    "root; [ $(nbdinfo --size $U) = 16777216 ]");
	nbd_lab_run("nbdinfo --map $U | tee $D/map; grep -q hole,zero $D/map; grep -q data $D/map; "
		    "nbdinfo "
		    "--map --totals $U");
	nbd_lab_run("nbdcopy $U $D/b; cmp $D/a $D/b; nbdcopy --connections=4 --requests=16 $U - | "
		    "cmp - "
		    "$D/a");
	nbd_lab_run("head -c 16777216 /dev/urandom >$D/c; nbdcopy --flush $D/c $U; cmp $D/c $I");
	nbd_lab_run("nbdcopy --destination-is-zero $D/a $U || true; nbdcopy $D/a $U; cmp $D/a $I; "
		    "qemu-img "
		    "convert -f raw -O qcow2 $U $D/d; qemu-img compare $D/d $D/a");
	// By the empty name, and not by a wrong one.
	nbd_lab_run("nbdinfo nbd+unix:///?socket=$S; ! nbdinfo nbd+unix:///other?socket=$S");
}

static void test_qemu_io(void **state)
{
	(void)state;
	if (!nbd_lab_has("qemu-io"))
		skip();
	nbd_lab_run("q() { qemu-io -f raw -c \"$1\" $U | tee $D/q; ! grep -qi -e fail -e error -e "
		    "mismatch "
		    "$D/q; }; "
		    "q \"write -P 17 4k 1M\"; q \"write -f -P 18 1M 64k\"; q \"read -P 17 4k "
		    "1020k\"; q "
		    "\"read -P 18 1M 64k\"; "
		    "q \"write -z 8k 4k\"; q \"read -P 0 8k 4k\"; q \"write -z -u 16k 64k\"; q "
		    "\"read -P 0 "
		    "16k 64k\"; q \"write -z -n 4k 4k\"; "
		    "q \"discard 128k 128k\"; q \"read -P 0 128k 128k\"; q flush; q \"aio_write -P "
		    "3 2M "
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
	struct nbd_handle *nbd = disk_lab_connect();
	assert_int_equal(nbd_get_size(nbd), NBD_LAB_BYTES);
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
	assert_int_equal(nbd_pwrite(nbd, out, 1, NBD_LAB_BYTES - 1, 0), 0);
	assert_int_equal(nbd_pread(nbd, in, 1, NBD_LAB_BYTES - 1, 0), 0);
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
		nbd_block_status(nbd, NBD_LAB_BYTES, 0,
				 (nbd_extent_callback){.callback = count_extents, .user_data = sum},
				 0),
		0);
	assert_int_equal(sum[0] + sum[1], NBD_LAB_BYTES);
	assert_true(sum[1] >= NBD_LAB_BYTES - (3u << 20));
	assert_int_equal(nbd_zero(nbd, NBD_LAB_BYTES, 0, LIBNBD_CMD_FLAG_FAST_ZERO), 0);
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
	struct nbd_handle *nbd = disk_lab_connect();
	static uint8_t buf[1 << 20];
	for (int round = 0; round < 3; round++) {
		expect_refused(nbd_pread(nbd, buf, 2, NBD_LAB_BYTES - 1, 0), EINVAL);
		expect_refused(nbd_pread(nbd, buf, 1, UINT64_MAX, 0), EINVAL);
		expect_refused(nbd_pwrite(nbd, buf, sizeof(buf), NBD_LAB_BYTES - 5, 0), ENOSPC);
		expect_refused(nbd_pwrite(nbd, buf, 1, UINT64_MAX - 1, 0), ENOSPC);
		expect_refused(nbd_zero(nbd, NBD_LAB_BYTES - 1, 2, 0), ENOSPC);
		expect_refused(nbd_trim(nbd, NBD_LAB_BYTES - 1, 2, 0), EINVAL);
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

static void test_start_errors(void **state)
{
	(void)state;
	struct tap *first = lab.tap, *second = NULL;
	struct disk_tap_config config = {.id = "root",
					 .image = lab.image,
					 .socket = lab.sock,
					 .log_bytes_max = DISK_TAP_LOG_BYTES,
					 .spill_dir = lab.dir};
	assert_int_equal(disk_tap_open(&config, &second, &lab.err), -EBUSY); // the lock
	assert_non_null(strstr(lab.err.text, "disk root: "));
	first->ops->free(first);
	lab.tap = NULL;

	int fd = open(lab.image, O_RDWR);
	assert_int_equal(pwrite(fd, "QFI\xfb", 4, 0), 4);
	assert_int_equal(nbd_lab_open(false), -EMEDIUMTYPE);
	assert_non_null(strstr(lab.err.text, "qcow"));
	assert_int_equal(nbd_lab_open(true), 0);
	lab.tap->ops->free(lab.tap);
	lab.tap = NULL;
	assert_int_equal(ftruncate(fd, 0), 0);
	close(fd);
	assert_int_equal(nbd_lab_open(false), -EINVAL);
	assert_non_null(strstr(lab.err.text, "is empty"));
	config.image = lab.dir;
	assert_true(disk_tap_open(&config, &second, &lab.err) < 0);
	config.image = "/nonexistent/disk.img";
	assert_int_equal(disk_tap_open(&config, &second, &lab.err), -ENOENT);
	config.image = "/dev/null";
	assert_int_equal(disk_tap_open(&config, &second, &lab.err), -EMEDIUMTYPE);
	if (nbd_lab_has("qemu-img")) {
		char path[160];
		const char *formats[] = {"qcow2", "vmdk", "vdi", "vhdx", "vpc", "qed", "parallels"};
		for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
			char script[128];
			snprintf(script, sizeof(script), "qemu-img create -f %s $D/x.%s 64M",
				 formats[i], formats[i]);
			nbd_lab_run(script);
			snprintf(path, sizeof(path), "%s/x.%s", lab.dir, formats[i]);
			config.image = path;
			if (disk_tap_open(&config, &second, &lab.err) != -EMEDIUMTYPE)
				fail_msg("%s was not refused", formats[i]);
		}
	}
	// A socket that a dead process left is replaced, one that lives is not.
	fd = open(lab.image, O_RDWR);
	assert_int_equal(ftruncate(fd, NBD_LAB_BYTES), 0);
	close(fd);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", lab.sock);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(fd, 1), 0);
	assert_int_equal(nbd_lab_open(false), -EADDRINUSE);
	close(fd);
	assert_int_equal(nbd_lab_open(false), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_tools, nbd_lab_setup, nbd_lab_teardown),
		cmocka_unit_test_setup_teardown(test_qemu_io, nbd_lab_setup, nbd_lab_teardown),
		cmocka_unit_test_setup_teardown(test_requests, nbd_lab_setup, nbd_lab_teardown),
		cmocka_unit_test_setup_teardown(test_bad_requests, nbd_lab_setup, nbd_lab_teardown),
		cmocka_unit_test_setup_teardown(test_start_errors, nbd_lab_setup, nbd_lab_teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
