// SPDX-License-Identifier: Apache-2.0
// Snapshots of a pocket machine that writes its memory as fast as a guest may, into real files and
// back: what is restored is what RAM was in the pause, each page was written once, the file holds
// no more than it must, and whatever goes wrong leaves the guest running and no file.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/snapshot_fixture.h"
#include "vmm-glue/snapshot/frozen.h"
#include "vmm-glue/snapshot/snapshot.h"
#include "vmm-glue/snapshot/source.h"

#define ROUNDS	     20
#define PAGES_PER_S  20000
#define MEMORY	     (32ull << 20)
#define RESTORE_JOBS 3

static struct vmm *vmm;
static int done_fd;

static struct snapshot_config config_of(const char *path)
{
	return (struct snapshot_config){
		.path = path, .jobs = 2, .verify = true, .done = fixture_on_news, .ctx = &done_fd};
}

/* A round: taken, and the figures. */
static void take(const struct snapshot_config *config, struct snapshot_progress *p)
{
	struct snapshot *s;

	assert_ok(snapshot_begin(config, vmm, &s, err));
	assert_true(fixture_heard(done_fd));
	assert_ok(snapshot_end(s, p, err));
}

static int setup(void **state)
{
	struct ft_err err = {0};

	(void)state;
	fixture_folder();
	done_fd = fixture_listen();
	if (pocket_start(&(struct pocket_config){.name = "g",
						 .uuid = FIXTURE_UUID,
						 .memory_bytes = MEMORY,
						 .program = POCKET_DIRTY,
						 .dirty_pages_per_s = PAGES_PER_S},
			 &vmm, &err))
		fail_msg("%s", err.text);
	fixture_wait_dirtied(vmm, MEMORY / VMM_PAGE_BYTES / 2);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	vmm_free(vmm);
	close(done_fd);
	fixture_remove();
	return 0;
}

/* Restores the file into a machine that waits, compares, and lets that one run. */
static void restore_and_compare(const char *path, uint64_t digest)
{
	struct pocket_config config = {
		.name = "r", .uuid = FIXTURE_UUID, .memory_bytes = MEMORY, .program = POCKET_DIRTY};
	uint8_t *bytes = malloc(VMM_STATE_BYTES_MAX);
	struct source source;
	struct vmm *restored;
	uint64_t got;
	size_t len;

	assert_ok(source_open(path, &source, err));
	assert_string_equal(source.layout.machine, "pocket");
	assert_ok(pocket_arm(&config, &restored, err));
	assert_ok(source_restore(&source, vmm_image(restored), RESTORE_JOBS, err));
	assert_ok(vmm_ram_digest(restored, &got, err));
	assert_int_equal(got, digest);
	assert_ok(source_state(&source, "pocket", bytes, &len, err));
	/* Verifies what the program wrote into every page. */
	assert_ok(vmm_trial(restored, bytes, len, err));
	assert_ok(vmm_resume(restored, bytes, len, err));
	fixture_wait_dirtied(restored, 1);
	vmm_free(restored);
	source_close(&source);
	free(bytes);
}

static void every_round_is_the_pause(void **state)
{
	uint64_t faults = 0, longest_us = 0, pause_us = 0;

	(void)state;
	for (unsigned round = 0; round < ROUNDS; round++) {
		struct snapshot_config config = config_of(fixture_path("round.snap"));
		struct snapshot_progress p;

		config.jobs = 1 + round % 4;
		config.direct = round % 5 == 4 && fixture_has_direct();
		/* Slow enough for the guest to write most of its memory meanwhile. */
		config.bytes_per_s = round % 2 ? 100ull << 20 : 0;
		take(&config, &p);
		assert_int_equal(p.pages_done, p.pages);
		restore_and_compare(config.path, p.digest);
		faults += p.faults;
		longest_us = p.fault_us_max > longest_us ? p.fault_us_max : longest_us;
		pause_us = p.pause_us > pause_us ? p.pause_us : pause_us;
	}
	print_message("%d rounds, %llu faults, longest %llu us, longest pause %llu us\n", ROUNDS,
		      (unsigned long long)faults, (unsigned long long)longest_us,
		      (unsigned long long)pause_us);
	assert_true(faults > 1000);
}

/* Every page that is not zero once, and a frame around them. */
static void file_holds_no_more_than_it_must(void **state)
{
	struct snapshot_config config = config_of(fixture_path("size.snap"));
	struct snapshot_progress p;
	struct source source;
	uint64_t in_file = 0, data = 0;
	struct stat st;

	(void)state;
	take(&config, &p);
	assert_ok(source_open(config.path, &source, err));
	for (uint64_t pfn = 0; pfn < p.pages; pfn++)
		in_file += source_has(&source, pfn);
	assert_int_equal(p.pages_written, in_file);
	assert_true(in_file < p.pages);
	for (off_t at = 0, end; (at = lseek(source.fd, at, SEEK_DATA)) >= 0; at = end) {
		end = lseek(source.fd, at, SEEK_HOLE);
		data += (uint64_t)(end - at);
	}
	/* Head and bitmap, tail and state: whole blocks each. */
	assert_true(data <= in_file * VMM_PAGE_BYTES + 16 * VMM_PAGE_BYTES);
	assert_int_equal(fstat(source.fd, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	/* What filesystems add for themselves is little. */
	assert_true((uint64_t)st.st_blocks * 512 <= data + data / 50 + (1u << 16));
	source_close(&source);
}

static void wait_progress(struct snapshot *s, uint64_t pages)
{
	uint64_t until = fixture_now_ms() + FIXTURE_WAIT_MS;
	struct snapshot_progress p;

	do {
		assert_true(fixture_now_ms() < until);
		poll(NULL, 0, 1);
		snapshot_progress(s, &p);
	} while (p.pages_done < pages);
}

static void cancel_leaves_nothing(void **state)
{
	struct snapshot_config config = config_of(fixture_path("gone.snap"));
	struct snapshot_progress p;
	struct ft_err error = {0};
	struct snapshot *s;

	(void)state;
	config.bytes_per_s = 10 << 20;
	assert_ok(snapshot_begin(&config, vmm, &s, err));
	wait_progress(s, 200);
	snapshot_cancel(s, "cancelled by an operator");
	assert_true(fixture_heard(done_fd));
	assert_int_equal(snapshot_end(s, &p, &error), -ECANCELED);
	assert_string_equal(error.text, "snapshot: cancelled by an operator");
	assert_true(p.pages_done < p.pages);
	assert_int_equal(fixture_files(), 0);
	fixture_wait_dirtied(vmm, 1000);
}

/* A file that is there already stays whole until the new one is. */
static void old_file_stays_until_the_new_is_whole(void **state)
{
	struct snapshot_config config = config_of(fixture_path("kept.snap"));
	struct snapshot_progress p, second;
	struct ft_err error = {0};
	struct snapshot *s;

	(void)state;
	take(&config, &p);
	config.bytes_per_s = 1 << 20;
	assert_ok(snapshot_begin(&config, vmm, &s, err));
	/* Pages that the guest writes are saved at once, whatever the rate. */
	assert_ok(vmm_stop(vmm, err));
	wait_progress(s, 1);
	assert_int_equal(snapshot_begin(&config, vmm, &(struct snapshot *){0}, &error), -EBUSY);
	restore_and_compare(config.path, p.digest);
	snapshot_cancel(s, "enough");
	assert_true(fixture_heard(done_fd));
	assert_int_equal(snapshot_end(s, &second, NULL), -ECANCELED);
	restore_and_compare(config.path, p.digest);
	assert_int_equal(fixture_files(), 1);
}

/* The program that is killed: a machine of its own, and a snapshot that takes long. */
static int write_until_killed(const char *path)
{
	struct snapshot_config config = config_of(path);
	struct ft_err error = {0};
	struct snapshot *s;

	if (pocket_start(&(struct pocket_config){.name = "k",
						 .uuid = FIXTURE_UUID,
						 .memory_bytes = MEMORY,
						 .program = POCKET_DIRTY,
						 .dirty_pages_per_s = PAGES_PER_S},
			 &vmm, &error))
		return 1;
	fixture_wait_dirtied(vmm, MEMORY / VMM_PAGE_BYTES / 2);
	config.bytes_per_s = 1 << 20;
	if (snapshot_begin(&config, vmm, &s, &error))
		return 1;
	wait_progress(s, 200);
	(void)!write(STDOUT_FILENO, "r", 1);
	for (;;)
		pause();
}

/* The next one takes over what it left. */
static void killed_writer_leaves_the_old_file(void **state)
{
	struct snapshot_config config = config_of(fixture_path("kept.snap"));
	struct snapshot_progress p;
	int ready[2], status;
	pid_t pid;
	char byte;

	(void)state;
	take(&config, &p);
	assert_int_equal(pipe(ready), 0);
	pid = fork();
	if (pid == 0) {
		dup2(ready[1], STDOUT_FILENO);
		execl("/proc/self/exe", "writer", config.path, NULL);
		_exit(1);
	}
	close(ready[1]);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	close(ready[0]);
	restore_and_compare(config.path, p.digest);
	assert_int_equal(fixture_files(), 2);
	take(&config, &p);
	restore_and_compare(config.path, p.digest);
	assert_int_equal(fixture_files(), 1);
}

/* The pool is full all the time: the guest waits for the disk then, and nothing else changes. */
static void small_pool(void **state)
{
	struct snapshot_config config = config_of(fixture_path("pool.snap"));
	struct snapshot_progress p;

	(void)state;
	config.pool_pages = 1;
	config.bytes_per_s = 100ull << 20;
	take(&config, &p);
	restore_and_compare(config.path, p.digest);
}

static void no_room(void **state)
{
	struct snapshot_config config;
	struct snapshot_progress p;
	struct ft_err error = {0};
	struct snapshot *s;

	(void)state;
	if (!fixture_small("8m"))
		skip();
	config = config_of(fixture_path("small/full.snap"));
	assert_ok(snapshot_begin(&config, vmm, &s, err));
	assert_true(fixture_heard(done_fd));
	assert_int_equal(snapshot_end(s, &p, &error), -ENOSPC);
	assert_non_null(strstr(error.text, "No space left"));
	assert_int_equal(fixture_files(), 0);
	fixture_wait_dirtied(vmm, 1000);
}

static void refusals(void **state)
{
	struct snapshot_config config = config_of(fixture_path("nowhere/x.snap"));
	struct ft_err error = {0};
	struct snapshot *s;

	(void)state;
	assert_int_equal(snapshot_begin(&config, vmm, &s, &error), -ENOENT);
	config.path = "/dev";
	assert_int_equal(snapshot_begin(&config, vmm, &s, &error), -EINVAL);
	config.path = "/proc/x.snap";
	assert_true(snapshot_begin(&config, vmm, &s, &error) < 0);
	config.path = fixture_path("x.snap");
	/* Nothing of the guest is touched by those, and after this one it runs on. */
	pocket_fault_next(vmm, POCKET_FAULT_SAVE);
	assert_int_equal(snapshot_begin(&config, vmm, &s, &error), -EIO);
	assert_int_equal(fixture_files(), 0);
	fixture_wait_dirtied(vmm, 1000);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(every_round_is_the_pause, setup, teardown),
		cmocka_unit_test_setup_teardown(file_holds_no_more_than_it_must, setup, teardown),
		cmocka_unit_test_setup_teardown(cancel_leaves_nothing, setup, teardown),
		cmocka_unit_test_setup_teardown(old_file_stays_until_the_new_is_whole, setup,
						teardown),
		cmocka_unit_test_setup_teardown(killed_writer_leaves_the_old_file, setup, teardown),
		cmocka_unit_test_setup_teardown(small_pool, setup, teardown),
		cmocka_unit_test_setup_teardown(no_room, setup, teardown),
		cmocka_unit_test_setup_teardown(refusals, setup, teardown),
	};

	if (argc == 2)
		return write_until_killed(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
