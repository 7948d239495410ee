// SPDX-License-Identifier: Apache-2.0
#include "vmm-glue/snapshot/disks_folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define DIGITS	   "0123456789abcdef"
#define NUMBER_LEN 16
#define ID_CHARS                                                                                   \
	"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-" /* no dot: the parts    \
									      are told by it */

int disks_folder_name(const char *path, const char *id, unsigned place, uint64_t number,
		      char out[OUT_FILE_PATH_MAX], char file[NAME_MAX + 1], struct ft_err *err)
{
	char copy[OUT_FILE_PATH_MAX], own[16];
	int n;

	snprintf(own, sizeof own, "disk%u", place);
	if (!*id || id[strspn(id, ID_CHARS)])
		id = own;
	snprintf(copy, sizeof copy, "%s", path);
	n = snprintf(file, NAME_MAX + 1, "%s.%s.%016" PRIx64 ".raw", basename(copy), id, number);
	if (n > NAME_MAX - (int)strlen(".part"))
		return ft_err_set(err, ENAMETOOLONG, "%.64s...: name too long", path);
	n = snprintf(out, OUT_FILE_PATH_MAX, "%s.%s.%016" PRIx64 ".raw", path, id, number);
	return n < OUT_FILE_PATH_MAX
		       ? 0
		       : ft_err_set(err, ENAMETOOLONG, "%.64s...: path too long", path);
}

/* BASE.ID.NUMBER.raw, or that and .part. */
static bool is_image(const char *name, const char *base, uint64_t *number)
{
	size_t n = strlen(base);
	const char *at = name + n;
	char digits[NUMBER_LEN + 1];

	if (strncmp(name, base, n) != 0 || *at++ != '.' || !strspn(at, ID_CHARS))
		return false;
	at += strspn(at, ID_CHARS);
	if (*at++ != '.' || strspn(at, DIGITS) != NUMBER_LEN)
		return false;
	memcpy(digits, at, NUMBER_LEN);
	digits[NUMBER_LEN] = '\0';
	at += NUMBER_LEN;
	return sscanf(digits, "%" SCNx64, number) == 1 &&
	       (!strcmp(at, ".raw") || !strcmp(at, ".raw.part"));
}

static void remove_unused(int dir, const char *name)
{
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);

	if (fd < 0)
		return;
	if (!flock(fd, LOCK_EX | LOCK_NB))
		(void)unlinkat(dir, name, 0);
	close(fd);
}

void disks_folder_clean(const char *path, uint64_t number)
{
	char copy[OUT_FILE_PATH_MAX], base[OUT_FILE_PATH_MAX];
	struct dirent *entry;
	uint64_t other;
	DIR *dir;

	snprintf(copy, sizeof copy, "%s", path);
	snprintf(base, sizeof base, "%s", basename(copy));
	snprintf(copy, sizeof copy, "%s", path);
	dir = opendir(dirname(copy));
	while (dir && (entry = readdir(dir)))
		if (is_image(entry->d_name, base, &other) && other != number)
			remove_unused(dirfd(dir), entry->d_name);
	if (dir)
		closedir(dir);
}
