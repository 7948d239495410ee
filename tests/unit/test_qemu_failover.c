// SPDX-License-Identifier: Apache-2.0
// The main road with a real guest: start, checkpoints, trial load, resume on the standby, and the
// guest goes on as if nothing had been.
#include "test_qemu_guest.h"

#define CHECKPOINTS 20

static void guest_moves(void **state)
{
	struct qemu_config pc = guest_config("p", ""), sc = guest_config("s", "");
	struct vmm *p = NULL, *s = NULL;
	uint64_t here, there;
	struct staging st;
	int tcp, tick;

	(void)state;
	guest_make_disk(pc.disks[0].image);
	assert_ok(qemu_start(&pc, &p, err));
	assert_ok(qemu_arm(&sc, &s, err));
	wait_file(pc.console_log, is_ready, 0, BOOT_MS);
	assert_ok(p->ops->check(p, err));
	assert_ok(p->ops->track_start(p, err));
	staging_init(&st, 4096, s->ops->image(s));
	tcp = guest_tcp();
	for (int i = 0; i < CHECKPOINTS; i++) {
		tcp_echo(tcp, i);
		assert_ok(p->ops->checkpoint_prepare(p, err));
		let_run(p, 5);
		staging_checkpoint(&st, p, false);
	}
	printf("state %zu bytes, pause %.2f ms, held %.2f ms\n", st.capture.state_len,
	       (double)st.capture.pause_ns / 1e6, (double)st.capture.held_ns / 1e6);
	assert_ok(s->ops->trial(s, st.capture.state, st.capture.state_len, err));

	staging_checkpoint(&st, p, true);
	assert_ok(p->ops->ram_digest(p, &here, err));
	assert_ok(s->ops->ram_digest(s, &there, err));
	assert_int_equal(here, there);
	assert_string_equal(p->ops->status(p), "paused");
	tick = last_tick(pc.console_log);
	p->ops->quit(p, false, 0);
	uint64_t t = qemu_now_ns();
	assert_ok(s->ops->resume(s, st.capture.state, st.capture.state_len, err));
	printf("resume %.2f ms\n", (double)(qemu_now_ns() - t) / 1e6);
	assert_string_equal(s->ops->status(s), "running");
	tcp_echo(tcp, CHECKPOINTS);
	wait_file(sc.console_log, has_ticked, tick + 5, 20000);
	assert_true(last_tick(pc.console_log) == tick);

	close(tcp);
	p->ops->free(p);
	s->ops->quit(s, false, 0);
	s->ops->free(s);
	staging_free(&st);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(guest_moves)};
	int failed;

	guest_setup();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	guest_teardown();
	return failed;
}
