// SPDX-License-Identifier: Apache-2.0
// The process that outlives is stopped in some tests: then what follows does not depend on who is
// quicker.
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "tools/agent/afterlife.h"

#define DEADLINE_MS 10000
#define BYTES	    (64u << 20)

struct agent {
	pid_t pid, heir; // heir: who shares its memory
	int socket;	 // our end of its connection
};

static pid_t child_of(pid_t pid)
{
	char path[64];
	int child = 0;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/task/%d/children", pid, pid);
	f = fopen(path, "re");
	assert_non_null(f);
	if (fscanf(f, "%d", &child) != 1)
		child = 0;
	fclose(f);
	return child;
}

static long resident_kib(pid_t pid)
{
	char path[64], line[128];
	long kib = -1;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof line, f))
		(void)sscanf(line, "VmRSS: %ld", &kib);
	if (f)
		fclose(f);
	return kib;
}

static void agent_main(int socket)
{
	struct afterlife *l;
	struct ft_err err;
	uint8_t *memory =
		mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED || afterlife_start(&l, &err))
		_exit(1);
	memset(memory, 1, BYTES);
	if (write(socket, "", 1) != 1)
		_exit(1);
	for (;;)
		pause();
}

static struct agent agent_start(void)
{
	struct agent a;
	int ends[2];
	char c;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	a.pid = fork();
	if (!a.pid) {
		close(ends[0]);
		agent_main(ends[1]);
	}
	close(ends[1]);
	a.socket = ends[0];
	assert_int_equal(read(a.socket, &c, 1), 1);
	a.heir = child_of(a.pid);
	assert_true(a.heir > 0);
	return a;
}

static bool ends(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, DEADLINE_MS) == 1;
}

static void test_sockets_first(void **state)
{
	struct agent a = agent_start();
	int status, pidfd;
	char c;

	(void)state;
	pidfd = pidfd_open(a.heir, 0);
	kill(a.heir, SIGSTOP);
	kill(a.pid, SIGKILL);
	assert_true(ends(a.socket));
	assert_int_equal(read(a.socket, &c, 1), 0);
	// The connection is closed and the agent dead, but its memory is all there.
	assert_int_equal(waitpid(a.pid, &status, 0), a.pid);
	assert_true(resident_kib(a.heir) >= BYTES / 1024);
	kill(a.heir, SIGCONT);
	assert_true(ends(pidfd));
	assert_int_equal(waitpid(a.heir, &status, 0), a.heir);
	assert_true(WIFEXITED(status));
	close(pidfd);
	close(a.socket);
}

static unsigned descriptors(pid_t pid)
{
	char path[64];
	unsigned n = 0;

	for (int fd = 0; fd < 256; fd++) {
		snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
		n += access(path, F_OK) == 0 || errno == EACCES;
	}
	return n;
}

// Else a connection would be open as long as it lives.
static void test_holds_nothing(void **state)
{
	struct agent a = agent_start();
	int status;

	(void)state;
	for (int ms = 0; descriptors(a.heir) != 1 && ms < DEADLINE_MS; ms++)
		poll(NULL, 0, 1);
	assert_int_equal(descriptors(a.heir), 1);
	kill(a.pid, SIGKILL);
	assert_int_equal(waitpid(a.pid, &status, 0), a.pid);
	assert_int_equal(waitpid(a.heir, &status, 0), a.heir);
	close(a.socket);
}

static void test_stop(void **state)
{
	struct afterlife *l = NULL;
	struct ft_err err;

	(void)state;
	for (int i = 0; i < 100; i++) {
		assert_int_equal(afterlife_start(&l, &err), 0);
		afterlife_stop(l);
		assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
		assert_int_equal(errno, ECHILD);
	}
	afterlife_stop(NULL);
}

// It may be killed like any other process; the agent does not notice.
static void test_killed(void **state)
{
	struct afterlife *l = NULL;
	struct ft_err err;
	pid_t heir;

	(void)state;
	assert_int_equal(afterlife_start(&l, &err), 0);
	heir = child_of(getpid());
	assert_true(heir > 0);
	kill(heir, SIGKILL);
	afterlife_stop(l);
	assert_int_equal(child_of(getpid()), 0);
}

int main(void)
{
#ifdef __SANITIZE_THREAD__
	printf("skipped: ThreadSanitizer's runtime makes system calls that are not allowed here\n");
	return 77;
#endif
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sockets_first),
		cmocka_unit_test(test_holds_nothing),
		cmocka_unit_test(test_stop),
		cmocka_unit_test(test_killed),
	};

	prctl(PR_SET_CHILD_SUBREAPER, 1);
	return cmocka_run_group_tests_name("afterlife", tests, NULL, NULL);
}
