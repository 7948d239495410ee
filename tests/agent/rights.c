// SPDX-License-Identifier: Apache-2.0
/* What a process may do, as the kernel has it. */
#include <dirent.h>

#include "tests/agent/harness.h"

unsigned long long status_number(pid_t pid, pid_t tid, const char *name, int base)
{
	char path[64], line[64];
	const char *found;

	snprintf(path, sizeof path, "/proc/%d/task/%d/status", pid, tid);
	snprintf(line, sizeof line, "\n%s:\t", name);
	found = strstr(file_text(path), line);
	if (!found)
		fail_msg("%s: no %s", path, name);
	return strtoull(found + strlen(line), NULL, base);
}

pid_t child_of(pid_t agent, const char *name)
{
	char path[64], text[512], want[32], *save = NULL;
	pid_t found = 0;

	snprintf(path, sizeof path, "/proc/%d/task/%d/children", agent, agent);
	snprintf(text, sizeof text, "%s", file_text(path));
	snprintf(want, sizeof want, "%s\n", name);
	for (char *pid = strtok_r(text, " ", &save); pid; pid = strtok_r(NULL, " ", &save)) {
		snprintf(path, sizeof path, "/proc/%s/comm", pid);
		if (!strcmp(file_text(path), want))
			found = atoi(pid);
	}
	return found;
}

void assert_rights(pid_t pid, unsigned long long capabilities)
{
	char path[64];
	struct dirent *e;
	DIR *tasks;

	snprintf(path, sizeof path, "/proc/%d/task", pid);
	tasks = opendir(path);
	assert_non_null(tasks);
	while ((e = readdir(tasks))) {
		pid_t tid = atoi(e->d_name);

		if (!tid)
			continue;
		assert_int_equal(status_number(pid, tid, "CapPrm", 16), capabilities);
		assert_int_equal(status_number(pid, tid, "CapEff", 16), capabilities);
		assert_int_equal(status_number(pid, tid, "CapInh", 16), 0);
		assert_int_equal(status_number(pid, tid, "CapBnd", 16), 0);
		assert_int_equal(status_number(pid, tid, "CapAmb", 16), 0);
		assert_int_equal(status_number(pid, tid, "NoNewPrivs", 10), 1);
	}
	closedir(tasks);
}

void assert_filtered(pid_t pid)
{
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
	char path[64];
	struct dirent *e;
	DIR *tasks;

	snprintf(path, sizeof path, "/proc/%d/task", pid);
	tasks = opendir(path);
	assert_non_null(tasks);
	while ((e = readdir(tasks)))
		if (atoi(e->d_name))
			assert_int_equal(status_number(pid, atoi(e->d_name), "Seccomp", 10), 2);
	closedir(tasks);
#else
	(void)pid;
#endif
}
