// SPDX-License-Identifier: Apache-2.0
// A guest file and, behind the first byte 0, lines for --set. Whatever is accepted must keep the
// bounds that the agent relies on; whatever is not must be blamed in one line.
#include <assert.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/agent/config.h"

#define SETS_MAX 8

static char file[64], folder[] = "/tmp/fuzz-config-XXXXXX";

static void clean_up(void)
{
	unlink(file);
	rmdir(folder);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	assert(mkdtemp(folder));
	snprintf(file, sizeof file, "%s/guest.conf", folder);
	atexit(clean_up);
	return 0;
}

static void write_file(const char *text, size_t len)
{
	int fd = open(file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert(fd >= 0 && write(fd, text, len) == (ssize_t)len);
	close(fd);
}

static void check_list(const struct config_list *list)
{
	assert(list->n <= CONFIG_LIST_MAX);
	for (unsigned i = 0; i < list->n; i++)
		assert(strnlen(list->item[i], CONFIG_TEXT_MAX) < CONFIG_TEXT_MAX);
}

static void check(const struct ft_config *c)
{
	assert(ctl_name_ok(c->name));
	assert(strlen(c->uuid) == CONFIG_UUID_MAX - 1);
	assert(c->disks_n <= VMM_DISKS_MAX && c->nics_n <= VMM_NICS_MAX);
	assert(c->memory_bytes % VMM_PAGE_BYTES == 0);
	assert(c->ft.heartbeat_ms > 0 && c->ft.takeover_ms >= 2 * c->ft.heartbeat_ms);
	assert(c->ft.max_overhead > 0 && c->ft.max_overhead <= 1);
	assert(c->ft.staging_bytes >= 1u << 20);
	for (unsigned i = 0; i < c->disks_n; i++)
		assert(ctl_name_ok(c->disks[i].id) &&
		       (!c->disks[i].image[0] || c->disks[i].image[0] == '/'));
	for (unsigned i = 0; i < c->nics_n; i++)
		assert(ctl_name_ok(c->nics[i].id) && strlen(c->nics[i].mac) == 17);
	check_list(&c->qemu.args);
	check_list(&c->qemu.replace);
	check_list(&c->qemu.directories);
	check_list(&c->arbiter.endpoints);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static struct ft_config config;
	const char *sets[SETS_MAX];
	struct ft_err err = {0};
	char *text = malloc(len + 1), *at;
	size_t file_len;
	unsigned n = 0;

	memcpy(text, data, len);
	text[len] = 0;
	file_len = strlen(text);
	write_file(text, file_len);
	for (at = text + file_len; n < SETS_MAX && at < text + len; at += strlen(at)) {
		*at++ = 0;
		sets[n++] = at;
		at[strcspn(at, "\n")] = 0;
	}
	if (config_load(file, sets, n, &config, &err) == 0)
		check(&config);
	else
		assert(err.code && err.text[0] && !strchr(err.text, '\n'));
	free(text);
	return 0;
}
