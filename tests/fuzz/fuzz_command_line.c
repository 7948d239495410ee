// SPDX-License-Identifier: Apache-2.0
// A peer's QEMU command line, which decides what this host executes. The input is its arguments,
// NUL-terminated; '@' at the start of one stands for the allowed folder, for a fuzzer does not find
// paths. Whatever comes out names no file but those that the rules allow, runs no program, listens
// nowhere but in the run directory, and has only options that we know.
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ft/log.h"
#include "vmm-glue/qemu/command_line.h"
#include "vmm-glue/qemu/options.h"

#define WORDS_MAX 64
#define TEXT_MAX  8192

static char folder[] = "/tmp/fuzz-line-XXXXXX", allowed[64], image[80], run_dir[64];

static void clean_up(void)
{
	char link[96];

	snprintf(link, sizeof link, "%s/out", allowed);
	unlink(link);
	unlink(image);
	rmdir(allowed);
	rmdir(run_dir);
	rmdir(folder);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	char link[96];
	int fd;

	(void)argc;
	(void)argv;
	ft_log_level_set(FT_LOG_ERROR);
	assert(mkdtemp(folder));
	snprintf(allowed, sizeof allowed, "%s/a", folder);
	snprintf(run_dir, sizeof run_dir, "%s/run", folder);
	snprintf(image, sizeof image, "%s/i", allowed);
	snprintf(link, sizeof link, "%s/out", allowed);
	assert(!mkdir(allowed, 0700) && !mkdir(run_dir, 0700));
	fd = open(image, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	assert(fd >= 0 && !ftruncate(fd, 1 << 20) && !symlink("/etc/passwd", link));
	close(fd);
	atexit(clean_up);
	return 0;
}

static bool begins(const char *text, const char *with)
{
	return !strncmp(text, with, strlen(with));
}

/* A value of ours may name a file; a peer's may only be one of those. */
static void check_value(const char *key, const char *value)
{
	static const char *const ours[] = {"/proc/self/fd/4", "/dev/urandom", "/dev/random"};

	assert(strcmp(key, "exec") && strcmp(key, "command") && strcmp(key, "helper"));
	if (!strchr(value, '/'))
		return;
	for (unsigned i = 0; i < sizeof ours / sizeof *ours; i++)
		if (!strcmp(value, ours[i]))
			return;
	assert(!strcmp(value, image) || begins(value, run_dir));
}

static void check_option(const char *option, const char *text)
{
	static const char *const known[] = {
		"-name",     "-machine", "-cpu",    "-smp",	"-uuid",     "-rtc",
		"-boot",     "-global",	 "-kernel", "-initrd",	"-append",   "-drive",
		"-blockdev", "-device",	 "-netdev", "-chardev", "-serial",   "-object",
		"-m",	     "-display", "-vga",    "-mon",	"-incoming", "-sandbox"};
	const char *key;
	json_t *o, *item;
	bool is_known = false;

	for (unsigned i = 0; i < sizeof known / sizeof *known; i++)
		is_known = is_known || !strcmp(option, known[i]);
	assert(is_known);
	if (!strcmp(option, "-append"))
		return;
	if (!strcmp(option, "-kernel") || !strcmp(option, "-initrd")) {
		check_value(option, text);
		return;
	}
	/* As QEMU reads it. */
	o = options_parse(text, "first");
	assert(o || !strchr(text, '/'));
	json_object_foreach(o, key, item)
	{
		const char *value = options_get(o, key);

		assert(!strchr(key, ',') && !strchr(key, '/'));
		if (value)
			check_value(key, value);
		if (!strcmp(option, "-netdev") && strstr(key, "script"))
			assert(value && !strcmp(value, "no"));
	}
	json_decref(o);
}

static void check(const struct argv *argv)
{
	static const char *const switches[] = {"-nodefaults",	 "-no-acpi",	 "-no-hpet",
					       "-no-reboot",	 "-no-shutdown", "-S",
					       "-no-user-config"};

	for (unsigned i = 1; i < argv->n; i++) {
		bool is_switch = false;

		for (unsigned k = 0; k < sizeof switches / sizeof *switches; k++)
			is_switch = is_switch || !strcmp(argv->v[i], switches[k]);
		if (is_switch)
			continue;
		assert(argv->v[i][0] == '-' && i + 1 < argv->n);
		check_option(argv->v[i], argv->v[i + 1]);
		i++;
	}
}

/* The words of the input, with '@' for the folder in them. */
static unsigned split(const uint8_t *data, size_t len, char *text, char *words[WORDS_MAX])
{
	unsigned n = 0;
	size_t at = 0;
	bool fresh = true;

	for (size_t i = 0; i < len && at + sizeof allowed + 1 < TEXT_MAX; i++) {
		if (fresh && n == WORDS_MAX - 1)
			break;
		if (fresh)
			words[n++] = text + at;
		fresh = data[i] == '\0';
		if (data[i] == '@')
			at += (size_t)snprintf(text + at, TEXT_MAX - at, "%s", allowed);
		else
			text[at++] = (char)data[i];
	}
	text[at] = '\0';
	words[n] = NULL;
	return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static const char *const replace[] = {"/srv", allowed, "tap0", "tap9", NULL};
	const char *const directories[] = {allowed, NULL};
	struct qemu_arm_rules rules = {
		.name = "g", .run_dir = run_dir, .replace = replace, .directories = directories};
	struct command_line line = {.rules = &rules};
	char *words[WORDS_MAX], *text = malloc(TEXT_MAX);
	struct ft_err err = {0};

	split(data, len, text, words);
	if (command_line_translate(&line, (const char *const *)words, &err)) {
		assert(err.text[0]);
	} else {
		check(&line.run);
		check(&line.trial);
	}
	argv_free(&line.run);
	argv_free(&line.trial);
	free(text);
	return 0;
}
