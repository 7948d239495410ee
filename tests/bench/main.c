// SPDX-License-Identifier: Apache-2.0
// Options and order. A supervisor forks the process that measures and outlives it: agents and QEMUs
// whose parent died are then its children, and it ends each by its id and removes the files.
#include "bench.h"

#include <errno.h>
#include <ftw.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "direct.h"
#include "ft/log.h"
#include "pair.h"

enum {
	PC = 1,
	Q35 = 2,
	PAIR = 4,
	TEN = 8,
	MOVERS = 16,
	LONG = 32
}; /* guests; LONG: only when named, with --quick */

static const struct {
	const char *name;
	bench_group_fn *run;
	const char *what;
	unsigned needs;
} groups[] = {
	{"harvest", bench_harvest, "scan, re-arm and copy scattered dirty pages", 0},
	{"ship", bench_ship, "ship and stage over TLS", 0},
	{"pause", bench_pause, "guest pause for a checkpoint, idle guest", PC | Q35},
	{"growth", bench_growth, "pause by dirty page", PC},
	{"taps", bench_taps, "guest's network through taps that hold nothing", PC},
	{"snapshot", bench_snapshot, "snapshot to a file, beside QEMU's background-snapshot", PC},
	{"fault", bench_fault, "a guest's write to a page that a snapshot has not saved yet", 0},
	{"mapped-ram", bench_mapped_ram, "snapshot to a file, beside QEMU 10's mapped-ram", TEN},
	{"restore", bench_restore, "lazy restore of 1 GiB, beside QEMU 10's eager one", 0},
	{"migrate", bench_migrate, "moving a guest, beside QEMU's own migration", MOVERS},
	{"postcopy", bench_postcopy, "likewise, with its memory behind it", MOVERS},
	{"preempt", bench_preempt, "likewise, beside QEMU 10's with postcopy-preempt",
	 MOVERS | LONG},
	{"commit", bench_commit, "command to committed, idle guest", PAIR},
	{"wire", bench_wire, "bytes on the wire under load", PAIR},
	{"progress", bench_progress, "progress of a guest that computes", PAIR},
	{"echo", bench_echo, "echo round trip under protection", PAIR},
	{"takeover", bench_takeover, "agent killed: first answer of the standby", PC | PAIR},
	{"silence", bench_silence, "host falls silent: first answer of the standby", PC | PAIR},
};
#define GROUPS (sizeof groups / sizeof *groups)

static void usage(FILE *to)
{
	fputs("usage: ft-bench [--json] [--quick] [--log-level LEVEL] [NAME]...\n\n"
	      "Measures what protection costs, each figure beside the floor of the same run.\n"
	      "--quick takes fewer samples, and leaves out what is marked +: about 3 minutes.\n"
	      "Without NAME, everything:\n\n",
	      to);
	for (unsigned i = 0; i < GROUPS; i++)
		fprintf(to, "  %-10s %c %s\n", groups[i].name, groups[i].needs & LONG ? '+' : ' ',
			groups[i].what);
	fputs("\nThe guest is in $FT_GUEST_DIR (default .cache/guest of the source tree;\n"
	      "tests/guest/build makes it). Needs root. Exit codes: 0 all figures within reach,\n"
	      "1 a figure misses it, 2 something could not be measured.\n",
	      to);
}

static bool is_wanted(const struct bench *b, unsigned i, char *const *names)
{
	if (!*names)
		return !(b->quick && groups[i].needs & LONG);
	for (; *names; names++)
		if (!strcmp(*names, groups[i].name))
			return true;
	return false;
}

static bool all_exist(char *const *names)
{
	for (; *names; names++) {
		bool found = false;

		for (unsigned i = 0; i < GROUPS; i++)
			found = found || !strcmp(*names, groups[i].name);
		if (!found) {
			fprintf(stderr, "ft-bench: %s: no such group of figures\n", *names);
			return false;
		}
	}
	return true;
}

/* ---- the process that measures ---- */

/* All guests boot at once, and have booted before anything is measured. */
static void boot(struct bench *b, char *const *names)
{
	unsigned needs = 0;
	struct ft_err err;

	for (unsigned i = 0; i < GROUPS; i++)
		needs |= is_wanted(b, i, names) ? groups[i].needs : 0;
	if (needs & PC)
		direct_begin(b, DIRECT_PC);
	if (needs & Q35)
		direct_begin(b, DIRECT_Q35);
	if (needs & TEN)
		direct_begin(b, DIRECT_TEN);
	if (needs & MOVERS && !guest_available(b, &err))
		bench_movers_begin(b, &err);
	if (needs & PAIR) {
		pair_begin(b);
		pair_up(b, &err);
	}
	if (needs & PC)
		direct_pc(b, &err);
	if (needs & Q35)
		direct_q35(b, &err);
	if (needs & TEN)
		direct_ten(b, &err);
}

static void drop_guest(struct direct **d)
{
	direct_end(*d);
	*d = NULL;
}

/* A guest with which something failed is of no use to the next group, which boots another one. And
 * on a machine that stalls for longer than takeover_ms a pair comes apart, which is as it should
 * be: a second try with a new one. */
static int run_group(struct bench *b, unsigned i, struct ft_err *err)
{
	int rc = groups[i].run(b, err);

	if (rc >= 0)
		return rc;
	if (groups[i].needs & PC)
		drop_guest(&b->pc);
	if (groups[i].needs & Q35)
		drop_guest(&b->q35);
	if (!(groups[i].needs & PAIR))
		return rc;
	pair_end(b->pair);
	b->pair = NULL;
	return groups[i].run(b, err);
}

static int measure(struct bench *b, bool json, char *const *names)
{
	uint64_t start = bench_now_ns();

	signal(SIGPIPE, SIG_IGN);
	boot(b, names);
	for (unsigned i = 0; i < GROUPS; i++) {
		struct ft_err err = {0};
		int rc = is_wanted(b, i, names) ? run_group(b, i, &err) : 0;

		if (rc == BENCH_SKIPPED)
			bench_report_skipped(groups[i].name, err.text);
		else if (rc)
			bench_report_failed(groups[i].name, err.text);
	}
	pair_end(b->pair);
	bench_movers_end(b);
	direct_end(b->pc);
	direct_end(b->q35);
	direct_end(b->ten);
	return bench_report_end(json, bench_ms_since(start) / 1e3);
}

/* ---- the supervisor ---- */

static volatile sig_atomic_t interrupted;

static void on_signal(int signo)
{
	interrupted = signo;
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st, (void)flag, (void)ftw;
	return remove(path);
}

/* Ends every child, those that we inherited too. */
static void end_children(void)
{
	char path[64];
	int pid;

	snprintf(path, sizeof path, "/proc/self/task/%d/children", getpid());
	for (;;) {
		FILE *f = fopen(path, "re");
		bool any = false;

		while (f && fscanf(f, "%d", &pid) == 1) {
			any = true;
			kill(pid, SIGKILL);
			waitpid(pid, NULL, 0);
		}
		if (f)
			fclose(f);
		if (!any)
			return;
	}
}

static int supervise(pid_t worker)
{
	int status = 0;

	while (waitpid(-1, &status, 0) != worker)
		if (interrupted || errno == ECHILD)
			break;
	if (interrupted)
		return 128 + interrupted;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 2;
}

static int run(struct bench *b, bool json, char *const *names)
{
	struct sigaction sa = {.sa_handler = on_signal};
	pid_t self = getpid(), worker;
	int code;

	if (!mkdtemp(b->dir)) {
		fprintf(stderr, "ft-bench: %s: %s\n", b->dir, strerror(errno));
		return 2;
	}
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	worker = fork();
	if (worker == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		signal(SIGINT, SIG_DFL);
		signal(SIGTERM, SIG_DFL);
		if (getppid() != self)
			_exit(2);
		exit(measure(b, json, names));
	}
	code = worker < 0 ? 2 : supervise(worker);
	end_children();
	if (!getenv("FT_BENCH_KEEP"))
		nftw(b->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	return code;
}

static void find_programs(struct bench *b)
{
	ssize_t n = readlink("/proc/self/exe", b->bin, sizeof b->bin - 1);

	b->bin[n > 0 ? n : 0] = '\0';
	if (strrchr(b->bin, '/'))
		*strrchr(b->bin, '/') = '\0';
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {{"json", no_argument, NULL, 'j'},
					      {"quick", no_argument, NULL, 'q'},
					      {"log-level", required_argument, NULL, 'l'},
					      {"help", no_argument, NULL, 'h'},
					      {0}};
	struct bench b = {.dir = "/dev/shm/ft-bench-XXXXXX"};
	bool json = false;
	int c, level = FT_LOG_ERROR;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		if (c == 'h') {
			usage(stdout);
			return 0;
		}
		if (c == 'l')
			level = ft_log_level_parse(optarg);
		json = json || c == 'j';
		b.quick = b.quick || c == 'q';
		if (c == '?' || level < 0) {
			usage(stderr);
			return 2;
		}
	}
	if (!all_exist(argv + optind))
		return 2;
	ft_log_level_set((enum ft_log_level)level);
	bench_report_quiet = json;
	find_programs(&b);
	return run(&b, json, argv + optind);
}
