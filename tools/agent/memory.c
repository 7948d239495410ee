// SPDX-License-Identifier: Apache-2.0
/* RUN/NAME.memory: what a restarted agent has to know. Text, replaced whole by rename, so it is
 * never half. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "ft/log.h"
#include "tools/agent/agent.h"

#define MEMORY_PATH_MAX (2 * CONFIG_PATH_MAX)

static void path_of(char out[MEMORY_PATH_MAX], const char *run_dir, const char *name,
		    const char *suffix)
{
	snprintf(out, MEMORY_PATH_MAX, "%s/%s.memory%s", run_dir, name, suffix);
}

int memory_load(const char *run_dir, const char *name, struct memory *m)
{
	char path[MEMORY_PATH_MAX], line[URI_TEXT_MAX + 16];
	FILE *f;

	memset(m, 0, sizeof *m);
	path_of(path, run_dir, name, "");
	f = fopen(path, "re");
	if (!f)
		return -errno;
	while (fgets(line, sizeof line, f)) {
		line[strcspn(line, "\n")] = 0;
		if (sscanf(line, "generation %" SCNu64, &m->generation) == 1 ||
		    sscanf(line, "guarded %" SCNu64, &m->guarded) == 1 ||
		    sscanf(line, "vmm_pid %" SCNd64, &m->vmm_pid) == 1 ||
		    sscanf(line, "vmm_start %" SCNu64, &m->vmm_start) == 1)
			continue;
		if (!strncmp(line, "home ", 5))
			snprintf(m->home, sizeof m->home, "%.*s", FT_HOST_ID_MAX - 1, line + 5);
		if (!strncmp(line, "peer ", 5))
			snprintf(m->peer, sizeof m->peer, "%.*s", URI_TEXT_MAX, line + 5);
		m->elsewhere = m->elsewhere || !strcmp(line, "elsewhere 1");
		m->moving = m->moving || !strcmp(line, "moving 1");
	}
	fclose(f);
	return 0;
}

int memory_save(const char *run_dir, const char *name, const struct memory *m, struct ft_err *err)
{
	char path[MEMORY_PATH_MAX], temporary[MEMORY_PATH_MAX];
	bool bad;
	FILE *f;

	path_of(path, run_dir, name, "");
	path_of(temporary, run_dir, name, ".new");
	f = fopen(temporary, "we");
	if (!f)
		return ft_err_set(err, errno, "%s: cannot write: %s", temporary, strerror(errno));
	fprintf(f,
		"generation %" PRIu64 "\nguarded %" PRIu64 "\nvmm_pid %" PRId64
		"\nvmm_start %" PRIu64 "\nelsewhere %d\nmoving %d\n",
		m->generation, m->guarded, m->vmm_pid, m->vmm_start, m->elsewhere, m->moving);
	if (m->home[0])
		fprintf(f, "home %s\n", m->home);
	if (m->peer[0])
		fprintf(f, "peer %s\n", m->peer);
	bad = fflush(f) || fsync(fileno(f));
	bad = fclose(f) || bad;
	if (bad || rename(temporary, path))
		return ft_err_set(err, errno, "%s: cannot write: %s", path, strerror(errno));
	return 0;
}

void memory_note_moving(const char *run_dir, const char *name, bool on)
{
	struct ft_err err = {0};
	struct memory m;

	memory_load(run_dir, name, &m);
	m.moving = on;
	if (memory_save(run_dir, name, &m, &err))
		ft_warn("%s: %s", name, err.text);
}

uint64_t memory_start_time(int64_t pid)
{
	char path[64], line[1024], *p;
	uint64_t start = 0;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%" PRId64 "/stat", pid);
	f = pid > 0 ? fopen(path, "re") : NULL;
	if (!f)
		return 0;
	/* Field 22, counted from after the name, which may hold anything. */
	if (!fgets(line, sizeof line, f) || !(p = strrchr(line, ')')) ||
	    sscanf(p + 1,
		   "%*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s "
		   "%" SCNu64,
		   &start) != 1)
		start = 0;
	fclose(f);
	return start;
}

bool memory_vmm_lives(const struct memory *m)
{
	return m->vmm_pid > 0 && m->vmm_start && memory_start_time(m->vmm_pid) == m->vmm_start;
}
