// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/beside.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

char beside_image[64], beside_path[96];
static char folder[] = "/dev/shm/fuzz-beside-XXXXXX";

static void clean_up(void)
{
	unlink(beside_path);
	rmdir(folder);
}

void beside_open(const char *suffix)
{
	assert(mkdtemp(folder));
	snprintf(beside_image, sizeof beside_image, "%s/disk", folder);
	snprintf(beside_path, sizeof beside_path, "%s%s", beside_image, suffix);
	atexit(clean_up);
}
