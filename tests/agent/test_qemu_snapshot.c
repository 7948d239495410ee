// SPDX-License-Identifier: Apache-2.0
/* Snapshots of a Linux guest that writes 20,000 pages a second: what is in the file is what RAM was
 * in the pause; the guest goes on from it, with its TCP connection, in a QEMU of ours and in one
 * that knows nothing of us; and a file that QEMU wrote itself is as good. The agent's death or
 * standstill in the middle costs the guest a moment. */
#include <dirent.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "tests/agent/asker.h"
#include "tests/agent/harness.h"
#include "vmm-glue/qemu/argv.h"
#include "vmm-glue/qemu/options.h"
#include "vmm-glue/qemu/qmp.h"
#include "vmm-glue/qemu/spawn.h"
#include "vmm-glue/vmm.h"

#define MACHINE	       "machine = \"pc-i440fx-7.2\"\n"
#define NIC	       "nic net0 { mac = \"52:54:00:12:34:56\" attach = \"tap:tapb\" }\n"
#define DIRTY	       "ft.dirty=20000:100"
#define STANDBY_ROUNDS 4
#define ROUNDS	       20
#define STALL_US       10000	  /* median, beyond the pause and what is waited anyhow */
#define SLOW	       (4u << 20) /* bytes a second */
#define SLACK_MS       6000 /* a process that is killed waits for its writes to the disk first */
#define MIGRATED_MS    60000

static struct host a, b;
static char qemu10[200];

static int setup(void **state)
{
	place_clear(state);
	a = host_make("A");
	shell("rm -f %s* %s %s %s*", at("s"), at("s.part"), at("A.console"), at("A.img"));
	qemu_conf(at("g.conf"), DIRTY, "", MACHINE NIC);
	return 0;
}

static void restore(const char *file, const char *option, const char *set)
{
	host_start(&a, at("g.conf"), "--restore", file_uri(file), "--set", set, option, NULL);
	wait_state(&a, "solo", START_MS);
}

static int compare_us(const void *one, const void *other)
{
	uint64_t x = *(const uint64_t *)one, y = *(const uint64_t *)other;

	return (x > y) - (x < y);
}

/* What a client waits at worst, less the pause, while a snapshot is taken. */
static uint64_t stall_of(unsigned round, uint64_t *took_us)
{
	struct asker asker;
	uint64_t longest;

	asker_start(&asker);
	/* Every fourth at a pace at which the guest writes most of its pages first. */
	snapshot(&a, "s", round % 4 == 3 ? 128u << 20 : 0);
	longest = asker_end(&asker);
	*took_us = asker.took_us;
	return longest > snapshot_pause_us() ? longest - snapshot_pause_us() : 0;
}

/* The same in as much time in which nothing is done to the guest: what its load and whoever else
 * needs this machine's processors make of it. */
static uint64_t quiet_of(uint64_t us)
{
	struct asker asker;

	asker_start(&asker);
	asker_wait(&asker, us);
	return asker_end(&asker);
}

/* The file is compared with what RAM was in the pause (--verify). Where others compute, each of the
 * waits that make up a client's is longer; a snapshot adds some of them: not more than there are.
 */
static void every_round_is_the_pause(void **state)
{
	uint64_t stall[ROUNDS], quiet[ROUNDS], took;

	(void)state;
	qemu_start(&a, at("g.conf"));
	for (unsigned round = 0; round < ROUNDS; round++) {
		stall[round] = stall_of(round, &took);
		quiet[round] = quiet_of(took);
		print_message("%lu %lu\n", stall[round], quiet[round]);
	}
	qsort(stall, ROUNDS, sizeof *stall, compare_us);
	qsort(quiet, ROUNDS, sizeof *quiet, compare_us);
	print_message("a client waits beyond the pause: median %lu us, at worst %lu us; without a "
		      "snapshot: %lu us, %lu us\n",
		      stall[ROUNDS / 2], stall[ROUNDS - 1], quiet[ROUNDS / 2], quiet[ROUNDS - 1]);
	assert_true(stall[ROUNDS / 2] <= STALL_US + 2 * quiet[ROUNDS / 2]);
	ticks_on(&a);
	host_stop(&a);
}

static bool is_real_time(pid_t tid)
{
	return sched_getscheduler(tid) == SCHED_RR;
}

static bool gives_way(pid_t tid)
{
	return getpriority(PRIO_PROCESS, (id_t)tid) > 0;
}

/* Threads of that process that are so. */
static unsigned threads_that(pid_t pid, bool (*are)(pid_t tid))
{
	struct dirent *e;
	unsigned n = 0;
	char path[48];
	DIR *d;

	snprintf(path, sizeof path, "/proc/%d/task", pid);
	d = opendir(path);
	assert_non_null(d);
	while ((e = readdir(d)))
		n += atoi(e->d_name) > 0 && are(atoi(e->d_name));
	closedir(d);
	return n;
}

/* Also of an agent that gave up its privileges, if it could let itself have this one before. QEMU
 * has it not. */
static void who_is_waited_for_comes_first(void **state)
{
	struct rlimit limit;
	uint64_t until;
	pid_t qemu;
	int fd;

	(void)state;
	qemu_start(&a, at("g.conf"));
	qemu = vmm_pid(&a);
	assert_int_equal(prlimit(a.agent, RLIMIT_RTPRIO, NULL, &limit), 0);
	if (!limit.rlim_cur)
		print_message("neither CAP_SYS_RESOURCE nor RLIMIT_RTPRIO here: no real time for "
			      "an agent\n");
	fd = snapshot_begin_slow(&a, "s", SLOW);
	assert_int_equal(threads_that(a.agent, is_real_time), limit.rlim_cur ? 1 : 0);
	assert_true(threads_that(a.agent, gives_way) > 0);
	assert_int_equal(threads_that(qemu, is_real_time), 0);
	assert_int_equal(prlimit(qemu, RLIMIT_RTPRIO, NULL, &limit), 0);
	assert_int_equal(limit.rlim_max, 0);
	close(fd);
	until = now_ms() + START_MS;
	while (threads_that(a.agent, gives_way))
		breathe(until, "the snapshot that nobody waits for ends");
	host_stop(&a);
}

/* In place, round after round; then the guest goes on from it, with its TCP connection. */
static void every_update_is_the_pause(void **state)
{
	int connection, tick;

	(void)state;
	qemu_start(&a, at("g.conf"));
	connection = guest_connect();
	guest_echo(connection, 20);
	snapshot(&a, "s", 0);
	for (unsigned round = 0; round < ROUNDS; round++) {
		snapshot_update(&a, "s");
		guest_echo(connection, 1);
	}
	snapshot_update(&a, "s");
	tick = last_tick(&a);
	kill(vmm_pid(&a), SIGKILL);
	assert_int_equal(host_reap(&a, START_MS), 3);
	restore("s", "--lazy", "cpus=1");
	guest_echo(connection, 20);
	assert_true(wait_tick(&a, tick, GOES_ON_MS) > tick);
	host_wait_said(&a, "all memory is there", START_MS);
	/* It was looked at while the guest ran: the next one reads that ahead. */
	assert_int_equal(access(at("s.ws"), F_OK), 0);
	close(connection);
	host_stop(&a);
}

/* The connection is older than the snapshot; nobody but the two hosts notices. */
static void goes_on_from_it(void **state)
{
	int connection, tick;

	(void)state;
	qemu_start(&a, at("g.conf"));
	connection = guest_connect();
	guest_echo(connection, 20);
	tick = last_tick(&a);
	snapshot(&a, "s", 0);
	for (unsigned lazy = 0; lazy < 2; lazy++) {
		/* As a host that fails: no FIN, no shutdown. */
		kill(vmm_pid(&a), SIGKILL);
		assert_int_equal(host_reap(&a, START_MS), 3);
		restore("s", lazy ? "--lazy" : NULL, "cpus=1");
		guest_echo(connection, 1);
		/* It would go on from after that message otherwise. */
		if (!lazy)
			snapshot(&a, "s", 0);
	}
	guest_echo(connection, 20);
	assert_true(wait_tick(&a, tick, GOES_ON_MS) > tick);
	host_wait_said(&a, "all memory is there", START_MS);
	close(connection);
	host_stop(&a);
	assert_int_equal(children(), 0);
}

/* Whoever waits for the dead agent waits no longer, and the next one finds the guest. */
static void agent_killed(void **state)
{
	int fd, connection;
	pid_t qemu;

	(void)state;
	qemu_start(&a, at("g.conf"));
	connection = guest_connect();
	snapshot(&a, "s", 0);
	qemu = vmm_pid(&a);
	for (unsigned round = 0; round < 3; round++) {
		fd = snapshot_begin_slow(&a, "s", SLOW);
		host_kill(&a);
		close(fd);
		guest_echo(connection, 20);
		host_start(&a, at("g.conf"), NULL);
		wait_state(&a, "solo", START_MS);
		assert_int_equal(vmm_pid(&a), qemu);
	}
	close(connection);
	/* The file from before is whole. */
	kill(qemu, SIGKILL);
	assert_int_equal(host_reap(&a, START_MS), 3);
	restore("s", NULL, "cpus=1");
	snapshot(&a, "s", 0);
	assert_int_equal(access(at("s.part"), F_OK), -1);
	host_stop(&a);
}

/* An agent that stands still cannot save the pages that the guest wants to write. */
static void agent_frozen(void **state)
{
	int fd, connection;
	uint64_t frozen;

	(void)state;
	qemu_start(&a, at("g.conf"));
	connection = guest_connect();
	fd = snapshot_begin_slow(&a, "s", SLOW);
	host_signal(&a, SIGSTOP);
	frozen = now_ms();
	assert_int_equal(host_reap(&a, VMM_HOLD_MAX_MS + SLACK_MS), 128 + SIGKILL);
	print_message("agent dead after %lu ms\n", now_ms() - frozen);
	guest_echo(connection, 20);
	close(fd);
	close(connection);
	host_start(&a, at("g.conf"), NULL);
	wait_state(&a, "solo", START_MS);
	snapshot(&a, "s", 0);
	host_stop(&a);
}

/* The guest is protected and does not notice: its standby saves the last committed checkpoint. */
static void from_the_standby(void **state)
{
	int tick, fd;

	(void)state;
	qemu_conf(at("g.conf"), DIRTY, "", MACHINE);
	qemu_start(&a, at("g.conf"));
	/* One of the guest that runs alone leaves nothing in the way of protection. */
	snapshot(&a, "s", 0);
	b = host_make("B");
	qemu_standby(&b, unix_uri("b.sock"), NULL);
	ask_ok(&a, "migrate", unix_uri("b.sock"));
	for (unsigned round = 0; round < STANDBY_ROUNDS; round++) {
		snapshot(&b, "s", 0);
		assert_state(&a, "protected");
	}
	ask_ok(&a, "verify", NULL);
	/* It takes over in the middle of one. */
	fd = snapshot_begin_slow(&b, "t", SLOW);
	tick = last_tick(&a);
	host_kill(&a);
	wait_tick(&b, tick, GOES_ON_MS);
	close(fd);
	host_stop(&b);
	assert_int_equal(access(at("t"), F_OK), -1);
	/* As on a third host, with a disk of its own. */
	shell("rm -f %s %s* %s/A/*.memory", at("A.console"), at("A.img"), place);
	restore("s", NULL, "cpus=1");
	wait_tick(&a, 0, GOES_ON_MS);
	host_stop(&a);
}

/* ---- QEMU 10, without an agent ---- */

struct alien {
	struct process process;
	struct qmp qmp;
};

static bool begins(const char *text, const char *with)
{
	return !strncmp(text, with, strlen(with));
}

/* The command line of our QEMU as anybody could have written it. */
static void alien_start(struct alien *q, const struct argv *ours)
{
	const char *socket_path = at("alien.qmp");
	uint64_t until = now_ms() + START_MS;
	struct argv argv = {0};
	struct ft_err err = {0};

	argv_add(&argv, "%s", qemu10);
	for (unsigned i = 1; i < ours->n; i++) {
		if (begins(ours->v[i], "{\"qom-type\":\"memory-backend-file\""))
			argv_add(&argv, "memory-backend-memfd,id=ram0,size=256M,share=on");
		else if (begins(ours->v[i], "socket,id=kemari-qmp"))
			argv_add(&argv, "socket,id=kemari-qmp,path=%s,server=on,wait=off",
				 socket_path);
		else
			argv_add(&argv, "%s", ours->v[i]);
	}
	argv_opt(&argv, "-incoming", "defer");
	unlink(socket_path);
	if (process_spawn(&q->process, argv.v, NULL, 0, at("alien.log"), &err))
		fail_msg("%s", err.text);
	argv_free(&argv);
	while (access(socket_path, F_OK)) {
		if (process_ended(&q->process, 0))
			fail_msg("QEMU 10: %s", file_text(at("alien.log")));
		breathe(until, "QEMU 10 starts");
	}
	q->qmp.fd = -1;
	if (qmp_connect(&q->qmp, socket_path, q->process.pidfd, START_MS, &err))
		fail_msg("%s: %s", err.text, file_text(at("alien.log")));
}

static void alien_call(struct alien *q, const char *command, json_t *args)
{
	struct ft_err err = {0};

	if (qmp_call_args(&q->qmp, NULL, &err, START_MS, command, args))
		fail_msg("QEMU 10: %s: %s: %s", command, err.text, file_text(at("alien.log")));
}

static void alien_options(struct alien *q, bool multifd, bool direct)
{
	alien_call(q, "migrate-set-capabilities",
		   json_pack("{s:[{s:s, s:b}, {s:s, s:b}]}", "capabilities", "capability",
			     "mapped-ram", "state", 1, "capability", "multifd", "state", multifd));
	alien_call(q, "migrate-set-parameters", json_pack("{s:b}", "direct-io", direct));
}

/* Waits until query-COMMAND says so. */
static void alien_wait(struct alien *q, const char *command, const char *status)
{
	uint64_t until = now_ms() + MIGRATED_MS;
	struct ft_err err = {0};

	for (;;) {
		json_t *ret;
		const char *now;

		if (qmp_call(&q->qmp, &ret, &err, command, NULL))
			fail_msg("QEMU 10: %s: %s", err.text, file_text(at("alien.log")));
		now = json_string_value(json_object_get(ret, "status"));
		if (now && !strcmp(now, "failed"))
			fail_msg("QEMU 10: %s: %s", command, json_dumps(ret, 0));
		if (now && !strcmp(now, status)) {
			json_decref(ret);
			return;
		}
		json_decref(ret);
		breathe(until, status);
	}
}

static void alien_end(struct alien *q)
{
	qmp_close(&q->qmp);
	process_kill(&q->process);
	process_ended(&q->process, START_MS);
	process_close(&q->process);
}

/* Ours by QEMU 10 as QEMU 10 restores its own; then its own by us. */
static void with_qemu_10(void **state)
{
	struct argv argv = {0};
	struct ft_err err = {0};
	char binary[256];
	int connection;

	(void)state;
	if (access(qemu10, X_OK)) {
		print_message("no QEMU 10 at %s (tests/guest/qemu10 unpacks it)\n", qemu10);
		skip();
	}
	qemu_start(&a, at("g.conf"));
	connection = guest_connect();
	guest_echo(connection, 20);
	/* What was updated in place is QEMU's own too. */
	snapshot(&a, "s", 0);
	snapshot_update(&a, "s");
	assert_int_equal(options_read(vmm_pid(&a), &argv, &err), 0);
	kill(vmm_pid(&a), SIGKILL);
	assert_int_equal(host_reap(&a, START_MS), 3);
	for (unsigned how = 0; how < 4; how++) {
		bool multifd = how & 1, direct = how & 2;
		struct alien q;

		alien_start(&q, &argv);
		alien_options(&q, multifd, direct);
		alien_call(&q, "migrate-incoming", json_pack("{s:s}", "uri", file_uri("s")));
		alien_wait(&q, "query-status", "running");
		guest_echo(connection, 1);
		/* The guest is a message further now, and so is the file that follows. */
		shell("rm -f %s", at("s"));
		alien_call(&q, "migrate", json_pack("{s:s}", "uri", file_uri("s")));
		alien_wait(&q, "query-migrate", "completed");
		alien_end(&q);
	}
	/* QEMU 10's own file: into a QEMU 10 of ours, and into QEMU 7.2. */
	snprintf(binary, sizeof binary, "qemu.binary=%s", qemu10);
	restore("s", "--lazy", binary);
	guest_echo(connection, 1);
	host_wait_said(&a, "all memory is there", START_MS);
	snapshot(&a, "s", 0);
	kill(vmm_pid(&a), SIGKILL);
	assert_int_equal(host_reap(&a, START_MS), 3);
	restore("s", NULL, "cpus=1");
	guest_echo(connection, 20);
	ticks_on(&a);
	close(connection);
	argv_free(&argv);
	host_stop(&a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(every_round_is_the_pause, setup, place_clear),
		cmocka_unit_test_setup_teardown(who_is_waited_for_comes_first, setup, place_clear),
		cmocka_unit_test_setup_teardown(every_update_is_the_pause, setup, place_clear),
		cmocka_unit_test_setup_teardown(goes_on_from_it, setup, place_clear),
		cmocka_unit_test_setup_teardown(agent_killed, setup, place_clear),
		cmocka_unit_test_setup_teardown(agent_frozen, setup, place_clear),
		cmocka_unit_test_setup_teardown(from_the_standby, setup, place_clear),
		cmocka_unit_test_setup_teardown(with_qemu_10, setup, place_clear),
	};
	const char *source = getenv("FT_SOURCE_DIR");
	int failed;

	need_qemu();
	snprintf(qemu10, sizeof qemu10, "%s/.cache/qemu10/qemu", source ? source : ".");
	place_open();
	bridge();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + place_close();
}
