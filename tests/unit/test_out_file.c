// SPDX-License-Identifier: Apache-2.0
// Where a snapshot cannot be written: a clear error, before the guest is touched, and nothing left.
#include "tests/unit/snapshot_fixture.h"

#include <errno.h>
#include "vmm-glue/snapshot/out_file.h"

#define BYTES (64ull << 20)

static void read_only_folder(void **state)
{
	struct ft_err error = {0};
	struct out_file file;

	(void)state;
	if (!fixture_small("8m"))
		skip();
	assert_int_equal(
		mount("none", fixture_path("small"), "tmpfs", MS_REMOUNT | MS_RDONLY, NULL), 0);
	assert_int_equal(out_file_open(&file, fixture_path("small/s"), BYTES, false, &error),
			 -EROFS);
	assert_non_null(strstr(error.text, "small/s: Read-only file system"));
}

static void no_direct_io(void **state)
{
	struct ft_err error = {0};
	struct out_file file;

	(void)state;
	if (mkdir(fixture_path("small"), 0700) || unshare(CLONE_NEWNS) ||
	    mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("none", fixture_path("small"), "ramfs", 0, NULL))
		skip();
	assert_int_equal(out_file_open(&file, fixture_path("small/s"), BYTES, true, &error),
			 -ENOTSUP);
	assert_non_null(strstr(error.text, "has no direct I/O"));
	assert_int_equal(fixture_count(fixture_path("small")), 0);
	assert_ok(out_file_open(&file, fixture_path("small/s"), BYTES, false, err));
	out_file_discard(&file);
	assert_int_equal(fixture_count(fixture_path("small")), 0);
}

/* A filesystem that writes zeroes where others have holes, as vfat: this kernel may have none. */
static bool no_holes;
int __real_fstat(int fd, struct stat *st);
int __wrap_fstat(int fd, struct stat *st);

int __wrap_fstat(int fd, struct stat *st)
{
	int rc = __real_fstat(fd, st);

	if (!rc && no_holes)
		st->st_blocks = (st->st_size + 511) / 512;
	return rc;
}

static void without_holes(void **state)
{
	struct ft_err error = {0};
	struct out_file file;

	(void)state;
	no_holes = true;
	assert_int_equal(out_file_open(&file, fixture_path("s"), BYTES, false, &error), -ENOTSUP);
	no_holes = false;
	assert_non_null(strstr(error.text, "has no holes"));
	assert_int_equal(fixture_files(), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(read_only_folder, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(no_direct_io, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(without_holes, fixture_setup, fixture_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
