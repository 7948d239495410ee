// SPDX-License-Identifier: Apache-2.0
// The Linux guest that tests/guest/build makes: echo on TCP 7 and UDP 9, a web server with /big,
// loads that are started from its console.
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

int guest_available(struct bench *b, struct ft_err *err)
{
	const char *dir = getenv("FT_GUEST_DIR");

	snprintf(b->kernel, sizeof b->kernel, "%s/vmlinuz",
		 dir ? dir : FT_SOURCE_DIR "/.cache/guest");
	snprintf(b->initrd, sizeof b->initrd, "%s/initrd.gz",
		 dir ? dir : FT_SOURCE_DIR "/.cache/guest");
	if (geteuid()) {
		ft_err_set(err, EPERM, "only root has network namespaces and may trace QEMU");
		return BENCH_SKIPPED;
	}
	if (system("command -v qemu-system-x86_64 >/dev/null && command -v ip >/dev/null")) {
		ft_err_set(err, ENOENT, "qemu-system-x86_64 or ip is not installed");
		return BENCH_SKIPPED;
	}
	if (access(b->kernel, R_OK) || access(b->initrd, R_OK)) {
		ft_err_set(err, ENOENT, "no guest at %s: tests/guest/build makes one", b->kernel);
		return BENCH_SKIPPED;
	}
	return 0;
}

int guest_make_disk(const char *path, struct ft_err *err)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600), rc = 0;

	if (fd < 0 || ftruncate(fd, GUEST_DISK) < 0)
		rc = ft_err_set(err, errno, "%s: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
	return rc;
}

static bool is_ready(const char *path)
{
	char text[65536];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);

	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = '\0';
	return strstr(text, "GUEST-READY") != NULL;
}

int guest_wait_ready(const char *path, struct ft_err *err)
{
	uint64_t start = bench_now_ns();
	int watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK), rc = 0;
	int fd = open(path, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);

	if (fd >= 0)
		close(fd);
	if (inotify_add_watch(watch, path, IN_MODIFY) < 0)
		rc = ft_err_set(err, errno, "%s: %s", path, strerror(errno));
	while (!rc && !is_ready(path)) {
		struct pollfd p = {.fd = watch, .events = POLLIN};
		int left = GUEST_BOOT_MS - (int)bench_ms_since(start);
		char events[4096];

		if (left <= 0 || poll(&p, 1, left) == 0)
			rc = ft_err_set(err, ETIMEDOUT, "%s: no GUEST-READY within %d ms", path,
					GUEST_BOOT_MS);
		while (read(watch, events, sizeof events) > 0)
			;
	}
	close(watch);
	return rc;
}
