// SPDX-License-Identifier: Apache-2.0
// A snapshot that is updated in place while a pocket machine writes its memory: the file is what
// RAM was in the pause, only what was written since is saved, whoever is killed at whatever moment
// leaves the old or the new snapshot, and so does a disk that is full.
#include "tests/unit/snapshot_fixture.h"

#include <errno.h>
#include <signal.h>
#include <sys/wait.h>

#include "vmm-glue/snapshot/increment.h"
#include "vmm-glue/snapshot/source.h"
#include "vmm-glue/snapshot/update.h"

#define ROUNDS	    20
#define KILLS	    40
#define PAGES_PER_S 20000
#define MEMORY	    (32ull << 20)
#define PAGES	    (MEMORY / VMM_PAGE_BYTES)
#define KILL_MS	    300 /* some updates */

static struct vmm *vmm;
static struct since *since;
static int news_fd;

/* One that has written so many pages. */
static struct vmm *machine(unsigned pages_per_s, uint64_t pages)
{
	struct ft_err err = {0};
	struct vmm *made;

	if (pocket_start(&(struct pocket_config){.name = "g",
						 .uuid = FIXTURE_UUID,
						 .memory_bytes = MEMORY,
						 .program = POCKET_DIRTY,
						 .dirty_pages_per_s = pages_per_s},
			 &made, &err))
		fail_msg("%s", err.text);
	fixture_wait_dirtied(made, pages);
	return made;
}

static bool has_small;

/* On a filesystem in memory, if there may be one: much is written here. */
static const char *file(const char *name)
{
	char small[64];

	snprintf(small, sizeof small, "small/%s", name);
	return fixture_path(has_small ? small : name);
}

static int setup(void **state)
{
	(void)state;
	fixture_folder();
	has_small = fixture_small("80m");
	news_fd = fixture_listen();
	vmm = machine(PAGES_PER_S, PAGES / 2);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	since_free(since);
	since = NULL;
	vmm_free(vmm);
	close(news_fd);
	fixture_remove();
	return 0;
}

/* A whole one. Nobody else may watch RAM meanwhile. */
static int whole(const char *path, struct snapshot_progress *p, struct ft_err *err)
{
	struct snapshot_config config = {
		.path = path, .jobs = 2, .verify = true, .done = fixture_on_news, .ctx = &news_fd};
	struct snapshot *s;
	int rc;

	since_free(since);
	since = NULL;
	rc = snapshot_begin(&config, vmm, &s, err);
	if (rc)
		return rc;
	if (!fixture_heard(news_fd))
		return -ETIMEDOUT;
	return snapshot_end(s, p, err);
}

static int update_with(const struct increment_config *config, struct snapshot_progress *p,
		       struct ft_err *err)
{
	struct increment *inc;
	int rc;

	rc = increment_begin(config, vmm, &since, &inc, err);
	if (rc)
		return rc;
	while (increment_wants(inc) != INCREMENT_END) {
		if (!fixture_heard(news_fd))
			return -ETIMEDOUT;
		if (increment_wants(inc) == INCREMENT_MOMENT)
			increment_moment(inc, vmm, NULL, 0);
	}
	return increment_end(inc, p, err);
}

static struct increment_config config_of(const char *path)
{
	return (struct increment_config){
		.path = path, .verify = true, .news = fixture_on_news, .ctx = &news_fd};
}

static int update(const char *path, struct snapshot_progress *p, struct ft_err *err)
{
	struct increment_config config = config_of(path);

	return update_with(&config, p, err);
}

static uint64_t digest_of(const char *path)
{
	struct source source;
	uint64_t digest = 0;

	assert_ok(source_open(path, &source, err));
	assert_ok(source_digest(&source, &digest, err));
	source_close(&source);
	return digest;
}

/* Restores it into a machine that verifies what its program wrote into every page. */
static void assert_runs(const char *path)
{
	struct pocket_config config = {
		.name = "r", .uuid = FIXTURE_UUID, .memory_bytes = MEMORY, .program = POCKET_DIRTY};
	uint8_t *bytes = malloc(VMM_STATE_BYTES_MAX);
	struct source source;
	struct vmm *restored;
	size_t len;

	assert_ok(source_open(path, &source, err));
	assert_ok(pocket_arm(&config, &restored, err));
	assert_ok(source_restore(&source, vmm_image(restored), 2, err));
	assert_ok(source_state(&source, "pocket", bytes, &len, err));
	assert_ok(vmm_trial(restored, bytes, len, err));
	vmm_free(restored);
	source_close(&source);
	free(bytes);
}

static void every_round_is_the_pause(void **state)
{
	const char *path = strdup(file("s"));
	struct snapshot_progress p;
	uint64_t pause_us = 0;

	(void)state;
	assert_ok(whole(path, &p, err));
	for (unsigned round = 0; round < ROUNDS; round++) {
		fixture_wait_dirtied(vmm, 500);
		assert_ok(update(path, &p, err));
		assert_int_equal(digest_of(path), p.digest);
		assert_runs(path);
		assert_int_equal(fixture_files(), 1);
		pause_us = p.pause_us > pause_us ? p.pause_us : pause_us;
	}
	print_message("%d rounds, longest pause %llu us\n", ROUNDS, (unsigned long long)pause_us);
	free((void *)(uintptr_t)path);
}

/* What was not written since is neither read nor saved, for each of two files; a file that is not
 * known is compared. */
static void saves_what_was_written(void **state)
{
	struct snapshot_progress p;
	char path[2][128], line[300];

	(void)state;
	vmm_free(vmm);
	vmm = machine(200, 50);
	for (unsigned i = 0; i < 2; i++) {
		snprintf(path[i], sizeof path[i], "%s", file(i ? "a" : "b"));
		assert_ok(whole(path[i], &p, err));
	}
	/* The first update watches from now on, and compares all. */
	assert_ok(update(path[0], &p, err));
	assert_ok(update(path[1], &p, err));
	for (unsigned round = 0; round < 6; round++) {
		uint64_t before = pocket_dirtied(vmm);

		assert_ok(update(path[round % 2], &p, err));
		assert_int_equal(digest_of(path[round % 2]), p.digest);
		if (round >= 2)
			assert_true(p.pages_written < PAGES / 8);
		fixture_wait_dirtied(vmm, 20);
		assert_true(pocket_dirtied(vmm) - before < PAGES);
	}
	/* Somebody else wrote it: as an unknown one. */
	snprintf(line, sizeof line, "cp %s %s", path[0], path[1]);
	assert_int_equal(system(line), 0);
	assert_ok(update(path[1], &p, err));
	assert_int_equal(digest_of(path[1]), p.digest);
	assert_runs(path[1]);
}

static void cancel_leaves_the_old(void **state)
{
	struct increment_config config = config_of(file("s"));
	struct snapshot_progress p;
	struct increment *inc;
	struct ft_err error = {0};
	uint64_t old;

	(void)state;
	assert_ok(whole(config.path, &p, err));
	old = p.digest;
	fixture_wait_dirtied(vmm, 2000);
	config.bytes_per_s = 1 << 20;
	assert_ok(increment_begin(&config, vmm, &since, &inc, err));
	/* Nobody else may have the file meanwhile. */
	assert_int_equal(source_open(config.path, &(struct source){0}, &error), -EBUSY);
	increment_cancel(inc, "cancelled by an operator");
	while (increment_wants(inc) != INCREMENT_END)
		assert_true(fixture_heard(news_fd));
	assert_int_equal(increment_end(inc, &p, &error), -ECANCELED);
	assert_string_equal(error.text, "snapshot: cancelled by an operator");
	assert_int_equal(digest_of(config.path), old);
	assert_int_equal(fixture_files(), 1);
	/* And what was seen meanwhile is not forgotten. */
	assert_ok(update(config.path, &p, err));
	assert_int_equal(digest_of(config.path), p.digest);
}

static void refusals(void **state)
{
	struct snapshot_progress p;
	struct ft_err error = {0};
	struct source reader;
	struct vmm *other;
	char path[128];
	int fd;

	(void)state;
	snprintf(path, sizeof path, "%s", file("s"));
	assert_int_equal(update(path, &p, &error), -ENOENT);
	assert_ok(whole(path, &p, err));
	/* A guest that is restored from it still reads it. */
	assert_ok(source_open(path, &reader, err));
	assert_int_equal(update(path, &p, &error), -EBUSY);
	assert_non_null(strstr(error.text, "in use"));
	source_close(&reader);
	/* Of other memory. */
	other = vmm;
	assert_ok(pocket_start(&(struct pocket_config){.name = "o",
						       .uuid = FIXTURE_UUID,
						       .memory_bytes = MEMORY * 2,
						       .program = POCKET_DIRTY},
			       &vmm, err));
	assert_int_equal(update(path, &p, &error), -EINVAL);
	assert_non_null(strstr(error.text, "another machine"));
	vmm_free(vmm);
	vmm = other;
	fd = open(path, O_WRONLY);
	assert_int_equal(pwrite(fd, "x", 1, 0), 1);
	close(fd);
	assert_int_equal(update(path, &p, &error), -EBADMSG);
	assert_int_equal(fixture_files(), 1);
	/* The machine goes on whatever happens in the pause. */
	assert_ok(whole(path, &p, err));
	pocket_fault_next(vmm, POCKET_FAULT_SAVE);
	assert_int_equal(update(path, &p, &error), -EIO);
	fixture_wait_dirtied(vmm, 1000);
	assert_ok(update(path, &p, err));
	assert_int_equal(digest_of(path), p.digest);
}

/* First there is no room for the journal, then for what it would add to the file. */
static void no_room(void **state)
{
	struct snapshot_progress p;
	struct ft_err error = {0};
	struct vmm *full = vmm;
	char path[128], ballast[128];
	uint64_t old;
	unsigned failures = 0;

	(void)state;
	if (!has_small)
		skip();
	snprintf(path, sizeof path, "%s", file("s"));
	snprintf(ballast, sizeof ballast, "%s", file("ballast"));
	/* A snapshot of little, which is to become one of everything. */
	vmm = machine(200, 50);
	assert_ok(whole(path, &p, err));
	since_free(since);
	since = NULL;
	vmm_free(vmm);
	vmm = full;
	old = digest_of(path);
	for (unsigned mib = 60; mib >= 10; mib -= 5) {
		int fd = open(ballast, O_RDWR | O_CREAT | O_TRUNC, 0600), rc;

		assert_true(fd >= 0);
		rc = posix_fallocate(fd, 0, (off_t)mib << 20);
		close(fd);
		if (rc)
			continue;
		rc = update(path, &p, &error);
		if (!rc)
			break;
		assert_int_equal(rc, -ENOSPC);
		assert_non_null(strstr(error.text, "No space left"));
		assert_int_equal(digest_of(path), old);
		assert_int_equal(fixture_count(fixture_path("small")), 2);
		failures++;
	}
	assert_true(failures > 0);
	assert_int_equal(digest_of(path), p.digest);
	fixture_wait_dirtied(vmm, 1000);
}

/* The program that is killed: a machine of its own, with which it updates the snapshot again and
 * again. */
static int update_until_killed(const char *path)
{
	struct snapshot_progress p;
	struct ft_err error = {0};

	news_fd = fixture_listen();
	vmm = machine(PAGES_PER_S, PAGES / 4);
	for (;;) {
		(void)!write(STDOUT_FILENO, "u", 1);
		if (update(path, &p, &error))
			return 1;
	}
}

/* Whatever remains restores, and its RAM is that of one moment: the machine's own program says so.
 */
static void killed_at_any_moment(void **state)
{
	char path[128], journal[CHANGES_PATH_MAX];
	unsigned marked = 0, journals = 0;
	struct snapshot_progress p;

	(void)state;
	snprintf(path, sizeof path, "%s", file("k"));
	assert_ok(whole(path, &p, err));
	assert_true(update_journal_path(path, journal));
	srandom(1);
	for (unsigned round = 0; round < KILLS; round++) {
		int out[2], status, fd;
		char told;
		pid_t pid;

		assert_int_equal(pipe(out), 0);
		pid = fork();
		if (pid == 0) {
			dup2(out[1], STDOUT_FILENO);
			execl("/proc/self/exe", "writer", path, NULL);
			_exit(1);
		}
		close(out[1]);
		assert_int_equal(read(out[0], &told, 1), 1);
		poll(NULL, 0, (int)(random() % KILL_MS));
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFSIGNALED(status));
		close(out[0]);
		fd = open(path, O_RDONLY);
		marked += update_is_begun(fd);
		close(fd);
		journals += !access(journal, F_OK);
		assert_runs(path);
	}
	print_message("%d kills: %u left a journal, %u of them a file to be completed\n", KILLS,
		      journals, marked);
	assert_true(journals > 0);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(every_round_is_the_pause, setup, teardown),
		cmocka_unit_test_setup_teardown(saves_what_was_written, setup, teardown),
		cmocka_unit_test_setup_teardown(cancel_leaves_the_old, setup, teardown),
		cmocka_unit_test_setup_teardown(refusals, setup, teardown),
		cmocka_unit_test_setup_teardown(no_room, setup, teardown),
		cmocka_unit_test_setup_teardown(killed_at_any_moment, setup, teardown),
	};

	if (argc == 2)
		return update_until_killed(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
