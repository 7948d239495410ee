// SPDX-License-Identifier: Apache-2.0
// The helper process, capabilities and the system call filter, each in a child of the test: they
// cannot be undone.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "tools/agent/privileges.h"
#include "vmm-glue/capabilities.h"
#include "vmm-glue/helper.h"
#include "vmm-glue/inject.h"
#include "vmm-glue/qemu/spawn.h"
#include "vmm-glue/tun.h"

#define ENDS_MS 10000

static char dir[64];

/* What a body finds wrong ends the child with the line's number. */
#define MUST(condition)                                                                            \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "line %d: %s: errno %d\n", __LINE__, #condition, errno);   \
			_exit(1);                                                                  \
		}                                                                                  \
	} while (0)

static void in_child(void (*body)(void))
{
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		body();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* A number in hexadecimal of /proc/PID/status, -1: not there. */
static long long status_of(pid_t pid, const char *name)
{
	char path[64], line[256];
	unsigned long long value;
	long long found = -1;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	f = fopen(path, "re");
	while (f && found < 0 && fgets(line, sizeof line, f))
		if (!strncmp(line, name, strlen(name)) && line[strlen(name)] == ':' &&
		    sscanf(line + strlen(name) + 1, "%llx", &value) == 1)
			found = (long long)value;
	if (f)
		fclose(f);
	return found;
}

static const char *in_dir(const char *name)
{
	static char path[128];

	snprintf(path, sizeof path, "%s/%s", dir, name);
	return path;
}

static void text_of(const char *path, char *text, size_t room)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, text, room - 1);

	text[n > 0 ? n : 0] = '\0';
	if (fd >= 0)
		close(fd);
}

static bool ends(int pidfd)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};

	return poll(&p, 1, ENDS_MS) == 1;
}

/* ---- programs ---- */

static void body_programs(void)
{
	char *const words[] = {"/bin/sh", "-c",
			       "grep -E 'Cap(Prm|Bnd)|NoNewPrivs' /proc/self/status; echo \"$0\"; "
			       "readlink /proc/self/fd/3; ls /proc/self/fd | wc -l; kill -l >&2",
			       "a word, and a 'nother", NULL};
	char *const nothing[] = {"/no/such/program", NULL};
	char text[4096], log[128];
	struct ft_err err = {0};
	struct process p;
	int null = open("/dev/zero", O_RDONLY | O_CLOEXEC);

	snprintf(log, sizeof log, "%s", in_dir("log"));
	MUST(helper_start(CAPABILITY(CAP_SYS_PTRACE), &err) == 0);
	MUST(helper_here());
	MUST(process_spawn(&p, words, &null, 1, log, &err) == 0);
	MUST(!p.child && inject_verify(p.pid, p.pidfd, &err) == 0);
	MUST(ends(p.pidfd));
	text_of(log, text, sizeof text);
	MUST(strstr(text, "CapPrm:\t0000000000000000\n"));
	MUST(strstr(text, "CapBnd:\t0000000000000000\n") || geteuid() != 0);
	MUST(strstr(text, "NoNewPrivs:\t1\n"));
	MUST(strstr(text, "a word, and a 'nother\n/dev/zero\n5\n")); /* ls has one of its own */
	MUST(process_spawn(&p, nothing, NULL, 0, log, &err) == -ENOENT);
	MUST(strstr(err.text, "/no/such/program: No such file"));
	helper_stop();
	MUST(!helper_here() && waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
}

static void test_programs(void **state)
{
	(void)state;
	in_child(body_programs);
}

/* Many, one after the other: no descriptor stays on either side, and none is left unreaped. */
static void body_bounds(void)
{
	char *const words[] = {"/bin/true", NULL};
	struct ft_err err = {0};
	struct process p;
	int before, after;

	MUST(helper_start(0, &err) == 0);
	before = dup(0);
	close(before);
	for (int i = 0; i < 50; i++) {
		MUST(process_spawn(&p, words, NULL, 0, in_dir("log"), &err) == 0);
		MUST(ends(p.pidfd));
		process_close(&p);
	}
	after = dup(0);
	MUST(before == after);
	helper_stop();
}

static void test_bounds(void **state)
{
	(void)state;
	in_child(body_bounds);
}

/* ---- borrowed threads ---- */

static void body_uffd(void)
{
	struct ft_err err = {0};
	int fd = -1, pidfd;
	char path[64], target[64];
	ssize_t n;
	pid_t pid;

	pid = fork();
	if (!pid)
		for (;;)
			pause();
	pidfd = pidfd_open(pid, 0);
	MUST(helper_start(CAPABILITY(CAP_SYS_PTRACE) | CAPABILITY(CAP_DAC_READ_SEARCH), &err) == 0);
	MUST(capabilities_keep(0) == 0);
	MUST(inject_uffd(pid, pidfd, 1, false, &fd, NULL, &err) == 0);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	n = readlink(path, target, sizeof target - 1);
	target[n > 0 ? n : 0] = '\0';
	MUST(strstr(target, "userfaultfd"));
	MUST(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
	MUST(inject_uffd(pid, pidfd, 1, false, &fd, NULL, &err) == -ESRCH);
	MUST(strstr(err.text, "is gone"));
	helper_stop();
}

static void test_uffd(void **state)
{
	(void)state;
	in_child(body_uffd);
}

/* ---- tap interfaces of others ---- */

static void body_tun(void)
{
	struct ifreq req = {.ifr_flags = IFF_TAP | IFF_NO_PI}, got = {0};
	int tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC), null, fd = -1, pidfd;
	struct ft_err err = {0};
	pid_t pid;

	MUST(unshare(CLONE_NEWNET) == 0 && tun >= 0);
	close(tun);
	tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC); /* of this namespace */
	MUST(ioctl(tun, TUNSETIFF, &req) == 0);
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	pid = fork();
	if (!pid)
		for (;;)
			pause();
	close(tun);
	close(null);
	pidfd = pidfd_open(pid, 0);
	MUST(helper_start(CAPABILITY(CAP_SYS_PTRACE) | CAPABILITY(CAP_DAC_READ_SEARCH), &err) == 0);
	MUST(capabilities_keep(0) == 0);
	MUST(tun_fetch(pid, pidfd, tun, &fd, &err) == 0);
	MUST(ioctl(fd, TUNGETIFF, &got) == 0 && !strcmp(got.ifr_name, req.ifr_name));
	/* An agent that was broken into gets nothing else by that way. */
	MUST(tun_fetch(pid, pidfd, null, &fd, &err) == -ENOTSUP);
	MUST(strstr(err.text, "not of an interface"));
	MUST(tun_fetch(pid, pidfd, 1000, &fd, &err) == -ENOTSUP);
	MUST(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
	MUST(tun_fetch(pid, pidfd, tun, &fd, &err) == -ENOTSUP);
	helper_stop();
}

static void test_tun(void **state)
{
	(void)state;
	if (access("/dev/net/tun", R_OK | W_OK))
		skip();
	in_child(body_tun);
}

/* ---- its end ---- */

static pid_t helper_of(pid_t pid)
{
	char path[64];
	int child = 0;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/task/%d/children", pid, pid);
	f = fopen(path, "re");
	if (!f || fscanf(f, "%d", &child) != 1)
		child = 0;
	if (f)
		fclose(f);
	return child;
}

static void body_killed(void)
{
	char *const words[] = {"/bin/true", NULL};
	struct ft_err err = {0};
	struct process p;
	pid_t pid;

	MUST(helper_start(0, &err) == 0);
	pid = helper_of(getpid());
	MUST(pid > 0 && kill(pid, SIGTERM) == 0); /* not by that */
	MUST(process_spawn(&p, words, NULL, 0, in_dir("log"), &err) == 0);
	MUST(kill(pid, SIGKILL) == 0);
	MUST(process_spawn(&p, words, NULL, 0, in_dir("log"), &err) == -EPIPE);
	MUST(!strcmp(err.text, "helper: was killed; restart this agent"));
	helper_stop();
}

static void test_killed(void **state)
{
	(void)state;
	in_child(body_killed);
}

/* The agent was killed: what it had started runs on, and the helper ends. */
static void test_agent_dies(void **state)
{
	char *const words[] = {"/bin/sleep", "1000", NULL};
	struct {
		pid_t helper, program;
	} told = {0};
	int ends_of[2], helper_fd, program_fd;
	pid_t pid;

	(void)state;
	assert_int_equal(pipe2(ends_of, O_CLOEXEC), 0);
	pid = fork();
	if (!pid) {
		struct ft_err err = {0};
		struct process p;

		MUST(helper_start(0, &err) == 0);
		told.helper = helper_of(getpid());
		MUST(process_spawn(&p, words, NULL, 0, in_dir("log"), &err) == 0);
		told.program = p.pid;
		MUST(write(ends_of[1], &told, sizeof told) == sizeof told);
		for (;;)
			pause();
	}
	assert_int_equal(read(ends_of[0], &told, sizeof told), sizeof told);
	helper_fd = pidfd_open(told.helper, 0);
	program_fd = pidfd_open(told.program, 0);
	assert_true(helper_fd >= 0 && program_fd >= 0);
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_true(ends(helper_fd));
	assert_int_equal(pidfd_send_signal(program_fd, 0, NULL, 0), 0);
	assert_int_equal(pidfd_send_signal(program_fd, SIGKILL, NULL, 0), 0);
	close(helper_fd);
	close(program_fd);
	close(ends_of[0]);
	close(ends_of[1]);
}

/* ---- capabilities ---- */

static void body_capabilities(void)
{
	long long had = status_of(getpid(), "CapPrm");

	MUST(capabilities_keep(CAPABILITY(CAP_KILL) | CAPABILITY(CAP_CHECKPOINT_RESTORE)) == 0);
	MUST(status_of(getpid(), "CapPrm") ==
	     (had & (long long)(CAPABILITY(CAP_KILL) | CAPABILITY(CAP_CHECKPOINT_RESTORE))));
	MUST(status_of(getpid(), "CapEff") == status_of(getpid(), "CapPrm"));
	MUST(status_of(getpid(), "CapInh") == 0);
	MUST(status_of(getpid(), "NoNewPrivs") == 1);
	/* There is no way back. */
	MUST(capabilities_keep(~UINT64_C(0)) == 0);
	MUST(status_of(getpid(), "CapPrm") ==
	     (had & (long long)(CAPABILITY(CAP_KILL) | CAPABILITY(CAP_CHECKPOINT_RESTORE))));
	MUST(chown(dir, 1, 1) < 0 && errno == EPERM);
}

static void test_capabilities(void **state)
{
	(void)state;
	in_child(body_capabilities);
}

/* ---- system calls ---- */

static void *work(void *arg)
{
	int *fd = arg;

	*fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	return NULL;
}

static void *try_late(void *arg)
{
	int *ends_of = arg;
	char go;

	MUST(read(ends_of[0], &go, 1) == 1);
	MUST(fork() < 0 && errno == ENOSYS);
	return NULL;
}

static void body_seccomp(void)
{
	char *const words[] = {"/bin/true", NULL};
	struct ft_err err = {0};
	int fd = -1, ends_of[2];
	pthread_t late, thread;

	MUST(pipe2(ends_of, O_CLOEXEC) == 0);
	MUST(pthread_create(&late, NULL, try_late, ends_of) == 0);
	MUST(capabilities_keep(0) == 0);
	MUST(seccomp_install(CONFIG_SECCOMP_ON, &err) == 0);
	MUST(status_of(getpid(), "Seccomp") == 2);
	MUST(execv(words[0], words) < 0 && errno == ENOSYS);
	MUST(fork() < 0 && errno == ENOSYS);
	MUST(ptrace(PTRACE_TRACEME, 0, 0, 0) < 0 && errno == ENOSYS);
	MUST(socket(AF_PACKET, SOCK_RAW, 0) < 0 && errno == ENOSYS);
	MUST(unshare(CLONE_NEWUSER) < 0 && errno == ENOSYS);
	/* And what it lives by works: threads, files, sockets, memory. */
	MUST(pthread_create(&thread, NULL, work, &fd) == 0);
	MUST(pthread_join(thread, NULL) == 0 && fd >= 0);
	MUST(close(fd) == 0);
	MUST(socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0) >= 0);
	MUST(memfd_create("x", MFD_CLOEXEC) >= 0);
	/* A thread that was there before is under it, too. */
	MUST(write(ends_of[1], "", 1) == 1);
	MUST(pthread_join(late, NULL) == 0);
}

static void body_seccomp_log(void)
{
	struct ft_err err = {0};
	pid_t pid;

	MUST(capabilities_keep(0) == 0);
	MUST(seccomp_install(CONFIG_SECCOMP_OFF, &err) == 0);
	MUST(status_of(getpid(), "Seccomp") == 0);
	MUST(seccomp_install(CONFIG_SECCOMP_LOG, &err) == 0);
	MUST(status_of(getpid(), "Seccomp") == 2);
	pid = fork();
	if (!pid)
		_exit(0);
	MUST(pid > 0 && waitpid(pid, NULL, 0) == pid);
}

static void test_seccomp(void **state)
{
	(void)state;
	in_child(body_seccomp);
	in_child(body_seccomp_log);
}

static int setup(void **state)
{
	(void)state;
	strcpy(dir, "/tmp/test-helper-XXXXXX");
	return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
	(void)state;
	unlink(in_dir("log"));
	return rmdir(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_programs),     cmocka_unit_test(test_bounds),
		cmocka_unit_test(test_tun),	     cmocka_unit_test(test_uffd),
		cmocka_unit_test(test_killed),	     cmocka_unit_test(test_agent_dies),
		cmocka_unit_test(test_capabilities), cmocka_unit_test(test_seccomp),
	};

	if (geteuid() != 0) {
		printf("skipped: only root has rights to give up\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, setup, teardown);
}
