// SPDX-License-Identifier: Apache-2.0
// A tracker is right when a copy that takes only the pages it names is the same as the memory in
// the end, and tight when it names no others.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/fixture/clock.h"
#include "tests/fixture/target.h"
#include "vmm-glue/tracker.h"

#define DEADLINE_MS 20000
#define PAGE	    4096u
#define PAGES	    2048u // of each kind of memory
#define ROUNDS	    60
#define WRITES_MAX  600

// Memory of two kinds, at the same addresses in the tracked process and (before fork) here.
struct memory {
	uint8_t *shared; // of a memfd, ours too
	uint8_t *anon;	 // private: ours only until the fork
};

struct shared {
	_Atomic int ready;
	_Atomic int stop;
	_Atomic uint64_t writes;
	unsigned n;
	unsigned pages[WRITES_MAX]; // 0..PAGES-1: shared, then anonymous
	int ask[2], answer[2];	    // pipes
	int fd;			    // of a file, the target's own
	int direct;		    // the same, past the page cache; -1: not on this file system
};

static struct shared *sh;
static struct memory mem;

static uint64_t random_state;

static unsigned random_below(unsigned n)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return (unsigned)((random_state >> 33) % n);
}

static void memory_new(void)
{
	int fd = memfd_create("guest", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)PAGES * PAGE), 0);
	mem.shared = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	mem.anon = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(mem.shared, MAP_FAILED);
	assert_ptr_not_equal(mem.anon, MAP_FAILED);
	close(fd);
}

static struct target target_start(int (*body)(void))
{
	memset(sh, 0, sizeof *sh);
	random_state = 1;
	memory_new();
	assert_int_equal(pipe2(sh->ask, O_CLOEXEC), 0);
	assert_int_equal(pipe2(sh->answer, O_CLOEXEC), 0);
	return target_fork(body);
}

static void target_end(struct target t)
{
	target_kill(t);
	for (int i = 0; i < 2; i++) {
		close(sh->ask[i]);
		close(sh->answer[i]);
	}
	munmap(mem.shared, (size_t)PAGES * PAGE);
	munmap(mem.anon, (size_t)PAGES * PAGE);
}

static struct tracker *open_both(struct target t)
{
	struct tracker_region regions[] = {
		{(uintptr_t)mem.shared, (uint64_t)PAGES * PAGE},
		{(uintptr_t)mem.anon, (uint64_t)PAGES * PAGE},
	};
	struct tracker *tracker = NULL;
	struct ft_err err = {0};

	if (tracker_check(t.pid, &err) || tracker_open(t.pid, t.pidfd, regions, 2, &tracker, &err))
		fail_msg("%s", err.text);
	return tracker;
}

// ---- a target that writes when told ----

static uint8_t *page_at(unsigned page)
{
	return page < PAGES ? mem.shared + (size_t)page * PAGE
			    : mem.anon + (size_t)(page - PAGES) * PAGE;
}

static int body_obey(void)
{
	char c;

	while (read(sh->ask[0], &c, 1) == 1) {
		for (unsigned i = 0; i < sh->n; i++) {
			uint8_t *page = page_at(sh->pages[i]);

			if (c == 'w')
				page[i % PAGE]++;
			else if (c == 'r')
				sh->writes += page[i % PAGE];
			else if (c == 'k' &&
				 pread(sh->fd, page, 1, 0) != 1) // the kernel writes for us
				_exit(1);
			else if (c == 'd' &&
				 pread(sh->direct, page, PAGE, 0) != PAGE) // a device does
				_exit(1);
		}
		if (write(sh->answer[1], "x", 1) != 1)
			_exit(1);
	}
	return 0;
}

static void tell(char what)
{
	char c;

	assert_int_equal(write(sh->ask[1], &what, 1), 1);
	assert_int_equal(read(sh->answer[0], &c, 1), 1);
}

static void assert_same(const struct ft_bitmap *a, const struct ft_bitmap *b)
{
	assert_int_equal(a->count, b->count);
	for (uint64_t i = 0; i < a->bits; i++)
		if (ft_bitmap_test(a, i) != ft_bitmap_test(b, i))
			fail_msg("page %" PRIu64, i);
}

static void exact_rounds(char how)
{
	struct target t = target_start(body_obey);
	struct tracker *tracker = open_both(t);
	struct ft_bitmap dirty, expected;
	struct ft_err err;
	uint64_t found, faults;

	assert_int_equal(ft_bitmap_init(&dirty, 2 * PAGES), 0);
	assert_int_equal(ft_bitmap_init(&expected, 2 * PAGES), 0);
	for (int round = 0; round < ROUNDS; round++) {
		ft_bitmap_clear_all(&dirty);
		ft_bitmap_clear_all(&expected);
		sh->n = random_below(WRITES_MAX);
		for (unsigned i = 0; i < sh->n; i++) {
			sh->pages[i] = random_below(2 * PAGES);
			// Runs of pages too, also across the border between the regions.
			if (i && random_below(2))
				sh->pages[i] = (sh->pages[i - 1] + 1) % (2 * PAGES);
			if (how != 'r')
				ft_bitmap_set(&expected, sh->pages[i]);
		}
		faults = tracker_faults(tracker);
		assert_true(faults > 0);
		tell(how);
		// A write to a page that a scan has protected never goes uncounted.
		assert_true(tracker_faults(tracker) >= faults + expected.count);
		assert_int_equal(tracker_peek(tracker, 1000000), expected.count);
		assert_int_equal(tracker_peek(tracker, 7), expected.count < 7 ? expected.count : 7);
		assert_int_equal(tracker_scan(tracker, &dirty, &found, &err), 0);
		assert_int_equal(found, expected.count);
		assert_same(&dirty, &expected);
	}
	// A scan adds to what is set already.
	sh->n = 1;
	sh->pages[0] = 2 * PAGES - 1;
	ft_bitmap_set(&dirty, 5);
	ft_bitmap_clear(&dirty, 2 * PAGES - 1);
	tell('w');
	assert_int_equal(tracker_scan(tracker, &dirty, NULL, &err), 0);
	assert_true(ft_bitmap_test(&dirty, 5));
	assert_true(ft_bitmap_test(&dirty, 2 * PAGES - 1));
	tracker_close(tracker);
	tell('w'); // unprotected again
	ft_bitmap_free(&dirty);
	ft_bitmap_free(&expected);
	target_end(t);
}

static void test_writes_exact(void **state)
{
	(void)state;
	exact_rounds('w');
}

static void test_reads_are_clean(void **state)
{
	(void)state;
	exact_rounds('r');
}

static int body_obey_as_nobody(void)
{
	if (!geteuid() && (setgid(65534) || setuid(65534)))
		_exit(1);
	prctl(PR_SET_PDEATHSIG, SIGKILL); // forgotten by setuid
	sh->fd = open("/proc/self/exe", O_RDONLY);
	sh->direct = open("/proc/self/exe", O_RDONLY | O_DIRECT);
	return body_obey();
}

// A userfaultfd of user mode faults only must not fail the kernel's writes, nor miss them.
static void test_kernel_writes(void **state)
{
	struct target t = target_start(body_obey_as_nobody);
	struct ft_bitmap dirty;
	struct tracker *tracker;
	struct ft_err err;

	(void)state;
	sh->n = 0;
	tell('r'); // it has changed its user by now
	tracker = open_both(t);
	assert_int_equal(ft_bitmap_init(&dirty, 2 * PAGES), 0);
	sh->n = 3;
	sh->pages[0] = 1;
	sh->pages[1] = 100;
	sh->pages[2] = PAGES + 3;
	for (const char *how = "kd"; *how; how++) {
		uint64_t faults = tracker_faults(tracker);

		if (*how == 'd' && sh->direct < 0)
			continue;
		ft_bitmap_clear_all(&dirty);
		tell(*how);
		assert_true(tracker_faults(tracker) >= faults + 3);
		assert_int_equal(tracker_scan(tracker, &dirty, NULL, &err), 0);
		assert_int_equal(dirty.count, 3);
		assert_true(ft_bitmap_test(&dirty, 1));
		assert_true(ft_bitmap_test(&dirty, 100));
		assert_true(ft_bitmap_test(&dirty, PAGES + 3));
	}
	tracker_close(tracker);
	ft_bitmap_free(&dirty);
	target_end(t);
}

// ---- a target that never stops writing ----

static int body_write(void)
{
	uint64_t x = 88172645463325252u, n = 0;

	sh->ready = 1;
	while (!sh->stop) {
		unsigned page = (unsigned)((x ^= x << 13, x ^= x >> 7, x ^= x << 17) % (2 * PAGES));
		uint64_t *word = (uint64_t *)page_at(page) + (x >> 40) % (PAGE / 8);

		__atomic_store_n(word, ++n, __ATOMIC_RELAXED);
		sh->writes = n;
	}
	if (write(sh->answer[1], "x", 1) != 1)
		_exit(1);
	pause();
	return 0;
}

static void copy_page(pid_t pid, unsigned page, uint8_t *image)
{
	struct iovec local = {image + (size_t)page * PAGE, PAGE}, remote = {page_at(page), PAGE};

	if (page < PAGES)
		memcpy(local.iov_base, remote.iov_base, PAGE);
	else
		assert_int_equal(process_vm_readv(pid, &local, 1, &remote, 1, 0), PAGE);
}

static void copy_dirty(pid_t pid, struct ft_bitmap *dirty, uint8_t *image)
{
	for (uint64_t i = ft_bitmap_next(dirty, 0); i < dirty->bits;
	     i = ft_bitmap_next(dirty, i + 1))
		copy_page(pid, (unsigned)i, image);
	ft_bitmap_clear_all(dirty);
}

static void test_no_write_lost(void **state)
{
	struct target t = target_start(body_write);
	struct tracker *tracker = open_both(t);
	uint8_t *image = malloc(2 * (size_t)PAGES * PAGE), now[PAGE];
	struct ft_bitmap dirty;
	uint64_t total = 0, found;
	struct ft_err err;
	uint64_t end = now_ms() + DEADLINE_MS;
	char c;

	(void)state;
	assert_non_null(image);
	assert_int_equal(ft_bitmap_init(&dirty, 2 * PAGES), 0);
	ft_bitmap_set_all(&dirty);
	copy_dirty(t.pid, &dirty, image);
	for (int round = 0; round < 300; round++) {
		uint64_t before = sh->writes;

		while (sh->writes < before + 200 && now_ms() < end)
			sched_yield(); // the writer may have this CPU
		if (now_ms() >= end && round > 20)
			break; // a busy machine: fewer rounds prove the same
		assert_int_equal(tracker_scan(tracker, &dirty, &found, &err), 0);
		assert_true(dirty.count <= found); // the kernel may meet a page twice
		total += found;
		copy_dirty(t.pid, &dirty, image);
	}
	sh->stop = 1;
	assert_int_equal(read(sh->answer[0], &c, 1), 1);
	assert_int_equal(tracker_scan(tracker, &dirty, NULL, &err), 0);
	copy_dirty(t.pid, &dirty, image);
	for (unsigned i = 0; i < 2 * PAGES; i++) {
		memcpy(now, image + (size_t)i * PAGE, PAGE);
		copy_page(t.pid, i, image);
		assert_memory_equal(now, image + (size_t)i * PAGE, PAGE);
	}
	print_message("%" PRIu64 " writes, %" PRIu64 " dirty pages in 300 scans\n", sh->writes,
		      total);
	assert_true(total > 300);
	tracker_close(tracker);
	ft_bitmap_free(&dirty);
	free(image);
	target_end(t);
}

// ---- ourselves ----

static void test_own_process(void **state)
{
	struct tracker_region regions[2];
	struct ft_bitmap dirty;
	struct tracker *tracker;
	struct ft_err err = {0};
	uint64_t found;

	(void)state;
	memory_new();
	// The second one lies in the middle of a mapping, and has pages that were never touched.
	regions[0] = (struct tracker_region){(uintptr_t)mem.shared, 10 * PAGE};
	regions[1] = (struct tracker_region){(uintptr_t)mem.anon + 100 * PAGE, 50 * PAGE};
	assert_int_equal(tracker_check(0, &err), 0);
	assert_int_equal(tracker_open(0, -1, regions, 2, &tracker, &err), 0);
	assert_int_equal(ft_bitmap_init(&dirty, 60), 0);
	assert_int_equal(tracker_scan(tracker, &dirty, &found, &err), 0);
	assert_int_equal(found, 0);
	mem.shared[9 * PAGE] = 1;
	mem.shared[10 * PAGE] = 1; // beyond
	mem.anon[99 * PAGE] = 1;   // before
	mem.anon[100 * PAGE] = 1;
	mem.anon[149 * PAGE] = 1;
	mem.anon[150 * PAGE] = 1; // beyond
	assert_int_equal(tracker_scan(tracker, &dirty, &found, &err), 0);
	assert_int_equal(found, 3);
	assert_true(ft_bitmap_test(&dirty, 9));
	assert_true(ft_bitmap_test(&dirty, 10));
	assert_true(ft_bitmap_test(&dirty, 59));
	tracker_close(tracker);
	tracker_close(NULL);
	// Again on the same memory: nothing was left behind.
	assert_int_equal(tracker_open(0, -1, regions, 2, &tracker, &err), 0);
	assert_int_equal(tracker_peek(tracker, 100), 0);
	tracker_close(tracker);
	ft_bitmap_free(&dirty);
	munmap(mem.shared, (size_t)PAGES * PAGE);
	munmap(mem.anon, (size_t)PAGES * PAGE);
}

// ---- refusals ----

static void test_already_tracked(void **state)
{
	struct target t = target_start(body_obey);
	struct tracker_region region = {(uintptr_t)mem.shared, PAGE};
	struct tracker *tracker = open_both(t), *other;
	struct ft_err err;

	(void)state;
	assert_int_equal(tracker_open(t.pid, t.pidfd, &region, 1, &other, &err), -EBUSY);
	assert_non_null(strstr(err.text, "another userfaultfd has it already"));
	region.start = (uintptr_t)mem.shared + (1ull << 40);
	assert_true(tracker_open(t.pid, t.pidfd, &region, 1, &other, &err) < 0);
	tracker_close(tracker);
	target_end(t);
}

static void test_target_dies(void **state)
{
	struct target t = target_start(body_obey);
	struct tracker *tracker = open_both(t);
	struct ft_bitmap dirty;
	struct ft_err err;
	int self;

	(void)state;
	assert_int_equal(ft_bitmap_init(&dirty, 2 * PAGES), 0);
	kill(t.pid, SIGKILL);
	assert_int_equal(poll(&(struct pollfd){.fd = t.pidfd, .events = POLLIN}, 1, DEADLINE_MS),
			 1);
	// Not "nothing was written": that would be a checkpoint of a dead guest.
	assert_int_equal(tracker_scan(tracker, &dirty, NULL, &err), -ESRCH);
	assert_string_equal(err.text, "dirty page tracker: scan: the process is gone");
	assert_int_equal(tracker_peek(tracker, 10), -ESRCH);
	tracker_close(tracker);
	assert_int_equal(tracker_check(t.pid, &err), -ESRCH); // a zombie
	self = pidfd_open(getpid(), 0);
	assert_int_equal(
		tracker_open(t.pid, self, &(struct tracker_region){PAGE, PAGE}, 1, &tracker, &err),
		-ESRCH);
	close(self);
	ft_bitmap_free(&dirty);
	target_end(t);
	assert_int_equal(tracker_check(t.pid, &err), -ESRCH);
	assert_non_null(strstr(err.text, "is gone"));
}

static void test_no_right(void **state)
{
	struct target t = target_start(body_obey);
	int status;
	pid_t pid;

	(void)state;
	if (geteuid()) {
		target_end(t);
		skip();
	}
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		struct tracker_region region = {(uintptr_t)mem.shared, PAGE};
		struct tracker *tracker;
		struct ft_err err;

		if (setgid(65534) || setuid(65534))
			_exit(1);
		prctl(PR_SET_DUMPABLE, 1);  // else /proc/self belongs to who we were
		if (tracker_check(0, &err)) // ourselves needs no privilege
			_exit(2);
		if (tracker_check(t.pid, &err) != -EACCES ||
		    !strstr(err.text, "CAP_SYS_PTRACE is needed"))
			_exit(3);
		if (!tracker_open(t.pid, t.pidfd, &region, 1, &tracker, &err))
			_exit(4);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	target_end(t);
}

static void test_traced(void **state)
{
	struct target t = target_start(body_obey);
	char expected[128], c;
	struct ft_err err;
	int go[2];
	pid_t pid;

	(void)state;
	assert_int_equal(pipe(go), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		prctl(PR_SET_NAME, "de bug");
		if (ptrace(PTRACE_SEIZE, t.pid, 0, 0) || write(go[1], "x", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	assert_int_equal(read(go[0], &c, 1), 1);
	assert_int_equal(tracker_check(t.pid, &err), -EBUSY);
	snprintf(expected, sizeof expected,
		 "dirty page tracker: process %d: is traced by process %d (de bug) already", t.pid,
		 pid);
	assert_string_equal(err.text, expected);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	assert_int_equal(tracker_check(t.pid, &err), 0);
	close(go[0]);
	close(go[1]);
	target_end(t);
}

// The smallest i386 program: pause(2) in a loop.
static void test_32_bit(void **state)
{
	static const uint8_t elf[] = {
		0x7f, 'E',  'L',  'F', 1, 1,	1,    0,    0,	  0,	0,    0,    0,	  0,
		0,    0,    2,	  0,   3, 0,	1,    0,    0,	  0,	0x54, 0x80, 0x04, 0x08,
		0x34, 0,    0,	  0,   0, 0,	0,    0,    0,	  0,	0,    0,    0x34, 0,
		0x20, 0,    1,	  0,   0, 0,	0,    0,    0,	  0,	1,    0,    0,	  0,
		0,    0,    0,	  0,   0, 0x80, 0x04, 0x08, 0,	  0x80, 0x04, 0x08, 0x5d, 0,
		0,    0,    0x5d, 0,   0, 0,	5,    0,    0,	  0,	0,    0x10, 0,	  0,
		0xb8, 0x1d, 0,	  0,   0, 0xcd, 0x80, 0xeb, 0xf7,
	};
	int fd = memfd_create("i386", 0), ready[2], status;
	char *argv[] = {"i386", NULL}, c;
	struct ft_err err;
	pid_t pid;

	(void)state;
	assert_int_equal(write(fd, elf, sizeof elf), sizeof elf);
	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fexecve(fd, argv, argv + 1);
		_exit(1);
	}
	close(fd);
	close(ready[1]);
	assert_int_equal(read(ready[0], &c, 1), 0); // closed by exec, or the end
	close(ready[0]);
	if (waitpid(pid, &status, WNOHANG) == pid || tracker_check(pid, &err) != -ENOTSUP) {
		nap();
		if (waitpid(pid, &status, WNOHANG) == pid) {
			print_message("this kernel runs no 32-bit programs\n");
			skip();
		}
		assert_int_equal(tracker_check(pid, &err), -ENOTSUP);
	}
	assert_non_null(strstr(err.text, "not a 64-bit program"));
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_writes_exact),  cmocka_unit_test(test_reads_are_clean),
		cmocka_unit_test(test_kernel_writes), cmocka_unit_test(test_no_write_lost),
		cmocka_unit_test(test_own_process),   cmocka_unit_test(test_already_tracked),
		cmocka_unit_test(test_target_dies),   cmocka_unit_test(test_no_right),
		cmocka_unit_test(test_traced),	      cmocka_unit_test(test_32_bit),
	};
	struct ft_err err;

	if (tracker_check(0, &err)) {
		printf("skipped: %s\n", err.text);
		return 77;
	}
	sh = mmap(NULL, sizeof *sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (sh == MAP_FAILED)
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
