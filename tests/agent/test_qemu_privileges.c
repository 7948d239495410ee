// SPDX-License-Identifier: Apache-2.0
/* The rights of an agent of a QEMU guest, and of that QEMU. */
#include <signal.h>

#include "tests/agent/harness.h"

static struct host a, b;

static void qemu_agent(void **state)
{
	const unsigned long long rights = RIGHT(CAP_NET_BIND_SERVICE) | RIGHT(CAP_DAC_OVERRIDE) |
					  RIGHT(CAP_SYS_PTRACE) | RIGHT(CAP_KILL) |
					  RIGHT(CAP_CHOWN) | RIGHT(CAP_CHECKPOINT_RESTORE);

	(void)state;
	a = host_make("A");
	b = host_make("B");
	qemu_conf(at("g.conf"), "", "", "");
	qemu_start(&a, at("g.conf"));
	qemu_standby(&b, unix_uri("b.sock"), NULL);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	wait_state(&a, "protected", PROTECT_MS);
	assert_rights(a.agent, rights); /* it has no NIC, so no CAP_NET_ADMIN */
	assert_filtered(a.agent);
	assert_rights(child_of(a.agent, "ft-helper"),
		      RIGHT(CAP_SYS_PTRACE) | RIGHT(CAP_DAC_READ_SEARCH));
	assert_rights(vmm_pid(&a), 0);
	assert_int_equal(status_number(vmm_pid(&a), vmm_pid(&a), "Seccomp", 10), 2);
	/* Without its helper a standby keeps what it holds, and takes over. */
	assert_int_equal(kill(child_of(b.agent, "ft-helper"), SIGKILL), 0);
	host_kill(&a);
	wait_state(&b, "solo", GOES_ON_MS);
	ticks_on(&b);
	host_stop(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(qemu_agent, place_clear),
	};
	int failed;

	need_qemu();
	place_open();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}
