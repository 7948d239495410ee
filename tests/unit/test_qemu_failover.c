// SPDX-License-Identifier: Apache-2.0
// The main road with a real guest that we start: checkpoints, what goes wrong in them, an agent's
// restart, trial load, resume on the standby, and the guest goes on as if nothing had been. The
// tests follow each other with one guest.
#include "test_qemu_guest.h"

#define CHECKPOINTS 20

static struct qemu_config pc, sc;
static struct vmm *p, *s;
static struct staging st;
static struct keeper *keeper;
static int tcp;
static char lost_why[256];

static void on_lost(void *ctx, const char *why)
{
	(void)ctx;
	snprintf(lost_why, sizeof lost_why, "%s", why);
}

static void starts(void **state)
{
	struct ft_err why = {0};
	struct vmm *second = NULL;
	struct vmm_info info;

	(void)state;
	assert_ok(keeper_start(VMM_HOLD_MAX_MS, &keeper, err));
	pc = guest_config("p", "");
	pc.keeper = keeper;
	sc = guest_config("s", "");
	guest_make_disk(pc.disks[0].image);
	assert_ok(qemu_start(&pc, &p, err));
	p->ops->info(p, &info);
	assert_string_equal(info.kind, "qemu");
	assert_string_equal(info.uuid, pc.uuid);
	assert_int_equal(info.ram_bytes, GUEST_MEMORY);
	assert_string_equal(info.disks[0].id, "root");
	assert_string_equal(info.disks[0].image, pc.disks[0].image);
	assert_int_equal(info.disks[0].bytes, GUEST_DISK);
	assert_string_equal(info.nics[0].id, "net0");
	assert_memory_equal(qemu_machine(p), "pc-i440fx-", 10);
	assert_int_equal(qemu_start(&pc, &second, &why),
			 -EBUSY); /* its monitor is not taken from it */
	wait_file(pc.console_log, is_ready, 0, BOOT_MS);
	assert_ok(p->ops->check(p, err));
	assert_ok(p->ops->track_start(p, err));
	staging_init(&st, 4096, NULL);
	tcp = guest_tcp();
	tcp_echo(tcp, 0);
}

static void a_primed_command_is_in_nobodys_way(void **state)
{
	(void)state;
	assert_ok(p->ops->checkpoint_prepare(p, err));
	assert_ok(p->ops->checkpoint_prepare(p, err));
	assert_ok(p->ops->stop(p, err));
	assert_string_equal(p->ops->status(p), "paused");
	assert_ok(p->ops->checkpoint_prepare(p, err));
	assert_ok(p->ops->cont(p, err));
	assert_string_equal(p->ops->status(p), "running");
	tcp_echo(tcp, 1);
	staging_checkpoint(&st, p, false);
	assert_true(st.capture.state_len > 8);
	assert_memory_equal(st.capture.state, "QEVM\0\0\0\3", 8);
	assert_true(st.capture.pause_ns > 0);
	assert_true(st.capture.held_ns > 0);
}

static int refuse(void *ctx, struct vmm_capture *capture)
{
	(void)ctx, (void)capture;
	return -ENOBUFS;
}

static void a_failed_checkpoint_loses_nothing(void **state)
{
	struct vmm_hold_hooks hooks = {.stopped = staging_stopped, .ctx = &st};
	struct ft_err why = {0};
	size_t most = st.capture.pages_max;
	uint64_t owed;

	(void)state;
	tcp_echo(tcp, 2);
	ft_bitmap_set(&st.pending, 0);
	ft_bitmap_set(&st.pending, GUEST_PAGES - 1);
	st.capture.pages_max = 1;
	assert_int_equal(p->ops->checkpoint(p, &st.pending, &st.capture, &hooks, false, &why),
			 -ENOSPC);
	assert_non_null(strstr(why.text, "staging"));
	assert_true(ft_bitmap_test(&st.pending, 0) && ft_bitmap_test(&st.pending, GUEST_PAGES - 1));
	owed = st.pending.count;
	assert_true(owed > 2);
	tcp_echo(tcp, 3); /* it runs */
	hooks.full = refuse;
	assert_int_equal(p->ops->checkpoint(p, &st.pending, &st.capture, &hooks, true, &why),
			 -ENOBUFS);
	assert_true(st.pending.count >= owed);
	assert_string_equal(p->ops->status(p), "running");
	tcp_echo(tcp, 4);
	st.capture.pages_max = most;
	staging_checkpoint(&st, p, false);
	staging_checkpoint(&st, p, false);
}

static void an_agent_restarts(void **state)
{
	struct vmm_info before, after;

	(void)state;
	assert_ok(p->ops->checkpoint_prepare(p, err));
	p->ops->info(p, &before);
	p->ops->free(p); /* half a command is left in the monitor */
	assert_ok(qemu_attach(guest_path("p.qmp"), "p", guest_run, keeper, &p, err));
	p->ops->info(p, &after);
	/* The path by which QEMU was given its image is the one it reports. */
	assert_memory_equal(&before, &after, sizeof before);
	assert_ok(p->ops->check(p, err));
	tcp_echo(tcp, 5);
	assert_ok(p->ops->track_start(p, err));
}

static void writes_are_harvested(void **state)
{
	struct ft_bitmap dirty;
	uint8_t *page = malloc(VMM_PAGE_BYTES);
	uint64_t pfn;

	(void)state;
	assert_int_equal(ft_bitmap_init(&dirty, GUEST_PAGES), 0);
	assert_ok(p->ops->harvest(p, &dirty, err));
	tcp_echo(tcp, 6);
	assert_true(p->ops->dirty_peek(p, 1) == 1);
	ft_bitmap_clear_all(&dirty);
	assert_ok(p->ops->harvest(p, &dirty, err));
	assert_true(dirty.count > 1);
	pfn = ft_bitmap_next(&dirty, 0);
	assert_ok(p->ops->read_pages(p, &pfn, 1, page, err));
	ft_bitmap_free(&dirty);
	free(page);
}

static void a_standby_waits(void **state)
{
	struct vmm_tap_points points = {0};
	struct relay relay;

	(void)state;
	assert_ok(qemu_arm(&sc, &s, err));
	assert_string_equal(s->ops->status(s), "inmigrate");
	assert_string_equal(qemu_machine(s), qemu_machine(p));
	snprintf(points.nics[0].out, VMM_PATH_MAX, "%s", guest_path("net.out"));
	snprintf(points.nics[0].in, VMM_PATH_MAX, "%s", guest_path("net.in"));
	relay_listen(&relay);
	assert_ok(s->ops->taps_in(s, &points, err)); /* the NIC's only */
	relay_accept(&relay);
	assert_ok(s->ops->taps_out(s, 0, err));
	relay_close(&relay);
	st.image = s->ops->image(s);
	st.pages = 0;
	ft_bitmap_set_all(&st.pending);
}

/* After any number of checkpoints the image is the guest's RAM but for the pages that it wrote
 * since the last one. */
static void nothing_is_lost(void)
{
	uint8_t *pages = malloc(256 * VMM_PAGE_BYTES);
	uint64_t pfns[256], same = 0;

	assert_ok(p->ops->stop(p, err));
	assert_ok(p->ops->harvest(p, &st.pending, err));
	for (uint64_t first = 0; first < GUEST_PAGES; first += 256) {
		for (unsigned i = 0; i < 256; i++)
			pfns[i] = first + i;
		assert_ok(p->ops->read_pages(p, pfns, 256, pages, err));
		for (unsigned i = 0; i < 256; i++) {
			if (ft_bitmap_test(&st.pending, first + i))
				continue;
			assert_memory_equal(pages + i * VMM_PAGE_BYTES,
					    st.image + (first + i) * VMM_PAGE_BYTES,
					    VMM_PAGE_BYTES);
			same++;
		}
	}
	assert_true(same > GUEST_PAGES / 2);
	assert_ok(p->ops->cont(p, err));
	free(pages);
}

static void checkpoints_follow_each_other(void **state)
{
	int tty = tty_open(pc.console);

	(void)state;
	guest_type(tty, "gl dirty 2000 1000 & gl disk /dev/vda 1000000 &\n");
	for (int i = 0; i < CHECKPOINTS || st.pages < GUEST_PAGES + 10000; i++) {
		assert_true(i < 1000);
		tcp_echo(tcp, 10 + i);
		assert_ok(p->ops->checkpoint_prepare(p, err));
		let_run(p, 5);
		staging_checkpoint(&st, p, false);
		if (i % 10 == 9)
			nothing_is_lost();
	}
	guest_type(tty, "kill $(pidof gl)\n");
	printf("state %zu bytes, pause %.2f ms, held %.2f ms\n", st.capture.state_len,
	       (double)st.capture.pause_ns / 1e6, (double)st.capture.held_ns / 1e6);
	staging_checkpoint(&st, p, false);
	tcp_echo(tcp, 5000);
	shutdown(tty, SHUT_RDWR);
}

static void a_trial_tells_good_from_bad(void **state)
{
	size_t len = st.capture.state_len;
	uint8_t *bad = malloc(len);
	struct ft_err why = {0};
	uint64_t before, after;
	struct vmm_ram ram;
	struct stat full;
	blkcnt_t blocks;
	uint8_t *at;

	(void)state;
	s->ops->ram(s, &ram);
	assert_int_equal(fstat(ram.fd, &full), 0);
	blocks = full.st_blocks;
	assert_ok(s->ops->ram_digest(s, &before, err));
	/* Who reads it does not fill its holes. */
	assert_int_equal(fstat(ram.fd, &full), 0);
	assert_int_equal(full.st_blocks, blocks);
	assert_ok(s->ops->trial(s, st.capture.state, len, err));
	assert_ok(qemu_trial_prepare(s, err));
	memcpy(bad, st.capture.state, len);
	at = memmem(bad, len, "i8259", 5);
	assert_non_null(at);
	at[1] = 'X';
	assert_int_equal(s->ops->trial(s, bad, len, &why), -EIO);
	if (!strstr(why.text, "iX259"))
		fail_msg("'%s' is not QEMU's message", why.text);
	assert_true(s->ops->trial(s, st.capture.state, len / 2, &why) < 0);
	assert_true(s->ops->trial(s, st.capture.state + 1, len - 1, &why) == -EPROTO);
	free(bad);
	assert_ok(s->ops->ram_digest(s, &after, err));
	assert_int_equal(before, after);
}

static void the_guest_moves(void **state)
{
	uint64_t here, there, t;
	int tick;

	(void)state;
	p->events.lost = s->events.lost = on_lost;
	staging_checkpoint(&st, p, true);
	assert_ok(p->ops->ram_digest(p, &here, err));
	assert_ok(s->ops->ram_digest(s, &there, err));
	assert_int_equal(here, there);
	assert_string_equal(p->ops->status(p), "paused");
	tick = last_tick(pc.console_log);
	p->ops->quit(p, false, 0);
	p->ops->poll(p);
	assert_true(strlen(lost_why) > 0);
	p->ops->free(p);
	t = qemu_now_ns();
	assert_ok(s->ops->resume(s, st.capture.state, st.capture.state_len, err));
	printf("resume %.2f ms\n", (double)(qemu_now_ns() - t) / 1e6);
	assert_string_equal(s->ops->status(s), "running");
	tcp_echo(tcp, 100);
	wait_file(sc.console_log, has_ticked, tick + 5, 20000);
	assert_int_equal(last_tick(pc.console_log), tick);
}

/* The new primary is an ordinary guest. */
static void and_is_protected_again(void **state)
{
	(void)state;
	assert_ok(s->ops->check(s, err));
	assert_ok(s->ops->track_start(s, err));
	st.image = NULL;
	ft_bitmap_set_all(&st.pending);
	staging_checkpoint(&st, s, false);
	tcp_echo(tcp, 101);
	staging_checkpoint(&st, s, true);
	assert_ok(s->ops->cont(s, err));
	tcp_echo(tcp, 102);
	s->ops->track_stop(s);
}

static void a_death_is_told(void **state)
{
	struct pollfd fd = {.fd = s->ops->poll_fd(s), .events = POLLIN};
	struct ft_err why = {0};
	struct vmm_info info;

	(void)state;
	*lost_why = '\0';
	s->ops->info(s, &info);
	kill(info.pid, SIGKILL);
	while (!*lost_why) {
		assert_true(poll(&fd, 1, 5000) > 0);
		s->ops->poll(s);
	}
	assert_non_null(strstr(lost_why, "ended"));
	assert_int_equal(s->ops->stop(s, &why), -EPIPE);
	s->ops->quit(s, true, 100); /* idempotent */
	s->ops->free(s);
	staging_free(&st);
	keeper_stop(keeper);
	close(tcp);
}

static void a_bad_state_does_not_resume(void **state)
{
	static const uint8_t bad[64] = "QEVM\0\0\0\3garbage";
	struct ft_err why = {0};

	(void)state;
	assert_ok(qemu_arm(&sc, &s, err));
	assert_true(s->ops->resume(s, bad, sizeof bad, &why) < 0);
	assert_non_null(strstr(why.text, "resume: "));
	s->ops->quit(s, false, 0);
	s->ops->free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(starts),
		cmocka_unit_test(a_primed_command_is_in_nobodys_way),
		cmocka_unit_test(a_failed_checkpoint_loses_nothing),
		cmocka_unit_test(an_agent_restarts),
		cmocka_unit_test(writes_are_harvested),
		cmocka_unit_test(a_standby_waits),
		cmocka_unit_test(checkpoints_follow_each_other),
		cmocka_unit_test(a_trial_tells_good_from_bad),
		cmocka_unit_test(the_guest_moves),
		cmocka_unit_test(and_is_protected_again),
		cmocka_unit_test(a_death_is_told),
		cmocka_unit_test(a_bad_state_does_not_resume),
	};
	int failed;

	guest_setup();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	guest_teardown();
	return failed;
}
