// SPDX-License-Identifier: Apache-2.0
// What of a peer's QEMU command line is taken, and what is refused by name. tests/fuzz looks for
// the rest of what could get through.
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "vmm-glue/qemu/command_line.h"
#include "vmm-glue/qemu/qemu.h"

static char folder[] = "/tmp/ft-line-XXXXXX", image[PATH_MAX];

static int set_up(void **state)
{
	int fd;

	(void)state;
	if (!mkdtemp(folder))
		return -1;
	snprintf(image, sizeof image, "%s/disk.img", folder);
	fd = open(image, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, 1 << 20) < 0)
		return -1;
	return close(fd);
}

static int tear_down(void **state)
{
	(void)state;
	return unlink(image) + rmdir(folder);
}

/* The refusal's text, or "" and what the standby would run. '@' in `value` stands for the image. */
static void translate(const char *option, const char *value, struct ft_err *err, char *runs,
		      size_t room)
{
	const char *const directories[] = {folder, NULL};
	struct qemu_arm_rules rules = {
		.name = "g", .run_dir = "/run/ft", .directories = directories};
	struct command_line line = {.rules = &rules};
	char text[2 * PATH_MAX] = "";
	const char *argv[] = {"qemu-system-x86_64", "-m", "64M", option, text, NULL};

	for (const char *c = value; *c; c++)
		snprintf(text + strlen(text), sizeof text - strlen(text), *c == '@' ? "%s" : "%.1s",
			 *c == '@' ? image : c);
	*err = (struct ft_err){0};
	*runs = '\0';
	if (command_line_translate(&line, argv, err) == 0) {
		assert_string_equal(err->text, "");
		for (unsigned i = 0; i < line.run.n; i++)
			snprintf(runs + strlen(runs), room - strlen(runs), "%s ", line.run.v[i]);
	}
	argv_free(&line.run);
	argv_free(&line.trial);
}

static void disks_are_taken(void **state)
{
	static const char *const values[][2] = {
		{"-drive", "file=@,format=raw,if=virtio,id=d"},
		{"-blockdev", "driver=file,filename=@,node-name=f"},
		{"-blockdev", "driver=raw,node-name=d,file.driver=file,file.filename=@"},
		{"-blockdev", "{\"driver\":\"raw\",\"node-name\":\"d\",\"file\":{\"driver\":"
			      "\"file\",\"filename\":\"@\"}}"},
	};
	char runs[4096];
	struct ft_err err;

	(void)state;
	for (unsigned i = 0; i < sizeof values / sizeof *values; i++) {
		translate(values[i][0], values[i][1], &err, runs, sizeof runs);
		assert_string_equal(err.text, "");
		assert_non_null(strstr(runs, image));
	}
	translate("-blockdev", "driver=raw,node-name=d,file=f", &err, runs, sizeof runs);
	assert_string_equal(err.text, "");
}

static void other_files_are_refused(void **state)
{
	static const char *const values[][2] = {
		{"-drive", "file=/etc/passwd,format=raw,if=virtio"},
		{"-drive", "file=@/../../../etc/passwd,format=raw,if=virtio"},
		{"-blockdev", "driver=file,filename=/etc/passwd,node-name=f"},
		/* The one with a rule is not the one that is printed. */
		{"-blockdev", "driver=raw,node-name=d,file=f,filename=/etc/passwd"},
		{"-blockdev",
		 "driver=raw,node-name=d,file.driver=file,file.filename=@,filename=/etc/passwd"},
		{"-blockdev", "driver=file,filename=@,file.filename=/etc/passwd"},
		{"-kernel", "/etc/passwd"},
		{"-object", "rng-random,id=r,filename=/etc/passwd"},
		{"-device", "virtio-net-pci,romfile=/etc/passwd"},
		/* QEMU ends a key at a comma, doubled or not. */
		{"-device", "virtio-net-pci,a,,romfile=/etc/passwd"},
	};
	char runs[4096];
	struct ft_err err;

	(void)state;
	for (unsigned i = 0; i < sizeof values / sizeof *values; i++) {
		translate(values[i][0], values[i][1], &err, runs, sizeof runs);
		assert_string_equal(runs, "");
		assert_memory_equal(err.text, "qemu: command line: ", 20);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(disks_are_taken),
		cmocka_unit_test(other_files_are_refused),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
