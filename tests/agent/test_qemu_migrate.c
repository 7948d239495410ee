// SPDX-License-Identifier: Apache-2.0
/* A Linux guest moves, there and back, under a TCP connection that must not notice more than a
 * pause. How often: FT_ROUNDS (default 2). */
#include "tests/agent/asker.h"
#include "tests/agent/harness.h"
#include "tests/agent/ledger.h"
#include "tests/agent/proxy.h"

#define NIC  "nic net0 { mac = \"52:54:00:12:34:56\" attach = \"bridge:br0\" }\n"
#define WORK 200 /* requests after each move, of which each reads memory and disk */

static struct host a, b;

static const char *move_uri(const char *name)
{
	return unix_uri(name) + strlen("kemari:");
}

/* One network namespace is both hosts' here, so B's tap needs a name of its own. */
static void target_b(void)
{
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--set",
		   "console.log=B.console", "--set", "console.socket=B.tty.sock", "--set",
		   "nic.net0.attach=tap:tapb", "--incoming", move_uri("b.sock"), NULL);
	wait_state(&b, "standby", START_MS);
}

static void target_a(void)
{
	host_start(&a, at("g.conf"), "--incoming", move_uri("a.sock"), NULL);
	wait_state(&a, "standby", START_MS);
}

static unsigned rounds(void)
{
	const char *text = getenv("FT_ROUNDS");

	return text ? (unsigned)atoi(text) : 2;
}

static void figures(struct host *from, const Ctl__Reply *reply, unsigned long ms)
{
	printf("%s: moved in %lu ms: %s\n", from->id, ms, reply->status->reason);
}

struct way {
	bool postcopy;
	unsigned rounds; /* of precopy before it */
};

static void move(struct host *from, struct host *to, const char *listen, struct way way)
{
	Ctl__Request r = CTL__REQUEST__INIT;
	uint64_t began = now_ms();
	Ctl__Reply *reply;

	r.command = (char *)"migrate";
	r.uri = (char *)(uintptr_t)move_uri(listen);
	r.postcopy = way.postcopy;
	r.rounds = way.rounds;
	reply = ask_any(from, &r);
	if (reply->error[0])
		fail_msg("%s: %s", from->id, reply->message);
	figures(from, reply, now_ms() - began);
	ctl__reply__free_unpacked(reply, NULL);
	assert_int_equal(host_reap(from, START_MS), 0);
	wait_state(to, "solo", GOES_ON_MS);
}

/* One client asks without a pause, through all the moves; another one reads back, between them,
 * what it had the guest write into its memory and onto its disk. */
static void there_and_back(struct way way)
{
	struct ledger ledger = {0};
	struct asker asker;
	int connection;

	a = host_make("A");
	b = host_make("B");
	shell("rm -f %s %s", at("*.img"), at("*.kemari"));
	qemu_conf(at("g.conf"), "ft.dirty=2000:64 ft.serve=7001:/dev/vda", "", NIC);
	qemu_start(&a, at("g.conf"));
	connection = ledger_connect();
	ledger_work(&ledger, connection, WORK);
	asker_start(&asker);
	for (unsigned i = 0; i < rounds(); i++) {
		target_b();
		move(&a, &b, "b.sock", way);
		ledger_work(&ledger, connection, WORK);
		ticks_on(&b);
		target_a();
		move(&b, &a, "a.sock", way);
		ledger_work(&ledger, connection, WORK);
		ticks_on(&a);
	}
	print_message("%u moves: a client waited %llu us at most\n", 2 * rounds(),
		      (unsigned long long)asker_end(&asker));
	close(connection);
	host_stop(&a);
	assert_int_equal(children(), 0);
}

static void precopy(void **state)
{
	(void)state;
	there_and_back((struct way){0});
}

static void postcopy(void **state)
{
	(void)state;
	there_and_back((struct way){.postcopy = true});
}

static void hybrid(void **state)
{
	(void)state;
	there_and_back((struct way){.postcopy = true, .rounds = 2});
}

/* A guest that writes faster than the link carries stays where it is, unless it may be slowed down.
 */
#define SLOW_URI "tcp:127.0.0.1:7400"

static void begin_slowly(void)
{
	if (system("tc qdisc add dev lo root tbf rate 1gbit burst 256kb latency 20ms")) {
		print_message("skipped: this kernel has no slow links (tc, tbf)\n");
		skip();
	}
	a = host_make("A");
	b = host_make("B");
	shell("rm -f %s %s", at("*.img"), at("*.kemari"));
	qemu_conf(at("g.conf"), "ft.dirty=400000:16", "max_downtime_ms = 2", NIC);
	qemu_start(&a, at("g.conf"));
	host_start(&b, at("g.conf"), "--set", "disk.root.image=B.img", "--set",
		   "console.log=B.console", "--set", "console.socket=B.tty.sock", "--set",
		   "nic.net0.attach=tap:tapb", "--incoming", SLOW_URI, NULL);
	wait_state(&b, "standby", START_MS);
}

static Ctl__Request slowing_down(void)
{
	Ctl__Request r = CTL__REQUEST__INIT;

	r.command = (char *)"migrate";
	r.uri = (char *)(uintptr_t)SLOW_URI;
	r.throttle = true;
	return r;
}

static void throttled(void **state)
{
	Ctl__Request r = slowing_down();
	Ctl__Reply *reply;

	(void)state;
	begin_slowly();
	ask_refused(&a, "migrate", SLOW_URI, "faster than it can be sent");
	assert_state(&a, "solo");
	ticks_on(&a);
	wait_state(&b, "standby", START_MS);
	reply = ask_any(&a, &r);
	if (reply->error[0])
		fail_msg("A: %s; it said: %s", reply->message, file_text(a.log));
	figures(&a, reply, 0);
	ctl__reply__free_unpacked(reply, NULL);
	assert_true(host_said(&a, "slowed down by"));
	assert_int_equal(host_reap(&a, START_MS), 0);
	ticks_on(&b);
	host_stop(&b);
	shell("tc qdisc del dev lo root");
	assert_int_equal(children(), 0);
}

/* Just when it has stopped the guest, if we are quick enough. false: the move was over before. */
static bool killed_while_it_stands(void)
{
	uint64_t until = now_ms() + GOES_ON_MS;

	for (bool paused = false; !paused; breathe(until, "the guest is slowed down")) {
		Ctl__Reply *reply = status_of(&a);

		paused = !strcmp(reply->status->vmm->status, "paused");
		if (paused)
			host_kill(&a);
		else
			assert_string_not_equal(reply->status->state, "stopped");
		ctl__reply__free_unpacked(reply, NULL);
	}
	host_start(&a, at("g.conf"), NULL);
	wait_state(&a, "solo", START_MS);
	ticks_on(&a);
	return host_said(&a, "it goes on here");
}

static void source_killed_while_throttled(void **state)
{
	Ctl__Request r = slowing_down();
	bool stood = false;
	pid_t vmm;

	(void)state;
	begin_slowly();
	vmm = vmm_pid(&a);
	for (unsigned i = 0; i < 20 && !stood; i++) {
		ask_any_async(&a, &r);
		wait_state(&a, "syncing", START_MS);
		/* Who is refused changes nothing of the one that is under way. */
		ask_refused(&a, "migrate", SLOW_URI, "");
		stood = killed_while_it_stands();
		assert_int_equal(vmm_pid(&a), vmm);
		wait_state(&b, "standby", START_MS);
	}
	assert_true(stood);
	shell("tc qdisc del dev lo root");
	host_stop(&a);
	host_stop(&b);
}

/* ---- a link that is lost ---- */

static struct proxy *wire;

static void join(void)
{
	shell("rm -f %s", at("wire.sock"));
	wire = proxy_start(at("wire.sock"), at("b.sock"));
}

static Ctl__Reply *migrate(bool recover, bool demand_only)
{
	Ctl__Request r = CTL__REQUEST__INIT;
	Ctl__Reply *reply;

	r.command = (char *)"migrate";
	r.uri = recover ? (char *)"" : (char *)(uintptr_t)move_uri("wire.sock");
	r.recover = recover;
	r.postcopy = !recover;
	r.demand_only = demand_only;
	reply = ask_any(&a, &r);
	if (reply->error[0])
		fail_msg("A: %s", reply->message);
	return reply;
}

static void begin_without_memory(void)
{
	a = host_make("A");
	b = host_make("B");
	shell("rm -f %s %s", at("*.img"), at("*.kemari"));
	qemu_conf(at("g.conf"), "ft.dirty=2000:64", "", NIC);
	qemu_start(&a, at("g.conf"));
	target_b();
	join();
	ctl__reply__free_unpacked(migrate(false, true), NULL);
	wait_state(&b, "solo", GOES_ON_MS);
	proxy_stop(wire);
	wait_migration_cut(&a);
	wait_migration_cut(&b);
}

/* Ticks that the guest counted before it had to wait. */
static void wait_still(const struct host *h)
{
	uint64_t until = now_ms() + GOES_ON_MS;
	int tick = -2;

	while (tick != last_tick(h)) {
		tick = last_tick(h);
		for (uint64_t next = now_ms() + 1000; now_ms() < next;)
			breathe(until, "the guest stands still");
	}
}

static void cut_and_recovered(void **state)
{
	int tick, connection;

	(void)state;
	begin_without_memory();
	wait_still(&b);
	tick = last_tick(&b);
	join();
	ctl__reply__free_unpacked(migrate(true, false), NULL);
	assert_int_equal(host_reap(&a, START_MS), 0);
	wait_tick(&b, tick, GOES_ON_MS);
	connection = guest_connect();
	guest_echo(connection, 1);
	close(connection);
	proxy_stop(wire);
	host_stop(&b);
	assert_int_equal(children(), 0);
}

static void source_killed(void **state)
{
	(void)state;
	begin_without_memory();
	host_kill(&a);
	wait_still(&b);
	/* It has not crashed on zeroes: it waits, and can be ended. */
	assert_true(process_alive(vmm_pid(&b)));
	assert_null(strstr(file_text(at("B.console")), "panic"));
	host_stop(&b);
	wait_children(0, 5000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(precopy, place_clear),
		cmocka_unit_test_teardown(postcopy, place_clear),
		cmocka_unit_test_teardown(hybrid, place_clear),
		cmocka_unit_test_teardown(throttled, place_clear),
		cmocka_unit_test_teardown(source_killed_while_throttled, place_clear),
		cmocka_unit_test_teardown(cut_and_recovered, place_clear),
		cmocka_unit_test_teardown(source_killed, place_clear),
	};
	int failed;

	need_qemu();
	place_open();
	bridge();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return place_close() + failed;
}
