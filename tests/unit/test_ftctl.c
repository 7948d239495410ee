// SPDX-License-Identifier: Apache-2.0
/* The real ftctl, run against the agent's real control server (with a handler of this test), and
 * against agents that misbehave. What it prints as JSON is parsed and compared whole. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include <jansson.h>

#include "tools/agent/ctl_server.h"

#define WITHIN_MS 30000

static char dir[64], run_dir[80], binary[512];
static struct event_base *base;
static struct ctl_server *server;

/* ---- the agent ---- */

static struct {
	const Ctl__Reply *reply; /* to everything; NULL: never */
	unsigned requests, cancelled;
	struct ctl_call *call;
	char command[64], uri[256];
	bool postcopy, demand_only, throttle, recover;
	unsigned rounds;
} agent;

#define MIGRATE_USAGE                                                                              \
	"usage: ftctl migrate [-p [-n] [--postcopy-after N] | --auto-throttle] NAME URI | "        \
	"--recover [-n] NAME [URI]\n"

static void on_request(void *ctx, struct ctl_call *call, const Ctl__Request *request)
{
	(void)ctx;
	agent.requests++;
	agent.call = call;
	snprintf(agent.command, sizeof agent.command, "%s", request->command);
	snprintf(agent.uri, sizeof agent.uri, "%s", request->uri);
	agent.postcopy = request->postcopy;
	agent.demand_only = request->demand_only;
	agent.throttle = request->throttle;
	agent.recover = request->recover;
	agent.rounds = request->rounds;
	if (agent.reply)
		ctl_reply(call, agent.reply);
}

static void on_cancelled(void *ctx, struct ctl_call *call)
{
	(void)ctx;
	assert_ptr_equal(call, agent.call);
	agent.cancelled++;
}

static int setup(void **state)
{
	static const struct ctl_server_ops ops = {.request = on_request, .cancelled = on_cancelled};

	(void)state;
	memset(&agent, 0, sizeof agent);
	strcpy(dir, "/tmp/test-ftctl-XXXXXX");
	if (!mkdtemp(dir))
		return -1;
	snprintf(run_dir, sizeof run_dir, "%s/run", dir);
	base = event_base_new();
	return ctl_server_new(base, run_dir, "web1", &ops, &server, NULL);
}

static int teardown(void **state)
{
	(void)state;
	ctl_server_free(server);
	event_base_free(base);
	return rmdir(run_dir) || rmdir(dir);
}

/* ---- the program ---- */

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static struct run {
	pid_t pid;
	int out, err; /* read ends */
	char out_text[16384], err_text[16384];
	size_t out_n, err_n;
	int code;
} run;

/* Words are separated by blanks. */
static void start(const char *line)
{
	char words[512], *argv[32] = {binary}, *save = NULL;
	int out[2], err[2], n = 1;

	snprintf(words, sizeof words, "%s", line);
	for (char *w = strtok_r(words, " ", &save); w && n < 31; w = strtok_r(NULL, " ", &save))
		argv[n++] = w;
	memset(&run, 0, sizeof run);
	assert_int_equal(pipe2(out, O_CLOEXEC) | pipe2(err, O_CLOEXEC), 0);
	run.pid = fork();
	assert_true(run.pid >= 0);
	if (!run.pid) {
		dup2(out[1], STDOUT_FILENO);
		dup2(err[1], STDERR_FILENO);
		setenv("KEMARI_RUN_DIR", run_dir, 1);
		execv(binary, argv);
		_exit(127);
	}
	close(out[1]);
	close(err[1]);
	run.out = out[0];
	run.err = err[0];
}

static void serve(void)
{
	struct timeval tick = {.tv_usec = 5000};

	event_base_loopexit(base, &tick);
	event_base_loop(base, EVLOOP_ONCE);
}

/* True while there may be more. */
static bool slurp(int fd, char *text, size_t *n, size_t room)
{
	struct pollfd pfd = {.fd = fd, .events = POLLIN};
	ssize_t got;

	if (poll(&pfd, 1, 0) <= 0)
		return true;
	got = read(fd, text + *n, room - 1 - *n);
	assert_true(got >= 0);
	*n += (size_t)got;
	return got > 0;
}

static void finish(void)
{
	int64_t deadline = now_ms() + WITHIN_MS;
	bool out = true, err = true;
	int status;

	while (out || err) {
		assert_true(now_ms() < deadline);
		serve();
		out = out && slurp(run.out, run.out_text, &run.out_n, sizeof run.out_text);
		err = err && slurp(run.err, run.err_text, &run.err_n, sizeof run.err_text);
	}
	close(run.out);
	close(run.err);
	assert_int_equal(waitpid(run.pid, &status, 0), run.pid);
	run.code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void ftctl(const char *line)
{
	start(line);
	finish();
}

static void until(const unsigned *counter, unsigned n)
{
	int64_t deadline = now_ms() + WITHIN_MS;

	while (*counter < n) {
		assert_true(now_ms() < deadline);
		serve();
	}
}

/* The output is one line with this object and nothing else. */
static void expect_json(int code, const char *expected)
{
	json_error_t error;
	json_t *got = json_loads(run.out_text, 0, &error), *want = json_loads(expected, 0, &error);

	assert_non_null(want);
	if (!got || !json_equal(got, want))
		fail_msg("got %s, want %s", run.out_text, expected);
	assert_string_equal(strchr(run.out_text, '\n'), "\n");
	assert_string_equal(run.err_text, "");
	assert_int_equal(run.code, code);
	json_decref(got);
	json_decref(want);
}

static void expect_text(int code, const char *out, const char *err)
{
	assert_string_equal(run.out_text, out);
	assert_string_equal(run.err_text, err);
	assert_int_equal(run.code, code);
}

/* ---- status ---- */

static Ctl__Figures pause_us = CTL__FIGURES__INIT, commit_us = CTL__FIGURES__INIT,
		    dirty_pages = CTL__FIGURES__INIT;
static Ctl__Arbiter arbiter = CTL__ARBITER__INIT;
static Ctl__Vmm vmm = CTL__VMM__INIT;
static Ctl__Disk disk = CTL__DISK__INIT, *disks[] = {&disk};

static Ctl__Status full_status(void)
{
	Ctl__Status s = CTL__STATUS__INIT;

	pause_us.last = 600, pause_us.p50 = 620, pause_us.p99 = 1900, pause_us.max = 120000;
	commit_us.last = 3, commit_us.p50 = 4100, commit_us.p99 = 5, commit_us.max = 6;
	dirty_pages.last = 7, dirty_pages.p50 = 8, dirty_pages.p99 = 9, dirty_pages.max = 10;
	arbiter.type = (char *)"file", arbiter.state = (char *)"held",
	arbiter.holder = (char *)"hostA";
	vmm.kind = (char *)"qemu", vmm.pid = 4711, vmm.status = (char *)"running";
	disk.name = (char *)"root", disk.mode = (char *)"replicated",
	disk.state = (char *)"UpToDate";
	disk.bytes_behind = 4096;
	s.name = (char *)"web1", s.uuid = (char *)"9b32af52-df3d-59c4-a679-b75f851fda98";
	s.state = (char *)"protected", s.reason = (char *)"in sync", s.since_ms = 1700000000123;
	s.role = (char *)"primary", s.peer = (char *)"kemari:tls:b:4444";
	s.epoch_open = 43, s.epoch_committed = 42;
	s.pause_us = &pause_us, s.commit_us = &commit_us, s.dirty_pages = &dirty_pages;
	s.bytes_raw = 1 << 30, s.bytes_sent = 1 << 20, s.checkpoints = 42, s.checkpoints_failed = 1;
	s.held_outputs = 3, s.held_bytes = 1500, s.overhead = 0.125, s.generation = 2;
	s.arbiter = &arbiter, s.vmm = &vmm, s.disks = disks, s.n_disks = 1;
	s.last_error = (char *)"link: reset by peer", s.rounds = 5;
	s.disk_alike = 1 << 30, s.disk_known = 1 << 29, s.disk_copied = 1 << 20,
	s.home = (char *)"hostA";
	s.mode = (char *)"ft";
	return s;
}

#define FULL_JSON                                                                                  \
	"{\"name\": \"web1\", \"uuid\": \"9b32af52-df3d-59c4-a679-b75f851fda98\", \"state\": "     \
	"\"protected\","                                                                           \
	" \"reason\": \"in sync\", \"since\": \"2023-11-14T22:13:20.123Z\", \"role\": "            \
	"\"primary\","                                                                             \
	" \"peer\": \"kemari:tls:b:4444\", \"epoch\": {\"open\": 43, \"committed\": 42},"          \
	" \"pause_us\": {\"last\": 600, \"p50\": 620, \"p99\": 1900, \"max\": 120000},"            \
	" \"commit_us\": {\"last\": 3, \"p50\": 4100, \"p99\": 5, \"max\": 6},"                    \
	" \"dirty_pages\": {\"last\": 7, \"p50\": 8, \"p99\": 9, \"max\": 10},"                    \
	" \"bytes\": {\"raw\": 1073741824, \"sent\": 1048576}, \"checkpoints\": 42, "              \
	"\"checkpoints_failed\": 1,"                                                               \
	" \"held\": {\"outputs\": 3, \"bytes\": 1500}, \"overhead\": 0.125, \"generation\": 2,"    \
	" \"arbiter\": {\"type\": \"file\", \"state\": \"held\", \"holder\": \"hostA\"},"          \
	" \"vmm\": {\"kind\": \"qemu\", \"pid\": 4711, \"status\": \"running\"},"                  \
	" \"disks\": [{\"name\": \"root\", \"mode\": \"replicated\", \"state\": \"UpToDate\", "    \
	"\"bytes_behind\": 4096}],"                                                                \
	" \"deciding\": false, \"rounds\": 5, \"resync\": {\"alike\": 1073741824, \"noted\": "     \
	"536870912, \"copied\": "                                                                  \
	"1048576}, \"home\": \"hostA\", \"mode\": \"ft\", \"last_error\": \"link: reset by "       \
	"peer\"}"

static void test_status(void **state)
{
	static Ctl__Reply reply = CTL__REPLY__INIT;
	static Ctl__Status s;

	(void)state;
	s = full_status();
	reply.status = &s;
	agent.reply = &reply;
	ftctl("status web1 --json");
	expect_json(0, FULL_JSON);
	assert_string_equal(agent.command, "status");
	ftctl("--json --run-dir /nonexistent status");
	expect_json(0, "{\"guests\": []}");

	setenv("TZ", "UTC", 1);
	ftctl("status web1");
	expect_text(
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
	agent.reply = &reply;
	ftctl("--json status web1");
	expect_json(0,
		    "{\"name\": \"web1\", \"uuid\": \"\", \"state\": \"solo\", \"reason\": "
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
		    " \"vmm\": {\"kind\": \"\", \"pid\": 0, \"status\": \"\"}, \"disks\": [],"
		    " \"deciding\": false, \"rounds\": 0, \"resync\": {\"alike\": 0, \"noted\": 0, "
		    "\"copied\": "
		    "0}, \"home\": null, \"mode\": null, \"last_error\": null}");
	ftctl("status web1");
	assert_non_null(strstr(run.out_text, "reason       ?[2Jcaf\xe9\n"));
	reply.status = NULL;
	ftctl("--json status web1");
	expect_json(1, "{\"error\": {\"code\": \"protocol\","
		       " \"message\": \"guest web1: its agent's answer has no status\"}}");
}

static void touch(const char *name)
{
	char path[128];
	FILE *f;

	snprintf(path, sizeof path, "%s/%s", run_dir, name);
	f = fopen(path, "w");
	assert_non_null(f);
	fclose(f);
}

static void removed(const char *name)
{
	char path[128];

	snprintf(path, sizeof path, "%s/%s", run_dir, name);
	assert_int_equal(unlink(path), 0);
}

/* All guests: one that runs, one whose agent was killed, and files that are no guests. */
static void test_status_all(void **state)
{
	static Ctl__Reply reply = CTL__REPLY__INIT;
	static Ctl__Status s;
	char expected[4096];

	(void)state;
	s = full_status();
	reply.status = &s;
	agent.reply = &reply;
	touch("dead.lock"), touch("web1.console.sock"), touch("-x.lock"), touch(".lock");
	ftctl("status --json");
	snprintf(expected, sizeof expected,
		 "{\"guests\": [{\"name\": \"dead\", \"error\": {\"code\": \"not-running\", "
		 "\"message\":"
		 " \"guest dead: no agent is running here (%s/dead.sock)\"}}, " FULL_JSON "]}",
		 run_dir);
	expect_json(0, expected);
	ftctl("top --json");
	expect_json(0, expected);

	snprintf(expected, sizeof expected,
		 "NAME             STATE      ROLE          EPOCH PAUSE ms      p99 COMMIT ms "
		 "OVERHEAD     HELD  PEER\n"
		 "dead             -          guest dead: no agent is running here (%s/dead.sock)\n"
		 "web1             protected  primary          42      0.6      1.9       4.1    "
		 "12.5%%     1.5K  "
		 "kemari:tls:b:4444\n",
		 run_dir);
	ftctl("status");
	expect_text(0, expected, "");
	ftctl("top"); /* no terminal: once */
	expect_text(0, expected, "");
	removed("dead.lock"), removed("web1.console.sock"), removed("-x.lock"), removed(".lock");
}

/* ---- commands that ask ---- */

/* What of the command line reaches the agent. */
static void test_migrate(void **state)
{
	static Ctl__Reply reply = CTL__REPLY__INIT;

	(void)state;
	agent.reply = &reply;
	ftctl("migrate web1 tls:h:1");
	expect_text(0, "web1: done\n", "");
	assert_string_equal(agent.uri, "tls:h:1");
	assert_false(agent.postcopy || agent.demand_only || agent.throttle || agent.recover);
	ftctl("migrate --auto-throttle web1 tls:h:1");
	assert_true(agent.throttle && !agent.postcopy);
	ftctl("migrate -p web1 tls:h:1");
	assert_true(agent.postcopy && !agent.demand_only && agent.rounds == 0);
	ftctl("migrate -p -n web1 unix:/x");
	assert_true(agent.postcopy && agent.demand_only);
	ftctl("migrate --postcopy-after 3 web1 tls:h:1");
	assert_true(agent.postcopy && agent.rounds == 3);
	ftctl("migrate --recover web1");
	assert_true(agent.recover && !agent.demand_only);
	assert_string_equal(agent.uri, "");
	ftctl("migrate --recover -n web1 tls:h:2");
	assert_true(agent.recover && agent.demand_only);
	assert_string_equal(agent.uri, "tls:h:2");
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
	s = full_status();
	s.mode = m.mode = (char *)"postcopy";
	s.migration = &m;
	m.rounds = 2, m.remaining = 4096, m.downtime_us = 12300;
	m.bytes_total = 1 << 20, m.bytes_done = 1 << 19, m.faults = 15, m.cut = true;
	f.last = 40, f.p50 = 50, f.p99 = 90, f.max = 99;
	m.fault_us = &f;
	m.fault_histogram = histogram, m.n_fault_histogram = 7;
	m.bytes_per_s = 1e6, m.faults_per_s = 10;
	reply.status = &s;
	agent.reply = &reply;
	ftctl("status web1");
	assert_non_null(strstr(run.out_text, "postcopy, 2 rounds, 4.0K left, downtime 12.3 ms"));
	assert_non_null(strstr(run.out_text, "15 pages were waited for; the link is lost"));
	assert_non_null(strstr(run.out_text, "32 us: 12, 64 us: 3,"));
	ftctl("status --json web1");
	assert_non_null(strstr(run.out_text, "\"mode\": \"postcopy\""));
	assert_non_null(strstr(run.out_text, "\"fault_histogram\": [0, 0, 0, 0, 0, 12, 3]"));
	assert_non_null(strstr(run.out_text, "\"link_lost\": true"));
}

static void test_outcomes(void **state)
{
	static Ctl__Reply reply = CTL__REPLY__INIT;
	static Ctl__Status s;
	static const char *const plain[] = {"failover", "failback", "cancel", "stop"};
	char line[64];

	(void)state;
	s = full_status();
	agent.reply = &reply;
	for (int i = 0; i < 3; i++) {
		snprintf(line, sizeof line, "%s web1", plain[i]);
		ftctl(line);
		expect_text(0, "web1: done\n", "");
		assert_string_equal(agent.command, plain[i]);
	}
	ftctl("stop web1 --json");
	expect_json(0, "{\"name\": \"web1\"}");
	reply.status = &s;
	ftctl("migrate web1 kemari:tls:[::1]:4444");
	expect_text(0, "web1: protected: in sync\n", "");
	assert_string_equal(agent.command, "migrate");
	assert_string_equal(agent.uri, "kemari:tls:[::1]:4444");
	ftctl("--json migrate web1 kemari:unix:/x");
	expect_json(0, FULL_JSON);
	reply.epoch = 42;
	ftctl("checkpoint web1");
	expect_text(0, "web1: epoch 42 is committed\n", "");
	ftctl("checkpoint web1 --json");
	expect_json(0, "{\"name\": \"web1\", \"epoch\": 42}");
	reply.digest = 0xfedcba9876543210;
	ftctl("verify web1");
	expect_text(0, "web1: equal, digest fedcba9876543210\n", "");
	ftctl("verify web1 --json");
	expect_json(0, "{\"name\": \"web1\", \"equal\": true, \"digest\": \"fedcba9876543210\"}");

	reply.error = (char *)CTL_ERR_STATE, reply.message = (char *)"guest is solo\nreally";
	ftctl("checkpoint web1");
	expect_text(1, "", "ftctl: guest web1: guest is solo?really\n");
	ftctl("cancel web1 --json");
	expect_json(1, "{\"error\": {\"code\": \"state\", \"message\": \"guest web1: guest is "
		       "solo\\nreally\"}}");
	reply.error = (char *)CTL_ERR_MISMATCH, reply.message = (char *)"differs";
	ftctl("verify web1 --json");
	expect_json(1,
		    "{\"error\": {\"code\": \"mismatch\", \"message\": \"guest web1: differs\"}}");
	reply.error = (char *)CTL_ERR_USAGE, reply.message = (char *)"unknown command";
	ftctl("cancel web1");
	expect_text(2, "", "ftctl: guest web1: unknown command\n");
}

static void test_wait(void **state)
{
	(void)state;
	ctl_server_state_changed(server, FT_SOLO, "started");
	ftctl("wait web1 solo");
	expect_text(0, "web1: solo\n", "");
	ftctl("wait --timeout 5 web1 solo --json");
	expect_json(0, "{\"name\": \"web1\", \"state\": \"solo\"}");
	ftctl("wait web1 protected --timeout 0.05");
	expect_text(4, "", "ftctl: guest web1: guest is solo, not protected: started\n");
	ftctl("wait web1 protected --timeout=0 --json");
	expect_json(4, "{\"error\": {\"code\": \"timeout\", \"message\":"
		       " \"guest web1: guest is solo, not protected: started\"}}");
	ftctl("wait web1 happy");
	expect_text(2, "", "ftctl: guest web1: wait: no such state\n");
	/* The state comes while it waits, or cannot come any more. */
	start("wait web1 syncing");
	ctl_server_state_changed(server, FT_SYNCING, "asked");
	finish();
	expect_text(0, "web1: syncing\n", "");
	ctl_server_state_changed(server, FT_STOPPED, "asked");
	ftctl("wait web1 protected");
	expect_text(1, "",
		    "ftctl: guest web1: guest is stopped and will not be protected: asked\n");
	assert_int_equal(agent.requests, 0);
}

static void test_interrupted(void **state)
{
	(void)state;
	start("checkpoint web1");
	until(&agent.requests, 1);
	assert_int_equal(kill(run.pid, SIGTERM), 0);
	until(&agent.cancelled, 1);
	finish();
	assert_int_equal(run.code, -SIGTERM);
}

/* ---- the command line ---- */

static void test_command_line(void **state)
{
	static const struct {
		const char *line;
		int code;
		const char *err;
	} wrong[] = {
		{"", 2, "ftctl: no command\ntry: ftctl --help\n"},
		{"frob web1", 2, "ftctl: unknown command 'frob'\ntry: ftctl --help\n"},
		{"--frob status", 2,
		 "ftctl: unknown option before the command\ntry: ftctl --help\n"},
		{"status --run-dir", 2, "ftctl: --run-dir needs a folder\ntry: ftctl --help\n"},
		{"status a b", 2,
		 "ftctl: status takes one name at most\nusage: ftctl status [NAME]\n"},
		{"status ../web1", 2,
		 "ftctl: '../web1' is not a guest's name (1 to 63 of A-Z a-z 0-9 . _ -, a letter "
		 "or digit first)\n"},
		{"history", 2, "ftctl: history takes a name\nusage: ftctl history NAME\n"},
		{"cancel", 2, "ftctl: cancel takes a name\nusage: ftctl cancel NAME\n"},
		{"verify a b", 2, "ftctl: verify takes a name\nusage: ftctl verify NAME\n"},
		{"top web1", 2, "ftctl: top takes no arguments\nusage: ftctl top\n"},
		{"wait web1", 2,
		 "ftctl: wait takes a name and a state\nusage: ftctl wait NAME STATE [--timeout "
		 "SECONDS]\n"},
		{"wait web1 solo --timeout", 2,
		 "ftctl: --timeout needs a number of seconds\nusage: ftctl wait NAME STATE "
		 "[--timeout SECONDS]\n"},
		{"wait web1 solo --timeout soon", 2,
		 "ftctl: --timeout: 'soon' is not a number of seconds up to a day\n"
		 "usage: ftctl wait NAME STATE [--timeout SECONDS]\n"},
		{"migrate web1", 2, "ftctl: migrate takes a name and a URI\n" MIGRATE_USAGE},
		{"migrate -n web1 tls:h:1", 2,
		 "ftctl: -n is only for postcopy, -p\n" MIGRATE_USAGE},
		{"migrate -x web1 tls:h:1", 2, "ftctl: migrate: unknown option -x\n" MIGRATE_USAGE},
		{"migrate web1 tls:h:1 --postcopy-after", 2,
		 "ftctl: migrate: --postcopy-after: needs a value\n" MIGRATE_USAGE},
		{"migrate web1 tls:h:1 --postcopy-after 31", 2,
		 "ftctl: --postcopy-after 31: 0 to 30 rounds\n" MIGRATE_USAGE},
		{"migrate -p web1 kemari:tls:h:1", 2,
		 "ftctl: the options are for live migration: a URI without "
		 "kemari:\n" MIGRATE_USAGE},
		{"migrate -p --auto-throttle web1 tls:h:1", 2,
		 "ftctl: --auto-throttle: postcopy has no rounds that must "
		 "converge\n" MIGRATE_USAGE},
		{"migrate --recover -p web1", 2,
		 "ftctl: --recover goes on with what was begun: -n only\n" MIGRATE_USAGE},
		{"migrate web1 file:/x", 2,
		 "ftctl: to save a guest to a file: ftctl snapshot web1 file:/x\n" MIGRATE_USAGE},
		{"snapshot web1 tls:h:1", 2,
		 "ftctl: snapshot tls:h:1: not file:PATH\n"
		 "usage: ftctl snapshot NAME file:PATH [--incremental] [--direct] [--jobs N] "
		 "[--max-bandwidth "
		 "BYTES] "
		 "[--no-disks] [--verify]\n"},
		{"snapshot web1 file:/x --jobs 17", 2,
		 "ftctl: --jobs 17: 1 to 16\n"
		 "usage: ftctl snapshot NAME file:PATH [--incremental] [--direct] [--jobs N] "
		 "[--max-bandwidth "
		 "BYTES] "
		 "[--no-disks] [--verify]\n"},
		{"snapshot web1 file:/x --max-bandwidth 1Q", 2,
		 "ftctl: --max-bandwidth 1Q: bytes a second, as 100M\n"
		 "usage: ftctl snapshot NAME file:PATH [--incremental] [--direct] [--jobs N] "
		 "[--max-bandwidth "
		 "BYTES] "
		 "[--no-disks] [--verify]\n"},
		{"snapshot web1 file:/x --jobs", 2,
		 "ftctl: snapshot: --jobs: needs a value\n"
		 "usage: ftctl snapshot NAME file:PATH [--incremental] [--direct] [--jobs N] "
		 "[--max-bandwidth "
		 "BYTES] "
		 "[--no-disks] [--verify]\n"},
		{"pki", 2,
		 "ftctl: pki: what? init or issue\nusage: ftctl pki init DIR | issue DIR NAME "
		 "[HOST-OR-IP]...\n"},
		{"pki sign", 2,
		 "ftctl: pki: unknown subcommand\nusage: ftctl pki init DIR | issue DIR NAME "
		 "[HOST-OR-IP]...\n"},
	};
	char text[512];

	(void)state;
	for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
		ftctl(wrong[i].line);
		expect_text(wrong[i].code, "", wrong[i].err);
	}
	ftctl("migrate web1 kemari:tls:host:0");
	assert_int_equal(run.code, 2);
	assert_non_null(strstr(run.err_text, "port"));
	ftctl("frob --json");
	expect_json(2,
		    "{\"error\": {\"code\": \"usage\", \"message\": \"unknown command 'frob'\"}}");
	ftctl("status web2");
	snprintf(text, sizeof text, "ftctl: guest web2: no agent is running here (%s/web2.sock)\n",
		 run_dir);
	expect_text(1, "", text);
	ftctl("--run-dir=/nonexistent cancel web1");
	expect_text(1, "",
		    "ftctl: guest web1: no agent is running here (/nonexistent/web1.sock)\n");
	assert_int_equal(agent.requests, 0);
}

static void test_help(void **state)
{
	static const char *const names[] = {"status", "wait",	"migrate", "checkpoint", "failover",
					    "cancel", "verify", "stop",	   "top",	 "pki"};
	const char *source = getenv("FT_SOURCE_DIR");
	char line[64], usage[64], path[512];
	static char manual[32768];
	FILE *f;

	(void)state;
	snprintf(path, sizeof path, "%s/tools/man/ftctl.1", source ? source : ".");
	f = fopen(path, "r");
	assert_non_null(f);
	manual[fread(manual, 1, sizeof manual - 1, f)] = 0;
	fclose(f);
	ftctl("--version");
	expect_text(0, "ftctl " FT_VERSION "\n", "");
	ftctl("--help");
	assert_int_equal(run.code, 0);
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		snprintf(line, sizeof line, "\n  %-12s ", names[i]);
		ftctl("--help");
		assert_non_null(strstr(run.out_text, line));
		snprintf(line, sizeof line, "\n.It Cm %s", names[i]);
		assert_non_null(strstr(manual, line));
		snprintf(line, sizeof line, "%s --help", names[i]);
		snprintf(usage, sizeof usage, "usage: ftctl [--run-dir DIR] [--json] %s", names[i]);
		ftctl(line);
		assert_int_equal(strncmp(run.out_text, usage, strlen(usage)), 0);
		assert_int_equal(run.code, 0);
	}
}

/* ---- agents that misbehave ---- */

/* Accepts one client, takes its request, answers these bytes, and closes unless `hang`. */
static void fake_agent(int listener, const void *answer, size_t len, bool hang)
{
	struct pollfd pfd = {.fd = listener, .events = POLLIN};
	uint8_t request[512];
	int fd;

	assert_int_equal(poll(&pfd, 1, WITHIN_MS), 1);
	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	assert_true(fd >= 0);
	assert_true(recv(fd, request, sizeof request, 0) > 0);
	if (len)
		assert_int_equal(send(fd, answer, len, MSG_NOSIGNAL), (ssize_t)len);
	if (!hang)
		close(fd);
	finish();
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
	assert_int_equal(ctl_socket_path(run_dir, "bad", &addr, NULL), 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof addr), 0);
	start("status bad"); /* nobody listens */
	finish();
	assert_int_equal(run.code, 1);
	assert_non_null(strstr(run.err_text, "no agent is running here"));
	assert_int_equal(listen(fd, 1), 0);
	start("status bad");
	fake_agent(fd, "", 0, false);
	expect_text(1, "", "ftctl: guest bad: its agent closed the connection without an answer\n");
	start("status bad");
	fake_agent(fd, garbage, sizeof garbage, false);
	expect_text(1, "", "ftctl: guest bad: its agent's answer is garbage\n");
	start("status bad");
	fake_agent(fd, cut, sizeof cut, false);
	expect_text(1, "", "ftctl: guest bad: its agent closed the connection without an answer\n");
	start("status bad");
	fake_agent(fd, huge, sizeof huge, false);
	expect_text(1, "", "ftctl: guest bad: answer of 1048577 bytes is longer than 1048576\n");
	/* It never answers; wait's own timeout is the agent's to keep, this is the slack after it.
	 */
	touch("bad.lock");
	start("top --json");
	fake_agent(fd, cut, sizeof cut, true);
	assert_int_equal(run.code, 0);
	assert_non_null(strstr(
		run.out_text,
		"\"no-answer\", \"message\": \"guest bad: its agent does not answer in time\""));
	removed("bad.lock");
	removed("bad.sock");
	close(fd);
}

/* On a terminal top comes back after a second with a cleared screen. */
static void test_top_live(void **state)
{
	static Ctl__Reply reply = CTL__REPLY__INIT;
	static Ctl__Status s;
	int terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC), status;
	int64_t deadline = now_ms() + WITHIN_MS;
	const char *second = NULL;
	pid_t pid;

	(void)state;
	s = full_status();
	reply.status = &s;
	agent.reply = &reply;
	assert_true(terminal >= 0);
	assert_int_equal(grantpt(terminal) | unlockpt(terminal), 0);
	memset(&run, 0, sizeof run);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		int tty = open(ptsname(terminal), O_RDWR | O_NOCTTY);

		dup2(tty, STDOUT_FILENO);
		execl(binary, binary, "--run-dir", run_dir, "top", NULL);
		_exit(127);
	}
	while (!second) {
		assert_true(now_ms() < deadline);
		serve();
		slurp(terminal, run.out_text, &run.out_n, sizeof run.out_text);
		second = strstr(run.out_text, "\033[H\033[2J");
		second = second ? strstr(second + 1, "\033[H\033[2JNAME ") : NULL;
	}
	assert_int_equal(kill(pid, SIGINT), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	close(terminal);
}

/* ---- pki ---- */

static void test_pki(void **state)
{
	static const char *const files[] = {"ca.pem", "ca.key", "hostA.pem", "hostA.key"};
	char line[256], expected[512], path[128];
	struct stat st;

	(void)state;
	snprintf(line, sizeof line, "pki init %s/pki --json", dir);
	snprintf(expected, sizeof expected,
		 "{\"ca\": \"%s/pki/ca.pem\", \"key\": \"%s/pki/ca.key\"}", dir, dir);
	ftctl(line);
	expect_json(0, expected);
	ftctl(line);
	assert_int_equal(run.code, 1);
	assert_non_null(strstr(run.out_text, "\"code\": \"failed\""));
	snprintf(line, sizeof line, "pki issue %s/pki hostA hostA.example 192.0.2.1", dir);
	snprintf(expected, sizeof expected, "%s/pki/hostA.pem\n%s/pki/hostA.key\n", dir, dir);
	ftctl(line);
	expect_text(0, expected, "");
	for (int i = 0; i < 4; i++) {
		snprintf(path, sizeof path, "%s/pki/%s", dir, files[i]);
		assert_int_equal(stat(path, &st), 0);
		assert_true(st.st_size > 0);
		assert_int_equal(unlink(path), 0);
	}
	snprintf(path, sizeof path, "%s/pki", dir);
	assert_int_equal(rmdir(path), 0);
}

int main(void)
{
	const char *build = getenv("FT_BUILD_DIR");
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_status, setup, teardown),
		cmocka_unit_test_setup_teardown(test_status_odd, setup, teardown),
		cmocka_unit_test_setup_teardown(test_status_all, setup, teardown),
		cmocka_unit_test_setup_teardown(test_migrate, setup, teardown),
		cmocka_unit_test_setup_teardown(test_migration_status, setup, teardown),
		cmocka_unit_test_setup_teardown(test_outcomes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_wait, setup, teardown),
		cmocka_unit_test_setup_teardown(test_interrupted, setup, teardown),
		cmocka_unit_test_setup_teardown(test_command_line, setup, teardown),
		cmocka_unit_test_setup_teardown(test_help, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_agents, setup, teardown),
		cmocka_unit_test_setup_teardown(test_top_live, setup, teardown),
		cmocka_unit_test_setup_teardown(test_pki, setup, teardown),
	};

	snprintf(binary, sizeof binary, "%s/ftctl", build ? build : "build");
	if (access(binary, X_OK)) {
		printf("skipped: %s is not built (FT_BUILD_DIR)\n", binary);
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
