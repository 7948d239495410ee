// SPDX-License-Identifier: Apache-2.0
// What a snapshot's file says of its disks, hostile ones included; which files beside it are those
// of a set before; and what is done to an image that a disk is put into.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "eventtap/block/metadata.h"
#include "tests/unit/snapshot_fixture.h"
#include "vmm-glue/snapshot/companions.h"
#include "vmm-glue/snapshot/disks_folder.h"

#define BYTES	(4u << 20)
#define DATA_AT (1u << 20)

// ---- the description

static void described_is_parsed(void **state)
{
	struct companions c = {.n = 2,
			       .disks = {{.id = "root", .file = "s.root.1.raw", .bytes = 512},
					 {.id = "da/ta \"1\"",
					  .file = "s.disk1.1.raw",
					  .bytes = 1ull << 40}}},
			  again;
	char *text = companions_describe(&c);

	(void)state;
	assert_non_null(text);
	assert_int_equal(text[0], '{');
	assert_ok(companions_parse(text, strlen(text), &again, err));
	assert_int_equal(again.n, 2);
	for (unsigned i = 0; i < 2; i++) {
		assert_string_equal(again.disks[i].id, c.disks[i].id);
		assert_string_equal(again.disks[i].file, c.disks[i].file);
		assert_true(again.disks[i].bytes == c.disks[i].bytes);
	}
	assert_ptr_equal(companions_find(&again, "root"), &again.disks[0]);
	assert_null(companions_find(&again, "r"));
	free(text);
}

#define DISK(id, bytes, file) "{\"id\": " id ", \"bytes\": " bytes ", \"file\": " file "}"
#define DISKS(list)	      "{\"kemari-disks\": [" list "]}"

static void hostile_descriptions(void **state)
{
	static const char *const bad[] = {
		"{\"kemari-disks\": 5}",
		"{\"kemari-disks\": {}}",
		DISKS("5"),
		DISKS("{}"),
		DISKS(DISK("\"a\"", "512", "\"../passwd\"")),
		DISKS(DISK("\"a\"", "512", "\"/etc/passwd\"")),
		DISKS(DISK("\"a\"", "512", "\"x/../../y\"")),
		DISKS(DISK("\"a\"", "512", "\".hidden\"")),
		DISKS(DISK("\"a\"", "512", "\"..\"")),
		DISKS(DISK("\"a\"", "512", "\"\"")),
		DISKS(DISK("\"a\"", "512", "\"a\\nb\"")),
		DISKS(DISK("\"\"", "512", "\"f\"")),
		DISKS(DISK("\"a\"", "0", "\"f\"")),
		DISKS(DISK("\"a\"", "-1", "\"f\"")),
		DISKS(DISK("\"a\"", "1.5", "\"f\"")),
		DISKS(DISK("5", "512", "\"f\"")),
		DISKS(DISK("\"a\"", "512", "\"f\"") "," DISK("\"a\"", "512", "\"g\"")),
		DISKS(DISK("\"a\"", "512", "\"f\"") "," DISK("\"b\"", "512", "\"f\"")),
	};
	/* Of a QEMU, or of nobody. */
	static const char *const other[] = {"{}", "", "{", "[]", "{\"page_size\": 4096}", "\xff"};
	char many[4096] = "{\"kemari-disks\": [", one[96];
	struct companions c;

	(void)state;
	for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++)
		if (companions_parse(bad[i], strlen(bad[i]), &c, &(struct ft_err){0}) != -EBADMSG)
			fail_msg("taken: %s", bad[i]);
	for (unsigned i = 0; i < sizeof other / sizeof *other; i++) {
		assert_ok(companions_parse(other[i], strlen(other[i]), &c, err));
		assert_int_equal(c.n, 0);
	}
	for (unsigned i = 0; i <= VMM_DISKS_MAX; i++) {
		snprintf(one, sizeof one, "%s{\"id\": \"%u\", \"bytes\": 1, \"file\": \"%u\"}",
			 i ? "," : "", i, i);
		strncat(many, one, sizeof many - strlen(many) - 1);
	}
	strncat(many, "]}", sizeof many - strlen(many) - 1);
	assert_int_equal(companions_parse(many, strlen(many), &c, &(struct ft_err){0}), -EBADMSG);
}

// ---- the folder

static void touch(const char *name)
{
	close(open(fixture_path(name), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
}

static bool there(const char *name)
{
	return access(fixture_path(name), F_OK) == 0;
}

static void only_other_sets_are_removed(void **state)
{
	static const char *const gone[] = {
		"s.root.0123456789abcdef.raw",
		"s.data-1.fedcba9876543210.raw",
		"s.root.0000000000000001.raw.part",
	};
	static const char *const kept[] = {
		"s.root.00000000000000aa.raw",	 /* its own */
		"s.root.0123456789abcdef.qcow2", /* whatever these are */
		"s.root.0123456789abcde.raw",
		"s.root.0123456789ABCDEF.raw",
		"s.root.0123456789abcdef0.raw",
		"s..0123456789abcdef.raw",
		"s.a.root.0123456789abcdef.raw", /* of a snapshot called s.a */
		"t.root.0123456789abcdef.raw",
		"s",
		"s.part",
		"s.root.0123456789abcdef.raw.bak",
	};
	char path[OUT_FILE_PATH_MAX], file[NAME_MAX + 1];
	int fd;

	(void)state;
	for (unsigned i = 0; i < sizeof gone / sizeof *gone; i++)
		touch(gone[i]);
	for (unsigned i = 0; i < sizeof kept / sizeof *kept; i++)
		touch(kept[i]);
	/* Somebody restores from this one just now. */
	touch("s.root.1111111111111111.raw");
	fd = open(fixture_path("s.root.1111111111111111.raw"), O_RDONLY | O_CLOEXEC);
	assert_int_equal(flock(fd, LOCK_SH), 0);
	disks_folder_clean(fixture_path("s"), 0xaa);
	for (unsigned i = 0; i < sizeof gone / sizeof *gone; i++)
		assert_false(there(gone[i]));
	for (unsigned i = 0; i < sizeof kept / sizeof *kept; i++)
		if (!there(kept[i]))
			fail_msg("%s is gone", kept[i]);
	assert_true(there("s.root.1111111111111111.raw"));
	close(fd);
	disks_folder_clean(fixture_path("s"), 0xaa);
	assert_false(there("s.root.1111111111111111.raw"));
	/* And its own names are what it looks for. */
	assert_ok(disks_folder_name(fixture_path("s"), "root", 0, 0xab, path, file, err));
	assert_string_equal(file, "s.root.00000000000000ab.raw");
	touch(file);
	assert_ok(disks_folder_name(fixture_path("s"), "a.b/c", 3, 0xab, path, file, err));
	assert_string_equal(file, "s.disk3.00000000000000ab.raw");
	touch(file);
	disks_folder_clean(fixture_path("s"), 0xaa);
	assert_false(there("s.root.00000000000000ab.raw"));
	assert_false(there("s.disk3.00000000000000ab.raw"));
}

// ---- into an image

static uint8_t bytes[BYTES], got[BYTES];

static struct companion disk_of(void)
{
	struct companion disk = {.id = "root", .bytes = BYTES};
	unsigned seed = 7;

	memset(bytes, 0, sizeof bytes);
	for (unsigned i = DATA_AT; i < 2 * DATA_AT; i++)
		bytes[i] = (uint8_t)rand_r(&seed);
	disk.fd = open(fixture_path("s.root.raw"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(ftruncate(disk.fd, BYTES), 0);
	assert_int_equal(pwrite(disk.fd, bytes + DATA_AT, DATA_AT, DATA_AT), DATA_AT);
	return disk;
}

static void assert_image(const char *name)
{
	struct stat st;
	int fd = open(fixture_path(name), O_RDONLY | O_CLOEXEC);

	assert_int_equal(pread(fd, got, BYTES, 0), BYTES);
	assert_memory_equal(got, bytes, BYTES);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, BYTES);
	assert_true((uint64_t)st.st_blocks * 512 < BYTES / 2);
	close(fd);
}

static void scribble(const char *name, unsigned size)
{
	int fd = open(fixture_path(name), O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	assert_int_equal(ftruncate(fd, size), 0);
	/* Where the disk has a hole. */
	assert_int_equal(pwrite(fd, "precious", 8, size - 100), 8);
	close(fd);
}

static void assert_precious(const char *name, unsigned size)
{
	int fd = open(fixture_path(name), O_RDONLY | O_CLOEXEC);

	assert_int_equal(pread(fd, got, 8, size - 100), 8);
	assert_memory_equal(got, "precious", 8);
	close(fd);
}

static void put_into_images(void **state)
{
	struct companion disk = disk_of();
	struct metadata_record record;
	struct ft_err error = {0};
	const char *image = "x.img";
	struct metadata meta;
	struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 101, .l_len = 1};
	int fd;

	(void)state;
	/* None yet; one that is it already; an empty one. */
	assert_ok(companions_put(&disk, fixture_path(image), COMPANIONS_REFUSE, err));
	assert_image(image);
	assert_ok(companions_put(&disk, fixture_path(image), COMPANIONS_REFUSE, err));
	assert_ok(metadata_read(fixture_path(image), &record, err));
	assert_int_equal(record.state, STORE_UP_TO_DATE);
	touch("empty.img");
	assert_ok(companions_put(&disk, fixture_path("empty.img"), COMPANIONS_REFUSE, err));
	assert_image("empty.img");
	/* Another content, another size: not unasked. */
	scribble(image, BYTES);
	assert_int_equal(companions_put(&disk, fixture_path(image), COMPANIONS_REFUSE, &error),
			 -EEXIST);
	assert_non_null(strstr(error.text, "--force"));
	assert_precious(image, BYTES);
	assert_ok(companions_put(&disk, fixture_path(image), COMPANIONS_SPARE, err));
	assert_precious(image, BYTES);
	assert_ok(companions_put(&disk, fixture_path(image), COMPANIONS_OVERWRITE, err));
	assert_image(image);
	scribble("long.img", 2 * BYTES);
	assert_int_equal(companions_put(&disk, fixture_path("long.img"), COMPANIONS_REFUSE, &error),
			 -EEXIST);
	assert_precious("long.img", 2 * BYTES);
	assert_false(there("long.img.kemari"));
	assert_ok(companions_put(&disk, fixture_path("long.img"), COMPANIONS_OVERWRITE, err));
	assert_image("long.img");
	/* Somebody has it: an agent, a QEMU. Whatever is forced. */
	assert_ok(metadata_open(fixture_path(image), &meta, err));
	assert_int_equal(companions_put(&disk, fixture_path(image), COMPANIONS_OVERWRITE, &error),
			 -EBUSY);
	metadata_close(&meta);
	fd = open(fixture_path(image), O_RDWR | O_CLOEXEC);
	assert_int_equal(fcntl(fd, F_OFD_SETLK, &lock), 0);
	assert_int_equal(companions_put(&disk, fixture_path(image), COMPANIONS_SPARE, &error),
			 -EBUSY);
	assert_non_null(strstr(error.text, "a QEMU has it open"));
	close(fd);
	/* What was cut short is not started, nor put over unasked. */
	assert_ok(metadata_open(fixture_path(image), &meta, err));
	record.state = STORE_INCONSISTENT;
	assert_ok(metadata_write(&meta, &record, err));
	metadata_close(&meta);
	scribble(image, BYTES);
	assert_int_equal(companions_put(&disk, fixture_path(image), COMPANIONS_REFUSE, &error),
			 -ESTALE);
	assert_ok(companions_put(&disk, fixture_path(image), COMPANIONS_OVERWRITE, err));
	assert_image(image);
	assert_int_equal(
		companions_put(&disk, fixture_path("no/x.img"), COMPANIONS_OVERWRITE, &error),
		-ENOENT);
	close(disk.fd);
}

static void full_filesystem(void **state)
{
	struct companion disk = disk_of();
	struct metadata_record record;
	struct ft_err error = {0};

	(void)state;
	if (!fixture_small("512k"))
		skip();
	assert_int_equal(
		companions_put(&disk, fixture_path("small/x.img"), COMPANIONS_REFUSE, &error),
		-ENOSPC);
	assert_non_null(strstr(error.text, "No space left"));
	/* Nobody takes the half of it for a disk. */
	assert_ok(metadata_read(fixture_path("small/x.img"), &record, err));
	assert_int_equal(record.state, STORE_INCONSISTENT);
	close(disk.fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(described_is_parsed),
		cmocka_unit_test(hostile_descriptions),
		cmocka_unit_test_setup_teardown(only_other_sets_are_removed, fixture_setup,
						fixture_teardown),
		cmocka_unit_test_setup_teardown(put_into_images, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(full_filesystem, fixture_setup, fixture_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
