// SPDX-License-Identifier: Apache-2.0
/* ft-agent: one process per guest per host. Options and exit codes; the rest is tools/agent. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "ft/log.h"
#include "tools/agent/agent.h"

#define SETS_MAX 64

static const char usage[] =
	"usage: ft-agent --guest FILE [--incoming URI | --restore URI [--lazy] [--jobs N]]\n"
	"                [--run-dir DIR] [--set KEY=VALUE]... [--host-id NAME] [--force]\n"
	"                [--foreground] [--log-level LEVEL]\n"
	"\n"
	"Fault tolerance for one QEMU guest on this host. Without --incoming it starts the\n"
	"guest (or finds it running, or attaches to it) and controls it; with --incoming it\n"
	"is a standby and waits for a primary.\n"
	"\n"
	"  --guest FILE       what the guest is: kemari-guest(5)\n"
	"  --incoming URI     kemari:tls:HOST:PORT, kemari:tcp:HOST:PORT or kemari:unix:PATH;\n"
	"                     without kemari: it waits for a guest that moves here\n"
	"  --restore URI      file:PATH of a snapshot (ftctl snapshot, or QEMU 9 and later with\n"
	"                     the capability mapped-ram): the guest goes on from it. Its disks\n"
	"                     must be as they were then. A guest that runs here already stays\n"
	"                     as it is. Or history:EPOCH or history:TIME, as\n"
	"                     2026-01-31T12:00:00: a checkpoint that a standby here has kept\n"
	"  --lazy             the guest runs at once, and its memory follows\n"
	"  --jobs N           threads that read the snapshot (default 2)\n"
	"  --run-dir DIR      sockets and logs (default: environment KEMARI_RUN_DIR, else\n"
	"                     " CTL_RUN_DIR_DEFAULT ")\n"
	"  --set KEY=VALUE    replaces a value of the guest file: --set disk.root.image=/x.img\n"
	"  --host-id NAME     what the arbiter and the peer call this host (default: its\n"
	"                     name, and a hash of its machine id and the run directory)\n"
	"  --force            start from what this host has, even if another one may have\n"
	"                     newer: the log says what is lost. With --incoming: become the\n"
	"                     standby of an older primary, and give up what this host has\n"
	"  --foreground       do not detach; log to standard error. Without it the agent\n"
	"                     detaches once the guest runs (or the standby waits) and logs\n"
	"                     to RUN-DIR/NAME.log\n"
	"  --log-level LEVEL  error, warn, info or debug\n"
	"  --help, --version\n"
	"\n"
	"Exit codes: 0 stopped by request, 1 configuration or usage error, 2 could not\n"
	"start, 3 guest lost.\n";

struct options {
	const char *guest, *incoming, *run_dir, *host_id;
	struct agent_restore restore;
	const char *sets[SETS_MAX];
	unsigned sets_n;
	bool foreground, force;
};

/* 0, and it is told: not a number of threads. */
static unsigned parse_jobs(const char *text)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (*text >= '0' && *text <= '9' && !*end && n > 0 && n <= SOURCE_JOBS_MAX)
		return (unsigned)n;
	fprintf(stderr, "ft-agent: --jobs %s: 1 to %d\n", text, SOURCE_JOBS_MAX);
	return 0;
}

/* What must be together, and what must not. */
static int check(const struct options *o)
{
	bool from_file = o->restore.uri && !history_is_uri(o->restore.uri);
	struct ft_err err = {0};
	struct uri uri;

	if (!o->guest)
		fputs("ft-agent: --guest FILE is missing; --help explains\n", stderr);
	else if (!o->restore.uri && (o->restore.lazy || o->restore.jobs))
		fputs("ft-agent: --lazy and --jobs are for --restore\n", stderr);
	else if (o->restore.uri && o->incoming)
		fputs("ft-agent: --restore starts a guest, --incoming waits for one\n", stderr);
	else if (from_file && uri_parse(o->restore.uri, &uri, &err))
		fprintf(stderr, "ft-agent: --restore: %s\n", err.text);
	else if (from_file && uri.scheme != URI_FILE)
		fprintf(stderr, "ft-agent: --restore %s: neither file:PATH nor history:WHICH\n",
			o->restore.uri);
	else
		return 0;
	return -1;
}

static int parse(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
		{"guest", required_argument, NULL, 'g'},
		{"incoming", required_argument, NULL, 'i'},
		{"restore", required_argument, NULL, 'R'},
		{"lazy", no_argument, NULL, 'L'},
		{"jobs", required_argument, NULL, 'j'},
		{"run-dir", required_argument, NULL, 'r'},
		{"set", required_argument, NULL, 's'},
		{"host-id", required_argument, NULL, 'H'},
		{"foreground", no_argument, NULL, 'f'},
		{"force", no_argument, NULL, 'F'},
		{"log-level", required_argument, NULL, 'l'},
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'v'},
		{0},
	};
	int c, level;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 'g':
			o->guest = optarg;
			break;
		case 'i':
			o->incoming = optarg;
			break;
		case 'R':
			o->restore.uri = optarg;
			break;
		case 'L':
			o->restore.lazy = true;
			break;
		case 'j':
			o->restore.jobs = parse_jobs(optarg);
			if (!o->restore.jobs)
				return -1;
			break;
		case 'r':
			o->run_dir = optarg;
			break;
		case 'H':
			o->host_id = optarg;
			break;
		case 's':
			if (o->sets_n == SETS_MAX) {
				fprintf(stderr, "ft-agent: --set: more than %d\n", SETS_MAX);
				return -1;
			}
			o->sets[o->sets_n++] = optarg;
			break;
		case 'F':
			o->force = true;
			break;
		case 'f':
			o->foreground = true;
			break;
		case 'l':
			level = ft_log_level_parse(optarg);
			if (level < 0) {
				fprintf(stderr,
					"ft-agent: --log-level %s: error, warn, info or debug\n",
					optarg);
				return -1;
			}
			ft_log_level_set((enum ft_log_level)level);
			break;
		case 'h':
			fputs(usage, stdout);
			exit(0);
		case 'v':
			puts("ft-agent " FT_VERSION);
			exit(0);
		default:
			return -1;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "ft-agent: %s: unexpected\n", argv[optind]);
		return -1;
	}
	return check(o);
}

/* A name for this agent's host that stays over restarts and that no other agent has: the host's
 * name, for people, and a hash of its machine id and the run directory, for two agents may share a
 * machine. */
static void host_id(const char *given, const char *run_dir, char out[FT_HOST_ID_MAX])
{
	char seed[1024] = "", name[33] = "", here[256] = "";
	size_t len;
	FILE *f;

	if (given) {
		snprintf(out, FT_HOST_ID_MAX, "%s", given);
		return;
	}
	f = fopen("/etc/machine-id", "re");
	if (f) {
		if (fgets(seed, 64, f))
			seed[strcspn(seed, "\n")] = 0;
		fclose(f);
	}
	gethostname(name, sizeof name - 1);
	/* Not resolved: the directory may not exist yet, and the name must not change when it does.
	 */
	if (run_dir[0] != '/' && !getcwd(here, sizeof here))
		here[0] = 0;
	len = strlen(seed);
	snprintf(seed + len, sizeof seed - len, "/%s/%s/%.400s", name, here, run_dir);
	snprintf(out, FT_HOST_ID_MAX, "%s-%08x", name,
		 (unsigned)(XXH3_64bits(seed, strlen(seed)) & 0xffffffff));
}

/* The parent stays until the child knows whether it could start, and ends with its code: errors
 * reach the operator's terminal. Returns, in the child, the descriptor to report to. */
static int detach(void)
{
	int report[2];
	uint8_t code = AGENT_NO_START;
	pid_t pid;

	if (pipe2(report, O_CLOEXEC))
		return -1;
	pid = fork();
	if (pid < 0)
		return -1;
	if (pid > 0) {
		close(report[1]);
		/* Nothing to read: the child died before it could say. */
		if (read(report[0], &code, 1) != 1)
			code = AGENT_NO_START;
		_exit(code);
	}
	close(report[0]);
	setsid();
	return report[1];
}

static void detached(int report, const struct agent *agent)
{
	char path[CONFIG_PATH_MAX + CTL_NAME_MAX + 8];
	int null = open("/dev/null", O_RDWR | O_CLOEXEC), log;
	uint8_t ok = AGENT_OK;

	snprintf(path, sizeof path, "%s/%s.log", agent->run_dir, agent->config.name);
	log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	dup2(log >= 0 ? log : null, STDERR_FILENO);
	(void)!write(report, &ok, 1);
	close(report);
	close(null);
	if (log >= 0)
		close(log);
}

int main(int argc, char **argv)
{
	static struct agent agent;
	struct options o = {0};
	struct ft_err err = {0};
	const char *run_dir;
	int report = -1;

	/* Logs, sockets, what the guest's memory spills into: nobody else's. */
	umask(077);
	if (parse(argc, argv, &o))
		return AGENT_BAD_CONFIG;
	if (config_load(o.guest, o.sets, o.sets_n, &agent.config, &err)) {
		fprintf(stderr, "ft-agent: %s\n", err.text);
		return AGENT_BAD_CONFIG;
	}
	run_dir = o.run_dir ? o.run_dir : getenv(CTL_RUN_DIR_ENV);
	snprintf(agent.run_dir, sizeof agent.run_dir, "%s",
		 run_dir ? run_dir : CTL_RUN_DIR_DEFAULT);
	agent.force = o.force;
	host_id(o.host_id, agent.run_dir, agent.host_id);
	agent.restore = o.restore;
	if (!o.foreground) {
		report = detach();
		if (report < 0) {
			ft_error("%s: cannot detach: %s", agent.config.name, strerror(errno));
			return AGENT_NO_START;
		}
	}
	if (agent_start(&agent, o.incoming, &err)) {
		ft_error("%s: cannot start: %s", agent.config.name, err.text);
		agent.exit_code = agent.stop_why[0] ? AGENT_OK : AGENT_NO_START;
		agent_free(&agent);
		return (int)agent.exit_code;
	}
	if (report >= 0)
		detached(report, &agent);
	notify_systemd("READY=1");
	agent_run(&agent);
	notify_systemd("STOPPING=1");
	agent_free(&agent);
	return (int)agent.exit_code;
}
