// SPDX-License-Identifier: Apache-2.0
// The pages that a guest touched first: what is written is read, what was not written by us is
// refused and changes nothing, and a lazy restore leaves one from which the next reads ahead.
#include "tests/unit/snapshot_fixture.h"

#include <errno.h>

#include "ft/file_io.h"
#include "vmm-glue/snapshot/lazy.h"
#include "vmm-glue/snapshot/snapshot.h"
#include "vmm-glue/snapshot/source.h"
#include "vmm-glue/snapshot/working_set.h"

#define PAGES  8192
#define TRIES  20
#define MEMORY (PAGES * (uint64_t)VMM_PAGE_BYTES)

static void written_and_read(void **state)
{
	const char *path = fixture_path("s");
	struct working_set a, b;

	(void)state;
	assert_int_equal(working_set_init(&a, PAGES), 0);
	assert_int_equal(working_set_init(&b, PAGES / 2), 0);
	assert_true(working_set_add(&a, PAGES - 1));
	assert_true(working_set_add(&a, 33));
	assert_false(working_set_add(&a, 32 + WORKING_SET_PAGES - 1));
	assert_true(working_set_add(&a, 0));
	assert_false(working_set_add(&a, PAGES));
	assert_ok(working_set_save(&a, path, err));
	/* Of a larger guest: what this one does not have is left out. */
	assert_ok(working_set_load(&b, path, err));
	assert_int_equal(b.n, 2);
	assert_int_equal(b.pfns[0], 32);
	assert_int_equal(b.pfns[1], 0);
	working_set_free(&a);
	working_set_free(&b);
	assert_int_equal(fixture_files(), 1);
}

static void assert_refused(const char *path, int code)
{
	struct working_set ws;
	struct ft_err error = {0};

	assert_int_equal(working_set_init(&ws, PAGES), 0);
	assert_int_equal(working_set_load(&ws, path, &error), code);
	assert_int_equal(ws.n, 0);
	assert_non_null(strstr(error.text, ".ws: "));
	working_set_free(&ws);
}

static void refused(void **state)
{
	const char *path = fixture_path("s"), *name = fixture_path("s.ws");
	uint8_t bytes[16 + 2 * 8 + 8];
	struct working_set ws;
	int fd;

	(void)state;
	assert_refused(path, -ENOENT);
	assert_int_equal(working_set_init(&ws, PAGES), 0);
	working_set_add(&ws, 5);
	working_set_add(&ws, 500);
	assert_ok(working_set_save(&ws, path, err));
	working_set_free(&ws);
	fd = open(name, O_RDWR);
	assert_int_equal(file_read(fd, bytes, sizeof bytes, 0), 0);
	for (unsigned i = 0; i < sizeof bytes; i++) {
		bytes[i] ^= 1;
		assert_int_equal(file_write(fd, bytes, sizeof bytes, 0), 0);
		assert_refused(path, -EBADMSG);
		bytes[i] ^= 1;
	}
	assert_int_equal(file_write(fd, bytes, sizeof bytes, 0), 0);
	for (off_t len = 0; len < (off_t)sizeof bytes; len++) {
		assert_int_equal(ftruncate(fd, len), 0);
		assert_refused(path, -EBADMSG);
	}
	assert_int_equal(ftruncate(fd, (off_t)1 << 40), 0);
	assert_refused(path, -EBADMSG);
	close(fd);
	unlink(name);
	assert_int_equal(mkdir(name, 0700), 0);
	assert_refused(path, -EBADMSG);
	assert_int_equal(rmdir(name), 0);
}

static void save(const char *path, int done)
{
	struct snapshot_config config = {
		.path = path, .jobs = 1, .done = fixture_on_news, .ctx = &done};
	struct snapshot_progress p;
	struct snapshot *s;
	struct vmm *vmm;

	assert_ok(pocket_start(&(struct pocket_config){.name = "g",
						       .uuid = FIXTURE_UUID,
						       .memory_bytes = MEMORY,
						       .program = POCKET_DIRTY,
						       .dirty_pages_per_s = 20000},
			       &vmm, err));
	fixture_wait_dirtied(vmm, PAGES / 2);
	assert_ok(snapshot_begin(&config, vmm, &s, err));
	assert_true(fixture_heard(done));
	assert_ok(snapshot_end(s, &p, err));
	vmm_free(vmm);
}

static struct lazy_stats restore(const char *path, int done)
{
	struct pocket_config config = {
		.name = "r", .uuid = FIXTURE_UUID, .memory_bytes = MEMORY, .program = POCKET_DIRTY};
	uint8_t *bytes = malloc(VMM_STATE_BYTES_MAX);
	struct lazy_stats stats;
	struct source source;
	struct vmm_ram ram;
	struct vmm *vmm;
	struct lazy *l;
	uint64_t last = 0;
	size_t len;

	assert_ok(source_open(path, &source, err));
	assert_ok(source_state(&source, "pocket", bytes, &len, err));
	assert_ok(pocket_arm(&config, &vmm, err));
	vmm_ram(vmm, &ram);
	assert_ok(source_empty(&ram, err));
	for (uint64_t pfn = 0; pfn < PAGES; pfn++)
		last = source_has(&source, pfn) ? pfn : last;
	assert_ok(lazy_begin(&source, &ram, fixture_on_news, &done, &l, err));
	/* The end of the file comes last, unless somebody touches it. */
	(void)*(volatile uint8_t *)(vmm_image(vmm) + last * VMM_PAGE_BYTES);
	/* Its program looks at all that it wrote. */
	assert_ok(vmm_resume(vmm, bytes, len, err));
	assert_true(fixture_heard(done));
	lazy_stats(l, &stats);
	assert_ok(lazy_end(l, err));
	assert_int_equal(stats.pages_done, stats.pages);
	fixture_wait_dirtied(vmm, 1);
	vmm_free(vmm);
	source_close(&source);
	free(bytes);
	return stats;
}

static void read_ahead(void **state)
{
	const char *path = fixture_path("s");
	int done = fixture_listen();
	struct working_set ws;
	struct lazy_stats stats = {0};

	(void)state;
	save(path, done);
	/* On a busy machine all may be there before anybody waits for it. */
	for (unsigned i = 0; access(fixture_path("s.ws"), F_OK); i++) {
		assert_true(i < TRIES);
		stats = restore(path, done);
		assert_int_equal(stats.ahead, 0);
	}
	assert_int_equal(working_set_init(&ws, PAGES), 0);
	assert_ok(working_set_load(&ws, path, err));
	assert_true(ws.n > 0 && ws.n <= stats.faults);
	stats = restore(path, done);
	assert_int_equal(stats.ahead, ws.n);
	working_set_free(&ws);
	/* One that makes no sense is no obstacle. */
	assert_int_equal(truncate(fixture_path("s.ws"), 20), 0);
	assert_int_equal(restore(path, done).ahead, 0);
	close(done);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(written_and_read, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(refused, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(read_ahead, fixture_setup, fixture_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
