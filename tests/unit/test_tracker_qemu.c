// SPDX-License-Identifier: Apache-2.0
// The tracker on the real thing: an unmodified QEMU that boots Linux, is attached to, tracked, and
// left again.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/fixture/clock.h"
#include "vmm-glue/inject.h"
#include "vmm-glue/tracker.h"

#define BOOT_MS	    90000
#define ANSWER_MS   20000
#define PAGE	    4096u
#define RAM_BYTES   (256u << 20)
#define SCANS_MIN   20
#define WRITTEN_MIN 1024 // pages that the guest writes at least

static struct {
	pid_t pid;
	int pidfd;
	int serial_in, serial_out;
	char kernel[256], initrd[256];
	struct tracker_region ram;
	const uint8_t *memory; // the same RAM, mapped here
} qemu;

// Reads the console until text comes (true) or the time is over. What was read before is looked at
// too, up to the last text that was found.
static bool console_until(const char *text, int ms)
{
	static char buffer[1 << 16];
	static size_t n;
	uint64_t end = now_ms() + ms;

	for (long left = ms; left > 0; left = (long)(end - now_ms())) {
		struct pollfd p = {.fd = qemu.serial_out, .events = POLLIN};
		ssize_t got;

		if (poll(&p, 1, (int)left) != 1)
			continue;
		if (n > sizeof buffer / 2) { // keep the end, which may be half of the text
			memmove(buffer, buffer + n - 256, 256);
			n = 256;
		}
		got = read(qemu.serial_out, buffer + n, sizeof buffer - 1 - n);
		if (got <= 0)
			return false;
		n += (size_t)got;
		buffer[n] = 0;
		if (strstr(buffer, text)) {
			n = 0;
			return true;
		}
	}
	return false;
}

static void type(const char *line)
{
	assert_int_equal(write(qemu.serial_in, line, strlen(line)), (ssize_t)strlen(line));
}

static void find_ram(void)
{
	char path[64], line[512];
	FILE *f;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/maps", qemu.pid);
	f = fopen(path, "re");
	assert_non_null(f);
	while (!qemu.ram.bytes && fgets(line, sizeof line, f)) {
		uint64_t start, end;

		if (strstr(line, "memory-backend-memfd") &&
		    sscanf(line, "%" SCNx64 "-%" SCNx64, &start, &end) == 2)
			qemu.ram = (struct tracker_region){start, end - start};
	}
	fclose(f);
	assert_int_equal(qemu.ram.bytes, RAM_BYTES);
	snprintf(path, sizeof path, "/proc/%d/map_files/%" PRIx64 "-%" PRIx64, qemu.pid,
		 qemu.ram.start, qemu.ram.start + qemu.ram.bytes);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	qemu.memory = mmap(NULL, RAM_BYTES, PROT_READ, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(qemu.memory, MAP_FAILED);
	close(fd);
}

static int setup(void **state)
{
	int in[2], out[2];

	(void)state;
	if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC))
		return -1;
	qemu.pid = fork();
	if (!qemu.pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(in[0], STDIN_FILENO);
		dup2(out[1], STDOUT_FILENO);
		execlp("qemu-system-x86_64", "qemu-system-x86_64", "-machine",
		       "q35,accel=tcg,memory-backend=ram0", "-m", "256", "-object",
		       "memory-backend-memfd,id=ram0,size=256M,share=on", "-nodefaults",
		       "-no-user-config", "-display", "none", "-vga", "none", "-kernel",
		       qemu.kernel, "-initrd", qemu.initrd, "-append",
		       "console=ttyS0 quiet panic=1 tsc=unstable quietguest", "-serial", "stdio",
		       (char *)NULL);
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	qemu.serial_in = in[1];
	qemu.serial_out = out[0];
	qemu.pidfd = pidfd_open(qemu.pid, 0);
	return console_until("GUEST-READY", BOOT_MS) ? 0 : -1;
}

static int teardown(void **state)
{
	(void)state;
	if (qemu.pid > 0) {
		kill(qemu.pid, SIGKILL);
		waitpid(qemu.pid, NULL, 0);
	}
	return 0;
}

static int fds_of(pid_t pid)
{
	char path[64];
	int n = 0;

	for (int fd = 0; fd < 256; fd++) {
		snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
		n += !faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW);
	}
	return n;
}

static void wait_stopped(void)
{
	uint64_t end = now_ms() + ANSWER_MS;
	int status;

	kill(qemu.pid, SIGSTOP);
	while (waitpid(qemu.pid, &status, WUNTRACED | WNOHANG) != qemu.pid)
		assert_true(now_ms() < end);
	assert_true(WIFSTOPPED(status));
}

static void copy_dirty(struct ft_bitmap *dirty, uint8_t *image)
{
	for (uint64_t i = ft_bitmap_next(dirty, 0); i < dirty->bits;
	     i = ft_bitmap_next(dirty, i + 1))
		memcpy(image + i * PAGE, qemu.memory + i * PAGE, PAGE);
	ft_bitmap_clear_all(dirty);
}

static void test_attach_track_leave(void **state)
{
	uint8_t *image = malloc(RAM_BYTES);
	uint64_t found, total = 0;
	struct ft_err err = {0};
	struct tracker *tracker = NULL;
	struct ft_bitmap dirty;
	uint64_t end = now_ms() + ANSWER_MS;
	int theirs, own, scans = 0;

	(void)state;
	assert_non_null(image);
	find_ram();
	assert_int_equal(ft_bitmap_init(&dirty, RAM_BYTES / PAGE), 0);
	theirs = fds_of(qemu.pid);
	own = fds_of(getpid());
	if (tracker_check(qemu.pid, &err) ||
	    tracker_open(qemu.pid, qemu.pidfd, &qemu.ram, 1, &tracker, &err))
		fail_msg("%s", err.text);
	ft_bitmap_set_all(&dirty);
	copy_dirty(&dirty, image);
	type("dd if=/dev/urandom of=/www/new bs=1M count=4; echo \"wri\"\"tten\"\n");
	for (bool written = false; !written || scans < SCANS_MIN; scans++) {
		assert_true(now_ms() < end);
		written |= console_until("written", 20);
		assert_int_equal(tracker_scan(tracker, &dirty, &found, &err), 0);
		total += found;
		copy_dirty(&dirty, image);
	}
	wait_stopped();
	assert_int_equal(tracker_scan(tracker, &dirty, &found, &err), 0);
	total += found;
	copy_dirty(&dirty, image);
	assert_memory_equal(image, qemu.memory, RAM_BYTES);
	assert_int_equal(tracker_peek(tracker, 1), 0);
	kill(qemu.pid, SIGCONT);
	tracker_close(tracker);
	assert_int_equal(fds_of(qemu.pid), theirs);
	assert_int_equal(fds_of(getpid()), own);
	type("echo \"still \"\"here\"\n");
	assert_true(console_until("still here", ANSWER_MS));
	print_message("%" PRIu64 " dirty pages in %d scans\n", total, scans);
	assert_true(total >= WRITTEN_MIN);
	ft_bitmap_free(&dirty);
	free(image);
}

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

// Attached and left again and again, with the guest at work: it must not stumble once.
static void test_attach_often(void **state)
{
	int theirs = fds_of(qemu.pid), own = fds_of(getpid());
	struct ft_err err = {0};
	uint64_t stood[100];

	(void)state;
	type("i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo $i | md5sum > /www/sum; done; echo "
	     "\"lo\"\"op $i\"\n");
	for (int i = 0; i < 100; i++) {
		struct inject_report report;
		int uffd;

		if (inject_uffd(qemu.pid, qemu.pidfd, 0, false, &uffd, &report, &err))
			fail_msg("%s", err.text);
		close(uffd);
		stood[i] = report.stopped_ns;
	}
	assert_true(console_until("loop 300", 3 * ANSWER_MS));
	assert_int_equal(fds_of(qemu.pid), theirs);
	assert_int_equal(fds_of(getpid()), own);
	qsort(stood, 100, sizeof *stood, compare_u64);
	print_message("one thread of QEMU stood for %.3f ms (median of 100), %.3f at most\n",
		      (double)stood[50] / 1e6, (double)stood[99] / 1e6);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_attach_track_leave),
		cmocka_unit_test(test_attach_often),
	};
	const char *guest = getenv("FT_GUEST_DIR"), *source = getenv("FT_SOURCE_DIR");
	struct ft_err err;
	char dir[200];

	snprintf(dir, sizeof dir, "%s%s",
		 guest	  ? guest
		 : source ? source
			  : ".",
		 guest ? "" : "/.cache/guest");
	snprintf(qemu.kernel, sizeof qemu.kernel, "%s/vmlinuz", dir);
	snprintf(qemu.initrd, sizeof qemu.initrd, "%s/initrd.gz", dir);
	if (access(qemu.kernel, R_OK) || access(qemu.initrd, R_OK)) {
		printf("skipped: no guest in %s\n", dir);
		return 77;
	}
	if (geteuid() || tracker_check(0, &err)) {
		printf("skipped: %s\n", geteuid() ? "needs root" : err.text);
		return 77;
	}
	if (system("command -v qemu-system-x86_64 > /dev/null") != 0) {
		printf("skipped: no qemu-system-x86_64\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, setup, teardown);
}
