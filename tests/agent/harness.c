// SPDX-License-Identifier: Apache-2.0
/* The place, processes, and what can be seen of them from outside. Operators and clients are in
 * operators.c and guests.c. */
#include "tests/agent/harness.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define ARGS_MAX     40
#define AGENTS_MAX   32
#define CHILDREN_MAX 64
#define TEXT_MAX     (4u << 20)

char place[64];

/* Agents that are somebody's to reap; all other children are orphans that nobody waits for. */
static pid_t agents[AGENTS_MAX];

/* ---- time ---- */

void breathe(uint64_t deadline_ms, const char *what)
{
	if (now_ms() >= deadline_ms)
		fail_msg("waited in vain: %s", what);
	poll(NULL, 0, 10);
}

/* ---- files ---- */

const char *at(const char *fmt, ...)
{
	static char paths[16][160];
	static unsigned next;
	char *path = paths[next++ % 16];
	int n = snprintf(path, sizeof paths[0], "%s/", place);
	va_list ap;

	va_start(ap, fmt);
	n += vsnprintf(path + n, sizeof paths[0] - (size_t)n, fmt, ap);
	va_end(ap);
	assert_true(n < (int)sizeof paths[0]);
	return path;
}

void shell(const char *fmt, ...)
{
	char line[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof line, fmt, ap);
	va_end(ap);
	if (system(line) != 0)
		fail_msg("%s", line);
}

void write_file(const char *path, const char *fmt, ...)
{
	FILE *f = fopen(path, "we");
	va_list ap;

	assert_non_null(f);
	va_start(ap, fmt);
	vfprintf(f, fmt, ap);
	va_end(ap);
	assert_int_equal(fclose(f), 0);
}

const char *file_text(const char *path)
{
	static char text[TEXT_MAX];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);

	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = '\0';
	return text;
}

void make_image(const char *path, uint64_t bytes)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
	close(fd);
}

/* ---- processes ---- */

static bool is_agent(pid_t pid)
{
	for (unsigned i = 0; i < AGENTS_MAX; i++)
		if (agents[i] == pid)
			return true;
	return false;
}

static void agent_add(pid_t pid)
{
	for (unsigned i = 0; i < AGENTS_MAX; i++)
		if (!agents[i]) {
			agents[i] = pid;
			return;
		}
	fail_msg("more than %d agents", AGENTS_MAX);
}

static void agent_forget(pid_t pid)
{
	for (unsigned i = 0; i < AGENTS_MAX; i++)
		if (agents[i] == pid)
			agents[i] = 0;
}

static unsigned list_children(pid_t out[CHILDREN_MAX])
{
	char path[64];
	unsigned n = 0;
	int pid;
	FILE *f;

	snprintf(path, sizeof path, "/proc/self/task/%d/children", getpid());
	f = fopen(path, "re");
	while (f && n < CHILDREN_MAX && fscanf(f, "%d", &pid) == 1)
		out[n++] = pid;
	if (f)
		fclose(f);
	return n;
}

unsigned children(void)
{
	pid_t all[CHILDREN_MAX];
	unsigned n = list_children(all), alive = 0;

	for (unsigned i = 0; i < n; i++)
		if (is_agent(all[i]) || waitpid(all[i], NULL, WNOHANG) == 0)
			alive++;
	return alive;
}

void wait_children(unsigned n, unsigned within_ms)
{
	uint64_t until = now_ms() + within_ms;

	while (children() > n) {
		if (now_ms() >= until)
			shell("ps -o pid,ppid,stat,args --ppid %d >&2", getpid());
		breathe(until, "children are left");
	}
}

unsigned descriptors(pid_t pid)
{
	char path[64];
	unsigned n = 0;
	DIR *d;

	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	d = opendir(path);
	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n - 2;
}

unsigned long rss_kib(pid_t pid)
{
	char path[64];
	const char *line;
	unsigned long kib = 0;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	line = strstr(file_text(path), "VmRSS:");
	assert_true(line && sscanf(line, "VmRSS: %lu", &kib) == 1);
	return kib;
}

bool process_alive(pid_t pid)
{
	char path[64];
	const char *state;

	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	state = strrchr(file_text(path), ')');
	return state && state[1] == ' ' && state[2] != 'Z' && state[2] != 'X';
}

void wait_dead(pid_t pid, unsigned within_ms)
{
	uint64_t until = now_ms() + within_ms;

	while (process_alive(pid))
		breathe(until, "a process is still alive");
	children();
}

/* ---- the place ---- */

static const char *const sanitizers[] = {"ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS"};

void place_open(void)
{
	char options[160];

	if (unshare(CLONE_NEWNET) < 0) {
		printf("skipped: no network namespace: %s\n", strerror(errno));
		exit(77);
	}
	strcpy(place, "/tmp/ft-agent-XXXXXX");
	if (!mkdtemp(place) || prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)) {
		perror("place");
		exit(1);
	}
	signal(SIGPIPE, SIG_IGN);
	/* One test of a program: FT_TEST='killed*' build/tests/agent/agent-qemu_restart */
	if (getenv("FT_TEST") && *getenv("FT_TEST"))
		cmocka_set_test_filter(getenv("FT_TEST"));
	if (system("ip link set lo up") != 0) {
		printf("skipped: ip is not installed\n");
		exit(77);
	}
	snprintf(options, sizeof options, "log_path=%s/sanitizer:exitcode=99:abort_on_error=0",
		 place);
	for (unsigned i = 0; i < sizeof sanitizers / sizeof *sanitizers; i++)
		setenv(sanitizers[i], options, 1);
}

int place_clear(void **state)
{
	uint64_t until = now_ms() + 5000;

	if (getenv("FT_KEEP"))
		shell("rm -rf $FT_KEEP; cp -r %s $FT_KEEP", place);

	(void)state;
	while (now_ms() < until) {
		pid_t all[CHILDREN_MAX];
		unsigned n = list_children(all);

		if (!n)
			break;
		for (unsigned i = 0; i < n; i++) {
			kill(all[i], SIGKILL);
			waitpid(all[i], NULL, 0);
		}
	}
	memset(agents, 0, sizeof agents);
	/* Interfaces of killed agents' guests. */
	shell("for i in $(ip -o link | sed -n 's/^[0-9]*: \\(ft[^:@]*\\).*/\\1/p'); do ip link del "
	      "$i; done");
	shell("rm -rf %s/A %s/B %s/*.img* %s/*.console %s/*.sock", place, place, place, place,
	      place);
	return 0;
}

int place_close(void)
{
	DIR *d = opendir(place);
	struct dirent *e;
	int reports = 0;

	while (d && (e = readdir(d)))
		if (!strncmp(e->d_name, "sanitizer.", 10)) {
			fprintf(stderr, "%s", file_text(at("%s", e->d_name)));
			reports++;
		}
	if (d)
		closedir(d);
	place_clear(NULL);
	shell("rm -rf %s", place);
	return reports;
}

/* ---- agents ---- */

struct host host_make(const char *id)
{
	struct host h = {.id = id};

	snprintf(h.run, sizeof h.run, "%s", at("%s", id));
	snprintf(h.log, sizeof h.log, "%s", at("%s.log", id));
	return h;
}

static void spawn(struct host *h, const char *conf, va_list more)
{
	char program[256];
	const char *build = getenv("FT_BUILD_DIR");
	const char *argv[ARGS_MAX] = {program, "--guest",   conf,  "--run-dir",
				      h->run,  "--host-id", h->id, "--foreground"};
	unsigned n = 8;
	int log;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	/* Sanitizers trace the process at its end. */
	argv[n++] = "--set";
	argv[n++] = "security.seccomp=off";
#endif
	assert_int_equal(h->agent, 0);
	snprintf(program, sizeof program, "%s/ft-agent", build ? build : "build");
	while (n < ARGS_MAX - 1 && (argv[n] = va_arg(more, const char *)))
		n++;
	argv[n] = NULL;
	log = open(h->log, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
	assert_true(log >= 0);
	h->agent = fork();
	assert_true(h->agent >= 0);
	if (!h->agent) {
		dup2(log, STDOUT_FILENO);
		dup2(log, STDERR_FILENO);
		execv(program, (char **)(uintptr_t)argv);
		_exit(127);
	}
	close(log);
	agent_add(h->agent);
}

void host_start(struct host *h, const char *conf, ...)
{
	va_list more;

	va_start(more, conf);
	spawn(h, conf, more);
	va_end(more);
}

int host_try(struct host *h, const char *conf, ...)
{
	va_list more;

	va_start(more, conf);
	spawn(h, conf, more);
	va_end(more);
	return host_reap(h, START_MS);
}

void host_signal(struct host *h, int number)
{
	assert_true(h->agent > 0);
	assert_int_equal(kill(h->agent, number), 0);
}

int host_reap(struct host *h, unsigned within_ms)
{
	int fd = pidfd_open(h->agent, 0), status, n;
	struct pollfd p = {.fd = fd, .events = POLLIN};

	assert_true(fd >= 0);
	n = poll(&p, 1, (int)within_ms);
	close(fd);
	if (n == 0)
		fail_msg("agent %s still runs after %u ms; it said: %s", h->id, within_ms,
			 file_text(h->log));
	assert_int_equal(waitpid(h->agent, &status, 0), h->agent);
	agent_forget(h->agent);
	h->agent = 0;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void host_kill(struct host *h)
{
	host_signal(h, SIGKILL);
	assert_int_equal(host_reap(h, 5000), 128 + SIGKILL);
}

void host_stop(struct host *h)
{
	int code;

	ask_ok(h, "stop", NULL);
	code = host_reap(h, START_MS);
	if (code)
		fail_msg("agent %s: exit code %d; it said: %s", h->id, code, file_text(h->log));
}

void hosts_stop(struct host *a, struct host *b)
{
	if (b->agent)
		host_stop(b);
	if (a->agent)
		host_stop(a);
}

bool host_said(const struct host *h, const char *text)
{
	return strstr(file_text(h->log), text) != NULL;
}

void host_wait_said(const struct host *h, const char *text, unsigned within_ms)
{
	uint64_t until = now_ms() + within_ms;

	while (!host_said(h, text)) {
		if (now_ms() >= until)
			fail_msg("agent %s does not say '%s' but: %s", h->id, text,
				 file_text(h->log));
		breathe(until, text);
	}
}

unsigned host_lines(const struct host *h, const char *text)
{
	unsigned n = 0;

	for (const char *p = file_text(h->log); (p = strstr(p, text)); p += strlen(text))
		n++;
	return n;
}

void host_one_error(const struct host *h, const char *text)
{
	if (!host_said(h, text))
		fail_msg("expected '%s', the agent said: %s", text, file_text(h->log));
	if (host_lines(h, " error: ") + host_lines(h, "ft-agent: ") != 1)
		fail_msg("more than one line of error: %s", file_text(h->log));
}
