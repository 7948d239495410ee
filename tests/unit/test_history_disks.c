// SPDX-License-Identifier: Apache-2.0
// A history with disks: each checkpoint that is kept has the memory and the disks of its epoch,
// however many went before it, and what they take is bounded.
#include "tests/unit/dies_at_step.h"
#include "tests/unit/standby_with_disks.h"

#include <sys/wait.h>

#include "vmm-glue/snapshot/history.h"

#define KEEP 4

static struct history *history;
static char dir[128];
static uint64_t bound; /* bytes, 0: none */

static int on_added(void *ctx, struct ft_err *err)
{
	(void)ctx;
	return history_added(history, KEEP, bound, err);
}

static void open_history(void)
{
	struct companions disks = {.n = DISKS};
	struct vmm_ram ram;

	for (unsigned i = 0; i < DISKS; i++) {
		snprintf(disks.disks[i].id, sizeof disks.disks[i].id, "%s", ids[i]);
		disks.disks[i].bytes = DISK_BYTES;
	}
	assert_ok(history_open(dir, true, &history, err));
	vmm_ram(vmm, &ram);
	assert_ok(history_prepare(history, &ram, &disks, "pocket", err));
}

static void keep_one(struct snapshot_progress *p)
{
	char file[CHANGES_PATH_MAX], last[CHANGES_PATH_MAX];
	struct disks_config disks = disks_config();
	struct disks_old old;
	struct source from;
	struct increment_link link = {
		.from = &from, .old = &old, .path = file, .last = last, .added = on_added};
	struct increment_config config = {
		.link = &link, .disks = &disks, .verify = true, .is_image = true, .news = on_news};
	struct increment *inc;

	assert_ok(history_next(history, &from, &old, &link.head, file, last, err));
	pthread_mutex_lock(&lock);
	assert_ok(increment_begin(&config, vmm, &since, &inc, err));
	pthread_mutex_unlock(&lock);
	disks_old_close(&old);
	source_close(&from);
	assert_ok(run(inc, p, err));
}

/* All that are kept, each of them whole and of its epoch. */
static unsigned assert_points(void)
{
	struct history_point points[HISTORY_MAX];
	unsigned n = history_points(history, points);

	for (unsigned i = 0; i < n; i++) {
		struct source s;

		assert_ok(history_source(history, i, &s, err));
		assert_int_equal(assert_of_one_moment(&s), points[i].epoch);
		source_close(&s);
	}
	return n;
}

static void history_has_disks(void **state)
{
	struct history_point points[HISTORY_MAX];
	struct snapshot_progress p;

	(void)state;
	snprintf(dir, sizeof dir, "%s", fixture_path(has_small ? "small/h" : "h"));
	bound = 0;
	open_history();
	for (unsigned i = 0; i < 2 * KEEP; i++) {
		keep_one(&p);
		/* The first one is all there is; from then on it is known what was written. */
		assert_int_equal(p.disks.unknown, i ? 0 : DISKS);
		assert_int_equal(assert_points(), i < KEEP ? i + 1 : KEEP);
		wait_written(50);
	}
	/* base, its point and its disks, the lock, and each link with its disks */
	assert_int_equal(fixture_count(dir), 3 + DISKS + (KEEP - 1) * (1 + DISKS));
	history_close(history);
	open_history();
	assert_int_equal(assert_points(), KEEP);
	/* What it takes is bounded, and disks count. */
	bound = MEMORY + DISKS * DISK_BYTES;
	keep_one(&p);
	assert_in_range(assert_points(), 1, KEEP - 1);
	(void)history_points(history, points);
	assert_true(points[0].bytes > DISKS * DISK_BYTES / 4);
	history_close(history);
}

#define EPOCHS_MAX 20 /* that the writer made before it was stopped are fewer */
#define STRIDE	   (5 * STEP_STRIDE)

/* The program that dies while it keeps one, for which the oldest goes; 0: it did not. */
static int keep_until_step(const char *folder, const char *to, unsigned steps)
{
	struct snapshot_progress p;

	snprintf(dir, sizeof dir, "%s", to);
	open_world(folder);
	stop_writing();
	open_history();
	for (unsigned i = 0; i < KEEP; i++) {
		write_epochs_up_to((EPOCHS_MAX + i) * BATCH);
		keep_one(&p);
	}
	write_epochs_up_to((EPOCHS_MAX + KEEP) * BATCH);
	steps_left = steps;
	keep_one(&p);
	return 0;
}

static int run_until_step(unsigned steps)
{
	char text[16];
	int status;
	pid_t pid;

	snprintf(text, sizeof text, "%u", steps);
	pid = fork();
	if (pid == 0) {
		execl("/proc/self/exe", "writer", fixture_path("fast/child"), dir, text, NULL);
		_exit(1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

/* What was kept is there, but the oldest may have gone, and the newest may have come. */
static void dies_at_every_step(void **state)
{
	unsigned steps = 0, merging = 0, olds = 0;
	int code = DIED;

	(void)state;
	snprintf(dir, sizeof dir, "%s", fixture_path(has_small ? "small/h" : "h"));
	assert_int_equal(mkdir(fixture_path("fast/child"), 0700), 0);
	while (code == DIED) {
		struct history_point points[HISTORY_MAX];
		char line[300];
		unsigned n;

		code = run_until_step(steps += STRIDE);
		assert_true(code == DIED || code == 0);
		merging += !access(fixture_path("small/h/base.journal"), F_OK);
		open_history();
		n = assert_points();
		(void)history_points(history, points);
		assert_in_range(points[0].epoch, EPOCHS_MAX * BATCH, (EPOCHS_MAX + 1) * BATCH);
		assert_in_range(points[n - 1].epoch, (EPOCHS_MAX + KEEP - 1) * BATCH,
				(EPOCHS_MAX + KEEP) * BATCH);
		for (unsigned i = 1; i < n; i++)
			assert_int_equal(points[i].epoch, points[i - 1].epoch + BATCH);
		olds += points[n - 1].epoch == (EPOCHS_MAX + KEEP - 1) * BATCH;
		history_close(history);
		snprintf(line, sizeof line, "rm -r %s", dir);
		assert_int_equal(system(line), 0);
	}
	print_message(
		"%u steps, before %u of those tried it was kept, at %u the oldest was going\n",
		steps, olds, merging);
	assert_true((olds > 2 || STEP_STRIDE > 1) && merging * STEP_STRIDE > 10);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(history_has_disks, setup, teardown),
		cmocka_unit_test_setup_teardown(dies_at_every_step, setup, teardown),
	};

	if (argc == 4)
		return keep_until_step(argv[1], argv[2], (unsigned)atoi(argv[3]));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
