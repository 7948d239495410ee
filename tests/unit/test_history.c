// SPDX-License-Identifier: Apache-2.0
// A history of a pocket machine that writes its memory: every checkpoint in it is what RAM was at
// its moment, however many went before it, whoever writes it dies at whatever step.
#include "tests/unit/snapshot_fixture.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/eventfd.h>

#include "vmm-glue/snapshot/history.h"
#include "vmm-glue/snapshot/increment.h"
#include "vmm-glue/snapshot/update.h"

#define PAGES_PER_S 20000
#define MEMORY	    (8ull << 20)
#define POINTS	    12
#define KEEP	    4
#define EPOCH(i)    (100 + (i))

static struct vmm *vmm;
static struct since *since;
static struct history *history;
static int news_fd;
static uint64_t digests[2 * POINTS + 1]; /* by sequence */
static unsigned keep;
static char dir[128];

static void on_news(void *ctx)
{
	(void)ctx;
	eventfd_write(news_fd, 1);
}

static int on_added(void *ctx, struct ft_err *err)
{
	(void)ctx;
	return history_added(history, keep, 0, err);
}

static struct vmm *machine(uint64_t bytes)
{
	struct vmm *made;

	assert_ok(pocket_start(&(struct pocket_config){.name = "g",
						       .uuid = FIXTURE_UUID,
						       .memory_bytes = bytes,
						       .program = POCKET_DIRTY,
						       .dirty_pages_per_s = PAGES_PER_S},
			       &made, err));
	fixture_wait_dirtied(made, 200);
	return made;
}

static void open_history(void)
{
	struct vmm_ram ram;

	assert_ok(history_open(dir, true, &history, err));
	vmm_ram(vmm, &ram);
	assert_ok(history_prepare(history, &ram, NULL, "pocket", err));
}

static int setup(void **state)
{
	(void)state;
	fixture_folder();
	fixture_small("200m");
	snprintf(dir, sizeof dir, "%s", fixture_path("small/h"));
	news_fd = eventfd(0, EFD_CLOEXEC);
	keep = KEEP;
	vmm = machine(MEMORY);
	open_history();
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	history_close(history);
	since_free(since);
	since = NULL;
	vmm_free(vmm);
	close(news_fd);
	fixture_remove();
	return 0;
}

/* Returns its sequence. */
static uint64_t keep_one(void)
{
	char path[CHANGES_PATH_MAX], last[CHANGES_PATH_MAX];
	struct disks_old old;
	struct increment_link link = {.path = path, .last = last, .added = on_added, .old = &old};
	struct increment_config config = {.link = &link, .verify = true, .news = on_news};
	struct pollfd p = {.fd = news_fd, .events = POLLIN};
	struct snapshot_progress progress;
	struct increment *inc;
	struct source from;
	eventfd_t n;

	assert_ok(history_next(history, &from, &old, &link.head, path, last, err));
	link.from = &from;
	assert_ok(increment_begin(&config, vmm, &since, &inc, err));
	source_close(&from);
	while (increment_wants(inc) != INCREMENT_END) {
		assert_int_equal(poll(&p, 1, FIXTURE_WAIT_MS), 1);
		eventfd_read(news_fd, &n);
		if (increment_wants(inc) != INCREMENT_MOMENT)
			continue;
		increment_stamp(inc, 1, EPOCH(link.head.sequence), 1000 * link.head.sequence);
		increment_moment(inc, vmm, NULL, 0);
	}
	assert_ok(increment_end(inc, &progress, err));
	digests[link.head.sequence] = progress.digest;
	fixture_wait_dirtied(vmm, 100);
	return link.head.sequence;
}

/* All of [first, last], each of them whole. */
static void assert_points(uint64_t first, uint64_t last)
{
	struct history_point points[HISTORY_MAX];
	unsigned n = history_points(history, points);
	uint8_t *bytes = malloc(VMM_STATE_BYTES_MAX);

	assert_int_equal(n, last - first + 1);
	for (unsigned i = 0; i < n; i++) {
		struct source s;
		uint64_t digest;
		size_t len;

		assert_int_equal(points[i].sequence, first + i);
		assert_int_equal(points[i].epoch, EPOCH(first + i));
		assert_ok(history_source(history, i, &s, err));
		assert_ok(source_digest(&s, &digest, err));
		assert_int_equal(digest, digests[first + i]);
		assert_ok(source_state(&s, "pocket", bytes, &len, err));
		source_close(&s);
	}
	free(bytes);
}

static void reopen(void)
{
	history_close(history);
	open_history();
}

static void kept_and_dropped(void **state)
{
	uint64_t n = 0;

	(void)state;
	for (unsigned i = 0; i < POINTS; i++) {
		n = keep_one();
		assert_int_equal(n, i + 1);
		assert_points(n > KEEP ? n - KEEP + 1 : 1, n);
	}
	/* Each of them is small, and so is all of them. */
	reopen();
	assert_points(n - KEEP + 1, n);
	/* Fewer from now on. */
	keep = 2;
	n = keep_one();
	assert_points(n - 1, n);
	keep = 1;
	n = keep_one();
	assert_points(n, n);
}

/* Memory of the one before the last, and its device state, make a machine that runs. */
static void restores(void **state)
{
	struct pocket_config config = {
		.name = "r", .uuid = FIXTURE_UUID, .memory_bytes = MEMORY, .program = POCKET_DIRTY};
	uint8_t *bytes = malloc(VMM_STATE_BYTES_MAX);
	struct history *reader;
	struct source s;
	struct vmm *restored;
	struct ft_err error;
	size_t len;

	(void)state;
	for (unsigned i = 0; i < KEEP + 2; i++)
		(void)keep_one();
	assert_int_equal(history_open(dir, false, &reader, &error), -EBUSY);
	history_close(history);
	assert_ok(history_open(dir, false, &reader, err));
	for (unsigned i = 0; i < KEEP; i++) {
		assert_ok(history_source(reader, i, &s, err));
		assert_ok(pocket_arm(&config, &restored, err));
		assert_ok(source_restore(&s, vmm_image(restored), 2, err));
		assert_ok(source_state(&s, "pocket", bytes, &len, err));
		/* Its program verifies what it wrote into every page. */
		assert_ok(vmm_trial(restored, bytes, len, err));
		vmm_free(restored);
		source_close(&s);
	}
	history_close(reader);
	free(bytes);
	open_history();
}

static void rename_in(const char *from, const char *to)
{
	char a[256], b[256];

	snprintf(a, sizeof a, "%s/%s", dir, from);
	snprintf(b, sizeof b, "%s/%s", dir, to);
	assert_int_equal(rename(a, b), 0);
}

static const char *link_name(uint64_t sequence)
{
	static char name[64];

	snprintf(name, sizeof name, "%020" PRIu64 ".changes", sequence);
	return name;
}

/* What is left when the oldest was on its way into base. */
static void interrupted(void **state)
{
	char path[512];
	uint8_t mark[CHANGES_MARK_BYTES];
	struct history *reader;
	struct changes c;
	uint64_t n = 0;
	int fd;

	(void)state;
	keep = 100;
	for (unsigned i = 0; i < 6; i++)
		n = keep_one();
	assert_points(1, n);
	/* Renamed, and nothing more. */
	history_close(history);
	rename_in(link_name(1), "base.journal");
	open_history();
	assert_points(1, n);
	/* Marked, and some of it is garbage. */
	history_close(history);
	rename_in(link_name(2), "base.journal");
	snprintf(path, sizeof path, "%s/base.journal", dir);
	assert_ok(changes_open(path, &c, err));
	snprintf(path, sizeof path, "%s/base", dir);
	fd = open(path, O_RDWR);
	changes_mark(c.head.id, mark);
	assert_int_equal(pwrite(fd, mark, sizeof mark, 0), sizeof mark);
	for (uint64_t i = 0, hash; i < c.head.pages_n; i += 2)
		assert_int_equal(pwrite(fd, "garbage", 7,
					(off_t)(c.head.pages_offset +
						changes_page(c.index, i, &hash) * VMM_PAGE_BYTES)),
				 7);
	close(fd);
	changes_end(&c);
	/* A reader completes it too. */
	assert_ok(history_open(dir, false, &reader, err));
	history_close(reader);
	open_history();
	assert_points(2, n);
	/* All done but for the removal of the journal. */
	history_close(history);
	snprintf(path, sizeof path, "cp %s/%s %s/base.journal", dir, link_name(3), dir);
	assert_int_equal(system(path), 0);
	open_history();
	assert_points(3, n);
}

/* A link that is cut off, damaged or missing ends the row; and the next one goes on from there. */
static void torn(void **state)
{
	char path[256];
	struct stat st;
	uint64_t n = 0;
	int fd;

	(void)state;
	keep = 100;
	for (unsigned i = 0; i < 6; i++)
		n = keep_one();
	snprintf(path, sizeof path, "%s/%s", dir, link_name(n));
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(truncate(path, st.st_size - 1), 0);
	reopen();
	assert_points(1, n - 1);
	assert_int_equal(access(path, F_OK), -1);
	snprintf(path, sizeof path, "%s/%s", dir, link_name(n - 2));
	fd = open(path, O_RDWR);
	assert_int_equal(pwrite(fd, "x", 1, 20), 1);
	close(fd);
	reopen();
	assert_points(1, n - 3);
	since_free(since);
	since = NULL;
	assert_int_equal(keep_one(), n - 2);
	assert_points(1, n - 2);
}

/* Of another guest: begins anew. */
static void of_other_memory(void **state)
{
	struct vmm *first = vmm;

	(void)state;
	(void)keep_one();
	history_close(history);
	vmm = machine(2 * MEMORY);
	open_history();
	assert_int_equal(keep_one(), 1);
	assert_points(1, 1);
	vmm_free(first);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(kept_and_dropped, setup, teardown),
		cmocka_unit_test_setup_teardown(restores, setup, teardown),
		cmocka_unit_test_setup_teardown(interrupted, setup, teardown),
		cmocka_unit_test_setup_teardown(torn, setup, teardown),
		cmocka_unit_test_setup_teardown(of_other_memory, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
