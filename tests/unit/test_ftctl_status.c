// SPDX-License-Identifier: Apache-2.0
/* What ftctl shows of guests: status, top, and a migration's progress, as text for people and as
 * JSON for programs, which is parsed and compared whole. */
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/fixture/clock.h"
#include "tests/fixture/ftctl_full_status.h"
#include "tests/fixture/ftctl_lab.h"

static void test_status(void **state)
{
	static Ctl__Reply reply = CTL__REPLY__INIT;
	static Ctl__Status s;

	(void)state;
	s = ftctl_full_status();
	reply.status = &s;
	cli.agent.reply = &reply;
	ftctl("status web1 --json");
	ftctl_expect_json(0, FTCTL_FULL_JSON);
	assert_string_equal(cli.agent.command, "status");
	ftctl("--json --run-dir /nonexistent status");
	ftctl_expect_json(0, "{\"guests\": []}");

	setenv("TZ", "UTC", 1);
	ftctl("status web1");
	ftctl_expect_text(
		0,
		"guest        web1\n"
		"uuid         9b32af52-df3d-59c4-a679-b75f851fda98\n"
		"state        protected\n"
		"reason       in sync\n"
		"since        2023-11-14 22:13:20\n"
		"role         primary\n"
		"peer         kemari:tls:b:4444\n"
		"epoch        committed 42, open 43, generation 2\n"
		"checkpoints  42, 1 failed\n"
		"pause        last 0.6 ms, p50 0.6, p99 1.9, max 120\n"
		"commit       last 0.0 ms, p50 4.1, p99 0.0, max 0.0\n"
		"dirty pages  last 7, p50 8, p99 9, max 10\n"
		"pages        1.0G raw, 1.0M sent\n"
		"held         3 outputs, 1.5K\n"
		"overhead     12.5%\n"
		"arbiter      file, held, held by hostA\n"
		"vmm          qemu, pid 4711, running\n"
		"disk         root: replicated, UpToDate, 4.0K behind\n"
		"resync       1.0G were there already (512M noted, else compared), 1.0M copied\n"
		"home         hostA\n"
		"last error   link: reset by peer\n",
		"");
}

/* What an agent leaves out; and text that is neither UTF-8 nor fit for a terminal. */
static void test_status_odd(void **state)
{
	static Ctl__Status s = CTL__STATUS__INIT;
	static Ctl__Reply reply = CTL__REPLY__INIT;

	(void)state;
	s.name = (char *)"web1", s.state = (char *)"solo", s.reason = (char *)"\033[2Jcaf\xe9";
	s.overhead = NAN, s.checkpoints = UINT64_MAX;
	reply.status = &s;
	cli.agent.reply = &reply;
	ftctl("--json status web1");
	ftctl_expect_json(
		0, "{\"name\": \"web1\", \"uuid\": \"\", \"state\": \"solo\", \"reason\": "
		   "\"\\u001b[2Jcaf?\","
		   " \"since\": null, \"role\": \"\", \"peer\": null, \"epoch\": {\"open\": 0, "
		   "\"committed\": 0},"
		   " \"pause_us\": {\"last\": 0, \"p50\": 0, \"p99\": 0, \"max\": 0},"
		   " \"commit_us\": {\"last\": 0, \"p50\": 0, \"p99\": 0, \"max\": 0},"
		   " \"dirty_pages\": {\"last\": 0, \"p50\": 0, \"p99\": 0, \"max\": 0},"
		   " \"bytes\": {\"raw\": 0, \"sent\": 0}, \"checkpoints\": 9223372036854775807,"
		   " \"checkpoints_failed\": 0, \"held\": {\"outputs\": 0, \"bytes\": 0}, "
		   "\"overhead\": 0.0,"
		   " \"generation\": 0, \"arbiter\": {\"type\": \"\", \"state\": \"\", "
		   "\"holder\": null},"
		   " \"vmm\": {\"kind\": \"\", \"pid\": 0, \"status\": \"\","
		   " \"stopped_us\": 0, \"resumed_us\": 0}, \"disks\": [],"
		   " \"deciding\": false, \"rounds\": 0, \"resync\": {\"alike\": 0, \"noted\": 0, "
		   "\"copied\": "
		   "0}, \"home\": null, \"mode\": null, \"last_error\": null}");
	ftctl("status web1");
	assert_non_null(strstr(cli.run.out_text, "reason       ?[2Jcaf\xe9\n"));
	reply.status = NULL;
	ftctl("--json status web1");
	ftctl_expect_json(1, "{\"error\": {\"code\": \"protocol\","
			     " \"message\": \"guest web1: its agent's answer has no status\"}}");
}

/* All guests: one that runs, one whose agent was killed, and files that are no guests. */
static void test_status_all(void **state)
{
	static Ctl__Reply reply = CTL__REPLY__INIT;
	static Ctl__Status s;
	char expected[4096];

	(void)state;
	s = ftctl_full_status();
	reply.status = &s;
	cli.agent.reply = &reply;
	ftctl_touch("dead.lock"), ftctl_touch("web1.console.sock"), ftctl_touch("-x.lock"),
		ftctl_touch(".lock");
	ftctl("status --json");
	snprintf(expected, sizeof expected,
		 "{\"guests\": [{\"name\": \"dead\", \"error\": {\"code\": \"not-running\", "
		 "\"message\":"
		 " \"guest dead: no agent is running here (%s/dead.sock)\"}}, " FTCTL_FULL_JSON
		 "]}",
		 cli.run_dir);
	ftctl_expect_json(0, expected);
	ftctl("top --json");
	ftctl_expect_json(0, expected);

	snprintf(expected, sizeof expected,
		 "NAME             STATE      ROLE          EPOCH PAUSE ms      p99 COMMIT ms "
		 "OVERHEAD     HELD  PEER\n"
		 "dead             -          guest dead: no agent is running here (%s/dead.sock)\n"
		 "web1             protected  primary          42      0.6      1.9       4.1    "
		 "12.5%%     1.5K  "
		 "kemari:tls:b:4444\n",
		 cli.run_dir);
	ftctl("status");
	ftctl_expect_text(0, expected, "");
	ftctl("top"); /* no terminal: once */
	ftctl_expect_text(0, expected, "");
	ftctl_removed("dead.lock"), ftctl_removed("web1.console.sock"), ftctl_removed("-x.lock"),
		ftctl_removed(".lock");
}

/* What people and programs see of one. */
static void test_migration_status(void **state)
{
	static uint64_t histogram[] = {0, 0, 0, 0, 0, 12, 3};
	static Ctl__Reply reply = CTL__REPLY__INIT;
	static Ctl__Migration m = CTL__MIGRATION__INIT;
	static Ctl__Figures f = CTL__FIGURES__INIT;
	static Ctl__Status s;

	(void)state;
	s = ftctl_full_status();
	s.mode = m.mode = (char *)"postcopy";
	s.migration = &m;
	m.rounds = 2, m.remaining = 4096, m.downtime_us = 12300;
	m.bytes_total = 1 << 20, m.bytes_done = 1 << 19, m.faults = 15, m.cut = true;
	f.last = 40, f.p50 = 50, f.p99 = 90, f.max = 99;
	m.fault_us = &f;
	m.fault_histogram = histogram, m.n_fault_histogram = 7;
	m.bytes_per_s = 1 << 20, m.faults_per_s = 10;
	reply.status = &s;
	cli.agent.reply = &reply;
	ftctl("status web1");
	assert_non_null(
		strstr(cli.run.out_text, "postcopy, 2 rounds, 4.0K left, downtime 12.3 ms"));
	assert_non_null(strstr(cli.run.out_text, "15 pages were waited for; the link is lost"));
	assert_non_null(strstr(cli.run.out_text, "32 us: 12, 64 us: 3,"));
	assert_non_null(strstr(cli.run.out_text, "1.0M/s, 10.0 pages a second were waited for"));
	ftctl("status --json web1");
	assert_non_null(strstr(cli.run.out_text, "\"mode\": \"postcopy\""));
	assert_non_null(strstr(cli.run.out_text, "\"fault_histogram\": [0, 0, 0, 0, 0, 12, 3]"));
	assert_non_null(strstr(cli.run.out_text, "\"link_lost\": true"));
}

/* On a terminal top comes back after a second with a cleared screen. */
static void test_top_live(void **state)
{
	static Ctl__Reply reply = CTL__REPLY__INIT;
	static Ctl__Status s;
	int terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC), status;
	uint64_t deadline = now_ms() + FTCTL_WITHIN_MS;
	const char *second = NULL;
	pid_t pid;

	(void)state;
	s = ftctl_full_status();
	reply.status = &s;
	cli.agent.reply = &reply;
	assert_true(terminal >= 0);
	assert_int_equal(grantpt(terminal) | unlockpt(terminal), 0);
	memset(&cli.run, 0, sizeof cli.run);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		int tty = open(ptsname(terminal), O_RDWR | O_NOCTTY);

		dup2(tty, STDOUT_FILENO);
		execl(cli.binary, cli.binary, "--run-dir", cli.run_dir, "top", NULL);
		_exit(127);
	}
	while (!second) {
		assert_true(now_ms() < deadline);
		ftctl_serve();
		ftctl_slurp(terminal, cli.run.out_text, &cli.run.out_n, sizeof cli.run.out_text);
		second = strstr(cli.run.out_text, "\033[H\033[2J");
		second = second ? strstr(second + 1, "\033[H\033[2JNAME ") : NULL;
	}
	assert_int_equal(kill(pid, SIGINT), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	close(terminal);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_status, ftctl_setup, ftctl_teardown),
		cmocka_unit_test_setup_teardown(test_status_odd, ftctl_setup, ftctl_teardown),
		cmocka_unit_test_setup_teardown(test_status_all, ftctl_setup, ftctl_teardown),
		cmocka_unit_test_setup_teardown(test_migration_status, ftctl_setup, ftctl_teardown),
		cmocka_unit_test_setup_teardown(test_top_live, ftctl_setup, ftctl_teardown),
	};

	if (!ftctl_find())
		return 77;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
