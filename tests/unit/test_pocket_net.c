// SPDX-License-Identifier: Apache-2.0
// The pocket machine over real sockets: its store over loopback UDP, its console, and what it says
// of configurations that cannot be.
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/fixture/pocket_lab.h"
#include "vmm-glue/pocket/sock.h"

static void kv_answers_over_udp(void **state)
{
	struct pocket_config config;
	struct kv_client c;
	struct vmm *vmm, *other;
	struct vmm_info info;
	struct ft_err err;
	char *log;
	int fd;

	(void)state;
	pocket_lab_config(&config, 0);
	strcpy(config.console_log, pocket_lab_path("log"));
	vmm = pocket_lab_start(&config);
	vmm->ops->info(vmm, &info);
	assert_string_equal(info.kind, "pocket");
	assert_int_equal(info.disks[0].bytes, POCKET_LAB_DISK);
	assert_string_equal(info.nics[0].id, "net0");
	kv_client_open(&c, pocket_port(vmm));
	for (unsigned i = 0; i < 500; i++) {
		kv_client_put(&c);
		pocket_lab_expect_journal(&c);
	}
	// The address is taken, and that is told.
	pocket_lab_config(&config, pocket_port(vmm));
	assert_int_equal(pocket_start(&config, &other, &err), -EADDRINUSE);
	assert_non_null(strstr(err.text, "nic: attach"));
	vmm->ops->quit(vmm, true, 1000);
	vmm->ops->free(vmm);
	close(c.fd);
	fd = open(pocket_lab_path("log"), O_RDONLY);
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
		pocket_lab_config(&config, 0);
		strcpy(config.nic_attach, attach[i]);
		assert_int_equal(pocket_start(&config, &vmm, &err), -EINVAL);
		assert_non_null(strstr(err.text, attach[i]));
	}
	pocket_lab_config(&config, 0);
	config.disks[0].bytes = POCKET_LAB_DISK * 2;
	assert_int_equal(pocket_start(&config, &vmm, &err), -EINVAL);
	assert_non_null(strstr(err.text, "disk root: "));
	config.disks[0].bytes = 0;
	strcpy(config.disks[0].image, pocket_lab_path("nothing"));
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
	pocket_lab_config(&config, 0);
	config.program = POCKET_DIRTY;
	config.dirty_pages_per_s = 1000;
	strcpy(config.console_socket, pocket_lab_path("console"));
	vmm = pocket_lab_start(&config);
	for (unsigned i = 0; i < 2; i++) {
		int fd = psock_connect(config.console_socket, &err);

		assert_true(fd >= 0);
		assert_int_equal(
			psock_write_all(fd, (const uint8_t *)"hello", 5, psock_deadline(100)), 0);
		assert_int_equal(psock_read_all(fd, (uint8_t *)line, 7,
						psock_deadline(POCKET_LAB_DEADLINE_MS)),
				 0);
		assert_memory_equal(line, "dirty: ", 7);
		close(fd);
	}
	vmm->ops->free(vmm);
	assert_int_equal(access(config.console_socket, F_OK), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(kv_answers_over_udp),
		cmocka_unit_test(bad_configs_are_refused),
		cmocka_unit_test(console_serves_one_client_after_another),
	};

	return cmocka_run_group_tests(tests, pocket_lab_setup, pocket_lab_teardown);
}
