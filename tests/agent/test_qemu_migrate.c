// SPDX-License-Identifier: Apache-2.0
/* A Linux guest moves, there and back, under a TCP connection that must not notice more than a
 * pause. How often: FT_ROUNDS (default 2). */
#include "tests/agent/harness.h"

#define NIC    "nic net0 { mac = \"52:54:00:12:34:56\" attach = \"bridge:br0\" }\n"
#define ECHOES 20 /* after each move */

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

/* The client goes on all the while: its exchanges are in between. */
static void move(struct host *from, struct host *to, const char *listen, int connection)
{
	Ctl__Request r = CTL__REQUEST__INIT;
	uint64_t began = now_ms();
	Ctl__Reply *reply;

	r.command = (char *)"migrate";
	r.uri = (char *)(uintptr_t)move_uri(listen);
	reply = ask_any(from, &r);
	if (reply->error[0])
		fail_msg("%s: %s", from->id, reply->message);
	figures(from, reply, now_ms() - began);
	ctl__reply__free_unpacked(reply, NULL);
	assert_int_equal(host_reap(from, START_MS), 0);
	wait_state(to, "solo", GOES_ON_MS);
	guest_echo(connection, ECHOES);
	ticks_on(to);
}

static void there_and_back(void **state)
{
	int connection;

	(void)state;
	a = host_make("A");
	b = host_make("B");
	qemu_conf(at("g.conf"), "ft.dirty=2000:64 ft.write=4:/dev/vda:0", "", NIC);
	qemu_start(&a, at("g.conf"));
	connection = guest_connect();
	guest_echo(connection, ECHOES);
	for (unsigned i = 0; i < rounds(); i++) {
		target_b();
		move(&a, &b, "b.sock", connection);
		target_a();
		move(&b, &a, "a.sock", connection);
	}
	close(connection);
	host_stop(&a);
	assert_int_equal(children(), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(there_and_back, place_clear),
	};
	int failed;

	need_qemu();
	place_open();
	bridge();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return place_close() + failed;
}
