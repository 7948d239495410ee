/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of snapshots share: a folder, and a pocket machine that writes its memory. */
#ifndef TEST_SNAPSHOT_FIXTURE_H
#define TEST_SNAPSHOT_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "vmm-glue/pocket/pocket.h"

#define FIXTURE_UUID	"3f6f1c1e-8d3c-4f0e-9d44-0123456789ab"
#define FIXTURE_WAIT_MS 60000

#define assert_ok(call)                                                                            \
	do {                                                                                       \
		struct ft_err err_ = {0}, *err = &err_;                                            \
		if ((call) != 0)                                                                   \
			fail_msg("%s: %s", #call, err_.text);                                      \
	} while (0)

static char fixture_dir[64];

static inline uint64_t fixture_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static inline uint64_t fixture_now_ms(void)
{
	return fixture_now_ns() / 1000000;
}

static inline const char *fixture_path(const char *name)
{
	static char paths[8][128];
	static unsigned next;

	next = (next + 1) % 8;
	snprintf(paths[next], sizeof paths[next], "%s/%s", fixture_dir, name);
	return paths[next];
}

static inline void fixture_folder(void)
{
	strcpy(fixture_dir, "/tmp/ft-snapshot-XXXXXX");
	assert_non_null(mkdtemp(fixture_dir));
}

static inline void fixture_remove(void)
{
	char line[128];

	umount2(fixture_path("small"), MNT_DETACH);
	snprintf(line, sizeof line, "rm -rf %s", fixture_dir);
	assert_int_equal(system(line), 0);
}

/* cmocka's, for tests that need nothing but the folder. */
static inline int fixture_setup(void **state)
{
	(void)state;
	fixture_folder();
	return 0;
}

static inline int fixture_teardown(void **state)
{
	(void)state;
	fixture_remove();
	return 0;
}

/* A filesystem of its own with little room at "small". False: this user may not mount. */
static inline bool fixture_small(const char *size)
{
	char option[32];

	snprintf(option, sizeof option, "size=%s", size);
	if (mkdir(fixture_path("small"), 0700))
		return false;
	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return false;
	return mount("none", fixture_path("small"), "tmpfs", 0, option) == 0;
}

static inline unsigned fixture_count(const char *path)
{
	struct dirent *e;
	unsigned n = 0;
	DIR *dir = opendir(path);

	while (dir && (e = readdir(dir)))
		n += e->d_type == DT_REG;
	if (dir)
		closedir(dir);
	return n;
}

static inline unsigned fixture_files(void)
{
	return fixture_count(fixture_dir) + fixture_count(fixture_path("small"));
}

static inline bool fixture_has_direct(void)
{
	int fd = open(fixture_dir, O_TMPFILE | O_RDWR | O_DIRECT, 0600);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

/* What works in threads of its own has something to tell: a config's `done` or `news`, with an
 * eventfd of fixture_listen() as its ctx (int *). */
static inline void fixture_on_news(void *ctx)
{
	eventfd_write(*(int *)ctx, 1);
}

static inline int fixture_listen(void)
{
	int fd = eventfd(0, EFD_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

/* False: nothing was told in FIXTURE_WAIT_MS. */
static inline bool fixture_heard(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	eventfd_t n;

	return poll(&p, 1, FIXTURE_WAIT_MS) == 1 && !eventfd_read(fd, &n);
}

static inline void fixture_wait_dirtied(struct vmm *vmm, uint64_t n)
{
	uint64_t until = fixture_now_ms() + FIXTURE_WAIT_MS, from = pocket_dirtied(vmm);

	while (pocket_dirtied(vmm) - from < n) {
		assert_true(fixture_now_ms() < until);
		poll(NULL, 0, 1);
	}
}

#endif
