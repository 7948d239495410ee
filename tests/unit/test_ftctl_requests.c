// SPDX-License-Identifier: Apache-2.0
/* What ftctl asks of an agent, how it waits, and what it makes of the answer, also of agents that
 * misbehave. */
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/fixture/ftctl_full_status.h"
#include "tests/fixture/ftctl_lab.h"

/* What of the command line reaches the agent. */
static void test_migrate(void **state)
{
	static Ctl__Reply reply = CTL__REPLY__INIT;

	(void)state;
	cli.agent.reply = &reply;
	ftctl("migrate web1 tls:h:1");
	ftctl_expect_text(0, "web1: done\n", "");
	assert_string_equal(cli.agent.uri, "tls:h:1");
	assert_false(cli.agent.postcopy || cli.agent.demand_only || cli.agent.throttle ||
		     cli.agent.recover);
	ftctl("migrate --auto-throttle web1 tls:h:1");
	assert_true(cli.agent.throttle && !cli.agent.postcopy);
	ftctl("migrate -p web1 tls:h:1");
	assert_true(cli.agent.postcopy && !cli.agent.demand_only && cli.agent.rounds == 0);
	ftctl("migrate -p -n web1 unix:/x");
	assert_true(cli.agent.postcopy && cli.agent.demand_only);
	ftctl("migrate --postcopy-after 3 web1 tls:h:1");
	assert_true(cli.agent.postcopy && cli.agent.rounds == 3);
	ftctl("migrate --recover web1");
	assert_true(cli.agent.recover && !cli.agent.demand_only);
	assert_string_equal(cli.agent.uri, "");
	ftctl("migrate --recover -n web1 tls:h:2");
	assert_true(cli.agent.recover && cli.agent.demand_only);
	assert_string_equal(cli.agent.uri, "tls:h:2");
}

static void test_outcomes(void **state)
{
	static Ctl__Reply reply = CTL__REPLY__INIT;
	static Ctl__Status s;
	static const char *const plain[] = {"failover", "failback", "cancel", "stop"};
	char line[64];

	(void)state;
	s = ftctl_full_status();
	cli.agent.reply = &reply;
	for (int i = 0; i < 3; i++) {
		snprintf(line, sizeof line, "%s web1", plain[i]);
		ftctl(line);
		ftctl_expect_text(0, "web1: done\n", "");
		assert_string_equal(cli.agent.command, plain[i]);
	}
	ftctl("stop web1 --json");
	ftctl_expect_json(0, "{\"name\": \"web1\"}");
	reply.status = &s;
	ftctl("migrate web1 kemari:tls:[::1]:4444");
	ftctl_expect_text(0, "web1: protected: in sync\n", "");
	assert_string_equal(cli.agent.command, "migrate");
	assert_string_equal(cli.agent.uri, "kemari:tls:[::1]:4444");
	ftctl("--json migrate web1 kemari:unix:/x");
	ftctl_expect_json(0, FTCTL_FULL_JSON);
	reply.epoch = 42;
	ftctl("checkpoint web1");
	ftctl_expect_text(0, "web1: epoch 42 is committed\n", "");
	ftctl("checkpoint web1 --json");
	ftctl_expect_json(0, "{\"name\": \"web1\", \"epoch\": 42}");
	reply.digest = 0xfedcba9876543210;
	ftctl("verify web1");
	ftctl_expect_text(0, "web1: equal, digest fedcba9876543210\n", "");
	ftctl("verify web1 --json");
	ftctl_expect_json(
		0, "{\"name\": \"web1\", \"equal\": true, \"digest\": \"fedcba9876543210\"}");

	reply.error = (char *)CTL_ERR_STATE, reply.message = (char *)"guest is solo\nreally";
	ftctl("checkpoint web1");
	ftctl_expect_text(1, "", "ftctl: guest web1: guest is solo?really\n");
	ftctl("cancel web1 --json");
	ftctl_expect_json(1,
			  "{\"error\": {\"code\": \"state\", \"message\": \"guest web1: guest is "
			  "solo\\nreally\"}}");
	reply.error = (char *)CTL_ERR_MISMATCH, reply.message = (char *)"differs";
	ftctl("verify web1 --json");
	ftctl_expect_json(
		1, "{\"error\": {\"code\": \"mismatch\", \"message\": \"guest web1: differs\"}}");
	reply.error = (char *)CTL_ERR_USAGE, reply.message = (char *)"unknown command";
	ftctl("cancel web1");
	ftctl_expect_text(2, "", "ftctl: guest web1: unknown command\n");
}

static void test_wait(void **state)
{
	(void)state;
	ctl_server_state_changed(cli.server, FT_SOLO, "started");
	ftctl("wait web1 solo");
	ftctl_expect_text(0, "web1: solo\n", "");
	ftctl("wait --timeout 5 web1 solo --json");
	ftctl_expect_json(0, "{\"name\": \"web1\", \"state\": \"solo\"}");
	ftctl("wait web1 protected --timeout 0.05");
	ftctl_expect_text(4, "", "ftctl: guest web1: guest is solo, not protected: started\n");
	ftctl("wait web1 protected --timeout=0 --json");
	ftctl_expect_json(4, "{\"error\": {\"code\": \"timeout\", \"message\":"
			     " \"guest web1: guest is solo, not protected: started\"}}");
	ftctl("wait web1 happy");
	ftctl_expect_text(2, "", "ftctl: guest web1: wait: no such state\n");
	/* The state comes while it waits, or cannot come any more. */
	ftctl_start("wait web1 syncing");
	ctl_server_state_changed(cli.server, FT_SYNCING, "asked");
	ftctl_finish();
	ftctl_expect_text(0, "web1: syncing\n", "");
	ctl_server_state_changed(cli.server, FT_STOPPED, "asked");
	ftctl("wait web1 protected");
	ftctl_expect_text(1, "",
			  "ftctl: guest web1: guest is stopped and will not be protected: asked\n");
	assert_int_equal(cli.agent.requests, 0);
}

static void test_interrupted(void **state)
{
	(void)state;
	ftctl_start("checkpoint web1");
	ftctl_until(&cli.agent.requests, 1);
	assert_int_equal(kill(cli.run.pid, SIGTERM), 0);
	ftctl_until(&cli.agent.cancelled, 1);
	ftctl_finish();
	assert_int_equal(cli.run.code, -SIGTERM);
}

/* Accepts one client, takes its request, answers these bytes, and closes unless `hang`. */
static void fake_agent(int listener, const void *answer, size_t len, bool hang)
{
	struct pollfd pfd = {.fd = listener, .events = POLLIN};
	uint8_t request[512];
	int fd;

	assert_int_equal(poll(&pfd, 1, FTCTL_WITHIN_MS), 1);
	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	assert_true(fd >= 0);
	assert_true(recv(fd, request, sizeof request, 0) > 0);
	if (len)
		assert_int_equal(send(fd, answer, len, MSG_NOSIGNAL), (ssize_t)len);
	if (!hang)
		close(fd);
	ftctl_finish();
	if (hang)
		close(fd);
}

static void test_bad_agents(void **state)
{
	static const uint8_t garbage[] = {3, 0, 0, 0, 0xff, 0xff, 0xff}, huge[] = {1, 0, 16, 0},
			     cut[] = {9, 0, 0, 0, 1};
	struct sockaddr_un addr;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	(void)state;
	assert_int_equal(ctl_socket_path(cli.run_dir, "bad", &addr, NULL), 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof addr), 0);
	ftctl_start("status bad"); /* nobody listens */
	ftctl_finish();
	assert_int_equal(cli.run.code, 1);
	assert_non_null(strstr(cli.run.err_text, "no agent is running here"));
	assert_int_equal(listen(fd, 1), 0);
	ftctl_start("status bad");
	fake_agent(fd, "", 0, false);
	ftctl_expect_text(1, "",
			  "ftctl: guest bad: its agent closed the connection without an answer\n");
	ftctl_start("status bad");
	fake_agent(fd, garbage, sizeof garbage, false);
	ftctl_expect_text(1, "", "ftctl: guest bad: its agent's answer is garbage\n");
	ftctl_start("status bad");
	fake_agent(fd, cut, sizeof cut, false);
	ftctl_expect_text(1, "",
			  "ftctl: guest bad: its agent closed the connection without an answer\n");
	ftctl_start("status bad");
	fake_agent(fd, huge, sizeof huge, false);
	ftctl_expect_text(1, "",
			  "ftctl: guest bad: answer of 1048577 bytes is longer than 1048576\n");
	/* It never answers; wait's own timeout is the agent's to keep, this is the slack after it.
	 */
	ftctl_touch("bad.lock");
	ftctl_start("top --json");
	fake_agent(fd, cut, sizeof cut, true);
	assert_int_equal(cli.run.code, 0);
	assert_non_null(strstr(
		cli.run.out_text,
		"\"no-answer\", \"message\": \"guest bad: its agent does not answer in time\""));
	ftctl_removed("bad.lock");
	ftctl_removed("bad.sock");
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_migrate, ftctl_setup, ftctl_teardown),
		cmocka_unit_test_setup_teardown(test_outcomes, ftctl_setup, ftctl_teardown),
		cmocka_unit_test_setup_teardown(test_wait, ftctl_setup, ftctl_teardown),
		cmocka_unit_test_setup_teardown(test_interrupted, ftctl_setup, ftctl_teardown),
		cmocka_unit_test_setup_teardown(test_bad_agents, ftctl_setup, ftctl_teardown),
	};

	if (!ftctl_find())
		return 77;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
