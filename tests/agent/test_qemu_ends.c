// SPDX-License-Identifier: Apache-2.0
/* Ends that are no faults: the guest powers itself off, an attached guest's agent is stopped, the
 * keeper is killed. No standby takes over, and what is to run on runs on. */
#include <signal.h>
#include <sys/wait.h>

#include "tests/agent/harness.h"

static struct host a, b;

static int setup(void **state)
{
	(void)state;
	a = host_make("A");
	b = host_make("B");
	return 0;
}

static void start_pair(void)
{
	qemu_conf(at("g.conf"), "", "", "");
	qemu_start(&a, at("g.conf"));
	qemu_standby(&b, unix_uri("b.sock"), NULL);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	wait_state(&a, "protected", PROTECT_MS);
}

static void powered_off(void **state)
{
	(void)state;
	start_pair();
	guest_type(&a, "poweroff -f");
	assert_int_equal(host_reap(&a, GOES_ON_MS), 0);
	assert_state(&b, "standby");
	assert_false(host_said(&b, "took over"));
	host_stop(&b);
	/* It ended as an unprotected guest does: it may be started again. */
	host_start(&a, at("g.conf"), NULL);
	wait_state(&a, "solo", START_MS);
	host_stop(&a);
}

static pid_t keeper_of(const struct host *h)
{
	char path[64];
	int pid = 0;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/task/%d/children", h->agent, h->agent);
	f = fopen(path, "re");
	assert_non_null(f);
	/* The first child of an agent. */
	assert_int_equal(fscanf(f, "%d", &pid), 1);
	fclose(f);
	return pid;
}

static void keeper_killed(void **state)
{
	(void)state;
	start_pair();
	kill(keeper_of(&a), SIGKILL);
	wait_state(&a, "solo", GOES_ON_MS);
	host_wait_said(&a, "its keeper was killed", 1000);
	ask_refused(&a, "migrate", unix_uri("b.sock"), "its keeper was killed");
	ticks_on(&a);
	assert_state(&b, "standby");
	host_stop(&a);
	host_stop(&b);
}

static char kernel[256];

/* A QEMU of somebody else's. */
static pid_t foreign_qemu(void)
{
	char conf[4096], initrd[256], append[300];
	uint64_t until = now_ms() + BOOT_MS;
	pid_t pid;

	qemu_conf(at("x.conf"), "", "", "");
	snprintf(conf, sizeof conf, "%s", file_text(at("x.conf")));
	assert_int_equal(sscanf(strstr(conf, "kernel = "), "kernel = \"%255[^\"]", kernel), 1);
	assert_int_equal(sscanf(strstr(conf, "initrd = "), "initrd = \"%255[^\"]", initrd), 1);
	assert_int_equal(sscanf(strstr(conf, "append = "), "append = \"%299[^\"]", append), 1);
	make_image(at("A.img"), 64 << 20);
	pid = fork();
	if (pid == 0) {
		char qmp[200], serial[200], drive[200];

		snprintf(qmp, sizeof qmp, "unix:%s,server=on,wait=off", at("x.qmp"));
		snprintf(serial, sizeof serial, "file:%s", at("A.console"));
		snprintf(drive, sizeof drive, "if=none,id=root,format=raw,file=%s", at("A.img"));
		execlp("qemu-system-x86_64", "qemu-system-x86_64", "-machine", "q35,accel=tcg",
		       "-m", "256", "-nodefaults", "-display", "none", "-vga", "none", "-kernel",
		       kernel, "-initrd", initrd, "-append", append, "-serial", serial, "-qmp", qmp,
		       "-drive", drive, "-device", "virtio-blk-pci,drive=root", (char *)NULL);
		_exit(127);
	}
	while (!strstr(file_text(at("A.console")), "GUEST-READY"))
		breathe(until, "the guest boots");
	return pid;
}

static void attached_stopped(void **state)
{
	pid_t qemu = foreign_qemu();

	(void)state;
	write_file(at("a.conf"), "name = \"g\"\nqemu { attach = \"x.qmp\" }\ntls { insecure = true "
				 "}\nft { takeover_ms = 1000 }\n");
	write_file(at("b.conf"),
		   "name = \"g\"\nqemu { directories = {\"%s\", \"%.*s\"} replace = {\"%s\", "
		   "\"%s\", \"%s\", \"%s\"} }\n"
		   "tls { insecure = true }\nft { takeover_ms = 1000 }\n",
		   place, (int)(strrchr(kernel, '/') - kernel), kernel, at("A.img"), at("B.img"),
		   at("A.console"), at("B.console"));
	host_start(&a, at("a.conf"), NULL);
	wait_state(&a, "solo", START_MS);
	host_start(&b, at("b.conf"), "--incoming", unix_uri("b.sock"), NULL);
	wait_state(&b, "standby", START_MS);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	wait_state(&a, "protected", PROTECT_MS);
	host_stop(&a);
	assert_true(process_alive(qemu));
	ticks_on(&a);
	assert_state(&b, "standby");
	/* Its disk is its own again, and it can be protected again. */
	host_start(&a, at("a.conf"), NULL);
	wait_state(&a, "solo", START_MS);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	wait_state(&a, "protected", PROTECT_MS);
	host_stop(&a);
	host_stop(&b);
	kill(qemu, SIGKILL);
	wait_dead(qemu, 5000);
}

/* Not an end but no beginning: device states of two machine types do not fit each other. */
static void other_machine(void **state)
{
	(void)state;
	qemu_conf(at("g.conf"), "", "", "");
	host_start(&a, at("g.conf"), NULL);
	wait_state(&a, "solo", START_MS);
	qemu_standby(&b, unix_uri("b.sock"), "machine=pc-i440fx-7.1");
	ask_refused(&a, "migrate", unix_uri("b.sock"),
		    "machine: 'pc-i440fx-7.1' here, 'pc-i440fx-");
	host_stop(&a);
	host_stop(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(powered_off, setup, place_clear),
		cmocka_unit_test_setup_teardown(keeper_killed, setup, place_clear),
		cmocka_unit_test_setup_teardown(attached_stopped, setup, place_clear),
		cmocka_unit_test_setup_teardown(other_machine, setup, place_clear),
	};
	int failed;

	place_open();
	need_qemu();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}
