// SPDX-License-Identifier: Apache-2.0
/* What the disks' metadata files say while nobody has the disks open: whether a guest may be
 * started from them, which generation they know; and how an operator removes them. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "eventtap/block/metadata.h"
#include "tests/sim/world.h"

bool disks_whole(struct node *n, uint64_t generation)
{
	for (unsigned i = 0; i < n->world->options.disks; i++)
		if (n->disks[i].shared || !store_is_consistent(n->disks[i].path, generation))
			return false;
	return true;
}

int disks_startable(struct node *n, enum store_right right, struct ft_err *err)
{
	for (unsigned i = 0; i < n->world->options.disks; i++) {
		int rc;

		if (!files_exists(n->disks[i].path))
			return ft_err_set(err, ENOENT, "disk %u: there is no image", i);
		rc = store_check_startable(n->disks[i].path, right, err);
		if (rc)
			return rc;
	}
	return 0;
}

bool disks_torn(struct node *n)
{
	struct metadata_record record;

	for (unsigned i = 0; i < n->world->options.disks; i++)
		if (n->disks[i].shared && !metadata_read(n->disks[i].path, &record, NULL) &&
		    record.state == STORE_INCONSISTENT)
			return true;
	return false;
}

uint64_t disks_generation(struct node *n)
{
	uint64_t newest = 0;

	for (unsigned i = 0; i < n->world->options.disks; i++) {
		uint64_t g = store_generation(n->disks[i].path);

		newest = g > newest ? g : newest;
	}
	return newest;
}

/* An operator who removes files looks after them: they do not come back with the next power cut. */
static void sync_folder(const char *path)
{
	char folder[80];
	int fd;

	snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(path, '/') - path), path);
	fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return;
	(void)fsync(fd);
	close(fd);
}

void disks_forget(struct node *n, bool image_too)
{
	for (unsigned i = 0; i < n->world->options.disks; i++) {
		char path[80];

		if (image_too && n->disks[i].shared)
			continue; /* it is the other host's as well */
		snprintf(path, sizeof path, "%s" METADATA_SUFFIX, n->disks[i].path);
		(void)unlink(path);
		if (image_too)
			(void)unlink(n->disks[i].path);
		sync_folder(path);
	}
}
