// SPDX-License-Identifier: Apache-2.0
// Snapshots with disks that are updated in place: memory and all disks are of one moment, whoever
// is killed at whatever step, and whatever room there is.
#include "tests/unit/dies_at_step.h"
#include "tests/unit/standby_with_disks.h"

#include <signal.h>
#include <sys/wait.h>

#include "vmm-glue/snapshot/update.h"

#define ROUNDS	12
#define KILLS	20
#define KILL_MS 200

// ---- snapshots, whole and updated

static int whole(struct ft_err *err)
{
	struct snapshot_config config = {
		.path = path, .jobs = 2, .verify = true, .done = on_news, .stall_max_ms = STALL_MS};
	struct disks_config disks = disks_config();
	struct snapshot_progress p;
	struct snapshot *s;
	uint8_t state[64];
	int rc;

	since_free(since);
	since = NULL;
	pthread_mutex_lock(&lock);
	state_now(state);
	rc = disks_open(&disks, &config.disks, err);
	if (!rc)
		rc = snapshot_begin_image(&config, vmm, state, sizeof state, &s, err);
	pthread_mutex_unlock(&lock);
	if (rc)
		return rc;
	wait_news();
	pthread_mutex_lock(&lock);
	rc = snapshot_end(s, &p, err);
	pthread_mutex_unlock(&lock);
	return rc;
}

static int update(struct snapshot_progress *p, struct ft_err *err)
{
	struct disks_config disks = disks_config();
	struct increment_config config = {
		.path = path, .disks = &disks, .verify = true, .is_image = true, .news = on_news};
	struct increment *inc;
	int rc;

	pthread_mutex_lock(&lock);
	rc = increment_begin(&config, vmm, &since, &inc, err);
	pthread_mutex_unlock(&lock);
	return rc ? rc : run(inc, p, err);
}

static uint64_t assert_whole(void)
{
	struct source s;
	uint64_t n;

	assert_ok(source_open(path, &s, err));
	n = assert_of_one_moment(&s);
	source_close(&s);
	return n;
}

// ---- tests

static void every_update_is_its_moment(void **state)
{
	struct snapshot_progress p;
	uint64_t before = 0, n;

	(void)state;
	assert_ok(whole(err));
	(void)assert_whole();
	for (unsigned round = 0; round < ROUNDS; round++) {
		wait_written(100);
		assert_ok(update(&p, err));
		assert_int_equal(p.disks.unknown, 0);
		n = assert_whole();
		assert_true(n > before);
		before = n;
		assert_int_equal(fixture_count(fixture_path("small")), 1 + DISKS);
	}
}

static void touch_images(void)
{
	struct companions c;
	struct source s;

	assert_ok(source_open(path, &s, err));
	assert_ok(companions_open(&s, &c, err));
	for (unsigned i = 0; i < DISKS; i++) {
		char image[CHANGES_PATH_MAX];
		uint8_t page[VMM_PAGE_BYTES];
		int fd;

		assert_ok(companions_path(path, &c.disks[i], image, err));
		fd = open(image, O_RDWR);
		assert_int_equal(pread(fd, page, sizeof page, 1 << 20), sizeof page);
		page[77] ^= 1;
		assert_int_equal(pwrite(fd, page, sizeof page, 1 << 20), sizeof page);
		close(fd);
	}
	companions_close(&c);
	source_close(&s);
}

/* Only what was written since is looked at and saved; where nobody knows, all is compared, and
 * little is saved all the same. */
static void saves_what_was_written(void **state)
{
	struct snapshot_progress p;

	(void)state;
	assert_ok(whole(err));
	assert_ok(update(&p, err));
	stop_writing();
	assert_ok(update(&p, err));
	assert_ok(update(&p, err));
	assert_int_equal(p.disks.bytes_written, 0);
	assert_int_equal(p.disks.unknown, 0);
	pthread_mutex_lock(&lock);
	write_epoch();
	pthread_mutex_unlock(&lock);
	assert_ok(update(&p, err));
	assert_in_range(p.disks.bytes_written, 1, BATCH * (WRITE_MAX + 2 * VMM_PAGE_BYTES));
	(void)assert_whole();
	/* Another agent, or this one in another life. */
	disks_since_free(disks_since);
	disks_since = disks_since_new();
	free_stores();
	open_stores();
	assert_ok(update(&p, err));
	assert_int_equal(p.disks.unknown, DISKS);
	assert_in_range(p.disks.bytes_written, 1, BATCH * (WRITE_MAX + 2 * VMM_PAGE_BYTES));
	(void)assert_whole();
	/* Somebody has touched an image of the snapshot's: it is not what is known. */
	touch_images();
	assert_ok(update(&p, err));
	assert_int_equal(p.disks.unknown, DISKS);
	assert_int_equal(p.disks.bytes_written, DISKS * VMM_PAGE_BYTES);
	(void)assert_whole();
	stop = false;
	assert_int_equal(pthread_create(&writer, NULL, write_on, NULL), 0);
}

static void refusals(void **state)
{
	struct disks_config disks = disks_config();
	struct increment_config config = {
		.path = path, .verify = true, .is_image = true, .news = on_news};
	struct ft_err error = {0};
	struct increment *inc;
	uint64_t n;

	(void)state;
	assert_ok(whole(err));
	n = assert_whole();
	/* Without its disks, with fewer, with others. */
	pthread_mutex_lock(&lock);
	assert_int_equal(increment_begin(&config, vmm, &since, &inc, &error), -EINVAL);
	assert_non_null(strstr(error.text, "has 2 disks, and 0 are to be saved"));
	config.disks = &disks;
	disks.n = 1;
	assert_int_equal(increment_begin(&config, vmm, &since, &inc, &error), -EINVAL);
	disks.n = DISKS;
	disks.disks[1].id = "other";
	assert_int_equal(increment_begin(&config, vmm, &since, &inc, &error), -EINVAL);
	assert_non_null(strstr(error.text, "has no disk other"));
	pthread_mutex_unlock(&lock);
	assert_int_equal(assert_whole(), n);
	assert_int_equal(fixture_count(fixture_path("small")), 1 + DISKS);
}

/* No room: first for the journals, then for what they would add to the files. */
static void no_room(void **state)
{
	struct snapshot_progress p;
	struct ft_err error = {0};
	char ballast[128];
	unsigned failures = 0;
	uint64_t n;

	(void)state;
	if (!has_small)
		skip();
	snprintf(ballast, sizeof ballast, "%s", fixture_path("small/ballast"));
	assert_ok(whole(err));
	wait_written(2000);
	n = assert_whole();
	for (unsigned kib = 59 << 10; kib >= 256; kib -= 512) {
		int fd = open(ballast, O_RDWR | O_CREAT | O_TRUNC, 0600), rc;

		assert_true(fd >= 0);
		rc = posix_fallocate(fd, 0, (off_t)kib << 10);
		close(fd);
		if (rc)
			continue;
		rc = update(&p, &error);
		if (!rc)
			break;
		assert_int_equal(rc, -ENOSPC);
		assert_non_null(strstr(error.text, "No space left"));
		assert_int_equal(assert_whole(), n);
		assert_int_equal(fixture_count(fixture_path("small")), 2 + DISKS);
		failures++;
	}
	print_message("%u times there was no room\n", failures);
	assert_true(failures > 2);
	assert_true(assert_whole() > n);
}

/* The program that is killed: a standby of its own, which updates the snapshot again and again. */
static int update_until_killed(const char *folder, const char *file)
{
	struct snapshot_progress p;
	struct ft_err error = {0};

	snprintf(path, sizeof path, "%s", file);
	open_world(folder);
	for (;;) {
		(void)!write(STDOUT_FILENO, "u", 1);
		if (update(&p, &error)) {
			fprintf(stderr, "%s\n", error.text);
			return 1;
		}
	}
}

static void killed_at_any_moment(void **state)
{
	char journal[CHANGES_PATH_MAX];
	unsigned marked = 0, journals = 0;

	(void)state;
	assert_ok(whole(err));
	assert_true(update_journal_path(path, journal));
	assert_int_equal(mkdir(fixture_path("fast/child"), 0700), 0);
	srandom(3);
	for (unsigned round = 0; round < KILLS; round++) {
		int out[2], status, fd;
		char told;
		pid_t pid;

		assert_int_equal(pipe(out), 0);
		pid = fork();
		if (pid == 0) {
			dup2(out[1], STDOUT_FILENO);
			execl("/proc/self/exe", "writer", fixture_path("fast/child"), path, NULL);
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
		(void)assert_whole();
	}
	print_message("%d kills: %u left a journal, %u of them files to be completed\n", KILLS,
		      journals, marked);
	assert_true(journals > 0);
}

// ---- whoever writes dies before his n-th write, or sync, of an update

#define FIRST  (50 * BATCH) /* the writer's, before it was stopped, are fewer */
#define SECOND (FIRST + 3 * BATCH)

/* The program that dies: 0: it did not, and the update is complete. */
static int update_until_step(const char *folder, const char *file, unsigned steps)
{
	struct snapshot_progress p;
	struct ft_err error = {0};

	snprintf(path, sizeof path, "%s", file);
	open_world(folder);
	stop_writing();
	write_epochs_up_to(FIRST);
	if (update(&p, &error))
		return 1;
	write_epochs_up_to(SECOND);
	steps_left = steps;
	return update(&p, &error) ? 1 : 0;
}

static void dies_at_every_step(void **state)
{
	unsigned marked = 0, step_n = 0, news = 0;
	int status = -1;

	(void)state;
	assert_ok(whole(err));
	assert_int_equal(mkdir(fixture_path("fast/child"), 0700), 0);
	while (status != 0) {
		char text[16];
		uint64_t n;
		pid_t pid;
		int fd;

		snprintf(text, sizeof text, "%u", step_n += STEP_STRIDE);
		pid = fork();
		if (pid == 0) {
			execl("/proc/self/exe", "writer", fixture_path("fast/child"), path, text,
			      NULL);
			_exit(1);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFEXITED(status));
		assert_true(WEXITSTATUS(status) == DIED || WEXITSTATUS(status) == 0);
		fd = open(path, O_RDONLY);
		marked += update_is_begun(fd);
		close(fd);
		n = assert_whole();
		assert_true(n == FIRST || n == SECOND);
		assert_true(n == SECOND || !news); /* there is one step that makes it */
		news += n == SECOND;
	}
	print_message("%u steps, at %u of them files were to be completed\n", step_n, marked);
	assert_true(marked * STEP_STRIDE > 5);
	assert_true(news > marked);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(every_update_is_its_moment, setup, teardown),
		cmocka_unit_test_setup_teardown(saves_what_was_written, setup, teardown),
		cmocka_unit_test_setup_teardown(refusals, setup, teardown),
		cmocka_unit_test_setup_teardown(no_room, setup, teardown),
		cmocka_unit_test_setup_teardown(killed_at_any_moment, setup, teardown),
		cmocka_unit_test_setup_teardown(dies_at_every_step, setup, teardown),
	};

	if (argc == 3)
		return update_until_killed(argv[1], argv[2]);
	if (argc == 4)
		return update_until_step(argv[1], argv[2], (unsigned)atoi(argv[3]));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
